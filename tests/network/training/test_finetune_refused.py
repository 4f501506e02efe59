"""Bad input to fine-tuning, named."""

from types import SimpleNamespace

import pytest
import torch
from finetune_cases import BATCHES, FAST, X, Y, mixed, small, tensors
from torch import nn

from dalr_stream.errors import InvalidInputError, LayerNotFoundError, NonFiniteError, UnsupportedLayerError
from dalr_stream.network.training.finetune import finetune
from dalr_stream.network.training.setting import FineTuning, cross_entropy


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
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number of at least 1, got 2.5"),
        ({"loss": "outputs"}, "loss must be a function .* got 'outputs': .* ds.OutputLoss"),
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


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_that_is_no_class_is_named(label):
    classes = small()(X).shape[1]
    labels = Y % classes
    labels[3] = label if label < 0 else classes
    with pytest.raises(InvalidInputError, match=rf"classes 0\.\.{classes - 1}, and among the labels is {labels[3]}:"):
        finetune(small(), [(X, labels)], FAST)


@pytest.mark.parametrize("positions", [3, 4])
def test_scores_of_positions_are_compared_position_by_position(positions):
    """Also where there are as many positions as classes, and torch would take the one for the other."""
    scores = torch.randn(5, positions, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5 * positions).reshape(5, positions) % 4
    labels[0, 0] = -100
    expected = nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(cross_entropy(scores, labels), expected)
    torch.testing.assert_close(cross_entropy(SimpleNamespace(logits=scores), labels), expected)
    with pytest.raises(InvalidInputError, match=r"classes 0\.\.3, and among the labels is 4:"):
        cross_entropy(scores, labels.clamp(min=0) + 1)


def test_labels_of_another_form_are_named_and_pictures_and_soft_labels_are_as_torch_has_them():
    for scores, labels in (((5, 4), (5, 1)), ((5, 4), (3,)), ((5, 3, 4), (5, 2))):
        with pytest.raises(InvalidInputError, match=r"class scores \(5, .* need a class number each as labels, got"):
            cross_entropy(torch.zeros(scores), torch.zeros(labels, dtype=torch.long))
    pictures, classes = torch.randn(2, 4, 6, 5), torch.zeros(2, 6, 5, dtype=torch.long)
    torch.testing.assert_close(cross_entropy(pictures, classes), nn.functional.cross_entropy(pictures, classes))
    soft = torch.rand(5, 4)
    torch.testing.assert_close(cross_entropy(soft, soft), nn.functional.cross_entropy(soft, soft))


def test_samples_that_torch_s_loss_leaves_out_may_be_among_the_labels():
    labels = Y % small()(X).shape[1]
    labels[3] = -100
    assert finetune(small(), [(X, labels)], FAST) is not None
