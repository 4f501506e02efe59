"""A run small enough to be done in a second: a run file, and the Python it names, in a folder of their own."""

from pathlib import Path

CODE = """
import torch
from torch import nn

COLOURS = 3


class Tiny(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.fc1 = nn.Linear(12, width)
        self.fc2 = nn.Linear(width, 10)
        self.fc3 = nn.Linear(10, COLOURS)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.fc3(self.drop(torch.relu(self.fc2(torch.relu(self.fc1(x))))))


def build(width=16):
    return Tiny(width)


def train(model, *, seed, report, steps=60):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in (model.fc1, model.fc2, model.fc3):
            module.reset_parameters()
        descent = torch.optim.Adam(model.parameters(), lr=0.02)
        model.train()
        for _ in range(steps):
            for inputs, labels in target(seed=seed):
                descent.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                descent.step()
    report(f"trained for {steps} steps")


def _batches(seed, samples, shift, batch_size):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(COLOURS, (samples,), generator=generator)
    inputs = torch.randn(samples, 12, generator=generator) + shift
    inputs[torch.arange(samples), labels] += 3.0
    return [(inputs[i : i + batch_size], labels[i : i + batch_size]) for i in range(0, samples, batch_size)]


def target(*, seed, samples=90, batch_size=32):
    return _batches(seed, samples, 0.0, batch_size)


def source(*, seed, samples=120, batch_size=50):
    return _batches(seed + 1000, samples, 0.5, batch_size)


def test(*, seed, samples=80):
    return _batches(seed + 2000, samples, 0.0, 80)


def validation(*, seed, samples=60):
    return _batches(seed + 3000, samples, 0.0, 25)


def big(*, seed):
    return _batches(seed, 200_000, 0.0, 200_000)


def with_nan(*, seed):
    batches = target(seed=seed)
    batches[1][0][3, 4] = float("nan")
    return batches


def empty(*, seed):
    return []


def no_seed():
    return target(seed=0)


def nothing_returned(*, seed):
    target(seed=seed)


def once(*, seed):
    yield from target(seed=seed)


def wrong_shape(*, seed):
    return [(torch.zeros(4, 11), torch.zeros(4, dtype=torch.long))]


def wrong_keys(*, seed):
    return [{"y": torch.zeros(4, 12)}]


def of_the_model_alone(model):
    return 0.5


def perplexity(model, batches):
    with torch.no_grad():
        losses = [float(torch.nn.functional.cross_entropy(model(inputs), labels)) for inputs, labels in batches]
    return 2.0 ** (sum(losses) / len(losses) + 0.1)


def share_of_first(model, batches):
    return sum(float((model(inputs).argmax(1) == 0).float().mean()) for inputs, _ in batches) / len(batches)
"""

RUN_FILE = """
[run]
name = "tiny"
output = "out"
caveats = ["it is tiny"]

[network]
build = "tiny_run:build"
train = "tiny_run:train"
layers = ["fc[12]"]

[domains.target]
batches = "tiny_run:target"

[domains.source]
batches = "tiny_run:source"

[domains.test]
batches = "tiny_run:test"

[solve]
source = "source"
heldout = "test"

[compress]
fc1 = { method = "dalr_anchored_affine", size = 4 }
fc2 = { method = "momasp_node", size = 6 }

[evaluate]
batches = "tiny_run:test"
ranks = [1, 2, 4, 8]
"""


def write_run(folder: Path) -> Path:
    """Write the run file and its module into a new folder; return the run file."""
    folder.mkdir()
    (folder / "tiny_run.py").write_text(CODE)
    path = folder / "run.toml"
    path.write_text(RUN_FILE)
    return path
