"""Experts: rows that a router sends them, any number of each sample, or none."""

import numpy as np
import pytest
import torch
import transformers as hf
from gradient_twin import gradients, signs
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.capture.paired import SecondNetwork
from dalr_stream.network.layers.spec import select_layers
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.progress import Silent

WIDTH, EXPERTS = 6, 4
ALL_ROWS = ds.Folding(holdout=HoldoutRule(0.0))


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)) * self.gate(x))


class Mixture(nn.Module):
    """Tokens, flattened, to `top` experts each, as Mixtral's did; expert 3 gets none of them."""

    def __init__(self, top=2, room=None):
        super().__init__()
        torch.manual_seed(0)
        self.router, self.experts = nn.Linear(WIDTH, EXPERTS), nn.ModuleList(Expert() for _ in range(EXPERTS))
        with torch.no_grad():
            self.router.bias[3] = -100
        self.top, self.room = top, room
        self.eval()

    def chosen(self, flat):
        return self.router(flat).topk(self.top).indices

    def forward(self, x, attention_mask=None):  # noqa: ARG002  # what the mask is named by
        flat = x.reshape(-1, WIDTH)
        chosen, out = self.chosen(flat), torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            _, token = torch.where(number == chosen.T)
            if self.room is not None:
                token = token[: self.room]
            if len(token):
                out.index_add_(0, token, expert(flat[token]))
        return out.reshape(x.shape)


def sent_to(net, number, x):
    """(N, T): how often a token goes to an expert."""
    with torch.no_grad():
        return (net.chosen(x.reshape(-1, WIDTH)) == number).any(1).reshape(x.shape[:2])


def moments(net, batches, pattern, folding=ALL_ROWS, **rule):
    layers = select_layers(net, [pattern])
    return accumulate_stream(net, batches, layers, rows=ds.RowRule(**rule), folding=folding)


def same_as(found, rows, atol=1e-9):
    rows = rows.double().reshape(-1, rows.shape[-1])
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=atol)
    np.testing.assert_allclose(found.scatter, (rows - rows.mean(0)).T @ (rows - rows.mean(0)), atol=atol)


@pytest.mark.parametrize("top", [1, 2])
def test_an_experts_moments_are_those_of_the_tokens_that_reach_it(top):
    net, x = Mixture(top), drawn(8, 5, WIDTH)
    found = moments(net, [x[:3], x[3:4], x[4:]], "experts.[012].*")
    for number in range(3):
        tokens = x[sent_to(net, number, x)]
        same_as(found[f"experts.{number}.up"], tokens)
        same_as(found[f"experts.{number}.gate"], tokens)
        expert = net.experts[number]
        same_as(found[f"experts.{number}.down"], (torch.relu(expert.up(tokens)) * expert.gate(tokens)).detach(), 1e-5)


def test_rows_are_kept_with_the_number_that_each_sample_gives(tmp_path):
    net, x = Mixture(), drawn(8, 5, WIDTH)
    store = ds.capture(net, list(x.split(3)), select_layers(net, ["experts.*.up"]), tmp_path, domain="t")
    for number in range(3):
        tile, sent = store.read_tile("t", f"experts.{number}.up", 0), sent_to(net, number, x)
        np.testing.assert_array_equal(tile.rows, x[sent])  # sample after sample, position after position
        np.testing.assert_array_equal(tile.samples, np.repeat(np.arange(8), sent.sum(1)))


def test_samples_are_held_out_whole():
    net, x = Mixture(), drawn(40, 5, WIDTH)
    rule = HoldoutRule(0.3)
    found = moments(net, list(x.split(7)), "experts.[012].up", folding=ds.Folding(holdout=rule))
    heldout = torch.from_numpy(rule.mask(np.arange(40)))
    same_as(found.heldout["experts.1.up"], x[heldout][sent_to(net, 1, x[heldout])])


def test_masked_tokens_and_those_beyond_the_most_are_left_out():
    net, x = Mixture(), drawn(6, 5, WIDTH)
    mask = torch.arange(5) < torch.tensor([5, 2, 4, 1, 3, 5])[:, None]
    batch = {"x": x, "attention_mask": mask.long()}
    sent = sent_to(net, 0, x) & mask
    same_as(moments(net, [batch], "experts.0.up", mask="attention_mask")["experts.0.up"], x[sent])
    few = moments(net, [batch], "experts.0.up", mask="attention_mask", most_per_sample=1)["experts.0.up"]
    assert few.count == int(sent.any(1).sum())


