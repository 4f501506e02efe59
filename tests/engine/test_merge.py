"""Captures by independent jobs add up, in any order and nesting, can be taken out again, and are refused otherwise."""

import itertools
import shutil

import pytest
from capture_jobs import (
    LAYERS,
    PARTS,
    assert_same_moments,
    batches,
    folded_directly,
    job,
    name_of,
    network,
)
from commands import cli

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.solve import solve_low_rank
from dalr_stream.engine.stores.merge import merge
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import (
    InvalidInputError,
    StoreError,
)
from dalr_stream.network.structure.readers import with_readers
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.storage.records.moments import moments_path, save_moments, shard_path
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.removal import delete_activations
from dalr_stream.storage.store import ActivationStore
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

pytestmark = pytest.mark.usefixtures("unsynced", "jobs_as_they_were")


def test_a_capture_that_kept_no_activations_is_a_shard_like_any_other(jobs, tmp_path):
    direct = folded_directly(tmp_path / "direct", "c")
    assert_same_moments(direct, jobs["c"])
    merge([jobs["a"], direct], tmp_path / "out")
    merge([tmp_path / "out"], tmp_path / "less", without=[name_of(direct)])
    merge([jobs["a"]], tmp_path / "alone")
    assert_same_moments(tmp_path / "less", tmp_path / "alone")
    twice = merge([jobs["a"], jobs["c"]], tmp_path / "stored").shards
    assert len(twice) == 2
    with pytest.raises(InvalidInputError, match="would count twice"):
        merge([jobs["c"], direct], tmp_path / "refused")


# --- laws ---------------------------------------------------------------------------------------------------------


def test_a_merged_store_holds_the_sum_of_both_parts(jobs, tmp_path):
    merge(list(jobs.values()), tmp_path / "out")
    merged = accumulate_stored(tmp_path / "out", domain="target")
    for layer in LAYERS:
        parts = [accumulate_stored(root, domain="target") for root in sorted(jobs.values(), key=name_of)]
        expected = merge_all(SplitMoments(part[layer], part.heldout[layer]) for part in parts)
        assert merged[layer].same_bits(expected.training)
        assert merged.heldout[layer].same_bits(expected.heldout)
        assert merged[layer].count + merged.heldout[layer].count == sum(samples for samples, _ in PARTS.values())
    assert not (tmp_path / "out" / "activations").exists()


def test_the_order_of_stores_does_not_matter_to_a_byte(jobs, tmp_path, contents):
    found = []
    for number, order in enumerate(itertools.permutations("abc")):
        merge([jobs[part] for part in order], tmp_path / str(number))
        found.append(contents(tmp_path / str(number)))
    assert all(files == found[0] for files in found)


def test_nesting_does_not_matter_to_a_byte(jobs, tmp_path, contents):
    a, b, c, d = jobs.values()
    flat = merge([a, b, c, d], tmp_path / "flat").root
    left, right = merge([a, b], tmp_path / "ab").root, merge([c, d], tmp_path / "cd").root
    pairs = merge([right, left], tmp_path / "pairs").root
    chain = merge([b], tmp_path / "chain").root
    for store in (c, a, d):
        merge([store, chain], chain)
    whole = contents(flat)
    assert contents(pairs) == whole
    assert contents(chain) == whole


def test_a_shard_that_was_taken_out_was_never_there(jobs, tmp_path, contents):
    a, b, c, d = jobs.values()
    never = contents(merge([a, c, d], tmp_path / "never").root)
    with_b = merge([a, b, c, d], tmp_path / "out")
    names = [shard.name for shard in with_b.shards]
    assert names == sorted(map(name_of, jobs.values()))
    assert contents(merge([with_b.root], tmp_path / "elsewhere", without=[name_of(b)]).root) == never
    merge([with_b.root], with_b.root, without=[name_of(b)])
    assert contents(with_b.root) == never


def test_one_store_merged_is_itself(jobs, tmp_path):
    merge([jobs["a"]], tmp_path / "out")
    assert_same_moments(tmp_path / "out", jobs["a"])


def test_the_same_merge_again_changes_nothing(jobs, tmp_path, contents):
    merge([jobs["a"], jobs["b"]], tmp_path / "out")
    once = contents(tmp_path / "out")
    merge([jobs["b"], jobs["a"]], tmp_path / "out")
    assert contents(tmp_path / "out") == once


def test_each_domain_is_the_sum_over_the_stores_that_have_it(tmp_path):
    both = job(tmp_path / "both", "a", domains=("target", "source"))
    only = job(tmp_path / "only", "b", domains=("source",))
    merge([both, only], tmp_path / "out")
    assert [len(ActivationStore(tmp_path / "out").domain(name).shards) for name in ("source", "target")] == [2, 1]
    assert_same_moments(tmp_path / "out", both, "target")
    merge([both], tmp_path / "one", domain="source")
    merge([both], tmp_path / "one", domain="target")
    assert_same_moments(tmp_path / "one", both, "source")
    assert_same_moments(tmp_path / "one", both, "target")


