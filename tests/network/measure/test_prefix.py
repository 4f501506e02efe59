import pytest
import torch
from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.measure.prefix import Cut, KeptBatches, PrefixCache
from dalr_stream.network.training.finetune import finetune
from dalr_stream.network.training.setting import FineTuning
from dalr_stream.network.training.trainable import require_all_trained, trained_parameters


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
    small, cache = changed(model), PrefixCache(Cut(model, "fc"))
    continued = cache.attach(small)
    with torch.inference_mode():
        for inputs in (torch.randn(5, 6), torch.randn(2, 6)):
            for _ in range(2):
                assert torch.equal(continued(inputs), small(inputs))


def test_what_comes_before_the_layer_is_run_once_for_each_input(model):
    runs = []
    model.first.register_forward_hook(lambda *_: runs.append(1))
    cache = PrefixCache(Cut(model, "fc"))
    batches = [torch.randn(4, 6), torch.randn(4, 6)]
    with torch.inference_mode():
        for _ in range(3):
            for inputs in batches:
                cache.attach(changed(model))(inputs)
    assert len(runs) == len(batches)


def test_a_full_cache_keeps_no_more_and_changes_no_output(model):
    small, cache = changed(model), PrefixCache(Cut(model, "fc"), limit_bytes=0)
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
        Cut(Deciding(), "fc")


def test_a_network_of_one_input_takes_it_by_name(model):
    small, cache = changed(model), PrefixCache(Cut(model, "fc"))
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
        Cut(Masked(), "fc")


# --- a tail by itself, on batches that are loaded once ------------------------------------------------------------


class Loader:
    """A loader that can begin anywhere and counts what it loads."""

    def __init__(self, batches, first=0, loaded=None):
        self.batches, self.first, self.loaded = batches, first, [] if loaded is None else loaded

    def starting_at(self, batch):
        return Loader(self.batches, self.first + batch, self.loaded)

    def __iter__(self):
        for number in range(self.first, len(self.batches)):
            self.loaded.append(number)
            yield self.batches[number]


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(1)
    sizes = (4, 4, 3)
    return Loader([(torch.randn(n, 6, generator=generator), torch.arange(n) % 3) for n in sizes])


BATCH_BYTES = 4 * (6 + 8) * 4
"""What crosses before `fc` of a batch of four: the inputs and what `first` gave."""


@pytest.mark.parametrize(
    ("limit", "loads"), [(2**20, [0, 1, 2]), (0, [0, 1, 2] * 3), (BATCH_BYTES, [0, 1, 2, 1, 2, 1, 2])]
)
def test_a_tail_gives_on_kept_batches_what_the_network_gives(model, loader, limit, loads):
    cut, small = Cut(model, "fc"), changed(model)
    kept, tail = KeptBatches(cut, loader, limit), cut.tail(small)
    for _ in range(3):
        found = list(kept)
        for (values, labels), (inputs, wanted) in zip(found, loader.batches, strict=True):
            assert torch.equal(tail(**values), small(inputs))
            assert torch.equal(labels, wanted)
    assert loader.loaded == loads


def test_a_pass_that_was_left_midway_is_gone_on_from(model, loader):
    kept = KeptBatches(Cut(model, "fc"), loader)
    next(iter(kept))
    assert len(list(kept)) == 3
    assert loader.loaded == [0, 1, 2]


def test_a_tail_has_the_names_of_the_network_and_its_own_tail_is_the_same(model):
    cut = Cut(model, "fc")
    tail = cut.tail(cut.tail(model))
    assert set(dict(tail.named_parameters())) == {"fc.weight", "fc.bias", "last.weight", "last.bias"}
    assert tail.get_submodule("fc") is model.fc


@pytest.mark.parametrize(("names", "place"), [(("last", "fc"), "fc"), (("first.weight",), "first")])
def test_the_cut_is_before_the_first_that_is_named(model, names, place):
    assert Cut(model, *names).place == place


@pytest.mark.parametrize("names", [("fc",), ("first.weight",)])
def test_a_tail_is_fine_tuned_as_the_whole_network_is(model, loader, names):
    """To the bit: frozen layers give the same values whenever they are run."""
    options = FineTuning(epochs=3, rate=0.01, layers=("fc", "last"))
    cut = Cut(model, *names)
    tuned = finetune(cut.tail(model), KeptBatches(cut, loader), options)
    whole = dict(finetune(model, loader.batches, options).named_parameters())
    assert not torch.equal(tuned.get_parameter("fc.weight"), model.fc.weight)
    for name, parameter in tuned.named_parameters():
        assert torch.equal(parameter, whole[name]), name


