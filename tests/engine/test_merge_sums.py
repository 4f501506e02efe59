"""The sum of many shards is a tree over their names; its branches are kept, so one more shard reads few others."""

import hashlib
import shutil

import numpy as np
import pytest
from commands import forked
from oracles import sum_by_names
from test_merge_killed import dying_merge

from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.stores import sums
from dalr_stream.engine.stores.merge import merge
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.engine.stores.sums import Branch
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.numerics.rows.tiling import RowBatch
from dalr_stream.numerics.statistics.folding import SplitMoments
from dalr_stream.numerics.statistics.merging import merge_all
from dalr_stream.storage.contents import LayerRecord, NetworkRecord
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.records import moments
from dalr_stream.storage.records.moments import load_moments, moments_path, save_moments, shard_path
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.storage.records.weights import save_layer_weights
from dalr_stream.storage.schema import PARTS
from dalr_stream.storage.store import ActivationStore
from dalr_stream.storage.writer import open_writer

pytestmark = pytest.mark.usefixtures("unsynced")
COUNT = 9


@pytest.fixture(scope="module", autouse=True)
def _small_branches():
    """Two shards at once, and a record for a branch of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "MOST_AT_ONCE", 2)
        patch.setattr(sums, "KEPT_FROM", 2)
        yield


def captured(root, seed):
    """A store of 12 rows, whose weights are zeros."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((2, 3), np.float32)
    digest = hashlib.sha256(f"torch.float32{weight.shape}".encode() + weight.tobytes()).hexdigest()
    network = NetworkRecord("f" * 64, {"fc": LayerRecord("Linear", 3, 2, digest)})
    with open_writer(root, "t", network) as writer:
        save_layer_weights(root, "fc", weight, None, {})
        writer.write(RowBatch(12, f"{seed}", {"fc": rng.normal(1e3, 1, (12, 3)).astype(np.float32)}))
        writer.finish()
    accumulate_stored(root, domain="t")
    return root


@pytest.fixture(scope="module")
def stores(tmp_path_factory, _quick):
    folder = tmp_path_factory.mktemp("stores")
    return [captured(folder / str(seed), seed) for seed in range(COUNT)]


@pytest.fixture
def reads(monkeypatch):
    """Records that are read whole, as paths."""
    found, load = [], moments.load_record

    def counted(path, specs):
        if any(spec.name == "scatter" for spec in specs):
            found.append(path)
        return load(path, specs)

    monkeypatch.setattr(moments, "load_record", counted)
    return found


def domain_of(root):
    return ActivationStore(root).domain("t")


def shards_of(root):
    return {name: split_of(root, name) for name in domain_of(root).shards}


def split_of(root, name):
    return SplitMoments(*(load_moments(shard_path(root, "t", name, "fc", part)) for part in PARTS))


def total_of(root):
    return [load_moments(moments_path(root, "t", "fc", part)) for part in PARTS]


def branches_of(root):
    return sorted(path.name for path in (root / "sums" / "t").iterdir())


def test_the_sum_is_the_tree_written_out(stores, tmp_path):
    out = merge(stores, tmp_path / "out").root
    expected = sum_by_names(shards_of(out), most=2)
    for found, part in zip(total_of(out), PARTS, strict=True):
        assert found.same_bits(getattr(expected, part))
    assert branches_of(out)
    assert verify_store(out).findings == ()


def test_order_nesting_and_removal_do_not_matter_to_a_byte(stores, tmp_path, contents):
    expected = contents(merge(stores[:-1], tmp_path / "expected").root)
    mixed = [stores[number] for number in (5, 2, 7, 0, 3, 6, 1, 4)]
    assert contents(merge(mixed, tmp_path / "mixed").root) == expected
    one_by_one = tmp_path / "one"
    merge(mixed[:1], one_by_one)
    for store in mixed[1:]:
        merge([one_by_one, store], one_by_one)
        assert verify_store(one_by_one).findings == ()
    assert contents(one_by_one) == expected
    halves = [merge(half, tmp_path / f"half{len(half)}").root for half in (mixed[:3], mixed[3:])]
    assert contents(merge(halves, tmp_path / "nested").root) == expected
    whole = merge(stores, tmp_path / "whole").root
    last = domain_of(stores[-1]).shard_name
    assert contents(merge([whole], whole, without=[last]).root) == expected
    alone = merge([whole], tmp_path / "alone", without=list(shards_of(whole))[1:]).root
    assert not (alone / "sums").exists()


def test_one_more_shard_reads_few_of_the_others(stores, tmp_path, reads):
    """It reads the shards whose branch it joins; of other branches their sums, and none of their shards."""
    spared = 0
    for number, last in enumerate(stores[6:]):
        out = merge([store for store in stores if store != last], tmp_path / f"out{number}").root
        name, tree = domain_of(last).shard_name, Branch.of_store(out, "t", domain_of(out))
        reads.clear()
        merge([out, last], out)
        opened = {path.parts[-3] for path in reads if path.is_relative_to(out / "shards")}
        for branch in tree.parts:
            if branch.is_kept and not name.startswith(branch.beginning):
                assert not opened & set(branch.shards)
                spared += len(branch.shards)
    assert spared > 2


