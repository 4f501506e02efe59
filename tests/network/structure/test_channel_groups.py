"""What is pruned together, and who reads it: found through whatever acts on single channels, refused elsewhere."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.structure.graph import Structure

ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Square layers; `body` says how they are put together."""

    def __init__(self, body):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.wide = nn.Linear(8, 4)
        self.norm, self.drop, self.batch = nn.LayerNorm(4), nn.Dropout(), nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.ones(4))
        self.body = body
        self.eval()

    def forward(self, x):
        return self.body(self, x)


class Images(nn.Module):
    def __init__(self, body):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.wide = nn.Conv2d(3, 6, 1), nn.Conv2d(12, 5, 3)
        self.deep, self.groups = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 1, groups=2)
        self.norm, self.slope, self.group_norm = nn.BatchNorm2d(6), nn.PReLU(6), nn.GroupNorm(2, 6)
        self.head, self.flat = nn.Linear(6, 2), nn.Linear(6 * 16, 2)
        self.body = body
        self.eval()

    def forward(self, x):
        return self.body(self, x)


def group(net, name="a", example=None):
    example = example if example is not None else IMAGES if isinstance(net, Images) else ROWS
    return Structure.of(net, example).group_of(name)


def reads(found):
    return [(reader.span.layer, reader.span.start, reader.span.block) for reader in found.readers]


# --- linear layers ------------------------------------------------------------------------------------------------


def test_the_next_linear_layer_of_a_sequential():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).train()
    first, second = group(net, "0"), group(net, "3")
    assert (first.channels, first.producers, reads(first)) == (5, ("0",), [("3", 0, 1)])
    assert reads(second) == [("5", 0, 1)]
    assert first.readers[0].stream == "3"
    assert first.readers[0].weights == 6


def test_layers_of_nested_modules_are_named_in_full():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), nn.Sequential(nn.Identity(), nn.Linear(5, 6)))
    assert reads(group(net, "0.0")) == [("1.1", 0, 1)]


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: net.b(functional.relu(net.a(x))),
        lambda net, x: net.b(net.a(x)),
        lambda net, x: net.b(torch.relu_(net.a(x))),
        lambda net, x: net.b(net.a(x).relu()),
        lambda net, x: net.b(functional.dropout(functional.gelu(net.a(x)), training=net.training)),
        lambda net, x: net.b(net.drop(net.a(x).sigmoid().contiguous())),
        lambda net, x: net.b(2.0 * net.a(x) + 1.0),
        lambda net, x: net.b(net.a(x)) if x.sum() > -1e9 else x,  # control flow is no hindrance
        lambda net, x: net.b(functional.silu(net.a(x[:, None])).repeat(1, 5, 1)).mean(1),
    ],
)
def test_what_acts_on_each_node_is_passed(body):
    assert reads(group(Net(body))) == [("b", 0, 1)]


def test_a_branch_has_two_readers_also_through_two_tensors():
    net = Net(lambda net, x: net.b(torch.relu(h := net.a(x))) + net.c(torch.tanh(h)))
    assert reads(group(net)) == [("b", 0, 1), ("c", 0, 1)]


def test_an_addition_ties_layers_into_one_group():
    net = Net(lambda net, x: net.d(torch.relu((h := net.a(x)) + net.b(torch.relu(h)) + net.c(x))))
    for name in ("a", "b", "c"):
        found = group(net, name)
        assert found.producers == ("a", "b", "c")
        assert reads(found) == [("b", 0, 1), ("d", 0, 1)]


def test_a_gate_ties_layers_too():
    found = group(Net(lambda net, x: net.c(functional.silu(net.a(x)) * net.b(x))), "b")
    assert (found.producers, reads(found)) == (("a", "b"), [("c", 0, 1)])


def test_a_concatenation_is_read_from_where_the_channels_lie():
    net = Net(lambda net, x: net.wide(torch.cat([net.b(x), torch.relu(net.a(x))], -1)))
    assert reads(group(net)) == [("wide", 4, 1)]
    assert reads(group(net, "b")) == [("wide", 0, 1)]
    assert group(net).readers[0].first == 4


# --- images -------------------------------------------------------------------------------------------------------


def test_batch_norm_depthwise_convolutions_and_slopes_carry_channels():
    net = Images(lambda net, x: net.b(net.slope(net.norm(net.deep(net.a(x))))))
    found = group(net)
    assert [span.layer for span in found.carriers] == ["deep", "norm", "slope"]
    assert reads(found) == [("b", 0, 1)]
    assert (found.readers[0].stream, found.readers[0].weights) == ("b@channels", 6 * 9)


