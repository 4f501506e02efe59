"""Networks that cannot be compressed as asked: named with the reason and the remedy, and left as they were."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import FingerprintMismatchError, InvalidInputError, NonFiniteError, UnsupportedLayerError
from dalr_stream.network.capture.proofs.proof import SAMPLE_PASSES
from dalr_stream.network.layers.identity import fingerprint
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.selection.greedy import spectral
from dalr_stream.numerics.statistics.moments import Moments


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def pair(net, name, rank=2):
    weight, bias = ds.network.weights_of(net, name)
    return ds.truncated_svd(weight, bias).at_rank(rank)


def refused(net, name, message, error=UnsupportedLayerError, record=None):
    """Compressing fails with the message, and the network is as it was, hooks and all."""
    before, hooks = fingerprint(net), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    with pytest.raises(error, match=message):
        ds.compress(net, {name: record or pair(net, name)}, example=X[:2])
    assert fingerprint(net) == before
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]


# --- kinds --------------------------------------------------------------------------------------------------------


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Clamped(nn.Linear):
    def forward(self, x):
        return super().forward(x.clamp(-6, 6))


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x.bfloat16().to(x.dtype))


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1e-3 * torch.randn(self.out_features)


class Mixing(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class WithMore(nn.Linear):
    def forward(self, x, scale):
        return super().forward(x) * scale


class ByHand(nn.Linear):
    """As Falcon's."""

    def forward(self, x):
        hidden = x @ self.weight.T
        return hidden if self.bias is None else hidden + self.bias


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.ConvTranspose2d(3, 4, 3), "it is a ConvTranspose2d"),
        (nn.Conv3d(3, 4, 3), "it is a Conv3d"),
        (nn.Bilinear(3, 3, 3), "it is a Bilinear"),
        (nn.Embedding(5, 3), "it is a Embedding"),
        (nn.LSTM(3, 4), r"it is a recurrent layer \(LSTM\)"),
        (nn.LayerNorm(3), "it is a LayerNorm"),
        (Scaled(3, 4), "it is a Scaled, which does not compute what a Linear does"),
        (Clamped(3, 4), "it is a Clamped, which does not compute what a Linear does"),
        (Halved(3, 4), "it is a Halved, which does not compute what a Linear does"),
        (Noisy(3, 4), "it is a Noisy, which does not compute what a Linear does"),
        (Mixing(3, 4), "it is a Mixing, which does not compute what a Linear does"),
        (WithMore(3, 4), "it is a WithMore, which does not compute what a Linear does"),
        (Standardised(3, 4, 1), "it is a Standardised, which does not compute what a Conv2d does"),
        (nn.MultiheadAttention(4, 2).out_proj, "it is the output of a MultiheadAttention, which reads its weight"),
    ],
)
def test_other_kinds_of_modules_are_named_with_the_reason(module, reason):
    model = nn.Sequential(nn.ReLU(), module).eval()
    with pytest.raises(UnsupportedLayerError, match=rf"matches nothing that is a Linear layer.*'1' \({reason}"):
        ds.network.select_layers(model, ["1"])
    with pytest.raises(UnsupportedLayerError, match=f"layer '1': must be a Linear layer.* {reason}"):
        ds.compress(model, {"1": LowRankLayer(np.ones((1, 3)), np.ones((4, 1)), np.ones(4))})


def test_a_subclass_that_computes_the_same_is_compressed(net):
    class Named(nn.Linear):
        pass

    for kind in (Named, ByHand):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            net.a = kind(6, 5).eval()
            assert isinstance(ds.compress(net.to(dtype), {"a": pair(net, "a")}).a, nn.Sequential)


@pytest.mark.filterwarnings("ignore")  # torch is about to move its quantisation elsewhere
def test_a_quantised_layer_is_named_by_its_whole_class():
    made = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)).eval())
    with pytest.raises(UnsupportedLayerError, match=r"'0' \(it is a torch.ao.nn.quantized.dynamic.*Linear\)"):
        ds.network.select_layers(made, ["0"])


# --- shared -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["parameter", "memory"])
def test_shared_weights_are_refused_and_both_are_named(net, how):
    if how == "parameter":
        net.c.weight = net.b.weight
    else:
        net.c.weight.data = net.b.weight.data
    refused(
        net, "b", "layer 'b': cannot be replaced: 'b.weight' is shared with 'c.weight', and one of them would change"
    )
    refused(net, "c", "'c.weight' is shared with 'b.weight'")
    nodes = spectral(Moments.of(np.random.default_rng(0).standard_normal((20, 5)))).at_size(3)
    refused(net, "a", "layer 'b': cannot be replaced: 'b.weight' is shared", record=nodes)  # its reader would change
    ds.compress(net, {"a": pair(net, "a")})


def test_weights_shared_with_an_embedding_are_refused():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9)})
    model.head.weight = model.embed.weight
    refused(model, "head", "'head.weight' is shared with 'embed.weight'")


