"""Damage anywhere in a store is found by verifying and by reading, and named; never a wrong number, never a foreign
exception."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import StoreDamagedError, StoreError, StoreNotFoundError
from dalr_stream.numerics.methods import Method
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.records.catalogue import records
from dalr_stream.storage.records.moments import load_moments, save_moments
from dalr_stream.storage.records.solutions import load_solution, save_solution
from dalr_stream.storage.records.weights import load_layer_weights, save_layer_weights
from dalr_stream.storage.removal import delete_activations
from dalr_stream.storage.store import ActivationStore

POSITIONS = 1
"""Seeded positions a file besides its first and last byte; `make soak` takes ten times as many."""
MEANINGLESS_SHARE = 0.05
"""A zstd frame has bits that no decoder uses (one in its header, RFC 8878 3.1.1.1.1.3; some in the tables of a frame of
a few bytes): with one flipped the chunk decodes to the same bytes, its checksum and its digest agree, and there is
nothing to find. Such flips are allowed in chunks, up to this share, where all that is read is right to the bit."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A store with two domains, weights, moments of two parts and two solutions."""
    root = tmp_path_factory.mktemp("verified") / "store"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
        rows = torch.randn(40, 200, 5)
    layers = ds.network.select_layers(model, ["*"])
    for domain, part in (("target", rows), ("source", rows[:9])):
        ds.capture(model, part.split(7), layers, root, domain=domain)
        accumulate_stored(root, domain=domain, layers=["2"])
    moments = load_moments(root / "moments/target/2/training")
    save_solution(root, "2", ds.dalr(*load_layer_weights(root, "2"), moments), {"made_from": "these moments"})
    save_solution(root, "0", ds.spectral(moments), {})
    return root


@pytest.fixture
def store(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "store")


def everything(root):
    """Read all that a store holds, as the solvers and folds do."""
    opened, found = ActivationStore(root), {}
    for domain, record in opened.manifest.domains.items():
        for layer in record.layers:
            for tile in range(opened.tiles(domain, layer)):
                found[domain, layer, tile] = opened.read_tile(domain, layer, tile).rows
    for path in records(root):
        kind, *names = path.relative_to(root).parts
        if kind == "moments":
            moments = load_moments(path)
            found[path.relative_to(root)] = np.concatenate([moments.mean, moments.scatter.ravel(), moments.nonzero])
        elif kind == "weights":
            found[path.relative_to(root)] = load_layer_weights(root, names[0])[0]
        else:
            solution = load_solution(root, names[0], Method(names[1]))
            found[path.relative_to(root)] = solution.down if hasattr(solution, "down") else solution.order
    return found


def same(found, expected):
    return found.keys() == expected.keys() and all(np.array_equal(found[key], expected[key]) for key in expected)


def name_of(path, root):
    """Return what a message must name: the record, or layer and domain of a tile, or the file."""
    parts = path.relative_to(root).parts
    if parts[0] == "activations" and len(parts) > 3:
        layer = parts[2].removesuffix("@sample")  # which sample each row is of, beside the rows
        return [f"{parts[1]}/{layer}", f"layer '{layer}' on '{parts[1]}'"]
    depth = {"weights": 2, "moments": 4, "solutions": 3}.get(parts[0])
    return ["/".join(parts[:depth] if depth else parts)]


def files(root):
    return [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "writer.lock"]


def is_group_around_arrays(path, root):
    """Tell whether a file is the zarr.json of the root, of `activations` or of a domain.

    Their groups hold no number and no name that reading uses; only other zarr readers walk through them. So reading
    goes on without them and verifying names them.
    """
    parts = path.relative_to(root).parts
    return path.name == "zarr.json" and (len(parts) == 1 or (parts[0] == "activations" and len(parts) <= 3))


def means_nothing(root, path, expected):
    """Tell whether a chunk decodes to the very numbers it held."""
    return path.name.isdecimal() and not verify_store(root).findings and same(everything(root), expected)


def assert_found(root, path, expected):
    """The damage of `path` is named by verify_store, and reading raises, or, where it may, reads right."""
    found = verify_store(root)
    assert found.findings, f"{path} is damaged and was not found"
    said = "; ".join(map(str, found.findings))
    assert all(name in said for name in name_of(path, root)), said
    with pytest.raises(StoreDamagedError, match="findings, the first: "):
        found.require()
    if is_group_around_arrays(path, root):
        assert same(everything(root), expected)
        return
    with pytest.raises(StoreError) as caught:
        everything(root)
    assert str(root) in str(caught.value)
    assert all(name in str(caught.value) for name in name_of(path, root)[-1:])


def test_a_whole_store_has_no_findings_and_every_part_is_listed(store):
    found = verify_store(store)
    assert found.findings == ()
    found.require()
    assert "target/0: 8,000 rows in 2 tiles" in found.whole
    assert sum("whole" in line for line in found.whole) == len(records(store)) == 8


@pytest.mark.filterwarnings("default")  # zarr warns of some spoilt metadata before it fails
def test_a_flipped_bit_anywhere_is_found_and_named(store, soak):
    draw, expected, flips, nothing = random.Random(0), everything(store), 0, 0  # noqa: S311  # not secrets
    for path in files(store):
        whole = path.read_bytes()
        drawn = draw.sample(range(len(whole)), min(len(whole), POSITIONS * (10 if soak else 1)))
        for position in sorted({0, len(whole) - 1, *drawn}):
            bit = draw.randrange(8)
            data = bytearray(whole)
            data[position] ^= 1 << bit
            path.write_bytes(bytes(data))
            try:
                if means_nothing(store, path, expected):
                    nothing += 1
                else:
                    assert_found(store, path, expected)
            except BaseException as error:
                error.add_note(f"{path.relative_to(store)}: byte {position} of {len(whole)}, bit {bit}")
                raise
            flips += 1
        path.write_bytes(whole)
    assert flips > 200
    assert nothing <= MEANINGLESS_SHARE * flips
    assert same(everything(store), expected)
    assert verify_store(store).findings == ()


