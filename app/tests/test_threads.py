"""Turns of greenlets that work on the event loop."""

from __future__ import annotations

import io
import os

import gevent
from gevent.socket import wait_read

from model_server.bodies import SLICE, MemoryRequest, read_body
from model_server.threads import give_way


def test_greenlets_that_take_turns_keep_no_event_waiting() -> None:
    read, write = os.pipe()
    rounds = 0
    noticed: list[int] = []

    def work() -> None:
        nonlocal rounds
        while not noticed and rounds < 1000:
            rounds += 1
            if rounds == 100:
                os.write(write, b"x")
            give_way()

    def wait() -> None:
        wait_read(read)
        noticed.append(rounds)

    greenlets = [gevent.spawn(wait), *(gevent.spawn(work) for _ in range(5))]
    gevent.joinall(greenlets, timeout=10, raise_error=True)
    assert noticed and noticed[0] <= 110  # after at most two rounds of the five


def test_a_turn_comes_at_once_where_nothing_else_happens_and_a_killed_greenlet_misses_none() -> None:
    killed, other = gevent.spawn(give_way), gevent.spawn(give_way)
    gevent.sleep(0)  # both wait
    killed.kill(block=False)
    gevent.joinall([killed, other], timeout=10, raise_error=True)
    assert killed.ready() and other.ready()


def test_others_have_turns_while_a_large_body_is_read() -> None:
    body = os.urandom(10 * SLICE + 1)
    request = MemoryRequest(
        {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), "REQUEST_METHOD": "POST"}
    )
    turns: list[int] = []

    def other() -> None:
        while not reading.ready():
            turns.append(1)
            give_way()

    reading = gevent.spawn(read_body, request)
    gevent.joinall([reading, gevent.spawn(other)], timeout=10, raise_error=True)
    assert reading.value == body and len(turns) >= 10
