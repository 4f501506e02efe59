"""A run file whose network goes block by block: store, solutions and steps are those of the whole network."""

import json
import re
import shutil

import pytest
import torch
from notes import Notes
from stopping import StopAfter, StoppedError
from torch import nn
from tower_run_file import BY_BLOCKS, differences, files, named, write_tower

import dalr_stream as ds
from dalr_stream.engine.blocks.duration import duration_of_blocks
from dalr_stream.errors import ConfigError, UnsupportedLayerError
from dalr_stream.network.blocks.pieces import Pieces, largest_piece_bytes
from dalr_stream.network.capture.batches import few_samples
from dalr_stream.network.measure.memory import forward_memory, memory_within, weights_bytes
from dalr_stream.workflow import run_time
from dalr_stream.workflow.dry_run import dry_run
from dalr_stream.workflow.results.tables import cost_table
from dalr_stream.workflow.run_cost import cost_of
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.without_data import StatedData, cost_without_data


@pytest.fixture
def run_file(tmp_path):
    return write_tower(tmp_path / "run")


def project_of(run_file, *overrides):
    return Project(load_config(run_file, overrides), run_file.parent)


def test_store_and_solutions_are_those_of_the_whole_network(run_file, monkeypatch):
    stores = {}
    for blocks in ("false", "true", "'blocks'"):
        run = ds.Run.open(run_file, set=[f"network.blocks={blocks}"])
        run.accumulate()
        run.solve()
        timed = re.compile(r"solutions/.*/zarr.json")  # says how long it took
        stores[blocks] = {name: data for name, data in files(run.project.store).items() if not timed.match(name)}
        assert ("network" in vars(run.project)) == (blocks == "false")  # whole in memory, or never
        again = ds.Run.open(run_file, set=[f"network.blocks={blocks}"])
        with monkeypatch.context() as patch:
            patch.setattr("dalr_stream.workflow.steps.accumulate.fold_domain", None)  # up to date: not called
            again.accumulate()
        shutil.rmtree(run.project.output)
    assert not differences(stores["false"], stores["true"])
    assert not differences(stores["false"], stores["'blocks'"])


def test_what_else_runs_the_network_takes_it_whole_or_block_by_block(run_file):
    settings = ['compress.params="50%"', "evaluate.batches='tower:target'", "compress.method='dalr_anchored_affine'"]
    pages = []
    for blocks in ("true", "false"):
        run = ds.Run.open(run_file, set=[*settings, f"network.blocks={blocks}"])
        run.all()
        pages.append((run.results.baseline_score, ds.load(run.project.compressed, run.project.code.build).state_dict()))
        shutil.rmtree(run.project.output)
    assert pages[0][0] == pages[1][0]
    assert all(torch.equal(pages[0][1][name], tensor) for name, tensor in pages[1][1].items())


@pytest.mark.parametrize("sizes", BY_BLOCKS.values(), ids=BY_BLOCKS)
def test_a_network_is_compressed_and_scored_block_by_block(sizes, run_file):
    settings = [*([sizes] if sizes else named(run_file)), "evaluate.batches='tower:target'", "evaluate.ranks=[]"]
    found = {}
    for blocks in ("true", "false"):
        run = ds.Run.open(run_file, set=[*settings, f"network.blocks={blocks}"])
        run.all()
        assert ("network" in vars(run.project)) == (blocks == "false")
        state = ds.load(run.project.compressed, run.project.code.build).state_dict()
        results = run.results
        sizes_found = [(one.parameters, one.score) for one in results.sizes]
        found[blocks] = state, sizes_found, files(run.project.output)["compression.json"]
        again = ds.Run.open(run_file, set=[*settings, f"network.blocks={blocks}"])
        assert not any(would for _, would in again.outlook())
        shutil.rmtree(run.project.output)
    (blocks, scores, record), (whole, other_scores, other_record) = found.values()
    assert blocks.keys() == whole.keys()
    assert all(torch.equal(blocks[name], whole[name]) for name in whole)
    assert scores == other_scores
    assert record == other_record


