"""Which rows reach the sink: outputs as well as inputs, what a mask keeps, and seeded positions; each by its twin."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import chosen_positions
from torch import nn

from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.hooks import capture_rows
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec, select_layers
from dalr_stream.numerics.rows.sampling import at_most
from dalr_stream.numerics.rows.streams import Side

WIDTH = 6


class Keeper:
    """A RowSink that keeps everything."""

    held = ()

    def __init__(self):
        self.batches = []

    def skip(self, *_):
        return False

    def write(self, batch):
        self.batches.append(batch)

    def finish(self):
        pass

    def rows(self, stream):
        return np.concatenate([batch.rows[stream] for batch in self.batches if batch.samples])

    def counts(self, stream):
        return np.concatenate([batch.counts[stream] for batch in self.batches if batch.samples]).tolist()

    def digests(self):
        return [batch.digest for batch in self.batches]


class Tokens(nn.Module):
    """One layer reads tokens, one reads them flattened, one reads a pooled sample."""

    def __init__(self):
        super().__init__()
        self.mix, self.flat, self.head = nn.Linear(WIDTH, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x, attention_mask=None):
        h = self.mix(x)
        y = self.flat(h.reshape(-1, 5)).reshape(*h.shape[:2], 4)
        return self.head((y if attention_mask is None else y * attention_mask[..., None]).mean(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Tokens().eval()


def capture(net, batches, layers=("mix",), rows=None, **select):
    sink = Keeper()
    specs = layers if isinstance(layers[0], LayerSpec) else select_layers(net, layers, **select)
    capture_rows(net, batches, specs, sink, rows=rows)
    return sink


def tokens(samples, positions, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, positions, WIDTH, generator=generator)
    return x, torch.rand(samples, positions, generator=generator) < 0.6


def split(x, mask, size):
    parts = zip(x.split(size), mask.split(size), strict=True)
    return [{"x": part, "attention_mask": kept.long()} for part, kept in parts]


# --- the two sides of a layer ---------------------------------------------------------------------------------------


class Overwriting(nn.Module):
    """Everything a layer reads or gives is overwritten before the pass ends."""

    def __init__(self):
        super().__init__()
        self.fc6, self.fc7 = nn.Linear(WIDTH, 5), nn.Linear(5, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = x.clone()
        h = self.fc6(x)
        x.add_(1)
        y = self.fc7(self.act(h))
        h.zero_()
        return y.mul_(-1)


def test_both_sides_are_what_they_were_when_the_layer_ran():
    torch.manual_seed(0)
    net = Overwriting().eval()
    x = torch.randn(9, WIDTH)
    both = select_layers(net, ["fc*"]) + select_layers(net, ["fc*"], side="outputs")
    sink = capture(net, x.split(4), both)
    with torch.no_grad():
        y6 = net.fc6(x)
        expected = {"fc6": x, "fc6@outputs": y6, "fc7": y6.relu(), "fc7@outputs": net.fc7(y6.relu())}
    assert set(sink.batches[0].rows) == set(expected)
    for stream, rows in expected.items():
        np.testing.assert_allclose(sink.rows(stream), rows.numpy(), rtol=1e-5, atol=1e-6)
    assert (sink.rows("fc6@outputs") < 0).any()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_watched_side_knows_its_name_and_its_width(net):
    (layer,) = select_layers(net, ["mix"], side=Side.OUTPUTS)
    assert (layer.name, layer.stream, layer.features) == ("mix", "mix@outputs", 5)
    (layer,) = select_layers(net, ["mix"])
    assert (layer.stream, layer.features) == ("mix", WIDTH)
    with pytest.raises(InvalidInputError, match="side must be one of 'inputs', 'outputs', 'channels', 'gradients'"):
        select_layers(net, ["mix"], side="output")


def test_no_layer_passes_for_a_side_of_another(net):
    net.add_module("mix@outputs", nn.Linear(2, 2))
    with pytest.raises(UnsupportedLayerError, match="'mix@outputs': '@' is reserved for stream names"):
        select_layers(net, [nn.Linear])


@pytest.mark.parametrize("name", ["user/item", "/etc", "a\\b"])
def test_a_layer_that_would_be_more_than_one_folder_is_refused(net, name):
    net.add_module(name, nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match=r"nor contain '/', .* or NUL: rename it"):
        select_layers(net, [nn.Linear])


def test_outputs_are_as_the_module_returns_them_though_a_users_hook_changed_them(net):
    net.mix.register_forward_hook(lambda _, __, y: y * 2)
    x, _ = tokens(3, 2)
    with torch.no_grad():
        expected = net.mix(x).reshape(-1, 5).numpy()
    np.testing.assert_allclose(capture(net, [x], side="outputs").rows("mix@outputs"), expected, rtol=1e-5)


def test_a_row_shares_nothing_with_the_network(net):
    seen = []
    net.mix.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    rows = capture(net, [torch.zeros(2, 3, WIDTH)]).batches[0].rows["mix"]
    seen[0].fill_(1.0)
    assert not rows.any()


# --- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7])
def test_masked_positions_never_reach_the_sink(net, size):
    x, mask = tokens(7, 4)
    mask[2] = False
    sink = capture(net, split(x, mask, size), ["mix", "flat", "head"], RowRule(mask="attention_mask"))
    assert np.array_equal(sink.rows("mix"), x[mask].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(sink.rows("flat"), net.mix(x)[mask].numpy(), rtol=1e-5, atol=1e-6)
    assert sink.counts("mix") == sink.counts("flat") == mask.sum(1).tolist()
    assert sink.rows("head").shape == (7, 4)  # one row a sample: the mask speaks of positions
    assert sink.counts("head") == [1] * 7


def test_a_batch_may_be_masked_whole_and_hold_no_sample_at_all(net):
    x, mask = tokens(4, 3)
    mask[:2] = False
    batches = [*split(x, mask, 2), {"x": x[:0], "attention_mask": mask[:0]}]
    sink = capture(net, batches, rows=RowRule(mask="attention_mask"))
    assert [batch.rows["mix"].shape[0] if batch.samples else None for batch in sink.batches] == [0, mask.sum(), None]
    assert sink.batches[0].rows["mix"].shape == (0, WIDTH)


def test_a_function_of_the_batch_gives_a_mask_and_is_part_of_the_digest(net):
    x, mask = tokens(5, 4)
    by_function = capture(net, [(x, mask)], rows=RowRule(mask=lambda batch: batch[1]))
    assert np.array_equal(by_function.rows("mix"), x[mask].numpy())
    other = capture(net, [(x, mask.logical_not())], rows=RowRule(mask=lambda batch: batch[1]))
    again = capture(net, [(x, mask.float())], rows=RowRule(mask=lambda batch: batch[1]))
    assert other.digests() != by_function.digests() == again.digests()


def test_a_sample_of_one_position_is_told_from_a_pooled_one(net):
    """Batches padded to one token are masked where the layer reads tokens, and not where it reads samples."""
    x, mask = tokens(4, 1)
    mask[:] = torch.tensor([[1], [0], [1], [0]])
    sink = capture(net, split(x, mask, 4), ["mix", "head"], RowRule(mask="attention_mask"))
    assert sink.counts("mix") == [1, 0, 1, 0]
    assert sink.counts("head") == [1, 1, 1, 1]


class Shaped(nn.Module):
    """Its layer reads a tensor of any shape made of the batch."""

    def __init__(self, shape):
        super().__init__()
        self.fc, self.shape = nn.Linear(WIDTH, 2), shape

    def forward(self, x):
        return self.fc(x.new_zeros(*self.shape, WIDTH))


@pytest.mark.parametrize("shape", [(4, 3), (4, 5), (2, 6), (8,), (3,)])
def test_a_mask_that_does_not_fit_is_an_error_that_names_layer_and_shapes(shape):
    x, mask = torch.zeros(4, 6, WIDTH), torch.ones(4, 6)
    net = Shaped(shape).eval()
    with pytest.raises(InvalidInputError, match=r"layer 'fc': .* \(N, T\) = \(4, 6\), or one a sample, \(4,\), got \("):
        capture(net, [(x, mask)], ["fc"], RowRule(mask=lambda batch: batch[1]))


@pytest.mark.parametrize("shape", [(4, 2, 3), (4, 6), (4, 1, 6), (24,)])
def test_positions_may_have_several_dimensions_or_be_flattened(shape):
    x, mask = torch.zeros(4, 6, WIDTH), tokens(4, 6)[1]
    sink = capture(Shaped(shape).eval(), [(x, mask)], ["fc"], RowRule(mask=lambda batch: batch[1]))
    assert sink.counts("fc") == mask.sum(1).tolist()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(4, 1, 1, 3), r"\(N, T\) with N = 4 samples, got \(4, 1, 1, 3\)"),
        (torch.zeros(3, 3), r"with N = 4 samples, got \(3, 3\)"),
        ([[1, 1, 1]] * 4, "got list"),
        (torch.full((4, 3), -torch.inf), "True or 1 for positions that count .* torch.float32 values from -inf"),
        (torch.full((4, 3), 2), "got torch.int64 values from 2 to 2"),
    ],
)
def test_what_is_no_mask_is_refused(net, mask, message):
    x, _ = tokens(4, 3)
    for rule, name in ((RowRule(mask="attention_mask"), "attention_mask"), (RowRule(mask=with_a_name), "with_a_name")):
        with pytest.raises(InvalidInputError, match=rf"rows: mask .*{name}.* must give .*{message}"):
            capture(net, [{"x": x, "attention_mask": mask}], rows=rule)


def with_a_name(batch):
    return batch["attention_mask"]


def test_a_batch_without_the_key_is_refused_and_its_keys_are_named(net):
    x, _ = tokens(4, 3)
    with pytest.raises(InvalidInputError, match="the batch has no 'mask', it has x, attention_mask: name one of"):
        capture(net, [{"x": x, "attention_mask": None}], rows=RowRule(mask="mask"))
    with pytest.raises(InvalidInputError, match="it has no keys, its inputs are a tensor"):
        capture(net, [(x, x)], rows=RowRule(mask="mask"))


# --- so many positions of a sample ---------------------------------------------------------------------------------


@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 10),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**31),
    st.integers(0, 2**32 - 1),
)
def test_the_choice_is_that_of_the_naive_twin(samples, positions, most, seed, first, draw):
    keep = np.random.default_rng(draw).random((samples, positions)) < 0.6
    chosen = at_most(keep.copy(), most, seed=seed, first_sample=first)
    for n in range(samples):
        assert np.flatnonzero(chosen[n]).tolist() == chosen_positions(np.flatnonzero(keep[n]), most, seed, first + n)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_positions_do_not_depend_on_the_batches_nor_on_the_padding(net, masked, size):
    x, mask = tokens(9, 8)
    rule = RowRule("attention_mask" if masked else None, most_per_sample=3, seed=5)
    positions = [chosen_positions(np.flatnonzero(mask[n]) if masked else range(8), 3, 5, n) for n in range(9)]
    expected = np.concatenate([x[n, chosen].numpy() for n, chosen in enumerate(positions)])
    assert np.array_equal(capture(net, split(x, mask, size), rows=rule).rows("mix"), expected)
    if masked:
        padding = torch.zeros(9, 5, WIDTH), torch.zeros(9, 5, dtype=torch.bool)
        longer = split(torch.cat([x, padding[0]], 1), torch.cat([mask, padding[1]], 1), size)
        assert np.array_equal(capture(net, longer, rows=rule).rows("mix"), expected)


def test_without_a_mask_every_sample_gives_the_same_number_of_rows(net):
    x, _ = tokens(6, 8)
    for most, each in ((3, 3), (8, 8), (20, 8)):
        (batch,) = capture(net, [x], rows=RowRule(most_per_sample=most)).batches
        assert batch.rows["mix"].shape[0] == 6 * each
        assert list(batch.counts["mix"]) == [each] * 6  # another batch may have other lengths


def test_layers_keep_the_same_positions_so_their_rows_stay_paired(net):
    x, mask = tokens(9, 8)
    both = select_layers(net, ["mix"]) + select_layers(net, ["mix", "flat"], side="outputs")
    sink = capture(net, split(x, mask, 4), both, RowRule("attention_mask", 2, seed=3))
    with torch.no_grad():
        y = net.mix(torch.from_numpy(sink.rows("mix")))
        np.testing.assert_allclose(sink.rows("mix@outputs"), y.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(sink.rows("flat@outputs"), net.flat(y).numpy(), rtol=1e-5, atol=1e-6)


def test_second_moments_of_chosen_positions_are_unbiased():
    """Over seeds their mean is the second moment of all positions, within four standard errors in every entry."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 12, 3)) + np.arange(12)[:, None]  # positions differ: a biased choice would show
    full = np.einsum("ntd,nte->de", rows, rows) / rows[..., 0].size
    keep = np.ones((5, 12), np.bool_)
    drawn = []
    for seed in range(1500):
        chosen = rows[at_most(keep, 4, seed=seed, first_sample=7)]
        drawn.append(chosen.T @ chosen / len(chosen))
    drawn = np.array(drawn)
    error = drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn))
    assert (error < 0.05 * np.sqrt(np.outer(np.diag(full), np.diag(full)))).all()  # tight enough to mean something
    assert (np.abs(drawn.mean(axis=0) - full) < 4 * error).all()


