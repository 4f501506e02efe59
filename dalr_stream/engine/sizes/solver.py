"""Layers solved by the methods that apply to each, in memory: what menus are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dalr_stream.engine.sizes.forms import SolvedLayer
from dalr_stream.engine.sizes.menus import Menu
from dalr_stream.engine.solve import solve_heads, solve_low_rank, solve_selection
from dalr_stream.network.structure.recorded import Groups
from dalr_stream.network.surgery.compress import Replacement
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.lowrank.ridge import Ridge
from dalr_stream.numerics.methods import Family, Method
from dalr_stream.numerics.sizes.shape import LayerShape

PLAIN = (Method.DALR_ANCHORED_AFFINE, Method.SPECTRAL, Method.HEADS)
WEIGHTED = (Method.DALR_WEIGHTED_AFFINE, Method.SPECTRAL_WEIGHTED, Method.HEADS_WEIGHTED)
WEIGHTED_IN_WORDS = "weighted by gradients"


@dataclass(frozen=True, slots=True)
class Solver:
    """Solves the layers by the methods that apply to each."""

    layers: Mapping[str, Layer]
    attentions: Mapping[str, HeadLayout]
    structure: Groups | None
    ridge: Ridge | float

    def menu(self, methods: Sequence[Method], multiple_of: int, words: str = "") -> Menu:
        """Return what each layer loses at every size, by these methods."""
        solved = {name: self._solved(name, methods) for name in self.layers}
        return Menu.of(_Solved(solved), solved, self.structure, multiple_of, words)

    def _solved(self, name: str, methods: Sequence[Method]) -> SolvedLayer:
        """Solve by the methods, or by the plain one of the family where what the loss feels is not known."""
        layer, heads = self.layers[name], self.attentions.get(name)
        attention = {} if heads is None else {one: self.layers[one] for one in heads.layers}
        felt = {
            Family.LOW_RANK: layer.gradients is not None,
            Family.SELECTION: _reads_are_felt(layer),
            Family.HEADS: heads is not None and all(attention[one].gradients is not None for one in heads.felt),
        }
        plain = {method.family: method for method in PLAIN}
        known = [plain[one.family] if one.needs_gradients and not felt[one.family] else one for one in methods]
        by_family = {method.family: method for method in known}
        low_rank, selection, head = map(by_family.get, (Family.LOW_RANK, Family.SELECTION, Family.HEADS))
        selectable = self.structure is not None and layer.nodes is not None
        return SolvedLayer(
            _shape(layer, heads, attention),
            None if low_rank is None else solve_low_rank(layer, low_rank, self.ridge),
            layer.known_inputs,
            solve_selection(layer, selection) if selection is not None and selectable else None,
            gradients=layer.gradients,
            readers=layer.readers,
            heads=None if head is None or heads is None else solve_heads(attention, heads, head),
            attention=attention,
        )


def _shape(layer: Layer, heads: HeadLayout | None, attention: Mapping[str, Layer]) -> LayerShape:
    """Return the layer's shape, with the size of the heads that it reads."""
    shape = LayerShape(layer.weight.shape[0], layer.weight.shape[1], groups=layer.groups)
    if heads is None:
        return shape
    beside = sum(attention[name].weight.size // heads.size for name in heads.layers[:-1])
    return replace(shape, head_size=heads.size, head_weights=beside, head_step=heads.step)


def is_felt(layer: Layer) -> bool:
    """Tell whether gradients are known, by the layer's own outputs or by those of the layers that read its nodes."""
    return layer.gradients is not None or _reads_are_felt(layer)


def _reads_are_felt(layer: Layer) -> bool:
    return bool(layer.readers) and all(reader.gradients is not None for reader in layer.readers)


@dataclass(frozen=True, slots=True)
class _Solved:
    """Solutions in memory."""

    layers: Mapping[str, SolvedLayer]

    def method(self, layer: str, family: Family) -> Method:
        return self.layers[layer].method(family)

    def at_size(self, layer: str, family: Family, size: int) -> Replacement:
        return self.layers[layer].at_size(family, size, layer)
