"""What gunicorn's gevent worker lacks: fair turns, the closing of idle connections, an access log in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import gevent
import orjson
from gunicorn.glogging import Logger
from gunicorn.workers.ggevent import GeventWorker

# How long a stopping worker leaves idle connections open, for requests that are on their way.
LAST_REQUESTS_SECONDS = 0.5


class Worker(GeventWorker):
    """A gevent worker that gives every connection its turn and, when stopped, exits once nothing is left to answer."""

    wsgi: Any

    def init_process(self) -> None:
        self._idle: dict[gevent.Greenlet, gevent.Timeout] = {}
        super().init_process()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        application = self.wsgi

        def answer(environ: dict[str, Any], start_response: Any) -> Any:
            def start(*args: Any) -> Any:
                if not self.alive:  # told to stop while this request ran: close its connection after the answer
                    start_response.__self__.force_close()
                return start_response(*args)

            return application(environ, start)

        self.wsgi = answer

    def handle_request(self, *args: Any) -> None:
        super().handle_request(*args)
        gevent.sleep(0)  # else a client whose next request is always there already keeps the others waiting

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
        gevent.spawn_later(LAST_REQUESTS_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        while True:
            for greenlet, timeout in list(self._idle.items()):
                gevent.kill(greenlet, timeout)
            gevent.sleep(0.2)


class AccessLog(Logger):
    """An access log of one line of JSON per request, on stdout. Errors stay text on stderr."""

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        self.access_log.info(
            orjson.dumps(
                {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "request_id": environ.get("model_server.request_id"),
                    "client": environ.get("HTTP_X_REAL_IP") or environ.get("REMOTE_ADDR"),
                    "method": environ.get("REQUEST_METHOD"),
                    "path": environ.get("RAW_URI"),
                    "status": int(str(resp.status).split(None, 1)[0]),
                    "bytes": resp.sent,
                    "milliseconds": round(request_time.total_seconds() * 1000, 3),
                }
            ).decode()
        )
