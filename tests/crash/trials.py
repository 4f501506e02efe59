"""One trial of the supervisors of work that goes block by block: killed and begun again until it ends by itself."""

import os
import shutil
import signal
import time

from supervised import wait
from supervisor import prints, started


def trial(folder, work, expected, instant, outcome, kills, look):
    """Kill after `instant()` seconds, `look(root, outcome)` after each kill; compare what is there in the end."""
    root = folder / f"trial-{outcome.trials}"
    while True:
        child = started(work, root)
        code = wait(child, time.monotonic() + instant() if outcome.kills < kills else None)
        if code is None:
            os.kill(child, signal.SIGKILL)
            code = wait(child)
        if code != -signal.SIGKILL:
            break
        outcome.kills += 1
        look(root, outcome)
    if code != 0 or prints(root) != expected:
        outcome.wrong.append(f"trial {outcome.trials}: ended with {code}, and with other files or not at all")
    outcome.trials += 1
    shutil.rmtree(root, ignore_errors=True)
