"""The manifest is the truth: it comes back whole, or is known to be spoilt."""

import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import flipped, unsynced

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.rows.streams import Side
from dalr_stream.numerics.rows.tiling import tile_rows
from dalr_stream.numerics.statistics.channels import ChannelReader, ChannelSpan
from dalr_stream.storage.batches import Batches, BatchRecord
from dalr_stream.storage.contents import DomainRecord, LayerRecord, NetworkRecord, RowsRecord
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.manifest import FILE, Manifest

signs = st.characters(codec="utf-8", exclude_characters="/\\\0")
names = st.text(signs, min_size=1, max_size=8).filter(lambda name: name not in {".", ".."})
words = names.filter(lambda name: " " not in name)
counts = st.integers(0, 2**40)
readers = st.builds(ChannelReader, st.builds(ChannelSpan, names, counts, st.integers(1, 2**40)), names, counts, counts)
reading = st.lists(readers, max_size=3).map(tuple)
widths = st.integers(1, 2**24)
sides = st.sampled_from([side.value for side in Side])
layer_records = st.builds(LayerRecord, names, widths, widths, names, reading, counts, names, sides)


@st.composite
def rows_records(draw):
    """Rows that are so many tiles, or were folded and not kept."""
    features, digests = draw(widths), tuple(draw(st.lists(st.integers(0, 2**32 - 1), max_size=4)))
    last = draw(st.integers(1, tile_rows(features)))
    rows = (len(digests) - 1) * tile_rows(features) + last if digests else draw(counts)
    return RowsRecord(features, draw(st.sampled_from(["float32", "float64"])), draw(st.integers(0, 9)), rows, digests)


captured = {
    "complete": st.booleans(),
    "batches": st.lists(st.builds(BatchRecord, counts, words), max_size=4).map(Batches.of),
    "layers": st.dictionaries(names, rows_records(), max_size=3),
    "choice": names,
}
shards = st.dictionaries(names, st.builds(DomainRecord, **captured), max_size=2)
domain_records = st.builds(DomainRecord, **captured, shards=shards)


@st.composite
def manifests(draw):
    domains = draw(st.dictionaries(names, domain_records, max_size=3))
    watched = {name: draw(layer_records) for domain in domains.values() for name in domain.layers}
    layers = {**draw(st.dictionaries(names, layer_records, max_size=3)), **watched}
    return Manifest(NetworkRecord(draw(names), layers), domains)


EXAMPLE = Manifest(
    NetworkRecord(
        "f" * 64, {"fc6": LayerRecord("Linear", 3, 5, "w", (ChannelReader(ChannelSpan("fc7"), "fc7", 0, 4),), 4)}
    ),
    {"target": DomainRecord(True, Batches.of([BatchRecord(4, "d")]), {"fc6": RowsRecord(3, "float32", 1, 4, (77,))})},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with unsynced():
        yield tmp_path_factory.mktemp("manifest")


@given(manifests())
def test_a_manifest_comes_back_as_it_was_written(folder, manifest):
    manifest.write(folder)
    assert Manifest.read(folder) == manifest
    assert [path.name for path in folder.iterdir()] == [FILE]


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    EXAMPLE.write(tmp_path)
    path = tmp_path / FILE
    whole = path.read_bytes()
    for position in range(len(whole)):
        flipped(path, position, bit=position % 8)
        with pytest.raises(StoreDamagedError, match=r"manifest.json' is damaged"):
            Manifest.read(tmp_path)
        path.write_bytes(whole)
    assert Manifest.read(tmp_path) == EXAMPLE


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"digest": 1}', b"\xff\xfe"])
def test_what_is_no_manifest_is_damage(tmp_path, data):
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(StoreDamagedError, match="cannot be read as a manifest"):
        Manifest.read(tmp_path)


def _sealed(folder, body):
    (folder / FILE).write_text(json.dumps({"digest": digest_of(body), "manifest": body}))


