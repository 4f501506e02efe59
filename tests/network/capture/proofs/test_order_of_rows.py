"""In what order rows come is proved on the first batch, and they are taken by sample whatever it is."""

import numpy as np
import pytest
import torch
from token_networks import ARRANGED, WIDTH, Reads, drawn, moments, padded, same_as
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.spec import select_layers
from dalr_stream.progress import Silent


@pytest.mark.parametrize("arrange", ARRANGED.values(), ids=ARRANGED)
@pytest.mark.parametrize(("samples", "positions"), [(3, 4), (4, 4), (5, 2), (2, 6), (1, 4)])
@pytest.mark.parametrize("left", [True, False])
def test_masked_rows_are_those_of_the_mask_however_the_layer_gets_them(arrange, samples, positions, left):
    x, mask = drawn(samples, positions, WIDTH), padded(samples, positions, left=left)
    batches = [{"x": x, "attention_mask": mask.long()}, {"x": 2 * x[:1], "attention_mask": mask[:1].long()}]
    same_as(moments(Reads(arrange), batches, mask="attention_mask"), torch.cat([x[mask], 2 * x[:1][mask[:1]]]))


@pytest.mark.parametrize("arrange", ARRANGED.values(), ids=ARRANGED)
def test_rows_of_a_sample_are_chosen_alike_however_the_layer_gets_them(arrange):
    x = drawn(6, 4, WIDTH)
    first = moments(Reads(ARRANGED["samples first"]), [x], most_per_sample=2)
    found = moments(Reads(arrange), [x[:3], x[3:]], most_per_sample=2)
    assert found.count == 12
    np.testing.assert_allclose(found.scatter, first.scatter, atol=1e-9)


def test_held_out_samples_are_held_out_whole_where_positions_come_first():
    x = drawn(40, 4, WIDTH)
    both = [
        accumulate_stream(Reads(arrange).eval(), [x], select_layers(Reads(arrange), ["fc"]))
        for arrange in (ARRANGED["samples first"], ARRANGED["positions first, flat"])
    ]
    np.testing.assert_allclose(both[0].heldout["fc"].scatter, both[1].heldout["fc"].scatter, atol=1e-9)


def test_an_order_that_one_may_not_expect_is_told(tmp_path):
    class Notes(Silent):
        said = ()

        def note(self, message):
            self.said += (message,)

    for arrange, told in (("samples first", 0), ("positions first", 1)):
        net, notes = Reads(ARRANGED[arrange]).eval(), Notes()
        ds.capture(
            net, [drawn(3, 4, WIDTH)], select_layers(net, ["fc"]), tmp_path / arrange, domain="t", progress=notes
        )
        assert sum("position after position, and are taken by sample, of fc" in line for line in notes.said) == told


def test_frames_of_clips_are_folded_into_the_batch_in_any_order():
    clips = drawn(3, 2, 4, 5, 5)

    class Frames(nn.Module):
        def __init__(self, *, first):
            super().__init__()
            self.conv, self.first = nn.Conv2d(4, 3, 3), first

        def forward(self, x):
            return self.conv((x.transpose(0, 1) if self.first else x).flatten(0, 1)).mean()

    found = [moments(Frames(first=first), [clips], "conv", most_patches=2) for first in (True, False)]
    assert found[0].count == found[1].count == 6  # two patches a clip
    np.testing.assert_allclose(found[0].scatter, found[1].scatter, atol=1e-9)


def test_a_recurrent_layers_reader_gets_positions_first():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.LSTM(WIDTH, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.fc(self.rnn(x.transpose(0, 1))[0])

    net, x = Recurrent().eval(), drawn(3, 4, WIDTH)
    found = moments(net, [x], most_per_sample=4)
    with torch.no_grad():
        same_as(found, net.rnn(x.transpose(0, 1))[0].transpose(0, 1))


def test_a_first_batch_of_one_row_a_sample_does_not_show_the_order_of_later_ones():
    net = Reads(ARRANGED["positions first"])
    with pytest.raises(
        InvalidInputError, match=r"layer 'fc': gave one row for each sample of the first batch, and rows"
    ):
        moments(net, [drawn(3, 1, WIDTH), drawn(3, 4, WIDTH)], most_per_sample=1)
