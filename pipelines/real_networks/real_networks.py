"""Every network of this folder, before and after: the table of docs/results/real-networks.md.

    python pipelines/real_networks/real_networks.py [NAME ...]

Each is a run file, done twice: sizes and methods as the run finds them, and truncated SVD of the same share. Statistics
that are there are not taken again. Networks whose packages are not installed are named and left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import dalr_stream as ds
from dalr_stream.errors import ConfigError

HERE = Path(__file__).resolve().parent
NAMES = ("minilm", "crepe", "faces", "antibody", "microbiome")
AS_SVD = ['compress.method="svd"']


def results(name: str, settings: Sequence[str] = ()) -> ds.Results:
    """Do a run, or find it done."""
    run = ds.Run.open(HERE / f"{name}.toml", set=settings)
    run.all()
    return run.results


def row(name: str) -> str:
    """Return a network's line of the table in Markdown."""
    by_svd, found = results(name, AS_SVD), results(name)
    before, after = found.sizes[0], found.sizes[1]

    def shown(score: float | None) -> str:
        return "" if score is None else f"{100 * score:.1f}" if found.scale.is_share else f"{score:.2f}"

    cells = [
        f"{found.name.split(':')[0]} (`{name}.toml`)",
        f"{found.metric}{', %' if found.scale.is_share else ''}",
        f"{before.parameters / 1e6:.2f} M",
        f"{after.parameters / 1e6:.2f} M",
        *map(shown, (before.score, by_svd.sizes[1].score, after.score)),
    ]
    return f"| {' | '.join(cells)} |"


def rows(names: Sequence[str]) -> Iterator[str]:
    """Yield the table, a line as soon as it is known."""
    yield "| network | measure | parameters | left | before | truncated SVD | the run |"
    yield "|---|---|" + "---:|" * 5
    for name in names:
        try:
            yield row(name)
        except ConfigError as error:
            print(f"{name}: {error}", file=sys.stderr)


def main() -> None:
    """Print the table."""
    for line in rows(sys.argv[1:] or NAMES):
        print(line, flush=True)


if __name__ == "__main__":
    main()
