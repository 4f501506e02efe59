"""Damages the files of whole runs, one at a time, and looks at what `verify` and the same command make of it.

    python damage_supervisor.py FOLDER FILES SEED

A case is a copy of a run, finished or stopped midway, of which one file or folder is changed: a bit, cut, emptied,
deleted, swapped with another of the run, or taken from another run. `verify` looks at it, then the same command is run
again, and whatever an error or a finding says to do is done. In the end `verify` finds nothing and every file is that
of a run that nothing happened to; at no time do results differ behind an exit code 0, and all that is said is a line.

Prints one line of JSON: for each kind of damage how many were harmless (nobody reads what was changed), made again by
the run, or mended by what a message said; the remedies that were followed; and what was wrong.
"""

import collections
import dataclasses
import json
import random
import re
import shutil
import sys
from pathlib import Path

from small_runs import CRASHED, SAID, Command, differences, forked, import_all, left, said
from supervised import told_at_the_end, wait
from tiny_run_file import write_run

from dalr_stream.workflow.verify import verify_run

BASES = {
    "first": Command("all", "first"),
    "chosen": Command("all", "chosen"),
    "tuned": Command("all", "tuned"),
    "sequential": Command("all", "sequential", direct=True),
    "epochs": Command("all", "epochs", kill_at=("finetune", 30)),
    "ranks": Command("all", "ranks", kill_at=("evaluate", 60)),
    "shards": Command("all", "shards", direct=True, kill_at=("accumulate", 300)),
}
"""The last three are stopped midway."""
OTHER = "seed"
"""Another run, whose files are put in place of a run's own."""
STORES = ("store.zarr", "passes", "cross.zarr")
ROUNDS = 4  # remedies may follow one another


# kinds of damage: each changes something below `out` and says what, or returns None where it cannot


def one_bit(draw, path, _other):
    data = bytearray(path.read_bytes())
    if not data:
        return None
    place, bit = draw.randrange(len(data)), draw.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))
    return f"bit {bit} of byte {place}"


def cut(draw, path, _other):
    data = path.read_bytes()
    if not data:
        return None
    path.write_bytes(data[: draw.randrange(len(data))])
    return f"cut to {path.stat().st_size} of {len(data)} bytes"


def emptied(_draw, path, _other):
    path.write_bytes(b"")
    return "emptied"


def deleted(_draw, path, _other):
    path.unlink()
    return "deleted"


def folder_deleted(draw, path, _other):
    folder = draw.choice([folder for folder in path.parents if below_out(folder)] or [None])
    if folder is None:
        return None
    shutil.rmtree(folder)
    return f"with its folder '{folder.name}'"


def swapped(draw, path, _other):
    out = next(folder for folder in path.parents if folder.name == "out")
    rivals = sorted(out.rglob(path.name)) if path.parent != out else sorted(out.glob(f"*{path.suffix}"))
    rivals = [rival for rival in rivals if rival.is_file() and rival.read_bytes() != path.read_bytes()]
    return exchange(draw, path, rivals)


def folders_swapped(draw, path, _other):
    folder = draw.choice([folder for folder in path.parents if below_out(folder)] or [None])
    rivals = [] if folder is None else [rival for rival in sorted(folder.parent.iterdir()) if rival.is_dir()]
    return exchange(draw, folder, [rival for rival in rivals if rival != folder])


def of_another_run(_draw, path, other):
    rival = other / path.relative_to(next(folder for folder in path.parents if folder.name == "out"))
    if not rival.is_file() or rival.read_bytes() == path.read_bytes():
        return None
    shutil.copy(rival, path)
    return "of another run"


def below_out(folder):
    return "out" in (parent.name for parent in folder.parents)


def exchange(draw, path, rivals):
    if not rivals:
        return None
    rival, aside = draw.choice(rivals), path.with_name("aside")
    path.rename(aside)
    rival.rename(path)
    aside.rename(rival)
    return f"'{path.name}' and '{rival.relative_to(rival.parents[1])}' swapped"


KINDS = {
    "a bit": one_bit,
    "cut": cut,
    "emptied": emptied,
    "deleted": deleted,
    "folder deleted": folder_deleted,
    "swapped": swapped,
    "folders swapped": folders_swapped,
    "of another run": of_another_run,
}


def remedy_of(message, file):
    """Return what a message says to do: a verb, or a path to remove; None where it says nothing."""
    out = str(file.parent / "out")
    if place := re.search(r"(?:delete|remove) '([^']+)'", message):
        return Path(place[1])
    if re.search(r"delete the record's folder|delete the folder|delete it and|remove it|move them elsewhere", message):
        place = re.search(rf"'({re.escape(out)}[^']*)'", message)
        return place and Path(place[1])
    if "--fresh" in message:
        return "--fresh"
    if verb := re.search(r"run (\w+) (?:first|again)", message):
        return verb[1]
    if verb := re.search(r"(capture|accumulate)(?: the domain)? again|the next (capture)", message):
        return verb[1] or verb[2]
    return None


