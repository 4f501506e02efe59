"""The proof of a capture on its first batch: what it decides and what it refuses, each with a network that needs it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.layers.spec import select_layers
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.progress import Silent

WIDTH = 6
ALL_ROWS = ds.Folding(holdout=HoldoutRule(0.0))


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(samples, positions, *, left=False):
    """(N, T): the last positions of each sample, or the first, are padding; of the first sample none."""
    lengths = positions - torch.arange(samples) % (positions - 1)
    places = torch.arange(positions)
    return places >= positions - lengths[:, None] if left else places < lengths[:, None]


def moments(net, batches, layer="fc", **rule):
    layers = select_layers(net, [layer])
    return accumulate_stream(net.eval(), batches, layers, rows=ds.RowRule(**rule), folding=ALL_ROWS)[layers[0].stream]


def same_as(found, rows):
    """The moments are those of exactly these rows."""
    rows = rows.double().reshape(-1, rows.shape[-1])
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(found.scatter, (rows - rows.mean(0)).T @ (rows - rows.mean(0)), atol=1e-9)


class Reads(nn.Module):
    """A layer that reads the tokens as `arrange` lays them out."""

    def __init__(self, arrange):
        super().__init__()
        self.fc, self.arrange = nn.Linear(WIDTH, 4), arrange

    def forward(self, x, attention_mask=None):  # noqa: ARG002  # what the mask is named by
        return self.fc(self.arrange(x)).sum()


# --- the order of rows ----------------------------------------------------------------------------------------------

ARRANGED = {
    "samples first": lambda x: x,
    "samples first, flat": lambda x: x.flatten(0, 1),
    "positions first": lambda x: x.transpose(0, 1),
    "positions first, flat": lambda x: x.transpose(0, 1).flatten(0, 1),
    "samples in the middle": lambda x: x.unflatten(1, (2, -1)).permute(1, 0, 2, 3),
    "samples in the middle, half flat": lambda x: x.unflatten(1, (2, -1)).permute(1, 0, 2, 3).flatten(0, 1),
}


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


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        (lambda x: x - x.mean(0), "rows of others change too"),
        (lambda x: functional.batch_norm(x.mT, None, None, training=True).mT, "rows of others change too"),
        (lambda x: x.repeat(1, 4, 1).unflatten(1, (2, -1)).transpose(0, 1).flatten(0, 2), "rows of others change too"),
        (lambda x: 2 * x[x[..., 0] > 0], "rows are packed, or sent to it by a router|rows of others change too"),
        (lambda x: torch.arange(42.0).reshape(7, 6) + 0 * x.sum(), "none of its rows.* changes with a sample"),
        (lambda x: torch.arange(72.0).reshape(12, 6) + 0 * x.sum(), "none of its rows.* changes with a sample"),
    ],
)
def test_a_layer_whose_rows_belong_to_no_sample_is_refused_by_name(mix, reason):
    with pytest.raises(InvalidInputError, match=rf"layer 'fc': .*({reason}).*prove=False"):
        moments(Reads(mix), [drawn(4, 3, WIDTH)])


@pytest.mark.parametrize("samples", [4, 7])
@pytest.mark.parametrize(
    ("pick", "whose"),
    [
        (lambda x: x.flip(0), lambda x: torch.ones(x.shape[:2], dtype=torch.bool)),
        (lambda x: x[x[..., 0] > 0], lambda x: x[..., 0] > 0),
        (lambda x: x.flatten(0, 1).flip(0)[(x[..., 0] > 0).flatten().flip(0)], lambda x: x[..., 0] > 0),
    ],
    ids=["turned round", "packed", "packed and turned round"],
)
def test_rows_in_any_order_are_looked_up_in_what_a_module_around_reads(pick, whose, samples, tmp_path):
    x = drawn(samples, 3, WIDTH)
    net = Reads(pick).eval()
    store = ds.capture(net, [x], select_layers(net, ["fc"]), tmp_path, domain="t")
    tile = store.read_tile("t", "fc", 0)
    np.testing.assert_array_equal(tile.rows, x[whose(x)])
    np.testing.assert_array_equal(tile.samples, np.repeat(np.arange(samples), whose(x).sum(1)))


def test_a_layer_that_reads_what_is_the_same_for_every_sample_is_watched():
    """As queries that a detector has learnt: a row of each sample all the same."""
    queries = drawn(5, WIDTH)
    same_as(moments(Reads(lambda x: queries.expand(len(x), -1, -1)), [drawn(4, 3, WIDTH)]), queries.repeat(4, 1, 1))


class Counting(nn.Module):
    """Gives something else at every call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("inner", "named"),
    [
        (nn.Sequential(nn.ReLU(), Counting()), r"'inner\.1' \(Counting\) gives other outputs for the same inputs"),
        (nn.RReLU().train(), r"'inner' \(RReLU\)"),
        (None, "the network's own code does"),
    ],
)
def test_a_network_that_is_random_or_remembers_is_refused_and_what_does_it_is_named(inner, named):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.fc = inner, nn.Linear(WIDTH, 4)

        def forward(self, x):
            return self.fc(functional.dropout(x, 0.5) if self.inner is None else self.inner(x))

    net = Net().eval()
    if isinstance(inner, nn.RReLU):
        inner.forward = lambda x: functional.rrelu(x, training=True)
    reason = f"the same batch gave other rows the second time: {named}"
    for samples in (1, 4):
        with pytest.raises(InvalidInputError, match=f"layer 'fc': {reason}"):
            moments(net, [drawn(samples, WIDTH)])
    assert moments(net, [drawn(4, WIDTH)], prove=False).count == 4


