"""The script of Table 6's rows: networks within their share, by the sizes that it says."""

import sys
from pathlib import Path

import pytest
import torch

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_stream
from dalr_stream.network.structure.readers import with_readers
from dalr_stream.network.surgery.compress import parameter_count

FOLDER = Path(__file__).parents[2] / "pipelines" / "digits"


@pytest.fixture
def whole(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "path", [*sys.path])
    import whole

    yield whole
    for name in ("whole", "digits_data", "digits_network", "digits_training"):
        sys.modules.pop(name, None)


@pytest.fixture
def solved(whole):
    from digits_network import build

    model = build(first_channels=4, second_channels=6, width=24).eval()
    pictures = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    structure = ds.network.Structure.of(model, pictures)
    layers = with_readers(ds.network.select_layers(model, whole.WHOLE), structure)
    moments = accumulate_stream(model, [pictures], layers)
    selections = {name: ds.spectral(structure.group_of(name).joint(moments)) for name in whole.WHOLE}
    factors = {name: ds.dalr(*ds.network.weights_of(model, name), moments[name]) for name in whole.DENSE}
    return whole.Solved(model, structure, factors, selections)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_every_row_keeps_within_its_share_and_one_step_more_would_not(whole, solved, share):
    allowed = share * parameter_count(solved.model)
    by_dalr = solved.by_dalr(share)
    rank = by_dalr.fc6[0].out_features
    assert parameter_count(by_dalr) <= allowed < parameter_count(solved._factored(rank + 1))
    for layers in (whole.DENSE, whole.WHOLE):
        small = solved.by_selection(layers, share)
        assert parameter_count(small) <= allowed
        narrower = small.features[0].out_channels < 4 or small.features[2].out_channels < 6
        assert not narrower or layers == whole.WHOLE
        assert narrower or layers == whole.DENSE or share > 0.25
        assert small(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_spread_is_in_percent(whole):
    assert whole.spread([0.5, 0.7]) == "60.0 +- 14.1"
    assert whole.spread([0.5]) == "50.0 +- 0.0"
