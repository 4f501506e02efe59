"""What must not be added up is refused, and nothing that is there is touched."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from capture_jobs import (
    LAYERS,
    PARTS,
    batches,
    folded_directly,
    job,
    name_of,
    network,
)

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.stores.merge import merge
from dalr_stream.errors import (
    DalrStreamError,
    FingerprintMismatchError,
    InvalidInputError,
    StoreDamagedError,
    StoreError,
    StoreLockedError,
    StoreNotFoundError,
)
from dalr_stream.storage.lock import locked
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.records.moments import load_moments, moments_path, save_moments
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.records.weights import weights_path

pytestmark = pytest.mark.usefixtures("unsynced", "jobs_as_they_were")


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
        ds.capture(model, data, ds.network.select_layers(model, LAYERS), root, domain="target")
        accumulate_stored(root, domain="target")
        return [root], {}

    def not_accumulated(self):
        return [job(self.folder / "x", "b", accumulate=False)], {}

    def stale_moments(self):
        root = shutil.copytree(self.jobs["b"], self.folder / "x")
        path = moments_path(root, "target", "2", "training")
        save_moments(path, load_moments(path), {**provenance_of(path), "rows": "others"})
        return [root], {}

    def incomplete(self):
        root = shutil.copytree(self.jobs["b"], self.folder / "x")
        manifest = Manifest.read(root)
        record = dataclasses.replace(manifest.domains["target"], complete=False)
        manifest.with_domain("target", record).write(root)
        return [root], {}

    def damaged_moments(self):
        root = shutil.copytree(self.jobs["b"], self.folder / "x")
        _damaged(moments_path(root, "target", "2", "heldout") / "scatter" / "c" / "0" / "0")
        return [root], {}

    def damaged_weights(self):
        root = shutil.copytree(self.jobs["b"], self.folder / "x")
        _damaged(weights_path(root, "2") / "weight" / "c" / "0" / "0")
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
    Refused.absent: (StoreNotFoundError, "there is nothing at"),
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


@pytest.mark.parametrize("kind", [str, Path])
def test_a_store_in_place_of_a_list_of_them_is_told(jobs, tmp_path, kind):
    with pytest.raises(InvalidInputError, match=r"stores must be a list, got '.*': merge\(\['.*a.zarr'\], into\)"):
        merge(kind(jobs["a"]), tmp_path / "new")


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
    InTheWay.a_folder_of_other_things: "is not a store: it is not empty and has no manifest",
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
