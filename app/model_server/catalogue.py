"""The models of the bundle, each with its engine, in a worker process."""

from __future__ import annotations

import fcntl
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import gevent
import numpy as np
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from . import inputs
from .answers import check_expected
from .bundle import Manifest, read_bundle
from .engines import Engine, EngineError, load_engine
from .inputs import InputError, Limits, Tensors

INLINE_SECONDS = 0.002
THREADS = 2

log = logging.getLogger(__name__)
T = TypeVar("T")


class Unavailable(RuntimeError):
    """The model cannot answer in this process now; the message says why."""


class Turn:
    """A lock between the processes forked after it was made; it ends with its holder, however that ends.

    A large picture takes up to 200 MB while it is decoded, which a container has once and not once a worker.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(dir="/dev/shm")  # noqa: SIM115 - open as long as the lock; the root may be read-only

    def __enter__(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *raised: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)


class Threads:
    """The threads of a worker process for slow calls; greenlets wait for them, and the loop goes on."""

    def __init__(self) -> None:
        self._pool: ThreadPool | None = None
        self._decoding = BoundedSemaphore(1)

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call the function in a thread; threads are made at the first call, after the fork."""
        if self._pool is None:
            self._pool = ThreadPool(THREADS, hub=gevent.get_hub())
        value: T
        value, error = self._pool.apply(_caught, (function, args))
        if error is not None:
            raise error
        return value

    def decode(self, function: Callable[..., T], *args: Any) -> T:
        """The same for pictures, one at a time."""
        with self._decoding:
            return self.run(function, *args)


class Model:
    """One model of the bundle. Its engine is loaded at its first use: engines do not survive a fork."""

    def __init__(self, manifest: Manifest, folder: Path, limits: Limits, threads: Threads) -> None:
        self.manifest = manifest
        self.folder = folder
        self._limits = limits
        self._threads = threads
        self._loading = BoundedSemaphore(1)
        self._engine: Engine | None = None
        self._refused: EngineError | None = None
        self._seconds_a_row = math.inf
        self._decodes = any(spec.kind == "image" for spec in manifest.inputs)

    def from_upload(self, data: bytes) -> Tensors:
        """Answer a picture. Raises InputError or Unavailable, as the next two do."""
        return self.from_tensors(self._encoded(inputs.encode_upload, data, self._limits))

    def from_rows(self, rows: Any) -> Tensors:
        """Answer a list of rows in one batch."""
        return self.from_tensors(self._encoded(inputs.encode_rows, rows, self._limits))

    def from_tensors(self, tensors: Tensors) -> Tensors:
        """Answer a batch: input name → array to output name → array."""
        rows = {array.shape[0] for array in tensors.values() if array.ndim}
        if len(rows) > 1:
            counts = ", ".join(map(str, sorted(rows)))
            raise InputError(f"all inputs need the same number of rows; they have {counts}")
        engine = self.engine
        # A long call leaves the loop free for the other clients; a short one costs less than the hop.
        run = _directly if self._seconds_a_row * max(rows, default=1) < INLINE_SECONDS else self._threads.run
        try:
            outputs: Tensors = run(engine.run, tensors)
        except EngineError as error:
            log.warning("%s refused a call: %s", self.manifest.name, error)
            raise InputError(f"{self.manifest.name} cannot take this: {_first_line(error)}") from error
        return outputs

    @property
    def engine(self) -> Engine:
        """The engine, loaded now if it wasn't. Raises Unavailable, from then on, where it cannot be."""
        with self._loading:
            if self._engine is None and self._refused is None:
                try:
                    self._engine = load_engine(self.manifest, self.folder)
                except EngineError as error:
                    log.error("%s", error)
                    self._refused = error
            if self._engine is None:
                raise Unavailable(f"{self.manifest.name} cannot be loaded: {_first_line(self._refused)}")
            return self._engine

    def check(self, everything: bool = True) -> str | None:
        """Ask the card's examples, or only the first; None if all answers are right, else the first reason.

        A model without examples is asked with zeros: it has to answer, whatever the answer.
        """
        examples = self.manifest.examples if everything else self.manifest.examples[:1]
        try:
            if not examples:
                self._timed(inputs.zeros(self.manifest))
            for example in examples:
                outputs = self._timed(self._encoded(inputs.encode_example, example, self.folder))
                if reason := check_expected(self.manifest, outputs, example):
                    return reason
        except (InputError, Unavailable) as error:
            return str(error)
        except Exception as error:
            log.exception("%s: its examples cannot be asked", self.manifest.name)
            return f"{type(error).__name__}: {_first_line(error)}"
        return None

    def _encoded(self, encode: Callable[..., Tensors], *args: Any) -> Tensors:
        run = self._threads.decode if self._decodes else _directly
        return run(encode, self.manifest, *args)

    def _timed(self, tensors: Tensors) -> Tensors:
        start = time.perf_counter()
        outputs = self.from_tensors(tensors)
        self._seconds_a_row = min(self._seconds_a_row, time.perf_counter() - start)
        return outputs


class Catalogue:
    """Every model of the bundle, in the order of their names. Raises BundleError where there is none."""

    def __init__(self, bundle: Path, max_pixels: int) -> None:
        self._checked = False
        limits, threads = Limits(max_pixels, Turn()), Threads()
        self._models = {
            manifest.name: Model(manifest, bundle / manifest.name, limits, threads) for manifest in read_bundle(bundle)
        }

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def get(self, name: str) -> Model | None:
        return self._models.get(name)

    def names(self) -> list[str]:
        return list(self._models)

    def check(self) -> dict[str, str]:
        """Ask every model for predictions; the reasons of those that are not right, by name.

        All examples until all were right once in this process, then one a model: the same path, less work.
        """
        reasons = {model.manifest.name: model.check(not self._checked) for model in self}
        self._checked = self._checked or not any(reasons.values())
        return {name: reason for name, reason in reasons.items() if reason}


def _caught(function: Callable[..., T], args: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """The pool prints a traceback of all that is raised in it, clients' mistakes included: raise nothing."""
    try:
        return function(*args), None
    except Exception as error:
        return None, error


def _directly(function: Callable[..., T], *args: Any) -> T:
    return function(*args)


def _first_line(error: BaseException | None) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:199] + "…"


def finite(outputs: Tensors) -> bool:
    """Whether every number is one that strict JSON can write."""
    return all(bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f")
