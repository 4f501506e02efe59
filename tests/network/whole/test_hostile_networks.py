"""Networks that hold, wrap or call their layers in ways of their own: each works exactly, or is one clear line.

None of them may give a wrong number in silence, or an error of somebody else's.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.errors import DalrStreamError
from dalr_stream.numerics.rows.sampling import HoldoutRule

pytestmark = pytest.mark.filterwarnings(
    "ignore::dalr_stream.errors.ParameterIncreaseWarning",  # full rank, on purpose
    "ignore::DeprecationWarning",  # of torch's, on scripts
)
X = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def whole(net, x):
    """Watch, fold, compress at full rank, save: what a user does; what comes of it."""
    layers = ds.watch(net, ["fc*"], example=x)
    found = accumulate_stream(net, [x[:11], x[11:]], layers, folding=ds.Folding(HoldoutRule(0.0)))
    factors = {
        layer.name: ds.dalr(*ds.network.weights_of(net, layer.name), found[layer.name])
        for layer in layers
        if layer.stream == layer.name
    }
    full = {name: one.at_rank(one.max_rank) for name, one in factors.items()}
    return found, ds.compress(net, full, example=x)


# --- what works -----------------------------------------------------------------------------------------------------


class Delegating(nn.Module):
    """Finds whatever it lacks in the network inside."""

    def __init__(self):
        super().__init__()
        self.inner = Net()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return self.inner(x)


class Checkpointing(Net):
    def forward(self, x):
        def middle(h):
            return torch.relu(self.fc2(h))

        h = torch.utils.checkpoint.checkpoint(middle, torch.relu(self.fc1(x)), use_reentrant=False)
        return self.fc3(h)


class Scripted(Net):
    """A part of it takes no hooks, and layers in it are none that can be watched."""

    def __init__(self):
        super().__init__()
        self.head = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))

    def forward(self, x):
        return self.fc3(self.head(torch.relu(self.fc2(torch.relu(self.fc1(x))))))


class Counting(Net):
    """Keeps a number in the state as a tensor."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def get_extra_state(self):
        return torch.tensor(self.steps)

    def set_extra_state(self, state):
        self.steps = int(state)


class Adapter(nn.Linear):
    """LoRA of one's own, with a forward of its own: it is left as it is."""

    def __init__(self):
        super().__init__(8, 8)
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class Adapted(Net):
    def __init__(self):
        super().__init__()
        self.fc2 = Adapter()


class ByKeyword(Net):
    def forward(self, x):
        return self.fc3(input=torch.relu(self.fc2(input=torch.relu(self.fc1(input=x)))))


def made_in_inference_mode():
    with torch.inference_mode():
        return Net()


def strided():
    net = Net()
    net.fc2.weight = nn.Parameter(torch.randn(8, 16)[:, ::2])
    return net


WORKS = {
    "delegating": Delegating,
    "checkpointing": Checkpointing,
    "scripted part": Scripted,
    "extra state": Counting,
    "adapter of one's own": Adapted,
    "by keyword": ByKeyword,
    "made in inference mode": made_in_inference_mode,
    "strided weight": strided,
    "bfloat16": lambda: Net().bfloat16(),
    "half": lambda: Net().half(),
    "DataParallel": lambda: nn.DataParallel(Net()),
    "traced by fx": lambda: torch.fx.symbolic_trace(Net()),
}


