"""What each step of a run is made from, as one digest a step: equal digests, nothing to do again.

A digest covers the step's own settings and those of the steps before it. Up to the moments that includes the Python
files that the run file's names reach, and data sets are known by their factory and its options (the batches themselves
are compared one by one at capture). From the moments on it starts from what the records in the store say they were made
from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalr_stream._version import __version__
from dalr_stream.errors import StoreNotFoundError
from dalr_stream.network.saved.pretrained import weights_file
from dalr_stream.storage.json_record import digest_of
from dalr_stream.workflow.runfile.compress_section import Order
from dalr_stream.workflow.runfile.config import RunConfig
from dalr_stream.workflow.runfile.factories import code_digest
from dalr_stream.workflow.runfile.sections import LabelledSection


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """The digests of one run file's steps."""

    config: RunConfig
    folder: Path
    """The run file's folder."""

    @property
    def train(self) -> str:
        """Of the network's weights."""
        section = self.config.network
        files = {"weights": section.weights, "start": section.start}
        weights = [
            None if file is None else file_print(weights_file(self.folder / file), key) for key, file in files.items()
        ]
        settings = section.model_dump(mode="json", exclude={"layers", "outputs", "device"})
        code = self._code(section.build, section.train)
        return digest_of({"network": settings, "weights": weights, "seed": self.config.run.seed, "code": code})

    def capture(self, domain: str) -> str:
        """Of a domain's rows."""
        section, rows, network = self.config.domains[domain], self.config.capture, self.config.network
        mask = rows.mask if rows.mask and ":" in rows.mask else None
        data = [section.model_dump(mode="json"), self._code(section.batches, mask)]
        choice = [rows.mask, rows.most_per_sample, rows.most_patches, self.config.run.seed]
        watched = [network.layers, network.outputs, self.config.selects, network.device]
        return digest_of([self.train, domain, data, watched, choice])

    def accumulate(self, domain: str) -> str:
        """Of a domain's moments."""
        rule, section, shards = self.config.holdout(domain), self.config.accumulate, self.config.shards(domain)
        return digest_of([self.capture(domain), rule.share, rule.seed, section.precision, section.device, shards])

    def after_moments(self, step: str, moments: Sequence[Any]) -> str:
        """Of a step that starts from the moments in the store, whatever made them: `moments` is their provenance.

        So a store and a run file are enough to solve, on another machine and without the network's code.
        """
        config = self.config
        solve = digest_of([moments, config.solve.model_dump(mode="json"), __version__])
        if step == "solve":
            return solve
        searched = self._labelled(config.validation) if config.compress.max_drop is not None else []
        seed = config.run.seed if searched else None
        compress = digest_of([solve, config.plain()["compress"], searched, seed, self._streamed_again])
        if step == "compress":
            return compress
        finetune = self._finetune(compress)
        if step == "finetune":
            return finetune
        evaluate = digest_of([finetune, self._labelled(config.evaluate), config.run.seed])
        if step == "evaluate":
            return evaluate
        published = config.report.published
        beside = None if published is None else file_print(self.folder / published, "published", "report")
        return digest_of([evaluate, config.run.model_dump(mode="json"), beside])

    def _finetune(self, compress: str) -> str:
        section = self.config.finetune
        if section is None:
            return compress
        code = self._code(self.config.network.build, section.batches, section.loss)
        return digest_of([compress, section.model_dump(mode="json"), code, self.config.run.seed])

    @property
    def _streamed_again(self) -> list[str]:
        """Of the domains that compressing layer after layer goes through once more."""
        solve = self.config.solve
        again = [solve.target, solve.source, solve.heldout] if self.config.compress.order is Order.SEQUENTIAL else []
        return [self.capture(domain) for domain in again if domain is not None]

    def _labelled(self, section: LabelledSection | None) -> list[Any]:
        if section is None:
            return []
        code = self._code(self.config.network.build, section.batches, section.metric)
        return [section.model_dump(mode="json", exclude={"cache"}), code]

    def _code(self, *factories: str | None) -> str:
        return code_digest(self.folder, [name for name in factories if name])


def file_print(path: Path, key: str, section: str = "network") -> str:
    """Return what identifies a file cheaply: its name, size and time of change."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise StoreNotFoundError(
            f"{section}.{key}: there is no file '{path.resolve()}': put it there, or name another"
        ) from None
    return f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}"
