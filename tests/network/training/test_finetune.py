"""Fine-tuning against Adam written out by hand, and what it leaves alone."""

import copy

import numpy as np
import pytest
import torch
from dense_network import Net
from finetune_cases import BATCHES, FAST, X, Y, changed, mixed, small, tensors
from torch import nn
from torch.nn import functional

from dalr_stream.network.saved.checkpoint import load, save
from dalr_stream.network.training.finetune import finetune
from dalr_stream.network.training.setting import FineTuning
from dalr_stream.network.training.trainable import trained_parameters

# --- what is computed ---------------------------------------------------------------------------------------------


def adam_by_hand(net, batches, epochs, rate, decay):
    """Two layers in float64, softmax and Adam as in Kingma and Ba (Algorithm 1), L2 in the gradient."""
    w = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    m, v = ({name: np.zeros_like(value) for name, value in w.items()} for _ in range(2))
    step, losses = 0, []
    for _ in range(epochs):
        total = 0.0
        for x, y in [(x.numpy(), y.numpy()) for x, y in batches]:
            h = np.maximum(x @ w["0.weight"].T + w["0.bias"], 0.0)
            z = h @ w["2.weight"].T + w["2.bias"]
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            total -= np.log(p[np.arange(len(y)), y]).sum()
            dz = (p - np.eye(p.shape[1])[y]) / len(y)
            dh = dz @ w["2.weight"] * (h > 0)
            gradients = {"2.weight": dz.T @ h, "2.bias": dz.sum(0), "0.weight": dh.T @ x, "0.bias": dh.sum(0)}
            step += 1
            for name, gradient in gradients.items():
                g = gradient + decay * w[name]
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g * g
                unbiased_m, unbiased_v = m[name] / (1 - 0.9**step), v[name] / (1 - 0.999**step)
                w[name] -= rate * unbiased_m / (np.sqrt(unbiased_v) + 1e-8)
        losses.append(total / len(X))
    return w, losses


def test_the_weights_are_those_of_adam_written_out():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    batches = [(x.double(), y) for x, y in BATCHES]
    told = []
    tuned = finetune(
        net, batches, FineTuning(2, rate=0.01, weight_decay=0.1), epoch_done=lambda *epoch: told.append(epoch)
    )
    expected, losses = adam_by_hand(net, batches, 2, rate=0.01, decay=0.1)
    for name, value in tuned.state_dict().items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-9, atol=1e-12)
    assert [number for number, _ in told] == [1, 2]
    np.testing.assert_allclose([loss for _, loss in told], losses, rtol=1e-10)


def test_the_default_is_the_papers_setting():
    assert (FineTuning().rate, FineTuning().decay, FineTuning().dropout) == (1e-4, 5e-4, False)
    assert trained_parameters(mixed()).keys() == {"fc.weight", "fc.bias", "head.weight", "head.bias"}


def test_the_training_loss_falls():
    told = []
    tuned = finetune(small(), BATCHES, FineTuning(20, rate=1e-2), epoch_done=lambda _, loss: told.append(loss))
    assert told[-1] < 0.7 * told[0]
    assert functional.cross_entropy(tuned(X), Y) < functional.cross_entropy(small()(X), Y)


def test_a_loss_of_ones_own_is_minimised():
    def distance(outputs, labels):
        return (outputs.mean(1) - labels).square().mean()

    tuned = finetune(small(), BATCHES, FineTuning(20, rate=1e-2, loss=distance))
    assert distance(tuned(X), Y) < 0.7 * distance(small()(X), Y)


# --- what is left alone -------------------------------------------------------------------------------------------


def test_the_network_given_and_the_callers_random_numbers_are_left_alone():
    net = small()
    before, drawn = tensors(net), torch.get_rng_state()
    finetune(net, BATCHES, FineTuning(1, rate=1e-2, dropout=True))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("dropout", [True, False])
def test_only_what_is_trained_changes_and_batch_norm_keeps_its_statistics(dropout):
    net = mixed().train()
    tuned = finetune(net, BATCHES, FineTuning(2, rate=1e-2, dropout=dropout))
    assert changed(net, tuned) == {"fc.weight", "fc.bias", "head.weight", "head.bias"}


def test_dropout_drops_only_when_it_is_asked_for():
    """Without it the rate of dropout decides nothing; with it, it does."""
    one, other = mixed(), mixed()
    other.drop.p = 0.9

    def run(net, dropout):
        return finetune(net, BATCHES, FineTuning(1, rate=1e-2, dropout=dropout))

    assert not changed(run(one, dropout=False), run(other, dropout=False))
    assert changed(run(one, dropout=True), run(other, dropout=True))


def test_plan_modes_and_frozen_parameters_are_kept():
    net = small().train()
    net.fc8.eval()
    net.fc8.bias.requires_grad_(False)
    tuned = finetune(net, BATCHES, FAST)
    assert tuned.compression_plan == net.compression_plan
    assert [module.training for module in tuned.modules()] == [module.training for module in net.modules()]
    assert [p.requires_grad for p in tuned.parameters()] == [p.requires_grad for p in net.parameters()]
    assert all(parameter.grad is None for parameter in tuned.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    net = mixed(dtype)
    tuned = finetune(net, BATCHES, FineTuning(1, rate=1e-2))
    assert {parameter.dtype for parameter in tuned.parameters()} == {dtype}
    assert "head.weight" in changed(net, tuned)


@pytest.mark.gpu
def test_a_network_on_a_device_stays_there(cuda):
    tuned = finetune(mixed().to(cuda), BATCHES, FAST)
    assert {parameter.device.type for parameter in tuned.parameters()} == {"cuda"}
    close = finetune(mixed(), BATCHES, FAST)
    torch.testing.assert_close(tuned.fc.weight.cpu(), close.fc.weight, rtol=1e-2, atol=1e-3)


def test_gradients_are_on_even_where_the_caller_has_them_off():
    with torch.no_grad():
        tuned = finetune(small(), BATCHES, FAST)
    assert not changed(tuned, finetune(small(), BATCHES, FAST))


def test_a_fine_tuned_network_is_saved_with_the_plan_and_comes_back(tmp_path):
    tuned = finetune(small(), BATCHES, FAST)
    assert not changed(load(save(tuned, tmp_path / "tuned"), Net), tuned)


def test_buffers_and_copies_share_nothing_with_the_original():
    net = mixed()
    tuned = finetune(net, BATCHES, FAST)
    again = copy.deepcopy(tuned)
    with torch.no_grad():
        for tensor in tuned.state_dict().values():
            tensor.zero_()
    assert not changed(finetune(net, BATCHES, FAST), again)
