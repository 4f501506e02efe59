"""The second moments that another library computes for its own purpose: the factors of curvlinops' KFAC."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds

curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed")


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 5)
        ).eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(60, 2, 6, 6, generator=generator), torch.randint(5, (60,), generator=generator)
    return list(zip(x.split(20), y.split(20), strict=True))


def factors(network, kind):
    """The second moment of gradients by what each module gives: sums over samples and positions."""
    operator = curvlinops.KFACLinearOperator(
        network,
        nn.CrossEntropyLoss(reduction="sum"),
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        batches(),
        fisher_type=kind,
        check_deterministic=False,
    )
    operator.compute_kronecker_factors()
    return {name: factor.numpy() for name, factor in operator._gradient_covariances.items()}


def moments(network, **options):
    rows = ds.RowRule(most_patches=None, gradients=ds.GradientRule(**options))
    layers = ds.watch(network, ["0", "3", "5"], gradients=["0", "3", "5"])
    folding = ds.Folding(ds.HoldoutRule(0.0))
    return ds.accumulate(network, batches(), layers, rows=rows, folding=folding)


def test_gradients_of_labels_are_those_of_the_empirical_fisher(network):
    expected, found = factors(network, "empirical"), moments(network, estimator="labels")
    for name, factor in expected.items():
        gradients = found[name].gradients
        np.testing.assert_allclose(gradients.second_moment * gradients.count, factor, rtol=0, atol=1e-5)


def test_vectors_come_near_the_exact_generalised_gauss_newton_matrix(network):
    expected, found = factors(network, "type-2"), moments(network, draws=400)
    for name, factor in expected.items():
        gradients = found[name].gradients
        second_moment = gradients.second_moment * gradients.count / 400
        assert np.linalg.norm(second_moment - factor) < 0.05 * np.linalg.norm(factor)
