"""Gradients in a run file: recorded beside inputs either way, solved from, and part of what a capture is made from."""

import numpy as np
import pytest

import dalr_stream as ds
from dalr_stream.engine.sizes.forms import forms_of
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import ConfigError, FingerprintMismatchError, InvalidInputError
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.report.records.results import Results
from dalr_stream.workflow.results.tables import layer_facts
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.run_cost import trials
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import capture
from dalr_stream.workflow.steps.sizes.compression import Compression
from dalr_stream.workflow.steps.sizes.stored_menus import solved_layer

CODE = """


def first_two_scores(returned):
    return returned[:, :2]


def twice_cross_entropy(returned, batch):
    return 2 * torch.nn.functional.cross_entropy(returned, batch[1], reduction="none")


def without_arguments():
    return None
"""
WATCHED = 'network.gradients=["fc[12]"]'
WEIGHTED = 'solve.methods=["svd", "dalr_weighted_affine"]'


@pytest.fixture
def opened(run_file):
    module = run_file.parent / "tiny_run.py"
    module.write_text(module.read_text() + CODE)
    text = run_file.read_text().replace('source = "source"\n', "")
    run_file.write_text(text[: text.index("[compress]")] + '[evaluate]\nbatches = "tiny_run:test"\nranks = [1, 4]\n')

    def make(*overrides, fresh=False, watched=WATCHED):
        return Run(Project(load_config(run_file, (watched, WEIGHTED, *overrides)), run_file.parent), fresh=fresh)

    return make


def test_either_way_gives_the_same_moments_and_weighted_factors_come_from_them(opened):
    kept = opened()
    direct = opened("capture.keep_activations=false", 'run.output="direct"', "gradients.draws=1")
    kept.all()
    direct.all()
    store, twin = StoreView.open(kept.project.store), StoreView.open(direct.project.store)
    for stream, features in (("fc1@gradients", 16), ("fc2@gradients", 10)):
        found = store.all_rows("target", stream)
        assert found.same_bits(twin.all_rows("target", stream))
        assert (found.features, found.count) == (features, 90)
    results = Results.read(kept.project.report_folder / "results.json")
    assert [layer.name for layer in results.layers] == ["fc1", "fc2"]
    assert results.provenance["domains"]["target"]["choice"] == (
        "every row, gradients of classes by 1 random vector a sample by seed 0"
    )
    for layer in results.layers:
        assert {curve.method for curve in layer.error_curves} == {"svd", "dalr_weighted_affine"}


def test_the_table_of_layers_says_what_gradients_are_for(opened):
    project = opened().project
    facts = layer_facts(project, project.stand_in())
    named = {fact["layer"]: fact["watched_for"] for fact in facts if "watched_for" in fact}
    assert named == {"fc1@gradients": "weighted methods", "fc2@gradients": "weighted methods"}


def test_the_estimate_counts_rows_of_every_draw_and_a_backward_pass(opened):
    one, without = opened().project, opened('solve.methods=["svd"]', watched="network.gradients=[]").project
    network = one.stand_in()
    plan, plain = one.estimate(network), without.estimate(network)
    more = opened("gradients.draws=3").project.estimate(network)
    assert plan.rows["target"]["fc1@gradients"] == plan.rows["target"]["fc1"]
    assert more.rows["target"]["fc1@gradients"] == 3 * plan.rows["target"]["fc1"]
    assert plain.disk_peak_bytes < plan.disk_peak_bytes < more.disk_peak_bytes
    assert plain.forward_bytes < plan.forward_bytes


def test_each_setting_is_part_of_what_a_capture_is_made_from(opened):
    settings = [
        (),
        ("gradients.draws=2",),
        ('gradients.metric="values"',),
        ('gradients.estimator="sampled"',),
        ("gradients.clip=1.0",),
        ('gradients.outputs="tiny_run:first_two_scores"',),
        ('gradients.estimator="labels"',),
        ('gradients.estimator="labels"', 'gradients.loss="tiny_run:twice_cross_entropy"'),
        ('network.gradients=["fc1"]',),
    ]
    prints = [capture.made_from(opened(*overrides).project, "target") for overrides in settings]
    assert len(set(prints)) == len(settings)
    unwatched = [opened(*more, 'solve.methods=["svd"]', watched="network.gradients=[]") for more in settings[:2]]
    assert len({capture.made_from(run.project, "target") for run in unwatched}) == 1


