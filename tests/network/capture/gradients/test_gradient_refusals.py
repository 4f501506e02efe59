"""What has no gradient, or not each sample's own, is refused in one line: the layer, the reason, the remedy."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dalr_stream.errors import InvalidInputError, NonFiniteError, UnsupportedLayerError
from dalr_stream.network.capture.gradient_rule import GradientRule
from dalr_stream.network.capture.hooks import capture_rows
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import select_layers


class Nowhere:
    """A RowSink that takes anything."""

    held = ()

    def __init__(self):
        self.written = 0

    def skip(self, *_):
        return False

    def write(self, _batch):
        self.written += 1

    def finish(self):
        pass


class Net(nn.Module):
    def __init__(self, between=lambda h: h, end=lambda o: o):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)
        self.between, self.end = between, end

    def forward(self, x):
        h = self.between(self.a(x))
        self.unused(h)
        return self.end(self.b(h))


def take(model, *, name="a", batches=None, prove=True, sink=None, **options):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    batches = torch.randn(6, 4, generator=generator).split(3) if batches is None else batches
    layers = select_layers(model.eval(), [name], side="gradients")
    rule = RowRule(prove=prove, gradients=GradientRule(**options))
    capture_rows(model, batches, layers, sink or Nowhere(), rows=rule)


def labelled(labels):
    return [(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), labels)]


def saved_then_overwritten(h):
    y = h.exp()
    y.add_(1.0)
    return y


def no_grad(h):
    with torch.no_grad():
        return h * 2


CASES = [
    (
        "a dictionary",
        lambda: take(Net(end=lambda o: {"scores": o, "other": o})),
        "must be a tensor, got a dict of 'scores', 'other'.*gradients.outputs",
    ),
    ("a tuple", lambda: take(Net(end=lambda o: (o, o))), "must be a tensor, got a tuple with members '0' to '1'"),
    (
        "another key",
        lambda: take(Net(end=lambda o: {"scores": o}), outputs="logits"),
        "have no 'logits', they are a dict of 'scores'",
    ),
    (
        "class numbers",
        lambda: take(Net(end=lambda o: o.argmax(1, keepdim=True))),
        "must hold real numbers .* got torch.int64",
    ),
    (
        "pictures",
        lambda: take(Net(end=lambda o: o[:, :, None, None])),
        r"must be \(N, C\) or \(N, T, C\) for N = 3 samples, got \(3, 3, 1, 1\)",
    ),
    ("one score", lambda: take(Net(end=lambda o: o[:, :1])), "has one class score, .*'values'"),
    (
        "detached at the end",
        lambda: take(Net(end=lambda o: o.detach())),
        "carries no gradient back .* detaches, or runs under torch.no_grad",
    ),
    (
        "detached between",
        lambda: take(Net(between=lambda h: h.detach()), name="*"),
        "layer 'a@gradients': no gradient comes back to it",
    ),
    ("no_grad between", lambda: take(Net(between=no_grad)), "carries no gradient back"),
    (
        "a layer on no way",
        lambda: take(Net(), name="*"),
        "layer 'unused@gradients': no gradient comes back to it: .*gradients.outputs",
    ),
    (
        "overwritten",
        lambda: take(Net(between=saved_then_overwritten)),
        "overwrites in place what its backward pass needs .*inplace=True",
    ),
    (
        "samples mixed at the end",
        lambda: take(Net(end=lambda o: o - o.mean(0)), metric="values"),
        "with one of 3 samples replaced, the network's outputs, or losses, of others change",
    ),
    (
        "samples in the second place",
        lambda: take(Net(end=lambda o: (o.T @ o.new_ones(3, 2)).reshape(3, 2))),
        "of others change",
    ),
    (
        "a mean",
        lambda: take(Net(), estimator="labels", loss=lambda o, _: o.mean()),
        r"a value for each of 3 samples, got \(\): use reduction='none'",
    ),
    ("a loss that is a number", lambda: take(Net(), estimator="labels", loss=lambda _o, _b: 1.0), "got a float"),
    (
        "a loss of the batch",
        lambda: take(Net(), estimator="labels", loss=lambda o, _: o.sum(1) / o.sum()),
        "of others change",
    ),
    ("no labels", lambda: take(Net(), estimator="labels"), "labels"),
    (
        "words for labels",
        lambda: take(Net(), estimator="labels", batches=labelled(["a", "b", "c"])),
        "gradients: labels must be class numbers, got a list that makes no tensor",
    ),
    (
        "a label that is no class",
        lambda: take(Net(), estimator="labels", batches=labelled(torch.tensor([0, 3, 1]))),
        r"gradients: batch 0: the network gives scores of the classes 0\.\.2, and among the labels is 3:",
    ),
    (
        "a label that is no class in a later batch",
        lambda: take(
            Net(),
            estimator="labels",
            batches=[*labelled(torch.tensor([0, -100, 1])), *labelled(torch.tensor([0, 1, -1]))],
        ),
        r"gradients: batch 1: .* 0\.\.2, and among the labels is -1:",
    ),
    (
        "a loss of whole numbers",
        lambda: take(Net(), estimator="labels", loss=lambda o, _: o.argmax(1)),
        "a loss must be of real numbers that have gradients, got torch.int64",
    ),
    (
        "a loss of complex numbers",
        lambda: take(Net(), estimator="labels", loss=lambda o, _: 1j * o.sum(1)),
        "a loss must be of real numbers that have gradients, got torch.complex64",
    ),
    (
        "a loss that fails",
        lambda: take(Net(), estimator="labels", loss=lambda o, b: o.sum(1) * {}[len(b)]),
        r"gradients: batch 0: the loss '.*<lambda>' fails on what .* returned, a tensor \(3, 3\) .* \(KeyError: 3\)",
    ),
    (
        "a loss that fails on a later batch",
        lambda: take(
            Net(),
            estimator="labels",
            batches=[torch.ones(3, 4), torch.ones(2, 4)],
            loss=lambda o, _: o[:, 0] / [1][3 - len(o)],
        ),
        r"gradients: batch 1: the loss '.*<lambda>' fails on .* \(IndexError: list index out of range\)",
    ),
    (
        "a function of outputs that fails",
        lambda: take(Net(end=lambda o: {"scores": o}), outputs=lambda o: o["logits"]),
        "gradients: batch 0: the function '.*<lambda>' of outputs fails on .* a dict of 'scores' .KeyError: 'logits'",
    ),
    (
        "random at the end",
        lambda: take(Net(end=lambda o: nn.functional.dropout(o, 0.5))),
        "gradients: the same batch gave other outputs, or losses, the second time: the network's own code does;",
    ),
    (
        "random at the end, one sample a batch",
        lambda: take(Net(end=lambda o: o + torch.randn_like(o)), batches=torch.ones(3, 4).split(1)),
        "gradients: the same batch gave other outputs, or losses, the second time",
    ),
    (
        "a loss that is random",
        lambda: take(Net(), estimator="labels", loss=lambda o, _: o.sum(1) * torch.rand(())),
        "gradients: the same batch gave other outputs, or losses, the second time",
    ),
    (
        "real labels",
        lambda: take(Net(), estimator="labels", batches=labelled(torch.zeros(3))),
        "need a class number each as labels, got torch.float32",
    ),
    (
        "labels of positions",
        lambda: take(Net(), estimator="labels", batches=labelled(torch.zeros(3, 2, dtype=torch.long))),
        r"got torch.int64 \(3, 2\)",
    ),
]


@pytest.mark.parametrize(("refused", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_network_without_gradients_of_each_sample_is_refused(refused, message):
    with pytest.raises(InvalidInputError, match=message) as caught:
        refused()
    assert "\n" not in str(caught.value)


def test_a_layer_that_runs_under_no_grad_is_named():
    class Inside(Net):
        def forward(self, x):
            with torch.no_grad():
                h = self.a(x)
            return self.b(h)

    with pytest.raises(InvalidInputError, match=r"layer 'a': runs under torch.no_grad\(\) .* within the network"):
        take(Inside())
    take(Inside(), name="b")


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's
def test_activation_checkpointing_of_the_kind_that_has_no_gradients_by_layers_is_named():
    class Inside(Net):
        def forward(self, x):
            return self.b(checkpoint(lambda given: torch.relu(self.a(given)), x, use_reentrant=True))

    with pytest.raises(InvalidInputError, match=r"layer 'a': runs under torch.no_grad.* \(use_reentrant=True of"):
        take(Inside())


class Decoder(nn.Module):
    """Given labels it returns its own loss beside the scores, by the label of the position `ahead`."""

    def __init__(self, ahead, weight=None, dtype=torch.float32, handed_out=torch.float32):
        super().__init__()
        self.handed_out = handed_out
        self.a, self.ahead, self.weight, self.kind = nn.Linear(4, 5), ahead, weight, dtype

    def forward(self, x, labels=None):
        scores = self.a(x)
        pairs = scores[:, : scores.shape[1] - self.ahead].flatten(0, 1), labels[:, self.ahead :].flatten()
        loss = nn.functional.cross_entropy(*pairs, weight=self.weight).to(self.kind)
        return SimpleNamespace(loss=loss, logits=scores.to(self.handed_out))


def labelled_words(ignored=()):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(5, (3, 6), generator=generator)
    labels[:, list(ignored)] = -100
    return [{"x": torch.randn(3, 6, 4, generator=generator), "labels": labels}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ignored", [(), (0, 4), range(6)])
def test_labels_that_the_network_itself_takes_as_they_stand_are_taken(dtype, ignored):
    take(Decoder(0, dtype=dtype), estimator="labels", batches=labelled_words(ignored))
    take(Decoder(0, handed_out=dtype), estimator="labels", batches=labelled_words(ignored))


@pytest.mark.parametrize("network", [Decoder(1), Decoder(0, weight=torch.tensor([9.0, 1, 1, 1, 1]))])
def test_labels_that_the_network_itself_takes_otherwise_are_refused(network):
    """A decoder compares a position with the next one's label: by its own label it would be another loss."""
    with pytest.raises(
        InvalidInputError, match=r"batch 0: the network's own loss of these labels is .* shifts the labels"
    ):
        take(network, estimator="labels", batches=labelled_words())

    def shifted(returned, batch):
        pairs = returned.logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:]
        return nn.functional.cross_entropy(*pairs, reduction="none")

    take(network, estimator="labels", batches=labelled_words(), loss=shifted)


