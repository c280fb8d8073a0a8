"""A model under load: its queue, deadlines, clients that hang up, batches."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import gevent
import numpy as np
import pytest
from flask.testing import FlaskClient
from gevent.event import Event

from conftest import make_manifest
from model_server.calls import BATCH_ROWS, Abandoned, Calls, Overloaded, TooLate
from model_server.engines import EngineError, Tensors
from model_server.manifest import InputSpec
from model_server.metrics import ModelMetrics
from model_server.records import Record


class SlowEngine:
    """Answers twice its input when it is let go; refuses 13; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[float]] = []
        self.go = False

    def __call__(self, inputs: Tensors) -> Tensors:
        self.asked.append(inputs["x"].ravel().tolist())
        while not self.go:
            time.sleep(0.001)
        if 13 in inputs["x"]:
            raise EngineError("13 brings bad luck")
        return {"y": inputs["x"] * 2}


def row(*values: float) -> Tensors:
    return {"x": np.array([[value] for value in values], np.float32)}


def ask(calls: Calls, engine: SlowEngine, *values: float, **record: Any) -> gevent.Greenlet:
    """Ask in a greenlet of its own; its value is the answer's numbers, or the exception."""

    def run() -> Any:
        try:
            return calls.run(engine, row(*values), len(values), Record(**record))["y"].ravel().tolist()
        except Exception as error:
            return error

    greenlet = gevent.spawn(run)
    gevent.sleep(0)
    return greenlet


def wait_until(condition: Callable[[], bool]) -> None:
    with gevent.Timeout(10):
        while not condition():
            gevent.sleep(0.001)


def test_a_full_queue_refuses_at_once_and_says_when_to_try_again() -> None:
    calls, engine = Calls("slow", ModelMetrics("slow", "1"), threads=1, queue=2, batches=False), SlowEngine()
    asked = [ask(calls, engine, number) for number in (1, 2, 3, 4)]
    assert isinstance(asked[3].get(timeout=1), Overloaded)
    assert "slow is overloaded: 2 requests wait" in str(asked[3].value)
    assert asked[3].value.retry_after >= 1
    engine.go = True
    assert [one.get(timeout=10) for one in asked[:3]] == [[2], [4], [6]]
    assert engine.asked == [[1], [2], [3]]


def test_a_request_whose_deadline_passes_while_it_waits_is_not_worked_on() -> None:
    calls, engine = Calls("slow", ModelMetrics("slow", "1"), threads=1, queue=9, batches=False), SlowEngine()
    first = ask(calls, engine, 1)
    late = ask(calls, engine, 2, deadline=time.monotonic() + 0.05)
    assert isinstance(late.get(timeout=10), TooLate)
    engine.go = True
    assert first.get(timeout=10) == [2]
    assert ask(calls, engine, 3).get(timeout=10) == [6]
    assert engine.asked == [[1], [3]]


def test_a_client_that_hung_up_costs_no_work() -> None:
    calls, engine = Calls("slow", ModelMetrics("slow", "1"), threads=1, queue=9, batches=False), SlowEngine()
    (gone, there), (gone_peer, there_peer) = zip(*(socket.socketpair() for _ in range(2)), strict=True)
    first = ask(calls, engine, 1)
    left = ask(calls, engine, 2, client=gone)
    stayed = ask(calls, engine, 3, client=there)
    gone_peer.close()
    engine.go = True
    assert isinstance(left.get(timeout=10), Abandoned)
    assert (first.get(timeout=10), stayed.get(timeout=10)) == ([2], [6])
    assert engine.asked == [[1], [3]]
    there_peer.close()


def test_a_queue_full_of_clients_that_hung_up_has_room() -> None:
    calls, engine = Calls("slow", ModelMetrics("slow", "1"), threads=1, queue=1, batches=False), SlowEngine()
    ours, theirs = socket.socketpair()
    first = ask(calls, engine, 1)
    ask(calls, engine, 2, client=ours)
    theirs.close()
    third = ask(calls, engine, 3)
    engine.go = True
    assert (first.get(timeout=10), third.get(timeout=10)) == ([2], [6])