@pytest.mark.parametrize("build", WORKS.values(), ids=WORKS)
def test_it_works_to_the_last_digit(build, tmp_path):
    torch.manual_seed(0)
    net = build().eval()
    x = X.to(next(net.parameters()).dtype)
    hooks = {module: len(module._forward_hooks) for module in net.modules()}
    inner = next(name for name, module in net.named_modules() if hasattr(module, "fc1") and "fc1" in module._modules)
    prefix = f"{inner}." if inner else ""
    layers = ds.watch(net, [f"{prefix}fc*"], example=x)
    names = [layer.name for layer in layers if layer.stream == layer.name]
    assert len(names) >= 2
    found = accumulate_stream(net, [x[:11], x[11:]], layers, folding=ds.Folding(HoldoutRule(0.0)))
    reads = {name: [] for name in names}
    handles = [
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, name=name: reads[name].append((args[0] if args else kwargs["input"]).double()),
            with_kwargs=True,
        )
        for name in names
    ]
    with torch.no_grad():
        expected = net(x)
    for handle in handles:
        handle.remove()
    for name in names:
        rows = torch.cat(reads[name]).numpy()
        np.testing.assert_allclose(found[name].second_moment * found[name].count, rows.T @ rows, rtol=1e-5, atol=1e-5)
    factors = {name: ds.dalr(*ds.network.weights_of(net, name), found[name]) for name in names}
    small = ds.compress(net, {name: one.at_rank(one.max_rank) for name, one in factors.items()}, example=x)
    with torch.no_grad():
        rounding = 0.03 if x.dtype != torch.float32 else 1e-5
        torch.testing.assert_close(small(x), expected, rtol=rounding, atol=rounding)
        torch.manual_seed(0)
        assert torch.equal(ds.load(ds.save(small, tmp_path / "small"), build)(x), small(x))
    assert {module: len(module._forward_hooks) for module in net.modules()} == hooks


# --- what is refused ------------------------------------------------------------------------------------------------


class Shared(Net):
    def __init__(self):
        super().__init__()
        self.fc2b = nn.Linear(8, 8)
        self.fc2b.weight = self.fc2.weight

    def forward(self, x):
        return self.fc3(torch.relu(self.fc2b(torch.relu(self.fc2(torch.relu(self.fc1(x)))))))


class Functional(Net):
    """Reads a layer's weight beside calling the layer."""

    def forward(self, x):
        h = torch.relu(self.fc1(x))
        return self.fc3(torch.relu(self.fc2(h) + functional.linear(h, self.fc2.weight)))


class Clamping(Net):
    """Writes into a layer's weight as it runs."""

    def forward(self, x):
        self.fc2.weight.data.clamp_(-0.2, 0.2)
        return super().forward(x)


class AsksItsClass(Net):
    def forward(self, x):
        for layer in (self.fc1, self.fc2):
            x = torch.relu(layer(x)) if isinstance(layer, nn.Linear) else layer(x)
        return self.fc3(x)


class AsksItsGradient(Net):
    def forward(self, x):
        return super().forward(x) * (2.0 if self.fc2.weight.requires_grad else 1.0)


class Batchwise(Net):
    def forward(self, x):
        h = torch.relu(self.fc1(x))
        return self.fc3(torch.relu(self.fc2((h - h.mean(0)) / (h.std(0) + 1e-5))))


class Deduplicating(Net):
    def forward(self, x):
        rows, places = torch.unique(x, dim=0, return_inverse=True)
        return super().forward(rows)[places]


