"""Converts a SavedModel for an engine and proves that the engine answers as the model itself does."""

from __future__ import annotations

import gc
import itertools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engines import Engine, EngineError, Tensors, import_tensorflow
from ..manifest import InputSpec, TensorSpec
from . import CompileError
from .sources import Source

# The largest difference from the model's own answer, relative to one plus the output's largest value.
TOLERANCE = 1e-4
# What random input has for a size that the model leaves free, other than the batch. If the card gives a size, random
# input has that, and then twice that.
FREE_SIZES = (16, 24)


# ---------------------------------------------------------------- conversion


def to_litert(source: Source, path: Path) -> None:
    """Write a .tflite file with LiteRT's own operators only, because the server's LiteRT has no others."""
    tf = import_tensorflow()
    converter = tf.lite.TFLiteConverter.from_saved_model(str(source.saved_model), signature_keys=[source.signature])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.experimental_enable_resource_variables = True
    path.write_bytes(converter.convert())


def to_onnx(source: Source, path: Path) -> None:
    """Write an .onnx file."""
    tf = import_tensorflow()
    import tf2onnx
    from keras.src.export.tf2onnx_lib import patch_tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    patch_tf2onnx()  # tf2onnx 1.17 and NumPy 2
    _number_nodes(tf2onnx.graph.Node)
    _drop_copies(tf2onnx.optimizer.optimizer_base.GraphOptimizerBase)
    loaded = tf.saved_model.load(str(source.saved_model))
    function = loaded.signatures[source.signature]
    arguments = function.structured_input_signature[1]
    names = [spec.engine_name for spec in source.inputs]

    def serve(*tensors: object) -> object:
        return function(**dict(zip(names, tensors, strict=True)))

    signature = [tf.TensorSpec(arguments[name].shape, arguments[name].dtype, name) for name in names]
    concrete = tf.function(serve, input_signature=signature).get_concrete_function()
    # tf2onnx.convert.from_function takes the constants that a layer keeps, such as a Normalization's mean, for inputs.
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
    inputs = {tensor.name: name for tensor, name in zip(concrete.inputs, names, strict=False)}
    outputs = {tensor.name: name for name, tensor in concrete.structured_outputs.items()}
    tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(add_shapes=True),
        input_names=list(inputs),
        output_names=list(outputs),
        tensors_to_rename=inputs | outputs,
        output_path=str(path),
    )


def _number_nodes(node: Any) -> None:
    """Make tf2onnx deterministic: it iterates over sets of nodes, which Python would order by address."""
    if "__hash__" not in vars(node):
        create, count = node.__init__, itertools.count()

        def numbered(self: Any, *args: Any, **kwargs: Any) -> None:
            self._number = next(count)
            create(self, *args, **kwargs)

        node.__init__ = numbered
        node.__hash__ = lambda self: self._number


def _drop_copies(optimizer: Any) -> None:
    """Free tf2onnx's copies of the model, one for each of its optimizers: they are cycles of few but large objects."""
    gc.freeze()  # what is there already is not looked through each time
    if optimizer.optimize.__module__ != __name__:
        optimize = optimizer.optimize

        def collected(self: Any, *args: Any) -> Any:
            gc.collect()
            return optimize(self, *args)

        optimizer.optimize = collected


def to_tensorflow(source: Source, path: Path) -> None:
    """Write a SavedModel folder, without the fingerprint, which has a random id in it."""
    shutil.copytree(source.saved_model, path, ignore=shutil.ignore_patterns("fingerprint.pb", "keras_metadata.pb"))


@dataclass(frozen=True)
class Candidate:
    """An engine to try: its name in manifests and for people, its file's name, and the function that writes that.

    A `last_resort` is tried only if no other engine can serve the model, or if the card names it.
    """

    engine: str
    title: str
    file: str
    convert: Callable[[Source, Path], None]
    last_resort: bool = False


# In the order of preference, where none is clearly faster: by memory and by what the engine adds to the image.
CANDIDATES = (
    Candidate("litert", "LiteRT", "model.tflite", to_litert),
    Candidate("onnx", "ONNX Runtime", "model.onnx", to_onnx),
    Candidate("tensorflow", "TensorFlow", "saved_model", to_tensorflow, last_resort=True),
)


def reason(error: BaseException) -> str:
    """Return the line of an engine's or converter's error that says why, at most 160 characters of it."""
    text = str(error.__cause__ or error).strip() or type(error).__name__
    telling = re.search(r"'tf\.\w+' op .*|(?:Flex|Custom) ops:.*|.*(?:not supported|unsupported).*", text)
    line = (telling[0] if telling else text).strip().splitlines()[0]
    return line if len(line) <= 160 else line[:157] + "…"


# ---------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Probe:
    """A question for each engine, with the model's own answer."""

    name: str
    inputs: Tensors
    answer: Tensors


