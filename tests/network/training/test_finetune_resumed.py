"""The same bits however often a fine-tuning is interrupted; checkpoints of something else, and damaged ones."""

import copy
from functools import partial

import pytest
import torch
from dense_network import build
from finetune_cases import BATCHES, FAST, Dying, Killed, Shuffled, X, Y, changed, mixed, small
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError
from dalr_stream.network.training.finetune import finetune
from dalr_stream.network.training.setting import FineTuning


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
