"""Where a worker process runs what takes long: on threads, while its event loop goes on serving."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent.threadpool import ThreadPool

T = TypeVar("T")


class Threads:
    """At most `size` threads in a worker process. Greenlets wait for their result; the event loop does not."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._pool: ThreadPool | None = None

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Return function(*args), run on a thread; raise what it raises."""
        if self._pool is None:  # threads do not survive a fork: they are started by the first call after it
            self._pool = ThreadPool(self.size, hub=gevent.get_hub())
        value: T
        value, error = self._pool.apply(_caught, (function, args))
        if error is not None:
            raise error
        return value


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