def test_nothing_of_a_store_that_is_there_is_read_to_take_a_shard_out_of_another_branch(stores, tmp_path, reads):
    out = merge(stores, tmp_path / "out").root
    (first, *_), tree = list(shards_of(out)), Branch.of_store(out, "t", domain_of(out))
    beside = {name for part in tree.parts if first in part.shards for name in part.shards}
    reads.clear()
    merge([out], out, without=[first])
    assert {path.parts[-3] for path in reads if path.is_relative_to(out / "shards")} <= beside | {
        name for part in tree.parts if len(part.shards) < 2 for name in part.shards
    }


def test_a_damaged_or_strange_branch_is_made_again(stores, tmp_path, contents):
    expected = contents(merge(stores, tmp_path / "expected").root)
    for change in (shutil.rmtree, _half_a_scatter, _of_other_rows, _by_another_rule):
        out = merge(stores[1:], tmp_path / change.__name__).root
        for beginning in branches_of(out):
            change(out / "sums" / "t" / beginning / "fc" / "training")
        merge([out, stores[0]], out)
        assert contents(out) == expected


def _half_a_scatter(path):
    chunk = next(file for file in sorted((path / "scatter" / "c").rglob("*")) if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9])


def _of_other_rows(path):
    save_moments(path, load_moments(path), {**provenance_of(path), "rows": "0" * 64})


def _by_another_rule(path):
    facts = provenance_of(path)
    save_moments(path, load_moments(path), {**facts, "rule": {**facts["rule"], "precision": "single"}})


def test_verify_finds_a_branch_that_is_not_the_sum_of_its_shards(stores, tmp_path):
    out = merge(stores, tmp_path / "out").root
    beginning = branches_of(out)[0]
    path = out / "sums" / "t" / beginning / "fc" / "training"
    save_moments(path, load_moments(path) + load_moments(path), provenance_of(path))
    (found,) = verify_store(out).findings
    assert str(found) == f"sums/t/{beginning}/fc/training: is not the sum of its shards: merge again"
    shutil.rmtree(path)
    _half_a_scatter(out / "sums" / "t" / beginning / "fc" / "heldout")
    assert any("array 'scatter' is damaged" in str(finding) for finding in verify_store(out).findings)


def test_a_damaged_shard_that_is_needed_is_found_before_anything_is_written(stores, tmp_path, contents):
    out = merge(stores[1:], tmp_path / "out").root
    shutil.rmtree(out / "sums")
    for name in shards_of(out):
        _half_a_scatter(shard_path(out, "t", name, "fc", "training"))
    before = contents(out)
    with pytest.raises(StoreDamagedError, match="array 'scatter' is damaged"):
        merge([out, stores[0]], out)
    assert contents(out) == before


def test_a_store_that_was_merged_in_one_row_is_whole_and_takes_another_shard(stores, tmp_path, contents):
    """Stores of schema 3: no branches, and the sum of more than 16 shards in the order of their names."""
    expected = contents(merge(stores, tmp_path / "expected").root)
    out = merge(stores[1:], tmp_path / "out").root
    shutil.rmtree(out / "sums")
    total = merge_all(shards_of(out).values())
    for part in PARTS:
        path = moments_path(out, "t", "fc", part)
        assert part != "training" or not load_moments(path).same_bits(total.training)
        save_moments(path, getattr(total, part), provenance_of(path))
    assert verify_store(out).findings == ()
    merge([out, stores[0]], out)
    assert contents(out) == expected


def dying_small(renames, out, stores, without):
    """Die as `dying_merge` does, with branches as small as here."""
    sums.MOST_AT_ONCE = sums.KEPT_FROM = 2
    dying_merge(renames, out, stores, without)


@pytest.mark.parametrize("renames", [1, 3, 4, 6, 9])
def test_a_killed_addition_goes_on_to_the_same_bytes(stores, tmp_path, contents, renames):
    """Two records of the shard, the manifest, two for each branch, two sums."""
    expected = contents(merge(stores, tmp_path / "expected").root)
    out = merge(stores[1:], tmp_path / "out").root
    forked(dying_small, renames, out, [out, stores[0]], ())
    try:
        found = StoreView.open(out).moments("t", "fc").count
        assert found == sum(shard.training.count for shard in shards_of(out).values())
    except (FingerprintMismatchError, StoreNotFoundError):
        assert len(Manifest.read(out).domains["t"].shards) == COUNT
    merge([out, stores[0]], out)
    assert contents(out) == expected
    assert verify_store(out).findings == ()
