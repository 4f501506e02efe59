"""Docstrings of public names: every parameter, result and field is described, and every example runs as it stands."""

import dataclasses
import doctest
import enum
import importlib
import inspect
import itertools
import re

import pytest

import dalr_stream
from dalr_stream import errors

PACKAGES = ("dalr_stream", "dalr_stream.network", "dalr_stream.numerics")
SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)
ENTRY = re.compile(r"^\*{0,2}\w.*$", re.MULTILINE)


def public():
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            yield f"{package}.{name}", getattr(module, name)
    for name, value in vars(errors).items():
        if inspect.isclass(value) and name not in dalr_stream.__all__:
            yield f"dalr_stream.errors.{name}", value


PUBLIC = dict(public())
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


def sections(text):
    """Return the text under each heading of a docstring."""
    parts = SECTION.split(inspect.cleandoc(text))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def described(section):
    """Return the names that a section describes; one without a description under it is none."""
    lines = section.strip("\n").splitlines()
    entries = [
        line for line, below in itertools.pairwise([*lines, ""]) if ENTRY.match(line) and below.startswith("    ")
    ]
    return [name.strip() for entry in entries for name in entry.split(" : ")[0].split(",")]


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def undescribed(function, text):
    """Return what a function's docstring leaves out."""
    found = sections(text)
    lacking = [name for name in parameters(function) if name not in described(found.get("Parameters", ""))]
    lacking += [name for name in described(found.get("Parameters", "")) if name not in parameters(function)]
    if inspect.signature(function).return_annotation not in (None, "None") and not found.keys() & {"Returns", "Yields"}:
        lacking.append("Returns")
    if ">>>" not in found.get("Examples", ""):
        lacking.append("Examples")
    return lacking


def fields(value):
    """Return the names of a class's public fields, or members."""
    if issubclass(value, enum.Enum):
        return list(value.__members__)
    if not dataclasses.is_dataclass(value):
        return []
    return [field.name for field in dataclasses.fields(value) if not field.name.startswith("_")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_describes_its_parameters_and_result_and_has_an_example(name):
    assert undescribed(FUNCTIONS[name], FUNCTIONS[name].__doc__) == []


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_describes_its_fields_or_what_it_is_made_with(name):
    value = CLASSES[name]
    found = sections(value.__doc__)
    assert described(found.get("Attributes", "")) == fields(value)
    if not fields(value) and "__init__" in vars(value):
        found |= sections(value.__init__.__doc__ or "")
        assert described(found.get("Parameters", "")) == parameters(value.__init__)


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_of_a_public_class_has_a_docstring(name):
    methods = {key: value for key, value in vars(CLASSES[name]).items() if not key.startswith("_")}
    made = {key: value for key, value in methods.items() if isinstance(value, property | classmethod | staticmethod)}
    made |= {key: value for key, value in methods.items() if inspect.isfunction(value)}
    assert [key for key, value in made.items() if not value.__doc__] == []


def examples(value):
    """Return the examples of a function, or of a class and its methods, which begin with nothing imported."""
    found = doctest.DocTestFinder(exclude_empty=True).find(value, globs={})
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", [name for name, value in (FUNCTIONS | CLASSES).items() if examples(value)])
def test_the_examples_run_as_they_stand(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = []
    for test in examples(PUBLIC[name]):
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=output.append)
        assert result.failed == 0, "".join(output)


def test_what_is_left_out_is_found():
    def one(given, left, *, more):
        """Do nothing.

        Parameters
        ----------
        given
            It is.
        left
        gone
            It is not.
        """

    assert undescribed(one, one.__doc__) == ["left", "more", "gone", "Returns", "Examples"]
    assert described("\na, b : int\n    Two.\nc\n") == ["a", "b"]