def test_flattening_makes_blocks_and_pooling_does_not():
    pooled = Images(lambda net, x: net.head(functional.adaptive_avg_pool2d(torch.relu(net.a(x)), 1).flatten(1)))
    assert (reads(group(pooled)), group(pooled).readers[0].stream) == ([("head", 0, 1)], "head")
    mean = Images(lambda net, x: net.head(torch.relu(net.a(x)).mean((2, 3))))
    assert reads(group(mean)) == [("head", 0, 1)]
    flat = Images(lambda net, x: net.flat(functional.max_pool2d(torch.relu(net.a(x)), 2).flatten(1)))
    assert reads(group(flat)) == [("flat", 0, 16)]
    assert (group(flat).readers[0].stream, group(flat).readers[0].weights) == ("flat@channels", 2 * 16)


def test_a_residual_stage_is_one_group():
    net = Images(lambda net, x: net.head(torch.relu(net.norm(net.b(torch.relu(h := net.a(x)))) + h).mean((2, 3))))
    found = group(net, "b")
    assert found.producers == ("a", "b")
    assert [span.layer for span in found.carriers] == ["norm"]
    assert reads(found) == [("b", 0, 1), ("head", 0, 1)]


def test_a_concatenation_of_images_may_be_carried_on():
    class Dense(Images):
        def __init__(self, body):
            super().__init__(body)
            self.both = nn.BatchNorm2d(12).eval()

    net = Dense(lambda net, x: net.wide(torch.relu(net.both(torch.cat([net.c(x), net.a(x)], 1)))))
    found = group(net)
    assert [(span.layer, span.start, span.block) for span in found.carriers] == [("both", 6, 1)]
    assert reads(found) == [("wide", 6, 1)]


# --- refused, with the reason -------------------------------------------------------------------------------------


def mixed_by_hand(net, x):
    h = net.a(x)
    return net.b(torch.relu(h - h.mean(1, keepdim=True)))


def detached(net, x):
    h = net.a(x)
    return net.b(torch.relu(h)) + h.detach().sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda net, x: net.b(torch.relu(h := net.a(x))) + h, "the network's own output reads them|no layer reads"),
        (lambda net, x: net.a(x), "no layer reads them"),
        (lambda net, x: (net.b(h := net.a(x)), h), "output"),
        (lambda net, x: net.b(net.norm(net.a(x))), r"'norm' \(LayerNorm\) reads them"),
        (lambda net, x: net.b(net.a(x) * net.scale), "the parameter 'scale' is added to them, or multiplies them"),
        (lambda net, x: net.b(functional.softmax(net.a(x), 1)), "on the way to 'b' they are mixed with others"),
        (lambda net, x: net.b(net.a(x).flip(1)), "mixed with others"),
        (mixed_by_hand, "mixed with others"),
        (detached, "the network's output depends on them by other ways than through 'b'"),
        (lambda net, x: net.b(torch.relu(net.a(x))) + net.b(x), "'b' is called 2 times, and call 2 does not read them"),
        (lambda net, x: net.b(net.a(net.a(x))), "'a' is called 2 times, and call 1 does not read them"),
        (lambda net, x: net.b(x), "called 0 times"),
        (lambda net, x: net.b(torch.cat([(h := net.a(x))[:, 2:], h[:, :2]], 1)), "another order|mixed with others"),
    ],
)
def test_whatever_else_happens_to_the_nodes_is_named(body, reason):
    with pytest.raises(UnsupportedLayerError, match=f"layer 'a': its channels cannot be pruned: .*({reason})"):
        group(Net(body))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda net, x: net.b(net.group_norm(net.a(x))), r"'group_norm' \(GroupNorm\) reads them"),
        (lambda net, x: net.groups(net.a(x)), "'groups', which reads them, is a Conv2d of 2 groups"),
        (lambda net, x: net.head(net.a(x).permute(0, 2, 3, 1)), None),
        (lambda net, x: net.b(functional.pixel_shuffle(net.a(x).repeat(1, 4, 1, 1), 2)), "order|mixed|tracing"),
    ],
)
def test_images_likewise(body, reason):
    net = Images(body)
    if reason is None:  # found, and proved: a linear layer on channels that come last
        assert reads(group(net)) == [("head", 0, 1)]
    else:
        with pytest.raises(UnsupportedLayerError, match=f"layer 'a': its channels cannot be pruned: .*({reason})"):
            group(net)


