"""Grouped convolutions by other ways to the same: shards, and layer after layer."""

import pytest
import torch
from grouped_network import METHOD, again, elsewhere, inputs

import dalr_stream as ds
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import RankError
from dalr_stream.workflow.results.results import results
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.steps.sizes.compression import Compression

pytestmark = pytest.mark.filterwarnings("ignore::dalr_stream.errors.ParameterIncreaseWarning")  # full rank, on purpose


def test_shards_choose_one_ridge_for_all_groups_and_give_the_layer_error_bars(folder, tmp_path):
    project = elsewhere(
        folder,
        tmp_path,
        "accumulate.shards=3",
        "capture.keep_activations=false",
        "accumulate.heldout_share=0.2",
        'solve.ridge="shards"',
        'solve.methods=["dalr_anchored_affine"]',
        'network.layers=["split"]',
        'compress={split={method="dalr_anchored_affine",size=2}}',
    )
    Run(project).all()
    store = StoreView.open(project.store)
    parts = store.solutions("split", [METHOD])[METHOD].parts
    assert len({part.diagnostics.chosen_ridge for part in parts}) == 1
    (layer,) = results(project).layers
    assert layer.stability.shards == 3
    assert 0.0 < layer.stability.training_error[2] < 0.1
    assert layer.error_curves[0].heldout is not None


def test_layer_after_layer(project, folder, tmp_path):
    sizes = {"stem": 2, "split": 3, "line": 1}
    chosen = ",".join(f'{name}={{method="dalr_anchored_affine",size={size}}}' for name, size in sizes.items())
    other = again(project, folder, tmp_path, f'compress={{order="sequential",{chosen}}}')
    Run(other).compress()
    gain = Compression.read(other.compression).gain
    assert [layer.layer for layer in gain.layers] == list(sizes)
    small, x = ds.load(other.compressed, other.code.build), inputs(other)
    with torch.inference_mode():
        h = {"small": x, "original": x}
        nets = {"small": small, "original": other.network}
        gaps = {}
        for name in sizes:
            y = {key: nets[key].get_submodule(name)(value) for key, value in h.items()}
            bias = other.network.get_submodule(name).bias
            own = y["original"] if bias is None else y["original"] - bias.reshape(-1, *[1] * (y["original"].ndim - 2))
            gaps[name] = float((y["original"] - y["small"]).norm() / own.norm())
            h = {key: torch.relu(value) for key, value in y.items()}
            if name == "split":
                h = {key: torch.relu(nets[key].depth(value)).flatten(2) for key, value in h.items()}
    assert {layer.layer: layer.sequential for layer in gain.layers} == pytest.approx(gaps, rel=1e-4)


def test_layer_after_layer_at_full_rank_is_the_original(project):
    whole = {name: ds.LayerChoice(METHOD, size) for name, size in (("stem", 8), ("split", 6), ("line", 2))}
    found = ds.compress_sequentially(project.network, project.code.batches("target"), whole)
    x = inputs(project)
    with torch.inference_mode():
        torch.testing.assert_close(found.network(x), project.network(x), rtol=1e-4, atol=1e-4)
    assert found.layers["line"].error < 1e-4
    with pytest.raises(RankError, match=r"layer 'line': rank must lie in 1\.\.2, got 3"):
        ds.compress_sequentially(project.network, project.code.batches("target"), {"line": ds.LayerChoice(METHOD, 3)})
