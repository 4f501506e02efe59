"""How the processes of one job find one another.

Who is who is told by the environment, as torchrun and others set it: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
Rank 0 listens at MASTER_PORT; where torch's store is there already, as under torchrun, it listens at a port of its own
choice and makes it known in that store, with a token. Every other rank connects to it, once for data and once for the
pulse. Whoever does not speak as a rank of this job is left out.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from dalr_stream.engine.ranks.pulse import host_name, keep_alive
from dalr_stream.engine.ranks.wire import TURN_SECONDS, Check, ClosedError, receive_message, send_message
from dalr_stream.errors import InvalidInputError, ResourceError
from dalr_stream.streaming.ranks.link import Message, Traffic

TOKEN_BYTES = 16
HELLO_BYTES = 4096
_HELLO_SECONDS = 5.0
_PAUSE_SECONDS = 0.1
"""Before rank 0 is tried again."""


@dataclass(frozen=True, slots=True)
class Place:
    """What the launcher says of this process."""

    rank: int
    ranks: int
    address: str
    port: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place | None:
        """Return what the environment says; None where it says nothing, or of one process."""
        if environment.get("WORLD_SIZE", "1") == "1":
            return None
        needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in needed if name not in environment]
        if missing:
            raise InvalidInputError(
                f"ranks: WORLD_SIZE is {environment['WORLD_SIZE']} and {' and '.join(missing)} not set: a launcher "
                f"such as torchrun sets {', '.join(needed)}"
            )
        try:
            rank, ranks, port = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        except ValueError as error:
            raise InvalidInputError(f"ranks: RANK, WORLD_SIZE and MASTER_PORT must be numbers: {error}") from None
        if not 0 <= rank < ranks:
            raise InvalidInputError(f"ranks: RANK must lie in 0..{ranks - 1}, WORLD_SIZE is {ranks}, got {rank}")
        return cls(rank, ranks, environment["MASTER_ADDR"], port)


@dataclass(frozen=True, slots=True)
class Meeting:
    """The connections of one rank, by the other's number."""

    data: dict[int, socket.socket] = field(default_factory=dict)
    pulses: dict[int, socket.socket] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    """For messages."""


@contextmanager
def meeting(place: Place, timeout_seconds: float) -> Iterator[Meeting]:
    """Connect a rank to the others for the duration of the block; raises ResourceError where they do not come."""
    deadline = time.monotonic() + timeout_seconds
    with ExitStack() as stack:
        try:
            found = _Announced.of(place, timeout_seconds)
            met = (
                _accepted(found, place, deadline, stack)
                if place.rank == 0
                else _connected(found, place, deadline, stack)
            )
        except (ClosedError, OSError, RuntimeError):  # torch's store raises RuntimeErrors
            raise ResourceError(
                f"ranks: not all {place.ranks} ranks came to {place.address}:{place.port} within "
                f"{timeout_seconds:.0f} s: start as many processes as WORLD_SIZE says, and let them reach one another"
            ) from None
        yield met


@dataclass(frozen=True, slots=True)
class _Announced:
    """Where rank 0 listens: at MASTER_PORT, or, where torch's store is there already, at a port that is told in it."""

    port: int
    store: Any = None
    key: str = ""

    @classmethod
    def of(cls, place: Place, timeout_seconds: float) -> _Announced:
        """Look who listens at MASTER_PORT: torchrun's agent, or the process group of this program."""
        import torch.distributed as dist

        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and not dist.is_initialized():
            return cls(place.port)
        patience = timedelta(seconds=timeout_seconds)
        store: Any = dist.TCPStore(place.address, place.port, is_master=False, timeout=patience)  # type: ignore[attr-defined]
        key = f"dalr_stream/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        opened = store.add(f"{key}/{place.rank}", 1)  # a program may meet several times
        return cls(0, store, f"{key}/{opened}/address")

    def announce(self, port: int) -> str:
        """Tell the others a port, and a token that they have to say there."""
        if self.store is None:
            return ""
        token = secrets.token_hex(TOKEN_BYTES)
        self.store.set(self.key, f"{port} {token}")
        return token

    def told(self) -> tuple[int, str]:
        """Return the port and the token, waiting for them."""
        if self.store is None:
            return self.port, ""
        port, token = self.store.get(self.key).decode().split()
        return int(port), token


