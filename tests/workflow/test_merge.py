"""Captures by independent jobs add up, in any order and nesting, can be taken out again, and are refused otherwise."""

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from test_cli import cli
from torch import nn

import dalr_stream as ds
from dalr_stream.errors import (
    DalrStreamError,
    FingerprintMismatchError,
    InvalidInputError,
    StoreDamagedError,
    StoreError,
    StoreLockedError,
    StoreNotFoundError,
)
from dalr_stream.numerics.folding import SplitMoments, merge_all
from dalr_stream.numerics.methods import Method
from dalr_stream.storage import archive
from dalr_stream.storage.activations import ActivationStore, locked
from dalr_stream.storage.manifest import Manifest
from dalr_stream.workflow.config import load_config
from dalr_stream.workflow.merge import merge
from dalr_stream.workflow.problems import SolvedStore
from dalr_stream.workflow.project import Project
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.solve import solve_low_rank
from dalr_stream.workflow.verify import verify_store

LAYERS = ["0", "2"]
PARTS = {"a": (90, 0), "b": (41, 1), "c": (200, 2), "d": (7, 3)}
"""Samples and seed of each job's data."""


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    """Syncing decides what a power cut leaves, and tests cut no power."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def network(seed=0, width=16):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 10), nn.ReLU(), nn.Linear(10, 3)
        return nn.Sequential(*layers).eval()


def batches(samples, seed, size=32):
    rows = torch.randn(samples, 12, generator=torch.Generator().manual_seed(seed)) + seed
    return list(rows.split(size))


def job(root, part, *, domains=("target",), model=None, layers=LAYERS, holdout=None, accumulate=True, **options):
    """What one machine does with its part of the data."""
    model = model or network()
    samples, seed = PARTS[part]
    for number, domain in enumerate(domains):
        data = batches(samples, seed + 10 * number, **options)
        ds.capture(model, data, ds.select_layers(model, layers), root, domain=domain)
        if accumulate:
            ds.accumulate(root, domain=domain, folding=ds.Folding(holdout or ds.HoldoutRule()))
    return root


def folded_directly(root, part):
    model = network()
    data = batches(*PARTS[part])
    ds.accumulate_into(root, model, data, ds.select_layers(model, LAYERS), domain="target")
    return root


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Four stores that nothing may change."""
    folder = tmp_path_factory.mktemp("jobs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        return {part: job(folder / f"{part}.zarr", part) for part in PARTS}


@pytest.fixture(autouse=True)
def _sources_as_they_were(jobs, contents):
    """Sources are only read: every test ends with the bytes it began with."""
    found = {part: contents(root) for part, root in jobs.items()}
    yield
    assert {part: contents(root) for part, root in jobs.items()} == found


def name_of(root, domain="target"):
    return ActivationStore(root).domain(domain).shard_name


def assert_same_moments(a, b, domain="target"):
    ours, theirs = (ds.accumulate(root, domain=domain) for root in (a, b))
    assert list(ours) == list(theirs)
    for layer in ours:
        assert ours[layer].same_bits(theirs[layer])
        assert ours.heldout[layer].same_bits(theirs.heldout[layer])


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
    merged = ds.accumulate(tmp_path / "out", domain="target")
    for layer in LAYERS:
        parts = [ds.accumulate(root, domain="target") for root in sorted(jobs.values(), key=name_of)]
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
    archive.delete_activations(bare)
    merge([bare, jobs["b"]], tmp_path / "out")
    merge([jobs["a"], jobs["b"]], tmp_path / "expected")
    assert_same_moments(tmp_path / "out", tmp_path / "expected")


# --- use ----------------------------------------------------------------------------------------------------------


def test_a_merged_store_can_be_solved_without_network_or_data(jobs, tmp_path):
    merge([jobs["a"], jobs["c"]], tmp_path / "out")
    store = SolvedStore.open(tmp_path / "out")
    problem = store.problem("0", "target", None)
    factors = solve_low_rank(problem, Method.DALR_ANCHORED_AFFINE)
    assert factors.diagnostics.count == problem.inputs.count > ds.accumulate(jobs["c"], domain="target")["0"].count
    assert problem.target_nodes.features == 16
    assert (factors.weight == network()[0].weight.detach().numpy()).all()
    assert store.heldout("target", None, "0").count > 0


def test_a_run_file_solves_from_a_merged_store(finished_file, tmp_path):
    """As a run on another machine would: the store is put in the run's place."""
    project = Project(load_config(finished_file), finished_file.parent)
    shutil.move(project.store, tmp_path / "captured.zarr")
    merge([tmp_path / "captured.zarr"], project.store)
    solved = cli("solve", finished_file)
    assert (solved.returncode, solved.stderr) == (0, "")
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
        ds.accumulate(tmp_path / "out", domain="target", folding=ds.Folding(ds.HoldoutRule(0.5)))
    assert contents(tmp_path / "out") == whole


def test_verify_adds_the_shards_up_again(jobs, tmp_path):
    merge([jobs["a"], jobs["b"]], tmp_path / "out")
    found = verify_store(tmp_path / "out")
    assert found.findings == ()
    said = found.whole
    assert list(said[:2]) == ["target/0: the sum of 2 shards", "target/2: the sum of 2 shards"]
    assert f"shards/target/{name_of(jobs['b'])}/2/heldout: whole" in said
    total = archive.moments_path(tmp_path / "out", "target", "2", "heldout")
    archive.save_moments(total, ds.Moments.empty(16), archive.provenance_of(total))
    (found,) = verify_store(tmp_path / "out").findings
    assert str(found) == "moments/target/2/heldout: is not the sum of its shards: merge again"
    shutil.rmtree(archive.shard_path(tmp_path / "out", "target", name_of(jobs["b"]), "0", "training"))
    assert any("there is no record at" in finding.problem for finding in verify_store(tmp_path / "out").findings)


def test_the_command_merges_lists_shards_and_leaves_one_out(jobs, tmp_path, contents):
    out, expected = tmp_path / "out.zarr", tmp_path / "expected.zarr"
    merge([jobs["a"]], expected)
    done = cli("merge", out, jobs["a"], jobs["b"])
    assert (done.returncode, done.stderr) == (0, "")
    assert name_of(jobs["a"]) in done.stdout
    assert "41" in done.stdout
    assert cli("merge", out, out, "--without", name_of(jobs["b"])).returncode == 0
    assert contents(out) == contents(expected)
    assert "target/0: the sum of 1 shards" in cli("verify", out).stdout
    twice = cli("merge", out, out, jobs["a"])
    assert twice.returncode == 1
    assert "which would count twice" in twice.stderr
    assert twice.stderr.count("\n") == 1


# --- refusals -----------------------------------------------------------------------------------------------------


def _damaged(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


class Refused:
    """Stores that must not be added to the first job's, and options that must not be given."""

    def __init__(self, folder, jobs):
        self.folder, self.jobs = folder, jobs

    def other_network(self):
        return [job(self.folder / "x", "b", model=network(seed=9))], {}

    def other_layers(self):
        return [job(self.folder / "x", "b", layers=["0"])], {}

    def other_rule(self):
        return [job(self.folder / "x", "b", holdout=ds.HoldoutRule(0.1, seed=5))], {}

    def same_store(self):
        return [self.jobs["a"]], {}

    def same_rows(self):
        return [job(self.folder / "x", "a")], {}

    def overlap(self):
        root = self.folder / "x"
        model = network()
        data = [*batches(20, 8), *batches(*PARTS["a"])[1:]]
        ds.capture(model, data, ds.select_layers(model, LAYERS), root, domain="target")
        ds.accumulate(root, domain="target")
        return [root], {}

    def not_accumulated(self):
        return [job(self.folder / "x", "b", accumulate=False)], {}

    def stale_moments(self):
        root = shutil.copytree(self.jobs["b"], self.folder / "x")
        path = archive.moments_path(root, "target", "2", "training")
        archive.save_moments(path, archive.load_moments(path), {**archive.provenance_of(path), "rows": "others"})
        return [root], {}

    def incomplete(self):
        root = shutil.copytree(self.jobs["b"], self.folder / "x")
        manifest = Manifest.read(root)
        record = dataclasses.replace(manifest.domains["target"], complete=False)
        manifest.with_domain("target", record).write(root)
        return [root], {}

    def damaged_moments(self):
        root = shutil.copytree(self.jobs["b"], self.folder / "x")
        _damaged(archive.moments_path(root, "target", "2", "heldout") / "scatter" / "c" / "0" / "0")
        return [root], {}

    def damaged_weights(self):
        root = shutil.copytree(self.jobs["b"], self.folder / "x")
        _damaged(archive.weights_path(root, "2") / "weight" / "c" / "0" / "0")
        return [root], {"first": True}

    def damaged_manifest(self):
        root = shutil.copytree(self.jobs["b"], self.folder / "x")
        _damaged(root / "manifest.json")
        return [root], {}

    def absent(self):
        return [self.folder / "x"], {}

    def unknown_domain(self):
        return [self.jobs["b"]], {"domain": "source"}

    def unknown_shard(self):
        return [self.jobs["b"]], {"without": ["feedbeef"]}


REFUSED = {
    Refused.other_network: (FingerprintMismatchError, "merge captures of the same weights"),
    Refused.other_layers: (FingerprintMismatchError, "watch the same layers in every capture"),
    Refused.other_rule: (FingerprintMismatchError, "accumulate both with the same holdout"),
    Refused.same_store: (InvalidInputError, "hold the same rows, which would count twice"),
    Refused.same_rows: (InvalidInputError, "hold the same rows, which would count twice"),
    Refused.overlap: (InvalidInputError, "batch 1 of .* is batch 1 of .*capture parts of the data that do not overlap"),
    Refused.not_accumulated: (StoreNotFoundError, "no moments of layer '0' on 'target': run accumulate first"),
    Refused.stale_moments: (
        FingerprintMismatchError,
        "'2' on 'target' were made from other rows.*accumulate again",
    ),
    Refused.incomplete: (StoreError, "domain 'target' is not complete: run the capture again"),
    Refused.damaged_moments: (StoreDamagedError, "array 'scatter'"),
    Refused.damaged_weights: (StoreDamagedError, "array 'weight'"),
    Refused.damaged_manifest: (StoreDamagedError, "manifest.json' is damaged"),
    Refused.absent: (StoreNotFoundError, "is not a dalr_stream store"),
    Refused.unknown_domain: (StoreNotFoundError, "has no domain 'source': it has target"),
    Refused.unknown_shard: (InvalidInputError, "there is no shard 'feedbeef': there are "),
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_must_not_be_added_is_refused_and_the_output_is_as_it_was(jobs, tmp_path, contents, make):
    kind, message = REFUSED[make]
    (tmp_path / "made").mkdir()
    others, options = make(Refused(tmp_path / "made", jobs))
    stores = [*others, jobs["a"]] if options.pop("first", False) else [jobs["a"], *others]
    with pytest.raises(kind, match=message):
        merge(stores, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
    merge([jobs["d"]], tmp_path / "old")
    whole = contents(tmp_path / "old")
    with pytest.raises(kind):
        merge([tmp_path / "old", *stores], tmp_path / "old", **options)
    assert contents(tmp_path / "old") == whole


class InTheWay:
    """What may lie where a merge is asked to write."""

    def __init__(self, out, jobs):
        self.out, self.jobs = out, jobs

    def a_file(self):
        self.out.write_text("mine")

    def a_folder_of_other_things(self):
        self.out.mkdir()
        (self.out / "thesis.tex").write_text("mine")

    def a_captured_store(self):
        shutil.copytree(self.jobs["d"], self.out)

    def a_direct_store(self):
        folded_directly(self.out, "d")

    def merged_from_another_network(self):
        merge([job(self.out.parent / "y", "d", model=network(seed=9))], self.out)

    def merged_from_other_shards(self):
        merge([self.jobs["d"], self.jobs["a"]], self.out)


IN_THE_WAY = {
    InTheWay.a_file: "a file is in its way",
    InTheWay.a_folder_of_other_things: "is a folder of other things: merge into a new store",
    InTheWay.a_captured_store: "holds domain 'target', which no merge made: merge into a new store",
    InTheWay.a_direct_store: "holds domain 'target', which no merge made: merge into a new store",
    InTheWay.merged_from_another_network: "merge captures of the same weights",
    InTheWay.merged_from_other_shards: "which no store to merge has: name .* among them to add to it",
}


@pytest.mark.parametrize("make", IN_THE_WAY, ids=lambda make: make.__name__)
def test_an_output_that_is_something_else_is_left_alone(jobs, tmp_path, contents, make):
    make(InTheWay(tmp_path / "out", jobs))
    whole = contents(tmp_path)
    with pytest.raises(DalrStreamError, match=IN_THE_WAY[make]):
        merge([jobs["a"], jobs["b"]], tmp_path / "out")
    assert contents(tmp_path) == whole


def test_a_store_that_another_process_writes_is_left_alone(jobs, tmp_path):
    merge([jobs["a"]], tmp_path / "out")
    with locked(tmp_path / "out"), pytest.raises(StoreLockedError, match="being written by another process"):
        merge([tmp_path / "out", jobs["b"]], tmp_path / "out")


def test_a_domain_keeps_a_shard(jobs, tmp_path):
    with pytest.raises(InvalidInputError, match="no shard of domain 'target' would be left"):
        merge([jobs["a"]], tmp_path / "out", without=[name_of(jobs["a"])])
    assert not (tmp_path / "out").exists()


def test_no_stores_are_nothing_to_merge(tmp_path):
    with pytest.raises(InvalidInputError, match="needs at least one store"):
        merge([], tmp_path / "out")


# --- killed -------------------------------------------------------------------------------------------------------

KILLED_AT_A_RENAME = """
    import os, sys
    from pathlib import Path
    from dalr_stream.workflow.merge import merge
    left = int(sys.argv[1])
    os.fsync = lambda _: None
    for name in ("rename", "replace"):
        def dying(path, target, original=getattr(Path, name)):
            global left
            left -= path.name.startswith(".tmp-new-") and "zarr.json" not in path.name  # a whole record or manifest
            if left < 0:
                os._exit(9)
            return original(path, target)
        setattr(Path, name, dying)
    merge(sys.argv[3:], sys.argv[2])
"""


@pytest.mark.parametrize("renames", [0, 5, 8, 9, 10, 12])
def test_a_killed_merge_leaves_the_old_store_or_one_that_says_so_and_can_be_repeated(jobs, tmp_path, contents, renames):
    """Eight records of shards, the manifest, four sums: a kill before each kind, and between two."""
    expected = contents(merge([jobs["a"], jobs["b"]], tmp_path / "expected").root)
    out = merge([jobs["a"]], tmp_path / "out").root
    script = textwrap.dedent(KILLED_AT_A_RENAME)
    arguments = [str(path) for path in (renames, out, jobs["a"], jobs["b"])]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)  # noqa: S603
    assert done.returncode == 9
    committed = set(Manifest.read(out).domains["target"].shards)
    assert committed in ({name_of(jobs["a"])}, set(map(name_of, (jobs["a"], jobs["b"]))))
    known = [root for root in jobs.values() if name_of(root) in committed]
    try:
        found = SolvedStore.open(out).moments("target", "0").count
        assert found == sum(ds.accumulate(root, domain="target")["0"].count for root in known)
    except (FingerprintMismatchError, StoreNotFoundError):
        assert renames in (9, 10)  # the sums of this layer were being replaced
    assert len(committed) == (1 if renames <= 8 else 2)
    merge([jobs["a"], jobs["b"]], out)
    assert contents(out) == expected


def test_a_first_merge_that_was_killed_is_taken_up(jobs, tmp_path, contents):
    expected = contents(merge([jobs["a"], jobs["b"]], tmp_path / "expected").root)
    script = textwrap.dedent(KILLED_AT_A_RENAME)
    for renames in (0, 1, 2, 7):
        out = tmp_path / f"out{renames}"
        arguments = [str(path) for path in (renames, out, jobs["a"], jobs["b"])]
        subprocess.run([sys.executable, "-c", script, *arguments], check=False)  # noqa: S603
        with pytest.raises(StoreNotFoundError):
            ds.accumulate(out, domain="target")
        merge([jobs["b"], jobs["a"]], out)
        assert contents(out) == expected


def test_stores_that_watch_outputs_are_verified_and_merged(tmp_path):
    model = network()
    watched = ds.select_layers(model, ["0"]) + ds.select_layers(model, ["0"], side="outputs")
    for part in (0, 1):
        ds.capture(model, batches(40, part), watched, tmp_path / f"{part}", domain="target")
        ds.accumulate(tmp_path / f"{part}", domain="target")
    verify_store(tmp_path / "0").require()
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "sum")
    verify_store(tmp_path / "sum").require()
    assert sorted(path.name for path in (tmp_path / "sum" / "weights").iterdir()) == ["0"]