def test_a_long_call_that_is_alone_gets_more_threads() -> None:
    calls, engine, used = Calls("slow", ModelMetrics("slow", "1"), threads=2, queue=9, batches=False), SlowEngine(), []

    class Two:
        threads = 2
        idle = True

        def fits(self) -> bool:
            return self.idle

        def run(self, inputs: Tensors) -> Tensors:
            used.append(inputs["x"].item())
            return engine(inputs)

    wide: Any = Two()

    def asked(number: float) -> gevent.Greenlet:
        greenlet = gevent.spawn(lambda: calls.run(engine, row(number), 1, Record(), wide)["y"].item())
        gevent.sleep(0)
        return greenlet

    first, second = asked(1), asked(2)
    wait_until(lambda: len(engine.asked) == 2)
    gevent.sleep(0.02)
    engine.go = True
    assert (first.get(timeout=10), second.get(timeout=10), used) == (2, 4, [])  # nothing was known of its time
    engine.go = False
    alone = asked(3)
    wait_until(lambda: used == [3])
    other = asked(4)  # not alone
    gevent.sleep(0.02)
    engine.go = True
    assert (alone.get(timeout=10), other.get(timeout=10), used) == (6, 8, [3])
    wide.idle = False  # the machine has other work
    assert (asked(5).get(timeout=10), used) == (10, [3])


def test_waiting_calls_are_joined_by_rows_and_each_gets_its_own() -> None:
    calls, engine = Calls("slow", ModelMetrics("slow", "1"), threads=1, queue=9, batches=True), SlowEngine()
    asked = [ask(calls, engine, *numbers) for numbers in ([1], [2, 3], [4], [5] * BATCH_ROWS, [6])]
    engine.go = True
    assert [one.get(timeout=10) for one in asked] == [[2], [4, 6], [8], [10] * BATCH_ROWS, [12]]
    assert engine.asked == [[1], [2, 3, 4, 6], [5] * BATCH_ROWS]


def test_a_bad_row_fails_alone() -> None:
    calls, engine = Calls("slow", ModelMetrics("slow", "1"), threads=1, queue=9, batches=True), SlowEngine()
    asked = [ask(calls, engine, number) for number in (1, 2, 13, 4)]
    engine.go = True
    first, second, bad, last = (one.get(timeout=10) for one in asked)
    assert (first, second, last) == ([2], [4], [8])
    assert isinstance(bad, EngineError)


def test_answers_that_do_not_have_a_row_each_are_asked_alone() -> None:
    calls, go = Calls("mean", ModelMetrics("mean", "1"), threads=1, queue=9, batches=True), Event()

    def mean(inputs: Tensors) -> Tensors:
        while not go.is_set():
            time.sleep(0.001)
        return {"y": inputs["x"].mean(keepdims=True)}

    asked = [ask(calls, mean, *numbers) for numbers in ([1], [2, 4], [6, 8])]  # type: ignore[arg-type]
    go.set()
    assert [one.get(timeout=10) for one in asked] == [[1], [3], [7]]


def test_a_killed_request_gives_its_turn_to_the_next() -> None:
    calls, engine = Calls("slow", ModelMetrics("slow", "1"), threads=1, queue=9, batches=False), SlowEngine()
    first, killed, last = (ask(calls, engine, number) for number in (1, 2, 3))
    killed.kill()
    engine.go = True
    assert (first.get(timeout=10), last.get(timeout=10)) == ([2], [6])
    assert not calls.busy


def test_short_calls_run_at_once_and_long_ones_on_a_thread() -> None:
    calls, threads = Calls("quick", ModelMetrics("quick", "1"), threads=1, queue=0, batches=False), []

    def engine(inputs: Tensors) -> Tensors:
        threads.append(gevent.getcurrent())
        time.sleep(0.003 * len(inputs["x"]) if len(inputs["x"]) > 1 else 0)
        return inputs

    for rows in [1] * 20 + [2] * 2:
        record = Record()
        calls.run(engine, row(*range(rows)), rows, record)
        assert record.stages["engine"] > 0
    here = gevent.getcurrent()
    assert threads[0] is not here
    assert here in threads[:20]
    # The first call with two rows showed that they take longer than one row let expect.
    assert threads[-1] is not here


