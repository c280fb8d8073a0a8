"""Asks a model server steadily while something happens to it, and counts what its clients would have noticed.

    with Prober("https://localhost:18443", ca, questions, versions={"old", "new"}) as probe:
        deploy()
    print(probe.outcome)

Every other client keeps its connection, the rest open a new one for each request; all of them verify the server's name
and certificate, and compare each answer with the known right one.
"""

from __future__ import annotations

import http.client
import itertools
import json
import ssl
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ANY = ""
TOLERANCE = 1e-4
TIMEOUT_SECONDS = 10.0
KEPT_FAILURES = 12


@dataclass(frozen=True)
class Question:
    """A request and its right answers.

    `right` is, by the version of the service that gives it, what the JSON answer must have: objects may have more keys
    and numbers may differ by TOLERANCE. Under ANY stands what every version answers.
    """

    name: str
    method: str
    path: str
    right: Mapping[str, Any]
    body: bytes = b""
    content_type: str = "application/json"

    def version(self, answer: bytes, versions: Iterable[str]) -> str | None:
        """The one of `versions` (or ANY) whose answer this is, None where it is nobody's."""
        try:
            said = json.loads(answer)
        except ValueError:
            return None
        return next((v for v in (ANY, *versions) if v in self.right and _has(said, self.right[v])), None)


def _has(said: Any, right: Any) -> bool:
    if isinstance(right, Mapping):
        return isinstance(said, dict) and all(key in said and _has(said[key], right[key]) for key in right)
    if isinstance(right, list):
        return isinstance(said, list) and len(said) == len(right) and all(map(_has, said, right))
    if isinstance(right, float):
        return isinstance(said, int | float) and abs(said - right) <= TOLERANCE
    return bool(said == right)


def json_question(name: str, path: str, body: Any, right: Mapping[str, Any]) -> Question:
    return Question(name, "POST", path, right, json.dumps(body).encode())


def upload_question(name: str, path: str, file: Path, right: Mapping[str, Any]) -> Question:
    """A question that sends a file as a browser's form does, in the field `file`."""
    boundary = "slipway-prober"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n\r\n'
    body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    return Question(name, "POST", path, right, body, f"multipart/form-data; boundary={boundary}")


@dataclass(frozen=True)
class Failure:
    """An answer that was not right: `at` in seconds since the prober started."""

    at: float
    client: str
    question: str
    reason: str

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.client}  {self.question}: {self.reason}"


@dataclass
class Outcome:
    """What the clients saw.

    failed       requests without an answer of status 200: another status, a broken connection, no answer in time
    wrong        answers of status 200 that are not right
    reconnected  requests on a reused connection that the server closed before any byte of an answer; each was repeated
                 once on a new connection, as HTTP clients do, and counts as failed only if that one failed too
    gap          seconds, the longest time that any one client went without a right answer: from one right answer to the
                 next, the first counted from the client's start, the last to its end. The client's own pace is in it,
                 so that an undisturbed service shows a little more than that
    versions     right answers by the version that gave them, without those that every version gives
    settled      the same, only of requests sent after the event
    """

    requests: int = 0
    failed: int = 0
    wrong: int = 0
    reconnected: int = 0
    gap: float = 0.0
    versions: Counter[str] = field(default_factory=Counter)
    settled: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.requests += other.requests
        self.failed += other.failed
        self.wrong += other.wrong
        self.reconnected += other.reconnected
        self.gap = max(self.gap, other.gap)
        self.versions += other.versions
        self.settled += other.settled
        self.failures = sorted(self.failures + other.failures, key=lambda failure: failure.at)[:KEPT_FAILURES]

    def __str__(self) -> str:
        line = (
            f"{self.requests} requests, {self.failed} failed, {self.wrong} wrong, {self.reconnected} reconnected, "
            f"longest gap {self.gap * 1000:.0f} ms, by version {dict(self.versions)}, at last {dict(self.settled)}"
        )
        return "\n".join([line, *map(str, self.failures)])