def _plain():
    body = json.loads(json.dumps(EXAMPLE.plain()))
    return body["domains"]["target"]["layers"]["fc6"], body


@pytest.mark.parametrize("name", ["../../victim", "..", ".", "", "a/b", "/etc", "a\\b", "a\0b"])
@pytest.mark.parametrize("where", ["network", "reader", "domain", "layer", "shard", "reads", "shared"])
def test_a_name_that_leads_out_of_the_store_is_refused(tmp_path, where, name):
    rows, body = _plain()
    target = body["domains"]["target"]
    if where == "network":
        body["network"]["layers"][name] = body["network"]["layers"]["fc6"]
    elif where == "reader":
        body["network"]["layers"]["fc6"]["readers"][0]["stream"] = name
    elif where == "domain":
        body["domains"][name] = target
    elif where == "layer":
        target["layers"][name] = rows
    elif where == "shard":
        target["shards"][name] = target | {"shards": {}}
    elif where == "reads":
        target["shared"][name] = "fc6"
    else:
        target["shared"]["fc7"] = name
    _sealed(tmp_path, body)
    with pytest.raises(StoreDamagedError, match=r"manifest.json' is damaged: .*must not be empty, '\.' or '\.\.'"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("key", ["network", "domains", "schema"])
def test_a_sealed_manifest_that_lacks_a_part_is_damage(tmp_path, key):
    _, body = _plain()
    del body[key]
    _sealed(tmp_path, body)
    with pytest.raises(StoreDamagedError, match="does not describe a store"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("body", [[1], 1, "x", {"schema": 4, "network": {}}, {"schema": 4, "network": 1}])
def test_a_sealed_body_of_another_kind_is_damage(tmp_path, body):
    _sealed(tmp_path, body)
    with pytest.raises(StoreDamagedError, match="does not describe a store"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("network", "layers"), [1]),
        (("network", "layers", "fc6", "inputs"), "3"),
        (("domains", "target", "complete"), 1),
        (("domains", "target", "batches"), None),
        (("domains", "target", "batches"), [{"samples": 4}]),
        (("domains", "target", "batches"), [{"samples": "4", "digest": "d"}]),
        (("domains", "target", "batches", "samples"), [[4, 2]]),
        (("domains", "target", "batches", "samples"), [[4, -1]]),
        (("domains", "target", "batches", "samples"), [4]),
        (("domains", "target", "batches", "digests"), "d d"),
        (("domains", "target", "batches", "digests"), " d"),
        (("domains", "target", "batches", "digests"), 7),
        (("domains", "target", "layers", "fc6", "rows"), 4.0),
        (("domains", "target", "layers", "fc6", "tile_digests"), 7),
        (("domains", "target", "layers", "fc6"), {}),
    ],
)
def test_a_sealed_value_of_another_kind_is_damage(tmp_path, path, value):
    _, body = _plain()
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    _sealed(tmp_path, body)
    with pytest.raises(StoreDamagedError, match=r"manifest.json' is damaged: it does not describe a store"):
        Manifest.read(tmp_path)


def test_every_cut_of_a_manifest_is_found(tmp_path):
    EXAMPLE.write(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for length in range(len(whole)):
        (tmp_path / FILE).write_bytes(whole[:length])
        with pytest.raises(StoreDamagedError):
            Manifest.read(tmp_path)


def test_a_store_of_another_schema_is_refused_and_both_versions_named(tmp_path):
    EXAMPLE.write(tmp_path)
    body = json.loads((tmp_path / FILE).read_text())["manifest"] | {"schema": 99}
    (tmp_path / FILE).write_text(json.dumps({"digest": digest_of(body), "manifest": body}))
    with pytest.raises(FingerprintMismatchError, match="schema version 99, this version reads 4"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("nothing", "there is nothing at"),
        ("file/inside", "there is nothing at"),
        ("file", "is not a dalr_stream store"),
    ],
)
def test_where_there_is_no_store_none_is_read(tmp_path, root, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreNotFoundError, match=f"{message}.*: name the folder of a store, or capture to it first"):
        Manifest.read(tmp_path / root)