def test_other_gradients_are_refused_and_replaced_only_when_asked(opened):
    first = opened()
    first.train()
    first.accumulate()
    with pytest.raises(FingerprintMismatchError, match=r"1 random vector a .* takes .* 2 random vectors .*--fresh"):
        opened("gradients.draws=2").accumulate()
    opened("gradients.draws=2", fresh=True).accumulate()


def test_functions_of_the_run_file_choose_outputs_and_loss(opened):
    run = opened(
        'gradients.estimator="labels"',
        'gradients.loss="tiny_run:twice_cross_entropy"',
        'gradients.outputs="tiny_run:first_two_scores"',
    )
    run.train()
    run.accumulate()
    twice = StoreView.open(run.project.store).all_rows("target", "fc2@gradients")
    plain = opened('gradients.estimator="labels"', 'run.output="plain"')
    plain.train()
    plain.accumulate()
    once = StoreView.open(plain.project.store).all_rows("target", "fc2@gradients")
    assert twice.second_moment == pytest.approx(4 * once.second_moment, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['gradients.estimator="fisher"'], "gradients.estimator: must be .*'vectors'.*, got 'fisher'"),
        (["gradients.clip=0"], "gradients.clip: .* greater than 0, got 0"),
        (["gradients.draws=0"], "gradients.draws: .*, got 0"),
        (["gradients.drwas=2"], "unknown key 'gradients.drwas'; nearest: 'draws'"),
        (['gradients.estimator="labels"', "gradients.draws=2"], "gradients: labels have one gradient a sample"),
        (['gradients.loss="tiny_run:target"'], "gradients: a loss is of estimator 'labels' alone"),
        (
            ["network.gradients=[]"],
            r"solve.methods: 'dalr_weighted_affine' needs the gradients .*network.gradients",
        ),
        (
            ['gradients.outputs="tiny_run:without_arguments"'],
            "'tiny_run:without_arguments' does not fit",
        ),
    ],
)
def test_a_wrong_setting_is_named(opened, overrides, message):
    with pytest.raises(ConfigError, match=message):
        _ = opened(*overrides).project.code.rows


def test_a_network_without_such_an_output_is_named_before_anything_is_recorded(opened):
    run = opened('gradients.outputs="logits"')
    run.train()
    with pytest.raises(InvalidInputError, match="the network's outputs have no 'logits', they are a tensor"):
        run.accumulate()
    assert not (run.project.store / "manifest.json").exists()


def test_a_budget_is_tried_with_the_weighted_methods_that_are_solved_and_by_nats(opened):
    run = opened(
        'solve.methods=["dalr_anchored_affine", "dalr_weighted_affine"]', 'compress.params="60%"', "compress.samples=40"
    )
    run.capture()
    run.accumulate()
    run.solve()
    run.compress()
    choice = Compression.read(run.project.compression).choice
    assert {trial.plan for trial in choice.trials} == {"factor pairs", "factor pairs, weighted by gradients"}
    assert {"nats by gradients", "what the outputs lose"} <= {trial.rule for trial in choice.trials}


@pytest.mark.parametrize("method", ["dalr_weighted_affine", "spectral_weighted"])
def test_a_share_of_energy_is_one_of_what_the_loss_feels_of_all_layers(opened, method):
    found = {}
    for share in ("70%", "99.9%"):
        run = opened(f'solve.methods=["{method}", "svd"]', f'compress.energy="{share}"', f'compress.method="{method}"')
        run.all()
        found[share] = Compression.read(run.project.compression)
        assert found[share].rule == f"energy {share} of what the loss feels"
    store = StoreView.open(run.project.store)
    solved = {
        name: solved_layer(run.project, store, name, {one.method.family: one})
        for name in run.project.layers
        for one in store.solutions(name, [Method(method)]).values()
    }
    forms = {form.name: form.solved[0] for form in forms_of(solved, run.project.structure)}
    assert found["70%"].layers != found["99.9%"].layers
    whole = sum(form.at_stake for form in forms.values())
    for share, decided in found.items():
        lost = sum(
            forms[name].nats[np.searchsorted(forms[name].sizes, one.size)] for name, one in decided.layers.items()
        )
        assert lost <= (1 - float(share[:-1]) / 100) * whole * (1 + 1e-9)


