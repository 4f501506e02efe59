"""Tables of the papers by one command: what it sets in the run files for each data set and row, and what it prints."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
from test_vgg19_data import VGG19_FOLDER

from dalr_stream.workflow.runfile.config import load_config


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(VGG19_FOLDER)
    module = importlib.import_module("vgg19_tables")
    twice = SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: 42_200_000)])
    monkeypatch.setattr(module, "build", lambda **_: twice)
    return module


@pytest.mark.parametrize("table", ["whole", "joint"])
@pytest.mark.parametrize(
    ("name", "dataset", "classes", "validation"),
    [("birds", "cub", 200, 600), ("flowers", "flowers", 102, "official"), ("actions", "actions", 40, 400)],
)
def test_every_loader_gets_the_data_set(tables, table, name, dataset, classes, validation):
    config = load_config(VGG19_FOLDER / f"{table}.toml", tables.settings(table, name))
    pictures = config.network.train_options["pictures"]
    loaders = [pictures, config.domains["target"].options, config.domains["test"].options, config.evaluate.options]
    loaders += [section.options for section in (config.finetune, config.validation) if section is not None]
    assert {options["dataset"] for options in loaders} == {dataset}
    assert config.network.options["classes"] == classes
    if table == "joint":
        assert config.validation.options["validation"] == pictures["validation"] == validation
        assert config.domains["target"].options["validation"] == validation
        assert pictures["boxes"] == (name == "birds")
    else:
        assert "validation" not in pictures


def test_rows_of_table_6_leave_the_published_parameters(tables):
    rows = tables.rows("whole", tables.TARGETS["birds"])
    asked = {
        label: load_config(VGG19_FOLDER / "whole.toml", [*tables.settings("whole", "birds"), *settings])
        for label, settings in rows.items()
    }
    assert [config.compress.share for config in asked.values()] == [0.146, 0.5, 0.5]
    assert [config.compress.rule for config in asked.values()] == ["network"] * 3
    assert [list(config.network.layers) for config in asked.values()][1:] == [["classifier.[03]"]] * 2
    assert [config.finetune.dropout for config in asked.values()] == [False, False, True]
    assert len({config.run.output for config in asked.values()}) == 1


def test_ours_stand_beside_the_published_numbers(tables, monkeypatch):
    def opened(*_, **__):
        sizes = [("uncompressed", 100, 0.5), ("compressed: x", 20, 0.25), ("fine-tuned: x", 20, 0.4)]
        results = SimpleNamespace(
            sizes=[SimpleNamespace(label=label, parameters=n, score=score) for label, n, score in sizes],
            baseline_score=0.5,
        )
        return SimpleNamespace(all=lambda: None, results=results)

    monkeypatch.setattr(tables.ds, "Run", SimpleNamespace(open=opened))
    lines = list(tables.measured("whole", "actions", []))
    assert "| MoMaSP, conv and fc | 20 | 25.00 | 20,400,000 | 69.2 |" in lines
    assert "| MoMaSP, fc, fine-tuned | 20 | 40.00 | 21,100,000 | 69.0 |" in lines
    assert "| DALR, fc | 20 | 25.00 | 21,100,000 | 57.7 |" in lines
    assert "| joint | 20 | 25.00 | 29.85 % of fc6 and fc7 | 69.43 |" in list(tables.measured("joint", "actions", []))
