"""The digits pipeline, small, with fine-tuning between compression and evaluation."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from dalr_stream.workflow.run import Run
from dalr_stream.workflow.runfile.config import load_config
from dalr_stream.workflow.runfile.project import Project

RUN_FILE = Path(__file__).parents[2] / "pipelines" / "digits" / "run.toml"
TRAINING = "classes=12,faces=2,source_samples=900,source_epochs=3,source_learning_rate=3e-3,target_epochs=20"
SMALL = (
    "network.options={first_channels=4,second_channels=8,width=32}",
    f"network.train_options={{{TRAINING},target_samples=200}}",
    "domains.target.options.samples=200",
    "domains.test.options.samples=200",
    "domains.source.options={samples=200,classes=12,faces=2}",
    'solve.methods=["svd","spectral"]',
    'compress={fc6={method="svd",size=2},fc7={method="spectral",size=4}}',
    "evaluate.options.samples=200",
    "evaluate.ranks=[2]",
)
FINE_TUNING = (
    'finetune.batches="digits_data:target_train"',
    "finetune.options={samples=200,batch_size=50}",
    "finetune.epochs=30",
    "finetune.rate=3e-3",
)


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small wait for threads far longer than they take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_fine_tuning_gives_back_much_of_what_a_hard_compression_took(tmp_path):
    """Rank 2 and 4 nodes of 32: the 200 digits it learns from are not those it is judged on."""
    config = load_config(RUN_FILE, [f'run.output="{tmp_path}"', *SMALL, *FINE_TUNING])
    run = Run(Project(config, RUN_FILE.parent))
    run.train()
    run.accumulate()
    whole, compressed, tuned = run.evaluate().sizes
    assert tuned.parameters == compressed.parameters < whole.parameters
    assert tuned.score > compressed.score + 0.1
