"""Direct runs by either engine and in either precision: the same moments, resumed to the same bits, never mixed up."""

import numpy as np
import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_into, accumulate_stream
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.network.capture.proofs.probe import PROBE_PASSES
from dalr_stream.network.capture.proofs.proof import SAMPLE_PASSES
from dalr_stream.numerics.linalg.precision import error_bound
from dalr_stream.storage.records.moments import moments_path
from dalr_stream.storage.records.record import provenance_of
from dalr_stream.streaming.lanes import Pace
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

SAMPLES = 9000  # three tiles, the last of them not full
WAYS = [{}, {"device": "cpu"}, {"precision": "single"}, {"device": "cpu", "precision": "single"}]


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batches():
    x = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(1)) + 3.0
    return list(x.split(2300))


def every_second_batch():
    return Pace(every_tiles=2)


def folding(**options):
    return ds.Folding(ds.HoldoutRule(0.2, seed=3), ds.Threads(1), pace=every_second_batch, **options)


def layers_of(net):
    return ds.network.select_layers(net, ["0", "2"])


def assert_close(found, expected, tolerance):
    for part in ("training", "heldout"):
        for layer in ("0", "2"):
            one, other = getattr(found, part)[layer], getattr(expected, part)[layer]
            root = np.sqrt(np.diagonal(other.scatter))
            assert (one.count, one.samples) == (other.count, other.samples)
            assert (np.abs(one.scatter - other.scatter) <= tolerance * np.outer(root, root)).all()
            np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)


def same_bits(found, expected):
    return all(
        getattr(found, part)[layer].same_bits(getattr(expected, part)[layer])
        for part in ("training", "heldout")
        for layer in ("0", "2")
    )


@pytest.mark.parametrize("options", WAYS)
def test_either_engine_and_precision_gives_the_moments_of_the_rows(net, batches, options):
    expected = accumulate_stream(net, batches, layers_of(net), folding=folding())
    found = accumulate_stream(net, batches, layers_of(net), folding=folding(**options))
    assert_close(found, expected, 1e-12 + error_bound(4096) * ("precision" in options))
    assert same_bits(found, expected) == (not options)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [*((way, torch.float32) for way in WAYS), (WAYS[0], torch.bfloat16), (WAYS[1], torch.bfloat16)],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(net, batches, tmp_path, options, dtype):
    """Stopped in the middle of a tile, with rows that fill none: bfloat16 ones are kept as float32."""
    net = net.to(dtype)
    batches = [batch.to(dtype) for batch in batches]
    straight = accumulate_stream(net, batches, layers_of(net), folding=folding(**options))
    stop_after_three(net, batches, tmp_path, folding(**options))
    forwards = []
    net.register_forward_hook(lambda *_: forwards.append(1))
    resumed = accumulate_into(tmp_path, net, batches, layers_of(net), domain="t", folding=folding(**options))
    assert len(forwards) == len(batches) - 2 + SAMPLE_PASSES + PROBE_PASSES
    assert same_bits(resumed, straight)


def stop_after_three(net, batches, store, folding):
    def failing():
        yield from batches[:3]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        accumulate_into(store, net, failing(), layers_of(net), domain="t", folding=folding)


@pytest.mark.parametrize("options", WAYS[1:])
def test_a_checkpoint_of_another_way_to_fold_is_not_gone_on_from(net, batches, tmp_path, options):
    stop_after_three(net, batches, tmp_path, folding())
    resumed = accumulate_into(tmp_path, net, batches, layers_of(net), domain="t", folding=folding(**options))
    assert same_bits(resumed, accumulate_stream(net, batches, layers_of(net), folding=folding(**options)))
    rule = provenance_of(moments_path(tmp_path, "t", "0", "training"))["rule"]
    assert (rule["precision"], rule["engine"]) == (
        options.get("precision", "double"),
        "torch:cpu" if "device" in options else "numpy",
    )


@pytest.mark.parametrize("options", WAYS[1:])
def test_moments_in_a_store_are_made_again_for_another_way_to_fold(net, batches, tmp_path, options):
    ds.capture(net, batches, layers_of(net), tmp_path, domain="t")
    first = dict(accumulate_stored(tmp_path, domain="t", folding=folding()).items())
    other = accumulate_stored(tmp_path, domain="t", folding=folding(**options))
    assert same_bits(other, accumulate_stream(net, batches, layers_of(net), folding=folding(**options)))
    assert not other["0"].same_bits(first["0"])
    again = accumulate_stored(tmp_path, domain="t", folding=folding())
    assert again["0"].same_bits(first["0"])


@pytest.mark.parametrize("keep", ["true", "false"])
def test_a_run_file_names_precision_and_device(run_file, keep):
    def accumulated(*overrides):
        project = Project(load_config(run_file, [f"capture.keep_activations={keep}", *overrides]), run_file.parent)
        run = Run(project)
        run.train()
        run.accumulate()
        return project

    for overrides, found in (
        ((), ("double", "numpy")),
        (("accumulate.precision=single",), ("single", "numpy")),
        (("accumulate.precision=single", "accumulate.device=cpu"), ("single", "torch:cpu")),
    ):
        store = StoreView.open(accumulated(*overrides).store)
        rules = [facts["rule"] for facts in store.moments_provenance(["target", "source"])]
        assert {(rule["precision"], rule["engine"]) for rule in rules} == {found}


def test_a_device_that_is_not_there_is_refused(net, batches):
    with pytest.raises(ds.DalrStreamError, match="device 'cuda:77' does not exist"):
        accumulate_stream(net, batches, layers_of(net), folding=ds.Folding(device="cuda:77"))


@pytest.mark.gpu
def test_a_cuda_device_folds_what_a_network_on_it_makes_and_what_a_store_holds(cuda, net, batches, tmp_path):
    """The first layer reads the data themselves, so both devices see the same rows."""
    first = ds.network.select_layers(net, ["0"])
    expected = accumulate_stream(net, batches, first, folding=folding())["0"]
    ds.capture(net, batches, first, tmp_path / "store", domain="t")
    stored = accumulate_stored(tmp_path / "store", domain="t", folding=folding(device=cuda.type))["0"]
    net = net.to(cuda)
    direct = accumulate_stream(net, batches, first, folding=folding(device=cuda.type))["0"]
    assert direct.same_bits(stored)
    root = np.sqrt(np.diagonal(expected.scatter))
    assert (np.abs(direct.scatter - expected.scatter) <= 1e-12 * np.outer(root, root)).all()
    stop_after_three(net, batches, tmp_path / "resumed", folding(device=cuda.type))
    whole = accumulate_stream(net, batches, layers_of(net), folding=folding(device=cuda.type))
    resumed = accumulate_into(
        tmp_path / "resumed", net, batches, layers_of(net), domain="t", folding=folding(device=cuda.type)
    )
    assert same_bits(resumed, whole)
