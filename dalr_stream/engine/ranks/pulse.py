"""How a rank learns, within seconds, that another was lost: a connection beside the data's that says nothing.

A process that ends, however it ends, has its connections closed by the system; one whose machine is gone no longer
answers probes. Whoever ends in good order says so first, or says with which error it stopped. Rank 0 is connected to
every other rank and passes on what it learns.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import threading
from collections.abc import Mapping

_DONE = "done"
_STOPPED = "stopped"
_PROBES = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""Seconds of silence before a probe, seconds between probes, and how many may go unanswered."""
_LONGEST_LINE = 4096


def keep_alive(connection: socket.socket) -> None:
    """Let the system find out, in some 11 seconds, that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):  # macOS has other names for some of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Pulse:
    """Watches the connections to other ranks in a thread of its own; `lost` says what became of one."""

    def __init__(self, connections: Mapping[int, socket.socket], names: Mapping[int, str]) -> None:
        """`names` are those of the ranks, for messages."""
        self._connections = dict(connections)
        self._names = names
        self.lost: str | None = None
        """What there is to say of a rank that is gone or stopped."""
        self.noticed = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._thread.start()

    def end(self, error: str | None) -> None:
        """Tell the others that this rank is done, or with which error it stopped, and watch no longer."""
        self._ended.set()
        self._thread.join()
        self._say({_DONE: True} if error is None else {_STOPPED: error[:_LONGEST_LINE]})
        for connection in self._connections.values():
            connection.close()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while not self._ended.is_set() and self.lost is None and selector.get_map():
                for key, _ in selector.select(timeout=0.2):
                    self._hear(int(key.data), selector)

    def _hear(self, rank: int, selector: selectors.BaseSelector) -> None:
        """Take what a rank says at its end, or note that it ended without a word."""
        connection = self._connections[rank]
        word = _read_line(connection)
        selector.unregister(connection)
        if _DONE in word or self.lost is not None:
            return
        name = self._names.get(rank, f"rank {rank}")
        gone = f"ranks: {name} was lost: run the same command again, on any number of ranks, to resume"
        self.lost = str(word.get(_STOPPED) or gone)
        if _STOPPED in word and not self.lost.startswith("ranks: "):
            self.lost = f"ranks: {name} stopped: {self.lost}"
        self.noticed.set()
        self._say({_STOPPED: self.lost})

    def _say(self, word: Mapping[str, object]) -> None:
        for connection in self._connections.values():
            try:
                connection.sendall(json.dumps(word).encode() + b"\n")
            except OSError:  # it is gone itself
                continue


def _read_line(connection: socket.socket) -> dict[str, object]:
    """Return the first thing that the other end says; nothing where it was closed without a word.

    A rank that passes on what it learnt and then stops says two things, which may arrive together.
    """
    line = b""
    try:
        while b"\n" not in line:
            more = connection.recv(_LONGEST_LINE)
            if not more:
                return {}
            line += more
        return dict(json.loads(line.partition(b"\n")[0]))
    except (OSError, ValueError, TypeError):
        return {}


def host_name() -> str:
    """Return the name of this machine, for messages."""
    return socket.gethostname() or sys.platform
