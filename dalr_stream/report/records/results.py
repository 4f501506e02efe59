"""What a run found out: the one record between the workflow, which fills it, and the pages that show it.

Every number the report shows is in here, and `results.json` is this record written out: whoever wants other
pictures starts from that file. The record holds plain numbers and names, no arrays of samples and no weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalr_stream.numerics.latency import NetworkProfile
from dalr_stream.report.records.published import PublishedTable
from dalr_stream.report.records.scale import Scale
from dalr_stream.report.records.stability import Stability


@dataclass(frozen=True, slots=True)
class DomainActivity:
    """How often the inputs of one layer fire on one domain (DALR, Fig. 2)."""

    domain: str
    rows: int
    active_rate: tuple[float, ...]
    """Share of rows with a non-zero response, one value a feature, in descending order."""
    half_share: float
    """Share of the features that carries 50 % of all activations."""


@dataclass(frozen=True, slots=True)
class ErrorCurve:
    """Reconstruction error of one low-rank method at every rank (DALR, Eq. 13 and Fig. 3).

    `training[k]` and `heldout[k]` are ||Y - Yhat||_F / ||Y - b||_F at rank k = 0..K, each on its own rows.
    """

    method: str
    training: tuple[float, ...]
    heldout: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class ScorePoint:
    """One compressed network, evaluated on the test split."""

    size: int
    """The rank of a factor pair, or the number of nodes a selection keeps."""
    layer_parameters: int | None
    """k(m + d), for a factor pair; None for a selection, which changes two layers."""
    pair_parameters: int
    """Weights left in this layer and the next one together."""
    score: float
    """The metric's value on the test split; of a share, such as accuracy, in 0..1."""


@dataclass(frozen=True, slots=True)
class ScoreCurve:
    """Score of one method against size; points in ascending order of size."""

    method: str
    points: tuple[ScorePoint, ...]


@dataclass(frozen=True, slots=True)
class RetentionCurve:
    """Information retention r(J) of a selection against the number of nodes kept (MoMaSP, Eq. 2), sizes 1..m."""

    method: str
    retention: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Spectra:
    """Singular values of the weight, and of the outputs Z on the target's training rows; descending."""

    weight: tuple[float, ...]
    outputs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """The smallest tried size of one method that loses at most `drop`; None where no tried size does."""

    method: str
    size: int | None
    layer_parameters: int | None
    pair_parameters: int | None
    score: float | None
    svd_ratio: float | None
    """Parameters plain SVD needs, divided by what this method needs: on the layer alone for factor pairs, on
    the layer and the next one together for selections."""


@dataclass(frozen=True, slots=True)
class LayerResults:
    """Everything found out about one layer."""

    name: str
    outputs: int
    inputs: int
    next_layer: str | None
    next_outputs: int
    """Weights elsewhere that go with each output a selection drops, in its readers and in layers tied to this one;
    0 where nothing reads them one by one."""
    drop: float
    """The loss that the headline allows: 0.01 is one point of a share, and 1 % of any other metric's value."""
    activity: tuple[DomainActivity, ...]
    error_curves: tuple[ErrorCurve, ...]
    score_curves: tuple[ScoreCurve, ...]
    retention_curves: tuple[RetentionCurve, ...]
    spectra: Spectra
    headline: tuple[HeadlineRow, ...]
    stability: Stability | None = None
    """None where the store keeps no shards."""
    groups: int = 1
    """Of a convolution: inputs and ranks are those of each."""
    finetuned_curves: tuple[ScoreCurve, ...] = ()
    """As `score_curves`, each network fine-tuned after its compression; empty where none was."""

    @property
    def in_groups(self) -> str:
        """The groups in words, where there are several."""
        return f" in {self.groups} groups" if self.groups > 1 else ""

    @property
    def weights_a_rank(self) -> int:
        """Weights that a rank of a factor pair takes."""
        return self.outputs + self.groups * self.inputs

    @property
    def layer_parameters(self) -> int:
        """Weights of the uncompressed layer."""
        return self.outputs * self.inputs

    @property
    def pair_parameters(self) -> int:
        """Weights of the uncompressed layer and the next one together."""
        return self.outputs * (self.inputs + self.next_outputs)


