"""How the processes of one job find one another.

Who is who is told by the environment, as torchrun and others set it: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
Rank 0 listens at a port of its own choice and makes it known in torch's store at MASTER_ADDR; every other rank connects
to it, once for data and once for the pulse. A token, also from that store, keeps others out.
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
from dalr_stream.engine.ranks.wire import TURN_SECONDS, ClosedError, receive_message, send_message
from dalr_stream.errors import InvalidInputError, ResourceError
from dalr_stream.streaming.ranks.link import Message, Traffic

_TOKEN_BYTES = 16
_HELLO_BYTES = 4096
_HELLO_SECONDS = 5.0


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

    store: Any
    """Torch's, which rank 0 may be the one to serve."""
    data: dict[int, socket.socket] = field(default_factory=dict)
    pulses: dict[int, socket.socket] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    """For messages."""


@contextmanager
def meeting(place: Place, timeout_seconds: float) -> Iterator[Meeting]:
    """Connect a rank to the others for the duration of the block; raises ResourceError where they do not come."""
    with ExitStack() as stack:
        try:
            met, key = _at_the_store(place, timeout_seconds)
            if place.rank == 0:
                _accept(met, key, place, timeout_seconds, stack)
            else:
                _connect(met, key, place, timeout_seconds, stack)
        except (
            ClosedError,
            OSError,
            RuntimeError,
        ):  # torch's store raises RuntimeErrors
            raise ResourceError(
                f"ranks: not all {place.ranks} ranks came to {place.address}:{place.port} within "
                f"{timeout_seconds:.0f} s: start as many processes as WORLD_SIZE says, and let them reach one another"
            ) from None
        yield met


def _at_the_store(place: Place, timeout_seconds: float) -> tuple[Meeting, str]:
    """Return torch's store at the master's address, and the key of this meeting: a program may hold several."""
    import torch.distributed as dist

    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or dist.is_initialized()
    store: Any = dist.TCPStore(  # type: ignore[attr-defined]
        place.address,
        place.port,
        place.ranks,
        is_master=place.rank == 0 and not served,
        timeout=timedelta(seconds=timeout_seconds),
        wait_for_workers=False,
    )
    key = f"dalr_stream/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return Meeting(store), f"{key}/{store.add(f'{key}/{place.rank}', 1)}/address"


def _accept(met: Meeting, key: str, place: Place, timeout_seconds: float, stack: ExitStack) -> None:
    token, deadline = secrets.token_hex(_TOKEN_BYTES), time.monotonic() + timeout_seconds
    server = stack.enter_context(socket.create_server(("", 0), backlog=2 * place.ranks))
    met.store.set(key, f"{server.getsockname()[1]} {token}")
    while len(met.data) < place.ranks - 1 or len(met.pulses) < place.ranks - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        connection = stack.enter_context(server.accept()[0])
        _make_ready(connection)
        hello = _hello(connection)
        if not secrets.compare_digest(str(hello.get("token")), token):
            connection.close()  # whoever it is, it is no rank of this job
            continue
        rank = int(hello["rank"])
        (met.pulses if hello["pulse"] else met.data)[rank] = connection
        met.names[rank] = f"rank {rank} on {hello['host']}"


def _hello(connection: socket.socket) -> Mapping[str, Any]:
    """Return what a connection says at once; nothing where it says nothing, or no message."""
    deadline = time.monotonic() + _HELLO_SECONDS

    def in_time() -> None:
        if time.monotonic() > deadline:
            raise ClosedError("it said nothing")

    try:
        return receive_message(connection, Traffic(), in_time, most_facts_bytes=_HELLO_BYTES).facts
    except ClosedError:
        return {}


def _connect(met: Meeting, key: str, place: Place, timeout_seconds: float, stack: ExitStack) -> None:
    port, token = met.store.get(key).decode().split()
    for connections in (met.data, met.pulses):
        connection = stack.enter_context(socket.create_connection((place.address, int(port)), timeout_seconds))
        _make_ready(connection)
        pulse = connections is met.pulses
        hello = {"token": token, "rank": place.rank, "pulse": pulse, "host": host_name()}
        send_message(connection, Message(hello), lambda: None)
        connections[0] = connection
    met.names[0] = f"rank 0 on {place.address}"


def _make_ready(connection: socket.socket) -> None:
    connection.settimeout(TURN_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(connection)