METRICS = """

def margin(model, batches):
    place = next(model.parameters()).device
    return sum(float(model(x.to(place)).detach().sum()) for x, _ in batches) / 1e4


def symmetric(model, batches):
    return sum(float((model(x) - model(-x)).detach().sum()) for x, _ in batches) / 1e4
"""


@pytest.mark.parametrize("metric", ["margin", "symmetric"])
def test_a_metric_that_only_calls_the_network_goes_block_by_block(metric, run_file):
    code = run_file.with_name("tower.py")
    code.write_text(code.read_text() + METRICS)
    settings = [*named(run_file), "evaluate.batches='tower:target'", "evaluate.ranks=[]", "evaluate.higher=true"]
    settings += [f"evaluate.metric='tower:{metric}'", "evaluate.range=[-inf, inf]"]
    found = []
    dry_run(project_of(run_file, *settings)).require()
    for blocks in ("true", "false"):
        progress = Notes()
        run = ds.Run.open(run_file, set=[*settings, f"network.blocks={blocks}"], progress=progress)
        run.all()
        noted = [line for line in progress.said if "every block is read again for each batch" in line]
        assert len(noted) == (2 if blocks == "true" and metric == "symmetric" else 0)
        found.append([(one.label, one.score, one.macs) for one in run.results.sizes])
        shutil.rmtree(run.project.output)
    assert found[0] == found[1]


GRADIENTS = ["network.gradients=['blocks.*']", "gradients.draws=2", "solve.methods=['svd', 'dalr_weighted_affine']"]


def test_gradients_block_by_block(run_file):
    settings, found = [*GRADIENTS, 'compress.energy="60%"', "evaluate.batches='tower:target'", "evaluate.ranks=[]"], {}
    for blocks in ("true", "false"):
        run = ds.Run.open(run_file, set=[*settings, f"network.blocks={blocks}"])
        run.all()
        assert ("network" in vars(run.project)) == (blocks == "false")
        state, store = ds.load(run.project.compressed, run.project.code.build).state_dict(), files(run.project.store)
        moments = {name: data for name, data in store.items() if name.startswith(("moments", "manifest"))}
        found[blocks] = state, moments, files(run.project.output)["compression.json"]
        assert any("@gradients" in name for name in moments)
        shutil.rmtree(run.project.output)
    (blocks, moments, record), (whole, other_moments, other_record) = found.values()
    assert moments == other_moments
    assert all(torch.equal(blocks[name], tensor) for name, tensor in whole.items())
    assert record == other_record
    assert b"of what the loss feels" in record


def test_a_dry_run_plans_the_way_back(run_file):
    project = project_of(run_file, *GRADIENTS)
    found = dry_run(project)
    found.require()
    plan, forward = found.plan, project_of(run_file).estimate()
    assert plan.rows["target"] == {
        f"blocks.{number}.{layer}{side}": rows
        for side, rows in (("", 75), ("@gradients", 150))
        for number in range(3)
        for layer in ("up", "down")
    }
    stem_and_blocks, gradients = 3, 2 * 1  # on the way back to the second block: of two draws, beside one more block
    assert plan.stream_bytes == 3 * 25 * 8 * 4 * (stem_and_blocks + gradients)
    assert plan.forward_bytes > 25 * (8 + 12 + 12) * 4 > forward.forward_bytes == 0
    assert plan.blocks == 3
    assert any(line.startswith("accumulate: about") for line in found.cost.lines)
    without_data = cost_without_data(run_file, GRADIENTS, StatedData(75, (25, 6), tokens=False))
    assert without_data.estimate.plan.stream_bytes == plan.stream_bytes


SELECTIONS = """
[compress]
'blocks.*.up' = { method = "spectral", size = 7 }
"""


def test_selections_within_blocks(run_file):
    run_file.write_text(run_file.read_text() + SELECTIONS)
    settings = ["solve.methods=['spectral', 'dalr_anchored_affine']"]
    found = {}
    for blocks in ("true", "false"):
        run = ds.Run.open(run_file, set=[*settings, f"network.blocks={blocks}"])
        run.accumulate()
        run.compress()
        found[blocks] = ds.load(run.project.compressed, run.project.code.build).state_dict()
        shutil.rmtree(run.project.output)
    assert found["true"]["blocks.1.up.weight"].shape == (7, 8)
    assert all(torch.equal(found["true"][name], tensor) for name, tensor in found["false"].items())


