"""Where a worker process runs its slow calls: on threads, while its event loop goes on serving."""

from __future__ import annotations

import fcntl
import math
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

INLINE_SECONDS = 0.002
THREADS = 2

T = TypeVar("T")


class Threads:
    """A pool of THREADS threads in a worker process. Greenlets wait for their result; the event loop does not."""

    def __init__(self) -> None:
        self._pool: ThreadPool | None = None
        self._decoding = BoundedSemaphore(1)

    def run(self, function: Callable[..., T], *args: Any, seconds: float = math.inf) -> T:
        """Return function(*args), run on a thread; raise what it raises.

        `seconds` is how long the call is expected to take. One shorter than INLINE_SECONDS runs right here: it holds
        up the event loop for less time than changing threads would take.
        """
        if seconds < INLINE_SECONDS:
            return function(*args)
        if self._pool is None:  # threads do not survive a fork: they are started by the first call after it
            self._pool = ThreadPool(THREADS, hub=gevent.get_hub())
        value: T
        value, error = self._pool.apply(_caught, (function, args))
        if error is not None:
            raise error
        return value

    def decode(self, function: Callable[..., T], *args: Any) -> T:
        """Return function(*args), run on a thread, one call at a time: for pictures, which take much memory."""
        with self._decoding:
            return self.run(function, *args)


class ProcessLock:
    """A lock shared by the processes that are forked after it was made. It is released if its holder dies.

    It guards the decoding of large pictures, which takes up to 200 MB: once in a container, not once in each worker.
    """

    def __init__(self) -> None:
        # In memory, because the root file system may be read-only; open for as long as the lock is in use.
        self._file = tempfile.TemporaryFile(dir="/dev/shm")  # noqa: SIM115

    def __enter__(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *raised: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)


def _caught(function: Callable[..., T], args: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """Return the result and the exception, because gevent's pool prints the traceback of what its threads raise."""
    try:
        return function(*args), None
    except Exception as error:
        return None, error
