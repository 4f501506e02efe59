"""Which layers a pattern finds, and what tells one network from another."""

import pytest
import torch
from torch import nn

from dalr_stream.errors import LayerNotFoundError, UnsupportedLayerError
from dalr_stream.network.layers.identity import fingerprint, tensor_digest
from dalr_stream.network.layers.spec import LayerSpec, layer_of, select_layers, weights_of


class Net(nn.Module):
    def __init__(self, slope=0.0):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LeakyReLU(slope))
        self.classifier = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self.fc8 = nn.Linear(3, 2, bias=False)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("scale", torch.ones(3), persistent=False)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def names(found):
    return [layer.name for layer in found]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["fc8"], ["fc8"]),
        ("fc8", ["fc8"]),
        (["classifier.[02]"], ["classifier.0", "classifier.2"]),
        (["classifier.*"], ["classifier.0", "classifier.2", "classifier.4"]),
        ([r"re:classifier\.\d"], ["classifier.0", "classifier.2", "classifier.4"]),
        ([r"re:.*[48]"], ["classifier.4", "fc8"]),
        ([nn.Linear], ["classifier.0", "classifier.2", "classifier.4", "fc8"]),
        (nn.Linear, ["classifier.0", "classifier.2", "classifier.4", "fc8"]),
        (["*"], ["features.0", "classifier.0", "classifier.2", "classifier.4", "fc8"]),
        (["fc8", "classifier.0", "classifier.?", nn.Linear], ["classifier.0", "classifier.2", "classifier.4", "fc8"]),
        (["fc8", "classifier.2"], ["classifier.2", "fc8"]),
    ],
)
def test_patterns_find_linear_layers_each_once_in_the_networks_order(net, patterns, expected):
    assert names(select_layers(net, patterns)) == expected


def test_a_layer_found_is_described(net):
    (layer,) = select_layers(net, ["classifier.0"])
    assert layer == LayerSpec("classifier.0", "Linear", inputs=8, outputs=6)
    assert layer.parameters == net.classifier[0].weight.numel()
    assert layer.break_even_rank == 3  # 3 (8 + 6) = 42 <= 48 < 4 (8 + 6)


def test_a_regular_expression_must_match_the_whole_name(net):
    with pytest.raises(LayerNotFoundError):
        select_layers(net, ["re:classifie"])


def test_a_misspelt_name_is_answered_with_the_nearest(net):
    with pytest.raises(LayerNotFoundError, match=r"pattern 'clasifier.0' matches no layer; nearest: .*classifier.0"):
        select_layers(net, ["fc8", "clasifier.0"])
    with pytest.raises(LayerNotFoundError, match=r"'re:\(' is not a regular expression"):
        select_layers(net, ["re:("])
    with pytest.raises(LayerNotFoundError, match="no module is a Conv3d: the network has Conv2d, LeakyReLU"):
        select_layers(net, [nn.Conv3d])


@pytest.mark.parametrize("pattern", ["features.1", "classifier", "re:features[.][1-9]", nn.LeakyReLU])
def test_a_pattern_that_finds_only_what_cannot_be_compressed_is_refused(net, pattern):
    with pytest.raises(UnsupportedLayerError, match=r"matches nothing that is a Linear layer, .*: '.*' \(it is a "):
        select_layers(net, [pattern])


def test_a_layer_asked_for_by_name_is_no_pattern(net):
    assert layer_of(net, "fc8") is net.fc8
    for name in ("fc9", "classifier.*", "re:fc8", ""):
        with pytest.raises(LayerNotFoundError, match=r"there is no layer '.*nearest: "):
            layer_of(net, name)
    with pytest.raises(UnsupportedLayerError, match=r"'features.1': must be a Linear layer, .*, it is a LeakyReLU"):
        layer_of(net, "features.1")


def test_weights_are_copies_and_a_missing_bias_is_none(net):
    weight, bias = weights_of(net, "classifier.0")
    assert (weight == net.classifier[0].weight.detach().numpy()).all()
    assert (bias == net.classifier[0].bias.detach().numpy()).all()
    weight[:] = 0
    assert net.classifier[0].weight.abs().sum() > 0
    assert weights_of(net, "fc8")[1] is None


def tensors(net):
    return [*net.named_parameters(), *net.named_buffers()]


@pytest.mark.parametrize("index", range(len(tensors(Net()))), ids=[name for name, _ in tensors(Net())])
def test_one_bit_of_any_weight_or_buffer_makes_another_network(net, index):
    """Also of a buffer that the state dict leaves out: it makes the rows all the same."""
    before = fingerprint(net)
    with torch.no_grad():
        flat = tensors(net)[index][1].view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
    assert fingerprint(net) != before


def test_dtype_and_modules_belong_to_the_fingerprint(net):
    torch.manual_seed(0)
    assert fingerprint(Net()) == fingerprint(net)
    other = Net()
    other.load_state_dict(net.state_dict())
    other.features[1] = nn.ReLU()
    assert fingerprint(other) != fingerprint(net)
    assert fingerprint(Net().double()) != fingerprint(Net().float())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
        (nn.BatchNorm1d(2, eps=1e-5), nn.BatchNorm1d(2, eps=1e-3)),
        (nn.AvgPool2d((1, 2)), nn.AvgPool2d((2, 1))),
        (nn.ZeroPad1d(1), nn.ConstantPad1d(1, 0.0)),
    ],
)
def test_settings_without_weights_belong_to_it_and_modes_and_places_do_not(one, other):
    assert fingerprint(one) != fingerprint(other)
    before = fingerprint(one)
    one.name_or_path = "elsewhere"
    assert fingerprint(one.train(not one.training)) == before


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
def test_digests_see_values_shape_and_dtype(dtype):
    tensor = torch.tensor([[1, 0, 1, 1]], dtype=dtype)
    assert tensor_digest(tensor) == tensor_digest(tensor.clone())
    assert tensor_digest(torch.stack([tensor, tensor], -1)[..., 0]) == tensor_digest(tensor)
    others = [tensor.reshape(2, 2), tensor.flip(1)[:, :4] * 0, tensor.to(torch.int32), tensor[:0]]
    assert len({tensor_digest(t) for t in [tensor, *others]}) == 5
