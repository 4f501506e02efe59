"""The page of everything on disk: what stores and runs hold is declared, as it is declared, and described."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_reference import generator

import dalr_stream as ds
from dalr_stream.storage import schema
from dalr_stream.storage.checkpoints import Checkpoints, SavedFold
from dalr_stream.storage.records.moments import branch_path
from dalr_stream.workflow.run import Run

SEALED = {"digest", *schema.SEALS}


def pattern(path):
    return re.compile(re.sub(r"<\w+>", r"[^/]+", path))


def declared(path, name):
    """The arrays that a record may have, by name; those of layers and lanes by a pattern."""
    return [spec for one in schema.RECORDS if pattern(one.path).fullmatch(path) for spec in one.arrays
            if pattern(spec.name).fullmatch(name)]  # fmt: skip


def undeclared(root):
    """Yield every array of a store, and every value of a record, that no line of the page stands for."""
    for file in Path(root).rglob("zarr.json"):
        document, path = json.loads(file.read_bytes()), file.parent
        if document["node_type"] == "array":
            where = path.parent.relative_to(root).as_posix()
            names = [name.replace(path.name.partition("@sample")[0], "<layer>") for name in document["dimension_names"]]
            specs = declared(where, path.name)
            if not any(list(spec.dimensions) in (names, document["dimension_names"]) for spec in specs):
                yield path
            elif not any(document["data_type"] in spec.dtype or "that of" in spec.dtype for spec in specs):
                yield path, document["data_type"]
        elif "provenance" in document["attributes"]:
            kinds = [one for one in schema.RECORDS if pattern(one.path).fullmatch(path.relative_to(root).as_posix())]
            yield from document["attributes"].keys() - SEALED - {name for one in kinds for name in one.values}


def test_every_array_of_a_store_is_on_the_page(finished_file):
    assert not list(undeclared(finished_file.parent / "out" / "store.zarr"))


def test_those_of_merged_stores_and_of_rows_of_unequal_numbers_too(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(6, 4)).eval()
    for number in range(2):
        rows = ds.RowRule(mask=lambda batch: batch[..., 0] > 0, prove=False)
        store = tmp_path / f"{number}.zarr"
        ds.capture(model, [torch.randn(5, 7, 6)], ds.watch(model, ["0"]), store, domain="target", rows=rows)
        ds.accumulate(store, domain="target")
    assert (store / "activations/target/0@sample").is_dir()
    ds.merge([tmp_path / f"{number}.zarr" for number in range(2)], tmp_path / "sum.zarr")
    for root in (store, tmp_path / "sum.zarr"):
        assert not list(undeclared(root))


def test_sums_of_many_shards_too():
    path = branch_path(Path(), "target", "ab", "fc1", "training").as_posix()
    assert [one.arrays for one in schema.RECORDS if pattern(one.path).fullmatch(path)] == [schema.MOMENTS]


def test_what_is_not_declared_is_noticed(finished_file):
    store = finished_file.parent / "out" / "store.zarr"
    (mean,) = store.glob("moments/target/fc1/training/mean/zarr.json")
    mean.parent.rename(mean.parent.with_name("median"))
    assert list(undeclared(store)) == [mean.parent.with_name("median")]


def test_compressed_blocks_are_on_the_page(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3)).eval()
    choices = {"1": ds.LayerChoice("dalr_anchored_affine", 1)}
    ds.compress_sequentially(model, [torch.randn(9, 6)], choices, store=tmp_path, blocks=True)
    assert [path.name for path in tmp_path.glob("blocks/block-*/network/*/zarr.json")]
    assert not list(undeclared(tmp_path))


def test_checkpoints_are_on_the_page(tmp_path):
    pending = {"pending": np.zeros((2, 3)), "pending_sample": np.zeros(2, np.int64)}
    Checkpoints(tmp_path, "target", "fc1", {}).save("0", SavedFold(pending=pending))
    assert not list(undeclared(tmp_path))


def test_every_file_of_a_run_is_on_the_page(finished_file):
    names = {name.rstrip("/") for name, *_ in generator().RUN_FOLDER}
    assert {path.name for path in (finished_file.parent / "out").iterdir()} <= names
    project = Run.open(finished_file).project
    paths = [value for value in vars(project).values() if isinstance(value, Path)]
    assert {path.name for path in paths if path.parent == project.output} <= names


@pytest.mark.parametrize("kind", generator().MANIFEST.values(), ids=lambda kind: kind.__name__)
def test_every_field_of_the_manifest_says_what_it_means(kind):
    meanings = generator().field_meanings(kind)
    assert meanings
    assert all(meanings.values()), f"{kind.__name__}: write a string under each field"
