"""What lies under another record's name is found by verifying and by loading, though every digest agrees."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_into
from dalr_stream.engine.stores.merge import merge
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import DalrStreamError, StoreDamagedError
from dalr_stream.numerics.methods import Method
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.metadata import read_metadata, write_metadata
from dalr_stream.storage.records.catalogue import records
from dalr_stream.storage.records.moments import load_moments, save_moments
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.records.solutions import load_solution, save_solution
from dalr_stream.storage.records.weights import is_weight_of, load_layer_weights, save_layer_weights
from dalr_stream.storage.removal import delete_activations
from dalr_stream.storage.store import ActivationStore

SVD = Method.SVD
LAYERS = ("0", "2")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Two layers of one shape on two domains, folded without keeping rows: nothing but a name tells them apart."""
    root = tmp_path_factory.mktemp("identity") / "store"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)).eval()
        rows = torch.randn(10, 20, 5)
    layers = ds.network.select_layers(model, ["*"])
    for domain, part in (("target", rows), ("source", rows + 1)):
        accumulate_into(root, model, list(part), layers, domain=domain)
    for layer in LAYERS:
        save_solution(root, layer, ds.truncated_svd(*load_layer_weights(root, layer)), {})
    return root


@pytest.fixture
def store(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "store")


@pytest.fixture
def merged(store, tmp_path):
    merge([store], tmp_path / "merged")
    return tmp_path / "merged"


def swap(root, one, other):
    (root / one).rename(root / "aside")
    (root / other).rename(root / one)
    (root / "aside").rename(root / other)


def nameless(root):
    """Make every record of the store one of 0.1, which carries no name."""
    for path in records(root):
        document = read_metadata(path)
        attributes = {key: value for key, value in document["attributes"].items() if key != "name"}
        write_metadata(path, {**document, "attributes": attributes})


def resealed(root, change):
    """Change the manifest and give it a true digest, as a hand or another program might."""
    file = root / "manifest.json"
    body = json.loads(file.read_text())["manifest"]
    change(body)
    file.write_text(json.dumps({"digest": digest_of(body), "manifest": body}))


def load(root, path):
    """Load a record as the solvers do."""
    kind, *names = path.split("/")
    view = StoreView.open(root)
    if kind == "moments":
        return view.moments(*names)
    if kind == "weights":
        return view.layer(names[0], "target", None)
    if kind == "solutions":
        return view.solutions(names[0], [SVD])
    return load_moments(root / path)


SWAPS = [
    ("moments/target/2/training", "moments/target/2/heldout"),
    ("moments/target/0/training", "moments/target/2/training"),
    ("moments/target/2/training", "moments/source/2/training"),
    ("moments/target/2", "moments/source/2"),
    ("moments/target", "moments/source"),
    ("weights/0", "weights/2"),
    ("solutions/0", "solutions/2"),
    ("solutions/0/svd", "solutions/2/svd"),
]


@pytest.mark.parametrize(("one", "other"), SWAPS)
def test_records_that_changed_places_are_named_by_verifying_and_by_loading(store, one, other):
    assert verify_store(store).findings == ()
    swap(store, one, other)
    problems = [str(finding) for finding in verify_store(store).findings]
    for place in (one, other):
        assert any(text.startswith(place) and "moved here" in text for text in problems), problems
    whole = next(path for path in records(store) if path.is_relative_to(store / one))
    with pytest.raises(StoreDamagedError, match=r"holds the record of .* moved here; delete the record's folder"):
        load(store, whole.relative_to(store).as_posix())


@pytest.mark.parametrize("part", ["training", "heldout"])
def test_a_copy_of_another_record_is_named(store, part):
    shutil.rmtree(store / f"moments/target/2/{part}")
    shutil.copytree(store / f"moments/target/0/{part}", store / f"moments/target/2/{part}")
    assert any("moved here" in str(finding) for finding in verify_store(store).findings)
    with pytest.raises(StoreDamagedError, match=f"the record of 'target/0/{part}', moved here"):
        StoreView.open(store).moments("target", "2", part)


def test_shards_of_a_merged_store_that_changed_places_are_named(merged):
    domains = Manifest.read(merged).domains
    (one,), (other,) = (domains[name].shards for name in ("target", "source"))
    assert verify_store(merged).findings == ()
    swap(merged, f"shards/target/{one}/2/training", f"shards/source/{other}/2/training")
    problems = "; ".join(map(str, verify_store(merged).findings))
    assert f"shards/target/{one}/2/training" in problems
    assert "moved here" in problems


def test_weights_that_changed_places_in_a_store_of_0_1_are_known_by_the_manifests_digest(store):
    nameless(store)
    assert verify_store(store).findings == ()
    swap(store, "weights/0", "weights/2")
    problems = [str(finding) for finding in verify_store(store).findings]
    assert [text.partition(":")[0] for text in problems] == ["weights/0", "weights/2"]
    with pytest.raises(StoreDamagedError, match="is not the one of layer '2' that the store was made from"):
        StoreView.open(store).layer("2", "target", None)


