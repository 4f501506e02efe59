"""Every benchmark as a table: `python tests/benchmarks`, `--quick` for tiny sizes, or the names of some sections.

A ratio is to the first line of its table and from the same run; seconds are medians over turns that the candidates
take one after the other. Both depend on the machine, and on what else it does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import accumulating
import bucketing
import capturing
import devices
import gradients
import growing
import networks
import planning
import ranking
import remembering
import scaling
import selecting
import sequential
import sharing
import sizing
import solving
from rich.console import Console
from rich.table import Table
from timing import Row

from dalr_stream.cli.console import console_for
from dalr_stream.numerics import Precision

SECTIONS: dict[str, tuple[str, Callable[[bool], Table]]] = {}


def section(name: str, title: str) -> Callable[[Callable[[bool], Table]], Callable[[bool], Table]]:
    def keep(make: Callable[[bool], Table]) -> Callable[[bool], Table]:
        SECTIONS[name] = title, make
        return make

    return keep


@section("accumulate", "accumulate 32,768 rows of 4,096 features, float64")
def _accumulate(quick: bool) -> Table:
    return ratios(accumulating.bars(*((600, 64, 1) if quick else (32_768, 4096, 5))))


@section("wide", "accumulate 4,096 rows of 25,088 features: the reference is the blocked product alone, in memory")
def _wide(quick: bool) -> Table:
    return ratios(accumulating.wide(*((600, 64, 1) if quick else (4096, 25_088, 2))))


@section("alternatives", "the same sums by other means, 16,384 rows of 2,048 features")
def _alternatives(quick: bool) -> Table:
    return ratios(accumulating.alternatives(*((600, 64, 1) if quick else (16_384, 2048, 3))))


@section("direct", "16,384 samples through a network, moments of 4,096 features")
def _direct(quick: bool) -> Table:
    return ratios(capturing.direct(*((600, 64, 1) if quick else (16_384, 4096, 3))))


@section(
    "gradients", "moments of inputs and gradients beside a plain script, CPU seconds; what each promise takes of them"
)
def _gradients(quick: bool) -> Table:
    sizes = [gradients.Size(16, 64, 32)] if quick else gradients.SIZES
    return ratios(gradients.beside_scripts(sizes, 1 if quick else 3))


@section("plans", "what large runs would take, in hours and GiB: planned, not run")
def _plans(quick: bool) -> Table:  # noqa: ARG001  # nothing is run
    table = _table(
        "network", "how", "ranks", "passes", "network", "sums", "joins", "sent", "moments", "a rank's memory"
    )
    for one in planning.plans():
        how = "block by block" if one.by_block else "whole network"
        hours = (f"{hours:.2f}" for hours in (one.network_hours, one.sums_hours, one.joins_hours))
        sizes = (f"{size / 2**30:,.0f}" for size in (one.join_bytes, one.moments_bytes, one.rank_bytes))
        table.add_row(one.job.name, how, f"{one.ranks}", f"{one.passes}", *hours, *sizes)
    return table


@section("device", "folding on a CUDA device; ratios to its own product in the same precision, then from a store")
def _device(quick: bool) -> Table:
    card = devices.card()
    if card is None:
        table = _table("what")
        table.add_row("torch sees no CUDA device: nothing to measure")
        return table
    rows = []
    for precision in Precision:
        for n, d in [(600, 64)] if quick else [(65_536, 4096), (16_384, 25_088)]:
            raced = devices.in_memory(n, d, precision, 1 if quick else 5)
            rows += [replace(row, what=f"{n:,} x {d:,}, {precision.value}: {row.what}") for row in raced]
    for n, d in [(600, 64)] if quick else [(32_768, 4096)]:
        raced = devices.from_store(n, d, 1 if quick else 3)
        rows += [replace(row, what=f"{n:,} x {d:,} from zarr, double: {row.what}") for row in raced]
    table = ratios(rows)
    table.caption = f"{card.name}; {card.versions}"
    return table


@section("processes", "one pass on one process of one thread, and on ranks; CPU is that of the busiest rank")
def _ranks(quick: bool) -> Table:
    table = _table("ranks", "seconds", "times as fast", "CPU seconds", "by CPU", "bar", "received", "d² log₂ ranks")
    size = ranking.Size(32, 2, 9, 8) if quick else ranking.Size(768, 8, 160, 64)
    passes = ranking.compared(size, (1, 2), 1 if quick else 3)
    for one in passes:
        speed, by_cpu = passes[0].wall / one.wall, passes[0].cpu / one.cpu
        allowed = ranking.bytes_allowed(size, one.ranks, one.joins // max(one.ranks - 1, 1))
        table.add_row(
            f"{one.ranks}",
            f"{one.wall:.2f}",
            f"{speed:.2f}",
            f"{one.cpu:.2f}",
            f"{by_cpu:.2f}",
            "" if one.ranks == 1 else ">= 1.80",
            f"{one.received_bytes / 2**20:.1f} MiB",
            f"{allowed / 2**20:.1f} MiB",
        )
    return table


@section("strips", "a wide layer folded by one process, and by ranks that share its sums; CPU is that of the busiest")
def _strips(quick: bool) -> Table:
    return sharing.filled(_table(*sharing.COLUMNS), quick=quick)


@section("bucket", "32,768 rows of 4,096 features, captured and folded: in a folder, and in a bucket of this machine")
def _bucket(quick: bool) -> Table:
    if bucketing.missing():
        table = _table("what")
        table.add_row(f"without {bucketing.missing()} there is nothing to measure")
        return table
    steps, asked = bucketing.compared(*((600, 64, 1) if quick else (32_768, 4096, 3)))
    table = ratios([replace(row, what=f"{step}, {row.what}") for step, rows in steps.items() for row in rows])
    table.caption = asked
    return table


@section("memory", "peak memory of folding from a store")
def _memory(quick: bool) -> Table:
    table = _table("features", "tiles", "held out", "measured", "planned", "planned / measured")
    for held in remembering.peaks((64,) if quick else (4096, 25_088), (3,) if quick else (3, 48)):
        table.add_row(
            f"{held.features:,}",
            f"{held.tiles}",
            f"{held.held_out:.0%}",
            f"{held.measured:,.0f} MiB",
            f"{held.planned:,.0f} MiB",
            f"{held.planned / held.measured:.2f}",
        )
    return table


@section(
    "memory-solving", "peak memory of solving 4,096 x 25,088 from 5,994 rows within 6 GiB, by a method of each route"
)
def _memory_solving(quick: bool) -> Table:
    table = _table("method", "rows kept", "route", "solving", "curves", "planned", "planned / measured")
    shape = (24, 64, 40, 2**30) if quick else (4096, 25_088, 5994, 6 * 2**30)
    for line in remembering.solving(*shape):
        most = max(line.solving, line.curves)
        measured = [f"{value:,.0f} MiB" if value else "" for value in (line.solving, line.curves)]
        last = "refused:" + line.refused if line.refused else f"{line.planned / most:.2f}" if most else ""
        table.add_row(
            line.method, "yes" if line.kept else "no", line.route, *measured, f"{line.planned:,.0f} MiB", last
        )
    return table


@section(
    "memory-run", "peak memory of each step of a run, sizes within a budget: 12 layers of 768 x 768, random weights"
)
def _memory_run(quick: bool) -> Table:
    return _planned(remembering.steps(32, 2, ["compress"]) if quick else remembering.steps(768, 12))


def _planned(lines: Sequence[remembering.Planned]) -> Table:
    table = _table("what", "measured", "planned", "planned / measured")
    for line in lines:
        figures = (f"{line.measured:,.0f} MiB", f"{line.planned:,.0f} MiB")
        table.add_row(line.what, *figures, f"{line.planned / max(line.measured, 1):.2f}")
    return table


@section("memory-sequential", "peak memory of compressing layer after layer")
def _memory_sequential(quick: bool) -> Table:
    shape = (64, 2, None) if quick else (384, 6, Path(__file__).parents[2] / "pipelines" / "digits" / "run.toml")
    return _planned(remembering.in_turn(*shape))


@section("scale", "what a store costs beside its arithmetic, in CPU seconds, as batches, layers and shards grow")
def _scale(quick: bool) -> Table:
    table = _table("what", "of", "seconds", "ms each")
    sizes = ((20, 40), (2, 4), (2, 3)) if quick else ((10_000, 100_000), (100, 1000), (50, 500))
    for line in scaling.growth(*sizes):
        table.add_row(line.what, line.size, f"{line.seconds:.2f}", f"{line.each:.2f}")
    return table


@section("scale-memory", "peak memory of a fresh process, and how it grows with batches of one row of 16 features")
def _scale_memory(quick: bool) -> Table:
    table = _table("what", "MiB at the peak", "bytes a batch")
    for line in growing.slopes(*((100, 200) if quick else (20_000, 100_000))):
        table.add_row(line.what, f"{line.peak_mib:.1f}", f"{line.bytes_a_batch:,.0f}")
    return table


@section("select", "greedy orders of 4,096 nodes, bars in seconds; the formula as written at d = 128")
def _select(quick: bool) -> Table:
    return ratios(
        [
            *selecting.orders(*((64, 8, 1) if quick else (4096, 128, 3))),
            *selecting.as_written(*((12, 1) if quick else (128, 1))),
        ]
    )


@section("sizes", "sizes of 200 layers of 1,024 x 1,024 under one budget, bars in CPU seconds")
def _sizes(quick: bool) -> Table:
    return ratios(sizing.budgets(*((4, 16, 1) if quick else (200, 1024, 3))))


@section("solve", "all ranks of a 4,096 x 4,096 layer from moments of 8,192 rows")
def _solve(quick: bool) -> Table:
    return ratios(solving.square(*((60, 24, 32, 1) if quick else (8192, 4096, 4096, 1))))


@section("solve-wide", "ranks to 1,024 of a 4,096 x 25,088 layer, 5,994 rows, bars in seconds")
def _solve_wide(quick: bool) -> Table:
    return ratios(solving.wide(*((40, 24, 64, 6) if quick else (5994, 4096, 25_088, 1024))))


@section("ranks", "64 ranks and 8 ridges of a 1,024 x 1,024 layer")
def _ranks(quick: bool) -> Table:
    return ratios(solving.many_ranks(*((60, 24, 32, 1) if quick else (4096, 1024, 1024, 3))))


@section("sequential", "layer after layer, the 12 feed-forward layers of a transformer of MiniLM's shape")
def _sequential(quick: bool) -> Table:
    size = sequential.Size(24, 2, 2, 12, 8, 4, 4) if quick else sequential.Size()
    raced, difference = sequential.in_turn(size, 1 if quick else 2)
    table = ratios(raced)
    table.caption = f"{size.words}; the last states of both differ by {difference:.0e} of the largest"
    return table


@section("networks", "whole networks: seconds to trace, to find and prove every group of channels, and to narrow all")
def _networks(quick: bool) -> Table:
    table = _table("network", "parameters", "layers", "groups", "trace", "prove", "narrow", "largest difference")
    for found in networks.networks(quick):
        seconds = (f"{value:.1f}" for value in (found.trace, found.prove, found.compress))
        counts = (f"{found.parameters:,}", f"{found.layers}", f"{found.groups}")
        table.add_row(found.name, *counts, *seconds, f"{found.difference:.1e}")
    return table


def ratios(rows: Sequence[Row]) -> Table:
    """A race as a table."""
    watched = any(row.peak_mib is not None for row in rows)
    table = _table("what", "seconds", "ratio", "bar", *(["MiB at the peak"] if watched else []))
    for row in rows:
        bar, peak = "" if row.bar is None else f"{row.bar:.2f}", "" if row.peak_mib is None else f"{row.peak_mib:,.0f}"
        table.add_row(row.what, f"{row.seconds:.2f}", f"{row.ratio:.2f}", bar, *([peak] if watched else []))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    console = console or console_for()
    for name in options.sections or SECTIONS:
        title, make = SECTIONS[name]
        console.print(f"\n{name}: {title}", highlight=False)
        console.print(make(options.quick), highlight=False)


if __name__ == "__main__":
    main()
