"""The methods the package compares, by the names used in run files, stores and reports.

Three families: *low rank* methods replace a layer by a pair of factors and leave its neighbours alone; *selections*
keep some of a layer's nodes and shrink the next layer with it; *heads* shrink the four layers of an attention together.
One table says which options of `dalr` each of its names stands for, and one which form of MoMaSP; nobody else keeps
such a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.metric import Metric
from dalr_stream.numerics.options import parse_choice


class Family(StrEnum):
    """What a method does to the network.

    Attributes
    ----------
    LOW_RANK
        Replaces a layer by a pair of factors.
    SELECTION
        Keeps some of a layer's nodes, and shrinks the layers that read them.
    HEADS
        Gives the heads of an attention fewer dimensions, and so shrinks its four layers together; it goes by the name
        of the output layer.
    """

    LOW_RANK = "low_rank"
    SELECTION = "selection"
    HEADS = "attention"


class Variant(StrEnum):
    """Which rank-constrained regression `dalr` solves.

    Attributes
    ----------
    PUBLISHED
        The formulas of the DALR paper as printed.
    OPTIMAL
        The minimiser of Eq. 7, the regularised objective.
    ANCHORED
        Shrinks towards W: what the data leave undetermined stays as it is in W.
    WEIGHTED
        The same in the metric of the layer's output gradients: what the loss hardly feels may be wrong.
    """

    PUBLISHED = "published"
    OPTIMAL = "optimal"
    ANCHORED = "anchored"
    WEIGHTED = "weighted"

    @property
    def shrinks_to_weight(self) -> bool:
        """Whether the ridge draws towards W, so that few rows do no harm and full rank gives W back."""
        return self in (Variant.ANCHORED, Variant.WEIGHTED)


class Form(StrEnum):
    """Which regulariser of MoMaSP.

    Attributes
    ----------
    NODE
        Eq. 4, of a node alone.
    SUBSET
        Eq. 3, of the subset that the node would join.
    """

    NODE = "node"
    SUBSET = "subset"

    @property
    def method(self) -> Method:
        """MoMaSP with this regulariser."""
        return Method.MOMASP_NODE if self is Form.NODE else Method.MOMASP_SUBSET


@dataclass(frozen=True, slots=True)
class DalrOptions:
    """Which regression `dalr` solves, and about which centres."""

    variant: Variant
    affine: bool
    """Centred moments, and the bias that is best at each rank."""
    compensate_bias: bool = False
    """That bias on raw moments: published only."""

    @classmethod
    def of(cls, variant: Variant | str, *, affine: bool | None, compensate_bias: bool = False) -> DalrOptions:
        """Parse the options of `dalr`; raises InvalidInputError where they conflict."""
        parsed = parse_choice(Variant, variant, "variant")
        centred = parsed is not Variant.PUBLISHED if affine is None else affine
        if parsed is Variant.WEIGHTED and not centred:
            raise InvalidInputError("variant 'weighted' is affine, got affine=False: leave affine out")
        if compensate_bias and (centred or parsed is not Variant.PUBLISHED):
            raise InvalidInputError(
                f"compensate_bias goes with the published variant and affine=False, got variant={parsed.value!r}, "
                f"affine={centred}: affine=True is the optimal bias for any variant"
            )
        return cls(parsed, centred, compensate_bias)

    @property
    def method(self) -> Method:
        """The method they are the options of."""
        return _METHOD_OF[self]

    @property
    def adjusts_bias(self) -> bool:
        """Whether the bias depends on the rank."""
        return self.affine or self.compensate_bias


class Method(StrEnum):
    """One way to compress a layer. The value is its name in run files; `label` its name in print.

    Attributes
    ----------
    SVD
        Truncated SVD of the weight, which sees no data.
    SVD_BC
        Truncated SVD, with the bias that keeps the mean output.
    DALR_PUBLISHED
        DALR as printed in the paper.
    DALR_PUBLISHED_BC
        DALR as printed, with the compensated bias of Eq. 4.
    DALR_PUBLISHED_AFFINE
        DALR as printed, on centred moments, with the optimal bias.
    DALR_OPTIMAL
        The minimiser of Eq. 7, on raw moments.
    DALR_OPTIMAL_AFFINE
        The minimiser of Eq. 7 on centred moments, with the optimal bias.
    DALR_ANCHORED
        The regression that shrinks towards W, on raw moments.
    DALR_ANCHORED_AFFINE
        The regression that shrinks towards W on centred moments, with the optimal bias.
    DALR_WEIGHTED_AFFINE
        The same in the metric of the loss, from the moments of the layer's output gradients.
    PRUNE_MEAN
        Keep the nodes of the largest mean activation.
    PRUNE_MAX
        Keep the nodes of the largest activation.
    SPECTRAL
        Keep the nodes that explain the most of all nodes.
    SPECTRAL_READERS
        Keep the nodes from which the layers that read them can be given most of what they made of all.
    SPECTRAL_WEIGHTED
        The same weighted by what the loss feels of those layers' outputs.
    MOMASP_NODE
        Spectral pruning that prefers nodes which respond alike on two domains, each judged alone (Eq. 4).
    MOMASP_WEIGHTED
        The same, weighted as `spectral_weighted` is.
    MOMASP_SUBSET
        Spectral pruning that prefers nodes which respond alike on two domains, judged with those kept already (Eq. 3).
    HEADS
        Give the heads of an attention fewer dimensions, those that its scores and outputs lose least by.
    HEADS_WEIGHTED
        Those that the loss feels least.

    Examples
    --------
    >>> import dalr_stream as ds
    >>> method = ds.Method("dalr_anchored_affine")
    >>> method.label, method.family.value
    ('DALR anchored, affine', 'low_rank')
    """

    SVD = "svd"
    SVD_BC = "svd_bc"
    DALR_PUBLISHED = "dalr_published"
    DALR_PUBLISHED_BC = "dalr_published_bc"
    DALR_PUBLISHED_AFFINE = "dalr_published_affine"
    DALR_OPTIMAL = "dalr_optimal"
    DALR_OPTIMAL_AFFINE = "dalr_optimal_affine"
    DALR_ANCHORED = "dalr_anchored"
    DALR_ANCHORED_AFFINE = "dalr_anchored_affine"
    DALR_WEIGHTED_AFFINE = "dalr_weighted_affine"
    PRUNE_MEAN = "prune_mean"
    PRUNE_MAX = "prune_max"
    SPECTRAL = "spectral"
    SPECTRAL_READERS = "spectral_readers"
    SPECTRAL_WEIGHTED = "spectral_weighted"
    MOMASP_NODE = "momasp_node"
    MOMASP_WEIGHTED = "momasp_weighted"
    MOMASP_SUBSET = "momasp_subset"
    HEADS = "heads"
    HEADS_WEIGHTED = "heads_weighted"

    @property
    def label(self) -> str:
        """The name in print."""
        return _LABELS[self]

    @property
    def family(self) -> Family:
        """Low rank, selection or heads."""
        if self in (Method.HEADS, Method.HEADS_WEIGHTED):
            return Family.HEADS
        return Family.SELECTION if self in _SELECTIONS else Family.LOW_RANK

    @property
    def dalr_options(self) -> DalrOptions | None:
        """The options of `dalr` that the name stands for; None for other methods."""
        return _DALR.get(self)

    @property
    def takes_ridge(self) -> bool:
        """Whether a ridge changes its solutions."""
        return self in _DALR

    @property
    def form(self) -> Form | None:
        """The form of MoMaSP that the name stands for; None for other methods."""
        return _FORMS.get(self)

    @property
    def needs_source(self) -> bool:
        """Whether it compares the target with a source domain."""
        return self in _FORMS

    @property
    def restores(self) -> bool:
        """Whether it is a selection that puts back the nodes that go, from those that stay."""
        return self.family is Family.SELECTION and self not in _PRUNING

    @property
    def needs_gradients(self) -> bool:
        """Whether it weighs errors by the gradients of the loss."""
        return self in (Method.DALR_WEIGHTED_AFFINE, Method.HEADS_WEIGHTED) or self.metric is Metric.LOSS

    @property
    def metric(self) -> Metric:
        """In which metric a selection compares what nodes restore."""
        return _METRICS.get(self, Metric.NODES)

    @property
    def weighted(self) -> bool:
        """Whether it weighs errors by what comes of them behind the layer."""
        return self.needs_gradients or self.metric is not Metric.NODES

    @property
    def orthonormal(self) -> bool:
        """Whether the columns of its factors' basis are orthonormal."""
        return self is not Method.DALR_WEIGHTED_AFFINE

    @property
    def keeps_weight(self) -> bool:
        """Whether W_k = U_k U_k'W, so that the moments of the outputs alone decide its errors."""
        return self in _KEEP_WEIGHT