def test_rows_that_do_not_come_sample_after_sample_are_not_chosen_from():
    with pytest.raises(InvalidInputError, match=r"layer 'fc': .* batch of 4 samples gave rows of shape \(6, 4\): let"):
        capture(Shaped((6, 4)).eval(), [torch.zeros(4, 6, WIDTH)], ["fc"], RowRule(most_per_sample=2))


@pytest.mark.parametrize("rule", [RowRule(), RowRule(mask=lambda batch: torch.ones(batch.shape[:2]))])
@pytest.mark.parametrize("positions", [5, 6])
def test_a_layer_that_gets_positions_before_samples_is_refused_where_nothing_is_proved(rule, positions):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 8), 1, enable_nested_tensor=False).eval()

    class Batched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = encoder

        def forward(self, x):
            return self.inner(x.transpose(0, 1)).transpose(0, 1)

    message = (
        rf"layer 'inner.layers.0.linear1': .* 3 samples gave rows of shape \({positions}, 3\): .* batch_first=True"
    )
    net, layer = Batched().eval(), ["inner.layers.0.linear1"]
    with pytest.raises(InvalidInputError, match=message):
        capture(net, [torch.zeros(3, positions, WIDTH)], layer, rule)
    assert len(capture(net, [torch.zeros(1, positions, WIDTH)], layer, rule).batches) == 1  # nothing to be confused


