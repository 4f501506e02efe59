"""How many samples a batch has, and what of it the network is given: never guessed from whatever tensor comes first."""

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.batches import few_samples, samples_in
from dalr_stream.network.layers.spec import select_layers
from dalr_stream.numerics.rows.sampling import HoldoutRule

ALL_ROWS = ds.Folding(holdout=HoldoutRule(0.0))


class Positioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places, self.fc = nn.Embedding(9, 6), nn.Embedding(10, 6), nn.Linear(6, 3)

    def forward(self, input_ids, position_ids=None, attention_mask=None, bias=None):  # noqa: ARG002
        places = torch.arange(input_ids.shape[1])[None] if position_ids is None else position_ids
        return self.fc(self.embed(input_ids) + self.places(places))


def ids(samples, positions=10):
    return torch.randint(9, (samples, positions), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_position_ids_for_all_samples_do_not_count_them(samples):
    batch = {"position_ids": torch.arange(10)[None], "input_ids": ids(samples)}
    net = Positioned().eval()
    found = accumulate_stream(net, [batch] * 2, select_layers(net, ["fc"]), folding=ALL_ROWS)["fc"]
    assert (found.samples, found.count) == (2 * samples, 20 * samples)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ({"bias": torch.zeros(10, 10), "input_ids": ids(3)}, 3),
        ({"image_sizes": torch.zeros(7, 2), "pixel_values": torch.zeros(2, 3, 4, 4)}, 2),
        ({"x": torch.zeros(1, 4), "y": torch.zeros(1)}, 1),
        ({"scale": torch.tensor(2.0), "x": torch.zeros(4, 2)}, 4),
        ({"x": torch.zeros(0, 4), "places": torch.zeros(1, 4)}, 0),
        (torch.zeros(5, 2), 5),
        ((torch.zeros(5, 2), torch.zeros(5)), 5),
    ],
)
def test_samples_are_counted_by_what_has_a_row_for_each(batch, samples):
    assert samples_in(batch) == samples


def test_tensors_of_several_lengths_are_refused_by_name():
    with pytest.raises(InvalidInputError, match="they have 'bias' 10, 'x' 3: let what belongs to no sample"):
        samples_in({"bias": torch.zeros(10, 10), "x": torch.zeros(3, 10)})


def test_a_few_samples_leave_what_is_no_sample_whole():
    few = few_samples(({"bias": torch.zeros(10, 10), "input_ids": ids(3)}, torch.zeros(3)), 2)
    assert [few[0]["bias"].shape, few[0]["input_ids"].shape, few[1].shape] == [(10, 10), (2, 10), (2,)]


@pytest.mark.parametrize("mask", [torch.ones(4, 10, dtype=torch.long), torch.ones(4, 10, dtype=torch.bool)])
@pytest.mark.parametrize("labels", [(), (torch.zeros(4, dtype=torch.long),)])
def test_a_mask_beside_tokens_that_the_network_would_not_be_given_is_refused(mask, labels):
    net = Positioned().eval()
    with pytest.raises(InvalidInputError, match=r"give mappings of its arguments, \{'input_ids': tokens, 'atten"):
        accumulate_stream(net, [(ids(4), mask, *labels)], select_layers(net, ["fc"]), folding=ALL_ROWS)


@pytest.mark.parametrize("second", [torch.zeros(4, dtype=torch.long), 2 * torch.ones(4, 10), ids(4) + 1])
def test_labels_beside_tokens_are_no_mask(second):
    net = Positioned().eval()
    found = accumulate_stream(net, [(ids(4), second)], select_layers(net, ["fc"]), folding=ALL_ROWS)
    assert found["fc"].count == 40
