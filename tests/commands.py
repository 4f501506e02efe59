"""The command line, run as a user runs it: a process of its own."""

import subprocess
import sys


def cli(*arguments, timeout=120):
    command = [sys.executable, "-m", "dalr_stream.cli.app", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603
