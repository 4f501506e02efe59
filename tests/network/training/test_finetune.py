"""Fine-tuning against Adam written out by hand; what is not trained, and what goes on after an interruption."""

import copy
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from dense_network import Net, build, factors, moments
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    LayerNotFoundError,
    NonFiniteError,
    ParameterIncreaseWarning,
    StoreDamagedError,
    UnsupportedLayerError,
)
from dalr_stream.network.layers.spec import weights_of
from dalr_stream.network.saved.checkpoint import load, save
from dalr_stream.network.surgery.compress import compress
from dalr_stream.network.training.finetune import FineTuning, finetune
from dalr_stream.network.training.trainable import trained_parameters
from dalr_stream.numerics.lowrank.truncated import truncated_svd
from dalr_stream.numerics.selection.greedy import spectral

DRAWN = torch.Generator().manual_seed(5)
X = torch.randn(40, 10, generator=DRAWN)
Y = torch.randint(4, (40,), generator=DRAWN)
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 40, 16)]
FAST = FineTuning(epochs=3, rate=1e-2)


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small wait for threads far longer than they take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small():
    net = build()
    parts = {"fc7": factors(net, "fc7", 3), "fc6": spectral(moments(net, "fc7"), affine=True).at_size(5)}
    return compress(net, parts, example=X)


class Mixed(nn.Module):
    """A convolution, batch norm and dropout before fully connected layers."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.conv = nn.Conv1d(1, 6, 3, dtype=dtype)
        self.norm = nn.BatchNorm1d(6, dtype=dtype)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(48, 7, dtype=dtype)
        self.head = nn.Linear(7, 4, dtype=dtype)

    def forward(self, x):
        hidden = self.norm(self.conv(x[:, None].to(self.fc.weight.dtype))).flatten(1)
        return self.head(self.drop(torch.relu(self.fc(self.drop(hidden)))))


def mixed(dtype=torch.float32):
    torch.manual_seed(2)
    return Mixed(dtype).eval()


def tensors(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(one, other):
    a, b = tensors(one), tensors(other)
    assert list(a) == list(b)
    return {name for name in a if not torch.equal(a[name], b[name])}


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
    assert (FineTuning().rate, FineTuning().weight_decay, FineTuning().dropout) == (1e-4, 5e-4, False)
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


# --- which layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "trained"),
    [
        (("fc7",), ("fc7.0", "fc7.1")),
        (("fc7.1",), ("fc7.1",)),
        ((r"re:fc[78]",), ("fc7.0", "fc7.1", "fc8")),
        (("fc8", "fc*"), ("fc6", "fc7.0", "fc7.1", "fc8")),
    ],
)
def test_a_pattern_names_the_original_layer_and_covers_the_pair(layers, trained):
    net = small()
    names = {f"{layer}.{what}" for layer in trained for what in ("weight", "bias")}
    assert trained_parameters(net, layers).keys() == names
    assert changed(net, finetune(net, BATCHES, FineTuning(1, rate=1e-2, layers=layers))) == names


def test_a_convolution_that_became_a_pair_is_trained_when_it_is_named():
    net = mixed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        pair = truncated_svd(*weights_of(net, "conv")).at_rank(2)
    less = compress(net, {"conv": pair})
    tuned = finetune(less, BATCHES, FineTuning(1, rate=1e-2, layers=("conv", "norm")))
    assert {name.partition(".")[0] for name in changed(less, tuned)} == {"conv", "norm"}
    assert torch.equal(less.norm.running_mean, tuned.norm.running_mean)


def test_a_shared_weight_is_trained_once_and_stays_shared():
    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    net[2].weight = net[0].weight
    assert trained_parameters(net).keys() == {"0.weight", "0.bias", "2.bias"}
    tuned = finetune(net, BATCHES, FAST)
    assert tuned[2].weight is tuned[0].weight
    assert "0.weight" in changed(net, tuned)


# --- determinism and interruption ---------------------------------------------------------------------------------


class Killed(BaseException):
    """What ends a process, or nearly."""


class Shuffled:
    """A loader with a memory: its own generator moves on with every epoch, and it draws from torch's as well."""

    def __init__(self, dies_at=None):
        self.generator, self.left = torch.Generator().manual_seed(9), dies_at

    def __iter__(self):
        for part in torch.randperm(40, generator=self.generator).split(16):
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise Killed
            yield X[part] + 0.01 * torch.randn(len(part), 10), Y[part]