@dataclasses.dataclass
class Case:
    """One run with one thing damaged."""

    file: Path
    command: Command
    followed: list = dataclasses.field(default_factory=list)

    def findings(self):
        """Return what `verify` finds, or None where it could not even look, in one line."""
        listing = self.file.parent / "findings.json"

        def look(file):
            found = verify_run(self.command.run(file).project).findings
            listing.write_text(json.dumps([str(finding) for finding in found]))

        listing.unlink(missing_ok=True)
        code = wait(forked(look, self.file))
        if code == CRASHED:
            raise AssertionError(f"verify: {said(self.file).read_text()}")
        return json.loads(listing.read_text()) if code == 0 else [said(self.file).read_text()]

    def odd(self, expected):
        """Return what differs from a run that nothing happened to.

        What a swap put into a folder beside the files of the run belongs to nobody, a store of a pass that was
        removed as a message says is made again when a pass is needed, and activations may be deleted: `verify` lists
        those of a layer that are gone whole as not kept.
        """
        found = left(self.file)
        names = differences(self.command.setting, found, expected)
        return [name for name in names if name in expected and (name in found or not may_be_gone(name, found))]

    def run(self):
        """Run the command, doing what it says, until it ends in 0."""
        for _ in range(ROUNDS):
            code = wait(self.command.start(self.file))
            if code == 0:
                return
            message = said(self.file).read_text()
            assert code == SAID, f"exit code {code}: {message}"
            self.follow(message)
        raise AssertionError(f"what it says does not help: {message}")

    def mend(self):
        """Do what `verify` says, finding by finding, until it finds nothing."""
        for _ in range(ROUNDS):
            findings = self.findings()
            if not findings:
                return
            for remedy in {str(remedy_of(finding, self.file)): finding for finding in findings}.values():
                self.follow(remedy)
            self.run()
        assert not findings, f"what verify says does not help: {findings}"

    def follow(self, message):
        remedy = remedy_of(message, self.file)
        assert remedy is not None, f"names no remedy: {message}"
        self.followed.append(
            re.sub(r"'[^']*'", "'...'", message)[:100] + f" -> {remedy if isinstance(remedy, str) else 'delete'}"
        )
        if isinstance(remedy, Path):
            assert remedy.is_relative_to(self.file.parent / "out"), remedy
            shutil.rmtree(remedy) if remedy.is_dir() else remedy.unlink(missing_ok=True)
            if "and capture the domain again" in message:
                wait(dataclasses.replace(self.command, verb="capture").start(self.file))
            return
        command = dataclasses.replace(self.command, verb="all" if remedy == "--fresh" else remedy)
        wait(dataclasses.replace(command, fresh=remedy == "--fresh").start(self.file))


def may_be_gone(name, found):
    """Tell whether a run is whole without a file or folder: one of a pass, or of activations deleted layer by layer."""
    store, *rest = Path(name).parts
    return store == "passes" or (rest[:1] == ["activations"] and "/".join((store, *rest[:3])) not in found)


@dataclasses.dataclass
class Outcome:
    files: int = 0
    kinds: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(collections.Counter))
    remedies: dict = dataclasses.field(default_factory=collections.Counter)
    wrong: list = dataclasses.field(default_factory=list)


class Cases:
    def __init__(self, folder, seed):
        self.folder, self.outcome = folder, Outcome()
        self.draw = random.Random(seed)  # noqa: S311  # choices, not secrets
        self.begin = write_run(folder / "nothing done")
        self._made = {}
        self.other = self.made(Command("all", OTHER))[0].parent / "out"

    def made(self, command):
        """Return a run that a command left, to be copied, and the files that a whole run leaves."""
        if command not in self._made:
            file = shutil.copytree(self.begin.parent, self.folder / f"base {len(self._made)}") / "run.toml"
            whole = dataclasses.replace(command, kill_at=None)
            code = wait(command.start(file))
            assert code == 0 or command.kill_at is not None, said(file).read_text()
            if not self._made:
                import_all(file.parent / "modules.txt")
            done = shutil.copytree(file.parent, self.folder / f"whole {len(self._made)}") / "run.toml"
            assert wait(whole.start(done)) == 0, said(done).read_text()
            self._made[command] = file, left(done)
        return self._made[command]

    def case(self):
        name, kind = self.draw.choice(list(BASES)), self.draw.choice(list(KINDS))
        base, expected = self.made(BASES[name])
        file = shutil.copytree(base.parent, self.folder / "case") / "run.toml"
        path = self.drawn(file)
        what = KINDS[kind](self.draw, path, self.other)
        if what is not None:
            case = Case(file, dataclasses.replace(BASES[name], kill_at=None))
            try:
                self.outcome.kinds[kind][self.end_of(case, expected)] += 1
            except AssertionError as error:
                where = f"case {self.outcome.files}: {name}: {path.relative_to(file.parent)}: {what}"
                self.outcome.wrong.append(f"{where}: {error}")
                print(self.outcome.wrong[-1], file=sys.stderr)  # noqa: T201  # a thousand cases take a while
                shutil.copytree(file.parent, self.folder / f"wrong {self.outcome.files}")
            self.outcome.remedies.update(case.followed)
            self.outcome.files += 1
        shutil.rmtree(file.parent)

    def drawn(self, file):
        """Draw one file of the run: first a part of it, so that small ones come as often as the store's many."""
        out = file.parent / "out"
        parts = collections.defaultdict(list)
        for path in sorted(path for path in out.rglob("*") if path.is_file()):
            names = path.relative_to(out).parts
            parts[names[: 2 if names[0] in STORES else 1]].append(path)
        return self.draw.choice(parts[self.draw.choice(list(parts))])

    def end_of(self, case, expected):
        """Return what became of a case; raises AssertionError for what is wrong."""
        before, found_before = left(case.file), case.findings()
        case.run()
        by_hand = len(case.followed)
        odd = case.odd(expected)
        results = [name for name in odd if not name.startswith(STORES)]
        assert not results, f"results differ behind exit code 0: {results[:5]}, verify said {found_before[:3]}"
        case.mend()
        odd = case.odd(expected)
        assert not odd, f"differ in the end: {odd[:5]}, verify said {found_before[:3]}, then {case.followed}"
        if case.followed:
            return "by what an error said" if by_hand else "by what verify said"
        return "harmless" if before == left(case.file) else "by the run"


def main(folder, files, seed):
    cases = Cases(folder, seed)
    with told_at_the_end(cases.outcome):
        while cases.outcome.files < files:
            cases.case()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
