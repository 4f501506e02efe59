"""How the saved network is compressed, as it is kept beside it: which sizes, decided how, and what the order gained.

What was decided is read from here afterwards: no size is ever decided twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dalr_stream.engine.sequential.passes import in_words
from dalr_stream.engine.sizes.choice import Candidate, SizeChoice
from dalr_stream.network.measure.distance import Distance
from dalr_stream.numerics.methods import Method
from dalr_stream.report.tables.overview import FEW
from dalr_stream.storage.json_record import RecordKind
from dalr_stream.workflow.steps.sizes.by_nats import SearchByNats
from dalr_stream.workflow.steps.sizes.search import Search
from dalr_stream.workflow.steps.step import read_stamped, write_stamped

UNITS = {
    Distance.ENERGY: "||Y - Y~||^2 / ||Y||^2 of the network's outputs",
    Distance.KL: "KL divergence of the network's outputs, nats",
    Distance.COSINE: "1 - cosine of the rows of the network's outputs",
}

COMPRESSION = RecordKind("compression", 2, "run compress")


@dataclass(frozen=True, slots=True)
class LayerGain:
    """Relative output error of one layer, ||Y - Y~|| / ||Y - b||, in the two compressed networks."""

    layer: str
    parallel: float
    """All layers solved from the original network's statistics."""
    sequential: float
    """Each solved in the network as compressed so far."""

    def __str__(self) -> str:
        return f"{self.layer} {self.parallel:.4f} -> {self.sequential:.4f}"


@dataclass(frozen=True, slots=True)
class SequenceGain:
    """Both networks measured on the same rows, at the same sizes; block by block no network is there to be measured."""

    passes: tuple[tuple[str, ...], ...]
    """The layers of each pass."""
    measured_on: str
    """Which rows, in words."""
    layers: tuple[LayerGain, ...]
    """In the order of execution; a layer that a selection narrowed is measured at what reads its nodes."""
    towards_stream: tuple[str, ...] = ()
    """Those that were solved towards a residual stream that had lost something by then."""

    def __str__(self) -> str:
        gains = ", ".join(map(str, self.layers))
        stream = f", towards the residual stream: {', '.join(self.towards_stream)}" if self.towards_stream else ""
        words = f"layers were compressed one after the other, in {in_words(self.passes)}{stream}"
        if not self.layers:
            return words
        return f"{words}; relative output error on {self.measured_on}, all at once -> one after the other: {gains}"

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> SequenceGain:
        """Return the record that `dataclasses.asdict` turned into plain values."""
        layers = tuple(LayerGain(**layer) for layer in plain["layers"])
        towards = tuple(plain.get("towards_stream", ()))
        return cls(tuple(tuple(group) for group in plain["passes"]), plain["measured_on"], layers, towards)