def test_images_and_their_windows_may_be_as_wide_as_the_batch():
    net = nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)).eval()
    images = torch.zeros(3, 2, 1, 3, 3)  # six frames of three samples, three pixels wide
    rule = RowRule(gradients=GradientRule(metric="values", outputs=lambda given: given.reshape(3, -1)))
    for side in set(Side) - {Side.RESIDUAL}:  # no residual stream is there
        layers = [LayerSpec("2", "Conv2d", 2, 1, side, 2)]
        assert len(capture(net, [images], layers, rule).batches) == 1


# --- the rule -----------------------------------------------------------------------------------------------------


def test_a_rule_says_what_it_does_and_no_two_rules_say_the_same():
    rules = {
        RowRule(): "every row",
        RowRule("pad"): "rows that mask 'pad' keeps",
        RowRule("pad", 4, 7): "rows that mask 'pad' keeps, at most 4 a sample by seed 7",
        RowRule(None, 4): "every row, at most 4 a sample by seed 0",
        RowRule(with_a_name): f"rows that mask {__name__}:with_a_name keeps",
        RowRule(gradients=GradientRule()): "every row, gradients of classes by 1 random vector a sample by seed 0",
    }
    assert [rule.words for rule in rules] == list(rules.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most_per_sample": 0}, "at least 1, got 0"),
        ({"most_per_sample": 2.5}, "most_per_sample must be a whole number of at least 1, got 2.5"),
        ({"most_patches": "all"}, "most_patches must be a whole number of at least 1, got 'all'"),
        ({"seed": None}, "seed must be a whole number of at least 0, got None"),
        ({"gradients": {"draws": 2}}, r"gradients must be a ds.GradientRule, got {'draws': 2}"),
        ({"mask": ""}, "''"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        RowRule(**options)
