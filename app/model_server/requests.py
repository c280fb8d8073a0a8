"""The WSGI layer around the Flask application: records, counts and times requests, writes every answer's headers."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from .metrics import IN_FLIGHT, observe
from .records import CURRENT, RECORD, Record
from .settings import Settings

TIMEOUT_HEADER = "X-Request-Timeout"
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
PROTOCOLS = {"v1": "tfserving", "v2": "inference"}

Headers = list[tuple[str, str]]
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


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
        token = CURRENT.set(record)
        code = ""
        begun = time.perf_counter()
        IN_FLIGHT.inc()

        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            nonlocal code
            code = status[:3]
            headers += [
                ("X-Request-ID", request_id),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
            ]
            if record.models:
                headers += [("X-Model", record.model), ("X-Model-Version", record.version)]
            if self._origins:
                headers += self._cors(environ)
            return start_response(status, headers, exc_info)

        try:
            return self._application(environ, start)
        finally:
            CURRENT.reset(token)
            IN_FLIGHT.dec()
            observe(record, _protocol(environ["PATH_INFO"]), code, time.perf_counter() - begun)

    def _cors(self, environ: dict[str, Any]) -> Headers:
        headers = [("Vary", "Origin")]
        origin = environ.get("HTTP_ORIGIN", "")
        if origin and ("*" in self._origins or origin in self._origins):
            headers += [
                ("Access-Control-Allow-Origin", origin),
                ("Access-Control-Expose-Headers", f"X-Request-ID, X-Model, X-Model-Version, {JSON_LENGTH_HEADER}"),
            ]
            if environ["REQUEST_METHOD"] == "OPTIONS":
                headers += [
                    ("Access-Control-Allow-Methods", "GET, POST"),
                    (
                        "Access-Control-Allow-Headers",
                        f"Content-Type, X-Request-ID, {TIMEOUT_HEADER}, {JSON_LENGTH_HEADER}",
                    ),
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


def _protocol(path: str) -> str:
    """Return the protocol that an address belongs to; "other" is the page, health and the like."""
    first, _, rest = path.lstrip("/").partition("/")
    if first == "predict":
        return "predict" if rest else "articles"
    return PROTOCOLS.get(first.lower(), "other")
