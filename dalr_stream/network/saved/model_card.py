"""The page beside a saved network: before and after, what was done, where it came from, how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from dalr_stream.network.surgery.compress import parameter_bytes, parameter_count
from dalr_stream.network.surgery.origin import Origin
from dalr_stream.network.surgery.plan import SurgeryPlan
from dalr_stream.network.surgery.refusal import is_pretrained

_LONG = "configuration"
"""The run file, every default filled in: it is in `plan.json`, a page of it would hide the rest."""
_ALONE = (
    "It is a network of its class at other sizes, which the configuration says: `from_pretrained` loads it without "
    "dalr_stream."
)


def readme(
    model: nn.Module, origin: Origin, plan: SurgeryPlan, provenance: Mapping[str, Any], *, ordinary: bool = False
) -> str:
    """Return the page as Markdown; `ordinary` is a network that its library loads alone."""
    sections = [
        "# A compressed network",
        "\n".join(_totals(model, origin)),
        "\n".join(_layers(model, origin)),
        "What was done, in this order:",
        "\n".join(f"- `{json.dumps(step)}`" for step in plan.to_plain()) or "- nothing: the network is as it was",
        *_came_from(provenance),
        "## To load it",
        _loading(model),
        _ALONE if ordinary else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _totals(model: nn.Module, origin: Origin) -> Iterator[str]:
    yield "| whole network | before | after | left |"
    yield "|---|---:|---:|---:|"
    pairs = {
        "parameters": (origin.parameters, parameter_count(model)),
        "bytes": (origin.bytes, parameter_bytes(model)),
    }
    for what, (before, after) in pairs.items():
        yield f"| {what} | {before:,} | {after:,} | {after / max(before, 1):.1%} |"


def _layers(model: nn.Module, origin: Origin) -> Iterator[str]:
    """Yield a line for each layer that is not what it was; shapes are outputs x inputs."""
    for number, change in enumerate(origin.changes(model)):
        if not number:
            yield "| layer | outputs x inputs | became | parameters before | after |"
            yield "|---|---|---|---:|---:|"
        shape = f"{change.before.outputs} x {change.before.inputs}"
        yield f"| {change.layer} | {shape} | {change.after} | {change.before.parameters:,} | {change.parameters:,} |"


def _came_from(provenance: Mapping[str, Any]) -> Iterator[str]:
    if provenance:
        yield "## Where it came from"
        yield "\n".join(_bullets({key: value for key, value in provenance.items() if key != _LONG}))
    if _LONG in provenance:
        yield "The run file with every default filled in is in `plan.json`."


def _bullets(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{indent}- {key}:"
            yield from _bullets(value, indent + "  ")
        else:
            yield f"{indent}- {key}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}"


def _loading(model: nn.Module) -> str:
    """Return what to type; a transformers model is built from the configuration beside the weights."""
    if not is_pretrained(model):
        return (
            "Build the original network and let the plan reshape it:\n\n"
            "    import dalr_stream as ds\n"
            "    model = ds.load(this_folder, build=your_function)"
        )
    name = type(model).__name__
    return (
        "The configuration is beside the weights, and the original's weights are not needed:\n\n"
        "    import dalr_stream as ds\n"
        f"    from transformers import AutoConfig, {name}\n"
        f"    model = ds.load(this_folder, build=lambda: {name}(AutoConfig.from_pretrained(this_folder)))"
    )
