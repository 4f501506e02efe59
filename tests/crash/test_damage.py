"""Files of whole runs damaged at random: found or harmless, and what a message says to do mends it."""

import os

from supervised import outcome_of


def test_damaged_files_end_in_the_same_files(tmp_path, soak):
    files = int(os.environ.get("DALR_STREAM_DAMAGED", "1000" if soak else "8"))
    seed = int.from_bytes(os.urandom(4)) * soak
    outcome, errors = outcome_of("damage_supervisor.py", tmp_path, files, seed)
    print(f"damaged files: {outcome['files']} (seed {seed})")  # noqa: T201  # the lines that `make soak` is run for
    for kind, ends in outcome["kinds"].items():
        print(f"{kind}: {', '.join(f'{count} {end}' for end, count in sorted(ends.items()))}")  # noqa: T201
    print(f"wrong: {outcome['wrong'] or 'nothing'}")  # noqa: T201
    assert outcome["wrong"] == [], errors
    assert outcome["files"] == files
