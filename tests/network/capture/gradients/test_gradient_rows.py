"""Rows of gradients are those of each sample alone, one by one, whatever the layer, the batch and the settings."""

import numpy as np
import pytest
import torch
from gradient_twin import class_vectors, gradients, sampled_vectors, signs, uniform
from torch import nn
from torch.utils.checkpoint import checkpoint

from dalr_stream.errors import InvalidInputError
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.hooks import capture_rows
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import select_layers

SEED = 7
BOUND = 2e-6
"""Of the largest gradient: a few roundings of float32, whose order a batch of another size changes."""


class Collector:
    """A RowSink that keeps everything."""

    held = ()

    def __init__(self):
        self.batches = []

    def skip(self, _batch, _samples, _digest):
        return False

    def write(self, batch):
        self.batches.append(batch)

    def finish(self):
        pass

    def rows(self, layer):
        return np.concatenate([batch.rows[layer] for batch in self.batches if batch.samples])


def taken(model, batches, name, **options):
    mask, most = options.pop("mask", None), options.pop("most_per_sample", None)
    patches = options.pop("most_patches", None)
    rule = RowRule(mask, most, most_patches=patches, gradients=GradientRule(seed=SEED, **options))
    sink = Collector()
    capture_rows(model, batches, select_layers(model, [name], side="gradients"), sink, rows=rule)
    return {stream: sink.rows(stream) for stream in sink.batches[0].rows}


def assert_close(actual, expected, bound=BOUND):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound * np.abs(expected).max())


