"""A network with grouped and depthwise convolutions through its run file: groups are solved, layers decided."""

import copy
import shutil
import sys

import numpy as np
import pytest
import torch
from commands import cli
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import ConfigError, RankError, UnsupportedLayerError
from dalr_stream.network.measure.macs import watched_calls
from dalr_stream.network.measure.profile import Stopwatch
from dalr_stream.network.surgery.compress import compress
from dalr_stream.report.record import Results
from dalr_stream.workflow.dry_run import dry_run
from dalr_stream.workflow.results.inspect import layer_costs
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.evaluate import Evaluation
from dalr_stream.workflow.steps.named_sizes import at_size
from dalr_stream.workflow.steps.sizes.budget import rows_a_sample
from dalr_stream.workflow.steps.sizes.compression import Compression
from dalr_stream.workflow.steps.sizes.sizing import sized_layer

pytestmark = pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")  # full rank, on purpose
METHOD = ds.Method.DALR_ANCHORED_AFFINE
GROUPED = {"split": 2, "line": 4}
CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.split = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=2)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.line = nn.Conv1d(12, 8, 3, padding=2, dilation=2, groups=4, bias=False)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 20), nn.Linear(20, 3)

    def forward(self, x):
        h = torch.relu(self.split(torch.relu(self.stem(x))))
        h = torch.relu(self.line(torch.relu(self.depth(h)).flatten(2)))
        return self.fc2(torch.relu(self.fc1(h.flatten(1))))


def build():
    return Net()


def train(model, *, seed, report):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model.children():
            module.reset_parameters()
    report("as it was drawn")