def test_rows_are_the_same_when_their_digests_are():
    def domain(choice="every row", **change):
        rows = RowsRecord(**{"features": 3, "dtype": "float32", "rows_per_sample": 1, "rows": 4, **change})
        return DomainRecord(True, Batches.of([BatchRecord(4, "d")]), {"fc6": rows}, choice=choice).fingerprint("fc6")

    assert domain(tile_digests=(1, 2)) == domain(tile_digests=(1, 2))
    assert domain(tile_digests=(1, 2), choice="some rows") != domain(tile_digests=(1, 2))
    others = [domain(tile_digests=(1, 3)), domain(dtype="float64"), domain(rows=5), domain(rows_per_sample=2)]
    assert len({domain(tile_digests=(1, 2)), *others}) == 5


@given(st.dictionaries(names, counts, min_size=2, max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(plain):
    assert digest_of(plain) == digest_of(dict(reversed(plain.items())))
    assert digest_of(plain) != digest_of({**plain, next(iter(plain)): -1})


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 40)), max_size=4))
def test_a_sample_is_committed_when_every_layer_has_all_of_its_rows(layers):
    records = {str(i): RowsRecord(3, "float32", per, rows) for i, (per, rows) in enumerate(layers)}
    committed = DomainRecord(layers=records).committed_samples
    assert all(committed * per <= rows for per, rows in layers)
    assert not layers or any((committed + 1) * per > rows for per, rows in layers)
    assert layers or committed == 0


@given(domain_records)
def test_a_fingerprint_is_the_digest_of_rows_batches_and_choice(record):
    """Written out: `fingerprint` digests the batches once for all layers, and must come to the same."""
    for layer, rows in record.layers.items() if not record.shards else ():
        batches = [batch.digest for batch in record.batches]
        known = {name: value for name, value in dataclasses.asdict(rows).items() if name != "samples"}  # of the batches
        plain = {"rows": known, "batches": batches, "choice": record.choice}
        assert record.fingerprint(layer) == digest_of(plain)


def test_a_record_can_be_sent_to_another_process_after_its_fingerprint_was_taken():
    record = EXAMPLE.domains["target"]
    before = record.fingerprint("fc6")
    sent = pickle.loads(pickle.dumps(record))  # noqa: S301  # our own
    assert sent == record
    assert sent.fingerprint("fc6") == before


def with_heads(**changes):
    layout = HeadLayout("q", "k", "v", "o", heads=4, groups=2, size=3)
    layers = {name: LayerRecord("Linear", 12, 12, "0") for name in "qkv"}
    return NetworkRecord("f", {**layers, "o": LayerRecord("Linear", 12, 12, "0", heads=layout, **changes)})


def test_the_heads_of_an_attention_come_back_and_stores_from_before_have_none(tmp_path):
    (tmp_path / "s").mkdir()
    manifest = Manifest(with_heads())
    manifest.write(tmp_path / "s")
    assert Manifest.read(tmp_path / "s") == manifest
    plain = manifest.plain()
    for layer in plain["network"]["layers"].values():
        del layer["heads"], layer["no_heads"]
    (tmp_path / "s" / FILE).write_text(json.dumps({"digest": digest_of(plain), "manifest": plain}))
    assert all(layer.heads is None for layer in Manifest.read(tmp_path / "s").network.layers.values())


@pytest.mark.parametrize("heads", [{"heads": 3}, {"size": 0}, {"keys": "elsewhere"}, {"keys": "../k"}, {"more": 1}])
def test_heads_that_are_none_are_damage(tmp_path, heads):
    plain = Manifest(with_heads()).plain()
    plain["network"]["layers"]["o"]["heads"] |= heads
    (tmp_path / FILE).write_text(json.dumps({"digest": digest_of(plain), "manifest": plain}))
    with pytest.raises(StoreDamagedError, match="does not describe a store"):
        Manifest.read(tmp_path)
