"""Fine-tuning towards the original's outputs, without labels: class scores and embeddings."""

import numpy as np
import pytest
import torch
from dense_network import build
from finetune_cases import FAST, Killed, Shuffled, X, Y, changed, mixed, small, tensors
from torch import nn

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, NonFiniteError
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import weights_of
from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.network.surgery.compress import compress
from dalr_stream.network.training.finetune import finetune
from dalr_stream.network.training.output_loss import OutputLoss
from dalr_stream.network.training.setting import FineTuning
from dalr_stream.numerics.lowrank.truncated import truncated_svd

BATCHES = [X[i : i + 16] for i in range(0, 40, 16)]
DISTANCES = ("energy", "kl", "cosine")


class Embedding(nn.Module):
    """Tokens to an embedding a token and a pooled one, in a mapping, as transformers give them; flags beside them."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(30, 12)
        self.first, self.second = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, ids, mask):
        hidden = self.tokens(ids)
        hidden = hidden + self.second(torch.nn.functional.gelu(self.first(hidden)))
        kept = mask[..., None].to(hidden)
        return {"hidden": hidden, "pooled": (hidden * kept).sum(1) / kept.sum(1), "flags": ids > 3}


def embedding():
    torch.manual_seed(4)
    return Embedding().eval()


def texts(count=4):
    rng = torch.Generator().manual_seed(3)
    mask = torch.arange(6) < torch.randint(2, 7, (8, 1), generator=rng)
    return [{"ids": torch.randint(30, (8, 6), generator=rng), "mask": mask} for _ in range(count)]


def small_embedding(net, rank=3):
    return compress(net, {name: truncated_svd(*weights_of(net, name)).at_rank(rank) for name in ("first", "second")})


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("train", ["layers", "factors", "all"])
def test_class_scores_come_nearer_to_the_originals(distance, train):
    original, told = build(), []
    options = FineTuning(30, rate=1e-2, loss=OutputLoss(original, distance=distance), train=train)
    tuned = finetune(small(), BATCHES, options, epoch_done=lambda _, loss: told.append(loss))
    away = OutputDistance(original, BATCHES, distance=distance)
    assert told[-1] < 0.7 * told[0]
    assert away(tuned) < 0.7 * away(small())


def test_embeddings_come_nearer_at_the_positions_that_count():
    original, batches, rows = embedding(), texts(), RowRule(mask="mask")
    options = FineTuning(20, rate=1e-2, loss=OutputLoss(original, distance="cosine", rows=rows), train="factors")
    less = small_embedding(original)
    tuned = finetune(less, batches, options)
    away = OutputDistance(original, batches, distance="cosine", rows=rows)
    assert away(tuned) < 0.5 * away(less)
    assert torch.equal(tuned.tokens.weight, original.tokens.weight)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_first_loss_is_the_distance_of_the_outputs(distance):
    """One batch, so that nothing was trained yet when it is measured."""
    original, told = build(), []
    options = FineTuning(1, loss=OutputLoss(original, distance=distance))
    finetune(small(), [X], options, epoch_done=lambda _, loss: told.append(loss))
    assert told == [pytest.approx(OutputDistance(original, [X], distance=distance)(small()), rel=1e-6)]


def test_cosine_counts_rows_that_are_not_zero():
    y = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    given = torch.tensor([[4.0, 3.0], [1.0, 1.0], [0.0, 2.0]])
    loss = OutputLoss(nn.Identity().eval(), distance="cosine")
    assert float(loss(given, y)) == pytest.approx(((1 - 24 / 25) + 1.0) / 2)
    assert float(loss(7 * y, y)) == pytest.approx(0.0, abs=1e-15)
    assert float(loss(y, 0 * y)) == 0.0


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_network_that_was_not_compressed_stays_where_it_is(distance):
    options = FineTuning(5, rate=1e-2, loss=OutputLoss(build(), distance=distance), train="all")
    assert options.decay == 0.0
    assert not changed(build(), finetune(build(), BATCHES, options))
    assert changed(build(), finetune(build(), BATCHES, FineTuning(1, weight_decay=0.1, loss=options.loss)))


def test_labels_beside_the_inputs_change_nothing():
    options = FineTuning(2, rate=1e-2, loss=OutputLoss(build(), distance="kl"))
    pairs = [(x, Y[: len(x)]) for x in BATCHES]
    assert not changed(finetune(small(), BATCHES, options), finetune(small(), pairs, options))


def test_the_original_is_left_alone_and_a_network_that_overwrites_its_input_is_compared_on_the_same():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(10, 4)

        def forward(self, x):
            return self.fc(x.mul_(2.0))

    torch.manual_seed(0)
    original = Overwriting().eval()
    before, batches = tensors(original), [x.clone() for x in BATCHES]
    tuned = finetune(original, batches, FineTuning(2, rate=1e-2, loss=OutputLoss(original)))
    assert not changed(original, tuned)
    assert all(torch.equal(a, b) for a, b in zip(batches, BATCHES, strict=True))
    assert all(torch.equal(before[name], value) for name, value in original.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in original.parameters())


class Unlabelled(Shuffled):
    def __iter__(self):
        return (inputs for inputs, _ in super().__iter__())


@pytest.mark.parametrize("dies_at", [0, 4, 8])
def test_interrupted_at_any_batch_it_ends_in_the_same_bits(tmp_path, dies_at):
    original = mixed()
    less = compress(original, {"fc": truncated_svd(*weights_of(original, "fc")).at_rank(2)})
    options = FineTuning(3, rate=1e-2, dropout=True, loss=OutputLoss(original, distance="kl"), train="factors")
    whole, file = finetune(less, Unlabelled(), options), tmp_path / "epochs.safetensors"
    with pytest.raises(Killed):
        finetune(less, Unlabelled(dies_at=dies_at), options, checkpoint=file)
    assert not changed(finetune(less, Unlabelled(), options, checkpoint=file), whole)


def test_a_checkpoint_of_another_original_or_distance_is_refused(tmp_path):
    file, other = tmp_path / "epochs.safetensors", build().double()
    finetune(small(), BATCHES, FineTuning(1, loss=OutputLoss(build())), checkpoint=file)
    losses = [OutputLoss(build(), distance="kl"), OutputLoss(other), OutputLoss(build(), rows=RowRule(mask="mask"))]
    for loss in losses:
        with pytest.raises(FingerprintMismatchError, match="a checkpoint of another network or other options"):
            finetune(small(), BATCHES, FineTuning(1, loss=loss), checkpoint=file)


# --- refused ------------------------------------------------------------------------------------------------------


def test_outputs_that_cannot_be_compared_are_named():
    def narrower():
        return nn.Sequential(nn.Linear(10, 3)).eval()

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(10, 4)

        def forward(self, x):
            return [str(value) for value in self.fc(x).argmax(1).tolist()]

    for model, original, message in (
        (small(), narrower(), r"the original's outputs have shape \(16, 3\), and .* \(16, 4\): give the network that"),
        (Words(), build(), "fine-tuning: the network's outputs hold no floating-point tensor"),
        (small(), Words().eval(), "fine-tuning: the network's outputs hold no floating-point tensor"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            finetune(model, BATCHES, FineTuning(loss=OutputLoss(original)))


def test_an_original_that_gives_what_is_not_finite_is_named():
    original = build()
    with torch.no_grad():
        original.fc8.bias[0] = np.nan
    with pytest.raises(NonFiniteError, match="epoch 1, batch 0: the loss must be finite, got nan"):
        finetune(small(), BATCHES, FineTuning(loss=OutputLoss(original)))


def test_bad_settings_are_named():
    with pytest.raises(InvalidInputError, match="distance must be one of 'energy', 'kl', 'cosine', got 'hamming'"):
        OutputLoss(build(), distance="hamming")
    with pytest.raises(InvalidInputError, match="the original network must be in eval mode"):
        OutputLoss(build().train())
    with pytest.raises(InvalidInputError, match="epoch 1: the loader gave no sample"):
        finetune(small(), [], FineTuning(loss=OutputLoss(build())))
    with pytest.raises(InvalidInputError, match=r"must be \(inputs, labels\) pairs, got Tensor"):
        finetune(small(), BATCHES, FAST)