@pytest.mark.filterwarnings("default")
def test_a_missing_or_cut_file_is_found_and_named(store):
    expected = everything(store)
    for path in files(store):
        whole = path.read_bytes()
        for data in (None, whole[: len(whole) // 2]):
            if data is None:
                path.unlink()
            else:
                path.write_bytes(data)
            try:
                assert_found(store, path, expected)
            except BaseException as error:
                error.add_note(f"{path.relative_to(store)}: {'missing' if data is None else len(data)}")
                raise
        path.write_bytes(whole)
    assert verify_store(store).findings == ()


def test_all_damage_is_listed_at_once(store):
    for path in ("activations/target/0/c/0/0", "activations/target/0/c/1/0", "weights/2/bias/c/0", "zarr.json"):
        (store / path).write_bytes(b"")
    (store / "moments/source/2/heldout/zarr.json").unlink()
    found = verify_store(store)
    assert {finding.part for finding in found.findings} >= {
        "zarr.json", "target/0", "weights/2", "moments/source/2/heldout",
    }  # fmt: skip
    assert sum(finding.part == "target/0" for finding in found.findings) == 2
    assert "source/2: 1,800 rows in 1 tile" in found.whole


def test_a_store_without_its_manifest_still_has_its_records_checked(store):
    (store / "manifest.json").unlink()
    (store / "weights/0/weight/c/0/0").write_bytes(b"")
    assert [finding.part for finding in verify_store(store).findings] == ["manifest.json", "weights/0"]


def test_where_there_is_no_store_nothing_is_verified(tmp_path):
    with pytest.raises(StoreNotFoundError, match="capture to it first"):
        verify_store(tmp_path)


def test_deleted_activations_are_no_damage_and_lost_ones_are(store):
    shutil.rmtree(store / "activations/target/0/c")
    assert {str(finding.part) for finding in verify_store(store).findings} == {"target/0"}
    delete_activations(store)
    found = verify_store(store)
    assert found.findings == ()
    assert "target/0: 8,000 rows, not kept" in found.whole


def rewritten(store, change):
    """Write the manifest anew with its digest right and one thing in it changed: a bug, not damage."""
    plain = json.loads((store / "manifest.json").read_bytes())["manifest"]
    change(plain)
    from dalr_stream.storage import manifest

    manifest._manifest(plain).write(store)


def shorten(plain):
    rows = plain["domains"]["target"]["layers"]["2"]
    rows["rows"] = 4096
    rows["tile_digests"] = rows["tile_digests"][:1]


def test_a_layer_that_saw_fewer_samples_than_the_others_is_named(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    rows = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    ds.capture(model, rows.split(2500), ds.network.select_layers(model, ["*"]), tmp_path, domain="target")
    assert verify_store(tmp_path).findings == ()
    rewritten(tmp_path, shorten)
    assert [str(finding) for finding in verify_store(tmp_path).findings] == [
        "target/2: saw 4096 of 5000 samples in 4096 rows: capture the domain again"
    ]


def test_sequences_that_end_before_the_sample_that_the_manifest_names_are_named_and_not_read(store):
    rewritten(store, shorten)
    ends = "tile 0 of layer '2' on 'target' is damaged: it ends with rows of sample 20, its layer with those of 39"
    assert any(ends in str(finding) for finding in verify_store(store).findings)
    with pytest.raises(StoreDamagedError, match=ends):
        ActivationStore(store).read_tile("target", "2", 0)


def test_an_unfinished_capture_is_named_with_what_is_there(store):
    rewritten(store, lambda plain: plain["domains"]["target"].update(complete=False))
    # what is there of the last sequence need not be all of it
    assert "target: not complete, 39 samples are committed" in str(verify_store(store).findings[0])


def test_moments_of_other_rows_are_named_stale(store):
    def other_digest(plain):
        batches = plain["domains"]["source"]["batches"]
        batches["digests"] = "0" * 64 + batches["digests"][64:]

    rewritten(store, other_digest)
    stale = {finding.part for finding in verify_store(store).findings}
    assert stale == {"moments/source/2/training", "moments/source/2/heldout"}


def test_records_of_another_network_are_named_stale(store):
    rewritten(store, lambda plain: plain["network"].update(fingerprint="f" * 64))
    found = [finding for finding in verify_store(store).findings if "was made from the network" in finding.problem]
    assert {Path(finding.part).parts[0] for finding in found} == {"weights", "moments"}
    assert len(found) == 6


def test_two_parts_that_do_not_belong_together_and_lost_records_are_named(store):
    path = store / "moments/target/2/heldout"
    save_moments(path, load_moments(path), {"network": Manifest.read(store).network.fingerprint, "rows": "direct:1"})
    shutil.rmtree(store / "moments/source/2/heldout")
    shutil.rmtree(store / "weights/2")
    problems = [str(finding) for finding in verify_store(store).findings]
    assert any("by another rule than 'heldout' beside it" in problem for problem in problems)
    assert any("moments/source/2/training: its other part, 'heldout', is not there" in problem for problem in problems)
    assert any("weights/2: is not there" in problem for problem in problems)


def test_a_sealed_store_is_plain_zarr(store):
    group = zarr.open_group(store / "activations", mode="r")
    assert set(group["target"].array_keys()) == {"0", "0@sample", "2", "2@sample"}
    save_layer_weights(store, "9", np.ones((2, 3)), None, {})
    assert zarr.open_group(store / "weights/9", mode="r")["weight"].attrs["meaning"].startswith("W")
