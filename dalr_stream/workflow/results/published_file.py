"""Published numbers as data: a TOML file of tables, as they were printed, and what this run found for each of them.

    [[accuracy]]                                      # accuracy against size, one layer compressed
    title = "DALR (ICCV 2017), Table 3: birds, fc6"
    layer = "classifier.0"
    baseline = 55.73                                  # per cent, as everything in these tables
    sizes = [32, 64, 128]
    rows = [{ method = "svd", values = [16.83, 36.47, 51.74] }]

    [[networks]]                                      # whole networks
    title = "DALR (ICCV 2017), Table 10: both layers"
    columns = ["layers_share", "accuracy"]
    rows = [{ label = "birds", values = [6.81, 55.97] }]

A table of the first kind whose numbers are errors says `errors = true`; ours are then 1 - accuracy. A row of it finds
ours by layer, method and size. Where selections were matched to factor pairs by their
number of parameters, `match = "parameters"` says so, and ours is the selection that weighs as much as the pair of that
size, this layer and the next counted together. A row that is `finetuned` finds ours where the run fine-tuned what it
evaluated (`evaluate.finetune`). Tables of the second kind end in the networks that the run saved; `layers_share` is
what is left of the compressed layers' weights, `network_share` of all weights, both in per cent.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dalr_stream.errors import ConfigError
from dalr_stream.numerics.methods import Method
from dalr_stream.report.records.published import PublishedColumn, PublishedRow, PublishedTable
from dalr_stream.report.records.results import LayerResults, NetworkSize, Results
from dalr_stream.report.tables.scores import FINETUNED, matched_point

_COLUMNS = {
    "parameters": PublishedColumn("parameters", share=False),
    "network_share": PublishedColumn("% of the network"),
    "layers_share": PublishedColumn("% of the layers"),
    "original": PublishedColumn("uncompressed, %"),
    "accuracy": PublishedColumn("accuracy, %"),
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AccuracyRow(_Part):
    """Accuracies of one method, in per cent; one a size."""

    method: Method
    values: tuple[float, ...]
    match: Literal["size", "parameters"] = "size"
    finetuned: bool = False
    """After compression."""

    @property
    def label(self) -> str:
        """The method as tables name it."""
        return f"{self.method.label}, {FINETUNED}" if self.finetuned else self.method.label


class AccuracyTable(_Part):
    """Accuracy against size, one layer compressed."""

    title: str
    layer: str
    baseline: float
    sizes: tuple[int, ...] = Field(min_length=1)
    rows: tuple[AccuracyRow, ...]
    errors: bool = False
    """Whether the numbers are errors, 100 % less the accuracy."""

    @model_validator(mode="after")
    def _whole_rows(self) -> AccuracyTable:
        _require_whole(self.title, len(self.sizes), [(row.label, row.values) for row in self.rows])
        return self

    def beside(self, results: Results) -> PublishedTable:
        """Return the table with what the run found."""
        _require_share(self.title, results)
        columns = tuple(PublishedColumn(str(size)) for size in self.sizes)
        layer = next((found for found in results.layers if found.name == self.layer), None)
        rows = [PublishedRow(row.label, _shares(row.values), self._ours(row, layer)) for row in self.rows]
        whole = (self.baseline / 100,) * len(columns), (self._as_printed(results.baseline_score),) * len(columns)
        return PublishedTable(self.title, "dim kept", columns, (*rows, PublishedRow("uncompressed", *whole)))

    def _ours(self, row: AccuracyRow, layer: LayerResults | None) -> tuple[float | None, ...] | None:
        if layer is None:
            return None
        curves = layer.finetuned_curves if row.finetuned else layer.score_curves
        curve = next((curve for curve in curves if curve.method == row.method.value), None)
        if curve is None:
            return None
        if row.match == "parameters":
            points = [matched_point(curve, layer, size) for size in self.sizes]
        else:
            points = [next((point for point in curve.points if point.size == size), None) for size in self.sizes]
        return tuple(None if point is None else self._as_printed(point.score) for point in points)

    def _as_printed(self, score: float) -> float:
        return 1.0 - score if self.errors else score


class NetworkRow(_Part):
    """One whole network."""

    label: str
    values: tuple[float, ...]


class NetworkTable(_Part):
    """Whole networks, by what is left of them."""

    title: str
    columns: tuple[Literal["parameters", "network_share", "layers_share", "original", "accuracy"], ...]
    rows: tuple[NetworkRow, ...]

    @model_validator(mode="after")
    def _whole_rows(self) -> NetworkTable:
        _require_whole(self.title, len(self.columns), [(row.label, row.values) for row in self.rows])
        return self

    def beside(self, results: Results) -> PublishedTable:
        """Return the table, and the networks that the run saved as its last rows."""
        if {"original", "accuracy"} & set(self.columns):
            _require_share(self.title, results)
        columns = tuple(_COLUMNS[name] for name in self.columns)
        units = [100 if column.share else 1 for column in columns]
        printed = [
            PublishedRow(row.label, tuple(v / unit for v, unit in zip(row.values, units, strict=True)), None)
            for row in self.rows
        ]
        saved = [
            PublishedRow(size.label, None, tuple(_measured(name, size, results) for name in self.columns))
            for size in results.sizes[1:]
        ]
        return PublishedTable(self.title, "network", columns, (*printed, *saved))


class Published(_Part):
    """A whole file."""

    accuracy: tuple[AccuracyTable, ...] = ()
    networks: tuple[NetworkTable, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Published:
        """Read a file; raises ConfigError that names it."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigError(f"report.published: there is no file '{path}'") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"report.published: '{path}' is not valid TOML: {error}") from None
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise ConfigError(f"report.published: '{path}', {place}: {problem['msg']}") from None

    def beside(self, results: Results) -> tuple[PublishedTable, ...]:
        """Return every table with what the run found."""
        return (
            *(table.beside(results) for table in self.accuracy),
            *(table.beside(results) for table in self.networks),
        )


def _require_whole(title: str, width: int, rows: Sequence[tuple[str, Sequence[float]]]) -> None:
    for label, values in rows:
        if len(values) != width:
            raise ValueError(f"'{title}', row '{label}': needs {width} values, got {len(values)}")


def _require_share(title: str, results: Results) -> None:
    if not results.scale.is_share:
        raise ConfigError(
            f"report.published: '{title}' is of shares in per cent, and the {results.metric} of this run is "
            f"{results.scale.words}: leave the table out, or evaluate by a share"
        )


def _shares(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(value / 100 for value in values)


def _measured(column: str, size: NetworkSize, results: Results) -> float | None:
    before = results.sizes[0]
    if column == "layers_share":
        weights = sum(layer.layer_parameters for layer in results.layers)
        return 1 - (before.parameters - size.parameters) / weights
    return {
        "parameters": float(size.parameters),
        "network_share": size.parameters / before.parameters,
        "original": results.baseline_score,
        "accuracy": size.score,
    }[column]