def test_records_of_0_1_are_read_as_they_were(store):
    before = [load_moments(store / "moments/target/2/training"), load_solution(store, "2", SVD)]
    nameless(store)
    moments, solution = load_moments(store / "moments/target/2/training"), load_solution(store, "2", SVD)
    assert moments.same_bits(before[0])
    assert np.array_equal(solution.down, before[1].down)


def test_a_store_is_whole_wherever_it_is_moved(store, tmp_path):
    for place in ("moments", "weights/target/2", "shards"):
        (tmp_path / "elsewhere" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(store, tmp_path / "elsewhere" / place)
        assert verify_store(tmp_path / "elsewhere" / place).findings == ()


def test_the_same_weight_with_another_bias_is_not_the_layer(store):
    """Its digests agree with itself, and so does its name: a record of a network that was tuned in its biases alone."""
    weight, bias = load_layer_weights(store, "0")
    save_layer_weights(store, "0", weight, bias + 1, provenance_of(store / "weights/0"))
    with pytest.raises(StoreDamagedError, match=r"bias \(5,\) is not the one of layer '0' that the store was"):
        _ = load(store, "weights/0").weight
    assert [finding.part for finding in verify_store(store).findings] == ["weights/0"]


def test_a_bias_where_the_network_has_none_is_named(tmp_path):
    layers = ds.network.select_layers(model := nn.Sequential(nn.Linear(5, 4, bias=False)).eval(), ["*"])
    ds.capture(model, [torch.randn(30, 5)], layers, tmp_path, domain="target")
    weight, bias = load_layer_weights(tmp_path, "0", Manifest.read(tmp_path).network.layers["0"])
    save_layer_weights(tmp_path, "0", weight, bias + 1, provenance_of(tmp_path / "weights/0"))
    assert [finding.part for finding in verify_store(tmp_path).findings] == ["weights/0"]


def test_stores_that_know_no_digest_of_biases_and_no_samples_of_rows_are_read(tmp_path):
    model = nn.Sequential(nn.Linear(5, 4)).eval()
    layers = ds.network.select_layers(model, ["*"])
    ds.capture(model, [torch.randn(3, 7, 5)], layers, tmp_path, domain="target")
    moments = ds.accumulate(tmp_path)["0"].inputs

    def older(body):
        del body["network"]["layers"]["0"]["bias_digest"]
        assert body["domains"]["target"]["layers"]["0"].pop("samples") == 3

    resealed(tmp_path, older)
    assert verify_store(tmp_path).findings == ()
    assert ds.open_store(tmp_path).layer("0").inputs.same_bits(moments)
    assert ds.accumulate(tmp_path)["0"].inputs.same_bits(moments)


def test_a_layer_that_saw_fewer_samples_of_other_lengths_is_named(tmp_path):
    """Any sample may have no row, so the rows alone do not show it."""
    layers = ds.network.select_layers(model := nn.Sequential(nn.Linear(5, 4)).eval(), ["*"])
    ds.capture(model, [torch.randn(3, length, 5) for length in (4, 6)], layers, tmp_path, domain="target")

    def behind(body):
        body["domains"]["target"]["layers"]["0"]["samples"] = 5

    resealed(tmp_path, behind)
    with pytest.raises(StoreDamagedError, match=r"layer '0' on 'target' has 30 rows, which are not those of 6 samples"):
        ds.accumulate(tmp_path)
    assert [finding.part for finding in verify_store(tmp_path).findings] == ["target/0"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_every_precision_are_known_by_the_manifests_digest(tmp_path, dtype):
    model = nn.Sequential(nn.Linear(5, 4)).to(dtype).eval()
    with torch.no_grad():
        ds.capture(
            model, [torch.randn(30, 5, dtype=dtype)], ds.network.select_layers(model, ["*"]), tmp_path, domain="t"
        )
    record = Manifest.read(tmp_path).network.layers["0"]
    weight, bias = load_layer_weights(tmp_path, "0", record)
    digest = record.weight_digest
    assert is_weight_of(weight, digest)
    assert is_weight_of(bias, record.bias_digest)
    assert not is_weight_of(np.nextafter(weight, 2), digest)
    assert not is_weight_of(weight.T, digest)


def test_moments_of_another_width_are_named(store):
    path = store / "moments/target/2/training"
    made_from = read_metadata(path)["attributes"]["provenance"]
    save_moments(path, ds.Moments.of(np.random.default_rng(0).normal(size=(20, 4))), made_from)
    assert any("has 4 features" in str(finding) for finding in verify_store(store).findings)
    with pytest.raises(StoreDamagedError, match="has 4 features, the rows of '2' on 'target' have 5: accumulate again"):
        StoreView.open(store).moments("target", "2")


def test_a_link_is_a_finding(store):
    shutil.move(store / "weights/2", store.parent / "outside")
    (store / "weights/2").symlink_to(store.parent / "outside")
    assert any(
        str(finding) == "weights/2: is a link: put what it leads to in its place"
        for finding in verify_store(store).findings
    )


def edited(*keys, value):
    def change(body):
        for key in keys[:-1]:
            body = body[key]
        body[keys[-1]] = value

    return change


ROWS = ("domains", "target", "layers", "2")
IMPOSSIBLE = {
    "rows -5": edited(*ROWS, "rows", value=-5),
    "rows as text": edited(*ROWS, "rows", value="12"),
    "rows as a fraction": edited(*ROWS, "rows", value=12.5),
    "rows beyond 64 bits": edited(*ROWS, "rows", value=10**30),
    "10^12 features": edited(*ROWS, "features", value=10**12),
    "no features": edited(*ROWS, "features", value=0),
    "a width that is a truth": edited(*ROWS, "features", value=True),
    "complex rows": edited(*ROWS, "dtype", value="complex64"),
    "rows of objects": edited(*ROWS, "dtype", value="object"),
    "rows of nothing known": edited(*ROWS, "dtype", value="float31"),
    "-1 rows a sample": edited(*ROWS, "rows_per_sample", value=-1),
    "digests of 7 tiles": edited(*ROWS, "tile_digests", value=[1] * 7),
    "a digest of 33 bits": edited(*ROWS, "tile_digests", value=[2**32]),
    "a batch of -1": edited("domains", "target", "batches", value=[{"samples": -1, "digest": "a"}]),
    "samples as text": edited("domains", "target", "batches", value=[{"samples": "12", "digest": "a"}]),
    "complete as text": edited("domains", "target", "complete", value="yes"),
    "a layer of no network": edited("network", "layers", "2", value=None),
    "-3 inputs": edited("network", "layers", "2", "inputs", value=-3),
    "10^12 outputs": edited("network", "layers", "2", "outputs", value=10**12),
    "an unknown side": edited("network", "layers", "2", "side", value="underside"),
    "a side that is a number": edited("network", "layers", "2", "side", value=3),
    "rows of a layer that is not there": edited("domains", "target", "shared", value={"4": "9"}),
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_manifest_of_impossible_values_is_damaged_at_once(store, change):
    resealed(store, change)
    with pytest.raises(StoreDamagedError, match=r"manifest\.json' is damaged: it does not describe a store"):
        Manifest.read(store)
    assert any("does not describe a store" in str(finding) for finding in verify_store(store).findings)


def test_a_domain_has_no_layer_that_the_network_lacks(store):
    def change(body):
        del body["network"]["layers"]["2"]

    resealed(store, change)
    with pytest.raises(StoreDamagedError, match="a domain has rows of '2', which the network does not have"):
        Manifest.read(store)


@pytest.mark.parametrize("count", ["12", -1, 1.0, None, True, 10**30])
@pytest.mark.parametrize("key", ["count", "samples"])
def test_moments_of_an_impossible_count_are_damaged(store, key, count):
    path = store / "moments/target/2/training"
    document = read_metadata(path)
    write_metadata(path, {**document, "attributes": {**document["attributes"], key: count}})
    with pytest.raises(StoreDamagedError, match="holds no moments"):
        load_moments(path)
    assert any(f"{path}' holds no moments" in str(finding) for finding in verify_store(store).findings)
    assert "target" in repr(ActivationStore(store))


RECORDS = ("weights/0", "moments/target/2/training", "solutions/0/svd")
FOLDERS = (*RECORDS, "weights", "weights/0/weight", "moments/target")
ANOTHER = [(path, other) for path in RECORDS for other in FOLDERS if path != other]


@pytest.mark.parametrize(("path", "other"), ANOTHER)
@pytest.mark.parametrize("change", [nameless, lambda _root: None], ids=["of 0.1", "named"])
def test_a_folder_of_another_kind_in_the_place_of_a_record_is_damage(store, tmp_path, path, other, change):
    change(store)
    shutil.copytree(store / other, tmp_path / "other")
    shutil.rmtree(store / path)
    shutil.copytree(tmp_path / "other", store / path)
    assert any(f"{store / path}'" in str(finding) for finding in verify_store(store).findings)


@pytest.mark.parametrize("change", ["no tiles", "half of the rows"])
def test_rows_that_cannot_be_those_of_the_samples_are_not_folded(tmp_path, change):
    model = nn.Sequential(nn.Linear(5, 4)).eval()
    opened = ds.capture(
        model, list(torch.randn(4, 30, 5)), ds.network.select_layers(model, ["*"]), tmp_path, domain="t"
    )
    record = opened.manifest.domains["t"]
    changes = {"no tiles": {"tile_digests": ()}, "half of the rows": {"rows": 60}}
    rows = dataclasses.replace(record.layers["0"], **changes[change])
    opened.manifest.with_domain("t", dataclasses.replace(record, layers={"0": rows})).write(tmp_path)
    with pytest.raises(StoreDamagedError, match="capture the domain again"):
        ds.accumulate(tmp_path, domain="t")


def test_a_merge_refuses_weights_that_changed_places(store, tmp_path):
    nameless(store)
    swap(store, "weights/0", "weights/2")
    with pytest.raises(DalrStreamError, match="is not the one of layer"):
        merge([store], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_deleted_activations_are_no_finding(store):
    delete_activations(store)
    assert verify_store(store).findings == ()