IN_TURN = """
[compress]
order = "sequential"
target = "stream"
'blocks.1.up' = { method = "spectral", size = 7 }
'blocks.*.down' = { method = "dalr_anchored_affine", size = 3 }
"""


def test_layer_after_layer_block_by_block(run_file):
    run_file.write_text(run_file.read_text() + IN_TURN)
    settings = ["solve.methods=['spectral', 'dalr_anchored_affine']"]
    found = {}
    for blocks in ("true", "false"):
        run = ds.Run.open(run_file, set=[*settings, f"network.blocks={blocks}"])
        run.accumulate()
        if blocks == "true":
            with pytest.raises(StoppedError):
                ds.Run.open(run_file, set=settings, progress=StopAfter(30)).compress()
        run.compress()
        assert ("network" in vars(run.project)) == (blocks == "false")
        state = ds.load(run.project.compressed, run.project.code.build).state_dict()
        found[blocks] = state, files(run.project.output)["compression.json"]
        again = ds.Run.open(run_file, set=[*settings, f"network.blocks={blocks}"])
        assert not any(would for step, would in again.outlook() if step == "compress")
        shutil.rmtree(run.project.output)
    (state, told), (whole, _) = found.values()
    assert state["blocks.1.up.weight"].shape == (7, 8)
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())
    assert b"blocks.2.down" in told.partition(b"towards_stream")[2]


def test_a_dry_run_plans_layer_after_layer_block_by_block(run_file):
    run_file.write_text(run_file.read_text() + IN_TURN)
    settings = ["solve.methods=['spectral', 'dalr_anchored_affine']"]
    by_blocks, whole = (dry_run(project_of(run_file, *settings, f"network.blocks={one}")) for one in ("true", "false"))
    by_blocks.require()
    (words,) = [line for line in by_blocks.cost.lines if "block by block" in line]
    assert "4 passes at most in 3 blocks" in words
    peaks = [{step.step: step.peak_bytes for step in one.cost.memory}["compress in turn"] for one in (by_blocks, whole)]
    assert peaks[0] < peaks[1]
    with pytest.raises(ConfigError, match=r"layer .blocks\.0\.down.: folding 12 features needs"):
        dry_run(project_of(run_file, *settings, "accumulate.memory_limit='20KiB'")).require()


def test_a_compression_that_was_stopped_goes_on_after_the_last_piece(run_file):
    settings = named(run_file)
    whole = ds.Run.open(run_file, set=settings)
    whole.accumulate()
    whole.compress()
    expected = files(whole.project.compressed)
    shutil.rmtree(whole.project.compressed)
    with pytest.raises(StoppedError):
        ds.Run.open(run_file, set=settings, progress=StopAfter(3)).compress()
    assert not whole.project.compressed.exists()
    ds.Run.open(run_file, set=settings).compress()
    assert files(whole.project.compressed) == expected


def test_a_layer_that_cannot_be_replaced_is_refused_before_anything_is_recorded(run_file):
    code = run_file.with_name("tower.py")
    code.write_text(code.read_text().replace("torch.relu(self.up(x))", "torch.relu(self.up(x)) * self.up.weight[0, 0]"))
    run = ds.Run.open(run_file, set=named(run_file))
    with pytest.raises(UnsupportedLayerError, match=r"layer 'blocks\.0\.up': cannot be replaced"):
        run.all()
    assert not (run.project.output / "store.zarr").exists()


