"""The command line, run as a user runs it: a process of its own, forked from one that has imported everything.

A process that starts from nothing takes seconds to import torch and the rest, and no test of a verb is about that. The
one that forks holds the modules and no thread; what a command does happens in its child.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["dalr_stream.cli.app", "dalr_stream.workflow.run", "distributed", "torch._dynamo"])
"""The last two are imported by others when they are needed."""


def cli(*arguments, timeout=120, env=None):
    """Run `dalr-stream` with these arguments, and these variables beside the environment of this process."""
    return forked(_verb, [str(argument) for argument in arguments], timeout=timeout, env=env)


def forked(work, *arguments, timeout=120, env=None):
    """Call a function of a module in a process of its own; return its exit code, negative for a signal, and its words.

    It begins as a new process would: in this one's folder and environment, with files for its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        settings = {**os.environ, **(env or {})}
        process = _PROCESSES.Process(target=_begin, args=(work, arguments, Path.cwd(), settings, out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired([work.__name__, *arguments], timeout)
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def _begin(work, arguments, folder, settings, out, err):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(settings)
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    work(*arguments)


def _verb(arguments):
    from dalr_stream.cli.app import main

    sys.argv = ["dalr-stream", *arguments]
    main()
