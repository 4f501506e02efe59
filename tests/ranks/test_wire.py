"""Messages between ranks: what is sent arrives, what is no message or comes from elsewhere is left alone."""

import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress

import numpy as np
import pytest

from dalr_stream.engine.ranks import meeting as meeting_module
from dalr_stream.engine.ranks.meeting import Place, meeting
from dalr_stream.engine.ranks.pulse import Pulse
from dalr_stream.engine.ranks.wire import ClosedError, receive_message, send_message
from dalr_stream.errors import InvalidInputError
from dalr_stream.streaming.ranks.link import Message, Traffic


@pytest.fixture
def pair():
    with ExitStack() as stack:
        ends = [stack.enter_context(end) for end in socket.socketpair()]
        for end in ends:
            end.settimeout(0.2)
        yield ends


def nothing():
    """Nobody was lost."""


def test_arrays_of_any_shape_and_order_arrive_as_they_are(pair):
    arrays = [
        np.arange(12.0).reshape(3, 4).T,
        np.empty((0, 5), np.float32),
        np.array(7, np.int64),
        np.array([True, False]),
        np.random.default_rng(0).normal(size=(700, 700)),
    ]
    sending = threading.Thread(target=send_message, args=(pair[0], Message({"a": [1, None]}, arrays), nothing))
    sending.start()
    traffic = Traffic()
    message = receive_message(pair[1], traffic, nothing)
    found = list(message.arrays)
    sending.join()
    assert message.facts == {"a": [1, None]}
    assert [array.dtype for array in found] == [array.dtype for array in arrays]
    assert all(np.array_equal(one, other) for one, other in zip(found, arrays, strict=True))
    assert traffic.array_bytes == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n\r\n", struct.pack("!Q", 3) + b"{}}", struct.pack("!Q", 2) + b"[]", b"\0" * 8],
    ids=["another protocol", "no JSON", "no facts", "nothing"],
)
def test_what_is_no_message_is_refused(pair, sent):
    pair[0].sendall(sent)
    with pytest.raises(ClosedError):
        receive_message(pair[1], Traffic(), nothing)


def test_an_array_of_objects_is_refused(pair):
    header = b'{"facts": {}, "arrays": [["|O", [1]]]}'
    pair[0].sendall(struct.pack("!Q", len(header)) + header + b"x" * 8)
    with pytest.raises(ClosedError, match=r"an array of \|O"):
        list(receive_message(pair[1], Traffic(), nothing).arrays)


def test_waiting_ends_where_the_other_end_is_closed_or_waiting_is_in_vain(pair):
    def in_vain():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        receive_message(pair[1], Traffic(), in_vain)
    pair[0].close()
    with pytest.raises(ClosedError, match="closed"):
        receive_message(pair[1], Traffic(), nothing)


@pytest.mark.parametrize(
    ("word", "lost"),
    [(None, "ranks: rank 1 on a was lost: run the same"), ("no space", "ranks: rank 1 on a stopped: no space")],
)
def test_the_end_of_a_rank_is_known_with_its_reason(pair, word, lost):
    pulse = Pulse({1: pair[1]}, {1: "rank 1 on a"})
    if word is not None:
        Pulse({0: pair[0]}, {0: "rank 0 on b"}).end(word)
    pair[0].close()
    assert pulse.noticed.wait(5.0)
    pulse.end(None)
    assert pulse.lost.startswith(lost)


def test_two_words_that_arrive_together_are_the_first(pair):
    pair[0].sendall(b'{"stopped": "ranks: rank 2 was lost"}\n{"stopped": "the same again"}\n')
    pulse = Pulse({0: pair[1]}, {0: "rank 0"})
    assert pulse.noticed.wait(5.0)
    pulse.end(None)
    assert pulse.lost == "ranks: rank 2 was lost"


def test_a_rank_that_is_done_is_not_lost(pair):
    pulse = Pulse({1: pair[1]}, {1: "rank 1"})
    Pulse({0: pair[0]}, {0: "rank 0"}).end(None)
    assert not pulse.noticed.wait(0.5)
    pulse.end(None)
    assert pulse.lost is None


def connected(port):
    for _ in range(100):
        with suppress(ConnectionError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.05)
    raise AssertionError(port)


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as taken:
        place = Place(0, 2, "127.0.0.1", taken.getsockname()[1])
        message = f"MASTER_PORT {place.port} cannot be listened at .*: choose another"
        with pytest.raises(InvalidInputError, match=message), meeting(place, 5.0):
            pass


HELLOS = [
    {"token": "", "ranks": 2},
    {"token": "", "ranks": 2, "rank": 7, "pulse": False, "host": "a"},
    {"token": "", "ranks": 2, "rank": "1", "pulse": False, "host": "a"},
    {"token": "", "ranks": 2, "rank": 0, "pulse": True, "host": "a"},
    {"token": "\u00e9", "ranks": 2, "rank": 1, "pulse": False, "host": "a"},
    {"token": "", "ranks": 3, "rank": 1, "pulse": False, "host": "a"},
]
"""Of nobody who belongs to a job of two ranks."""


def test_a_stranger_at_the_port_of_rank_0_is_left_alone(monkeypatch):
    monkeypatch.setattr(meeting_module, "_HELLO_SECONDS", 0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    met, ready = {}, threading.Event()

    def come(rank):
        with meeting(Place(rank, 2, "127.0.0.1", port), 20.0) as found:
            met[rank] = found
            ready.wait(20.0)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(2)]
    threads[0].start()
    strangers = [connected(port) for _ in range(2 + len(HELLOS))]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")  # the second says nothing
    for stranger, hello in zip(strangers[2:], HELLOS, strict=True):
        send_message(stranger, Message(hello), nothing)
    threads[1].start()
    for _ in range(200):
        if len(met) == 2:
            break
        ready.wait(0.1)
    ready.set()
    for thread in threads:
        thread.join()
    for stranger in strangers:
        stranger.close()
    assert sorted(met) == [0, 1]
    assert met[0].data.keys() == {1}
    assert met[1].data.keys() == {0}