@dataclass(frozen=True, slots=True)
class LayerSize:
    """By which method a layer is compressed, and its rank or number of kept nodes."""

    method: Method
    size: int


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to keep a budget that was built and measured whole."""

    plan: str
    """Which layers are factored and which lose nodes, in words."""
    rule: str
    """By which the sizes were decided, in words."""
    predicted: float
    """Sum of the distances of networks with one of its layers cut."""
    distance: float
    """Of its outputs from the original's."""
    score: float | None
    """On validation, where there is one."""

    @classmethod
    def of(cls, one: Candidate) -> Trial:
        """Return what is kept of a candidate."""
        return cls(one.plan, one.rule, one.predicted, one.distance, one.score)

    def __str__(self) -> str:
        score = "" if self.score is None else f", {self.score:.4f} on validation"
        return f"{self.plan} by {self.rule}: {self.predicted:.4g} predicted, {self.distance:.4g} measured{score}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a budget was chosen among, the chosen one first."""

    trials: tuple[Trial, ...]
    unit: str
    """Of distances, in words."""
    samples: int
    rank_correlation: float | None
    """Of predicted and measured distances."""
    measured_on: str = "samples"
    """Which samples, in words."""
    at_once: tuple[Trial, ...] = ()
    """Where trials were compressed layer after layer: those that they were taken from, measured all at once."""

    @classmethod
    def of(cls, choice: SizeChoice, distance: Distance, samples: int, measured_on: str) -> Choice:
        """Return what is kept of a choice."""
        return cls(
            tuple(map(Trial.of, choice.candidates)),
            UNITS[distance],
            samples,
            choice.rank_correlation,
            measured_on,
            tuple(map(Trial.of, choice.at_once)),
        )

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Choice:
        """Return the record that `dataclasses.asdict` turned into plain values."""
        trials = {key: tuple(Trial(**one) for one in plain.get(key, ())) for key in ("trials", "at_once")}
        return cls(**{**plain, **trials})

    def __str__(self) -> str:
        agreement = "" if self.rank_correlation is None else f", rank correlation {self.rank_correlation:.2f}"
        told = "; ".join(map(str, self.trials))
        before = f", the nearest of {len(self.at_once)} all at once," if self.at_once else ""
        how = "compressed layer after layer and measured whole" if self.at_once else "measured whole"
        return (
            f"the best of {len(self.trials)} networks within the budget{before} was kept, each {how} on "
            f"{self.samples:,} {self.measured_on} ({self.unit}{agreement}): {told}"
        )


@dataclass(frozen=True, slots=True)
class Compression:
    """How the saved network is compressed, and how that was decided."""

    rule: str
    """In words."""
    layers: Mapping[str, LayerSize]
    """Layers that are not named stay as they are."""
    notes: tuple[str, ...] = ()
    """What was warned of on the way."""
    search: Search | None = None
    gain: SequenceGain | None = None
    """Where the layers were compressed one after the other."""
    choice: Choice | None = None
    """Where a budget was shared out."""
    asked: int = 0
    """Layers that were to be compressed, those that stay as they are included; 0 where nobody counted."""
    by_nats: SearchByNats | None = None
    """Where a score is kept and what the loss feels of each layer is known."""

    def __str__(self) -> str:
        if not self.layers:
            return "as is"
        return self._sizes + (" (one after the other)" if self.gain else "")

    @property
    def said(self) -> tuple[str, ...]:
        """What the report says of it."""
        return (*self.notes, *(str(part) for part in (self.choice, self.by_nats, self.gain) if part is not None))

    @property
    def _sizes(self) -> str:
        asked = max(self.asked, len(self.layers))
        if asked <= FEW:
            return "; ".join(f"{name} {layer.method.label}, {layer.size}" for name, layer in self.layers.items())
        sizes: dict[Method, list[int]] = {}
        for layer in self.layers.values():
            sizes.setdefault(layer.method, []).append(layer.size)
        return "; ".join(
            f"{method.label} in {len(ranks)} of {asked} layers, "
            + " to ".join(map(str, sorted({min(ranks), max(ranks)})))
            for method, ranks in sizes.items()
        )

    def write(self, path: Path, fingerprint: str) -> None:
        """Write the record."""
        write_stamped(path, COMPRESSION, fingerprint, asdict(self))

    @classmethod
    def read(cls, path: Path, fingerprint: str | None = None) -> Compression:
        """Read what `write` wrote; raises FingerprintMismatchError where it was made from something else."""
        plain = read_stamped(path, COMPRESSION, fingerprint)
        layers = {name: LayerSize(Method(layer["method"]), layer["size"]) for name, layer in plain["layers"].items()}
        search = None if plain["search"] is None else Search.from_plain(plain["search"])
        gain = None if plain["gain"] is None else SequenceGain.from_plain(plain["gain"])
        choice = None if plain["choice"] is None else Choice.from_plain(plain["choice"])
        by_nats = None if plain.get("by_nats") is None else SearchByNats.from_plain(plain["by_nats"])
        return cls(plain["rule"], layers, tuple(plain["notes"]), search, gain, choice, plain.get("asked", 0), by_nats)
