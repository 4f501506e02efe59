"""Where candidates of a network are measured: in memory, or block by block where its weights stay on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from dalr_stream.engine.sizes.by_blocks import ByBlocks, ScoreAsked, distance_asked
from dalr_stream.engine.sizes.measuring import Measure
from dalr_stream.engine.sizes.menus import Bench, InMemory
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.blocks.scored import first_call, question_of
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.network.measure.score import Score
from dalr_stream.network.structure.recorded import Groups
from dalr_stream.network.surgery.compress import Replacement, compress
from dalr_stream.progress import Progress

_NAME = "sizes: the metric of score="


@contextmanager
def bench_of(
    model: nn.Module,
    distance: OutputDistance,
    structure: Groups | None,
    score: Measure | None,
    store: str | Path | None,
    *,
    higher: bool,
    progress: Progress,
) -> Iterator[Bench]:
    """Give what networks are measured by: whole, or block by block where weights stay on disk."""

    def build(replacements: dict[str, Replacement]) -> nn.Module:
        return compress(model, replacements, example=structure)

    if weights_elsewhere(model) is None:
        yield InMemory(build, distance, score, higher, progress)
        return
    if store is not None:
        Path(store).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="sizes-", dir=store) as folder:
        asked = score_by_blocks(model, score)
        yield ByBlocks(model, distance, Path(folder), score=asked, higher=higher, progress=progress)


def score_by_blocks(model: nn.Module, score: Measure | None) -> ScoreAsked | None:
    """Return what a score asks of networks that go block by block as `model` does.

    Raises InvalidInputError for a function of a whole network, and UnsupportedLayerError for a metric that does more
    with a network than call it.
    """
    if score is None:
        return None
    if isinstance(score, OutputDistance):
        return ScoreAsked(distance_asked(score, model), score.samples)
    if not isinstance(score, Score):
        raise InvalidInputError(
            "sizes: block by block no candidate is there whole for score= to be called with: give Score(metric, "
            "batches), whose metric calls a network once for each batch, or an OutputDistance; got a "
            f"{type(score).__name__}"
        )
    first_call(model, score.metric, score.batches, _NAME)
    return ScoreAsked(question_of(score.metric, score.batches, _NAME), score.samples)
