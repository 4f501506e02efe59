"""How well compressed networks do once each of them has been fine-tuned, as the run file's [finetune] says.

What comes before the compressed layer and before everything that is trained gives the same values whatever is
compressed, in every epoch and of every network: it is run once for each training batch, as far as the cache goes, and
only the rest of the network is trained and scored. That takes a loader which gives the same batches at every epoch and
can begin in the middle; with any other whole networks are trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.capture.loaders import can_resume
from dalr_stream.network.measure.prefix import Cut, KeptBatches
from dalr_stream.network.training.finetune import Numbered, finetune
from dalr_stream.network.training.setting import FineTuning
from dalr_stream.network.training.trainable import require_all_trained, touched
from dalr_stream.workflow.steps.scores.scoring import Evaluator, Score


@dataclass(slots=True)
class FinetunedScores:
    """Fine-tunes a network, then scores it."""

    evaluator: Evaluator
    batches: Iterable[Any]
    """Labelled; never the test split."""
    options: FineTuning
    _last: dict[str, Score] = field(default_factory=dict, init=False)
    """The score after the last cut, by its place: neighbouring layers have the same."""

    def from_layer(self, layer: str) -> Score:
        """Return the score of networks that are compressed in `layer`, each fine-tuned by itself."""
        model, options = self.evaluator.model, self.options
        try:
            _require_labels(options)
            trained = touched(model, options.layers, options.train, dropout=options.dropout)
            cut = Cut(model, *self.evaluator.changed_with(layer), *trained)
            if cut.place not in self._last:
                cut.require_same(model, next(iter(self.batches)))
                require_all_trained(model, cut.tail(model), options.layers, options.train)
        except UnsupportedLayerError as error:
            self.evaluator.note_whole_passes(error)
            return lambda small: self.evaluator.score(finetune(small, self.batches, options))
        if cut.place not in self._last:
            self._last.clear()  # what another cut keeps is not needed again
            self._last[cut.place] = self._after(cut)
        return self._last[cut.place]

    def _after(self, cut: Cut) -> Score:
        options, limit = self.options, self.evaluator.cache_bytes
        score = self.evaluator.score.after(cut, limit)
        if isinstance(self.batches, Numbered) or not can_resume(self.batches):
            return lambda small: score(finetune(small, self.batches, options))
        batches = KeptBatches(cut, self.batches, limit)

        def tuned(small: nn.Module) -> float:
            return score(finetune(cut.tail(small), batches, options))

        return tuned


def _require_labels(options: FineTuning) -> None:
    """Raise UnsupportedLayerError where the original network is run on the batches too: it needs them whole."""
    if options.without_labels:
        raise UnsupportedLayerError('with loss = "outputs" the original network is run on the same batches')
