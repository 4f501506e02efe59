"""Layer after layer towards the residual stream: against a twin that holds all rows, and by its laws."""

import numpy as np
import pytest
import torch
from notes import Notes
from sequential_twins import TwinBlocks
from stream_blocks import DALR, OPTIMAL, compressed, data, made, plan_of, same
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.errors import InvalidInputError, MemoryLimitError, UnsupportedLayerError


def streams(model, x, name):
    """What a `down` layer gives, and the stream before that is added, by hooks alone."""
    kept = {}
    number = int(name.rpartition(".")[2])
    up, down = model.up[number], model.down[number]
    handles = [
        up.register_forward_pre_hook(lambda _, args: kept.update(before=args[0].detach().clone())),
        down.register_forward_hook(lambda _, __, out: kept.update(given=out.detach().clone())),
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return kept["given"].numpy(), kept["before"].numpy()


# --- what is computed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [DALR, OPTIMAL, "dalr_published", "dalr_anchored"])
@pytest.mark.parametrize("target", ["stream", "outputs"])
def test_every_output_is_the_twins(method, target):
    model, x = made(), data()
    found = compressed(model, x, plan_of(method), target=target).network
    expected = TwinBlocks(model).compress(x.numpy(), plan_of(method), mending=target == "stream")
    np.testing.assert_allclose(found(x).detach().numpy(), expected, rtol=1e-7, atol=1e-8)


def test_what_reads_selected_nodes_is_solved_towards_the_stream_as_the_twins_is():
    model, x = made(), data()
    first, *rest = (f"up.{number}" for number in range(3))
    plan = {"stem": (DALR, 3), first: ("spectral", 7), **dict.fromkeys(rest, ("spectral", 6))}
    found = compressed(model, x, plan)
    expected = TwinBlocks(model).compress(x.numpy(), plan, mending=True)
    np.testing.assert_allclose(found.network(x).detach().numpy(), expected, rtol=1e-7, atol=1e-8)
    assert found.network.down[2].in_features == 6
    assert [found.layers[name].target for name in plan] == ["outputs", "stream", "stream", "stream"]


@pytest.mark.parametrize(
    "plan", [plan_of(OPTIMAL, 2), {"stem": (DALR, 3), "up.0": ("spectral", 6), "up.1": ("spectral", 6)}]
)
def test_errors_are_those_of_the_sum_in_the_stream(plan):
    """Z' - Z~ is the original's stream after the addition, less that of the compressed network."""
    model, x = made(2), data()
    found = compressed(model, x, plan)
    last = list(plan)[-1]
    before = compressed(model, x, {name: plan[name] for name in list(plan)[:-1]}).network
    z, r = streams(model, x, "down.1")
    bias = before.down[1].bias.detach().numpy()
    gaps = {}
    for key, network in (("inherited", before), ("error", found.network)):
        z_now, r_now = streams_of_compressed(network, x)
        whole = np.linalg.norm(z + (r - r_now) - bias)
        gaps[key] = np.linalg.norm((z + r) - (z_now + r_now)) / whole
    outcome = found.layers[last]
    assert (outcome.inherited, outcome.error) == pytest.approx((gaps["inherited"], gaps["error"]), rel=1e-6)


def streams_of_compressed(model, x):
    return streams(model, x, "down.1")


@pytest.mark.parametrize("seed", range(3))
def test_the_stream_is_mended_as_far_as_the_layers_inputs_allow(seed):
    """Of all maps of what the last layer reads, at full rank and without a ridge: the least stream error there is."""
    model, x = made(2), data(seed=seed)
    first = {"stem": (OPTIMAL, 3), **plan_of(OPTIMAL, 2)}
    plan = {**first, "down.1": (OPTIMAL, 8)}
    found = {target: compressed(model, x, plan, ridge=0.0, target=target) for target in Target}
    errors = {target: _stream_error(model, one.network, x) for target, one in found.items()}
    assert errors[Target.STREAM] < errors[Target.OUTPUTS]


def _stream_error(model, small, x):
    (z, r), (z_now, r_now) = streams(model, x, "down.1"), streams(small, x, "down.1")
    return float(np.linalg.norm(z + r - z_now - r_now))


def test_where_nothing_was_lost_it_is_the_ordinary_solution_to_the_bit():
    model, x = made(dtype=torch.float32), data(dtype=torch.float32)
    plan = {"down.0": (DALR, 3)}
    one, other = (compressed(model, x, plan, target=target) for target in Target)
    assert same(one, other)
    assert one.layers["down.0"].target is Target.OUTPUTS


def test_at_full_size_the_network_is_the_original():
    model, x = made(), data()
    plan = {f"{part}.{number}": (DALR, 8) for number in range(3) for part in ("up", "down")}
    torch.testing.assert_close(compressed(model, x, plan, ridge=1e-6).network(x), model(x), rtol=1e-6, atol=1e-7)


def test_layers_that_write_into_no_stream_are_said_with_the_reason_and_keep_their_target():
    model, x, notes = made(2), data(), Notes()
    found = compressed(model, x, {"stem": (DALR, 3), "up.0": (DALR, 3), "down.0": (DALR, 3)}, progress=notes)
    assert (
        "layer 'up.0' is solved towards its own outputs: what it gives is added to nothing of its shape: relu reads it"
    ) in notes.said
    assert [str(outcome.target) for outcome in found.layers.values()] == ["outputs", "outputs", "stream"]
    assert any("DALR anchored, affine, 3, towards the stream: error" in line for line in notes.said)


class LayerScale(nn.Module):
    """A block as CaiT and ConvNeXt have it: what it adds to the stream is scaled by a parameter."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.plain = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x):
        x = x + self.gamma * self.down(torch.relu(self.up(x)))
        return x + self.plain(x)


def test_a_layer_whose_output_is_scaled_on_its_way_to_the_stream_is_said():
    torch.manual_seed(0)
    model, notes = LayerScale().eval(), Notes()
    choices = {"down": ds.LayerChoice(DALR, 3), "plain": ds.LayerChoice(DALR, 3)}
    found = ds.compress_sequentially(model, [torch.randn(40, 8)] * 3, choices, target="stream", progress=notes)
    assert [str(outcome.target) for outcome in found.layers.values()] == ["outputs", "stream"]
    line = (
        "layer 'down' is solved towards its own outputs: what it gives is added to nothing of its shape: mul reads it"
    )
    assert line in notes.said


# --- refused --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_any_pass():
    class Never:
        def __iter__(self):
            yield data()[:5]
            raise AssertionError("a pass began")

    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    for choices, reason in (
        ({"0": ds.LayerChoice(DALR, 2)}, "'0': what it gives is added to nothing of its shape: relu reads it"),
        ({"0": ds.LayerChoice("spectral", 2)}, "'0': '2' reads its nodes, and what it gives is added to nothing"),
        ({"0": ds.LayerChoice("prune_max", 2)}, "truncated SVD and pruning see no target"),
        ({"2": ds.LayerChoice("svd", 2)}, "truncated SVD and pruning see no target"),
    ):
        message = f'no residual stream takes in what the layers give: {reason}.*take target = "outputs"'
        with pytest.raises(UnsupportedLayerError, match=message):
            ds.compress_sequentially(plain, Never(), choices, target="stream")
    with pytest.raises(InvalidInputError, match="target must be one of 'outputs', 'stream', got 'residual'"):
        ds.compress_sequentially(made(), Never(), {"up.0": ds.LayerChoice(DALR, 2)}, target="residual")


def test_moments_towards_a_stream_are_as_wide_as_the_layer_gives():
    """A layer that gives more than it reads is not watched for what it reads: the limit counts its whole width."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.wide = nn.Linear(4, 1000), nn.Linear(1000, 4), nn.Linear(4, 1000)

        def forward(self, x):
            x = self.stem(x)
            return x + self.wide(torch.relu(self.inner(x)))

    model, x = Wide().eval(), torch.randn(64, 4)
    choices = {"stem": ds.LayerChoice(DALR, 2), "wide": ds.LayerChoice(DALR, 2)}
    limit = ds.Folding(workers=ds.Threads(1), memory_limit_bytes=48 * 2**20)
    ds.compress_sequentially(model, x.split(16), choices, folding=limit)
    with pytest.raises(MemoryLimitError, match="wide"):
        ds.compress_sequentially(model, x.split(16), choices, target="stream", folding=limit)