class Numbered(Shuffled):
    """One that is told the epoch, and counts how often it is gone through."""

    def __init__(self, dies_at=None):
        super().__init__(dies_at)
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)
        self.generator.manual_seed(epoch)


def of_torch(dies_at=None):
    data = TensorDataset(X, Y)
    whole = DataLoader(data, batch_size=16, shuffle=True)
    return whole if dies_at is None else Dying(whole, dies_at)


class Dying:
    def __init__(self, loader, left):
        self.loader, self.left = loader, left

    def __iter__(self):
        for batch in self.loader:
            self.left -= 1
            if self.left < 0:
                raise Killed
            yield batch


@pytest.mark.parametrize(
    ("loader", "dropout", "dies_at"),
    [(Shuffled, True, 0), (Shuffled, True, 4), (Shuffled, False, 8), (Numbered, True, 7), (of_torch, True, 5)],
)
def test_interrupted_at_any_batch_it_ends_in_the_same_bits(tmp_path, loader, dropout, dies_at):
    options, file = FineTuning(3, rate=1e-2, dropout=dropout), tmp_path / "deep" / "epochs.safetensors"
    whole, told = finetune(mixed(), loader(), options), []
    with pytest.raises(Killed):
        finetune(mixed(), loader(dies_at=dies_at), options, checkpoint=file)
    assert file.exists() == (dies_at >= 3)
    torch.rand(7)  # another state of the caller's generator
    again = finetune(mixed(), loader(), options, checkpoint=file, epoch_done=lambda *epoch: told.append(epoch))
    assert not changed(again, whole)
    assert [number for number, _ in told] == [1, 2, 3]


def test_killed_after_the_last_epoch_nothing_is_trained_again(tmp_path):
    file, steps, first, second = tmp_path / "epochs.safetensors", [], [], []

    def counted(outputs, labels):
        steps.append(1)
        return functional.cross_entropy(outputs, labels)

    options = FineTuning(2, rate=1e-2, loss=counted)
    one = finetune(small(), BATCHES, options, checkpoint=file, epoch_done=lambda *epoch: first.append(epoch))
    again = finetune(small(), BATCHES, options, checkpoint=file, epoch_done=lambda *epoch: second.append(epoch))
    assert not changed(one, again)
    assert len(steps) == 2 * len(BATCHES)
    assert first == second


def test_a_numbered_loader_is_asked_for_the_last_epoch_alone(tmp_path):
    with pytest.raises(Killed):
        finetune(mixed(), Numbered(dies_at=8), FAST, checkpoint=tmp_path / "epochs.safetensors")
    loader = Numbered()
    finetune(mixed(), loader, FAST, checkpoint=tmp_path / "epochs.safetensors")
    assert loader.epochs == [1, 2]


def test_seeds_decide_what_is_drawn():
    def run(seed):
        return finetune(mixed(), of_torch(), FineTuning(1, rate=1e-2, dropout=True, seed=seed))

    assert not changed(run(0), run(0))
    assert changed(run(0), run(1))


@pytest.fixture
def interrupted(tmp_path):
    """The checkpoint of one epoch."""
    with pytest.raises(Killed):
        finetune(small(), Dying(BATCHES, 4), FAST, checkpoint=tmp_path / "epochs.safetensors")
    return tmp_path / "epochs.safetensors"


def test_a_checkpoint_holds_tensors_and_nothing_that_runs(interrupted):
    kinds = {name.partition("/")[0] for name in load_file(interrupted)}
    assert kinds == {"weight", "step", "exp_avg", "exp_avg_sq"}


