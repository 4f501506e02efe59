"""Kills whole runs with SIGKILL, under changing settings and two commands at once, and looks at what is left.

    python run_supervisor.py FOLDER KILLS SEED

A trial is a run that has a setting of its own and is, to begin with, finished or not begun. Commands are drawn for it,
each with a setting, and killed: after a delay drawn from the length of a whole run, or at one of the operations on
files that one of its steps has. So kills fall on every step, within and between its files. Now and then a second
command is started beside the first: it is refused, or comes before or after it. Whenever a whole run ends in 0, and in
the end, when the trial's own setting is run again, every file is that of a run of that setting which nobody
interrupted, `verify` finds nothing, and nothing lies there that no such run leaves.

What every run imports is imported before the first fork, so a kill costs the command and not torch. Prints one line of
JSON: kills by instant and by operation, in which step they fell, commands, trials, and what was wrong.
"""

import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from small_runs import (
    HOMES,
    NEEDS_FRESH,
    REFUSED,
    SAID,
    SAVED,
    SETTINGS,
    VALUES,
    VERBS,
    Command,
    differences,
    import_all,
    left,
    said,
    steps_of,
)
from supervised import told_at_the_end, wait
from tiny_run_file import write_run


@dataclasses.dataclass
class Outcome:
    kills: int = 0
    at_operations: int = 0
    """Of the kills."""
    trials: int = 0
    commands: int = 0
    whole: int = 0
    """Whole runs that ended in 0 before the end of a trial, all of them compared."""
    two_at_once: int = 0
    refused: int = 0
    steps: dict = dataclasses.field(default_factory=collections.Counter)
    """In which step the killed command was, by its verb; `between` where none was begun."""
    said: dict = dataclasses.field(default_factory=collections.Counter)
    """Errors of ours, one line each, by their beginning."""
    wrong: list = dataclasses.field(default_factory=list)


class Trials:
    def __init__(self, folder, seed):
        self.folder, self.outcome = folder, Outcome()
        self.draw = random.Random(seed)  # noqa: S311  # instants, not secrets
        self._expected = {}
        self.begin = write_run(folder / "nothing done")
        self.alone(self.begin, Command("all", "one layer"))
        (self.begin.parent / "out" / "compressed").rename(self.begin.parent / SAVED)
        shutil.rmtree(self.begin.parent / "out")
        import_all(self.begin.parent / "modules.txt")
        self.operations = self.whole_run("first", kill_at=("none", 0))
        begun = time.monotonic()
        self.expected("ridge", direct=False)
        self.seconds = time.monotonic() - begun

    def whole_run(self, setting, **options):
        """Do a run that nobody interrupts, and keep what it leaves; return how many operations each step has."""
        direct = options.get("direct", False)
        file = shutil.copytree(self.begin.parent, self.done(setting, direct=direct)) / "run.toml"
        self.alone(file, Command("all", setting, **options))
        self._expected[setting, direct] = left(file)
        return json.loads((file.parent / "operations.json").read_text())

    def done(self, setting, *, direct):
        """Return the folder of a run that nobody interrupted."""
        return self.folder / (f"{setting}, directly" if direct else setting)

    def alone(self, file, command):
        code = wait(command.start(file))
        assert code == 0, f"{command}: {code}: {said(file).read_text()}"

    def expected(self, setting, *, direct):
        if (setting, direct) not in self._expected:
            self.whole_run(setting, direct=direct)
        return self._expected[setting, direct]

    def trial(self):
        self.direct = self.draw.choice([[False], [False], [False], [True], [False, True]])
        home, number = Command("all", self.draw.choice(HOMES), direct=self.direct[0]), self.outcome.trials
        expected, file = self.expected(home.setting, direct=home.direct), self.folder / f"trial-{number}" / "run.toml"
        shutil.copytree(self.done(home.setting, direct=home.direct), file.parent)
        begun = self.draw.random() < 0.7
        if not begun:
            shutil.rmtree(file.parent / "out")
        history = [f"{home}, {'finished' if begun else 'not begun'}"]
        for _ in range(self.draw.randint(1, 5)):
            self.round(file, history)
        self.end(file, home, history, expected)
        self.outcome.trials += 1
        if not any(line.startswith(f"trial {number}:") for line in self.outcome.wrong):
            shutil.rmtree(file.parent)

    def end(self, file, home, history, expected):
        code = wait(home.start(file))
        if code == SAID and "--fresh" in said(file).read_text():  # other data or weights are replaced only when asked
            code = wait(dataclasses.replace(home, fresh=True).start(file))
        if code == 0:
            self.compare(file, home.setting, [*history, "in the end"], expected)
            code = wait(dataclasses.replace(home, verb="verify").start(file))
        if code != 0:
            self.note_wrong([*history, "in the end"], f"exit code {code}: {said(file).read_text()}")

    def note_wrong(self, history, what):
        self.outcome.wrong.append(f"trial {self.outcome.trials}: {'; '.join(history)}: {what}")

    def drawn(self):
        verb = "all" if self.draw.random() < 0.5 else self.draw.choice(VERBS)
        setting = self.draw.choice(list(SETTINGS))
        direct = self.draw.choice(self.direct)
        if verb == "capture" and direct:  # which is refused
            verb = "accumulate"
        kill_at = None
        if self.draw.random() < 0.6:
            step = self.draw.choice(list(self.operations))
            kill_at = step, self.draw.randrange(self.operations[step])
        return Command(verb, setting, direct, setting in NEEDS_FRESH or self.draw.random() < 0.15, kill_at)

    def round(self, file, history):
        """Start one command, or two at once; those that no operation kills are killed at an instant, or left alone."""
        commands = [self.drawn() for _ in range(1 + (self.draw.random() < 0.3))]
        instant = None if self.draw.random() < 0.15 else self.draw.uniform(0, self.seconds)
        history.append(" beside ".join(map(str, commands)) + ("" if instant is None else f" for {instant:.2f} s"))
        until = None if instant is None else time.monotonic() + instant
        children = {command.start(file): command for command in commands}
        codes = {child: wait(child, until if command.kill_at is None else None) for child, command in children.items()}
        for child in [child for child, code in codes.items() if code is None]:
            os.kill(child, signal.SIGKILL)
            codes[child] = wait(child)
        self.count(file, history, {children[child]: code for child, code in codes.items()})
        done = [children[child] for child, code in codes.items() if code == 0]
        alone = all(code in (0, REFUSED) for code in codes.values())
        if alone and len(done) == 1 and done[0].verb == "all":
            self.outcome.whole += 1
            self.compare(file, done[0].setting, history, self.expected(done[0].setting, direct=done[0].direct))

    def count(self, file, history, codes):
        outcome = self.outcome
        outcome.commands += len(codes)
        outcome.two_at_once += len(codes) > 1
        outcome.refused += sum(code == REFUSED for code in codes.values())
        for command, code in codes.items():
            if code == -signal.SIGKILL:
                outcome.kills += 1
                outcome.at_operations += command.kill_at is not None
                outcome.steps[unfinished(file)] += 1
            elif code == SAID:
                outcome.said[said(file).read_text().replace(str(file.parent), "...")[:160]] += 1
            elif code not in (0, REFUSED):
                self.note_wrong(history, f"{command}: exit code {code}: {said(file).read_text()}")

    def compare(self, file, setting, history, expected):
        odd = differences(setting, left(file), expected, VALUES.fullmatch if len(self.direct) > 1 else lambda _: True)
        if odd:
            self.note_wrong(history, f"under '{setting}' {len(odd)} differ: {odd[:6]}")


def unfinished(file):
    """Return the verb of the step that was begun and not done."""
    steps = steps_of(left(file))
    return next((name.partition(" ")[0] for name, step in steps.items() if "unfinished" in step), "between steps")


def main(folder, kills, seed):
    trials = Trials(folder, seed)
    with told_at_the_end(trials.outcome):
        while trials.outcome.kills < kills:
            trials.trial()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