def orders(name):
    other = {"roll": lambda h: h.roll(2, 1), "flip": lambda h: h.flip(1), "shuffle": nn.ChannelShuffle(3)}
    swapped = [3, 1, 2, 0, 4, 5]
    return {**other, "swap": lambda h: h[:, swapped], "copy": lambda h: h[:, [0, 0, 2, 3, 4, 5]]}[name]


@pytest.mark.parametrize("order", ["roll", "flip", "shuffle", "swap", "copy"])
@pytest.mark.parametrize("then", [torch.relu, torch.sigmoid, lambda h: h], ids=["relu", "sigmoid", "nothing"])
def test_channels_in_another_order_are_refused_whichever_it_is(order, then):
    """Most of these leave the parity of a channel's number as it is."""
    with pytest.raises(UnsupportedLayerError, match=r"layer 'a': .*(another order|mixed with others|tracing)"):
        group(Images(lambda net, x: net.b(then(orders(order)(net.a(x))))))


@pytest.mark.parametrize("channel", range(6))
def test_no_channel_is_read_in_secret(channel):
    def body(net, x):
        h = net.a(x)
        return net.b(torch.relu(h)) * h[:, channel].detach().mean()

    with pytest.raises(UnsupportedLayerError, match=r"layer 'a': .* by other ways than through 'b'"):
        group(Images(body))


@dataclass
class Returned:
    scores: torch.Tensor
    nodes: torch.Tensor


@pytest.mark.parametrize(
    "form", [Returned, lambda y, h: SimpleNamespace(scores=y, nodes=h), lambda y, h: (y, Returned(y, h))]
)
def test_what_an_object_that_is_returned_holds_is_part_of_the_output(form):
    def handed_on(net, x):
        h = torch.relu(net.a(x))
        return form(net.b(h), h)

    with pytest.raises(UnsupportedLayerError, match=r"layer 'a': .* by other ways than through 'b'"):
        group(Net(handed_on))
    assert reads(group(Net(lambda net, x: form(net.b(torch.relu(net.a(x))), None)))) == [("b", 0, 1)]


def test_layers_that_are_tied_are_proved_once():
    net = Net(lambda net, x: net.d(torch.relu((h := net.a(x)) + net.b(torch.relu(h)) + net.c(x))))
    structure = Structure.of(net, ROWS)
    assert structure.group_of("b") is structure.group_of("c")


def test_shared_weights_are_refused():
    net = Net(lambda net, x: net.b(torch.relu(net.a(x))) + net.c(x))
    net.c.weight = net.b.weight
    with pytest.raises(UnsupportedLayerError, match=r"'b\.weight' is shared with 'c\.weight'"):
        group(net)


def test_a_grouped_convolution_gives_no_channels_to_be_chosen():
    net = Images(lambda net, x: net.head(net.groups(net.a(x)).mean((2, 3))))
    with pytest.raises(UnsupportedLayerError, match=r"layer 'groups': .* a Conv2d of 2 groups"):
        group(net, "groups")


def test_nor_do_channels_that_are_tied_to_those_of_a_grouped_convolution():
    """As where squeeze and excitation weighs what such a convolution gives."""
    net = Images(lambda net, x: net.b(torch.sigmoid(net.c(x)) * net.groups(net.a(x))))
    with pytest.raises(UnsupportedLayerError, match=r"layer 'c': .* 'groups', which is tied to it, is a Conv2d of 2"):
        group(net, "c")


def test_the_network_is_left_as_it_was():
    net = Net(lambda net, x: net.b(net.batch(net.drop(net.a(x))))).train()
    net.b.weight.requires_grad_(False)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = torch.get_rng_state()
    assert reads(group(net)) == [("b", 0, 1)]
    assert all(module.training for module in net.modules())
    assert not net.b.weight.requires_grad
    assert net.a.weight.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_frozen_half_precision_network_is_traced_on_a_dict():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, *, rows, scale=1.0):
            return {"logits": self.b(torch.relu(self.a(rows)) * scale)}

    net = Named().bfloat16().requires_grad_(False)
    assert reads(group(net, example={"rows": ROWS.bfloat16()})) == [("b", 0, 1)]


def test_a_network_made_in_inference_mode_is_refused_by_name():
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(UnsupportedLayerError, match=r"layer '0': its channels cannot be pruned: .*Inference tensors"):
        group(net, "0")


def test_whatever_fails_on_the_way_is_a_refusal():
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 3, 1)

        def forward(self, x):
            return self.b(functional.pixel_shuffle(self.a(x), 2))

    with pytest.raises(UnsupportedLayerError, match="layer 'a': its channels cannot be pruned: "):
        group(Shuffled().eval(), example=IMAGES)
