"""A model's calls to its engine: short ones at once, long ones on threads, the rest in a bounded queue."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from gevent.event import AsyncResult

from .engines import Tensors, Wide
from .metrics import ModelMetrics
from .records import Record
from .threads import Threads

# A call shorter than this runs on the event loop: it holds it up for less time than changing threads would take.
INLINE_SECONDS = 0.002
# The most rows that the waiting calls of a batching engine are joined to.
BATCH_ROWS = 64

Run = Callable[[Tensors], Tensors]


class Overloaded(RuntimeError):
    """The model's queue is full. `retry_after` is in seconds."""

    def __init__(self, name: str, waiting: int, retry_after: int) -> None:
        super().__init__(f"{name} is overloaded: {waiting} requests wait already; try again in {retry_after} s")
        self.retry_after = retry_after


class TooLate(RuntimeError):
    """The request's deadline passed before its turn came."""


class Abandoned(RuntimeError):
    """The client closed its connection before its turn came."""


class _Call:
    __slots__ = ("inputs", "numbers", "record", "rows", "seconds", "turn")

    def __init__(self, inputs: Tensors, rows: int, numbers: int, record: Record) -> None:
        self.inputs = inputs
        self.rows = rows
        self.numbers = numbers
        self.record = record
        self.seconds = 0.0  # of the engine
        # Becomes None when it is this call's turn; the answer, if another call took it along.
        self.turn: AsyncResult = AsyncResult()


