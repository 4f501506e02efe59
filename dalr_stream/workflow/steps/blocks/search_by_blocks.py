"""Sizes that keep a score on validation, where networks go through the blocks together: see `sizes.search`, `by_nats`.

All networks of a step of the search are taken through each block at once. What was scored is kept beside what blocks
give: a search that was killed goes on after the last step that it finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from dalr_stream.engine.sizes.by_blocks import cuts_of
from dalr_stream.engine.sizes.candidates import Candidates
from dalr_stream.engine.sizes.measuring import Sizes
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.errors import ConfigError, UnsupportedLayerError
from dalr_stream.network.blocks.changed_piece import Cut
from dalr_stream.network.blocks.scored import first_call
from dalr_stream.network.surgery.compress import Replacement, parameter_count
from dalr_stream.progress import Progress, Silent
from dalr_stream.report.records.scale import Scale
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.records.solutions import Solution
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.named_sizes import at_size
from dalr_stream.workflow.steps.scores.scoring import KeptScores, Scoring, score_on

Cuts = Mapping[str, Cut]
"""What takes the place of each layer."""


@dataclass
class ScoresByBlocks:
    """Scores networks on validation, those that are asked for together going through the blocks together."""

    project: Project
    score: Scoring
    fingerprint: str
    progress: Progress
    _kept: KeptScores = field(init=False)

    @classmethod
    def of(cls, project: Project, fingerprint: str, progress: Progress) -> ScoresByBlocks:
        """Score by [validation]; raises ConfigError where there is none."""
        validation = project.config.validation
        if validation is None:
            raise ConfigError("compress.max_drop: needs a [validation] section")
        return cls(project, score_on(project, "validation", validation), fingerprint, progress)

    def __post_init__(self) -> None:
        path = self.project.measuring / f"scores-{self.fingerprint[:16]}.json"
        self._kept = KeptScores(path)

    def __call__(self, networks: Mapping[str, Cuts]) -> list[tuple[int, float]]:
        """Return the parameters and the score of networks, each under what identifies it.

        Raises UnsupportedLayerError where one of them cannot be.
        """
        left = [key for key in networks if key not in self._kept]
        for group in self._candidates.groups(left):
            for key, found in zip(group, self._scored([networks[key] for key in group]), strict=True):
                self._kept.keep(key, found)
        return [(parameters, score) for parameters, score in map(self._kept.known, networks)]

    def _scored(self, networks: Sequence[Cuts]) -> Iterator[tuple[int, float]]:
        gone: list[dict[str, int]] = [{} for _ in networks]
        variants = [self._candidates.variant(given, one.__setitem__) for given, one in zip(networks, gone, strict=True)]
        whole = parameter_count(self.project.recorded)
        outcomes = self._candidates.outcomes(variants, [self.score.question], Silent(), "search: blocks")
        for outcome, fewer in zip(outcomes, gone, strict=True):
            if isinstance(outcome, UnsupportedLayerError):
                raise outcome
            yield whole - sum(fewer.values()), self.score.checked(float(outcome[0]))

    @cached_property
    def _candidates(self) -> Candidates:
        score, network = self.score, self.project.recorded
        first = first_call(network, score.metric, score.batches, score.name)
        blocks = self.project.config.network.blocks or True
        return Candidates(network, first, score.samples, self.project.measuring, blocks)


@dataclass
class TriesByBlocks:
    """The networks of a joint search: `sizes.search.Tries`."""

    scores: ScoresByBlocks
    solutions: Mapping[str, Solution]

    @property
    def scale(self) -> Scale:
        """That of the metric."""
        return self.scores.score.scale

    @property
    def progress(self) -> Progress:
        """Receives what is found."""
        return self.scores.progress

    def baseline(self) -> float:
        """Return the score of the uncompressed network."""
        return self.scores({"uncompressed": {}})[0][1]

    def tried(self, networks: Sequence[Mapping[str, int]]) -> Iterator[tuple[int, float]]:
        """Take all of them through the blocks together."""
        family = self.scores.project.config.compress_method.family
        cuts = {
            digest_of(dict(sizes)): {
                layer: Cut(family, partial(self._cut, layer, size)) for layer, size in sizes.items()
            }
            for sizes in networks
        }
        yield from self.scores(cuts)

    def _cut(self, layer: str, size: int) -> Replacement:
        return at_size(self.solutions[layer], size, layer, self.scores.project.config.solve.restore_ridge)


def score_of_menus(scores: ScoresByBlocks, menu: Menu | None, sizes: Sizes) -> float:
    """Return the score of a network of some sizes; without a menu, of the network as it is."""
    if menu is None:
        return scores({"uncompressed": {}})[0][1]
    plain = [[layer, menu.method(layer, family).value, size] for layer, (family, size) in sizes.items()]
    return scores({digest_of(plain): cuts_of(menu, sizes)})[0][1]