def pictures(*, seed, samples=60):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(20, 1, 8, 8, generator=generator), torch.arange(20) % 3) for _ in range(samples // 20)]


def others(*, seed):
    return pictures(seed=seed + 1, samples=20)
"""
RUN_FILE = """
[run]
name = "grouped"
output = "out"

[network]
build = "grouped_run:build"
train = "grouped_run:train"
layers = ["*"]

[domains.target]
batches = "grouped_run:pictures"

[accumulate]
heldout_share = 0.0

[solve]
methods = ["svd", "dalr_anchored_affine", "spectral"]

[compress]
split = { method = "dalr_anchored_affine", size = 3 }
line = { method = "dalr_anchored_affine", size = 1 }
stem = { method = "dalr_anchored_affine", size = 4 }
fc1 = { method = "spectral", size = 12 }

[evaluate]
batches = "grouped_run:pictures"
options = { samples = 20 }
ranks = [1, 2, 4]
"""


@pytest.fixture(scope="module", autouse=True)
def _forget_the_module():
    yield
    sys.modules.pop("grouped_run", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped")
    (folder / "grouped_run.py").write_text(CODE)
    (folder / "run.toml").write_text(RUN_FILE)
    return folder


@pytest.fixture(scope="module")
def project(folder):
    project = opened(folder)
    Run(project).all()
    return project


def opened(folder, *overrides, **sizes):
    return Project(load_config(folder / "run.toml", overrides, sizes), folder)


def again(project, folder, tmp_path, *overrides, **sizes):
    """The same run, as far as it is done, in a place of its own."""
    shutil.copytree(project.output, tmp_path / "again")
    return elsewhere(folder, tmp_path / "again", *overrides, **sizes)


def elsewhere(folder, output, *overrides, **sizes):
    return opened(folder, f'run.output="{output}"', *overrides, **sizes)


def inputs(project):
    return torch.cat([pictures for pictures, _ in project.code.batches("target")])


def patches(module, x):
    """(N, groups, d, positions): what each group reads, by torch's own unfolding; a line is an image of one row."""
    sides = [module.kernel_size, module.dilation, module.padding, module.stride]
    if isinstance(module, nn.Conv1d):
        x, sides = x[:, :, None], [(1, sides[0][0]), (1, sides[1][0]), (0, sides[2][0]), (1, sides[3][0])]
    return torch.stack([nn.functional.unfold(part, *sides) for part in x.chunk(module.groups, dim=1)], dim=1)


class ByHand(nn.Module):
    """A convolution's factors applied group by group, as matrices."""

    def __init__(self, module, pair):
        super().__init__()
        self.module, self.parts = module, pair.parts

    def forward(self, x):
        given = []
        for part, rows in zip(self.parts, patches(self.module, x).unbind(1), strict=True):
            up, down, bias = (torch.from_numpy(np.array(one)).float() for one in (part.up, part.down, part.bias))
            given.append(up @ (down @ rows) + bias[:, None])
        return torch.cat(given, dim=1).reshape(self.module(x).shape)


def read_by(project, name, x):
    """What layer `name` reads in the original network."""
    seen = []
    handle = project.network.get_submodule(name).register_forward_pre_hook(lambda _, read: seen.append(read[0]))
    with torch.inference_mode():
        project.network(x)
    handle.remove()
    return seen[0]


# --- what is watched and solved ---------------------------------------------------------------------------------------


def test_groups_have_statistics_and_layers_have_names(project):
    store = StoreView.open(project.store)
    assert project.layers == store.layers == ("stem", "split", "line", "fc1", "fc2")
    groups = [f"{name}@group{number}" for name, count in GROUPED.items() for number in range(count)]
    assert [name for name in store.manifest.network.layers if "@group" in name] == groups
    for name, count in GROUPED.items():
        read = patches(project.network.get_submodule(name), read_by(project, name, inputs(project))).double()
        for number in range(count):
            rows = read[:, number].movedim(1, 2).flatten(0, 1).numpy()
            moments = store.moments("target", f"{name}@group{number}")
            assert moments.count == len(rows)
            np.testing.assert_allclose(moments.mean, rows.mean(axis=0), atol=1e-6)


def test_the_saved_network_is_that_of_the_factors_by_hand(project):
    store, x = StoreView.open(project.store), inputs(project)
    small, twin = ds.load(project.compressed, project.code.build), copy.deepcopy(project.network)
    for name, size in (("split", 3), ("line", 1), ("stem", 4)):
        module = twin.get_submodule(name)
        pair = store.solutions(name, [METHOD])[METHOD].at_rank(size)
        setattr(twin, name, ByHand(module, pair))
        groups = GROUPED.get(name, 1)
        assert [part.groups for part in small.get_submodule(name)] == [groups, groups]
        assert small.get_submodule(f"{name}.0").out_channels == groups * size
    twin.fc1, twin.fc2 = small.fc1, small.fc2
    with torch.inference_mode():
        torch.testing.assert_close(small(x), twin(x), rtol=1e-4, atol=1e-5)


def test_at_full_rank_the_outputs_are_the_originals(project):
    store, x = StoreView.open(project.store), inputs(project)
    solutions = {name: store.solutions(name, [METHOD])[METHOD] for name in (*GROUPED, "stem", "fc2")}
    assert [solutions[name].max_rank for name in GROUPED] == [6, 2]
    whole = compress(project.network, {name: at_size(one, one.max_rank, name, 0.0) for name, one in solutions.items()})
    with torch.inference_mode():
        torch.testing.assert_close(whole(x), project.network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GROUPED)
def test_the_error_of_a_layer_is_that_of_all_its_groups(project, name):
    store, module = StoreView.open(project.store), project.network.get_submodule(name)
    read = read_by(project, name, inputs(project))
    curve = next(layer for layer in results(project).layers if layer.name == name).error_curves
    for method in (ds.Method.SVD, METHOD):
        found = next(one for one in curve if one.method == method.value).training
        solution = store.solutions(name, [method])[method]
        with torch.inference_mode():
            y = module(read)
            centred = y if module.bias is None else y - module.bias.reshape(-1, *[1] * (y.ndim - 2))
            for rank in range(1, solution.max_rank):
                gap = y - ByHand(module, solution.at_rank(rank))(read)
                assert found[rank] == pytest.approx(float(gap.norm() / centred.norm()), rel=1e-4)


def test_what_shares_a_layer_cannot_be_selected_and_says_so(project):
    said = {layer: StoreView.open(project.store).record(layer).unprunable for layer in project.layers}
    assert "it is a Conv2d of 2 groups" in said["split"]
    assert "'split', which reads them, is a Conv2d of 2 groups" in said["stem"]
    assert said["fc1"] == ""
    told = [line for line in results(project).decisions if "'split': its channels" in line]
    assert len(told) == 1


def test_the_store_is_whole_and_the_saved_network_says_what_its_layers_were(project):
    verify_store(project.store).require()
    readme = (project.compressed / "README.md").read_text()
    assert "| split | 12 x 36 | a pair, 6 x 36, 12 x 3 | 444 | 264 |" in readme


def test_a_profile_has_the_convolution_beside_its_pair(project):
    small, x = ds.load(project.compressed, project.code.build), inputs(project)
    found = ds.profile(project.network, small, x, batch_sizes=(1,), stopwatch=Stopwatch(turns=3, least_seconds=0.0))
    macs = {layer.name: (layer.macs_before, layer.macs_after) for layer in found.layers}
    assert macs["split"] == (432 * 16, 252 * 16)
    assert macs["line"] == (72 * 16, 44 * 16)


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_parameters_and_multiply_adds_are_those_of_the_pair(project):
    store, x = StoreView.open(project.store), inputs(project)
    solutions = {name: store.solutions(name, [METHOD])[METHOD] for name in GROUPED}
    for name, solution in solutions.items():
        shape = store.shape(name)
        assert shape.parameters == project.network.get_submodule(name).weight.numel()
        for rank in range(1, shape.max_rank):
            small = compress(project.network, {name: solution.at_rank(rank)})
            pair = small.get_submodule(name)
            assert shape.factor_parameters(rank) == sum(part.weight.numel() for part in pair)
            with watched_calls(small) as calls, torch.inference_mode():
                small(x)
            macs = (calls.macs[f"{name}.0"] + calls.macs[f"{name}.1"]) / len(x)
            weights = sized_layer(project, store, name, solution).cost(rank, shape.inputs)
            assert rows_a_sample(project, store, name) * weights == macs
            assert (rank <= shape.break_even_rank) == (shape.factor_parameters(rank) <= shape.parameters)


def test_every_tried_rank_is_one_of_all_groups(project):
    curves = {layer: found[0] for layer, found in Evaluation.read(project.evaluation).curves.items()}
    assert [point.size for point in curves["split"].points] == [1, 2, 4]
    assert [point.size for point in curves["line"].points] == [1]
    assert [point.layer_parameters for point in curves["split"].points] == [84, 168, 336]


@pytest.mark.parametrize("rule", [{"params": "45%"}, {"macs": "45%"}, {"energy": "90%"}, {"ratio": 0.5}])
def test_one_rule_for_all_layers_sizes_them_too(project, folder, tmp_path, rule):
    other = again(project, folder, tmp_path, "compress={}", **rule)
    Run(other).compress()
    layers = Compression.read(other.compression).layers
    small = ds.load(other.compressed, other.code.build)
    for name in set(layers) & set(GROUPED):
        assert small.get_submodule(f"{name}.0").out_channels == GROUPED[name] * layers[name].size
    if "params" in rule:
        weights = [sum(p.numel() for n, p in net.named_parameters() if p.ndim > 1) for net in (small, other.network)]
        left_alone = other.network.depth.weight.numel()
        assert weights[0] - left_alone <= 0.45 * (weights[1] - left_alone)
    if "ratio" in rule:
        assert layers["split"].size == 3


def test_a_search_lowers_all_groups_together(project, folder, tmp_path):
    validation = 'validation={batches="grouped_run:others", ranks=[1, 3]}'
    other = again(project, folder, tmp_path, "compress={}", 'network.layers=["split","line"]', validation, max_drop=1.0)
    Run(other).compress()
    assert {name: size.size for name, size in Compression.read(other.compression).layers.items()} == {
        "split": 1,
        "line": 1,
    }


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_report_names_layers_and_what_stays_as_it_is(project):
    found = Results.read(project.report_folder / "results.json")
    assert {layer.name: layer.groups for layer in found.layers} == {"stem": 1, "fc1": 1, "fc2": 1} | GROUPED
    stays = "layer 'depth' is left out: it is a depthwise Conv2d: each of its 12 groups"
    assert [line for line in found.decisions if line.startswith(stays)]
    page = (project.report_folder / "report.html").read_text()
    assert "36 weights in 2 groups, 432 in all" in page
    assert "depthwise" in page


def test_layers_are_ranked_whole(project):
    found = {layer.layer: layer for layer in layer_costs(project, METHOD)}
    assert (found["split"].groups, found["split"].weights) == (2, 432)
    assert found["split"].multiply_adds == 432 * 16


def test_a_dry_run_names_the_convolution_and_what_stays(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    done = cli("run", folder / "run.toml", "--set", f'run.output="{tmp_path}/none"', "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "split (2 groups)" in done.stdout
    assert "@group" not in done.stdout
    assert "layer 'depth' is left out: it is a depthwise" in done.stdout
    assert not (tmp_path / "none").exists()


def test_a_depthwise_layer_that_is_named_is_an_error(folder, tmp_path):
    project = elsewhere(folder, tmp_path, 'network.layers=["stem", "depth"]')
    assert any("'depth' (it is a depthwise Conv2d" in problem for problem in dry_run(project).problems)
    run = Run(project)
    run.train()
    with pytest.raises(UnsupportedLayerError, match=r"pattern 'depth': .* each of its 12 groups is a matrix of rank 1"):
        run.accumulate()


def test_bad_sizes_name_the_layer_and_a_group_is_no_layer_to_decide(project, folder, tmp_path):
    too_large = again(project, folder, tmp_path, 'compress={split={method="svd",size=7}}')
    with pytest.raises(RankError, match=r"layer 'split@group\*': rank must lie in 1..6, got 7"):
        Run(too_large).compress()
    part = elsewhere(folder, tmp_path / "again", 'compress={"split@group0"={method="svd",size=2}}')
    with pytest.raises(ConfigError, match=r"compress\.split@group0: is not among the compressed layers stem, split"):
        Run(part).compress()


# --- other ways to the same ------------------------------------------------------------------------------------------


def test_shards_choose_one_ridge_for_all_groups_and_give_the_layer_error_bars(folder, tmp_path):
    project = elsewhere(
        folder,
        tmp_path,
        "accumulate.shards=3",
        "capture.keep_activations=false",
        "accumulate.heldout_share=0.2",
        'solve.ridge="shards"',
        'solve.methods=["dalr_anchored_affine"]',
        'network.layers=["split"]',
        'compress={split={method="dalr_anchored_affine",size=2}}',
    )
    Run(project).all()
    store = StoreView.open(project.store)
    parts = store.solutions("split", [METHOD])[METHOD].parts
    assert len({part.diagnostics.chosen_ridge for part in parts}) == 1
    (layer,) = results(project).layers
    assert layer.stability.shards == 3
    assert 0.0 < layer.stability.training_error[2] < 0.1
    assert layer.error_curves[0].heldout is not None


def test_layer_after_layer(project, folder, tmp_path):
    sizes = {"stem": 2, "split": 3, "line": 1}
    chosen = ",".join(f'{name}={{method="dalr_anchored_affine",size={size}}}' for name, size in sizes.items())
    other = again(project, folder, tmp_path, f'compress={{order="sequential",{chosen}}}')
    Run(other).compress()
    gain = Compression.read(other.compression).gain
    assert [layer.layer for layer in gain.layers] == list(sizes)
    small, x = ds.load(other.compressed, other.code.build), inputs(other)
    with torch.inference_mode():
        h = {"small": x, "original": x}
        nets = {"small": small, "original": other.network}
        gaps = {}
        for name in sizes:
            y = {key: nets[key].get_submodule(name)(value) for key, value in h.items()}
            bias = other.network.get_submodule(name).bias
            own = y["original"] if bias is None else y["original"] - bias.reshape(-1, *[1] * (y["original"].ndim - 2))
            gaps[name] = float((y["original"] - y["small"]).norm() / own.norm())
            h = {key: torch.relu(value) for key, value in y.items()}
            if name == "split":
                h = {key: torch.relu(nets[key].depth(value)).flatten(2) for key, value in h.items()}
    assert {layer.layer: layer.sequential for layer in gain.layers} == pytest.approx(gaps, rel=1e-4)


def test_layer_after_layer_at_full_rank_is_the_original(project):
    whole = {name: ds.LayerChoice(METHOD, size) for name, size in (("stem", 8), ("split", 6), ("line", 2))}
    found = ds.compress_sequentially(project.network, project.code.batches("target"), whole)
    x = inputs(project)
    with torch.inference_mode():
        torch.testing.assert_close(found.network(x), project.network(x), rtol=1e-4, atol=1e-4)
    assert found.layers["line"].error < 1e-4
    with pytest.raises(RankError, match=r"layer 'line': rank must lie in 1\.\.2, got 3"):
        ds.compress_sequentially(project.network, project.code.batches("target"), {"line": ds.LayerChoice(METHOD, 3)})