class Remembering(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        h = torch.relu(self.fc1(x))
        self.mean = 0.9 * self.mean + 0.1 * h.mean(0).detach()
        return self.fc3(torch.relu(self.fc2(h - self.mean)))


def changed(change):
    def build():
        net = Net()
        change(net)
        return net

    return build


def patched(net):
    forward = net.fc2.forward
    net.fc2.forward = lambda x: 3 * forward(x)


def closed_over(net):
    layer = net.fc2
    net.again = {"layer": layer.forward}


def sparse(net):
    net.fc2.weight = nn.Parameter(net.fc2.weight.data.to_sparse())


def lazy(net):
    net.fc2 = nn.LazyLinear(8)


def on_meta(net):
    net.fc2 = nn.Linear(8, 8, device="meta")


REFUSED = {
    "weight norm": (changed(lambda n: parametrizations.weight_norm(n.fc2)), "'fc2'.* computed by _WeightNorm"),
    "spectral norm": (changed(lambda n: parametrizations.spectral_norm(n.fc2)), "'fc2'.* computed by _SpectralNorm"),
    "orthogonal": (changed(lambda n: parametrizations.orthogonal(n.fc2)), "'fc2'.* computed by _Orthogonal"),
    "pruned": (changed(lambda n: prune.l1_unstructured(n.fc2, "weight", 0.5)), "'fc2'.* forward pre hook"),
    "outputs in a hook": (changed(lambda n: n.fc2.register_forward_hook(lambda *a: 2 * a[2])), "'fc2'.* forward hook"),
    "inputs in a hook": (changed(lambda n: n.fc2.register_forward_pre_hook(lambda *a: (2 * a[1][0],))), "'fc2'.* hook"),
    "patched forward": (changed(patched), "'fc2'.* its forward was replaced by"),
    "closed over": (changed(closed_over), "'fc2'.* the network also holds it in its attribute 'again'"),
    "shared weight": (Shared, "'fc2'.* is shared with 'fc2b.weight'"),
    "functional": (Functional, "what 'fc3' reads is not what it reads in the original"),
    "clamping": (Clamping, "the network fails with its replacement"),
    "asks its class": (AsksItsClass, "what 'fc2' reads is not what it reads in the original"),
    "asks its gradient": (AsksItsGradient, "depends on it by other ways than through what it gives"),
    "batchwise": (Batchwise, "'fc2': with one of 11 samples replaced, rows of others change too"),
    "deduplicating": (Deduplicating, "rows are packed|rows of others change too"),
    "remembering": (Remembering, "'fc2': the same batch gave other rows the second time"),
    "lazy": (changed(lazy), "'fc2.weight' has no shape before a batch went through: run the network once first"),
    "meta": (changed(on_meta), "'fc2.weight' is on the meta device"),
    "sparse": (changed(sparse), "example: the network refuses 30 x 6 float32: RuntimeError: .*sparse"),
    "scripted": (lambda: torch.jit.script(Net()), "'fc1' \\(it is a scripted Linear"),
    "exported": (lambda: torch.export.export(Net(), (X,)).module(), "'fc1' \\(it is a Module\\)"),
}


@pytest.mark.filterwarnings("ignore")  # of torch's, on scripts and lazy modules
@pytest.mark.parametrize(("build", "reason"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_in_one_clear_line(build, reason):
    torch.manual_seed(0)
    net = build()
    net = net if isinstance(net, torch.fx.GraphModule) else net.eval()
    with pytest.raises(DalrStreamError, match=reason):
        whole(net, X.clone())


def test_extra_state_that_is_no_tensor_is_refused_when_it_is_saved(tmp_path):
    class Extra(Net):
        def get_extra_state(self):
            return {"steps": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(DalrStreamError, match="'_extra_state' of the network's state is a dict"):
        ds.save(whole(Extra().eval(), X)[1], tmp_path / "small")


def test_tracing_that_fails_leaves_no_hooks():
    net = made_in_inference_mode().eval()
    assert ds.watch(net, ["fc1"], example=X)[0].unprunable
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


# --- quantised and sharded ------------------------------------------------------------------------------------------


def test_quantised_weights_are_refused_by_name_and_so_is_saving_them(tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    net = Net().eval()
    torchao.quantize_(net, torchao.Int8WeightOnlyConfig(), filter_fn=lambda _, name: name == "fc3")
    layers = ds.watch(net, ["fc1", "fc2"], example=X)
    assert [layer.name for layer in layers if layer.stream == layer.name] == ["fc1", "fc2"]
    (left_out,) = ds.unsupported_layers(net, ["*"])
    assert "fc3" in left_out
    assert "packed, quantised or sharded" in left_out
    _, small = whole(net, X)
    with pytest.raises(DalrStreamError, match=r"'fc3\.weight' of the network's state is a \w+, packed, quantised"):
        ds.save(small, tmp_path / "small")


@pytest.fixture
def one_process(tmp_path):
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield distributed
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_process")
def test_sharded_and_wrapped_networks_are_refused_by_name():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    sharded = fully_shard(Net(), mesh=mesh).eval()
    with pytest.raises(DalrStreamError, match=r"the network: is split over processes by FSDPModule, so its tensors"):
        whole(sharded, X)
    part = Net().eval()
    fully_shard(part.fc3, mesh=mesh)
    with pytest.raises(DalrStreamError, match=r"layer 'fc3': is split over processes by FSDPModule, .*: give every"):
        whole(part, X)
    wrapped = nn.parallel.DistributedDataParallel(Net()).eval()
    layers = ds.watch(wrapped, ["fc1"], example=X)
    pair = ds.dalr(ds.accumulate(wrapped, [X], layers)["fc1"]).at_rank(2)
    with pytest.raises(DalrStreamError, match="the network is wrapped in DistributedDataParallel, which holds"):
        ds.compress(wrapped, {"fc1": pair})
    assert ds.compress(wrapped.module, {"fc1": pair}).fc1[0].out_features == 2
