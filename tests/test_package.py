import subprocess
import sys

import pytest

import dalr_stream as ds


def in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_neither_torch_nor_dask_nor_zarr():
    in_a_fresh_process("import sys, dalr_stream\nassert not {'torch', 'dask', 'zarr', 'numpy'} & set(sys.modules)")


def test_the_solvers_load_neither_torch_nor_dask_nor_zarr():
    modules = [
        "moments",
        "rank_k",
        "folding",
        "psd",
        "solution",
        "lowrank",
        "selection",
        "budget",
        "methods",
        "allocation",
    ]
    imports = "\n".join(f"import dalr_stream.numerics.{name}" for name in modules)
    heavy = "{'torch', 'dask', 'zarr', 'matplotlib', 'pydantic'}"
    in_a_fresh_process(f"import sys\n{imports}\nassert not {heavy} & set(sys.modules)")


def test_every_public_name_can_be_used():
    for name in ds.__all__:
        assert getattr(ds, name) is not None
    assert set(ds.__all__) <= set(dir(ds))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'svd'"):
        ds.svd  # noqa: B018