_PRUNING = frozenset({Method.PRUNE_MEAN, Method.PRUNE_MAX})
_KEEP_WEIGHT = frozenset({Method.SVD, Method.SVD_BC, Method.DALR_ANCHORED, Method.DALR_ANCHORED_AFFINE})
_METRICS = {
    Method.SPECTRAL_READERS: Metric.READERS,
    Method.SPECTRAL_WEIGHTED: Metric.LOSS,
    Method.MOMASP_WEIGHTED: Metric.LOSS,
}
_DALR = {
    Method.DALR_PUBLISHED: DalrOptions(Variant.PUBLISHED, affine=False),
    Method.DALR_PUBLISHED_BC: DalrOptions(Variant.PUBLISHED, affine=False, compensate_bias=True),
    Method.DALR_PUBLISHED_AFFINE: DalrOptions(Variant.PUBLISHED, affine=True),
    Method.DALR_OPTIMAL: DalrOptions(Variant.OPTIMAL, affine=False),
    Method.DALR_OPTIMAL_AFFINE: DalrOptions(Variant.OPTIMAL, affine=True),
    Method.DALR_ANCHORED: DalrOptions(Variant.ANCHORED, affine=False),
    Method.DALR_ANCHORED_AFFINE: DalrOptions(Variant.ANCHORED, affine=True),
    Method.DALR_WEIGHTED_AFFINE: DalrOptions(Variant.WEIGHTED, affine=True),
}
_METHOD_OF = {options: method for method, options in _DALR.items()}
_FORMS = {**{form.method: form for form in Form}, Method.MOMASP_WEIGHTED: Form.NODE}
_SELECTIONS = frozenset({*_PRUNING, Method.SPECTRAL, Method.SPECTRAL_READERS, Method.SPECTRAL_WEIGHTED, *_FORMS})
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
    Method.DALR_WEIGHTED_AFFINE: "DALR weighted, affine",
    Method.PRUNE_MEAN: "pruning (mean)",
    Method.PRUNE_MAX: "pruning (max)",
    Method.SPECTRAL: "spectral pruning",
    Method.SPECTRAL_READERS: "spectral (readers)",
    Method.SPECTRAL_WEIGHTED: "spectral (weighted)",
    Method.MOMASP_NODE: "MoMaSP (node)",
    Method.MOMASP_SUBSET: "MoMaSP (subset)",
    Method.MOMASP_WEIGHTED: "MoMaSP (weighted)",
    Method.HEADS: "narrower heads",
    Method.HEADS_WEIGHTED: "narrower heads (weighted)",
}
