"""A budget that is a share of the whole network's parameters, not of those of the layers to compress.

Sizes are shared out over weights. What no size changes counts once, whole: layers that are not compressed, biases,
normalisations. Layers that read nodes of a compressed one get narrower with it, so they are counted, though they have
no size of their own: the classifier behind a selection. Biases that go with nodes are not: the network that comes out
may have a few parameters fewer than the budget allows, never more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dalr_stream.engine.sizes.forms import SolvedLayer
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.errors import ConfigError, UnsupportedLayerError
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import layer_of
from dalr_stream.network.surgery.compress import parameter_count
from dalr_stream.numerics.sizes.shape import LayerShape
from dalr_stream.numerics.sizes.sized_layer import as_they_are, cost
from dalr_stream.workflow.runfile.project import Project


def neighbours(project: Project, layers: Collection[str], selected: Iterable[str]) -> dict[str, SolvedLayer]:
    """Return what gets narrower with the nodes of the layers `selected`, and is none of `layers`."""
    found, groups = dict[str, SolvedLayer](), project.groups
    for name in selected:
        assert groups is not None  # noqa: S101  # for the type checker: nodes were selected
        try:
            group = groups.group_of(name)
        except UnsupportedLayerError:
            continue
        others = (*group.producers, *(reader.span.layer for reader in group.readers))
        found |= {other: SolvedLayer(_shape(project, other)) for other in others if other not in layers}
    return found


def share_of_counted(project: Project, menu: Menu) -> float:
    """Return the share of the counted weights that leaves the network the share of its parameters that is asked for.

    Raises ConfigError where what is not counted is more than that already.
    """
    section, total = project.config.compress, parameter_count(project.recorded)
    whole = [layer.unchanged for layer in menu.forms]
    counted = float(cost(whole, as_they_are(whole)))
    left = section.share * total - (total - counted)
    if left <= 0:
        raise ConfigError(
            f"compress.network = {section.share:.2%}: what is not compressed is {1 - counted / total:.2%} of the "
            "network's parameters already: raise it, or add to network.layers"
        )
    return left / counted


def _shape(project: Project, layer: str) -> LayerShape:
    outputs, inputs = matrix_of(layer_of(project.recorded, layer)).shape
    return LayerShape(outputs, inputs)
