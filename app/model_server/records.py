"""What the server knows of the request that it answers: id, deadline, client, and what its prediction took."""

from __future__ import annotations

import math
import socket
from contextvars import ContextVar

# The record's key in a request's WSGI environment.
RECORD = "model_server.record"


class Record:
    """One request, or one question that the server asks itself: that has no client and no deadline.

    `deadline` is in seconds of time.monotonic(). `models` are the names and versions of those that answer: none, one
    or, of an upload to /predict, several. They set `rows` and add to `stages` (milliseconds by stage: queue, engine).
    """

    __slots__ = ("_socket", "deadline", "models", "request_id", "rows", "stages")

    def __init__(self, request_id: str = "", deadline: float = math.inf, client: socket.socket | None = None) -> None:
        self.request_id = request_id
        self.deadline = deadline
        self.models: list[tuple[str, str]] = []
        self.rows = 0
        self.stages: dict[str, float] = {}
        self._socket = client

    @property
    def model(self) -> str:
        return ", ".join(name for name, _ in self.models)

    @property
    def version(self) -> str:
        return ", ".join(version for _, version in self.models)

    def add(self, stage: str, seconds: float) -> None:
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds * 1000

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


# The record of the request that this greenlet answers.
CURRENT: ContextVar[Record | None] = ContextVar("record", default=None)


def current() -> Record:
    """Return the record of the request that this greenlet answers; outside a request, a new one."""
    return CURRENT.get() or Record()
