"""Messages over a socket: a length, the facts as JSON, then the bytes of each array.

Nothing that arrives is executed, and only arrays of numbers are made of it. Waiting is done in short turns, so that
whoever waits can be told in between that there is nothing to wait for.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.streaming.ranks.link import Message, Traffic

TURN_SECONDS = 0.5
MOST_FACTS_BYTES = 2**30
_LENGTH = struct.Struct("!Q")
Check = Callable[[], None]
"""Called between turns; raises where waiting is in vain."""


class ClosedError(Exception):
    """The other end is gone."""


def send_message(connection: socket.socket, message: Message, check: Check) -> None:
    """Send one message; raises ClosedError."""
    arrays = list(message.arrays)
    forms = [[array.dtype.str, list(array.shape)] for array in arrays]
    header = json.dumps({"facts": dict(message.facts), "arrays": forms}).encode()
    _send(connection, memoryview(_LENGTH.pack(len(header)) + header), check)
    for array in arrays:
        if array.size:
            _send(connection, np.ascontiguousarray(array).reshape(-1).data.cast("B"), check)


def receive_message(
    connection: socket.socket, traffic: Traffic, check: Check, *, most_facts_bytes: int = MOST_FACTS_BYTES
) -> Message:
    """Wait for one message; raises ClosedError. Its arrays arrive as they are asked for, and must be before the next.

    They are counted in `traffic`.
    """
    length = bytearray(_LENGTH.size)
    _receive(connection, memoryview(length), check)
    size: int = _LENGTH.unpack(length)[0]
    if size > most_facts_bytes:
        raise ClosedError(f"announced {size} bytes of facts")
    header = bytearray(size)
    _receive(connection, memoryview(header), check)
    try:
        told = json.loads(header)
        facts, forms = dict(told["facts"]), list(told["arrays"])
    except (ValueError, TypeError, LookupError) as error:
        raise ClosedError(f"sent what is no message: {error}") from None
    traffic.messages += bool(forms)
    return Message(facts, _arrays(connection, forms, traffic, check))


def _arrays(
    connection: socket.socket, forms: Sequence[tuple[str, list[int]]], traffic: Traffic, check: Check
) -> Iterator[NDArray[Any]]:
    for dtype, shape in forms:
        array = _array(connection, dtype, shape, check)
        traffic.array_bytes += array.nbytes
        yield array


def _array(connection: socket.socket, dtype: str, shape: list[int], check: Check) -> NDArray[Any]:
    kind = np.dtype(dtype)
    if kind.kind not in "fiub":
        raise ClosedError(f"sent an array of {dtype}")
    array = np.empty(math.prod(shape), kind)
    if array.size:
        _receive(connection, array.data.cast("B"), check)
    return array.reshape(shape)


def _send(connection: socket.socket, data: memoryview, check: Check) -> None:
    while data:
        try:
            data = data[connection.send(data) :]
        except TimeoutError:
            check()
        except OSError as error:
            raise ClosedError(str(error)) from None


def _receive(connection: socket.socket, into: memoryview, check: Check) -> None:
    while into:
        try:
            received = connection.recv_into(into)
        except TimeoutError:
            check()
            continue
        except OSError as error:
            raise ClosedError(str(error)) from None
        if received == 0:
            raise ClosedError("the connection was closed")
        into = into[received:]