COMPARED = "compared: "
"""Begins the label of a network that was made to be compared with, and not saved."""


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """What a network weighs, and how well it does."""

    label: str
    parameters: int
    bytes: int
    score: float | None
    macs: Mapping[str, float] = field(default_factory=dict)
    """Multiply-adds a sample of each layer that is counted, the mean over the test split; empty where not counted."""


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one run found out: what the report shows.

    Attributes
    ----------
    name
        Name of the run.
    provenance
        Versions, fingerprints, seeds, row counts, the resolved configuration: nested mappings of plain values.
    metric
        The metric's name in print; every score in this record is its value.
    baseline_score
        The uncompressed network's score on the test split.
    layers
        One record for each layer: its curves at every rank and size.
    sizes
        The uncompressed network first, then each network the run saved, then those of the methods it compares.
    decisions
        What the run decided or was warned of: dead features, few samples, ranks above break-even.
    caveats
        What this run does not show, in the words of whoever wrote the run file.
    profile
        Measured latency of the saved network beside the original's, where it was profiled.
    published
        Tables of papers that this run is to be compared with.
    scale
        Direction and range of the metric.
    """

    name: str
    provenance: Mapping[str, Any]
    metric: str
    baseline_score: float
    layers: tuple[LayerResults, ...]
    sizes: tuple[NetworkSize, ...]
    decisions: tuple[str, ...] = ()
    caveats: tuple[str, ...] = field(default=())
    profile: NetworkProfile | None = None
    published: tuple[PublishedTable, ...] = ()
    scale: Scale = field(default_factory=Scale)

    def write(self, path: Path) -> None:
        """Write the record to `path` as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return the record that `write` wrote to `path`."""
        return _results(json.loads(path.read_text(encoding="utf-8")))


def _results(plain: dict[str, Any]) -> Results:
    return Results(
        **{
            **plain,
            "layers": tuple(layer_of_plain(layer) for layer in plain["layers"]),
            "sizes": tuple(NetworkSize(**size) for size in plain["sizes"]),
            "decisions": tuple(plain["decisions"]),
            "caveats": tuple(plain["caveats"]),
            "profile": None if plain["profile"] is None else NetworkProfile.of_plain(plain["profile"]),
            "scale": Scale.of_plain(plain.get("scale")),
            "published": tuple(PublishedTable.of(table) for table in plain.get("published", ())),
        }
    )


def layer_of_plain(plain: dict[str, Any]) -> LayerResults:
    """Return the record that `dataclasses.asdict` turned into plain values."""
    return LayerResults(
        **{
            **plain,
            "activity": tuple(
                DomainActivity(**{**row, "active_rate": tuple(row["active_rate"])}) for row in plain["activity"]
            ),
            "error_curves": tuple(_error_curve(curve) for curve in plain["error_curves"]),
            "score_curves": _score_curves(plain["score_curves"]),
            "finetuned_curves": _score_curves(plain.get("finetuned_curves", ())),
            "retention_curves": tuple(
                RetentionCurve(curve["method"], tuple(curve["retention"])) for curve in plain["retention_curves"]
            ),
            "spectra": Spectra(tuple(plain["spectra"]["weight"]), tuple(plain["spectra"]["outputs"])),
            "headline": tuple(HeadlineRow(**row) for row in plain["headline"]),
            "stability": None if plain["stability"] is None else Stability.of(plain["stability"]),
        }
    )


def _score_curves(plain: Iterable[Any]) -> tuple[ScoreCurve, ...]:
    return tuple(
        ScoreCurve(curve["method"], tuple(ScorePoint(**point) for point in curve["points"])) for curve in plain
    )


def _error_curve(plain: dict[str, Any]) -> ErrorCurve:
    heldout = plain["heldout"]
    return ErrorCurve(plain["method"], tuple(plain["training"]), None if heldout is None else tuple(heldout))
