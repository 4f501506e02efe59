"""Quality of a whole network against its size, at several budgets: one table, one picture, the record as JSON.

sizes.json   the record
sizes.csv    the table, exact values
sizes.png    the picture: the score where networks were scored, the distance of the outputs otherwise
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from dalr_stream.report.cells import BLANK, Cell, Column, Row, RowKind, Table, bytes_text, count_text, percent_text
from dalr_stream.report.pictures import axes as frame
from dalr_stream.report.records.scale import ACCURACY, Scale, key_of
from dalr_stream.report.style import BASELINE, SERIES, drawing
from dalr_stream.storage.durable import make_folder, new_file, write_file

STEM = "sizes"
PICTURE = f"{STEM}.png"
DPI = 150


@dataclass(frozen=True, slots=True)
class SizedNetwork:
    """One network: at which budget, what it weighs, how close it is to the original, how well it does."""

    label: str
    """The budget: `params 30%`; or how else the sizes were decided."""
    parameters: int
    bytes: int
    distance: float
    """Of its outputs from the original's."""
    score: float | None
    """None where networks are not scored."""
    sizes: str
    """Methods and sizes, in words."""
    folder: str
    """Where it is saved."""


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """A network compressed to several budgets: what `Run.size_curve` gives, and `sizes.json` holds.

    Attributes
    ----------
    name
        Name of the run.
    original
        The uncompressed network, with the same fields as those of `networks`.
    networks
        The compressed ones, smallest budget first: `label`, `parameters`, `bytes`, `distance` of the outputs from the
        original's, `score` (None where networks are not scored), `sizes` in words, and the `folder` it is saved in.
    unit
        Of the distances, in words.
    samples
        How many samples the distances are of.
    measured_on
        Which samples, in words.
    metric
        The metric's name in print; None where networks are not scored.
    scale
        Its direction and range.
    """

    name: str
    original: SizedNetwork
    networks: tuple[SizedNetwork, ...]
    unit: str
    samples: int
    measured_on: str = "samples"
    metric: str | None = None
    scale: Scale = ACCURACY

    def table(self) -> Table:
        """Return a row for each network."""
        scored = () if self.metric is None else _score_columns(self.metric, self.scale)
        return Table(
            name=STEM,
            caption=f"{self.name}: the whole network against its size",
            corner=Column("network", "network"),
            columns=(
                Column("parameters", "parameters"),
                Column("%", "parameter_share"),
                Column("file", "bytes", spare=True),
                Column("distance", "distance"),
                *scored,
            ),
            rows=tuple(self._row(network) for network in (self.original, *self.networks)),
            footnote=f"Distance: {self.unit}, on {self.samples:,} {self.measured_on}.",
        )

    def _row(self, network: SizedNetwork) -> Row:
        share = network.parameters / self.original.parameters
        cells = [
            Cell(count_text(network.parameters), network.parameters),
            Cell(percent_text(share), share),
            Cell(bytes_text(network.bytes), network.bytes),
            Cell(f"{network.distance:.4g}", network.distance),
        ]
        if self.metric is not None:
            cells += _score_cells(network, self.original, self.scale)
        kind = RowKind.REFERENCE if network is self.original else RowKind.BODY
        return Row(network.label, network.label, tuple(cells), kind)

    def picture(self) -> Figure:
        """Draw score, or distance, against the parameters left; call it inside `style.drawing()`."""
        figure, (axes,) = frame.canvas(3.4)
        shares = [100 * one.parameters / self.original.parameters for one in self.networks]
        if self.metric is None:
            whole, values, label = 0.0, [one.distance for one in self.networks], "distance of the outputs"
        else:
            factor, label = self.scale.factor, self.metric
            whole, *values = (factor * (one.score or 0.0) for one in (self.original, *self.networks))
        ink = SERIES[1].light
        (line,) = axes.plot(shares, values, color=ink, marker="o", markersize=5, linewidth=1.8, label="compressed")
        base = axes.axhline(whole, color=BASELINE.light, linewidth=1.2, label="uncompressed")
        axes.set_xlim(0, 104)
        frame.per_cent(axes.xaxis)
        if self.metric is not None and self.scale.is_share:
            frame.per_cent(axes.yaxis)
        axes.set_xlabel("parameters left in the whole network")
        axes.set_ylabel(label)
        frame.legend(figure, [line, base])
        return figure

    def write(self, folder: Path) -> Path:
        """Write the record, the table and the picture into `folder`; return the picture's path."""
        make_folder(folder)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.table().records())
        write_file(folder / f"{STEM}.csv", text.getvalue().encode())
        write_file(folder / f"{STEM}.json", (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode())
        path = folder / PICTURE
        with drawing(), new_file(path) as fresh:
            self.picture().savefig(fresh, format="png", dpi=DPI, metadata={"Software": None})
        return path


def _score_columns(metric: str, scale: Scale) -> tuple[Column, Column]:
    return Column(scale.head(metric), key_of(metric)), Column("change", f"{key_of(metric)}_change")


def _score_cells(network: SizedNetwork, original: SizedNetwork, scale: Scale) -> list[Cell]:
    if network.score is None or original.score is None:
        return [Cell(BLANK), Cell(BLANK)]
    if network is original:
        return [Cell(scale.number(network.score), network.score), Cell(BLANK)]
    change = scale.change(original.score, network.score)
    return [Cell(scale.number(network.score), network.score), Cell(change, network.score - original.score)]