def test_a_checkpoint_of_something_else_is_refused(interrupted):
    for model, options in ((build(), FAST), (small(), FineTuning(3, rate=1e-3)), (small(), FineTuning(4, rate=1e-2))):
        with pytest.raises(FingerprintMismatchError, match="a checkpoint of another network or other options"):
            finetune(model, BATCHES, options, checkpoint=interrupted)
    with pytest.raises(FingerprintMismatchError, match="in epoch 1 the loader gives other batches"):
        finetune(small(), BATCHES[::-1], FAST, checkpoint=interrupted)


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found(interrupted):
    whole = interrupted.read_bytes()
    for position in range(0, len(whole), 211):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        interrupted.write_bytes(bytes(data))
        with pytest.raises(StoreDamagedError, match="remove it"):
            finetune(small(), BATCHES, FAST, checkpoint=interrupted)


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], InvalidInputError, "epoch 1: the loader gave no sample: check the data set"),
        ([(X[:0], Y[:0])], InvalidInputError, "epoch 1: the loader gave no sample"),
        ((pair for pair in BATCHES), InvalidInputError, "epoch 2: the loader gave no sample: a generator gives"),
        ([X], InvalidInputError, r"must be \(inputs, labels\) pairs, got Tensor"),
        ([(X, Y, Y)], InvalidInputError, r"must be \(inputs, labels\) pairs, got tuple"),
        ([*BATCHES, (X * float("nan"), Y)], NonFiniteError, "epoch 1, batch 3: the loss must be finite, got nan"),
    ],
)
def test_batches_that_cannot_be_learnt_from_are_named(batches, error, message):
    net = small()
    before = tensors(net)
    with pytest.raises(error, match=f"fine-tuning: .*{message}"):
        finetune(net, batches, FAST)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_weights_that_overflow_in_the_last_step_are_not_returned():
    net = nn.Sequential(nn.Linear(10, 4)).half()
    with pytest.raises(NonFiniteError, match=r"epoch 1: '0\.weight' must be finite.*lower the rate, 1000000"):
        finetune(net, [(X.half(), Y)], FineTuning(1, rate=1e6))


def test_a_loss_that_depends_on_nothing_is_named():
    for loss in (lambda outputs, _: outputs.detach().mean(), lambda *_: 1.0, lambda outputs, _: outputs):
        with pytest.raises(InvalidInputError, match="epoch 1, batch 0: the loss must be one number that depends on"):
            finetune(small(), BATCHES, FineTuning(loss=loss))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"rate": 0.0}, "rate must be a number above 0, got 0.0"),
        ({"rate": float("nan")}, "rate must be a number above 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be a number >= 0, got -1.0"),
        ({"layers": "fc7"}, "layers must be a sequence of patterns, got 'fc7'"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        FineTuning(**options)


def test_layers_that_cannot_be_trained_are_named():
    with pytest.raises(LayerNotFoundError, match="pattern 'fc9' matches no layer; nearest: fc"):
        finetune(small(), BATCHES, FineTuning(layers=("fc9",)))
    with pytest.raises(UnsupportedLayerError, match="'drop' have no parameter to train"):
        finetune(mixed(), BATCHES, FineTuning(layers=("drop",)))
    convolutional = nn.Sequential(nn.Conv1d(1, 2, 3))
    with pytest.raises(UnsupportedLayerError, match="the fully connected layers have no parameter"):
        finetune(convolutional, BATCHES)


def test_buffers_and_copies_share_nothing_with_the_original():
    net = mixed()
    tuned = finetune(net, BATCHES, FAST)
    again = copy.deepcopy(tuned)
    with torch.no_grad():
        for tensor in tuned.state_dict().values():
            tensor.zero_()
    assert not changed(finetune(net, BATCHES, FAST), again)


def weighted(outputs, labels, weight, then=torch.relu):
    return then(weight * functional.cross_entropy(outputs, labels))


def test_losses_of_other_settings_are_other_losses():
    losses = [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0])),
        weighted,
        partial(weighted, weight=1.0),
        partial(weighted, weight=2.0),
        partial(weighted, weight=torch.arange(2000.0)),
        partial(weighted, weight=torch.arange(2000.0).roll(1)),
        partial(weighted, weight=1.0, then=torch.tanh),
    ]
    model = nn.Linear(2, 2)
    digests = [FineTuning(loss=loss).made_from(model) for loss in losses]
    assert len(set(digests)) == len(losses)
    assert digests == [FineTuning(loss=copy.deepcopy(loss)).made_from(model) for loss in losses]


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_that_is_no_class_is_named(label):
    classes = small()(X).shape[1]
    labels = Y % classes
    labels[3] = label if label < 0 else classes
    with pytest.raises(InvalidInputError, match=rf"classes 0\.\.{classes - 1}, and among the labels is {labels[3]}:"):
        finetune(small(), [(X, labels)], FAST)


def test_samples_that_torch_s_loss_leaves_out_may_be_among_the_labels():
    labels = Y % small()(X).shape[1]
    labels[3] = -100
    assert finetune(small(), [(X, labels)], FAST) is not None
