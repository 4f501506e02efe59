"""The table of a report that says what whole networks weigh and score, before and after."""

from __future__ import annotations

from dalr_stream.report.cells import (
    BLANK,
    Cell,
    Column,
    Row,
    RowKind,
    Table,
    bytes_text,
    count_text,
    percent_text,
)
from dalr_stream.report.records.results import Results
from dalr_stream.report.records.scale import key_of


def size_table(results: Results) -> Table:
    """Return parameters, bytes and score of the uncompressed network, of those the run saved, and of those compared."""
    before = results.sizes[0] if results.sizes else None
    scale, baseline = results.scale, results.baseline_score
    rows = []
    for size in results.sizes:
        share, weight = size.parameters / results.sizes[0].parameters, size.bytes / results.sizes[0].bytes
        cells = (
            Cell(count_text(size.parameters), size.parameters),
            Cell(percent_text(share), share),
            Cell(bytes_text(size.bytes), size.bytes),
            Cell(percent_text(weight), weight),
            *(
                (Cell(BLANK), Cell(BLANK))
                if size.score is None
                else (
                    Cell(scale.number(size.score), size.score),
                    Cell(scale.change(baseline, size.score), size.score - baseline),
                )
            ),
        )
        kind = RowKind.REFERENCE if size is before else RowKind.BODY
        rows.append(Row(size.label, size.label, cells, kind))
    return Table(
        name="sizes",
        caption="The whole network, before and after",
        corner=Column("network", "network"),
        columns=(
            Column("parameters", "parameters"),
            Column("%", "parameter_share", spare=True),
            Column("file", "bytes"),
            Column("%", "byte_share", spare=True),
            Column(scale.head(results.metric), key_of(results.metric)),
            Column("change", f"{key_of(results.metric)}_change"),
        ),
        rows=tuple(rows),
    )