# --- layers that change before, within and in place ---------------------------------------------------------------


class Overwriting(nn.Module):
    """What crosses is overwritten after the cut: a tensor and a view of it."""

    def __init__(self):
        super().__init__()
        self.first, self.fc, self.last = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x)
        view = h.reshape(-1, 2, 2)
        y = self.fc(h)
        return self.last(torch.relu_(h) + y) + view.sum((1, 2))[:, None]


def test_what_the_tail_overwrites_is_kept_as_it_was(loader):
    torch.manual_seed(0)
    model = Overwriting().eval()
    cut = Cut(model, "fc")
    kept, continued = KeptBatches(cut, loader), PrefixCache(cut).attach(model)
    with torch.no_grad():
        for _ in range(3):
            for (values, _), (inputs, _) in zip(kept, loader.batches, strict=True):
                assert torch.equal(cut.tail(model)(**values), model(inputs))
                assert torch.equal(continued(inputs), model(inputs))


def test_what_is_kept_is_not_what_the_loader_overwrites(model):
    cache = PrefixCache(Cut(model, "fc"))
    buffer = torch.randn(4, 6)
    first = buffer.clone()
    with torch.no_grad():
        cache.attach(model)(buffer)
        buffer.zero_()
        assert torch.equal(cache.attach(model)(first), model(first))


def test_a_layer_within_a_module_that_is_not_traced_is_cut_before_that():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 8), encoder, nn.Linear(8, 2)).eval()
    cut, inputs = Cut(model, "1.linear1"), torch.randn(2, 3, 4)
    assert cut.place == "_1"
    with torch.no_grad():
        expected = model(inputs)
        encoder.linear1.weight.mul_(0.5)
        found = PrefixCache(cut).attach(model)(inputs)
        assert torch.equal(found, model(inputs))
    assert not torch.allclose(found, expected)


# --- the graph is the network ---------------------------------------------------------------------------------------


class MyLinear(nn.Linear):
    """A subclass of one's own, which torch.fx would look into."""


class Guarded(nn.Module):
    """What it computes depends on what tracing does not see."""

    def __init__(self, after):
        super().__init__()
        self.fc, self.head, self.after = nn.Linear(6, 8), MyLinear(8, 3), after

    def forward(self, x):
        return self.after(self.head(torch.relu(self.fc(x))))


@pytest.mark.parametrize(
    "after",
    [
        lambda h: h * 2 if torch.is_tensor(h) else h,
        lambda h: h.softmax(1) if isinstance(h, torch.Tensor) else h,
        lambda h: h + torch.randn(3),
        lambda h: h.argmax(1) if torch.is_tensor(h) else h,
    ],
)
def test_a_graph_that_is_not_the_network_is_refused(after):
    torch.manual_seed(0)
    net = Guarded(after).eval()
    with pytest.raises(UnsupportedLayerError, match="gives other outputs than the network itself"):
        Cut(net, "head").require_same(net, torch.randn(5, 6))


def test_a_hook_of_the_network_that_a_graph_would_drop_is_seen():
    net = Guarded(nn.Identity()).eval()
    batch = torch.randn(5, 6), torch.zeros(5)
    Cut(net, "head").require_same(net, batch)
    net.register_forward_hook(lambda *arguments: arguments[-1] * 2)
    with pytest.raises(UnsupportedLayerError, match="gives other outputs than the network itself"):
        Cut(net, "head").require_same(net, batch)


@pytest.mark.parametrize("batch", [{"x": torch.randn(5, 6)}, {"x": torch.randn(5, 6), "labels": torch.zeros(5)}])
def test_a_graph_is_tried_on_named_inputs_without_their_labels(batch):
    net = Guarded(nn.Identity()).eval()
    Cut(net, "fc").require_same(net, batch)
    with pytest.raises(UnsupportedLayerError, match="cannot be tried on a batch"):
        Cut(net, "fc").require_same(net, object())


def test_layers_of_a_subclass_stay_layers_and_are_trained_in_the_tail():
    net = Guarded(nn.Identity()).eval()
    tail = Cut(net, "head").tail(net)
    assert isinstance(tail.head, MyLinear)
    assert trained_parameters(tail).keys() == {"head.weight", "head.bias"}
    require_all_trained(net, Cut(net, "fc").tail(net), ())
    with pytest.raises(UnsupportedLayerError, match=r"'fc\.bias' is trained, and its torch\.fx graph has no"):
        require_all_trained(net, tail, ())