def test_an_unproved_capture_says_so_and_runs_nothing_more():
    calls = []
    net = Reads(ARRANGED["samples first"])
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    moments(net, [drawn(3, 4, WIDTH)] * 2, prove=False)
    assert len(calls) == 2
    assert ds.RowRule(prove=False).words == "every row, not proved"
    x, mask = drawn(3, 4, WIDTH), padded(3, 4)
    calls.clear()
    moments(net, [{"x": x, "attention_mask": mask.long()}] * 2, mask="attention_mask")
    assert len(calls) == 2 + 3


def test_random_numbers_of_the_caller_are_left_alone():
    net, batch = Reads(ARRANGED["samples first"]), drawn(3, 4, WIDTH)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    moments(net, [batch])
    assert torch.equal(torch.rand(3), expected)


# --- masks ----------------------------------------------------------------------------------------------------------


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
    with pytest.raises(InvalidInputError, match="mask must be a key of the batch or a function of it, or a mapping"):
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


# --- what a sample's rows are does not depend on its batch ----------------------------------------------------------


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


# --- memory and numbers ---------------------------------------------------------------------------------------------


class Overwritten(nn.Module):
    """Two layers read one memory; it changes in between, and torch takes no note of that."""

    def __init__(self, overwrite):
        super().__init__()
        self.a, self.b, self.overwrite = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3), overwrite

    def forward(self, x):
        x = x.clone()
        first = self.a(x)
        self.overwrite(x)
        return first + self.b(x)


def double_by_numpy(x):
    array = x.numpy()
    array *= 2


@pytest.mark.parametrize("overwrite", [lambda x: x.data.mul_(2), double_by_numpy])
def test_layers_that_read_one_memory_at_two_times_have_rows_of_their_own(overwrite):
    x = drawn(8, WIDTH)
    net = Overwritten(overwrite).eval()
    layers = select_layers(net, ["a", "b"])
    found = accumulate_stream(net, [x], layers, folding=ALL_ROWS)
    same_as(found["a"], x)
    same_as(found["b"], 2 * x)
    unchanged = accumulate_stream(Overwritten(lambda _x: None).eval(), [x], layers, folding=ALL_ROWS)
    assert unchanged["a"] is unchanged["b"]


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_complex_numbers_are_refused_by_name(side):
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            for name, parameter in self.fc.named_parameters():  # only now: such a layer is not selected
                setattr(self.fc, name, nn.Parameter(parameter.to(torch.complex64)))
            return self.fc(torch.fft.rfft(x))

    with pytest.raises(UnsupportedLayerError, match=r"layer 'fc.*complex"):
        accumulate_stream(
            Spectrum().eval(), [drawn(5, WIDTH)], select_layers(Spectrum(), ["fc"], side=side), folding=ALL_ROWS
        )
