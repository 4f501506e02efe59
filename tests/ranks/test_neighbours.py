"""Ranks that send their sums to one another find each other, and nobody else."""

import socket
import threading
from contextlib import ExitStack

import pytest

from dalr_stream.engine.ranks import neighbours
from dalr_stream.engine.ranks.meeting import Meeting, Place, meeting
from dalr_stream.engine.ranks.neighbours import meet_neighbours
from dalr_stream.engine.ranks.wire import send_message
from dalr_stream.errors import ResourceError
from dalr_stream.streaming.ranks.link import Message


def nothing():
    """Nobody was lost."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def met_by(ranks):
    """Return whom each rank is connected to, by its number."""
    port, found, failed = free_port(), {}, []
    together = threading.Barrier(ranks)

    def come(rank):
        try:
            with meeting(Place(rank, ranks, "127.0.0.1", port), 20.0) as met, ExitStack() as stack:
                meet_neighbours(met, Place(rank, ranks, "127.0.0.1", port), stack, nothing)
                found[rank] = set(met.data)
                together.wait(20.0)
        except (OSError, ResourceError, threading.BrokenBarrierError) as error:
            failed.append(error)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert not failed
    return found


def test_each_is_connected_to_rank_0_and_to_those_that_it_sends_to_or_hears_from():
    assert met_by(7) == {0: {1, 2, 3, 4, 5, 6}, 1: {0}, 2: {0, 3}, 3: {0, 2}, 4: {0, 5, 6}, 5: {0, 4}, 6: {0, 4}}


def test_a_stranger_at_their_ports_is_left_alone(monkeypatch):
    strangers = []

    def server(address, **options):
        made = socket.create_server(address, **options)
        strangers.append(socket.create_connection(("127.0.0.1", made.getsockname()[1])))
        send_message(strangers[-1], Message({"token": "", "rank": 3}), nothing)
        return made

    class Listening:
        create_server = staticmethod(server)
        create_connection = staticmethod(socket.create_connection)

    monkeypatch.setattr(neighbours, "socket", Listening)
    assert met_by(4) == {0: {1, 2, 3}, 1: {0}, 2: {0, 3}, 3: {0, 2}}
    assert len(strangers) == 3
    for stranger in strangers:
        stranger.close()


def test_a_rank_that_cannot_be_reached_is_named():
    with pytest.raises(ResourceError, match=r"ranks: rank 2 cannot be reached at 127\.0\.0\.1:1 .*let all ranks reach"):
        neighbours._reached(2, "127.0.0.1", 1)


def test_a_rank_that_is_lost_meanwhile_ends_the_wait():
    def lost():
        raise ResourceError("ranks: rank 3 on a was lost")

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        ExitStack() as stack,
        pytest.raises(ResourceError, match="rank 3 on a was lost"),
    ):
        neighbours._accept(Meeting(), [3], server, "token", stack, lost)
