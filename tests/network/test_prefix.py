import pytest
import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.prefix import PrefixCache


class Branching(nn.Module):
    """What enters the layer is read again after it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.fc = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(torch.relu(self.fc(h)) + h) + x.sum(dim=1, keepdim=True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Branching().eval()


def changed(model):
    """The same network with another layer `fc`."""
    small = Branching().eval()
    small.load_state_dict(model.state_dict())
    with torch.no_grad():
        small.fc.weight.mul_(0.5)
    return small


def test_the_outputs_are_those_of_the_whole_network(model):
    small, cache = changed(model), PrefixCache(model, "fc")
    continued = cache.attach(small)
    with torch.inference_mode():
        for inputs in (torch.randn(5, 6), torch.randn(2, 6)):
            for _ in range(2):
                assert torch.equal(continued(inputs), small(inputs))


def test_what_comes_before_the_layer_is_run_once_for_each_input(model):
    runs = []
    model.first.register_forward_hook(lambda *_: runs.append(1))
    cache = PrefixCache(model, "fc")
    batches = [torch.randn(4, 6), torch.randn(4, 6)]
    with torch.inference_mode():
        for _ in range(3):
            for inputs in batches:
                cache.attach(changed(model))(inputs)
    assert len(runs) == len(batches)


def test_a_full_cache_keeps_no_more_and_changes_no_output(model):
    small, cache = changed(model), PrefixCache(model, "fc", limit_bytes=0)
    inputs = torch.randn(5, 6)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(cache.attach(small)(inputs), small(inputs))
    assert not cache._kept


def test_a_network_that_cannot_be_traced_is_named():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else x

    with pytest.raises(UnsupportedLayerError, match=r"torch\.fx cannot trace the network"):
        PrefixCache(Deciding(), "fc")


def test_a_network_of_one_input_takes_it_by_name(model):
    small, cache = changed(model), PrefixCache(model, "fc")
    inputs = torch.randn(5, 6)
    with torch.inference_mode():
        assert torch.equal(cache.attach(small)(x=inputs), small(inputs))


def test_a_network_that_may_take_a_mask_is_run_whole():
    """Traced, its mask would be multiplied by although none was given."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x, mask=None):
            return self.fc(x if mask is None else x * mask)

    with pytest.raises(UnsupportedLayerError, match="may take x, mask"):
        PrefixCache(Masked(), "fc")