def _accepted(found: _Announced, place: Place, deadline: float, stack: ExitStack) -> Meeting:
    """Take the connections of all other ranks, and of nobody else."""
    met = Meeting()
    try:
        server = socket.create_server(("", found.port), backlog=2 * place.ranks)
    except OSError as error:
        raise InvalidInputError(
            f"ranks: MASTER_PORT {found.port} cannot be listened at ({error.strerror}): choose another"
        ) from None
    with server:
        token = found.announce(server.getsockname()[1])
        while len(met.data) < place.ranks - 1 or len(met.pulses) < place.ranks - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            connection = stack.enter_context(server.accept()[0])
            make_ready(connection)
            hello = said_at_once(connection)
            known = met.pulses if hello.get("pulse") else met.data
            rank = _rank_of(hello, place, token)
            if rank is None or rank in known:
                connection.close()  # whoever it is, it is no rank of this job that is still to come
                continue
            send_message(connection, Message({"welcome": True}), lambda: None)
            known[rank] = connection
            met.names[rank] = f"rank {rank} on {hello.get('host')}"
    return met


def _rank_of(hello: Mapping[str, Any], place: Place, token: str) -> int | None:
    """Return the number of whoever speaks as another rank of this job; None for anybody else."""
    rank, same = hello.get("rank"), hello.get("ranks") == place.ranks
    if type(rank) is not int or not 0 < rank < place.ranks or not same:
        return None
    return rank if secrets.compare_digest(str(hello.get("token")).encode(), token.encode()) else None


def said_at_once(connection: socket.socket) -> Mapping[str, Any]:
    """Return what a connection says at once; nothing where it says nothing, or no message."""
    try:
        in_time = until(time.monotonic() + _HELLO_SECONDS)
        return receive_message(connection, Traffic(), in_time, most_facts_bytes=HELLO_BYTES).facts
    except ClosedError:
        return {}


def _connected(found: _Announced, place: Place, deadline: float, stack: ExitStack) -> Meeting:
    """Connect to rank 0, which may not be there yet, once for data and once for the pulse."""
    met = Meeting(names={0: f"rank 0 on {place.address}"})
    for pulse, connections in ((False, met.data), (True, met.pulses)):
        while 0 not in connections:
            try:
                connections[0] = stack.enter_context(_welcomed(found, place, deadline, pulse=pulse))
            except (ClosedError, OSError):  # also where its name is not known yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)
    return met


def _welcomed(found: _Announced, place: Place, deadline: float, *, pulse: bool) -> socket.socket:
    """Return a connection to rank 0, once it has said that it is."""
    port, token = found.told()
    patience = max(deadline - time.monotonic(), 0.001)
    connection = socket.create_connection((place.address, port), patience)
    try:
        make_ready(connection)
        hello = {"token": token, "rank": place.rank, "ranks": place.ranks, "pulse": pulse, "host": host_name()}
        send_message(connection, Message(hello), lambda: None)
        receive_message(connection, Traffic(), until(deadline), most_facts_bytes=HELLO_BYTES)  # its welcome
    except BaseException:
        connection.close()
        raise
    return connection


def until(deadline: float) -> Check:
    """Return what ends waiting at a time."""

    def check() -> None:
        if time.monotonic() > deadline:
            raise ClosedError("it said nothing")

    return check


def make_ready(connection: socket.socket) -> None:
    """Let nothing be waited for longer than a turn, nor held back, nor be gone unnoticed."""
    connection.settimeout(TURN_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(connection)
