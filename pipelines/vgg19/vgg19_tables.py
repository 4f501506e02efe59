"""One command for a table of the papers on one data set: MoMaSP's Table 6 (`whole`), DALR's Table 10 (`joint`).

    python pipelines/vgg19/vgg19_tables.py whole birds
    python pipelines/vgg19/vgg19_tables.py joint flowers --set network.device=cuda

Runs `whole.toml` or `joint.toml` with what each data set and each row of the table asks for, and prints ours beside the
published numbers. Rows share an output folder, so the network is fine-tuned once; its report is that of the last row.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dalr_stream as ds
from vgg19_network import build

HERE = Path(__file__).resolve().parent
PARAMETERS = 21.1e6
"""That the rows of Table 6 without convolutions leave; what share that is depends on the classes."""
FC = 'network.layers=["classifier.[03]"]'


@dataclass(frozen=True, slots=True)
class Target:
    """What the run files say of a data set."""

    dataset: str
    classes: int
    validation: int | str
    boxes: bool = False


TARGETS = {
    "birds": Target("cub", 200, 600, boxes=True),
    "flowers": Target("flowers", 102, "official"),
    "actions": Target("actions", 40, 400),
}


def rows(table: str, target: Target) -> dict[str, list[str]]:
    """Return what each row of the table sets, by the row's label in the file of published numbers."""
    if table == "joint":
        return {"": []}
    with torch.device("meta"):  # counted, not filled
        network = build(classes=target.classes)
    share = PARAMETERS / sum(p.numel() for p in network.parameters())
    fc = [FC, f"compress.network={share}"]
    dalr = ['solve.methods=["dalr_published"]', "compress.method=dalr_published", "finetune.dropout=true"]
    return {"MoMaSP, conv and fc": [], "MoMaSP, fc": fc, "DALR, fc": [*fc, *dalr]}


def settings(table: str, name: str) -> list[str]:
    """Return what the run file sets for a data set: wherever it names one, and its classes."""
    plain, target = tomllib.loads((HERE / f"{table}.toml").read_text(encoding="utf-8")), TARGETS[name]
    asked = [f"network.options.classes={target.classes}", f'run.output="../../runs/vgg19-{table}-{name}"']
    asked.append(f'run.name="VGG19 on {name}: {table}"')
    for key, options in _tables(plain):
        if "dataset" in options:
            asked.append(f'{key}.dataset="{target.dataset}"')
        if "validation" in options:
            asked.append(f"{key}.validation={target.validation}")
        if "boxes" in options:
            asked.append(f"{key}.boxes={str(target.boxes).lower()}")
    return asked


def _tables(plain: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every table of a run file with its key."""
    for key, value in plain.items():
        if isinstance(value, dict):
            inner = f"{place}{key}"
            yield inner, value
            yield from _tables(value, f"{inner}.")


def measured(table: str, name: str, more: Sequence[str]) -> Iterator[str]:
    """Run each row and yield its lines: parameters left, accuracy before and after fine-tuning, and as published."""
    yield "| network | parameters | accuracy (%) | published parameters | published accuracy (%) |"
    yield "|---|---:|---:|---:|---:|"
    for label, asked in rows(table, TARGETS[name]).items():
        run = ds.Run.open(HERE / f"{table}.toml", set=[*settings(table, name), *asked, *more])
        run.all()
        printed = _published(table, name, label)
        for size in run.results.sizes[1:]:
            kind = "fine-tuned" if size.label.startswith("fine-tuned") else ""
            theirs = " | ".join(printed.get(kind, ("", "")))
            words = ", ".join(word for word in (label or table, kind) if word)
            yield f"| {words} | {size.parameters:,} | {100 * size.score:.2f} | {theirs} |"
    yield f"| uncompressed | {run.results.sizes[0].parameters:,} | {100 * run.results.baseline_score:.2f} | | |"


def _published(table: str, name: str, label: str) -> dict[str, tuple[str, str]]:
    """Return the printed parameters, or share of the layers, and accuracy of a row, by "" and "fine-tuned"."""
    found = {}
    for printed in tomllib.loads((HERE / "published" / f"{table}.toml").read_text(encoding="utf-8"))["networks"]:
        for row in printed["rows"]:
            left, accuracy = row["values"][0], row["values"][-1]
            if table == "joint" and row["label"].startswith(f"{name}:"):
                found[""] = (f"{left} % of fc6 and fc7", str(accuracy))
            elif table != "joint" and printed["title"].endswith(name) and row["label"].startswith(label):
                kind = row["label"].removeprefix(label).strip(", ")
                found |= {kind: (f"{left:,.0f}", str(accuracy))} if kind in {"", "fine-tuned"} else {}
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", choices=("whole", "joint"))
    parser.add_argument("target", choices=tuple(TARGETS))
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    for line in measured(asked.table, asked.target, asked.more):
        print(line, flush=True)


if __name__ == "__main__":
    main()
