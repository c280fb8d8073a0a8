"""What the worker adds to gunicorn's."""

from __future__ import annotations

import os

import gevent
from gevent.socket import wait_read

from model_server.worker import Turns


def test_greenlets_that_take_turns_keep_no_event_waiting() -> None:
    turns = Turns()
    read, write = os.pipe()
    rounds = 0
    noticed: list[int] = []

    def work() -> None:
        nonlocal rounds
        while not noticed and rounds < 1000:
            rounds += 1
            if rounds == 100:
                os.write(write, b"x")
            turns.wait()

    def wait() -> None:
        wait_read(read)
        noticed.append(rounds)

    greenlets = [gevent.spawn(wait), *(gevent.spawn(work) for _ in range(5))]
    gevent.joinall(greenlets, timeout=10, raise_error=True)
    assert noticed and noticed[0] <= 110  # after at most two rounds of the five


def test_a_turn_comes_at_once_where_nothing_else_happens_and_a_killed_greenlet_misses_none() -> None:
    turns = Turns()
    killed, other = gevent.spawn(turns.wait), gevent.spawn(turns.wait)
    gevent.sleep(0)  # both wait
    killed.kill(block=False)
    gevent.joinall([killed, other], timeout=10, raise_error=True)
    assert killed.ready() and other.ready()