def test_weighted_factors_of_every_layer_have_its_gradients(opened):
    run = opened(watched='network.gradients=["fc1"]')
    run.all()
    assert [layer.name for layer in run.project.watched if layer.side is Side.GRADIENTS] == ["fc1", "fc2"]
    store = StoreView.open(run.project.store)
    assert all(store.solutions(layer, [Method.DALR_WEIGHTED_AFFINE]) for layer in ("fc1", "fc2"))


def test_a_selection_in_the_metric_of_the_loss_records_its_readers_gradients_too(opened):
    weighted = 'solve.methods=["svd", "spectral_weighted"]'
    run = opened(weighted, watched='network.gradients=["fc1"]')
    run.all()
    assert [layer.name for layer in run.project.watched if layer.side is Side.GRADIENTS] == ["fc1", "fc2", "fc3"]
    assert StoreView.open(run.project.store).solutions("fc1", [Method.SPECTRAL_WEIGHTED])
    plain = opened('solve.methods=["svd", "spectral"]', watched='network.gradients=["fc1"]')
    assert [layer.name for layer in plain.project.watched if layer.side is Side.GRADIENTS] == ["fc1"]


VALIDATION = '\n[validation]\nbatches = "tiny_run:validation"\nranks = [1, 2, 4, 6]\n'
BOTH = 'solve.methods=["dalr_anchored_affine", "dalr_weighted_affine", "spectral", "spectral_weighted"]'


def test_a_drop_of_the_score_is_searched_by_nats_in_both_families(opened, run_file):
    run_file.write_text(run_file.read_text() + VALIDATION)
    run = opened(BOTH, 'compress.max_drop="5%"')
    assert trials(run.project, run.project.stand_in()).startswith("compress: about 38 networks, at most 255, scored on")
    run.all()
    found = Compression.read(run.project.compression)
    search, (small, batches) = (
        found.by_nats,
        (
            ds.load(run.project.compressed, run.project.code.build),
            run.project.code.loader("validation", run.project.config.validation),
        ),
    )
    assert found.rule == "max_drop 5%, by what the loss feels"
    assert found.search is None
    right = sum(int((small(x).argmax(1) == y).sum()) for x, y in batches) / 60
    kept = search.networks[search.kept]
    assert right == pytest.approx(kept.score)
    assert search.baseline - right <= 0.05 + 1e-9
    assert {one.good for one in search.networks} == {
        one.score >= search.baseline - 0.05 - 1e-9 for one in search.networks
    }
    weights = sum(p.numel() for name, p in small.named_parameters() if p.dim() == 2 and name[:3] in {"fc1", "fc2"})
    assert kept.left == pytest.approx(weights / (16 * 12 + 10 * 16))
    plans = {one.plan for one in search.networks}
    assert any("weighted" in plan for plan in plans)
    assert any(plan.startswith("selections") for plan in plans)
    page = opened(BOTH, 'compress.max_drop="5%"').report()
    assert "scored on validation" in page.read_text()
    assert run.project.config.plain()["compress"]["method"] == "auto"


def test_a_method_that_is_named_is_the_only_one_of_a_search_by_nats(opened, run_file):
    run_file.write_text(run_file.read_text() + VALIDATION)
    run = opened(BOTH, 'compress.max_drop="5%"', 'compress.method="svd"', 'solve.methods=["svd", "spectral_weighted"]')
    run.all()
    found = Compression.read(run.project.compression)
    assert {one.plan for one in found.by_nats.networks} == {"factor pairs"}
    assert {size.method for size in found.layers.values()} <= {Method.SVD}


def test_without_gradients_of_every_layer_a_drop_is_searched_size_by_size(opened, run_file):
    run_file.write_text(run_file.read_text() + VALIDATION)
    run = opened('solve.methods=["svd"]', 'compress.max_drop="5%"', watched='network.gradients=["fc1"]')
    run.all()
    found = Compression.read(run.project.compression)
    assert (found.rule, found.by_nats) == ("max_drop 5%", None)
    assert found.search is not None
