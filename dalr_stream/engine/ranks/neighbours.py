"""How each rank is connected to the one that it sends its sums to, where that is not rank 0.

Each listens at a port that the system chooses and tells rank 0, which tells those that have to know, with a token. See
`streaming.ranks.link` for who sends to whom.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack

from dalr_stream.engine.ranks.meeting import HELLO_BYTES, TOKEN_BYTES, Meeting, Place, make_ready, said_at_once
from dalr_stream.engine.ranks.wire import TURN_SECONDS, Check, ClosedError, receive_message, send_message
from dalr_stream.errors import ResourceError
from dalr_stream.streaming.ranks.link import Message, Traffic, rank_above, ranks_below

_REACH_SECONDS = 30.0


def meet_neighbours(met: Meeting, place: Place, stack: ExitStack, check: Check) -> None:
    """Add the connections that sums go by to those to and from rank 0; `check` raises where waiting is in vain.

    Raises ResourceError where the rank above cannot be reached, or rank 0 is gone.
    """
    try:
        if place.rank == 0:
            _tell_where(met, place, check)
        else:
            _connect(met, place, stack, check)
    except ClosedError as error:
        raise ResourceError(f"ranks: a rank is gone before all had met ({error}): run the same command again") from None


def _tell_where(met: Meeting, place: Place, check: Check) -> None:
    """Tell each rank where the one above it listens, and what it has to say there."""
    token, listening = secrets.token_hex(TOKEN_BYTES), {}
    for rank, connection in met.data.items():
        port = receive_message(connection, Traffic(), check, most_facts_bytes=HELLO_BYTES).facts["port"]
        seen = connection.getpeername()[0]
        beside = seen == connection.getsockname()[0]  # on this machine, which others know by another address
        listening[rank] = {"host": place.address if beside else seen, "port": port}
    for rank, connection in met.data.items():
        send_message(connection, Message({**listening.get(rank_above(rank), {}), "token": token}), check)


def _connect(met: Meeting, place: Place, stack: ExitStack, check: Check) -> None:
    above, below = rank_above(place.rank), ranks_below(place.rank, place.ranks)
    with socket.create_server(("", 0), backlog=place.ranks) as server:  # it listens before anybody is told of it
        send_message(met.data[0], Message({"port": server.getsockname()[1]}), check)
        told = receive_message(met.data[0], Traffic(), check, most_facts_bytes=HELLO_BYTES).facts
        if above:
            met.data[above] = stack.enter_context(_reached(above, told["host"], told["port"]))
            send_message(met.data[above], Message({"token": told["token"], "rank": place.rank}), check)
        _accept(met, below, server, told["token"], stack, check)


def _reached(rank: int, host: str, port: int) -> socket.socket:
    try:
        connection = socket.create_connection((host, port), _REACH_SECONDS)
    except OSError as error:
        raise ResourceError(
            f"ranks: rank {rank} cannot be reached at {host}:{port} ({error}): let all ranks reach one another, at "
            "ports that the system chooses"
        ) from None
    make_ready(connection)
    return connection


def _accept(
    met: Meeting, below: Sequence[int], server: socket.socket, token: str, stack: ExitStack, check: Check
) -> None:
    """Take the connections of the ranks below, and of nobody else."""
    server.settimeout(TURN_SECONDS)
    while not met.data.keys() >= {*below}:
        try:
            connection = stack.enter_context(server.accept()[0])
        except TimeoutError:
            check()
            continue
        make_ready(connection)
        hello = said_at_once(connection)
        rank, same = hello.get("rank"), secrets.compare_digest(str(hello.get("token")).encode(), token.encode())
        if same and isinstance(rank, int) and rank in below and rank not in met.data:
            met.data[rank] = connection
        else:
            connection.close()
