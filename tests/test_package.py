import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import dalr_stream as ds


def in_a_fresh_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_neither_torch_nor_dask_nor_zarr():
    in_a_fresh_process("import sys, dalr_stream\nassert not {'torch', 'dask', 'zarr', 'numpy'} & set(sys.modules)")


def test_no_module_of_numerics_loads_torch_dask_or_zarr():
    in_a_fresh_process("""
import importlib, pkgutil, sys
import dalr_stream.numerics as ring
modules = [module.name for module in pkgutil.walk_packages(ring.__path__, "dalr_stream.numerics.")]
assert len(modules) > 30, modules
for name in modules:
    importlib.import_module(name)
heavy = {"torch", "dask", "distributed", "zarr", "matplotlib", "pydantic", "rich", "typer"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
""")


def test_every_public_name_can_be_used():
    for name in ds.__all__:
        assert getattr(ds, name) is not None
    assert set(ds.__all__) <= set(dir(ds))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'svd'"):
        ds.svd  # noqa: B018


def imports_of(path, modules):
    """Return which of `modules` a file imports, also inside functions and for type checkers alone."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            imported |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    return imported & modules


def test_no_file_imports_another_in_a_circle():
    root = Path(ds.__file__).parent
    dotted = {path: ".".join(path.relative_to(root.parent).with_suffix("").parts) for path in root.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for path, name in dotted.items()}
    graph = {name: imports_of(path, set(paths)) - {name} for name, path in paths.items()}
    assert "dalr_stream.numerics.layer" in graph["dalr_stream.numerics.lowrank.solvers"]  # imports are seen at all
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError lists the files