def test_a_caller_in_inference_mode_or_under_no_grad_changes_nothing():
    model = Net().eval()
    layers = select_layers(model, ["a"], side="gradients")
    with torch.inference_mode():
        capture_rows(model, torch.randn(6, 4).split(3), layers, Nowhere())
    with torch.no_grad():
        capture_rows(model, torch.randn(6, 4).split(3), layers, Nowhere())


def test_gradients_that_are_not_finite_name_layer_batch_and_draw():
    """The square root of 0 has an infinite slope, and an output that is finite."""
    batches = [torch.ones(2, 4), torch.tensor([[0.0] * 4, [1.0] * 4])]
    model, sink = Net(end=lambda o: o), Nowhere()
    model.between = lambda h: (h - model.a.bias).abs().sqrt()
    with pytest.raises(NonFiniteError, match=r"layer 'a@gradients', batch 1, draw 0: gradients must be finite, got"):
        take(model, batches=batches, prove=False, sink=sink)
    assert sink.written == 1


def test_weights_made_in_inference_mode_are_said_to_have_no_gradient():
    with torch.inference_mode():
        model = Net()
    with pytest.raises(InvalidInputError, match=r"gradients: 'a.weight' .* was made in inference mode"):
        capture_rows(model.eval(), torch.randn(6, 4).split(3), select_layers(model, ["a"], side="gradients"), Nowhere())


