"""Published numbers read from a file, and ours found for them."""

import sys

import pytest

from dalr_stream.errors import ConfigError
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.results.published_file import Published
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

FILE = """
[[accuracy]]
title = "A paper, Table 1: fc1"
layer = "fc1"
baseline = 90.0
sizes = [2, 3, 4]
rows = [
    { method = "svd", values = [10.0, 20.5, 30.0] },
    { method = "svd", finetuned = true, values = [11.0, 21.0, 31.0] },
    { method = "prune_mean", values = [1.0, 2.0, 3.0] },
    { method = "momasp_node", match = "parameters", values = [4.0, 5.0, 6.0] },
]

[[accuracy]]
title = "A paper, Table 2: a layer that is not compressed here"
layer = "fc9"
baseline = 90.0
sizes = [2]
rows = [{ method = "svd", values = [10.0] }]

[[networks]]
title = "A paper, Table 3"
columns = ["parameters", "network_share", "layers_share", "original", "accuracy"]
rows = [{ label = "theirs", values = [1e6, 15.0, 10.0, 90.0, 80.0] }]
"""


@pytest.fixture
def tables(finished_file):
    (finished_file.parent / "paper.toml").write_text(FILE)
    config = load_config(finished_file, ["report.published=paper.toml"])
    page = Run(Project(config, finished_file.parent)).report()
    results = Results.read(page.parent / "results.json")
    return results, dict(zip(("fc1", "fc9", "networks"), results.published, strict=True))


def found(results, layer, method):
    curves = next(one for one in results.layers if one.name == layer).score_curves
    return {point.size: point for curve in curves if curve.method == method for point in curve.points}


def test_ours_is_of_the_same_layer_method_and_size(tables):
    results, published = tables
    svd, tuned, pruned, momasp, whole = published["fc1"].rows
    ours = found(results, "fc1", "svd")
    assert svd.published == pytest.approx((0.1, 0.205, 0.3))
    assert svd.ours == (ours[2].score, None, ours[4].score)  # the run tried 1, 2, 4 and 8
    assert (tuned.label, tuned.ours) == ("SVD, fine-tuned", None)
    kept = found(results, "fc1", "prune_mean")
    assert pruned.ours[0] == kept[2].score
    layer = results.layers[0]
    budgets = [k * (layer.outputs + layer.inputs) + layer.outputs * layer.next_outputs for k in (2, 3, 4)]
    nodes = found(results, "fc1", "momasp_node").values()
    heaviest = [max((p for p in nodes if p.pair_parameters <= b), key=lambda p: p.pair_parameters) for b in budgets]
    assert momasp.ours == tuple(point.score for point in heaviest)
    assert whole.ours == (results.baseline_score,) * 3


def test_a_layer_that_is_not_compressed_here_stays_as_printed(tables):
    _, published = tables
    assert published["fc9"].rows[0].ours is None


def test_saved_networks_stand_below_the_published_ones(tables):
    results, published = tables
    theirs, ours = published["networks"].rows
    before, after = results.sizes
    assert theirs.ours is None
    assert theirs.published == pytest.approx((1e6, 0.15, 0.1, 0.9, 0.8))
    weights = sum(layer.outputs * layer.inputs for layer in results.layers)
    assert ours.ours == (
        after.parameters,
        after.parameters / before.parameters,
        pytest.approx(1 - (before.parameters - after.parameters) / weights),
        results.baseline_score,
        after.score,
    )


@pytest.mark.usefixtures("tables")
def test_the_report_is_stale_when_the_file_changes_and_nothing_else_is(finished_file):
    path = finished_file.parent / "paper.toml"
    path.write_text(FILE.replace("10.0", "12.5"))
    sys.modules.pop("tiny_run", None)
    project = Project(load_config(finished_file, ["report.published=paper.toml"]), finished_file.parent)
    results = Results.read(Run(project).all().parent / "results.json")
    assert results.published[0].rows[0].published[0] == 0.125
    last = (project.output / "log.jsonl").read_text().splitlines()[-1]
    assert last.endswith('"evaluate: up to date, skipped"}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE.replace("[10.0, 20.5, 30.0]", "[10.0, 20.5]"), "row 'SVD': needs 3 values, got 2"),
        (FILE.replace('"svd", fine', '"svdd", fine'), "accuracy.0.rows.1.method"),
        (FILE.replace('"layers_share", ', '"size", '), "networks.0.columns"),
        ("[[accuracy]", "is not valid TOML"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_the_place(tmp_path, text, message):
    (tmp_path / "paper.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"report\.published: ") as caught:
        Published.read(tmp_path / "paper.toml")
    assert message in str(caught.value)
    with pytest.raises(ConfigError, match="there is no file"):
        Published.read(tmp_path / "none.toml")


def test_where_errors_were_printed_ours_are_errors_too(finished_file):
    text = FILE.replace('layer = "fc1"\n', 'layer = "fc1"\nerrors = true\n')
    (finished_file.parent / "paper.toml").write_text(text)
    config = load_config(finished_file, ["report.published=paper.toml"])
    page = Run(Project(config, finished_file.parent)).report()
    results = Results.read(page.parent / "results.json")
    svd, *_, whole = results.published[0].rows
    ours = found(results, "fc1", "svd")
    assert svd.ours == pytest.approx((1 - ours[2].score, None, 1 - ours[4].score))
    assert whole.ours[0] == pytest.approx(1 - results.baseline_score)
