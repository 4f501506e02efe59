"""Runs small enough to be killed by the hundred: their settings, a command as a process of its own, what it leaves.

A process imports what a run imports once (`import_all`), and forks a child for each command. The parent never computes:
it has no thread when it forks.
"""

import collections
import contextlib
import dataclasses
import importlib
import json
import os
import re
import signal
import sys
import threading
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import quick_runs
from crashing_disk import Disk

from dalr_stream.errors import DalrStreamError, StoreLockedError
from dalr_stream.workflow.run import Run
from dalr_stream.workflow.steps.step_log import StepLog
from dalr_stream.workflow.verify import verify_run

SMALL = [
    'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]',
    'finetune={batches="tiny_run:validation", epochs=2}',
    "evaluate.ranks=[1, 4]",
    "network.train_options.steps=5",
]
SAVED = "saved"
"""A network of which one layer is compressed, beside the run file: what `cross` is taken of."""
SETTINGS = {
    "first": [],
    "ridge": ["solve.ridge=1000"],
    "chosen": ['solve.ridge="shards"', "accumulate.shards=3"],
    "shards": ["accumulate.shards=4"],
    "single": ['accumulate.precision="single"'],
    "size": ["compress.fc1.size=2"],
    "one layer": ['compress={fc1={method="dalr_anchored_affine", size=4}}'],
    "sequential": ['compress.order="sequential"'],
    "cross": [f'accumulate.cross="{SAVED}"'],
    "epochs": ["finetune.epochs=3"],
    "ranks": ["evaluate.ranks=[1, 3]"],
    "tuned": ["evaluate.finetune=true"],
    "data": ["domains.source.options.samples=110"],
    "seed": ["run.seed=5"],
}
NEEDS_FRESH = {"data", "seed"}
DIRECT = "capture.keep_activations=false"
HOMES = [name for name in SETTINGS if name not in NEEDS_FRESH]
VERBS = ("train", "capture", "accumulate", "solve", "compress", "finetune", "evaluate", "report")
LOGS = {"log.jsonl", "run.lock", "store.zarr/writer.lock"}
OF_ONE_SETTING = {"cross": "cross.zarr", "sequential": "passes"}
"""What stays when another setting is asked for, as it costs a pass over the data and says what it was made from."""
VALUES = re.compile(r".*\.safetensors|store.zarr/(moments|solutions)/.*/c/.*|report/(figures|tables)/.*")
"""What is the same whether moments were folded directly or from the rows in the store; their provenance is not."""
REFUSED, SAID, CRASHED = 3, 2, 1
"""Exit codes: another command was at work; an error of ours, one line; anything else."""


@dataclasses.dataclass(frozen=True)
class Command:
    verb: str
    setting: str
    direct: bool = False
    """Whether rows are folded as they come, and none are kept."""
    fresh: bool = False
    kill_at: tuple[str, int] | None = None
    """The verb of a step, and the operation on files within it before which it is killed."""

    def __str__(self):
        options = " directly" * self.direct + " --fresh" * self.fresh
        options += "" if self.kill_at is None else " to operation {1} of {0}".format(*self.kill_at)
        return f"{self.verb} '{self.setting}'{options}"

    def start(self, file):
        """Fork a child that does it; what it says is in `said.txt` beside the run file."""
        return forked(self._do, file)

    def run(self, file):
        """Return the run that it is a command of."""
        settings = [*SMALL, *SETTINGS[self.setting], *([DIRECT] if self.direct else [])]
        return Run.open(file, set=settings, fresh=self.fresh)

    def _do(self, file):
        counting = Counting(self.kill_at)
        disk = Disk(file.parent / "out", counting.before)
        with quick_runs(), contextlib.nullcontext() if self.kill_at is None else disk.recording():
            run = self.run(file)
            verify_run(run.project).require() if self.verb == "verify" else getattr(run, self.verb)()
        (file.parent / "operations.json").write_text(json.dumps(counting.operations))
        (file.parent / "modules.txt").write_text("\n".join(sys.modules))


def forked(work, file):
    """Fork a child that does something to a run; return its process, which ends in 0, REFUSED, SAID or CRASHED."""
    child = os.fork()
    if not child:
        code = CRASHED
        try:
            code = _code_of(work, file)
        finally:
            os._exit(code)
    return child


def _code_of(work, file):
    try:
        work(file)
    except StoreLockedError:
        return REFUSED
    except DalrStreamError as error:
        said(file).write_text(str(error))
        return SAID if "\n" not in str(error) else CRASHED
    except BaseException:  # noqa: BLE001  # a child's every failure is reported by its parent
        said(file).write_text(traceback.format_exc())
        return CRASHED
    return 0


class Counting:
    """Counts operations by the step in which they are done, and kills this process at one of them."""

    def __init__(self, kill_at):
        self.operations, self._kill_at, self._verb = collections.Counter(), kill_at, "between"
        begin, done = StepLog.begin, StepLog.done

        def begun(log, step):
            self._verb = step.partition(" ")[0]
            begin(log, step)

        def ended(log, step, fingerprint):
            done(log, step, fingerprint)
            self._verb = "between"

        StepLog.begin, StepLog.done = begun, ended

    def before(self, _):
        if (self._verb, self.operations[self._verb]) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.operations[self._verb] += 1


def said(file):
    return file.parent / "said.txt"


# --- what a run left ----------------------------------------------------------------------------------------------


def left(file):
    """Return everything in the run's folder, by path: a folder's content is None."""
    out = file.parent / "out"
    names = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*"))}
    return {name: None if path.is_dir() else path.read_bytes() for name, path in names.items() if name not in LOGS}


def plain(name, data, ignored_steps):
    """JSON is equal whatever the order of its keys, and whichever run file it was that asked for the same."""
    if data is None or not name.endswith(".json"):
        return data
    try:
        value = without_configuration(json.loads(data))
    except (ValueError, RecursionError):  # damaged
        return data
    if name == "steps.json":
        value["content"] = {step: entry for step, entry in value["content"].items() if step not in ignored_steps}
    return value


def without_configuration(value):
    if isinstance(value, list):
        return [without_configuration(one) for one in value]
    if not isinstance(value, dict):
        return value
    ignored = {"configuration", "digest", "date"}
    return {key: without_configuration(one) for key, one in value.items() if key not in ignored}


def differences(setting, found, expected, counts=lambda _: True):
    """Return the names of files and folders that differ, less what another setting left and nobody reads.

    Rows whose capture was stopped may lack: the moments that were made of them are there, and they are captured again
    when somebody asks for them.
    """
    stopped = [name for name, step in steps_of(found).items() if name.startswith("capture ") and "unfinished" in step]
    ignored = [folder for name, folder in OF_ONE_SETTING.items() if name != setting]
    ignored += [f"store.zarr/activations/{step.removeprefix('capture ')}" for step in stopped]
    steps = {*stopped, *(steps_of(found).keys() - steps_of(expected).keys())}  # of which some are of other settings

    def differs(name):
        if name not in found or name not in expected:
            return True
        return plain(name, found[name], steps) != plain(name, expected[name], steps)

    names = (name for name in {*found, *expected} if not name.startswith(tuple(ignored)) and counts(name))
    return sorted(name for name in names if differs(name))


def steps_of(found):
    try:
        return json.loads(found["steps.json"])["content"]
    except (LookupError, ValueError):  # not there, or damaged
        return {}


def import_all(modules):
    """Import what a run was found to import as it went."""
    for name in modules.read_text().splitlines():
        if name.partition(".")[0] not in {"__main__", "__mp_main__", "tiny_run"}:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
