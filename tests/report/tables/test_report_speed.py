"""What the tables of work and of time say, cell by cell, from made-up figures."""

import dataclasses
import io

import pytest
from rich.console import Console
from synthetic_results import results

from dalr_stream.numerics.latency import WHOLE, LayerProfile, NetworkProfile
from dalr_stream.report.cells import TIMES
from dalr_stream.report.page import render_page
from dalr_stream.report.records.results import NetworkSize, Results
from dalr_stream.report.tables.speed import latency_table, macs_table, short_count, speed_tables
from dalr_stream.report.terminal import print_profile


def timed(name, size, before, after, spread=0.01):
    ratio = after / before
    return LayerProfile(
        name, size, 1000 * size, 250 * size, before, after, ratio, ratio - spread, ratio + spread, ratio
    )


PROFILE = NetworkProfile(
    layers=(
        timed("fc6[0]", 1, 2e-4, 3e-4),
        timed("fc7", 1, 1e-3, 1e-3),
        timed("fc6[0]", 8, 2e-3, 1e-3),
        timed("fc7", 8, 4e-3, 1.5e-3),
    ),
    whole=(timed(WHOLE, 1, 2e-3, 2.1e-3, spread=0.2), timed(WHOLE, 8, 2.5, 1.5)),
    device="cpu",
    threads=2,
)
COUNTED = results(
    sizes=(
        NetworkSize("uncompressed", 10, 40, 0.9, {"fc6": 1_000_000.0, "fc7": 500.0}),
        NetworkSize("compressed: fc6 SVD, 4", 5, 20, 0.9, {"fc6.0": 200_000.0, "fc6.1": 50_000.0, "fc7": 500.0}),
    ),
    profile=PROFILE,
)


def times(*ratios):
    return [f"{ratio:.2f}{TIMES}" for ratio in ratios]


def text_of(table):
    return [(row.label, *(cell.text for cell in row.cells)) for row in table.rows]


def test_multiply_adds_of_a_pair_stand_beside_those_of_its_layer():
    assert text_of(macs_table(COUNTED)) == [
        ("fc6", "1M", "250k", "25.00"),
        ("fc7", "500", "500", "100.00"),
        ("all of these", "1M", "250k", "25.04"),
    ]


def test_latency_goes_layer_by_layer_and_names_the_slower():
    assert text_of(latency_table(PROFILE)) == [
        ("fc6[0]", "1", "25.0", "0.2", "0.3", *times(1.50, 1.49, 1.51), "slower"),
        ("fc6[0]", "8", "25.0", "2", "1", *times(0.50, 0.49, 0.51), "faster"),
        ("fc7", "1", "25.0", "1", "1", *times(1.00, 0.99, 1.01), "no difference"),
        ("fc7", "8", "25.0", "4", "1.5", *times(0.38, 0.36, 0.39), "faster"),
        ("whole network", "1", "25.0", "2", "2.1", *times(1.05, 0.85, 1.25), "no difference"),
        ("whole network", "8", "25.0", "2,500", "1,500", *times(0.60, 0.59, 0.61), "faster"),
    ]


def test_the_page_shows_what_there_is_and_says_what_is_slower():
    page = render_page(COUNTED)
    assert "Multiply-adds of one sample" in page
    assert "Measured time of one batch" in page
    assert "layer &#39;fc6[0]&#39;: what replaces it is slower than the layer at batch size 1 (1.50 times" in page
    assert "try a larger multiple" in page
    bare = dataclasses.replace(COUNTED, profile=None)
    assert "Measured time" not in render_page(bare)
    assert [table.name for table in speed_tables(dataclasses.replace(bare, sizes=COUNTED.sizes[:1]))] == []
    assert list(speed_tables(results())) == []


def test_the_record_brings_the_profile_back(tmp_path):
    COUNTED.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == COUNTED


def test_the_terminal_has_the_table_and_the_advice():
    out = io.StringIO()
    print_profile(PROFILE, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "fc6[0]" in out.getvalue()
    assert "leave the layer alone" in " ".join(out.getvalue().split())
    out = io.StringIO()
    print_profile(dataclasses.replace(PROFILE, layers=PROFILE.layers[1:]), Console(file=out, width=80))
    assert "Beyond the noise of the turns nothing is slower than what it replaces." in out.getvalue()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (999.6, "1k"), (123_456, "123k"), (2.5e9, "2.5G"), (3.14e13, "31.4T")]
)
def test_large_counts_are_three_digits_and_a_unit(count, text):
    assert short_count(count) == text
