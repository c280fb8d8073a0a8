"""The models that a worker process serves, each with its engine."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gevent.lock import BoundedSemaphore

from . import inputs
from .answers import check_expected, decode, verdict
from .calls import Calls, Overloaded
from .engines import Engine, EngineError, LoadError, Tensors, Wide, load_engine
from .inputs import InputError, Limits
from .manifest import CANARY, STABLE, Manifest, read_versions
from .metrics import ModelMetrics
from .records import Record, current
from .settings import usable_cpus
from .threads import ProcessLock, Threads

T = TypeVar("T")

log = logging.getLogger(__name__)

BUSY_SECONDS = 30
# The labels of so many scores are not found on the event loop.
MANY_SCORES = 10_000


class NotFound(LookupError):
    """There is no such model, version or example; the message says what there is."""


class Unavailable(RuntimeError):
    """The model cannot answer in this process; the message says why."""


class Model:
    """A compiled model, or one version of it: `part` says which (cats, cats.2).

    Its engine is loaded at the first use: engines do not survive a fork.
    """

    def __init__(self, manifest: Manifest, part: str, folder: Path, limits: Limits, queue: int) -> None:
        self.manifest = manifest
        self.part = part
        self.folder = folder
        self._limits = limits
        # TensorFlow gains most by batches, and they form while a call runs.
        batches = manifest.engine == "tensorflow"
        self._metrics = ModelMetrics(manifest.name, manifest.version)
        self._calls = Calls(part, self._metrics, threads=1 if batches else 2, queue=queue, batches=batches)
        self._wide = Wide.of(manifest, folder, usable_cpus())
        self._decoding = Threads(1)
        self._loading = BoundedSemaphore(1)
        self._engine: Engine | None = None
        self._load_error: EngineError | None = None

    def from_upload(self, data: bytes) -> Tensors:
        """Answer a picture file. Raises as from_tensors does."""
        return self.from_tensors(inputs.encode_upload(self.manifest, data, self._limits))

    def from_rows(self, rows: Any) -> Tensors:
        """Answer a list or an array of rows, as JSON has them, in one batch. Raises as from_tensors does."""
        return self.from_tensors(inputs.encode_rows(self.manifest, rows, self._limits))

    def from_tensors(self, tensors: Tensors, record: Record | None = None) -> Tensors:
        """Answer a batch of arrays by input name with arrays by output name, all of shape [batch, …].

        It is noted in `record`, by default that of the current request. Raises InputError, Unavailable, Overloaded,
        TooLate or Abandoned.
        """
        counts = {array.shape[0] for array in tensors.values() if array.ndim}
        if len(counts) > 1:
            found = ", ".join(map(str, sorted(counts)))
            raise InputError(f"all inputs need the same number of rows; they have {found}")
        record = record or current()
        record.rows = max(counts, default=1)
        engine = self._engine or self.engine
        try:
            return self._calls.run(engine.run, tensors, record.rows, record, self._wide)
        except LoadError as error:
            raise Unavailable(f"{self.part} cannot be loaded: {_first_line(error)}") from error
        except EngineError as error:
            log.warning("%s refused a call: %s", self.part, error)
            raise InputError(f"{self.part} cannot take this: {_first_line(error)}") from error

    def answers(self, outputs: Tensors, count: int) -> list[dict[str, Any]]:
        """Return the answers to a batch of `count` rows, for people."""
        return self._decoded(outputs, lambda: [decode(self.manifest, outputs, row) for row in range(count)])

    def verdict(self, outputs: Tensors) -> Any:
        """Return the answer to the first row in short, as answers.verdict does."""
        return self._decoded(outputs, lambda: verdict(self.manifest, outputs))

    def _decoded(self, outputs: Tensors, read: Callable[[], T]) -> T:
        """Return read(), from a thread if there are pictures to encode or the labels of many steps to find."""
        slow = any(
            spec.kind == "image" or (spec.kind != "numbers" and outputs[spec.name].size > MANY_SCORES)
            for spec in self.manifest.outputs
        )
        return self._decoding.run(read) if slow else read()

    @property
    def engine(self) -> Engine:
        """The engine, loaded by the first use. Raises Unavailable, then and from then on, if it cannot be loaded."""
        with self._loading:
            if self._engine is None and self._load_error is None:
                try:
                    with self._metrics.load_seconds.time():
                        self._engine = load_engine(self.manifest, self.folder)
                except EngineError as error:
                    log.error("%s", error)
                    self._load_error = error
            if self._engine is None:
                raise Unavailable(f"{self.part} cannot be loaded: {_first_line(self._load_error)}")
            return self._engine

    def check(self, all_examples: bool = True) -> str | None:
        """Ask the examples of the card, or only the first; return None if the answers are right, else the first reason.

        A model without examples is asked with zeros: any answer is right. A busy model that answered a moment ago is
        not asked: the question would wait behind its clients'.
        """
        if self._calls.busy and time.monotonic() - self._calls.last_answer < BUSY_SECONDS:
            return None
        examples = self.manifest.examples if all_examples else self.manifest.examples[:1]
        try:
            if not examples:
                self.from_tensors(inputs.zeros(self.manifest), Record())
            for example in examples:
                outputs = self.from_tensors(inputs.encode_example(self.manifest, example, self.folder), Record())
                if reason := check_expected(self.manifest, outputs, example):
                    return reason
        except (InputError, Unavailable, Overloaded) as error:
            return str(error)
        except Exception as error:
            log.exception("%s: its examples cannot be asked", self.part)
            return f"{type(error).__name__}: {_first_line(error)}"
        return None


class Catalogue:
    """Every model in the folder of compiled models, ordered by name. Raises ManifestError if there is none.

    `draw` decides by a number from 0 to below 1 which requests the canary gets.
    """

    def __init__(self, folder: Path, max_pixels: int, queue: int, draw: Callable[[], float] = random.random) -> None:
        self._checked = False
        self._draw = draw
        # One large picture at a time: decoding takes much memory.
        limits = Limits(max_pixels, ProcessLock(), Threads(1).run)
        self._about = {about.name: about for about in read_versions(folder)}
        self._models = {
            name: {
                manifest.version: Model(
                    manifest, about.part(manifest.version), about.folder_of(manifest.version), limits, queue
                )
                for manifest in about.manifests
            }
            for name, about in self._about.items()
        }

    def __iter__(self) -> Iterator[Model]:
        """Iterate over the default version of each model."""
        return (self._models[name][about.labels[STABLE]] for name, about in self._about.items())

    def get(self, name: str, version: str | None = None, label: str | None = None) -> Model:
        """Return the model of that name in that version, or in that which has the label, else in its default version.

        Raises NotFound.
        """
        if name not in self._models:
            names = self.names()
            raise NotFound(f"there is no model {name}{inputs.nearest(name, names)}; the models are {', '.join(names)}")
        versions, labels = self._models[name], self._about[name].labels
        if version is None:
            version = labels.get(label or STABLE)
            if version is None:
                raise NotFound(f"the model {name} has no label {label}; its labels are {', '.join(labels)}")
        if version not in versions:
            raise NotFound(f"the model {name} has no version {version}; its versions are {', '.join(versions)}")
        return versions[version]

    def choose(self, name: str, version: str | None = None, label: str | None = None) -> Model:
        """Return the model that answers this request, and note it in the request's record.

        It is that of `get`, but the canary's share of the requests that name no version goes to the canary. Raises
        NotFound.
        """
        if version is None and label is None and name in self._about:
            share = self._about[name].canary_share
            label = CANARY if share and self._draw() < share else None
        model = self.get(name, version, label)
        current().models.append((name, model.manifest.version))
        return model

    def names(self) -> list[str]:
        return list(self._models)

    def versions(self, name: str) -> dict[str, Model]:
        """Return the model of that name in each of its versions, the lowest first; {} if there is no such model."""
        return self._models.get(name, {})

    def labels(self, name: str) -> dict[str, str]:
        """Return the version of each label of the model of that name."""
        return self._about[name].labels

    def canary_share(self, name: str) -> float:
        return self._about[name].canary_share

    def check(self) -> dict[str, str]:
        """Ask every version of every model its examples; return the reason of each that is not right, by name.

        Once all were right in this process, one example per version is asked: less work on the same path.
        """
        reasons = {
            model.part: model.check(not self._checked)
            for versions in self._models.values()
            for model in versions.values()
        }
        self._checked = self._checked or not any(reasons.values())
        return {name: reason for name, reason in reasons.items() if reason}


def _first_line(error: BaseException | None) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:199] + "…"