def test_activations_are_not_needed(jobs, tmp_path):
    bare = shutil.copytree(jobs["a"], tmp_path / "bare")
    delete_activations(bare)
    merge([bare, jobs["b"]], tmp_path / "out")
    merge([jobs["a"], jobs["b"]], tmp_path / "expected")
    assert_same_moments(tmp_path / "out", tmp_path / "expected")


# --- use ----------------------------------------------------------------------------------------------------------


def test_a_merged_store_can_be_solved_without_network_or_data(tmp_path):
    model = network()
    for part in "ac":
        data = batches(*PARTS[part])
        layers = with_readers(ds.network.select_layers(model, ["0"]), ds.network.Structure.of(model, data[0]))
        ds.capture(model, data, layers, tmp_path / part, domain="target")
        accumulate_stored(tmp_path / part, domain="target")
    merge([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
    store = StoreView.open(tmp_path / "out")
    problem = store.layer("0", "target", None)
    factors = solve_low_rank(problem, Method.DALR_ANCHORED_AFFINE)
    assert (
        factors.diagnostics.count
        == problem.known_inputs.count
        > accumulate_stored(tmp_path / "c", domain="target")["0"].count
    )
    assert problem.nodes.features == 16
    assert (factors.weight == network()[0].weight.detach().numpy()).all()
    assert store.heldout("target", None, "0").count > 0


def test_a_run_file_solves_from_a_merged_store(finished_file, tmp_path):
    """As a run on another machine would: the store is put in the run's place."""
    project = Project(load_config(finished_file), finished_file.parent)
    shutil.move(project.store, tmp_path / "captured.zarr")
    merge([tmp_path / "captured.zarr"], project.store)
    solved = cli("solve", finished_file)
    assert solved.returncode == 0, solved.stderr
    assert "DALR anchored, affine" in solved.stdout
    report = Run(Project(load_config(finished_file), finished_file.parent)).report()
    assert report.exists()


def test_rows_cannot_be_captured_into_a_sum(jobs, tmp_path, contents):
    merge([jobs["a"]], tmp_path / "out")
    whole = contents(tmp_path / "out")
    with pytest.raises(StoreError, match="domain 'target' was merged from other stores and takes no rows"):
        job(tmp_path / "out", "b")
    assert contents(tmp_path / "out") == whole
    with pytest.raises(StoreError, match=r"was merged from 1 stores and holds no rows of layer .0.: pass the holdout"):
        accumulate_stored(tmp_path / "out", domain="target", folding=ds.Folding(ds.HoldoutRule(0.5)))
    assert contents(tmp_path / "out") == whole


def test_verify_adds_the_shards_up_again(jobs, tmp_path):
    merge([jobs["a"], jobs["b"]], tmp_path / "out")
    found = verify_store(tmp_path / "out")
    assert found.findings == ()
    said = found.whole
    assert list(said[:2]) == ["target/0: the sum of 2 shards", "target/2: the sum of 2 shards"]
    assert f"shards/target/{name_of(jobs['b'])}/2/heldout: whole" in said
    total = moments_path(tmp_path / "out", "target", "2", "heldout")
    save_moments(total, ds.Moments.empty(16), provenance_of(total))
    (found,) = verify_store(tmp_path / "out").findings
    assert str(found) == "moments/target/2/heldout: is not the sum of its shards: merge again"
    shutil.rmtree(shard_path(tmp_path / "out", "target", name_of(jobs["b"]), "0", "training"))
    assert any("there is no record at" in finding.problem for finding in verify_store(tmp_path / "out").findings)


def test_the_command_merges_lists_shards_and_leaves_one_out(jobs, tmp_path, contents):
    out, expected = tmp_path / "out.zarr", tmp_path / "expected.zarr"
    merge([jobs["a"]], expected)
    done = cli("merge", out, jobs["a"], jobs["b"])
    assert done.returncode == 0, done.stderr
    assert name_of(jobs["a"]) in done.stdout
    assert "41" in done.stdout
    assert cli("merge", out, out, "--without", name_of(jobs["b"])).returncode == 0
    assert contents(out) == contents(expected)
    assert "target/0: the sum of 1 shards" in cli("verify", out).stdout
    assert cli("merge", out, out, jobs["a"]).returncode == 0  # as a killed merge is repeated: a lies there already
    assert contents(out) == contents(expected)
    twice = cli("merge", tmp_path / "new.zarr", out, jobs["a"])
    assert twice.returncode == 1
    assert "which would count twice" in twice.stderr
    assert twice.stderr.count("\n") == 1


def test_stores_that_watch_outputs_are_verified_and_merged(tmp_path):
    model = network()
    watched = ds.network.select_layers(model, ["0"]) + ds.network.select_layers(model, ["0"], side="outputs")
    for part in (0, 1):
        ds.capture(model, batches(40, part), watched, tmp_path / f"{part}", domain="target")
        accumulate_stored(tmp_path / f"{part}", domain="target")
    verify_store(tmp_path / "0").require()
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "sum")
    verify_store(tmp_path / "sum").require()
    assert sorted(path.name for path in (tmp_path / "sum" / "weights").iterdir()) == ["0"]
