"""What is public: the names of the stubs and the errors; old names say the new ones, our pipelines need no others."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import dalr_stream as ds
from dalr_stream import errors
from dalr_stream._renamed import RENAMED

RINGS = {"errors", "network", "numerics"}
PIPELINES = Path(__file__).parents[1] / "pipelines"
STUBS = {
    package: Path(importlib.import_module(package).__file__).with_suffix(".pyi")
    for package in (
        "dalr_stream",
        "dalr_stream.network",
        "dalr_stream.numerics",
    )
}
PUBLIC = {package: set(importlib.import_module(package).__all__) for package in STUBS}
PUBLIC["dalr_stream.errors"] = {name for name, value in vars(errors).items() if inspect.isclass(value)}


def listed():
    for package, stub in STUBS.items():
        for node in ast.parse(stub.read_text()).body:
            assert isinstance(node, ast.ImportFrom), (
                f"{stub}: a public name is a line 'from module import name as name'"
            )
            for alias in node.names:
                yield package, node.module, alias


NAMES = [pytest.param(*one, id=f"{one[0]}.{one[2].name}") for one in listed()]


@pytest.mark.parametrize(("package", "home", "alias"), NAMES)
def test_a_name_of_a_stub_is_public_and_listed_at_its_home(package, home, alias):
    assert alias.asname == alias.name
    module = importlib.import_module(package)
    value = getattr(module, alias.name)
    assert alias.name in module.__all__
    assert alias.name in dir(module)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__ == home
        assert value.__doc__


def test_no_name_is_listed_twice():
    names = [alias.name for package, _, alias in listed()]
    assert len(names) == len(set(names))


def test_no_public_name_hides_a_module():
    for package in STUBS:
        folder = Path(importlib.import_module(package).__file__).parent
        modules = {path.stem for path in folder.glob("*.py")}
        modules |= {path.parent.name for path in folder.glob("*/__init__.py")}
        rings = RINGS if package == "dalr_stream" else set()
        assert PUBLIC[package] & modules == rings


@pytest.mark.parametrize("name", RENAMED)
def test_a_name_of_the_last_release_works_and_says_what_it_is_now(name):
    with pytest.warns(DeprecationWarning, match=rf"^dalr_stream\.{name} is now .+; the old name works until 0\.3$"):
        value = getattr(ds, name)
    assert value is getattr(importlib.import_module(RENAMED[name].home), RENAMED[name].name)
    assert name not in ds.__all__
    use = RENAMED[name].use
    if use.isidentifier() or use.replace(".", "").isidentifier():
        found = ds
        for part in use.split(".")[1:]:
            found = getattr(found, part)
        assert found is value


class Uses(ast.NodeVisitor):
    """What a script takes from the package: `from dalr_stream.x import y`, `ds.y` and `ds.x.y`."""

    def __init__(self):
        self.found = set()

    def visit_Import(self, node):
        for alias in node.names:
            if alias.name.split(".")[0] == "dalr_stream":
                self.found.add((alias.name, None))

    def visit_ImportFrom(self, node):
        if (node.module or "").split(".")[0] == "dalr_stream":
            self.found |= {(node.module, alias.name) for alias in node.names}

    def visit_Attribute(self, node):
        whole, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            whole, root = [root.attr, *whole], root.value
        if isinstance(root, ast.Name) and root.id == "ds":
            ring = whole[0] in RINGS and len(whole) > 1
            self.found.add((f"dalr_stream.{whole[0]}", whole[1]) if ring else ("dalr_stream", whole[0]))
        self.generic_visit(node)


def used(script):
    uses = Uses()
    uses.visit(ast.parse(script))
    return uses.found


@pytest.mark.parametrize("path", sorted(PIPELINES.rglob("*.py")), ids=lambda path: str(path.relative_to(PIPELINES)))
def test_a_pipeline_takes_public_names_only(path):
    for module, name in used(path.read_text(encoding="utf-8")):
        assert module in PUBLIC, f"{module} is not public: name it in a stub, or do without"
        assert name is None or name in PUBLIC[module], f"{module}.{name} is not public"


def test_a_private_name_in_a_pipeline_would_be_found():
    script = "import dalr_stream as ds\nfrom dalr_stream.workflow.run import Run\nds.numerics.Side\nds.Moments.of(1)\n"
    assert used(script) == {
        ("dalr_stream", None),
        ("dalr_stream.workflow.run", "Run"),
        ("dalr_stream.numerics", "Side"),
        ("dalr_stream", "numerics"),
        ("dalr_stream", "Moments"),
    }
    assert "dalr_stream.workflow.run" not in PUBLIC