class Prober:
    """A number of clients that ask all the while; a context manager around the event.

    Each client asks a question every `pace` seconds, and at once where the answer took longer. They begin `margin`
    seconds before the event, and go on that long after it and until they have asked `at_least` questions together.
    """

    def __init__(
        self,
        address: str,
        ca: Path,
        questions: Sequence[Question],
        versions: Iterable[str] = (),
        *,
        clients: int = 8,
        pace: float = 0.125,
        margin: float = 1.0,
        at_least: int = 400,
    ) -> None:
        url = urllib.parse.urlsplit(address)
        self._server = (url.hostname or "", url.port or 443)
        self._tls = ssl.create_default_context(cafile=str(ca))
        self._margin = margin
        self._at_least = at_least
        self._start = 0.0
        self._event_over = threading.Event()
        self._stop = threading.Event()
        self._clients = [_Client(self, number, questions, tuple(versions), pace, clients) for number in range(clients)]
        self._threads = ThreadPoolExecutor(clients)
        self._running: list[Future[None]] = []
        self.outcome = Outcome()
        self.kept_connections = sum(client.keeps for client in self._clients)

    def __enter__(self) -> Prober:
        self._start = time.monotonic()
        self._running = [self._threads.submit(client.run) for client in self._clients]
        time.sleep(self._margin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._event_over.set()
        if error is None:
            time.sleep(self._margin)
            self._wait(lambda: self._asked() >= self._at_least, 120)
        self._stop.set()
        self._threads.shutdown()
        for client in self._clients:
            self.outcome.add(client.seen)
        for running in self._running:
            running.result()

    def next_right_answer(self, timeout: float) -> None:
        """Wait for a right answer to a request that is sent after this call. TimeoutError if none comes."""
        since = time.monotonic()
        if not self._wait(lambda: any(client.asked_right > since for client in self._clients), timeout):
            raise TimeoutError(f"no right answer within {timeout} s; {self._latest()}")

    def _wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or any(client.done() for client in self._running):
                return False
            time.sleep(0.02)
        return True

    def _asked(self) -> int:
        return sum(client.seen.requests for client in self._clients)

    def _latest(self) -> str:
        latest = [client.seen.failures[-1] for client in self._clients if client.seen.failures]
        return (
            f"the latest failure: {max(latest, key=lambda failure: failure.at)}" if latest else "and no failure either"
        )


class _ClosedEarly(Exception):
    """The server closed the connection before any byte of an answer."""


class _Response(http.client.HTTPResponse):
    def begin(self) -> None:
        try:
            first = self.fp.peek(1)
        except TimeoutError:
            raise
        except OSError as error:
            raise _ClosedEarly(repr(error)) from error
        if not first:
            raise _ClosedEarly("closed without an answer")
        super().begin()


class _Client:
    def __init__(
        self,
        prober: Prober,
        number: int,
        questions: Sequence[Question],
        versions: tuple[str, ...],
        pace: float,
        of: int,
    ) -> None:
        self.keeps = number % 2 == 0
        self.name = f"client {number} ({'kept' if self.keeps else 'new'})"
        self.seen = Outcome()
        self.asked_right = 0.0  # when the last request was sent that got a right answer
        self._prober = prober
        self._questions = itertools.islice(itertools.cycle(questions), number, None)
        self._versions = versions
        self._pace = pace
        self._delay = pace * number / of
        self._connection: http.client.HTTPSConnection | None = None

    def run(self) -> None:
        time.sleep(self._delay)
        due = last_right = time.monotonic()
        for question in self._questions:
            sent = time.monotonic()
            settled = self._prober._event_over.is_set()
            version, reason, status = self._ask(question)
            now = time.monotonic()
            self.seen.requests += 1
            if version is None:
                self.seen.failed += status != 200
                self.seen.wrong += status == 200
                failure = Failure(sent - self._prober._start, self.name, question.name, reason)
                self.seen.failures = [*self.seen.failures, failure]
            else:
                self.asked_right = sent
                self.seen.gap = max(self.seen.gap, now - last_right)
                last_right = now
                if version != ANY:
                    self.seen.versions[version] += 1
                    self.seen.settled[version] += settled
            due = max(due + self._pace, now)
            if self._prober._stop.wait(due - now):
                break
        self.seen.gap = max(self.seen.gap, time.monotonic() - last_right)
        self._close()

    def _ask(self, question: Question) -> tuple[str | None, str, int]:
        """The version that gave the right answer, or None with the reason; the status, 0 where there was none."""
        reused = self._connection is not None and self._connection.sock is not None
        try:
            try:
                status, answer = self._exchange(question)
            except _ClosedEarly:
                if not reused:
                    raise
                self.seen.reconnected += 1
                self._close()
                status, answer = self._exchange(question)
        except (OSError, http.client.HTTPException, _ClosedEarly) as error:
            self._close()
            return None, repr(error), 0
        if not self.keeps:
            self._close()
        text = f"{status} {answer[:200].decode(errors='replace')}"
        return (question.version(answer, self._versions) if status == 200 else None), text, status

    def _exchange(self, question: Question) -> tuple[int, bytes]:
        if self._connection is None:
            host, port = self._prober._server
            tls = self._prober._tls
            self._connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=tls)
            self._connection.response_class = _Response
        if self._connection.sock is None:
            self._connection.connect()
        headers = {"Content-Type": question.content_type} if question.body else {}
        try:
            self._connection.request(question.method, question.path, question.body or None, headers)
        except TimeoutError:
            raise
        except OSError as error:
            raise _ClosedEarly(repr(error)) from error
        response = self._connection.getresponse()
        return response.status, response.read()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
