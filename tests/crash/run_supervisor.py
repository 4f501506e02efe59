"""Kills whole runs with SIGKILL at random instants, under changing settings and two at once, and looks at what is left.

    python run_supervisor.py FOLDER KILLS SEED

A trial is a finished run. Commands are drawn for it, each with a setting of its own, and killed after a delay drawn
from the length of a whole run, so kills fall on every step; now and then a second command is started beside the first.
Whenever a whole run ends in 0, what it left must be what the same setting gives in a folder of its own; a command
beside another is refused, or comes before or after it. In the end the first setting is run again, and every file is
that of a run that nobody interrupted. Prints one line of JSON: kills, trials, commands, commands that ended in 0,
commands that were refused because another was at work, and what was wrong.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from supervisor import wait
from tiny_run_file import write_run

from dalr_stream.errors import StoreLockedError
from dalr_stream.workflow.run import Run

FEW = 'solve.methods=["svd", "dalr_anchored_affine", "momasp_node"]'
SETTINGS = {
    "first": [],
    "ridge": ["solve.ridge=1000"],
    "size": ["compress.fc1.size=2"],
    "shards": ["accumulate.shards=3"],
    "ranks": ["evaluate.ranks=[1, 3]"],
    "data": ["domains.source.options.samples=110"],
    "seed": ["run.seed=5"],
}
NEEDS_FRESH = {"data", "seed"}
VERBS = ("all", "all", "all", "train", "accumulate", "solve", "compress", "evaluate", "report")
LOGS = {"log.jsonl", "run.lock", "steps.json", "store.zarr/writer.lock"}
RESULTS = ("evaluation.json", "compression.json", "stability.json", "report/results.json", "report/report.html")
LOCKED = 3
FIRST_AGAIN = "first, in the end"


def run_of(file, setting, *, fresh):
    return Run.open(file, set=[FEW, *SETTINGS[setting]], fresh=fresh)


def started(file, verb, setting, *, fresh):
    """Fork a child that does a command; it leaves with 0, with LOCKED where another was at work, or with 1."""
    child = os.fork()
    if child:
        return child
    try:
        getattr(run_of(file, setting, fresh=fresh), verb)()
    except StoreLockedError:
        os._exit(LOCKED)
    except BaseException:  # noqa: BLE001  # a child's every failure is reported by its parent
        (file.parent / "failure.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def left(file):
    out = file.parent / "out"
    files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in LOGS}


def plain(name, data):
    """JSON is equal whatever the order of its keys, and whichever run file it was that asked for the same."""
    return without_configuration(json.loads(data)) if name.endswith(".json") else data


def without_configuration(value):
    if isinstance(value, list):
        return [without_configuration(one) for one in value]
    if not isinstance(value, dict):
        return value
    ignored = {"configuration", "digest", "date"}
    return {key: without_configuration(one) for key, one in value.items() if key not in ignored}


@dataclasses.dataclass
class Outcome:
    kills: int = 0
    trials: int = 0
    commands: int = 0
    whole: int = 0
    refused: int = 0
    wrong: list = dataclasses.field(default_factory=list)


class Trials:
    def __init__(self, folder, kills, seed):
        self.folder, self.kills = folder, kills
        self.draw, self.outcome = random.Random(seed), Outcome()  # noqa: S311  # instants, not secrets
        self.first = write_run(folder / "first")
        begun = time.monotonic()
        assert wait(started(self.first, "all", "first", fresh=False)) == 0, self.failure(self.first)
        self.seconds = time.monotonic() - begun
        self._expected = {"first": left(self.first)}

    def expected(self, setting):
        """Return what a run leaves that nobody interrupts, done when it is first asked for."""
        if setting not in self._expected:
            file = self.copy(setting)
            assert wait(started(file, "all", setting, fresh=setting in NEEDS_FRESH)) == 0, self.failure(file)
            self._expected[setting] = left(file)
        return self._expected[setting]

    def failure(self, file):
        path = file.parent / "failure.txt"
        return path.read_text() if path.exists() else ""

    def copy(self, name):
        return shutil.copytree(self.first.parent, self.folder / name) / "run.toml"

    def trial(self):
        file = self.copy(f"trial-{self.outcome.trials}")
        history = []
        for _ in range(self.draw.randint(1, 3)):
            commands = [self.drawn() for _ in range(1 + (self.draw.random() < 0.3))]
            history.append(commands)
            self.together(file, commands, history)
        code = wait(started(file, "all", "first", fresh=False))
        if code and "--fresh" in self.failure(file):  # other data, or another network, are replaced only when asked
            code = wait(started(file, "all", "first", fresh=True))
        history.append(FIRST_AGAIN)
        if code != 0:
            self.outcome.wrong.append(f"{history}: exit code {code}: {self.failure(file)}")
        else:
            self.compare(file, "first", history, self.expected("first"))
        self.outcome.trials += 1
        shutil.rmtree(file.parent)

    def drawn(self):
        setting = self.draw.choice(list(SETTINGS))
        return self.draw.choice(VERBS), setting, setting in NEEDS_FRESH or self.draw.random() < 0.1

    def together(self, file, commands, history):
        """Start commands at once, kill them at random; of those that end in 0 the last one's results are there."""
        children = {}
        for verb, setting, fresh in commands:
            self.outcome.commands += 1
            children[started(file, verb, setting, fresh=fresh)] = verb, setting
        delay = None if self.draw.random() < 0.25 else self.draw.uniform(0, 0.7 * self.seconds)  # None: left to finish
        until = None if delay is None else time.monotonic() + delay
        codes = {child: wait(child, until) for child in children}
        for child in [child for child, code in codes.items() if code is None]:
            os.kill(child, signal.SIGKILL)
            codes[child] = wait(child)
            self.outcome.kills += codes[child] == -signal.SIGKILL
        self.outcome.refused += sum(code == LOCKED for code in codes.values())
        done = [children[child] for child, code in codes.items() if code == 0]
        alone = len(commands) == 1 or all(code in (0, LOCKED) for code in codes.values())
        if alone and len(done) == 1 and done[0][0] == "all":
            self.outcome.whole += 1
            self.compare(file, done[0][1], history, {name: self.expected(done[0][1])[name] for name in RESULTS})

    def compare(self, file, setting, history, expected):
        found = left(file)
        if expected.keys() == set(RESULTS):
            found = {name: found.get(name) for name in RESULTS}
        odd = sorted(
            name
            for name in {*found, *expected}
            if name not in found or name not in expected or plain(name, found[name]) != plain(name, expected[name])
        )
        if odd:
            self.outcome.wrong.append(f"{history}: under '{setting}' {len(odd)} files differ: {odd[:6]}")


def main(folder, kills, seed):
    trials = Trials(folder, kills, seed)
    while trials.outcome.kills < kills:
        trials.trial()
    print(json.dumps(dataclasses.asdict(trials.outcome)))  # noqa: T201  # the answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
