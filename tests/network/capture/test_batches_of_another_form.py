"""A batch that the network refuses, or that has another form than those before, is named wherever it comes."""

import pytest
import torch

import dalr_stream as ds
from dalr_stream.errors import InvalidInputError

GOOD, WIDER = torch.randn(4, 6), torch.randn(4, 7)
LABELS = torch.zeros(4, dtype=torch.int64)
REFUSED = "the network refuses 4 x 7 float32: RuntimeError: mat1 and mat2 shapes cannot be multiplied"
CHOICE = ds.LayerChoice("dalr_anchored_affine", 2)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()


WAYS = {
    "accumulate": (
        lambda net, store: ds.accumulate(net, [GOOD, WIDER], ds.watch(net, ["0"]), store=store), "capture: batch 1"
    ),
    "block by block": (
        lambda net, store: ds.accumulate(net, [GOOD, WIDER], ds.watch(net, ["0"]), store=store, blocks=True),
        "capture: batch 1",
    ),
    "layer after layer": (
        lambda net, store: ds.compress_sequentially(net, [GOOD, WIDER], {"2": CHOICE}, store=store), "capture: batch 1"
    ),
    "accuracy": (lambda net, _: ds.network.accuracy(net, [(GOOD, LABELS), (WIDER, LABELS)]), "evaluate: batch 1"),
    "distance": (lambda net, _: ds.OutputDistance(net, [GOOD, WIDER])(net), "compress"),
    "fine-tuning": (
        lambda net, _: ds.finetune(net, [(GOOD, LABELS), (WIDER, LABELS)], ds.FineTuning(epochs=1)),
        "fine-tuning: epoch 1, batch 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("way", "place"), WAYS.values(), ids=WAYS)
def test_a_later_batch_that_the_network_refuses_is_named(net, way, place, tmp_path):
    with pytest.raises(InvalidInputError, match=f"^{place}: {REFUSED}"):
        way(net, tmp_path / "store")


def test_rows_of_another_width_are_named_where_the_layer_itself_need_not_run(net):
    message = "layer '0': its rows have 7 features in this batch, and 6 in those before: give all batches the same form"
    with pytest.raises(InvalidInputError, match=message):
        ds.compress_sequentially(net, [GOOD, WIDER], {"0": CHOICE})


def test_what_is_no_rule_of_rows_is_refused(net):
    with pytest.raises(InvalidInputError, match=r"rows must be a ds\.RowRule, got GradientRule.*is its `gradients`"):
        ds.accumulate(net, [GOOD], ds.watch(net, ["0"]), rows=ds.GradientRule())


def test_methods_are_a_sequence(net):
    batches = [GOOD] * 3
    statistics = ds.accumulate(net, batches, ds.watch(net, ["0"]))
    with pytest.raises(InvalidInputError, match=r"sizes: methods must be a sequence, got 'svd': say \['svd'\]"):
        ds.sizes(net, statistics, ds.OutputDistance(net, batches), 0.5, methods="svd")
