"""Who writes: a process, and whether it still runs, where that can be told from here."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return what tells this process from others, in plain values."""
    return {"name": f"process {os.getpid()} on {socket.gethostname()}", **_identity()}


def is_this(process: dict[str, Any]) -> bool:
    """Tell whether a process is this one."""
    here = _identity()
    return bool(here["machine"]) and here == {name: process.get(name) for name in here}


def is_gone(process: dict[str, Any]) -> bool | None:
    """Tell whether a process runs no more; None where that cannot be told, as it ran on another machine."""
    here = _identity()
    if not here["machine"] or process.get("machine") != here["machine"]:
        return None
    return _started(process.get("pid")) != process.get("started")


def _identity() -> dict[str, Any]:
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """Return what this machine's start and this space of process numbers are called; empty where nothing says it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return ""


def _started(pid: Any) -> str:
    """Return when a process began, as numbers of processes come again; empty where there is none."""
    try:
        facts = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError, TypeError):
        return ""
    return "" if facts[0] in "ZX" else facts[19]  # one that ended and was not fetched yet does not write
