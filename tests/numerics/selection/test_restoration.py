"""Nodes restored to what they were in another network, against the formula on rows and by its laws."""

import numpy as np
import pytest

import dalr_stream as ds
from dalr_stream.numerics.selection.restoration import joint_cross, restored_towards
from dalr_stream.numerics.sizes.losses import lost_towards
from dalr_stream.numerics.statistics.channels import ChannelReader, ChannelSpan

D, K = 7, 3


def nodes(n=60, seed=0, gap=0.5):
    """Nodes of the compressed network and of the original, not centred."""
    rng = np.random.default_rng(seed)
    phi = np.maximum(rng.normal(size=(n, D)) @ rng.normal(size=(D, D)) + 0.3, 0.0)
    return phi + gap * rng.normal(size=(n, D)) @ rng.normal(size=(D, D)), phi


def selected(psi, ridge=0.0):
    return ds.spectral(ds.Moments.of(psi)).at_size(K, ridge=ridge)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_it_minimises_the_loss_shrunk_towards_the_selections_own(ridge):
    psi, phi = nodes()
    own = selected(psi, ridge)
    found = restored_towards(own, ds.numerics.CrossMoments.of(psi, phi), ridge)
    assert found.kept is own.kept
    read, lam = psi[:, own.kept], ridge * np.mean(np.sum(psi**2, axis=0))

    def loss(restore):
        return np.sum((phi - read @ restore.T) ** 2) + lam * np.sum((restore - own.restore) ** 2)

    stacked = np.vstack([read, np.sqrt(lam) * np.eye(K)])
    wanted = np.vstack([phi, np.sqrt(lam) * own.restore.T])
    np.testing.assert_allclose(found.restore, np.linalg.lstsq(stacked, wanted, rcond=None)[0].T, rtol=1e-8, atol=1e-10)
    rng = np.random.default_rng(1)
    rivals = [found.restore + scale * rng.normal(size=(D, K)) for scale in (1e-4, 1e-2, 1.0)]
    assert loss(found.restore) < min(map(loss, [*rivals, own.restore]))


def test_where_nothing_was_lost_before_it_is_the_selections_own_and_so_at_a_large_ridge():
    psi, phi = nodes()
    own = selected(phi)
    same = restored_towards(own, ds.numerics.CrossMoments.of(phi, phi), 0.0)
    np.testing.assert_allclose(same.restore, own.restore, atol=1e-10)
    own = selected(psi)
    np.testing.assert_allclose(
        restored_towards(own, ds.numerics.CrossMoments.of(psi, phi), 1e9).restore, own.restore, atol=1e-6
    )


def test_what_is_lost_is_that_of_the_rows():
    psi, phi = nodes()
    moments = ds.numerics.CrossMoments.of(psi, phi)
    kept = restored_towards(selected(psi), moments, 1e-2)
    gaps = [phi - psi, phi - psi[:, kept.kept] @ kept.restore.T]
    assert lost_towards(kept, moments) == pytest.approx([np.sum(gap**2) / np.sum(phi**2) for gap in gaps])


def test_all_readers_rows_count_each_place_once():
    """Channels 2..8 of one stream, 1..7 of the original's, after narrower neighbours; and all of another."""
    (psi, phi), (more, others) = nodes(), nodes(40, seed=3)
    rng = np.random.default_rng(2)
    wide, wider = np.hstack([rng.normal(size=(60, 2)), psi]), np.hstack([rng.normal(size=(60, 1)), phi])
    moments = {"a": ds.numerics.CrossMoments.of(wide, wider), "b": ds.numerics.CrossMoments.of(more, others)}

    def reader(stream, first):
        return ChannelReader(ChannelSpan(stream), stream, first)

    readers = [(reader("a", 2), reader("a", 1)), (reader("b", 0), reader("b", 0)), (reader("b", 0), reader("b", 0))]
    found = joint_cross(readers, D, moments)
    twin = ds.numerics.CrossMoments.of(np.vstack([psi, more]), np.vstack([phi, others]))
    assert (found.count, found.samples, found.input_features) == (100, 60, D)
    np.testing.assert_allclose(found.joint.scatter, twin.joint.scatter, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.joint.mean, twin.joint.mean, rtol=1e-9, atol=1e-12)