def test_a_layer_that_only_training_calls_is_refused():
    class Auxiliary(Net):
        def forward(self, x):
            h = self.a(x)
            return (self.b(h), self.unused(h)) if self.training else self.b(h)

    with pytest.raises(UnsupportedLayerError, match="layer 'unused': is never called"):
        take(Auxiliary(), name="unused")


def test_rows_of_a_table_have_no_gradient_of_one_sample():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions, self.b = nn.Linear(2, 4), nn.Linear(4, 3)
            self.register_buffer("table", torch.randn(5, 2))

        def forward(self, x):
            return self.b(x * self.positions(self.table).sum(0) + self.positions(x[:, :2]))

    with pytest.raises(InvalidInputError, match="layer 'positions@gradients': gives rows of a table that every sample"):
        take(Table(), name="positions")


def test_outputs_are_taken_by_attribute_key_number_or_function():
    returned = {
        "logits": lambda o: SimpleNamespace(logits=o, other=1),
        "scores": lambda o: {"scores": o},
        "1": lambda o: (None, o),
    }
    for outputs, end in returned.items():
        take(Net(end=end), outputs=None if outputs == "logits" else outputs)
    take(Net(end=lambda o: [o]), outputs=lambda given: given[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "fisher"}, "gradients: estimator must be one of 'vectors', 'sampled', 'labels', got 'fisher'"),
        ({"metric": "kl"}, "gradients: metric must be one of 'classes', 'values', got 'kl'"),
        ({"draws": 0}, "draws must be a whole number of at least 1, got 0"),
        ({"draws": 1.5}, "draws must be a whole number of at least 1, got 1.5"),
        ({"draws": "2"}, "draws must be a whole number of at least 1, got '2'"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0, got 1.5"),
        ({"seed": None}, "seed must be a whole number of at least 0, got None"),
        ({"clip": 0.0}, "clip must be a number above 0 and finite, got 0.0"),
        ({"clip": float("nan")}, "clip must be a number above 0 and finite, got nan"),
        ({"clip": "1"}, "clip must be a number above 0 and finite, got '1'"),
        ({"outputs": 1}, "outputs must be a key of what the network returns, .* or a function of it, got 1"),
        ({"estimator": "labels", "loss": "mse"}, "loss must be a function of what the network returns .* got 'mse'"),
        ({"estimator": "labels", "draws": 2}, "labels have one gradient a sample, so draws must be 1, got 2"),
        ({"loss": print}, "a loss is of estimator 'labels' alone, got one beside 'vectors'"),
        ({"estimator": "sampled", "metric": "values"}, "'sampled' of metric 'values' has no labels to go by"),
        ({"estimator": "labels", "metric": "values"}, "'labels' of metric 'values' .* or give a loss"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        GradientRule(**options)