# ---------------------------------------------------------------- over HTTP


def test_a_refusal_says_nothing_of_how_long_an_answer_takes() -> None:
    calls, threads = Calls("slow", ModelMetrics("slow", "1"), threads=1, queue=9, batches=False), []

    def engine(inputs: Tensors) -> Tensors:
        threads.append(threading.get_ident())
        if 13 in inputs["x"]:
            raise EngineError("13 brings bad luck")
        time.sleep(0.01)
        return {"y": inputs["x"]}

    calls.run(engine, row(1), 1, Record())
    with pytest.raises(EngineError):
        calls.run(engine, row(13), 1, Record())
    calls.run(engine, row(2), 1, Record())
    assert threading.get_ident() not in threads


def test_stages_of_several_models_add_up() -> None:
    record, calls = Record(), Calls("slow", ModelMetrics("slow", "1"), threads=1, queue=9, batches=False)

    def engine(inputs: Tensors) -> Tensors:
        time.sleep(0.01)
        return {"y": inputs["x"]}

    for number in (1, 2):
        calls.run(engine, row(number), 1, record)
    assert record.stages["engine"] >= 20 and record.stages.keys() == {"engine", "queue"}


@pytest.fixture
def slow(serve: Callable[..., FlaskClient]) -> tuple[FlaskClient, SlowEngine]:
    engine = SlowEngine()
    manifest = make_manifest([InputSpec("x", "float32", (-1, 1), "x", "tensor")], name="slow")
    quick = make_manifest([InputSpec("x", "float32", (-1, 1), "x", "tensor")], name="quick")
    return serve((manifest, engine), (quick, lambda inputs: {"y": inputs["x"]}), queue=1), engine


def test_overload_and_deadlines_have_their_status(slow: tuple[FlaskClient, SlowEngine]) -> None:
    client, engine = slow
    asked = [gevent.spawn(client.post, "/predict/slow", json={"row": [number]}) for number in (1, 2)]
    wait_until(lambda: len(engine.asked) == 2)  # two run at a time
    waiting = gevent.spawn(client.post, "/predict/slow", json={"row": [3]}, headers={"X-Request-Timeout": "0.3"})
    gevent.sleep(0.01)
    refused = client.post("/predict/slow", json={"row": [4]})
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert "overloaded" in refused.json["error"]
    assert waiting.get(timeout=10).status_code == 504
    assert client.post("/predict/quick", json={"row": [4]}).status_code == 200
    assert client.get("/healthz").status_code == 200
    engine.go = True
    assert [one.get(timeout=10).status_code for one in asked] == [200, 200]


def test_a_busy_model_that_answers_is_ready(slow: tuple[FlaskClient, SlowEngine]) -> None:
    client, engine = slow
    first = gevent.spawn(client.post, "/predict/slow", json={"row": [1]})
    wait_until(lambda: len(engine.asked) == 1)
    gevent.sleep(0.02)  # as a quick model it would not have a queue
    engine.go = True
    assert first.get(timeout=10).status_code == 200
    engine.go = False
    asked = [gevent.spawn(client.post, "/predict/slow", json={"row": [number]}) for number in (1, 2)]
    wait_until(lambda: len(engine.asked) == 3)
    with gevent.Timeout(5):
        assert client.get("/readyz").status_code == 200
    engine.go = True
    gevent.joinall(asked, timeout=10)


@pytest.mark.parametrize("text", ["soon", "-1", "0", "nan", "inf"])
def test_a_time_limit_that_is_none_is_ignored(slow: tuple[FlaskClient, SlowEngine], text: str) -> None:
    answer = slow[0].post("/predict/quick", json={"row": [4]}, headers={"X-Request-Timeout": text})
    assert answer.status_code == 200


def test_a_question_of_the_server_itself_has_no_deadline() -> None:
    assert Record().deadline == math.inf
    assert not Record().abandoned()