def test_a_dry_run_reads_headers_plans_blocks_and_writes_nothing(run_file):
    before = {name: data for name, data in files(run_file.parent).items() if "__pycache__" not in name}
    project = project_of(run_file)
    found = dry_run(project)
    found.require()
    plan = found.plan
    assert plan.groups == tuple((f"blocks.{number}.up", f"blocks.{number}.down") for number in range(3))
    assert {layer.name: layer.rows for layer in plan.layers} == {name: 75 for group in plan.groups for name in group}
    assert plan.stream_bytes == 3 * 25 * 8 * 4 * 3  # batches, samples, width, bytes; what the stem gave and two blocks
    assert "what blocks give each other 0.0" in str(cost_table(plan).title)
    assert plan.disk_peak_bytes == plan.disk_bytes + plan.checkpoint_bytes + plan.stream_bytes
    two_blocks = 2 * 8 * (8**2 + 12**2) * 2
    less = "solve and write one block after the other (accumulate.keep_moments = false)"
    assert plan.disk_alternatives[-1] == (less, two_blocks)
    swept = project_of(run_file, "accumulate.keep_moments=false", 'compress.ratio="40%"').estimate()
    assert swept.disk_bytes == two_blocks < plan.disk_bytes
    whole = project_of(run_file, "network.blocks=false").estimate()
    assert plan.disk_bytes == whole.disk_bytes
    assert plan.peak_bytes < whole.peak_bytes
    assert {name: data for name, data in files(run_file.parent).items() if "__pycache__" not in name} == before


def test_what_a_step_holds_of_a_network_is_a_block(run_file):
    settings = ['solve.methods=["dalr_anchored_affine", "spectral"]', 'compress.params="50%"', "evaluate.ranks=[]"]
    settings += [
        "evaluate.batches='tower:target'",
        "evaluate.metric='tower:Tower'",
        "evaluate.higher=true",
        "evaluate.cache='64MiB'",
    ]
    project, whole = (project_of(run_file, *settings, *also) for also in ([], ["network.blocks=false"]))
    steps = {step.step: step for step in cost_of(project, project.recorded_stand_in()).memory}
    network = project.recorded_stand_in()
    block = largest_piece_bytes(network)
    assert block < weights_bytes(network) / 2
    few = few_samples(project.code.first_batch, 2)
    made = memory_within(network, few, Pieces.of(network).names)
    assert 0 < made < forward_memory(network, few).total_bytes
    assert steps["structure proof"].peak_bytes == block + made + max(made, block)
    assert steps["accumulate"].peak_bytes == block + project.estimate().peak_bytes
    assert max(step.peak_bytes for step in steps.values()) < 48 * 2**20
    named_so = [name for name, step in steps.items() if step.what.startswith("a block, ")]
    assert named_so == ["structure proof", "accumulate", "compress", "evaluate"]
    copied = {step.step: step for step in cost_of(whole, whole.recorded_stand_in()).memory}
    assert copied["evaluate"].peak_bytes > 64 * 2**20
    assert "a copy of the network" in copied["structure proof"].what


def test_rows_that_are_kept_on_disk_are_refused(run_file):
    message = "network.blocks: rows are folded as the blocks make them: set capture.keep"
    with pytest.raises(ConfigError, match=message):
        load_config(run_file, ["capture.keep_activations=true"])


def test_a_network_with_its_own_weights_is_in_memory_all_the_same(run_file):
    code = run_file.with_name("tower.py")
    code.write_text(code.read_text().replace("def build():\n", "def build():\n    torch.manual_seed(1)\n"))
    text = run_file.read_text().replace('weights = "tower.safetensors"\n', "")
    run_file.write_text(text)
    run = ds.Run.open(run_file)
    run.accumulate()
    assert isinstance(run.project.recorded.stem, nn.Linear)
    assert not run.project.recorded.stem.weight.is_meta
    assert "blocks.2.down" in run.layers


def test_the_time_is_that_of_a_block_that_was_timed(run_file):
    project = project_of(run_file)
    plan = project.estimate()
    (line,) = run_time.run_time(project, project.recorded, plan).lines
    assert plan.blocks == 3
    assert re.search(r"for each of 3 blocks \(.* reading it, .* running it, .* in sums.*'blocks\.0' was timed", line)
    loaders = {"target": project.code.batches("target")}
    took = duration_of_blocks(project.recorded, loaders, project.watched, project.widest_folding, plan, blocks=True)
    assert took.running_seconds > 0
    assert took.folding_seconds > 0


