"""Which layers may share a pass, and that every pass sees the same batches."""

import pytest
import torch
from torch import nn

from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, LayerNotFoundError, UnsupportedLayerError
from dalr_stream.network.capture.passes import SameEveryPass, order_of_execution

BATCH = torch.ones(3, 4)


class Attention(nn.Module):
    """Defined in another order than it runs; `copied` reads equal numbers, but another tensor."""

    def __init__(self, between=None):
        super().__init__()
        self.out = nn.Linear(4, 4)
        self.value, self.key, self.query = (nn.Linear(4, 4) for _ in range(3))
        self.copied, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)
        self.between = between

    def forward(self, x):
        h = torch.relu(x)
        q = self.query(h)
        if self.between is not None:
            self.between(h)
        k, v = self.key(h), self.value(input=h)
        return self.out(q * k * v + self.copied(h.clone()))


QKV = ["out", "value", "key", "query", "copied"]


def test_layers_come_in_the_order_they_are_called_and_those_of_one_tensor_together():
    found = order_of_execution(Attention(), BATCH, QKV)
    assert found == (("query", "key", "value"), ("copied",), ("out",))
    assert order_of_execution(Attention(), BATCH, ["out", "key"]) == (("key",), ("out",))


def by_numpy(h):
    array = h.numpy()
    array += 1


@pytest.mark.parametrize(
    "write",
    [
        lambda h: h.add_(1.0),
        lambda h: h[0].zero_(),
        lambda h: h.view(-1).mul_(2.0),
        lambda h: h.clamp_(max=5.0),  # which changes nothing in this batch
        lambda h: h.data.mul_(2.0),  # of these torch takes no note
        lambda h: h.detach().data[1].zero_(),
        by_numpy,
    ],
)
def test_a_tensor_written_to_in_between_is_another(write):
    assert order_of_execution(Attention(write), BATCH, QKV)[:2] == (("query",), ("key", "value"))


def test_a_batch_made_in_inference_mode_is_told_too():
    """torch counts no writes to it, so the network is given a copy, whose writes are counted."""
    with torch.inference_mode():
        batch = torch.ones(3, 4)
    pair = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
    pair.forward = lambda x: pair["a"](x) + pair["b"](x)
    assert order_of_execution(pair, batch, ["a", "b"]) == (("a", "b"),)
    with torch.inference_mode():  # a caller's
        assert order_of_execution(pair, batch, ["a", "b"]) == (("a", "b"),)


def test_layers_called_never_or_twice_are_refused_and_no_hook_stays():
    model = Attention()
    with pytest.raises(
        UnsupportedLayerError, match=r"layer 'spare': must be called once in a forward pass, .* 0 times"
    ):
        order_of_execution(model, BATCH, ["out", "spare"])
    twice = nn.Sequential(layer := nn.Linear(4, 4), nn.ReLU(), layer)
    with pytest.raises(UnsupportedLayerError, match=r"layer '0': .* 2 times"):
        order_of_execution(twice, BATCH, ["0"])
    with pytest.raises(LayerNotFoundError, match=r"there is no layer 'quarry'; nearest: query"):
        order_of_execution(model, BATCH, ["out", "quarry"])
    assert not any(module._forward_pre_hooks for module in (*model.modules(), *twice.modules()))


def test_a_generator_allows_one_pass_only():
    with pytest.raises(InvalidInputError, match=r"batches: several passes go through them, a generator allows one"):
        SameEveryPass(batch for batch in [BATCH])
    with pytest.raises(InvalidInputError, match=r"source: .* a list_iterator"):
        SameEveryPass(iter([BATCH]), "source")
    with pytest.raises(InvalidInputError, match=r"gave no sample"):
        SameEveryPass([torch.ones(0, 4)]).first()


def test_every_pass_is_compared_with_the_first_and_labels_do_not_count():
    passes = [[BATCH, 2 * BATCH], [BATCH, 2 * BATCH], [2 * BATCH, BATCH], [BATCH], [BATCH, 2 * BATCH, BATCH]]

    class Shifting:
        def __iter__(self):
            return ((batch, torch.rand(3)) for batch in passes.pop(0))

    batches = SameEveryPass(Shifting())
    assert len(list(batches)) == len(list(batches)) == 2
    with pytest.raises(
        FingerprintMismatchError, match=r"batch 0 is not the one of the first pass: .*turn off shuffling"
    ):
        list(batches)
    with pytest.raises(FingerprintMismatchError, match=r"ended after 1 batches, the first pass had 2"):
        list(batches)
    with pytest.raises(FingerprintMismatchError, match=r"batch 2 is not"):
        list(batches)
