"""A convolution of several groups is as many layers, and becomes two convolutions of as many groups."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.errors import InvalidInputError, UnsupportedLayerError
from dalr_stream.network.surgery.plan import SplitLayer

pytestmark = pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")  # full rank, on purpose
GROUPED = [
    nn.Conv2d(6, 8, 3, padding=1, groups=2),
    nn.Conv2d(6, 9, (3, 2), stride=2, dilation=(1, 2), groups=3, bias=False),
    nn.Conv2d(8, 12, 1, groups=4),
    nn.Conv1d(6, 8, 5, padding="same", padding_mode="reflect", groups=2),
]


def images(module, count=20):
    size = (9, 8) if isinstance(module, nn.Conv2d) else (12,)
    return torch.randn(count, module.in_channels, *size, generator=torch.Generator().manual_seed(0))


def factors_of(model, groups, inputs, rank=None, **options):
    moments = accumulate_stream(model, [inputs], groups, **options)
    solved = {group.name: ds.dalr(*ds.network.weights_of(model, group.name), moments[group.name]) for group in groups}
    return {name: factors.at_rank(rank or factors.max_rank) for name, factors in solved.items()}


@pytest.mark.parametrize("module", GROUPED, ids=str)
def test_at_full_rank_the_outputs_stay(module, tmp_path):
    model = nn.Sequential(module, nn.ReLU()).eval()
    groups = ds.network.select_layers(model, ["0"])
    assert [group.name for group in groups] == [f"0@group{number}" for number in range(module.groups)]
    small = ds.compress(model, factors_of(model, groups, images(module)))
    assert [type(part) for part in small[0]] == [type(module)] * 2
    assert [part.groups for part in small[0]] == [module.groups] * 2
    assert torch.allclose(small(images(module)), model(images(module)), atol=1e-5)
    again = ds.load(ds.save(small, tmp_path / "small"), lambda: nn.Sequential(module, nn.ReLU()))
    assert torch.equal(again(images(module)), small(images(module)))


def test_each_group_is_the_convolution_of_its_channels():
    """Rows, moments, factors and error of a group are those of a plain convolution of its channels, to the bit."""
    module = nn.Conv2d(6, 8, 3, padding=1, groups=2)
    model, inputs = nn.Sequential(module).eval(), images(module)
    rule, none_apart = ds.RowRule(most_patches=None), ds.Folding(ds.HoldoutRule(0.0))
    groups = ds.network.select_layers(model, ["0"])
    found = accumulate_stream(model, [inputs], groups, rows=rule, folding=none_apart)
    small = ds.compress(model, factors_of(model, groups, inputs, 2, rows=rule, folding=none_apart))
    with torch.no_grad():
        error = (model(inputs) - small(inputs)).double().square().sum(dim=(0, 2, 3))
    for number, group in enumerate(groups):
        plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).eval()
        plain[0].weight.data = module.weight.data[4 * number : 4 * number + 4]
        plain[0].bias.data = module.bias.data[4 * number : 4 * number + 4]
        own = inputs[:, 3 * number : 3 * number + 3]
        alone = accumulate_stream(plain, [own], ds.network.select_layers(plain, ["0"]), rows=rule, folding=none_apart)[
            "0"
        ]
        assert found[group.name].same_bits(alone)
        factors = ds.dalr(*ds.network.weights_of(plain, "0"), alone)
        assert float(error[4 * number : 4 * number + 4].sum()) == pytest.approx(factors.errors(alone)[2], rel=1e-4)


def test_through_a_store_and_from_outputs(tmp_path):
    model, inputs = nn.Sequential(GROUPED[0]).eval(), images(GROUPED[0])
    watched = ds.network.select_layers(model, ["0"]) + ds.network.select_layers(model, ["0"], side="outputs")
    ds.capture(model, [inputs], watched, tmp_path, domain="t")
    found = accumulate_stored(tmp_path, domain="t")
    assert set(found) == {f"0@group{number}{side}" for number in (0, 1) for side in ("", "@outputs")}
    assert found["0@group1"].same_bits(accumulate_stream(model, [inputs], watched[:2])["0@group1"])
    with torch.no_grad():
        given = model(inputs)[:, 4:].numpy()
    every = ds.Folding(ds.HoldoutRule(0.0))
    outputs = accumulate_stream(model, [inputs], watched[2:], folding=every)["0@group1@outputs"]
    np.testing.assert_allclose(outputs.mean, given.mean(axis=(0, 2, 3)), atol=1e-6)


def test_what_cannot_be_is_refused_and_nothing_half_changed():
    model = nn.Sequential(GROUPED[0], nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1, groups=8), nn.ReLU()).eval()
    for name in ("1", "2"):
        with pytest.raises(
            UnsupportedLayerError, match=rf"'{name}' \(it is a depthwise Conv2d: each of its 8 groups is a"
        ):
            ds.network.select_layers(model, [name])
    with pytest.raises(UnsupportedLayerError, match="layer '3': only convolutions have groups, it is a ReLU"):
        ds.network.weights_of(model, "3@group0")
    with pytest.raises(UnsupportedLayerError, match=r"layer '1': .* it is a depthwise Conv2d"):
        ds.network.weights_of(model, "1@group0")
    with pytest.raises(UnsupportedLayerError, match=r"layer '0@group2': the module has groups 0\.\.1"):
        ds.network.weights_of(model, "0@group2")

    first = nn.Sequential(model[0]).eval()
    parts = factors_of(first, ds.network.select_layers(first, ["0"]), images(model[0]), 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidInputError, match="'0@group1' is missing"):
        ds.compress(model, {"0@group0": parts["0@group0"]})
    with pytest.raises(InvalidInputError, match="'0' is none of them"):
        ds.compress(model, {**parts, "0": parts["0@group0"]})
    with pytest.raises(InvalidInputError, match=r"needs factors of its groups .*; '0' is none of them"):
        ds.compress(model, {"0": parts["0@group0"]})
    other = factors_of(first, ds.network.select_layers(first, ["0"]), images(model[0]), 2)
    with pytest.raises(InvalidInputError, match="layer '0': its groups need one rank, got 3, 2"):
        ds.compress(model, {**parts, "0@group1": other["0@group1"]})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_patterns_match_convolutions_and_give_their_groups_and_what_stays_out_is_said():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 2)
    ).eval()
    assert [layer.name for layer in ds.network.select_layers(model, ["*"])] == ["0@group0", "0@group1"]
    assert [(layer.inputs, layer.outputs) for layer in ds.network.select_layers(model, [nn.Conv2d])] == [
        (18, 4),
        (18, 4),
    ]
    depthwise, transposed = ds.unsupported_layers(model, ["*"])
    assert depthwise.startswith("layer '2' is left out: it is a depthwise Conv2d: each of its")
    assert transposed == "layer '3' is left out: it is a ConvTranspose2d"
    assert ds.unsupported_layers(model, ["0"]) == ()


def test_a_plan_may_not_ask_for_more_than_the_rank_of_a_group():
    model = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2))
    SplitLayer("0", 4, bias=True).apply(model)
    assert [part.out_channels for part in model[0]] == [8, 8]
    with pytest.raises(UnsupportedLayerError, match=r"layer '0': rank must lie in 1\.\.4, got 5"):
        SplitLayer("0", 5, bias=True).apply(nn.Sequential(nn.Conv2d(6, 8, 3, groups=2)))
