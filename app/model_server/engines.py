"""The three engines behind one interface. Each imports its library only if a model needs it.

Any number of threads and greenlets may call an engine at once. A call uses one thread, because a server scales by
workers; Wide is for calls that have the machine for themselves.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .manifest import Manifest, TensorSpec

# The most threads of a call that has the machine for itself, and the largest file that is loaded a second time for it.
WIDE_THREADS = 4
WIDE_BYTES = 64_000_000

# By the name of the input or output. Axis 0 is the batch; strings are object arrays of bytes.
Tensors = dict[str, np.ndarray]


class EngineError(RuntimeError):
    """The engine refused a call."""


class LoadError(EngineError):
    """The engine cannot load the model."""


class Engine(Protocol):
    """A loaded model."""

    def run(self, inputs: Tensors) -> Tensors:
        """Answer one batch.

        `inputs` has an array for each of the manifest's inputs, of its dtype and shape; the answer has one for each
        output. Raises EngineError if the engine refuses the call.
        """
        ...


class LiteRT:
    """LiteRT, TensorFlow Lite's successor. An interpreter serves one call at a time, so idle ones wait in a pool.

    The pool is a deque and not a thread-local: gevent makes those local to a greenlet, so every request would make an
    interpreter of its own.
    """

    def __init__(self, manifest: Manifest, folder: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._new: Callable[[], Any] = lambda: Interpreter(model_path=str(folder / manifest.file), num_threads=threads)
        interpreter = self._new()
        signature = interpreter.get_signature_runner(manifest.signature)
        inputs, outputs = signature.get_input_details(), signature.get_output_details()
        self._inputs = _indices(manifest.inputs, inputs)
        self._outputs = _indices(manifest.outputs, outputs)
        del signature  # while it lives, LiteRT refuses to resize
        self._idle: deque[tuple[Any, list[tuple[int, ...]]]] = deque([(interpreter, [])])

    def run(self, inputs: Tensors) -> Tensors:
        try:
            interpreter, shapes = self._idle.pop()
        except IndexError:
            interpreter, shapes = self._new(), []
        # A refused call leaves the interpreter in an undefined state: only a successful one returns it to the pool.
        wanted = [inputs[name].shape for name, _ in self._inputs]
        try:
            if wanted != shapes:
                for (_, index), shape in zip(self._inputs, wanted, strict=True):
                    interpreter.resize_tensor_input(index, shape)
                interpreter.allocate_tensors()
            for name, index in self._inputs:
                interpreter.set_tensor(index, inputs[name])
            interpreter.invoke()
            answer = {name: interpreter.get_tensor(index) for name, index in self._outputs}
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"LiteRT: {error}") from error
        self._idle.append((interpreter, wanted))
        return answer


def _indices(specs: Sequence[TensorSpec], details: dict[str, dict[str, Any]]) -> list[tuple[str, int]]:
    # A SavedModel's argument "a-in" is a_in to TensorFlow, but a-in to LiteRT.
    indices = {re.sub(r"\W", "_", name): detail["index"] for name, detail in details.items()}
    return [(spec.name, indices[re.sub(r"\W", "_", spec.engine_name)]) for spec in specs]


class OnnxRuntime:
    """ONNX Runtime. One session serves any number of threads."""

    def __init__(self, manifest: Manifest, folder: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / manifest.file), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [(spec.name, spec.engine_name) for spec in manifest.inputs]
        self._outputs = [spec.name for spec in manifest.outputs]
        self._fetch = [spec.engine_name for spec in manifest.outputs]

    def run(self, inputs: Tensors) -> Tensors:
        try:
            feeds = {engine_name: _as_text(inputs[name]) for name, engine_name in self._inputs}
            values = self._session.run(self._fetch, feeds)
        except Exception as error:  # its exceptions share no base but Exception
            raise EngineError(f"ONNX Runtime: {error}") from error
        return dict(zip(self._outputs, values, strict=True))


def _as_text(array: np.ndarray) -> np.ndarray:
    # Of an object that is not text, ONNX Runtime takes str(object): b"a" would become "b'a'".
    if array.dtype != object:
        return array
    return np.array([item.decode() for item in array.flat], object).reshape(array.shape)


class TensorFlow:
    """TensorFlow, calling a SavedModel's signature: for models that neither of the others takes.

    TensorFlow must be imported after the fork: a forked child hangs at its first operation. Its threads are set for the
    whole process, one for a call.
    """

    def __init__(self, manifest: Manifest, folder: Path, threads: int) -> None:
        tf = import_tensorflow()
        self._errors = tf.errors.OpError
        self._tensor = tf.constant
        self._model = tf.saved_model.load(str(folder / manifest.file))
        self._call = self._model.signatures[manifest.signature]
        self._inputs = [(spec.name, spec.engine_name) for spec in manifest.inputs]
        self._outputs = [(spec.name, spec.engine_name) for spec in manifest.outputs]

    def run(self, inputs: Tensors) -> Tensors:
        try:
            values = self._call(**{engine_name: self._tensor(inputs[name]) for name, engine_name in self._inputs})
            return {name: values[engine_name].numpy() for name, engine_name in self._outputs}
        except (self._errors, ValueError, TypeError) as error:
            raise EngineError(f"TensorFlow: {error}") from error


ENGINES: dict[str, Callable[[Manifest, Path, int], Engine]] = {
    "litert": LiteRT,
    "onnx": OnnxRuntime,
    "tensorflow": TensorFlow,
}


class Wide:
    """The compiled model in `folder`, loaded once more by the first call, with `threads` threads for each call."""

    def __init__(self, manifest: Manifest, folder: Path, threads: int) -> None:
        self.threads = threads
        self._load: Callable[[], Engine] = lambda: load_engine(manifest, folder, threads)
        self._engine: Engine | None = None
        self._failed = False

    @classmethod
    def of(cls, manifest: Manifest, folder: Path, cpus: int) -> Wide | None:
        """Return one for a server with `cpus`; None if the model gains nothing by it, or would take too much memory."""
        threads = min(cpus, WIDE_THREADS)
        if threads < 2 or manifest.engine == "tensorflow":
            return None
        file = folder / manifest.file
        return cls(manifest, folder, threads) if file.exists() and file.stat().st_size <= WIDE_BYTES else None

    def fits(self) -> bool:
        """Return whether that many CPUs have nothing to do, this thread's own included."""
        return not self._failed and self.threads <= (os.cpu_count() or 1) - running_threads() + 1

    def run(self, inputs: Tensors) -> Tensors:
        """Answer one batch, as Engine does. Raises LoadError if the model cannot be loaded; then it `fits` no more."""
        if self._engine is None:
            self._failed = True
            self._engine = self._load()
            self._failed = False
        return self._engine.run(inputs)


def running_threads(loadavg: Path = Path("/proc/loadavg")) -> int:
    """Return how many threads of the whole machine run or wait for a CPU at this moment, the caller's included."""
    try:
        return int(loadavg.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 2**31  # unknown: as if the machine were busy


def load_engine(manifest: Manifest, folder: Path, threads: int = 1) -> Engine:
    """Load the compiled model in `folder`, which has the manifest.json, with the engine it was compiled for.

    `threads` is how many a call uses.

    Raises LoadError if the engine's library is missing or refuses the file.
    """
    try:
        return ENGINES[manifest.engine](manifest, folder, threads)
    except ImportError as error:
        raise LoadError(
            f"{manifest.name} needs the engine {manifest.engine}, which is not installed ({error}). "
            f"Install requirements/{manifest.engine}.txt."
        ) from error
    except Exception as error:
        raise LoadError(f"{manifest.name}: {manifest.engine} cannot load {manifest.file}: {error}") from error


def import_tensorflow() -> Any:
    """Import TensorFlow without its start-up messages and without a search for GPUs; a call uses one thread."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass  # already set, by an earlier model in this process
    return tf
