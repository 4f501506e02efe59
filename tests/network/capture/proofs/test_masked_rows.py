"""Masks: what they leave out is proved to be padding, and the same rows are chosen in whatever batch and padding."""

import numpy as np
import pytest
import torch
from token_networks import ALL_ROWS, ARRANGED, WIDTH, Reads, drawn, moments, padded, same_as
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.spec import select_layers


class Attends(nn.Module):
    """An encoder, and a decoder of as many positions that looks at it."""

    def __init__(self, *, heeds=True):
        super().__init__()
        self.embed, self.heeds = nn.Embedding(20, 8), heeds
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask=None):
        ignored = attention_mask == 0 if self.heeds else None
        memory = self.encoder(self.embed(input_ids), src_key_padding_mask=ignored)
        over = None if decoder_attention_mask is None else decoder_attention_mask == 0
        target = self.embed(decoder_input_ids)
        return self.decoder(target, memory, memory_key_padding_mask=ignored, tgt_key_padding_mask=over)


def texts(samples=4, positions=5):
    ids = torch.randint(1, 20, (samples, positions), generator=torch.Generator().manual_seed(3))
    mask = padded(samples, positions)
    other = padded(samples, positions).flip(0)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask.long(),
        "decoder_input_ids": ids.flip(1) * other,
        "decoder_attention_mask": other.long(),
    }


def test_an_encoders_mask_is_refused_for_a_decoder_of_as_many_positions():
    torch.manual_seed(0)
    net, batch = Attends().eval(), texts()
    assert moments(net, [batch], "encoder.linear1", mask="attention_mask").count == int(batch["attention_mask"].sum())
    with pytest.raises(InvalidInputError, match=r"layer 'decoder.linear1': its rows change with other inputs"):
        moments(net, [batch], "decoder.linear1", mask="attention_mask")


def test_layers_have_masks_of_their_own_by_patterns():
    torch.manual_seed(0)
    net, batch = Attends().eval(), texts()
    masks = {"encoder.*": "attention_mask", r"re:decoder\..*1": "decoder_attention_mask", "decoder.linear2": None}
    layers = select_layers(net, ["encoder.linear1", "decoder.linear1", "decoder.linear2"])
    found = accumulate_stream(net, [batch], layers, rows=ds.RowRule(mask=masks), folding=ALL_ROWS)
    counts = [int(batch["attention_mask"].sum()), int(batch["decoder_attention_mask"].sum()), 20]
    assert [found[layer.stream].count for layer in layers] == counts
    words = ds.RowRule(mask=masks).words
    assert words == (
        r"rows that mask 'attention_mask' of 'encoder.*' and mask 'decoder_attention_mask' of 're:decoder\..*1' keeps"
    )
    with pytest.raises(InvalidInputError, match="mask must be a key of the batch or a function of it, a list"):
        ds.RowRule(mask={"encoder.*": 3})


def test_a_network_that_does_not_heed_the_mask_is_refused():
    torch.manual_seed(0)
    with pytest.raises(InvalidInputError, match=r"layer 'encoder.linear1': rows that count change with the content of"):
        moments(Attends(heeds=False).eval(), [texts()], "encoder.linear1", mask="attention_mask")


def test_the_padding_is_proved_on_the_first_batch_that_has_some():
    torch.manual_seed(0)
    whole = {key: torch.ones_like(value) if "mask" in key else value for key, value in texts().items()}
    with pytest.raises(InvalidInputError, match=r"layer 'encoder.linear1': rows that count change with the content of"):
        moments(Attends(heeds=False).eval(), [whole, texts()], "encoder.linear1", mask="attention_mask")


def test_a_table_of_positions_is_not_masked_as_if_it_were_tokens():
    """DeBERTa's relative positions: as many rows as the batch has tokens, by chance."""

    class Relative(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.fc = nn.Parameter(drawn(20, WIDTH)), nn.Linear(WIDTH, WIDTH)

        def forward(self, x, attention_mask):
            return (x * attention_mask[..., None]) @ self.fc(self.table).sum(0)

    batch = {"x": drawn(4, 5, WIDTH), "attention_mask": padded(4, 5).long()}
    with pytest.raises(InvalidInputError, match=r"layer 'fc': none of its rows, of shape \(20,\), changes with"):
        moments(Relative(), [batch], mask="attention_mask")


def test_a_mask_may_leave_out_more_than_padding():
    """The first token of each text counts for the network, and is not to be measured."""
    torch.manual_seed(0)
    net, batch = Attends().eval(), texts()

    def without_first(batch):
        return batch["attention_mask"] * (torch.arange(5) > 0)

    found = moments(net, [batch], "encoder.linear1", mask=without_first)
    assert found.count == int(without_first(batch).sum())


def test_blanked_padding_is_taken_for_what_it_is():
    class Blanking(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.places = nn.Linear(WIDTH, 4), nn.Parameter(drawn(5, WIDTH))

        def forward(self, x, attention_mask):
            return self.fc(x * attention_mask[..., None] + self.places).sum()

    net, x, mask = Blanking(), drawn(4, 5, WIDTH), padded(4, 5)
    found = moments(net, [{"x": x, "attention_mask": mask.long()}], mask="attention_mask")
    same_as(found, (x + net.places.detach())[mask])


@pytest.mark.parametrize("overwrite", [lambda x: x.add_(1), lambda x: x.mul_(3), lambda x: x.zero_()])
def test_a_network_may_overwrite_what_it_is_given(overwrite):
    """Each pass of the proof, that of other padding too, begins with the batch as it was."""

    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(WIDTH, 4)

        def forward(self, x, attention_mask):
            y = self.fc(x * attention_mask[..., None] + 1)
            overwrite(x)
            overwrite(attention_mask)
            return y

    x, mask = drawn(4, 5, WIDTH), padded(4, 5)
    batch = {"x": x.clone(), "attention_mask": mask.long()}
    same_as(moments(Overwriting(), [batch], mask="attention_mask"), x[mask] + 1)


@pytest.mark.parametrize("left", [True, False])
def test_the_same_rows_are_chosen_whatever_batch_and_padding_a_sample_has(left):
    torch.manual_seed(0)
    texts_ = [drawn(length, WIDTH, seed=length) for length in (3, 9, 5, 7, 2, 8, 6, 4)]

    def batches(size):
        for start in range(0, len(texts_), size):
            chunk = texts_[start : start + size]
            longest = max(map(len, chunk))
            x, mask = torch.zeros(len(chunk), longest, WIDTH), torch.zeros(len(chunk), longest, dtype=torch.long)
            for row, text in enumerate(chunk):
                place = slice(longest - len(text), None) if left else slice(len(text))
                x[row, place], mask[row, place] = text, 1
            yield {"x": x, "attention_mask": mask}

    net = Reads(ARRANGED["samples first"])
    found = [moments(net, list(batches(size)), mask="attention_mask", most_per_sample=3) for size in (1, 2, 4, 8)]
    assert {one.count for one in found} == {2 + 7 * 3}
    for one in found[1:]:
        np.testing.assert_allclose(one.scatter, found[0].scatter, atol=1e-9)