def test_a_module_under_two_names_is_refused_and_both_are_named(net):
    net.again = net.b
    refused(net, "b", "layer 'b': cannot be replaced: it is also registered as 'again', which would stay as it is")
    block = nn.Sequential(nn.Linear(3, 3))
    twice = nn.ModuleDict({"one": block, "two": block})
    refused(twice, "one.0", "also registered as 'two.0'", record=pair(twice, "one.0", 1))


# --- hooks and parametrisations of others -------------------------------------------------------------------------


def on_lookout(*_):
    """A user's hook."""


class Lookout:
    def __call__(self, *_):
        """A user's hook, as an object."""


@pytest.mark.parametrize(
    ("register", "place"),
    [
        ("register_forward_hook", "forward hook"),
        ("register_forward_pre_hook", "forward pre hook"),
        ("register_full_backward_hook", "backward hook"),
        ("register_full_backward_pre_hook", "backward pre hook"),
        ("register_state_dict_post_hook", "state dict hook"),
        ("register_state_dict_pre_hook", "state dict pre hook"),
    ],
)
@pytest.mark.parametrize("hook", [on_lookout, Lookout()], ids=["function", "object"])
def test_hooks_of_others_are_refused_by_name_where_they_would_be_dropped(net, register, place, hook):
    getattr(net.b, register)(hook)
    getattr(net, register)(hook)  # on the whole network it stays
    called = re.escape(getattr(hook, "__qualname__", "Lookout"))
    refused(net, "b", rf"layer 'b': cannot be replaced: it has the {place} '.*{called}': remove it first")
    ds.compress(net, {"a": pair(net, "a")})


def test_capture_works_beside_hooks_of_others(net):
    seen = []
    net.b.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    net.b.register_forward_pre_hook(lambda _, arguments: (arguments[0] * 2,))
    found = accumulate_stream(net, [X], ds.network.select_layers(net, ["b"]), folding=ds.Folding(ds.HoldoutRule(0.0)))
    with torch.no_grad():
        np.testing.assert_allclose(found["b"].mean, 2 * torch.relu(net.a(X)).mean(0).numpy(), rtol=1e-5)
    assert seen == [40] * (1 + SAMPLE_PASSES)
    assert len(net.b._forward_pre_hooks) == 2


def test_parametrised_weights_are_refused_by_name_and_captured_all_the_same(net):
    plain = copy.deepcopy(net)
    parametrizations.weight_norm(net.b).eval()
    refused(net, "b", r"layer 'b': cannot be replaced: its weight is computed by _WeightNorm: take that away first")
    watched = ds.network.select_layers(net, ["a", "b"])
    found, expected = (accumulate_stream(one, [X], watched)["b"] for one in (net, plain))
    assert found.same_bits(expected)
    parametrize.remove_parametrizations(net.b, "weight")
    ds.compress(net, {"b": pair(net, "b")})
    parametrizations.spectral_norm(net.c)
    refused(net, "c", "its weight is computed by _SpectralNorm")
    parametrizations.orthogonal(net.a)
    refused(net, "a", "its weight is computed by _Orthogonal")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_the_old_way_to_norm_weights_is_refused_too(net):
    torch.nn.utils.spectral_norm(net.b)
    with torch.no_grad():
        net(X)
    refused(net, "b", r"it has the forward pre hook '.*SpectralNorm'")
    torch.nn.utils.weight_norm(net.c)
    refused(net, "c", r"it has the forward pre hook '.*WeightNorm'")
    refused(net, "a", "the network cannot be copied: Only Tensors created explicitly by the user")


def test_a_forward_put_on_the_instance_is_refused(net):
    net.b.forward = on_lookout
    refused(net, "b", "its forward was replaced by '.*on_lookout': put its own back first")


# --- devices and dtypes -------------------------------------------------------------------------------------------


def test_a_network_without_numbers_is_refused(net, tmp_path):
    net.b = net.b.to("meta")
    watched = ds.network.select_layers(net, ["a"])
    for step in (
        lambda: ds.capture(net, [X], watched, tmp_path / "store", domain="t"),
        lambda: accumulate_stream(net, [X], watched),
        lambda: ds.compress(net, {"a": pair(net, "a")}),
    ):
        with pytest.raises(InvalidInputError, match=r"network: 'b.weight' is on the meta device, where it has no num"):
            step()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_captured_and_kept(net, dtype):
    net = net.to(dtype)
    moments = accumulate_stream(net, [X.to(dtype)], ds.network.select_layers(net, ["b"]))["b"]
    factors = ds.dalr(*ds.network.weights_of(net, "b"), moments)
    small = ds.compress(net, {"b": factors.at_rank(2)})
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    expected = copy.deepcopy(net).float()
    expected = ds.compress(expected, {"b": factors.at_rank(2)})
    with torch.no_grad():
        assert torch.allclose(small(X.to(dtype)).float(), expected(X), atol=0.05)


