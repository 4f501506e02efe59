"""The table of docs/results/architectures.md: `python tests/zoo`, or `python tests/zoo NAME ...` for some lines.

Each network is proved here, saved, and then loaded by a process of its own that knows nothing but the folder. Exit code
1 where anything is wrong. Some ten minutes of one core; `--quick` leaves out compiling and ONNX, and prints.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from zoo import ARCHITECTURES
from zoo_proofs import Found, one_line, prove, reloaded
from zoo_table import page

PAGE = Path(__file__).parents[2] / "docs" / "results" / "architectures.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of the table; all of them by default")
    parser.add_argument("--quick", action="store_true", help="without compiling and exporting")
    parser.add_argument("--reload", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    names = asked.names or list(ARCHITECTURES)
    if asked.reload is not None:
        print(json.dumps({name: loaded_or_why_not(name, asked.reload) for name in names}))  # noqa: T201
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = dict(all_proved(names, Path(folder), exports=not asked.quick))
        in_a_fresh_process(found, Path(folder))
    text = page(ARCHITECTURES, found)
    if asked.names or asked.quick:
        print(text)  # noqa: T201
    else:
        PAGE.write_text(text, encoding="utf-8")
    wrong = {name: one.errors for name, one in found.items() if one.errors}
    for name, errors in wrong.items():
        print(name, *errors, sep="\n    ", file=sys.stderr)  # noqa: T201
    return 1 if wrong else 0


def all_proved(names: list[str], folder: Path, *, exports: bool) -> Iterator[tuple[str, Found]]:
    for number, name in enumerate(names, start=1):
        print(f"{number}/{len(names)} {name}", file=sys.stderr, flush=True)  # noqa: T201
        yield name, prove(ARCHITECTURES[name], folder / name, exports=exports)


def in_a_fresh_process(found: Mapping[str, Found], folder: Path) -> None:
    """Load every network that was saved, in one process that proved none of them."""
    saved = [name for name in found if (folder / name / "outputs.pt").exists()]
    command = [sys.executable, str(Path(__file__).parent), *saved, "--reload", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  # this very script
    for name, value in json.loads(done.stdout.splitlines()[-1]).items():
        found[name].put("loaded", value if isinstance(value, float) else "ERROR", 0.0)
        found[name].errors += [f"loaded: {value}"] if isinstance(value, str) else []


def loaded_or_why_not(name: str, folder: Path) -> float | str:
    try:
        return reloaded(ARCHITECTURES[name], folder / name)
    except Exception as error:  # noqa: BLE001  # the table shows it
        return one_line(error)


if __name__ == "__main__":
    sys.exit(main())
