"""The disk that a plan names holds what a run leaves and, until the moments are there, its checkpoints."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dalr_stream as ds
from dalr_stream.engine.direct import accumulate_into
from dalr_stream.engine.estimate import estimate, held_on_disk, require_disk
from dalr_stream.engine.from_store import accumulate_stored
from dalr_stream.errors import DiskSpaceError
from dalr_stream.progress import Silent
from dalr_stream.streaming.cost import LayerLoad
from dalr_stream.streaming.lanes import Pace
from dalr_stream.streaming.plan import plan

WIDTH, SAMPLES = 300, 3_000
OFTEN = ds.Folding(ds.HoldoutRule(0.2), ds.Threads(1), pace=lambda: Pace(every_tiles=1))
pytestmark = pytest.mark.usefixtures("low_tiles", "unsynced")


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(WIDTH, 4), nn.Linear(4, 2)).eval()


@pytest.fixture(scope="module")
def batches():
    return list(torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(1)).split(100))


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Weighed(Silent):
    """Weighs a store's checkpoints whenever progress is reported."""

    def __init__(self, root):
        self.root, self.most = root, 0

    @contextmanager
    def track(self, title, total, unit):  # noqa: ARG002
        def weigh(_):
            self.most = max(self.most, size(self.root / "unfinished"))

        yield weigh


@pytest.mark.parametrize("direct", [True, False])
def test_checkpoints_take_no_more_than_is_planned(model, batches, tmp_path, direct):
    layers, weighed = ds.network.select_layers(model, ["0"]), Weighed(tmp_path)
    plan = estimate(model, {"t": batches}, layers, OFTEN, direct=direct)
    if direct:
        accumulate_into(tmp_path, model, batches, layers, domain="t", folding=OFTEN, progress=weighed)
    else:
        ds.capture(model, batches, layers, tmp_path, domain="t")
        accumulate_stored(tmp_path, domain="t", folding=OFTEN, progress=weighed)
    assert plan.checkpoint_bytes / 5 < weighed.most <= plan.checkpoint_bytes
    assert plan.disk_bytes + plan.checkpoint_bytes == plan.disk_peak_bytes
    assert size(tmp_path / "unfinished") == 0


def test_what_lies_there_is_not_asked_for_again(model, batches, tmp_path, monkeypatch):
    layers = ds.network.select_layers(model, ["0"])
    plan = estimate(model, {"t": batches}, layers, OFTEN)
    assert held_on_disk(tmp_path, ["t"]) == 0
    ds.capture(model, batches, layers, tmp_path, domain="t")
    held = held_on_disk(tmp_path, ["t"])
    assert held == SAMPLES * WIDTH * 4
    assert held_on_disk(tmp_path, ["other"]) == 0
    assert held_on_disk(tmp_path, ["t"], replaced=True) == size(tmp_path / "activations" / "t")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=plan.disk_peak_bytes - held))
    require_disk(plan, tmp_path, held)
    with pytest.raises(DiskSpaceError, match="may need 27 MiB of disk"):
        require_disk(plan, tmp_path)
    with pytest.raises(DiskSpaceError, match=r"more \(of 27 MiB\) of disk"):
        require_disk(plan, tmp_path, held - 1)
    accumulate_stored(tmp_path, domain="t", folding=OFTEN)
    assert held_on_disk(tmp_path, ["t"]) == held + size(tmp_path / "moments" / "t")


def test_a_disk_that_is_short_is_told_what_takes_less(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    loads = [LayerLoad("fc1", 1000, 500, outputs=100), LayerLoad("fc2", 500, 500, outputs=800)]
    stored = plan(loads, threads=1, heldout_share=0.1, shards=4, domains=2)
    with pytest.raises(DiskSpaceError) as caught:
        require_disk(stored, tmp_path)
    moments = 8 * (1000**2 + 500**2) * 2
    assert stored.disk_alternatives == (
        ("keep no activations (capture.keep_activations = false)", 6 * moments),
        ("keep neither held-out rows nor shards (accumulate.heldout_share = 0, shards = 1)", moments),
        ("watch the outputs of 'fc1' alone, which anchored DALR needs", 6 * 8 * (100**2 + 500**2) * 2),
    )
    assert "; or keep no activations (capture.keep_activations = false): moments of 114 MiB; or keep" in str(
        caught.value
    )
    assert plan(loads[1:], threads=1, heldout_share=0.0, direct=True).disk_alternatives == ()