def test_factors_that_overflow_half_precision_are_refused_with_the_remedy(net):
    record = LowRankLayer(np.full((1, 5), 1e5), np.full((5, 1), 1e-5), np.zeros(5))
    half = net.to(torch.float16)
    message = r"layer 'b': its replacement must fit into torch.float16, up to 65504, and holds 100000: compress the"
    refused(half, "b", message, NonFiniteError, record)
    small = ds.compress(half, {"b": record.balanced()})
    assert torch.allclose(small.b(torch.ones(5, dtype=torch.float16)).float(), torch.full((5,), 5.0), rtol=0.01)
    ds.compress(half.to(torch.bfloat16), {"b": record})
    refused(half, "b", "holds nan", NonFiniteError, LowRankLayer(np.full((1, 5), np.nan), np.ones((5, 1)), np.zeros(5)))


# --- tensors that are overwritten ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 5), nn.Conv1d(6, 5, 2), nn.Conv2d(6, 5, 2)],
    ids=["linear", "conv1d", "conv2d"],
)
def test_outputs_are_those_before_an_activation_in_place(layer):
    model = nn.Sequential(layer, nn.ReLU(inplace=True)).eval()
    shape = (30, 6) + (5,) * {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2}[type(layer)]
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    every = {"rows": ds.RowRule(most_patches=None), "folding": ds.Folding(ds.HoldoutRule(0.0))}
    found = accumulate_stream(model, [x], ds.network.select_layers(model, ["0"], side="outputs"), **every)["0@outputs"]
    with torch.no_grad():
        given = layer(x).movedim(1, -1).reshape(-1, 5).numpy()
    assert given.min() < 0
    np.testing.assert_allclose(found.mean, given.mean(0, dtype=np.float64), atol=1e-6)
    assert (found.nonzero == found.count).all()


def test_inputs_are_those_before_the_layer_overwrites_them():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)).eval()
    x = X.clone()
    watched = ds.network.select_layers(model, ["1", "3"]) + ds.network.select_layers(model, ["1"], side="outputs")
    found = accumulate_stream(model, [X.clone()], watched, folding=ds.Folding(ds.HoldoutRule(0.0)))
    with torch.no_grad():
        h = model[1](x.relu())
    for name, rows in (("1", x.relu()), ("1@outputs", h), ("3", h.relu())):
        np.testing.assert_allclose(found[name].mean, rows.double().mean(0).numpy(), atol=1e-6)


# --- saved --------------------------------------------------------------------------------------------------------


def test_weights_of_another_dtype_than_the_network_built_are_refused(net, tmp_path):
    folder = ds.save(ds.compress(net, {"b": pair(net, "b")}), tmp_path / "small")
    message = "'a.bias' was saved as torch.float32, the network has torch.float16: build it in torch.float32"
    with pytest.raises(FingerprintMismatchError, match=message):
        ds.load(folder, lambda: Net().to(torch.float16))


def test_weights_of_another_compressed_network_are_refused(net, tmp_path):
    folder = ds.save(ds.compress(net, {"b": pair(net, "b")}), tmp_path / "small")
    other = ds.save(ds.compress(Net(), {"b": pair(net, "b")}), tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ds.DalrStreamError, match=r"model.safetensors' is damaged: it does not match its digest"):
        ds.load(folder, Net)


def keep(**members):
    group = {"producers": ["a"], "carriers": [], "readers": [{"layer": "b"}], "reader_bias": [True]}
    return {"step": "keep", "channels": 5, "kept": 2, **group, **members}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 10**12}, r"layer 'b': rank must lie in 1..5, got 1000000000000"),
        ({"layer": "z"}, "there is no layer 'z'"),
        ({"bias": False}, "does not fit the network that was built"),
        (keep(readers=[{"layer": "z"}], reader_bias=[True]), "there is no layer 'z'"),
        (keep(producers=["z"]), "no layer 'z'"),
        (keep(carriers=[{"layer": "z"}]), "no layer 'z'"),
        (keep(carriers=[{"layer": "c"}]), "layer 'c': must carry channels one by one, it is a Linear"),
        (keep(channels=10**7), "layer 'a': it does not hold the 10000000 channels"),
        (keep(readers=[{"layer": "b", "start": 1}]), "layer 'b': it does not hold the 5 channels"),
    ],
)
def test_a_plan_of_another_network_is_refused(net, tmp_path, change, message):
    folder = ds.save(ds.compress(net, {"b": pair(net, "b")}), tmp_path / "small")
    plain = json.loads((folder / "plan.json").read_text())
    del plain["digest"]  # as networks saved by 0.1 have none: what is refused is the plan, not its damage
    step = {**plain["plan"][0], **change}
    if step["step"] == "keep":
        step = {key: value for key, value in step.items() if key not in ("rank", "bias")}
    (folder / "plan.json").write_text(json.dumps({**plain, "plan": [step]}))
    with pytest.raises(FingerprintMismatchError, match=message):
        ds.load(folder, Net)
