"""Selections in the metric of what reads the nodes: against twins that form every residual, and the plain selection."""

import dataclasses

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_rows, row_blocks, two_domains

from dalr_stream.errors import InvalidInputError
from dalr_stream.numerics.layer import Layer
from dalr_stream.numerics.methods import Method
from dalr_stream.numerics.selection.greedy import momasp, spectral
from dalr_stream.numerics.selection.readers import metric_of
from dalr_stream.numerics.selection.residual import BLOCK
from dalr_stream.numerics.statistics.channels import ChannelReader, ChannelSpan, NodeReader
from dalr_stream.numerics.statistics.moments import Moments

UNSURE = (1e-14, 1e-10)
FIELDS = ("order", "factor", "retention", "center", "not_live")


def drawn_metric(d, rank, seed):
    root = np.random.default_rng(seed).normal(size=(rank, d))
    return root.T @ root


@settings(max_examples=200)
@given(row_blocks(max_rows=12, max_features=6), st.booleans(), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_each_node_taken_is_the_twins(rows, affine, rank, seed):
    """Whatever the rows are like, and in a metric of low rank; each retention is that of the rows."""
    x = oracles.about_mean(rows.T) if affine else rows.T
    metric = drawn_metric(len(x), rank, seed)
    s = spectral(Moments.of(rows), metric=metric, affine=affine)
    assert sorted(s.order.tolist()) == list(range(len(x)))
    if any("sees them move" in note for note in s.diagnostics.notes):
        return
    doubt = 1e-9
    for size, node in enumerate(s.order[: s.factor.shape[1]]):
        taken = s.order[:size].tolist()
        shares = [oracles.unexplained(x, taken, j) for j in range(len(x)) if j not in taken]
        if any(UNSURE[0] < share < UNSURE[1] for share in shares):
            return
        gains = oracles.every_gain_in_metric(x, taken, metric)
        doubt += 64 * np.finfo(float).eps / oracles.unexplained(x, taken, node)
        assert gains[node] >= gains.max() - 1e-6 * gains.max() - doubt
        assert s.retention[size] == pytest.approx(
            oracles.retention_in_metric(x, s.order[: size + 1], metric), abs=10 * doubt
        )


@pytest.mark.parametrize("kind", ["relu", "generic", "huge_mean", "duplicated"])
def test_an_order_longer_than_a_block_is_the_twins(kind):
    """The recurrences over several blocks: every gain along the order is as large as any other."""
    d = BLOCK + 40
    rows = make_rows(kind, 3 * d, d, 5)
    metric = drawn_metric(d, 30, 6)
    s = spectral(Moments.of(rows), metric=metric)
    for size in (0, 1, 2, 31, 64, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 20):
        gains = oracles.every_gain_in_metric(rows.T, s.order[:size].tolist(), metric)
        assert gains[s.order[size]] >= (1 - 1e-6) * gains.max()
        assert s.retention[size] == pytest.approx(
            oracles.retention_in_metric(rows.T, s.order[: size + 1], metric), abs=1e-8
        )


@settings(max_examples=60)
@given(row_blocks(), st.booleans(), st.sampled_from([1e-6, 1.0, 1e6]))
def test_a_multiple_of_the_identity_is_the_plain_selection(rows, affine, scale):
    plain = spectral(Moments.of(rows), affine=affine)
    s = spectral(Moments.of(rows), metric=scale * np.eye(rows.shape[1]), affine=affine)
    np.testing.assert_allclose(s.retention, plain.retention, atol=1e-9)
    assert s.diagnostics.energy == pytest.approx(scale * plain.diagnostics.energy, rel=1e-12)
    assert s.diagnostics.trace == plain.diagnostics.trace


@given(two_domains(), st.booleans(), st.integers(0, 2**32 - 1))
def test_strength_zero_is_the_weighted_spectral_to_the_bit(domains, affine, seed):
    target, source = map(Moments.of, domains)
    metric = drawn_metric(target.features, 3, seed)
    a = momasp(target, source, strength=0, metric=metric, affine=affine)
    b = spectral(target, metric=metric, affine=affine)
    for name in FIELDS:
        assert np.array_equal(getattr(a, name), getattr(b, name))


def test_a_limited_selection_is_the_beginning_and_restores_alike():
    rows = make_rows("relu", 400, 150, 3)
    metric = drawn_metric(150, 20, 4)
    whole = spectral(Moments.of(rows), metric=metric)
    part = spectral(Moments.of(rows), metric=metric, limit=40)
    assert (part.order == whole.order[:40]).all()
    assert (part.factor == whole.factor[:, :40]).all()
    np.testing.assert_allclose(part.retention, whole.retention[:40], atol=1e-9)
    one, two = part.at_size(30, ridge=1e-3), whole.at_size(30, ridge=1e-3)
    np.testing.assert_array_equal(one.restore, two.restore)


def test_it_keeps_what_matters_to_the_readers_and_restores_as_ever():
    """Fewer of the readers' outputs are lost than by the plain order; A_J is that of the same nodes in any metric."""
    rows = make_rows("relu", 300, 24, 8)
    moments, metric = Moments.of(rows), drawn_metric(24, 3, 9)
    ours, plain = spectral(moments, metric=metric), spectral(moments)

    def lost(selection, k):
        part = selection.at_size(k)
        gap = rows - rows[:, part.kept] @ part.restore.T
        return np.sum(gap * (gap @ metric)) / np.sum(rows * (rows @ metric))

    for k in (2, 4, 8, 12):
        assert lost(ours, k) < lost(plain, k)
        assert lost(ours, k) == pytest.approx(1.0 - ours.retention[k - 1], abs=1e-9)
    kept = ours.at_size(5).kept
    sigma = moments.second_moment
    np.testing.assert_allclose(
        ours.at_size(5).restore, sigma[:, kept] @ np.linalg.inv(sigma[np.ix_(kept, kept)]), atol=1e-9
    )


def layer(*, gradients=True, block=2):
    """Four nodes of which a linear layer reads the flattened places, and a convolution of three taps."""
    rng = np.random.default_rng(1)
    seen = [Moments.of(rng.normal(size=(30, m)), samples=10) if gradients else None for m in (5, 6)]
    spans = [ChannelSpan("fc", start=block, block=block), ChannelSpan("conv")]
    readers = (
        NodeReader.of(
            ChannelReader(spans[0], "fc@channels", 1, 5 * block), 4, rng.normal(size=(5, 6 * block)), seen[0]
        ),
        NodeReader.of(ChannelReader(spans[1], "conv@channels", 0, 6 * 3), 4, rng.normal(size=(6, 12)), seen[1]),
    )
    nodes = Moments.of(np.maximum(rng.normal(size=(50, 4)), 0.0))
    return Layer("hidden", rng.normal(size=(4, 7)), None, nodes=nodes, source_nodes=nodes, readers=readers)


def test_the_metric_is_what_the_readers_outputs_lose():
    """An error of the nodes at one place: W'e, over all taps and readers; in the metric of the loss g'W'e."""
    given = layer()
    error = np.random.default_rng(2).normal(size=4)
    at_outputs = [np.einsum("mct,c->tm", reader.weight, error) for reader in given.readers]
    by_hand = sum(np.sum(outputs**2) for outputs in at_outputs)
    assert error @ metric_of(given, "readers") @ error == pytest.approx(by_hand)
    weighted = sum(
        3 * np.trace(outputs @ reader.gradients.second_moment @ outputs.T)  # three rows a sample
        for outputs, reader in zip(at_outputs, given.readers, strict=True)
    )
    assert error @ metric_of(given, "loss") @ error == pytest.approx(weighted)
    assert metric_of(given, "nodes") is None
    first = given.readers[0].weight
    assert (first.shape, given.readers[1].weight.shape) == ((5, 4, 2), (6, 4, 3))


def test_each_has_a_name_of_its_own():
    given = layer()
    assert spectral(given, metric="readers").method is Method.SPECTRAL_READERS
    assert spectral(given, metric="loss").method is Method.SPECTRAL_WEIGHTED
    assert momasp(given, metric="loss").method is Method.MOMASP_WEIGHTED
    assert spectral(given, metric=metric_of(given, "loss")).method is Method.SPECTRAL
    by_name, by_matrix = spectral(given, metric="loss"), spectral(given, metric=metric_of(given, "loss"))
    for name in FIELDS:
        assert np.array_equal(getattr(by_name, name), getattr(by_matrix, name))


def test_readers_that_see_nothing_leave_the_plain_selection_and_a_note():
    given = layer()
    blind = dataclasses.replace(
        given, readers=tuple(dataclasses.replace(one, weight=0.0 * one.weight) for one in given.readers)
    )
    s, plain = spectral(blind, metric="loss"), spectral(given)
    assert (s.order == plain.order).all()
    assert (s.retention == plain.retention).all()
    assert any("compared by themselves" in note for note in s.diagnostics.notes)


def test_what_is_missing_or_no_metric_is_refused_in_words():
    given, nodes = layer(gradients=False), layer().nodes
    bare = dataclasses.replace(given, readers=())
    cases = [
        (lambda: spectral(given, metric="loss"), "layer 'hidden': its nodes are read by 'fc', whose gradients are not"),
        (lambda: spectral(bare, metric="readers"), "layer 'hidden': the layers that read its channels are needed"),
        (lambda: spectral(nodes, metric="loss"), "metric 'loss' is made of the layers that read the nodes"),
        (lambda: spectral(given, metric="outputs"), "metric must be one of 'nodes', 'readers', 'loss', got 'outputs'"),
        (lambda: spectral(nodes, metric=np.eye(3)), r"metric must be 4 x 4, as the nodes are, got shape \(3, 3\)"),
        (lambda: spectral(nodes, metric=np.full((4, 4), np.nan)), "metric must be finite"),
        (lambda: spectral(nodes, metric=np.triu(np.ones((4, 4)))), "metric must be symmetric"),
        (lambda: spectral(nodes, metric=-np.eye(4)), "metric must be symmetric, and no error may count less"),
        (
            lambda: momasp(layer(), metric="loss", form="subset"),
            "form 'subset' goes with the metrics 'nodes', got 'loss'",
        ),
    ]
    for call, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            call()
