"""The tables of what compression saves in work and in time: multiply-adds, which are exact, and measured latency."""

from __future__ import annotations

from collections.abc import Iterator

from dalr_stream.numerics.latency import RULE, WHOLE, LayerProfile, NetworkProfile, macs_below
from dalr_stream.report.cells import BLANK, Cell, Column, Row, RowKind, Table, percent_text, ratio_text
from dalr_stream.report.records.results import Results

_TOTAL = "all of these"
_NETWORK = "whole network"


def speed_tables(results: Results) -> Iterator[Table]:
    """Yield the tables that the run has numbers for."""
    if len(results.sizes) > 1 and all(size.macs for size in results.sizes[:2]):
        yield macs_table(results)
    if results.profile is not None:
        yield latency_table(results.profile)


def macs_table(results: Results) -> Table:
    """Return the multiply-adds a sample of each layer, before and after, a factor pair's as their sum."""
    before, after = (size.macs for size in results.sizes[:2])
    rows = [_macs_row(name, macs, macs_below(after, name)) for name, macs in before.items()]
    total = _macs_row(_TOTAL, sum(before.values()), sum(after.values()), RowKind.REFERENCE)
    return Table(
        name="macs",
        caption="Multiply-adds of one sample, before and after",
        corner=Column("layer", "layer"),
        columns=(Column("before", "macs_before"), Column("after", "macs_after"), Column("%", "macs_share")),
        rows=(*rows, total),
        footnote=(
            f"Counted while the test split was scored, {results.sizes[1].label}. Linear layers and convolutions alone: "
            "what else a network does is not counted."
        ),
    )


def latency_table(profile: NetworkProfile) -> Table:
    """Return the seconds of each replaced layer and of the whole network, before and after, at each batch size."""
    names = dict.fromkeys(one.name for one in (*profile.layers, *profile.whole))
    rows = [_latency_row(one) for name in names for one in profile.of(name)]
    return Table(
        name="latency",
        caption="Measured time of one batch, before and after",
        corner=Column("layer", "layer"),
        columns=(
            Column("batch", "batch_size"),
            Column("MACs, %", "macs_share", spare=True),
            Column("before, ms", "seconds_before"),
            Column("after, ms", "seconds_after"),
            Column("ratio", "ratio"),
            Column("from", "ratio_low", spare=True),
            Column("to", "ratio_high", spare=True),
            Column("verdict", "verdict"),
        ),
        rows=tuple(rows),
        footnote=(
            f"Medians of turns taken alternately, on {profile.device}, {profile.threads} processor threads; half of "
            f"the ratios lie between from and to. {RULE} A measurement of one machine on one day."
        ),
    )


def short_count(count: float) -> str:
    """Return a large number in three digits and a unit: 1.23M."""
    for unit in ("", "k", "M", "G"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}T"


def _macs_row(name: str, before: float, after: float, kind: RowKind = RowKind.BODY) -> Row:
    share = after / before if before else None
    return Row(
        name,
        name,
        (
            Cell(short_count(before), before),
            Cell(short_count(after), after),
            Cell(BLANK) if share is None else Cell(percent_text(share), share),
        ),
        kind,
    )


def _latency_row(one: LayerProfile) -> Row:
    name, kind = (_NETWORK, RowKind.REFERENCE) if one.name == WHOLE else (one.name, RowKind.BODY)
    share = one.macs_after / one.macs_before if one.macs_before else None
    cells = (
        Cell(f"{one.batch_size:,}", one.batch_size),
        Cell(BLANK) if share is None else Cell(percent_text(share, 1), share),
        Cell(_milliseconds(one.seconds_before), one.seconds_before),
        Cell(_milliseconds(one.seconds_after), one.seconds_after),
        *(Cell(ratio_text(ratio), ratio) for ratio in (one.ratio, one.ratio_low, one.ratio_high)),
        Cell(one.verdict.value, one.verdict.value),
    )
    return Row(name, name, cells, kind)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"
