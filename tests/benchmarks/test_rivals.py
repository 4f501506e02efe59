"""The rivals' formulas on cases whose answer is known, and their table on a tiny network."""

import numpy as np
import pytest
import rival_formulas as formulas
import rivals
import torch
from torch import nn

import dalr_stream as ds

M, D, K = 5, 7, 2


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, D)) @ rng.standard_normal((D, D))
    return rng.standard_normal((M, D)), rows, rows.T @ rows / len(rows)


def error(weight, other, rows):
    return np.square(rows @ (weight - other).T).sum()


def test_svd_llm_is_the_best_of_its_rank(case):
    weight, rows, inputs = case
    found = formulas.svd_llm(weight, inputs, K)
    assert np.linalg.matrix_rank(found) == K
    best = ds.dalr(weight, None, ds.Moments.of(rows), affine=False, ridge=ds.Ridge.relative(1e-6)).at_rank(K)
    assert error(weight, found, rows) == pytest.approx(error(weight, best.up @ best.down, rows), rel=1e-3)
    assert error(weight, found, rows) < error(weight, formulas.cut(weight, K), rows)


def test_asvd_with_alike_inputs_is_the_truncated_svd(case):
    weight, _, _ = case
    alike = formulas.asvd(weight, np.full(D, 3.0), K)
    np.testing.assert_allclose(alike, formulas.cut(weight, K), atol=1e-12)
    large = formulas.asvd(weight, np.array([1e6, *[1.0] * (D - 1)]), 1, alpha=1.0)
    np.testing.assert_allclose(large[:, 0], weight[:, 0], rtol=1e-4)


def test_fwsvd_keeps_the_rows_that_matter(case):
    weight, _, _ = case
    np.testing.assert_allclose(formulas.fwsvd(weight, np.ones((M, D)), K), formulas.cut(weight, K), atol=1e-12)
    fisher = np.full((M, D), 1e-12)
    fisher[2] = 1.0
    np.testing.assert_allclose(formulas.fwsvd(weight, fisher, 1)[2], weight[2], rtol=1e-4)


def test_kfac_svd_with_alike_gradients_is_svd_llm(case):
    weight, _, inputs = case
    found = formulas.kfac_svd(weight, inputs, np.eye(M), K, damping=1e-6)
    np.testing.assert_allclose(found, formulas.svd_llm(weight, inputs, K), atol=1e-6)


def test_kfac_svd_is_the_best_in_its_metric(case):
    weight, _, inputs = case
    rng = np.random.default_rng(1)
    g = rng.standard_normal((M, M))
    gradients = g @ g.T

    def loss(other):
        gap = weight - other
        return np.trace(gradients @ gap @ inputs @ gap.T)

    found = formulas.kfac_svd(weight, inputs, gradients, K, damping=1e-9)
    assert np.linalg.matrix_rank(found) == K
    assert loss(found) < min(loss(formulas.svd_llm(weight, inputs, K)), loss(formulas.cut(weight, K)))


def test_the_gram_matrix_mends_what_dropping_loses(case):
    _, rows, inputs = case
    kept = np.array([0, 2, 3, 5])
    mended, plain = formulas.grail(inputs, kept, 1e-9), formulas.dropped(D, kept)
    np.testing.assert_allclose(mended[kept], np.eye(4), atol=1e-6)
    assert np.square(rows - rows[:, kept] @ mended.T).sum() < np.square(rows - rows[:, kept] @ plain.T).sum()
    regression = np.linalg.lstsq(rows[:, kept], rows, rcond=None)[0]
    np.testing.assert_allclose(mended, regression.T, atol=1e-6)


def test_group_magnitude_adds_up_what_touches_a_node():
    producer, reader = np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([[2.0], [0.0]])
    importance = formulas.group_magnitude(producer, reader)
    assert importance.tolist() == [9.0, 9.0]
    assert formulas.best(np.array([1.0, 5.0, 2.0]), 2).tolist() == [1, 2]


def tiny():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    ).eval()  # fmt: skip
    batches = [(torch.randn(10, 3, 5, 5), torch.randint(2, (10,))) for _ in range(3)]
    layers = ds.watch(model, ["0", "5"], example=batches[0])
    felt = ds.watch(model, ["0", "5"], example=layers.structure, gradients=["0", "5", "9"])
    known = ds.accumulate(model, batches, felt, rows=ds.RowRule(gradients=ds.GradientRule()))
    chosen = {name: known[name] for name in ("0", "5")}
    return rivals.Subject(model, layers.structure, chosen, ["0", "5"], batches, batches)


def test_what_moments_do_not_hold_is_taken_from_the_network():
    subject = tiny()
    pixels = torch.cat([inputs for inputs, _ in subject.train]).double()
    np.testing.assert_allclose(subject.mean_of_absolute["0"], pixels.abs().mean((0, 2, 3)), rtol=1e-6)
    inputs, labels = subject.train[0]
    loss = nn.functional.cross_entropy(subject.model(inputs[:1]), labels[:1])
    rivals_one = rivals.Subject(subject.model, None, {"5": subject.layers["5"]}, [], [(inputs[:1], labels[:1])], [])
    (gradient,) = torch.autograd.grad(loss, [subject.model[5].weight])
    np.testing.assert_allclose(rivals_one.fisher["5"], gradient.flatten(1).square(), rtol=1e-5)
    weights = [subject.model[at].weight.detach().double() for at in (0, 1, 3, 5)]
    expected = sum(one.reshape(8, -1).square().sum(1) for one in weights[:3]) + weights[3].square().sum((0, 2, 3))
    np.testing.assert_allclose(subject.magnitude("0"), expected, rtol=1e-6)


def test_every_rival_has_its_line():
    lines = list(rivals.rows(tiny(), (0.9, 0.5)))
    assert lines[0] == "| | 90% | 50% | CPU seconds | peak MiB |"
    methods = [line.split(" | ")[0].strip("| *") for line in lines[3:]]
    assert {"DALR", "SVD-LLM", "ASVD", "FWSVD", "KFAC-SVD", "spectral pruning"} <= set(methods)
    assert len(methods) == 14
    assert all(0 <= float(line.split(" | ")[1]) <= 100 for line in lines[2:])
