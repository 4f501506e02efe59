"""Compressed networks are plain torch: they trace, export, go to ONNX and compile like any other."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from dalr_stream.errors import ParameterIncreaseWarning
from dalr_stream.network.layers.spec import weights_of
from dalr_stream.network.surgery.compress import compress
from dalr_stream.numerics.lowrank.truncated import truncated_svd
from dalr_stream.numerics.selection.greedy import spectral
from dalr_stream.numerics.statistics.moments import Moments

FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
DRAWN = torch.Generator().manual_seed(0)


class Scores(nn.Module):
    """A transformers model as a function of one tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens).logits


def pair(model, layer, rank):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        return truncated_svd(*weights_of(model, layer)).at_rank(rank)


def mlp():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    x = torch.randn(20, 6, generator=DRAWN)
    kept = spectral(Moments.of(net[:2](x).detach().double().numpy()), affine=True).at_size(5)
    return compress(net, {"0": kept, "2": pair(net, "2", 3)}, example=x), x[:4]


def convolutional():
    """A pair in place of one convolution, a selection of the other's channels, a pair after the flattened image."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(80, 6),
    ).eval()  # fmt: skip
    x = torch.randn(3, 2, 8, 8, generator=DRAWN)
    with torch.no_grad():
        channels = Moments.of(net[:3](x).movedim(1, -1).reshape(-1, 4).double().numpy())
    parts = {"0": spectral(channels).at_size(3), "3": pair(net, "3", 2), "6": pair(net, "6", 2)}
    return compress(net, parts, example=x), x


def transformer():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=3, **sizes)
    net = BertForSequenceClassification(config).eval()
    inner = "bert.encoder.layer.0"
    layers = [f"{inner}.attention.self.query", f"{inner}.intermediate.dense", f"{inner}.output.dense"]
    small = compress(net, {layer: pair(net, layer, 3) for layer in layers})
    return Scores(small).eval(), torch.randint(20, (2, 5), generator=DRAWN)


BUILDERS = {"mlp": mlp, "convolutional": convolutional, "transformer": transformer}


@pytest.fixture(params=list(BUILDERS), scope="module")
def compressed(request):
    """A compressed network, an input, and what it gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, x = BUILDERS[request.param]()
    with torch.no_grad():
        return model, x, model(x)


# torch announces the end of its tracer; tracing asks a transformers model for every property, an outdated one among
# them, and finds that it looks at shapes
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning")
def test_it_traces(compressed):
    model, x, expected = compressed
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), expected, **FLOAT32)


def test_it_exports(compressed):
    model, x, expected = compressed
    with torch.no_grad():
        exported = torch.export.export(model, (x,))
    assert set(exported.state_dict) >= set(dict(model.named_parameters()))
    torch.testing.assert_close(exported.module()(x), expected, **FLOAT32)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # torch's exporter uses it itself
def test_it_goes_to_onnx_and_computes_the_same_there(compressed, tmp_path):
    model, x, expected = compressed
    path = tmp_path / "model.onnx"
    with torch.no_grad():
        torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False)
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded, full_check=True)
    runner = ReferenceEvaluator(loaded)
    (found,) = runner.run(None, {runner.input_names[0]: x.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), **FLOAT32)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles(compressed, backend):
    model, x, expected = compressed
    with torch.no_grad():
        found = torch.compile(model, backend=backend)(x)
    torch.testing.assert_close(found, expected, **FLOAT32)
