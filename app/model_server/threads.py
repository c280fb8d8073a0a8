"""How a worker process does what takes long: on threads or in parts, while its event loop goes on serving."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent.hub import Hub, Waiter
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


class _Turns:
    """The greenlets that wait for their next turn, and the event loop's watchers that give it to them."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._waiting: list[Waiter] = []
        self._look = hub.loop.check()  # runs after the loop has looked
        self._hurry = hub.loop.idle()  # else the loop would wait for something to come in

    def wait(self) -> None:
        if not self._waiting:
            self._look.start(self._wake)
            self._hurry.start(lambda: None)
        waiter = Waiter(self.hub)
        self._waiting.append(waiter)
        waiter.get()

    def _wake(self) -> None:
        self._look.stop()
        self._hurry.stop()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.switch(None)


_turns: _Turns | None = None


def give_way() -> None:
    """Let the event loop look for what has come in meanwhile, and the other greenlets have their turn.

    gevent.sleep(0) does not do the first: of greenlets that wait for nothing else, gevent runs up to 50 before.
    """
    global _turns
    hub = gevent.get_hub()
    if _turns is None or _turns.hub is not hub:  # a forked process has a hub of its own
        _turns = _Turns(hub)
    _turns.wait()


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