def make_probes(source: Source, inputs: tuple[InputSpec, ...], examples: dict[str, Tensors]) -> list[Probe]:
    """Ask the model the card's examples, and seeded random input in batches of 1, 3 and 2.

    Random input to which the model itself answers NaN or infinity proves nothing and is left out. Raises CompileError
    if the model fails on an example or answers NaN to it, or if no random batch of several rows is left.
    """
    probes = []
    for name, tensors in examples.items():
        try:
            answer = source.call(tensors)
        except Exception as error:
            raise CompileError(f"example {name}: the model itself refuses this input ({reason(error)}).") from None
        if not _finite(answer):
            raise CompileError(f"example {name}: the model itself answers NaN or infinity. Its weights are broken.")
        probes.append(Probe(f"example {name}", tensors, answer))
    rng = np.random.default_rng(0)
    failures: list[str] = []
    left = 0
    has_free_sizes = any(-1 in spec.shape[1:] for spec in inputs)
    for free in FREE_SIZES if has_free_sizes else FREE_SIZES[:1]:
        for batch in (1, 3, 2):
            tensors = {spec.name: _random(rng, spec, batch, free, examples) for spec in inputs}
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
            name = f"random input in a batch of {batch}"
            try:
                answer = source.call(tensors)
            except Exception as error:
                failures.append(f"{shapes}: {reason(error)}")
                if not probes[len(examples) :] and any(spec.row_shape for spec in inputs):
                    raise CompileError(
                        f"the model itself refuses the shape that the card gives an input ({failures[0]}). Write a "
                        "shape that it takes."
                    ) from None
                continue
            _check_batch(answer, batch)
            if _finite(answer):
                probes.append(Probe(name, tensors, answer))
                left += batch > 1
            else:
                failures.append(f"{shapes}: NaN or infinity")
    if not left:
        sizes = "if its free sizes must be larger, give the input a shape in the card; " if has_free_sizes else ""
        raise CompileError(
            f"the model itself gives no usable answer to several random rows ({failures[0]}), so no engine "
            f"could be compared with it. If it takes only certain input, give examples in the card; {sizes}if its "
            "batch size is fixed, build it with a free one (None); if it answers NaN, its weights are broken."
        )
    return probes


def _check_batch(answer: Tensors, batch: int) -> None:
    for name, value in answer.items():
        if value.ndim == 0 or value.shape[0] != batch:
            raise CompileError(
                f"output {name}: {batch} rows in, shape {list(value.shape)} out. Build the model so that "
                "each output begins with the batch axis and has one answer per row."
            )


def _random(
    rng: np.random.Generator, spec: InputSpec, batch: int, free: int, examples: dict[str, Tensors]
) -> np.ndarray:
    """Return random input like what clients will send: pixels in the card's range, or numbers like the examples'."""
    samples = [tensors[spec.name] for tensors in examples.values()]
    like = samples[0].shape if samples else spec.shape
    shape = [batch]
    first = free == FREE_SIZES[0]
    for size, seen, given in zip(spec.shape[1:], like[1:], spec.row_shape or like[1:], strict=True):
        if size < 0 and spec.row_shape:
            size = given if first else 2 * given
        elif size < 0:
            size = seen if seen >= 0 and first else free
        shape.append(size)
    if spec.dtype == "string":
        words = [word for sample in samples for word in sample.ravel()] or ["", "a", "slipway"]
        return np.array(rng.choice(np.array(words, dtype=object), shape), dtype=object)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if spec.kind == "image":
        return (rng.integers(0, 256, shape) * spec.scale + spec.offset).astype(dtype)
    if dtype.kind in "iu":
        low, high = (min(s.min() for s in samples), max(s.max() for s in samples)) if samples else (0, 1)
        return rng.integers(int(low), int(high) + 1, shape).astype(dtype)
    noise = rng.standard_normal(shape)
    if samples and -1 not in spec.shape[1:]:
        rows = np.concatenate(samples)
        noise = rows[rng.integers(0, len(rows), batch)] * (1 + 0.1 * noise)
    return noise.astype(dtype)


def _finite(answer: Tensors) -> bool:
    return all(np.isfinite(value).all() for value in answer.values() if value.dtype.kind in "fc")


def compare(engine: Engine, probes: list[Probe], outputs: tuple[TensorSpec, ...]) -> float:
    """Return the largest difference between the engine's answers and the model's own.

    Raises EngineError if the engine refuses a probe, answers in another shape or with NaN, or differs by more than
    TOLERANCE (outputs of half precision: four steps of that; integers: 0).
    """
    largest = 0.0
    for probe in probes:
        answer = engine.run(probe.inputs)
        for spec in outputs:
            ours, theirs = answer[spec.name], probe.answer[spec.name]
            if ours.shape != theirs.shape:
                raise EngineError(f"{probe.name}: {spec.name} has shape {list(ours.shape)}, not {list(theirs.shape)}")
            if theirs.dtype.kind not in "fiu":
                if not np.array_equal(ours, theirs):
                    raise EngineError(f"{probe.name}: {spec.name} differs from the model's answer")
                continue
            wide, own = ours.astype(np.float64), theirs.astype(np.float64)
            if not np.isfinite(wide).all():
                raise EngineError(f"{probe.name}: {spec.name} is NaN or infinite where the model's answer is not")
            difference = float(np.abs(wide - own).max(initial=0.0))
            unit = max(TOLERANCE, 4 * float(np.finfo(theirs.dtype).eps)) if theirs.dtype.kind == "f" else 0.0
            if difference > unit * (1 + float(np.abs(own).max(initial=0.0))):
                raise EngineError(f"{probe.name}: {spec.name} is off by {difference:.2g}")
            largest = max(largest, difference)
    return largest
