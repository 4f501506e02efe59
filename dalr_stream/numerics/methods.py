"""The methods the package compares, by the names used in run files, stores and reports.

Two families: *low rank* methods replace a layer by a pair of factors and leave its neighbours alone; *selections*
keep some of a layer's nodes and shrink the next layer with it.
"""

from __future__ import annotations

from enum import StrEnum


class Family(StrEnum):
    """What a method does to the network."""

    LOW_RANK = "low_rank"
    SELECTION = "selection"


class Method(StrEnum):
    """One way to compress a layer. The value is its name in run files; `label` its name in print."""

    SVD = "svd"
    SVD_BC = "svd_bc"
    DALR_PUBLISHED = "dalr_published"
    DALR_PUBLISHED_BC = "dalr_published_bc"
    DALR_PUBLISHED_AFFINE = "dalr_published_affine"
    DALR_OPTIMAL = "dalr_optimal"
    DALR_OPTIMAL_AFFINE = "dalr_optimal_affine"
    DALR_ANCHORED = "dalr_anchored"
    DALR_ANCHORED_AFFINE = "dalr_anchored_affine"
    PRUNE_MEAN = "prune_mean"
    PRUNE_MAX = "prune_max"
    SPECTRAL = "spectral"
    MOMASP_NODE = "momasp_node"
    MOMASP_SUBSET = "momasp_subset"

    @property
    def label(self) -> str:
        """The name in print."""
        return _LABELS[self]

    @property
    def family(self) -> Family:
        """Low rank or selection."""
        return Family.SELECTION if self in _SELECTIONS else Family.LOW_RANK

    @property
    def keeps_weight(self) -> bool:
        """Whether the product at full rank is the weight itself, so that W_k = U_k U_k'W."""
        return self in _KEEP_WEIGHT


_SELECTIONS = frozenset(
    {Method.PRUNE_MEAN, Method.PRUNE_MAX, Method.SPECTRAL, Method.MOMASP_NODE, Method.MOMASP_SUBSET}
)
_KEEP_WEIGHT = frozenset({Method.SVD, Method.SVD_BC, Method.DALR_ANCHORED, Method.DALR_ANCHORED_AFFINE})
_LABELS = {
    Method.SVD: "SVD",
    Method.SVD_BC: "SVD + BC",
    Method.DALR_PUBLISHED: "DALR published",
    Method.DALR_PUBLISHED_BC: "DALR published + BC",
    Method.DALR_PUBLISHED_AFFINE: "DALR published, affine",
    Method.DALR_OPTIMAL: "DALR optimal",
    Method.DALR_OPTIMAL_AFFINE: "DALR optimal, affine",
    Method.DALR_ANCHORED: "DALR anchored",
    Method.DALR_ANCHORED_AFFINE: "DALR anchored, affine",
    Method.PRUNE_MEAN: "pruning (mean)",
    Method.PRUNE_MAX: "pruning (max)",
    Method.SPECTRAL: "spectral pruning",
    Method.MOMASP_NODE: "MoMaSP (node)",
    Method.MOMASP_SUBSET: "MoMaSP (subset)",
}
