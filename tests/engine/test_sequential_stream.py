"""Layer after layer towards the residual stream: against a twin that holds all rows, and by its laws."""

import warnings

import numpy as np
import pytest
import torch
from notes import Notes
from sequential_twins import RELATIVE, TwinBlocks
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.sequential.compress import sequential_passes
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.engine.stores.verify import verify_store
from dalr_stream.errors import InvalidInputError, MemoryLimitError, ParameterIncreaseWarning, UnsupportedLayerError

ALL = ds.Folding(ds.HoldoutRule(0.0))
DALR, OPTIMAL = "dalr_anchored_affine", "dalr_optimal_affine"


class Blocks(nn.Module):
    """Blocks on a stream, added in different ways, with dropout on the way as in an encoder."""

    def __init__(self, blocks=3, width=8):
        super().__init__()
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 3)
        self.up = nn.ModuleList(nn.Linear(width, 12) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(12, width) for _ in range(blocks))
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        x = self.stem(x)
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            inner = self.drop(down(torch.relu(up(x))))
            if number == 0:
                x = inner + x
            elif number == 1:
                x = torch.add(x, inner)
            else:
                inner += x
                x = inner
        return self.head(x)


def made(blocks=3, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Blocks(blocks).to(dtype).eval()


def data(n=240, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, 6, generator=generator, dtype=dtype) @ torch.randn(6, 6, generator=generator, dtype=dtype)
    ) + 0.3


def compressed(model, x, plan, *, ridge=RELATIVE, target="stream", folding=ALL, **options):
    choices = {name: ds.LayerChoice(*choice, ridge=ridge, restore_ridge=ridge) for name, choice in plan.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return ds.compress_sequentially(model, x.split(50), choices, target=target, folding=folding, **options)


def plan_of(method, blocks=3, rank=3):
    return {f"{part}.{number}": (method, rank) for number in range(blocks) for part in ("up", "down")}


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


def same(one, other):
    mine, its = one.network.state_dict(), other.network.state_dict()
    assert one.layers == other.layers
    return mine.keys() == its.keys() and all(torch.equal(tensor, its[name]) for name, tensor in mine.items())


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


# --- kept, killed, begun again --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


MIXED = {"stem": (DALR, 3), "up.0": ("spectral", 6), "up.1": (DALR, 3), "down.1": (DALR, 3), "down.2": (OPTIMAL, 3)}


def test_kept_or_not_onward_or_from_the_inputs_the_network_is_the_same(tmp_path, monkeypatch):
    model, x, notes = made(dtype=torch.float32), data(dtype=torch.float32), Notes()
    found = compressed(model, x, MIXED, folding=None, progress=notes)
    assert not [line for line in notes.said if "from its inputs" in line]
    assert same(compressed(model, x, MIXED, folding=None, store=tmp_path / "s"), found)
    assert all(verify_store(store).findings == () for store in (tmp_path / "s").iterdir())
    again = Notes()
    assert same(compressed(model, x, MIXED, folding=None, store=tmp_path / "s", progress=again), found)
    assert sum("kept from an earlier pass" in line for line in again.said) == len(MIXED)
    with monkeypatch.context() as patched:
        patched.setattr("dalr_stream.engine.sequential.preparation.KEPT_BYTES", 0)
        assert same(compressed(model, x, MIXED, folding=None), found)


def test_moments_of_either_target_lie_side_by_side_and_are_not_mistaken(tmp_path):
    model, x = made(dtype=torch.float32), data(dtype=torch.float32)
    plans = {target: compressed(model, x, plan_of(DALR), target=target) for target in Target}
    for target in (*Target, *Target):
        again = compressed(model, x, plan_of(DALR), target=target, store=tmp_path / "s")
        assert same(again, plans[target])


def test_begun_again_after_any_pass_it_ends_in_the_same_bits():
    model, x = made(dtype=torch.float32), data(dtype=torch.float32).split(50)
    choices = {name: ds.LayerChoice(*choice) for name, choice in MIXED.items()}
    states = list(sequential_passes(model, x, choices, target="stream"))
    for begun in states[:-1]:
        *_, last = sequential_passes(model, x, choices, target="stream", begun=begun)
        assert same(last, states[-1])


def test_other_threads_and_batches_fold_to_the_same_bits():
    model, x = made(dtype=torch.float32), data(dtype=torch.float32)
    one = compressed(model, x, MIXED, folding=ds.Folding())
    assert same(compressed(model, x, MIXED, folding=ds.Folding(workers=ds.Threads(1))), one)


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
        ({"0": ds.LayerChoice("prune_max", 2)}, "pruning restores nothing"),
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
    limit = ds.Folding(workers=ds.Threads(1), memory_limit_bytes=8 * 2**20)
    ds.compress_sequentially(model, x.split(16), choices, folding=limit)
    with pytest.raises(MemoryLimitError, match="wide"):
        ds.compress_sequentially(model, x.split(16), choices, target="stream", folding=limit)