class Calls:
    """The calls to the engine of model `name`, counted in `metrics`.

    `threads` is how many run at a time, `queue` how many may wait. With `batches`, a call takes along those that wait
    and fit, at most BATCH_ROWS rows in all.
    """

    def __init__(self, name: str, metrics: ModelMetrics, threads: int, queue: int, batches: bool) -> None:
        self.last_answer = -math.inf  # in seconds of time.monotonic()
        self._name = name
        self._metrics = metrics
        self._seconds_per_number = math.inf
        self._threads = Threads(threads)
        self._free = threads
        self._queue = queue
        self._batches = batches
        self._waiting: deque[_Call] = deque()

    @property
    def busy(self) -> bool:
        """Whether a new call has to wait."""
        return self._free == 0

    def run(self, engine: Run, inputs: Tensors, rows: int, record: Record, wide: Wide | None = None) -> Tensors:
        """Return the engine's answer to `inputs`, a batch of `rows`, and note in `record` how long it took.

        A long call that has the machine for itself is answered by `wide` instead, with more threads.
        Raises Overloaded, TooLate or Abandoned, before any work is done, and what the engine raises.
        """
        start = time.perf_counter()
        numbers = max(1, sum(array.size for array in inputs.values()))
        if self._seconds_per_number * numbers < INLINE_SECONDS:
            outputs = engine(inputs)
            seconds = time.perf_counter() - start
            if seconds > INLINE_SECONDS:  # a cost that grows otherwise: the next one is measured on a thread
                self._seconds_per_number = seconds / numbers
            record.add("engine", seconds)
            self._metrics.called(rows, seconds)
            return outputs
        call = _Call(inputs, rows, numbers, record)
        answer = None
        if self._free:
            self._free -= 1
        else:
            answer = self._wait(call)
        if answer is None:
            answer = self._take_turn(engine, call, wide)
        self.last_answer = time.monotonic()
        waited = time.perf_counter() - start - call.seconds
        record.add("engine", call.seconds)
        record.add("queue", waited)
        self._metrics.waited(waited)
        return answer

    def _wait(self, call: _Call) -> Tensors | None:
        """Return None when it is this call's turn, or the answer if another call took it along."""
        if len(self._waiting) >= self._queue:
            self._drop_abandoned()
        if len(self._waiting) >= self._queue:
            seconds = self._seconds_per_number * sum(call.numbers for call in self._waiting) / self._threads.size
            raise Overloaded(self._name, len(self._waiting), max(1, math.ceil(min(seconds, 60))))
        self._waiting.append(call)
        left = call.record.deadline - time.monotonic()
        try:
            with self._metrics.queue.track_inprogress():
                call.turn.wait(None if math.isinf(left) else max(left, 0))
        except BaseException:  # this greenlet is killed: its turn is the next one's
            if not call.turn.ready():
                self._waiting.remove(call)
            elif call.turn.value is None:
                self._pass_on()
            raise
        if not call.turn.ready():
            self._waiting.remove(call)
            raise TooLate(f"{self._name} had no free turn within the time limit; allow more time, or send less at once")
        answer: Tensors | None = call.turn.get()
        return answer

    def _take_turn(self, engine: Run, call: _Call, wide: Wide | None) -> Tensors:
        companions = self._companions(call)
        alone = self._free == self._threads.size - 1 and not self._waiting
        threads = 1
        if wide and alone and self._seconds_per_number < math.inf and wide.fits():
            engine, threads = wide.run, wide.threads
        start = time.perf_counter()
        try:
            answers = self._threads.run(_answer, engine, [call, *companions])
        except BaseException as error:
            for other in companions:
                other.turn.set_exception(error)
            raise
        finally:
            self._pass_on()
        seconds = time.perf_counter() - start
        self._metrics.called(sum(one.rows for one in (call, *companions)), seconds)
        numbers = sum(one.numbers for one in (call, *companions))
        if not any(isinstance(answer, Exception) for answer in answers):  # a refusal is quicker than an answer
            # What it would have taken with one thread, at most.
            self._seconds_per_number = min(self._seconds_per_number, threads * seconds / numbers)
        for one in (call, *companions):
            one.seconds = seconds
        for other, answer in zip(companions, answers[1:], strict=True):
            if isinstance(answer, Exception):
                other.turn.set_exception(answer)
            else:
                other.turn.set(answer)
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    def _pass_on(self) -> None:
        """Give the turn to the next call that waits."""
        self._drop_abandoned()
        if self._waiting:
            self._waiting.popleft().turn.set(None)
        else:
            self._free += 1

    def _companions(self, call: _Call) -> list[_Call]:
        """Take from the queue what can run in one batch with `call`."""
        chosen: list[_Call] = []
        rows = call.rows
        for other in self._waiting if self._batches else ():
            if rows + other.rows <= BATCH_ROWS and _joinable(call.inputs, other.inputs):
                chosen.append(other)
                rows += other.rows
        for other in chosen:
            self._waiting.remove(other)
        return chosen

    def _drop_abandoned(self) -> None:
        for call in [call for call in self._waiting if call.record.abandoned()]:
            self._waiting.remove(call)
            call.turn.set_exception(Abandoned(f"{self._name}: the client closed its connection"))


def _joinable(first: Tensors, second: Tensors) -> bool:
    return all(array.ndim and array.shape[1:] == second[name].shape[1:] for name, array in first.items())


def _answer(engine: Run, calls: Sequence[_Call]) -> list[Tensors | Exception]:
    """Return the answer to each call, or the exception: of several, in one batch or, if that fails, one by one."""
    if len(calls) > 1:
        rows = [call.rows for call in calls]
        try:
            outputs = engine({name: np.concatenate([call.inputs[name] for call in calls]) for name in calls[0].inputs})
        except Exception:  # a row that the engine refuses: it must not fail the others
            outputs = {}
        if outputs and all(array.ndim and len(array) == sum(rows) for array in outputs.values()):
            starts = np.cumsum([0, *rows])
            return [
                {name: array[start : start + count] for name, array in outputs.items()}
                for start, count in zip(starts, rows, strict=False)
            ]
    return [_caught(engine, call.inputs) for call in calls]


def _caught(engine: Run, inputs: Tensors) -> Tensors | Exception:
    try:
        return engine(inputs)
    except Exception as error:
        return error