def seeded(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    return model.eval()


def data(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Overwriting(nn.Module):
    """Overwrites what layers give as soon as they gave it, also where it is a view."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.a(x)
        h.relu_()
        z = self.b(h)
        z.mul_(2.0)
        return self.c(torch.tanh_(z))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, stride=2, groups=2)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x):
        return self.head(torch.relu(self.two(torch.relu_(self.one(x)))).flatten(1))


class Tokens(nn.Module):
    """Attention by hand, which leaves padding out; each token has scores, or their mean where `pooled`."""

    def __init__(self, *, pooled=False):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 70)
        self.pooled = pooled

    def forward(self, x, attention_mask):
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        mixed = scores.masked_fill(attention_mask[:, None] == 0, -1e9).softmax(-1) @ self.v(x)
        if not self.pooled:
            return self.head(mixed)
        weights = attention_mask / attention_mask.sum(1, keepdim=True)
        return self.head((mixed * weights[..., None]).sum(1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


@pytest.mark.parametrize("metric", ["classes", "values"])
@pytest.mark.parametrize("layer", ["a", "b", "c"])
@pytest.mark.parametrize("leading", [(), (3,)])
def test_each_row_is_the_gradient_of_its_own_sample(layer, leading, metric):
    model, x = seeded(Overwriting()), data(7, *leading, 5)
    rows = taken(model, x.split(3), layer, metric=metric, draws=2)[f"{layer}@gradients"]
    expected = []
    for sample, one in enumerate(x):
        for draw in range(2):
            e = signs(SEED, sample, draw, leading[0] if leading else 1, 3)
            vector = (lambda o, e=e: class_vectors(np.atleast_2d(o), e)) if metric == "classes" else (lambda _, e=e: e)
            (found,) = gradients(model, model.get_submodule(layer), one[None], lambda o: o, vector)
            expected.append(found.reshape(-1, found.shape[-1]))
    assert_close(rows, np.concatenate(expected))


def test_a_position_of_a_convolution_has_a_row_in_its_group():
    model, x = seeded(Convolutions()), data(4, 2, 9, 9)
    one, two = taken(model, x.split(3), "one"), taken(model, x.split(2), "two")
    assert set(two) == {"two@group0@gradients", "two@group1@gradients"}
    for name, rows in (("one", [one["one@gradients"]]), ("two", [two[f"two@group{n}@gradients"] for n in range(2)])):
        expected = []
        for sample, picture in enumerate(x):
            e = signs(SEED, sample, 0, 1, 3)
            vector = lambda o, e=e: class_vectors(np.atleast_2d(o), e)  # noqa: E731  # the twin's argument
            (found,) = gradients(model, model.get_submodule(name), picture[None], lambda o: o, vector)
            expected.append(np.moveaxis(found[0], 0, -1).reshape(-1, found.shape[1]))
        assert_close(np.concatenate(rows, axis=1), np.concatenate(expected))


def test_positions_that_a_limit_leaves_out_are_made_up_for():
    model, x = seeded(Convolutions()), data(5, 2, 9, 9)
    every, some = taken(model, [x], "one")["one@gradients"], taken(model, [x], "one", most_patches=9)["one@gradients"]
    every, some = every.reshape(5, 81, -1), some.reshape(5, 9, -1)
    for all_rows, chosen in zip(every, some, strict=True):
        for row in chosen:
            assert np.min(np.abs(all_rows * 3.0 - row).max(axis=1)) < BOUND  # sqrt(81 / 9)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
def test_padding_decides_nothing(left, pooled):
    model = seeded(Tokens(pooled=pooled))
    texts = [data(length, 4, seed=length) for length in (3, 6, 2, 5)]

    def batch(some):
        longest = max(map(len, some))
        pads = [(0, 0, longest - len(text), 0) if left else (0, 0, 0, longest - len(text)) for text in some]
        x = torch.stack([nn.functional.pad(text, pad, value=3.0) for text, pad in zip(some, pads, strict=True)])
        mask = [nn.functional.pad(torch.ones(len(text)), pad[2:]) for text, pad in zip(some, pads, strict=True)]
        return {"x": x, "attention_mask": torch.stack(mask)}

    rows = taken(model, [batch(texts[:2]), batch(texts[2:])], "v", mask="attention_mask")["v@gradients"]
    expected = []
    for sample, text in enumerate(texts):
        e = signs(SEED, sample, 0, 1 if pooled else len(text), 70)
        vector = lambda o, e=e: class_vectors(np.atleast_2d(o), e)  # noqa: E731  # the twin's argument
        (found,) = gradients(model, model.v, batch([text]), lambda o: o, vector)
        expected.append(found[0])
    assert_close(rows, np.concatenate(expected), 1e-5)


def test_a_layer_that_is_called_twice_has_the_rows_of_both_calls():
    model, x = seeded(Twice()), data(4, 5)
    rows = taken(model, x.split(3), "shared", draws=2)["shared@gradients"]
    expected = []
    for sample, one in enumerate(x):
        for draw in range(2):
            e = signs(SEED, sample, draw, 1, 3)
            vector = lambda o, e=e: class_vectors(np.atleast_2d(o), e)  # noqa: E731  # the twin's argument
            expected += gradients(model, model.shared, one[None], lambda o: o, vector)
    assert_close(rows, np.concatenate(expected))


def test_sampled_labels_are_drawn_from_what_the_network_gives():
    model, x = seeded(Overwriting()), data(6, 5)
    rows = taken(model, x.split(4), "b", estimator="sampled")["b@gradients"]
    expected = []
    for sample, one in enumerate(x):
        vector = lambda o, n=sample: sampled_vectors(np.atleast_2d(o), uniform(SEED, n, 0, 1))  # noqa: E731
        expected += gradients(model, model.b, one[None], lambda o: o, vector)
    assert_close(rows, np.concatenate(expected))


@pytest.mark.parametrize("own", [False, True])
def test_labels_give_the_gradients_of_their_own_loss(own):
    model, x, labels = seeded(Overwriting()), data(6, 5), torch.tensor([0, 2, 1, 1, 0, 2])
    batches = list(zip(x.split(4), labels.split(4), strict=True))
    loss = (lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1], reduction="none")) if own else None
    rows = taken(model, batches, "b", estimator="labels", loss=loss)["b@gradients"]
    expected = []
    for one, label in zip(x, labels, strict=True):
        end = lambda o, y=label: nn.functional.cross_entropy(o, y[None], reduction="none")  # noqa: E731
        expected += gradients(model, model.b, one[None], end, lambda _: 1.0)
    assert_close(rows, np.concatenate(expected))


def test_a_long_gradient_is_made_as_long_as_the_limit_and_a_short_one_stays():
    model, x = seeded(Overwriting()), data(8, 3, 5)
    whole = taken(model, [x], "a")["a@gradients"].reshape(8, -1)
    lengths = np.linalg.norm(whole, axis=1)
    limit = float(np.median(lengths))
    clipped = taken(model, x.split(3), "a", clip=limit)["a@gradients"].reshape(8, -1)
    assert_close(clipped, whole * np.minimum(1.0, limit / lengths)[:, None])


def test_frozen_weights_need_no_gradient_and_others_keep_theirs():
    model, x = seeded(Overwriting()), data(6, 5)
    expected = taken(model, [x], "a")
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    frozen = model.requires_grad_(requires_grad=False)
    np.testing.assert_array_equal(taken(frozen, [x], "a")["a@gradients"], expected["a@gradients"])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_inputs_are_the_same_beside_gradients():
    model, x = seeded(Overwriting()), data(6, 3, 5)
    layers = select_layers(model, ["*"])
    alone, beside = Collector(), Collector()
    capture_rows(model, x.split(4), layers, alone)
    capture_rows(model, x.split(4), [*layers, *select_layers(model, ["*"], side="gradients")], beside)
    for layer in layers:
        np.testing.assert_array_equal(alone.rows(layer.stream), beside.rows(layer.stream))


class Checkpointed(Overwriting):
    """Keeps no values for its backward pass, which runs the layers again."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("draws", [1, 3])
def test_layers_that_run_again_on_the_way_back_are_taken_once(draws):
    found = []
    for kind in (Overwriting, Checkpointed):
        model, x, sink = seeded(kind()), data(6, 3, 5), Collector()
        layers = [*select_layers(model, ["*"]), *select_layers(model, ["*"], side="gradients")]
        capture_rows(model, x.split(4), layers, sink, rows=RowRule(gradients=GradientRule(draws=draws)))
        found.append({layer.stream: sink.rows(layer.stream) for layer in layers})
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys()
    assert all(np.array_equal(rows, checkpointed[stream]) for stream, rows in plain.items())


def test_masks_of_layers_alone_are_no_mask_of_the_output():
    """Padding's own scores would go back too: which of them count is said by the last pattern."""
    model, x = seeded(Tokens()), data(4, 5, 4)
    mask = (torch.arange(5) < torch.tensor([5, 2, 1, 3])[:, None]).long()
    batches = [{"x": x, "attention_mask": mask}]
    with pytest.raises(InvalidInputError, match=r"\(N, T\) = \(4, 5\), of which the mask of '\[qkv\]' leaves some"):
        taken(model, batches, "v", mask={"[qkv]": "attention_mask"})
    expected = taken(model, batches, "v", mask="attention_mask")["v@gradients"]
    found = taken(model, batches, "v", mask={"[qkv]": "attention_mask", "*": "attention_mask"})["v@gradients"]
    np.testing.assert_array_equal(found, expected)
    every = taken(model, batches, "v", mask={"[qkv]": "attention_mask", "*": None})["v@gradients"]
    assert every.shape == expected.shape
    assert not np.array_equal(every, expected)
    whole = [{"x": x, "attention_mask": torch.ones_like(mask)}]
    assert len(taken(model, whole, "v", mask={"[qkv]": "attention_mask"})["v@gradients"]) == 20
    pooled = taken(seeded(Tokens(pooled=True)), batches, "v", mask={"[qkv]": "attention_mask"})["v@gradients"]
    assert len(pooled) == mask.sum()


def test_moments_of_many_draws_come_near_what_the_vectors_are_drawn_for():
    """E[g g'] = J'(diag(p) - p p')J, for vectors as for sampled labels."""
    model, x = seeded(nn.Sequential(nn.Linear(4, 5))), data(1, 4).repeat(2, 1)
    p = torch.softmax(model(x)[0].double(), 0).detach().numpy()
    for estimator in ("vectors", "sampled"):
        rows = taken(model, [x], "0", estimator=estimator, draws=4000)["0@gradients"].astype(float)
        assert_close(rows.T @ rows / len(rows), np.diag(p) - np.outer(p, p), 0.05)


class Turned(nn.Module):
    """Works on (T, N, d), position after position, and reads the first position alone at the end."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.relu(self.a(x.transpose(0, 1)))[:2].sum(0))


def test_rows_that_come_position_after_position_are_taken_by_sample():
    """The gradient of most positions is 0: whose rows are whose shows in what the layer gives."""
    model, x = seeded(Turned()), data(4, 3, 5)
    rows = taken(model, [x], "a")["a@gradients"]
    expected = []
    for sample, one in enumerate(x):
        e = signs(SEED, sample, 0, 1, 3)
        vector = lambda o, e=e: class_vectors(np.atleast_2d(o), e)  # noqa: E731  # the twin's argument
        (found,) = gradients(model, model.a, one[None], lambda o: o, vector)
        expected.append(found[:, 0])
    assert_close(rows, np.concatenate(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_have_gradients_near_those_of_float32(dtype):
    model, x = seeded(Overwriting()), data(6, 5)
    expected = taken(model, [x], "a")["a@gradients"]
    found = taken(model.to(dtype), [x.to(dtype)], "a")["a@gradients"]
    assert_close(found, expected, 0.05 if dtype is torch.bfloat16 else 1e-5)
