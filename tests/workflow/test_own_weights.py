"""A factory that returns a network with its own weights is enough: neither `weights` nor `train`."""

import pytest

from dalr_stream.errors import ConfigError, FingerprintMismatchError
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

pytestmark = pytest.mark.usefixtures("quick")
OWN = """

def whole(scale=1.0):
    torch.manual_seed(3)
    model = Tiny()
    with torch.no_grad():
        model.fc1.weight.mul_(float((Path(__file__).parent / "scale.txt").read_text()))
    return model
"""


@pytest.fixture
def own_file(run_file):
    (run_file.parent / "scale.txt").write_text("1.0")
    code = run_file.parent / "tiny_run.py"
    code.write_text("from pathlib import Path\n" + code.read_text() + OWN)
    lines = [line for line in run_file.read_text().splitlines() if not line.startswith("train =")]
    run_file.write_text("\n".join(lines).replace("tiny_run:build", "tiny_run:whole"))
    return run_file


def opened(path, *overrides):
    return Run(Project(load_config(path, list(overrides)), path.parent))


def test_a_run_goes_from_the_network_as_it_is_built_to_the_report(own_file):
    run = opened(own_file)
    assert run.all().exists()
    assert not (own_file.parent / "out" / "network.safetensors").exists()


def test_other_weights_from_the_same_code_are_noticed(own_file):
    opened(own_file).all()
    (own_file.parent / "scale.txt").write_text("2.0")
    with pytest.raises(FingerprintMismatchError, match="network"):
        opened(own_file).all()


def test_a_factory_that_draws_its_weights_is_refused(own_file):
    with pytest.raises(ConfigError, match=r"'tiny_run:build' gives other weights each time it is called"):
        opened(own_file, "network.build=tiny_run:build").all()