def test_an_expert_that_saw_nothing_says_so(tmp_path):
    class Notes(Silent):
        said = ""

        def note(self, message):
            self.said += message

    net, notes = Mixture(), Notes()
    layers = select_layers(net, ["experts.*.up"])
    ds.capture(net, [drawn(6, 5, WIDTH)], layers, tmp_path, domain="t", progress=notes)
    assert "a router decides which rows of each sample reach experts.0.up, experts.1.up" in notes.said
    assert "no row reached experts.3.up: more samples may, or leave them out" in notes.said


def test_an_expert_that_the_first_batch_does_not_reach_is_measured_from_the_next_on():
    net, x = Mixture(top=1), drawn(30, 5, WIDTH)
    first = x[~sent_to(net, 1, x)][:30].reshape(6, 5, WIDTH)
    found = moments(net, [first, x], "experts.[012].up")
    same_as(found["experts.1.up"], x[sent_to(net, 1, x)])


def test_experts_of_limited_room_in_which_samples_push_one_another_out_are_refused():
    net = Mixture(room=3)
    with pytest.raises(InvalidInputError, match=r"layer 'experts\.\d\.(up|gate|down)': "):
        moments(net, [drawn(8, 5, WIDTH)], "experts.[012].*")


@pytest.mark.filterwarnings("ignore")
def test_experts_of_transformers_are_measured_where_they_are_layers():
    sizes = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
        "num_experts": 2,
        "num_sparse_encoder_layers": 1,
    }
    words = {"vocab_size": 40, "pad_token_id": 0, "decoder_start_token_id": 0, "expert_capacity": 100}
    torch.manual_seed(0)
    net = hf.SwitchTransformersEncoderModel(hf.SwitchTransformersConfig(**sizes, **words)).eval()
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    ids = torch.randint(3, 40, (6, 7), generator=torch.Generator().manual_seed(1))
    layers = select_layers(net, ["encoder.*.experts.*.wi"])
    found = accumulate_stream(net, [{"input_ids": ids}], layers, folding=ALL_ROWS)
    reads = {}
    for layer in layers:
        net.get_submodule(layer.name).register_forward_pre_hook(
            lambda _, x, name=layer.name: reads.update({name: x[0]})
        )
    with torch.no_grad():
        net(input_ids=ids)
    assert sum(found[layer.stream].count for layer in layers) == 6 * 7
    for name, rows in reads.items():
        same_as(found[name], rows)


def test_rows_of_two_networks_are_not_paired_where_a_router_chooses_them():
    net, x = Mixture(), drawn(8, 5, WIDTH)
    (layer,) = select_layers(net, ["experts.0.up"])
    second = SecondNetwork(net, {"z": layer}, ds.RowRule())
    with pytest.raises(UnsupportedLayerError, match=r"layer 'experts.0.up': a router decides which rows reach it"):
        [second.rows() for _ in second.follow([x])]


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_convolutions_of_images_in_another_order_are_refused_as_before(side):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x.flip(0))

    layers = select_layers(Turned(), ["conv"], side=side)
    for samples in (4, 7):
        with pytest.raises(InvalidInputError, match=r"layer 'conv.*rows of others change too"):
            accumulate_stream(Turned().eval(), [drawn(samples, 3, 6, 6)], layers)


def test_a_network_whose_expert_is_compressed_at_full_rank_is_the_original():
    net, x = Mixture(), drawn(30, 5, WIDTH)
    found = ds.accumulate(net, [x], select_layers(net, ["experts.0.up"]))
    with pytest.warns(Warning, match="parameters"):
        pair = ds.dalr(found["experts.0.up"]).at_rank(6)
    small = ds.compress(net, {"experts.0.up": pair}, example=x)
    with torch.no_grad():
        torch.testing.assert_close(small(x), net(x), atol=1e-4, rtol=1e-4)


def test_gradients_of_an_expert_are_those_of_the_tokens_that_reach_it():
    net, x = Mixture(), drawn(5, 4, WIDTH)
    layers = select_layers(net, ["experts.*.down"], side="gradients")
    rows = ds.RowRule(gradients=ds.GradientRule(metric="values"))
    found = accumulate_stream(net, x.split(2), layers, rows=rows, folding=ALL_ROWS)
    for number in range(3):
        expected = []
        for sample, one in enumerate(x):
            if sent_to(net, number, one[None]).any():
                e = signs(0, sample, 0, 4, WIDTH)
                expected += gradients(net, net.experts[number].down, one[None], lambda o: o, lambda _, e=e: e)
        rows_of_expert = np.concatenate(expected).astype(float)
        moments_of_expert = found[f"experts.{number}.down@gradients"]
        assert moments_of_expert.count == len(rows_of_expert) > 0
        second_moment = rows_of_expert.T @ rows_of_expert / len(rows_of_expert)
        np.testing.assert_allclose(moments_of_expert.second_moment, second_moment, atol=1e-6)
    assert found["experts.3.down@gradients"].count == 0