def test_a_plan_block_by_block_needs_neither_weights_nor_data(run_file):
    (run_file.parent / "tower.safetensors").rename(run_file.parent / "kept.safetensors")
    stated = StatedData.of(75, "25,6", None)
    found = cost_without_data(run_file, [], stated).estimate.plan
    (run_file.parent / "kept.safetensors").rename(run_file.parent / "tower.safetensors")
    plan = project_of(run_file).estimate()
    assert found.stream_bytes == plan.stream_bytes
    assert (found.groups, found.blocks, found.peak_bytes) == (plan.groups, plan.blocks, plan.peak_bytes)
    assert found.disk_bytes == plan.disk_bytes


BUDGETS = {
    "params": ['compress.params="50%"'],
    "macs, scored": [
        'compress.macs="50%"', "validation.batches='tower:target'", "validation.options={samples=30}",
    ],
    "network, selections, by cosine": [
        'compress.network="70%"', "solve.methods=['spectral', 'dalr_anchored_affine']", "compress.distance='cosine'",
        "accumulate.heldout_share=0.3", "network.layers=['blocks.*.up']",  # no nodes of the stream, which reach beyond
    ],
    "a score": [
        'compress.max_drop="4%"', "validation.batches='tower:target'", "validation.options={samples=40}",
        "validation.ranks=[1, 2, 4]", "compress.method='svd'",
    ],
    "a score, by nats": [
        *GRADIENTS, 'compress.max_drop="4%"', "validation.batches='tower:target'", "validation.options={samples=40}",
    ],
    "in turn": ['compress.params="50%"', "compress.order='sequential'", "compress.samples=20"],
}  # fmt: skip


@pytest.mark.parametrize("settings", BUDGETS.values(), ids=BUDGETS)
def test_a_budget_is_shared_out_with_one_block_in_memory(settings, run_file):
    found = {}
    for blocks in ("true", "false"):
        run = ds.Run.open(run_file, set=[*settings, f"network.blocks={blocks}"])
        run.accumulate()
        run.compress()
        assert ("network" in vars(run.project)) == (blocks == "false")
        record = json.loads((run.project.output / "compression.json").read_text())["content"]["content"]
        del record["gain"]  # block by block no two networks are there to be compared
        found[blocks] = ds.load(run.project.compressed, run.project.code.build).state_dict(), record
        assert not run.project.measuring.exists()
        shutil.rmtree(run.project.output)
    (state, record), (whole, other) = found.values()
    assert record == other
    kinds = [record[key] for key in ("search", "choice", "by_nats") if record[key]]
    assert max(len(kind.get(key, ())) for kind in kinds for key in ("steps", "trials", "networks")) > 2
    assert state.keys() == whole.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())


def test_a_choice_of_sizes_that_was_stopped_goes_on(run_file):
    settings = BUDGETS["params"]
    run = ds.Run.open(run_file, set=settings)
    run.accumulate()
    run.compress()
    expected = files(run.project.output)
    shutil.rmtree(run.project.compressed)
    (run.project.output / "compression.json").unlink()
    titles = []
    for reports in (2, 4, 3):
        progress = StopAfter(reports)
        with pytest.raises(StoppedError):
            ds.Run.open(run_file, set=settings, progress=progress).compress()
        titles.append(progress.titles)
    alone, candidates = "compress: one layer at a time", "compress: candidates"
    assert titles == [[alone], [alone, candidates], [candidates]]
    ds.Run.open(run_file, set=settings).compress()
    names = ["compression.json", *(name for name in expected if name.startswith("compressed/model"))]
    assert all(files(run.project.output)[name] == expected[name] for name in names)


GENERATING = """

def generated(model, batches):
    return float(sum(model.generate(x) for x, _ in batches))
"""


def test_a_metric_that_candidates_cannot_be_given_is_named(run_file):
    code = run_file.with_name("tower.py")
    code.write_text(code.read_text() + GENERATING)
    scored = ["validation.batches='tower:target'", "validation.metric='tower:generated'", "validation.higher=true"]
    run = ds.Run.open(run_file, set=['compress.params="50%"', *scored])
    run.accumulate()
    message = r"validation\.metric: 'tower:generated' may do no more with a network than call it.*AttributeError"
    with pytest.raises(UnsupportedLayerError, match=message):
        run.compress()
    assert "network" not in vars(run.project)
