"""Distances of two networks' outputs against sums by hand."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dalr_stream.errors import InvalidInputError, NonFiniteError
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.numerics.rows.sampling import HoldoutRule


class Two(nn.Module):
    """Gives a mapping of two tensors, flags, and something that is no tensor."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.eval()

    def forward(self, ids, mask=None):  # noqa: ARG002  # only the rows' rule looks at it
        hidden = torch.stack([ids.float(), ids.float() ** 2], dim=-1) + self.shift
        return {"hidden": hidden, "pooled": hidden.sum(1), "flags": ids > 2, "cache": SimpleNamespace()}


class Scores(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.eval()

    def forward(self, x):
        return x * self.scale


def batches(count=3, samples=4):
    rng = torch.Generator().manual_seed(0)
    return [{"ids": torch.randint(1, 9, (samples, 5), generator=rng)} for _ in range(count)]


def test_every_tensor_counts_by_its_own_energy():
    rows = torch.cat([batch["ids"] for batch in batches()])[:10]
    with torch.no_grad():
        first, other = Two()(rows), Two(0.5)(rows)
    expected = np.mean(
        [float(((first[k] - other[k]) ** 2).sum() / (first[k] ** 2).sum()) for k in ("hidden", "pooled")]
    )
    distance = OutputDistance(Two(), batches(), samples=10)
    assert distance(Two(0.5)) == pytest.approx(expected, rel=1e-6)
    assert distance(Two()) == 0.0
    assert distance.samples == 10
    assert OutputDistance(Two(), batches(), samples=10, kept_bytes=0)(Two(0.5)) == distance(Two(0.5))
    assert OutputDistance(Two(), batches(6, 2), samples=10).samples == 10


def test_positions_that_a_mask_leaves_out_do_not_count():
    given = batches(1)
    given[0]["mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    keep = given[0]["mask"].bool()
    with torch.no_grad():
        first, other = Two()(**given[0]), Two(0.5)(**given[0])
    hidden = float(((first["hidden"] - other["hidden"])[keep] ** 2).sum() / (first["hidden"][keep] ** 2).sum())
    pooled = float(((first["pooled"] - other["pooled"]) ** 2).sum() / (first["pooled"] ** 2).sum())
    distance = OutputDistance(Two(), given, samples=4, rows=RowRule(mask="mask"))
    assert distance(Two(0.5)) == pytest.approx((hidden + pooled) / 2, rel=1e-6)


def test_divergence_is_of_the_classes_probabilities():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    p, q = torch.softmax(x.double(), 1), torch.softmax(x.double() * 0.5, 1)
    expected = float((p * (p / q).log()).sum(1).mean())
    assert OutputDistance(Scores(), [x], samples=6, distance="kl")(Scores(0.5)) == pytest.approx(expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused(value):
    with pytest.raises(NonFiniteError, match="outputs of the compressed network are not finite"):
        OutputDistance(Scores(), [torch.ones(2, 3)], samples=2)(Scores(value))


def test_nothing_to_compare_is_said():
    class Classes(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    with pytest.raises(InvalidInputError, match="hold no floating-point tensor"):
        OutputDistance(Classes().eval(), [torch.ones(2, 3)], samples=2)(Classes().eval())
    with pytest.raises(InvalidInputError, match="the loader gave no sample"):
        OutputDistance(Scores(), [], samples=2)
    with pytest.raises(InvalidInputError, match=r"distance must be one of .* got 'hamming'"):
        OutputDistance(Scores(), [torch.ones(2, 3)], samples=2, distance="hamming")


@dataclass
class Returned:
    scores: torch.Tensor
    sums: torch.Tensor | None = None
    note: str = ""
    later: torch.Tensor = field(init=False)


class Own:
    def __init__(self, scores):
        self.scores = scores


FORMS = {
    "a dataclass": Returned,
    "a namespace": lambda y: SimpleNamespace(scores=y),
    "an object of one's own": Own,
    "beside a tensor": lambda y: (Returned(y), torch.zeros(len(y), 2)),
    "nested": lambda y: {"all": [SimpleNamespace(inner=Returned(y))]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("distance", ["energy", "cosine"])
def test_tensors_within_objects_count_like_any_others(form, distance):
    class Wrapped(Scores):
        def forward(self, x):
            return FORMS[form](super().forward(x) + self.scale)

    class Plain(Scores):
        def forward(self, x):
            y = super().forward(x) + self.scale
            return (y, torch.zeros(len(y), 2)) if form == "beside a tensor" else y

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    wrapped, plain = (
        OutputDistance(kind(), [x], samples=6, distance=distance)(kind(-0.5)) for kind in (Wrapped, Plain)
    )
    assert wrapped == plain > 0.0


@pytest.mark.parametrize("rows", [1, 4])
def test_outputs_of_another_shape_are_refused_also_where_torch_would_spread_them(rows):
    class Narrow(Scores):
        def forward(self, x):
            return x[:rows, :1] * self.scale

    with pytest.raises(InvalidInputError, match=r"the original's outputs have shape \(4, 3\), and .* \(\d, 1\): give"):
        OutputDistance(Scores(), [torch.ones(4, 3)])(Narrow())


def test_another_number_of_outputs_is_refused():
    class Both(Scores):
        def forward(self, x):
            return x, x * self.scale

    with pytest.raises(InvalidInputError, match=r"have shape \(4, 3\), and .* \(4, 3\), \(4, 3\): give"):
        OutputDistance(Scores(), [torch.ones(4, 3)])(Both())


def test_networks_in_train_mode_are_refused():
    with pytest.raises(InvalidInputError, match=r"compress: the network must be in eval mode"):
        OutputDistance(Scores().train(), [torch.ones(4, 3)])
    with pytest.raises(InvalidInputError, match=r"compress: the network must be in eval mode"):
        OutputDistance(Scores(), [torch.ones(4, 3)])(Scores().train())


@pytest.mark.parametrize("distance", ["energy", "kl", "cosine"])
def test_a_mask_that_counts_nothing_is_no_distance_of_zero(distance):
    given = [{"x": torch.ones(4, 3, 2), "mask": torch.zeros(4, 3)}] * 2

    class Tokens(Scores):
        def forward(self, x, mask):  # noqa: ARG002  # only the rows' rule looks at it
            return super().forward(x)

    measure = OutputDistance(Tokens(), given, rows=RowRule(mask="mask"), distance=distance)
    with pytest.raises(InvalidInputError, match="the mask counts no position in any of the 8 samples"):
        measure(Tokens(0.5))


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, None, "8"])
def test_samples_are_a_whole_number(samples):
    with pytest.raises(InvalidInputError, match="samples to measure networks on must be a whole number of at least 1"):
        OutputDistance(Scores(), [torch.ones(4, 3)], samples=samples)


def test_outputs_that_are_all_zero_are_far_from_any_others():
    zero, one = Scores(0.0), Scores(1.0)
    distance = OutputDistance(zero, [torch.ones(2, 3)], samples=2)
    assert distance(zero) == 0.0
    assert distance(one) > 0.0


def test_a_holdout_that_is_no_rule_is_refused():
    with pytest.raises(InvalidInputError, match=r"holdout must be a rule, .* got 0\.2"):
        OutputDistance(Two(), batches(), holdout=0.2)


def test_only_samples_held_out_of_the_statistics_count():
    holdout, given = HoldoutRule(0.4, seed=3), batches(5)
    kept = holdout.mask(np.arange(20))
    rows = torch.cat([batch["ids"] for batch in given])
    labelled = [(batch["ids"], torch.zeros(4)) for batch in given]
    for form in (given, labelled):
        distance = OutputDistance(Two(), form, samples=6, holdout=holdout)
        assert distance.held_out
        assert distance.samples == 6
        by_hand = OutputDistance(Two(), [{"ids": rows[kept][:6]}])
        assert distance(Two(0.5)) == pytest.approx(by_hand(Two(0.5)), rel=1e-6)
    few = OutputDistance(Two(), given, samples=100, holdout=holdout)
    assert few.samples == kept.sum()  # no more than there are


@pytest.mark.parametrize("holdout", [None, HoldoutRule(0.0), HoldoutRule(1e-9)])
def test_all_samples_count_where_none_is_held_out(holdout):
    distance = OutputDistance(Two(), batches(), holdout=holdout)
    assert not distance.held_out
    assert distance.samples == 12
    assert distance(Two(0.5)) == OutputDistance(Two(), batches())(Two(0.5))
