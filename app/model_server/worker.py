"""What gunicorn's gevent worker lacks: fair shares and turns, closing idle connections, a request log in JSON."""

from __future__ import annotations

import atexit
import mmap
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import gevent
import orjson
from gevent.server import StreamServer
from gunicorn.glogging import Logger
from gunicorn.workers import ggevent

from .records import RECORD, Record
from .threads import give_way

# How long a stopping worker leaves idle connections open, for requests that are on their way.
LAST_REQUESTS_SECONDS = 0.5
# How long a worker leaves a new connection to those with fewer, and how often it looks whether one has taken it.
PATIENCE_SECONDS = 0.01
LOOK_SECONDS = 0.001
FLUSH_SECONDS = 0.1
STDOUT = 1


class Shares:
    """How many connections each worker has, in memory that the workers share; each writes its own number only."""

    NOT_SERVING = -1

    def __init__(self, workers: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * workers)).cast("i")
        for slot in range(workers):
            self._counts[slot] = self.NOT_SERVING

    def take(self, taken: set[int]) -> int:
        """Return a slot that is not taken by another worker. A worker beyond their number gets the last one."""
        slots = range(len(self._counts))
        return next((slot for slot in slots if slot not in taken), slots[-1])

    def set(self, slot: int, connections: int) -> None:
        self._counts[slot] = connections

    def ahead(self, slot: int) -> bool:
        """Return whether this worker has more connections than another one."""
        return any(self.NOT_SERVING < other < self._counts[slot] for other in self._counts)


class Worker(ggevent.GeventWorker):
    """A gevent worker that takes its fair share of connections and gives each its turn.

    When stopped, it exits once nothing is left to answer. gunicorn_conf.py sets `shares` and `slot`.
    """

    wsgi: Any
    shares: Shares
    slot: int

    def init_process(self) -> None:
        self._idle: dict[gevent.Greenlet, gevent.Timeout] = {}
        self._connections = 0
        super().init_process()

    def run(self) -> None:
        self.shares.set(self.slot, 0)
        super().run()

    def server_class(self, listener: Any, spawn: Any, **_: Any) -> StreamServer:
        """Return what accepts connections, where gunicorn would make a plain StreamServer."""
        return _FairServer(listener, partial(self.handle, listener), spawn, lambda: self.shares.ahead(self.slot))

    def handle(self, *args: Any) -> None:
        self._connections += 1
        self.shares.set(self.slot, self._connections)
        try:
            super().handle(*args)
        finally:
            self._connections -= 1
            if self.alive:
                self.shares.set(self.slot, self._connections)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        application = self.wsgi

        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            response = start_response.__self__
            response.write = partial(_send_at_once, response)

            def start(*args: Any) -> Any:
                if not self.alive:  # told to stop while this request ran: close its connection after the answer
                    response.force_close()
                return start_response(*args)

            return application(environ, start)

        self.wsgi = answer

    def handle_request(self, *args: Any) -> None:
        super().handle_request(*args)
        give_way()  # else a client whose next request is always there already keeps the others waiting

    @contextmanager
    def timeout_ctx(self) -> Iterator[None]:
        """Wait up to `keepalive` seconds for the next request on a connection; then gunicorn closes it."""
        greenlet = gevent.getcurrent()
        with gevent.Timeout(self.cfg.keepalive, False) as timeout:
            self._idle[greenlet] = timeout
            try:
                yield
            finally:
                del self._idle[greenlet]

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop gracefully. gunicorn waits until connections end, so close those without a request."""
        super().handle_exit(sig, frame)
        self.shares.set(self.slot, Shares.NOT_SERVING)
        gevent.spawn_later(LAST_REQUESTS_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        while True:
            for greenlet, timeout in list(self._idle.items()):
                gevent.kill(greenlet, timeout)
            gevent.sleep(0.2)


class _Parts(list[bytes]):
    """Stands for a socket, and keeps what is sent."""

    sendall = list.append


def _send_at_once(response: Any, body: bytes) -> None:
    """Do what gunicorn's Response.write does, but send the headers together with the first part of the body.

    nginx passes headers on as they come. If this process died before the body, nginx could not ask another one then.
    """
    write, sock = type(response).write, response.sock
    if response.headers_sent:
        write(response, body)
        return
    response.sock = _Parts()
    try:
        write(response, body)
        whole = b"".join(response.sock)
    finally:
        response.sock = sock
    sock.sendall(whole)


class _FairServer(StreamServer):
    """Accepts connections, but leaves each for up to PATIENCE_SECONDS to the other workers while this one is `ahead`.

    Workers that share a socket wake up at the same time, and the fastest would take them all.
    """

    max_accept = 1

    def __init__(self, listener: Any, handle: Callable[..., None], spawn: Any, ahead: Callable[[], bool]) -> None:
        super().__init__(listener, handle, spawn=spawn)
        self._ahead = ahead
        self._was_patient = False

    def do_read(self) -> Any:
        if self._ahead() and not self._was_patient:
            self._was_patient = True
            self.stop_accepting()
            self._be_patient(PATIENCE_SECONDS)
            return None
        self._was_patient = False
        return super().do_read()

    def _be_patient(self, left: float) -> None:
        if left > 0 and self._ahead():
            self._timer = self.loop.timer(LOOK_SECONDS)
            self._timer.start(self._be_patient, left - LOOK_SECONDS)
        else:
            self._start_accepting_if_started()


class RequestLog(Logger):
    """One line of JSON per request on stdout, where the settings ask for it. Errors stay text on stderr.

    Lines are written every FLUSH_SECONDS: each write costs the Docker Engine more than a small model's answer takes.
    """

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self._lines: list[bytes] = []
        atexit.register(self._flush)

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        if not self.access_log_enabled:
            return
        record = environ.get(RECORD) or Record()
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": record.request_id,
            "client": environ.get("HTTP_X_REAL_IP") or environ.get("REMOTE_ADDR"),
            "method": environ.get("REQUEST_METHOD"),
            "path": environ.get("RAW_URI"),
            "status": int(str(resp.status).split(None, 1)[0]),
            "bytes": resp.sent,
            "milliseconds": round(request_time.total_seconds() * 1000, 3),
        }
        if record.models:
            line |= {
                "model": record.model,
                "version": record.version,
                "rows": record.rows,
                "stages": {stage: round(milliseconds, 3) for stage, milliseconds in record.stages.items()},
            }
        if not self._lines:
            gevent.spawn_later(FLUSH_SECONDS, self._flush)
        self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def _flush(self) -> None:
        """Write the lines, some at a time: up to PIPE_BUF bytes, workers cannot write into each other's lines."""
        lines, self._lines = self._lines, []
        chunk = b""
        for line in lines:
            if chunk and len(chunk) + len(line) > select.PIPE_BUF:
                os.write(STDOUT, chunk)
                chunk = b""
            chunk += line
        if chunk:
            os.write(STDOUT, chunk)
