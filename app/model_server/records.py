"""What the server knows of the request that it answers: id, deadline, client, and what its prediction took.

Requests is the WSGI layer around the Flask application: it makes the record and writes the headers of every answer.
"""

from __future__ import annotations

import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from .settings import Settings

RECORD = "model_server.record"
TIMEOUT_HEADER = "X-Request-Timeout"

Headers = list[tuple[str, str]]
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Record:
    """One request, or one question that the server asks itself: that has no client and no deadline.

    `deadline` is in seconds of time.monotonic(). `model`, `version`, `rows` and `stages` (milliseconds by stage: queue,
    engine) are set by the model that answers.
    """

    __slots__ = ("_socket", "deadline", "model", "request_id", "rows", "stages", "version")

    def __init__(self, request_id: str = "", deadline: float = math.inf, client: socket.socket | None = None) -> None:
        self.request_id = request_id
        self.deadline = deadline
        self.model = self.version = ""
        self.rows = 0
        self.stages: dict[str, float] = {}
        self._socket = client

    def abandoned(self) -> bool:
        """Return whether the client has closed its connection."""
        if self._socket is None:
            return False
        timeout = self._socket.gettimeout()
        self._socket.settimeout(0)  # else gevent would wait for more
        try:
            return self._socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._socket.settimeout(timeout)


_current: ContextVar[Record | None] = ContextVar("record", default=None)


def current() -> Record:
    """Return the record of the request that this greenlet answers; outside a request, a new one."""
    return _current.get() or Record()


class Requests:
    """The WSGI application around `application`."""

    def __init__(self, application: Wsgi, settings: Settings) -> None:
        self._application = application
        self._timeout = settings.timeout_seconds
        self._origins = settings.cors_origins

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else os.urandom(16).hex()
        deadline = time.monotonic() + min(self._timeout, _seconds(environ.get("HTTP_X_REQUEST_TIMEOUT")))
        record = environ[RECORD] = Record(request_id, deadline, environ.get("gunicorn.socket"))
        token = _current.set(record)

        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            headers += [
                ("X-Request-ID", request_id),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
            ]
            if record.version:
                headers.append(("X-Model-Version", record.version))
            if self._origins:
                headers += self._cors(environ)
            return start_response(status, headers, exc_info)

        try:
            return self._application(environ, start)
        finally:
            _current.reset(token)

    def _cors(self, environ: dict[str, Any]) -> Headers:
        headers = [("Vary", "Origin")]
        origin = environ.get("HTTP_ORIGIN", "")
        if origin and ("*" in self._origins or origin in self._origins):
            headers += [
                ("Access-Control-Allow-Origin", origin),
                ("Access-Control-Expose-Headers", "X-Request-ID"),
            ]
            if environ["REQUEST_METHOD"] == "OPTIONS":
                headers += [
                    ("Access-Control-Allow-Methods", "GET, POST"),
                    ("Access-Control-Allow-Headers", f"Content-Type, X-Request-ID, {TIMEOUT_HEADER}"),
                    ("Access-Control-Max-Age", "600"),
                ]
        return headers


def _seconds(text: str | None) -> float:
    """Return the seconds that the client's header gives; infinity if there is none, or no number above 0 in it."""
    try:
        seconds = float(text) if text else math.inf
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf
