"""Loads a model of any format that Keras ever wrote and turns it into a SavedModel with one signature.

Model files are not to be trusted. Load them in a container without a network. Even there, code from inside a file runs
only if the card allows it (allow_lambda, custom_objects).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..engines import Tensors, import_tensorflow
from ..manifest import TensorSpec
from . import CompileError
from .card import Card

SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Source:
    """A loaded model.

    `format` is "keras", "h5", "json+h5" or "saved_model". `call` is the model's own answer, by Keras or by the
    SavedModel's signature. Every engine's file is made from the folder `saved_model`. The specs' kind is "tensor".
    `layers` are the names of a Keras file's layer classes; None if they are not known.
    """

    format: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    call: Callable[[Tensors], Tensors]
    saved_model: Path
    signature: str = SIGNATURE
    layers: frozenset[str] | None = None


def load_source(card: Card, scratch: Path) -> Source:
    """Load the card's model, with temporary files below `scratch`. Raises CompileError."""
    if card.model.is_dir():
        return _load_saved_model(card.model)
    return _load_keras(card, scratch / "source")


# ---------------------------------------------------------------- Keras files


@dataclass(frozen=True)
class _Architecture:
    """What a Keras file says about itself, read before any of its code could run."""

    format: str
    config: Any
    keras_version: str

    @property
    def is_keras_3(self) -> bool:
        """Return whether Keras 3 wrote the file. Its to_json() writes no version, but the module of every class."""
        return self.keras_version.startswith("3") or (not self.keras_version and "module" in self.config)


def _load_keras(card: Card, folder: Path) -> Source:
    architecture = _read_architecture(card.model)
    _refuse_unsafe(card, architecture.config)
    import_tensorflow()
    custom = _custom_objects(card)
    # Keras 3 reads many files of Keras 2, but only tf_keras is Keras 2: each file is tried with its own Keras first.
    frameworks = ["keras", "tf_keras"] if architecture.is_keras_3 else ["tf_keras", "keras"]
    errors = []
    for name in frameworks:
        framework = importlib.import_module(name)
        try:
            model = _load_with(framework, card, architecture, custom)
            source = _export(framework, model, architecture.format, folder)
            return replace(source, layers=frozenset(item["class_name"] for item in _objects(architecture.config)))
        except CompileError:
            raise
        except Exception as error:  # whatever Keras raises, the other Keras may read the file
            errors.append(error)
    raise _load_error(card, architecture, set(custom), errors[0])


def _read_architecture(path: Path) -> _Architecture:
    head = path.open("rb").read(64)
    if head.startswith(b"version https://git-lfs"):
        raise CompileError(f"{path}: a Git LFS pointer, not the model. Run git lfs pull.")
    try:
        if head.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                version = json.loads(archive.read("metadata.json")).get("keras_version", "")
            return _Architecture("keras", config, str(version))
        if head.startswith(b"\x89HDF"):
            import h5py

            with h5py.File(path, "r") as file:
                config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
            if config is None:
                raise CompileError(
                    f"{path}: holds weights only. Save the whole model (model.save), or put its architecture "
                    "beside it as model.json (model.to_json()) and name this file in the card's field "
                    "weights."
                )
            return _Architecture("h5", json.loads(config), _string(version))
        if path.suffix == ".json":
            config = json.loads(path.read_text(encoding="utf-8"))
            return _Architecture("json+h5", config, str(config.get("keras_version", "")))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CompileError(f"{path}: damaged or not a Keras model ({_brief(error)}). Save it again.") from None
    raise CompileError(f"{path}: neither HDF5 nor a Keras archive, despite its name. Save it again with model.save.")


def _load_with(framework: ModuleType, card: Card, architecture: _Architecture, custom: dict[str, Any]) -> Any:
    options: dict[str, Any] = {"custom_objects": custom, "compile": False, "safe_mode": not card.allow_lambda}
    if architecture.format != "json+h5":
        # Keras trusts the suffix, which may be wrong; the format is known from the file's first bytes.
        suffix = ".keras" if architecture.format == "keras" else ".h5"
        if card.model.suffix == suffix:
            return framework.models.load_model(str(card.model), **options)
        with _renamed(card.model, suffix) as path:
            return framework.models.load_model(str(path), **options)
    with framework.utils.custom_object_scope(custom):
        model = framework.models.model_from_json(card.model.read_text(encoding="utf-8"))
    model.load_weights(str(card.weights))
    return model


@contextlib.contextmanager
def _renamed(path: Path, suffix: str) -> Iterator[Path]:
    """A symbolic link to `path` that ends in `suffix`."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{suffix}"
        link.symlink_to(path.resolve())
        yield link


def _custom_objects(card: Card) -> dict[str, Any]:
    """Return the classes and functions that the card's custom_objects file defines, by name."""
    if card.custom_objects is None:
        return {}
    name = f"custom_objects_of_{re.sub(r'[^0-9A-Za-z]', '_', card.name)}"
    spec = importlib.util.spec_from_file_location(name, card.custom_objects)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CompileError(
            f"{card.path}: custom_objects: importing {card.custom_objects.name} failed "
            f"({type(error).__name__}: {_brief(error)})."
        ) from error
    return {
        key: value
        for key, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == name
    }


# ---------------------------------------------------------------- errors that name the layer


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every serialised object of a configuration, outermost first."""
    if isinstance(config, dict):
        if "class_name" in config and "config" in config:
            yield config
        for key, value in config.items():
            if key not in ("compile_config", "training_config"):
                yield from _objects(value)
    elif isinstance(config, list):
        for value in config:
            yield from _objects(value)


def _layer_name(item: dict[str, Any]) -> str:
    config = item["config"]
    name = config.get("name") if isinstance(config, dict) else None
    return str(name or item.get("name") or "unnamed")


def _refuse_unsafe(card: Card, config: Any) -> None:
    for item in _objects(config):
        if item["class_name"] in ("Lambda", "__lambda__") and not card.allow_lambda:
            raise CompileError(
                f"{card.model}: layer {_layer_name(item)} is a Lambda: Python code inside the model's "
                f"file. Write a Layer class instead or, if you trust the file, set allow_lambda: true in {card.path}."
            )
        if isinstance(item["config"], dict) and item["config"].get("stateful") is True:
            raise CompileError(
                f"{card.model}: layer {_layer_name(item)} ({item['class_name']}) is stateful: one client's "
                "request would change the next one's answer. Build the model with stateful=False."
            )


def _load_error(card: Card, architecture: _Architecture, defined: set[str], error: Exception) -> CompileError:
    layers = {name for module in ("keras", "tf_keras") for name in dir(importlib.import_module(module).layers)}
    known = layers | {"Sequential", "Functional", "Model"}
    for item in _objects(architecture.config):
        name, module = str(item["class_name"]).split(">")[-1], item.get("module")
        foreign = not str(module).startswith("keras") if module else item.get("registered_name") or name not in known
        is_layer = isinstance(item["config"], dict) and "name" in item["config"]
        if foreign and is_layer and name not in known | defined:
            where = f"{card.custom_objects.name} does not define it" if card.custom_objects else "it is not Keras's own"
            return CompileError(
                f"{card.model}: layer {_layer_name(item)} is of class {name}, and {where}. Put the class "
                f"into a file beside the model and name it in {card.path}, field custom_objects (for "
                "example: layers.py)."
            )
    text = str(error)
    remedy = "Save it again with the Keras that trained it."
    if re.search(r"[Uu]nknown (activation|layer|object|initializer|regularizer|constraint)|[Cc]ould not locate", text):
        remedy = f"If it uses code of your own, name its file in {card.path}, field custom_objects."
    elif architecture.format == "json+h5":
        weights = card.weights.name if card.weights else "its weights file"
        remedy = f"Check that {weights} belongs to {card.model.name}."
    return CompileError(f"{card.model}: Keras cannot load it ({type(error).__name__}: {_brief(error)}). {remedy}")


def _brief(error: BaseException) -> str:
    """Return an error as one line of at most 240 characters; of Keras's nested errors, the innermost."""
    text = re.split(r"(?:Exception encountered|Error message|Original error message):", str(error))[-1]
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "…"


def _string(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# ---------------------------------------------------------------- from Keras to a SavedModel


def _export(framework: ModuleType, model: Any, file_format: str, folder: Path) -> Source:
    """Write `model` as a SavedModel. Its signature has one argument per input and returns a dict of the outputs."""
    tf = import_tensorflow()
    if not getattr(model, "inputs", None):
        model = _functional(framework, model)
    keras3 = framework.__name__ == "keras"
    struct = (
        model._inputs_struct if keras3 and hasattr(model, "_inputs_struct") else getattr(model, "_nested_inputs", None)
    )
    several = len(model.inputs) > 1

    def call(*tensors: Any) -> list[Any]:
        if struct is not None and (several or isinstance(struct, dict)):
            packed = tf.nest.pack_sequence_as(struct, tensors)
        else:
            packed = list(tensors) if several else tensors[0]
        return list(tf.nest.flatten(model(packed, training=False)))

    inputs = _specs(_input_names(model), model.inputs)
    outputs = _specs(_output_names(model), model.outputs)

    def serve(*tensors: Any) -> dict[str, Any]:
        return {spec.engine_name: value for spec, value in zip(outputs, call(*tensors), strict=True)}

    signature = [
        tf.TensorSpec([None, *(None if size < 0 else size for size in spec.shape[1:])], spec.dtype, spec.engine_name)
        for spec in inputs
    ]
    archive = framework.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(SIGNATURE, serve, input_signature=signature)
    archive.write_out(str(folder), **({"verbose": False} if keras3 else {}))

    def reference(tensors: Tensors) -> Tensors:
        values = call(*(tf.constant(tensors[spec.name]) for spec in inputs))
        return {spec.name: np.asarray(value) for spec, value in zip(outputs, values, strict=True)}

    return Source(file_format, inputs, outputs, reference, folder)


def _functional(framework: ModuleType, model: Any) -> Any:
    """Turn a model without declared inputs (a subclass) into a functional one, by the shape it was built with."""
    shape = (model.get_build_config() or {}).get("input_shape") if hasattr(model, "get_build_config") else None
    if not shape or not all(size is None or isinstance(size, int) for size in shape):
        raise CompileError(
            f"The model {model.name} has no declared input. Call it once on a tensor before you save it, or "
            "build it with keras.Input."
        )
    tensor = framework.Input(batch_shape=(None, *shape[1:]), name="input")
    return framework.Model(tensor, model(tensor))


def _input_names(model: Any) -> list[str]:
    names = getattr(model, "input_names", None)
    return list(names) if names else [tensor._keras_history.operation.name for tensor in model.inputs]


def _output_names(model: Any) -> list[str]:
    struct = getattr(model, "_outputs_struct", getattr(model, "_nested_outputs", None))
    if isinstance(struct, dict):
        return sorted(struct)
    names = getattr(model, "output_names", None)
    return list(names) if names else [tensor._keras_history.operation.name for tensor in model.outputs]


def _specs(names: list[str], tensors: list[Any]) -> list[TensorSpec]:
    """Return the tensors' specs: the model's own names, duplicates numbered, and engine names that are identifiers."""
    specs: list[TensorSpec] = []
    for name, tensor in zip(names, tensors, strict=True):
        name = _unique(name, {spec.name for spec in specs})
        engine_name = re.sub(r"\W", "_", name, flags=re.ASCII)
        engine_name = _unique(
            f"_{engine_name}" if engine_name[:1].isdigit() else engine_name, {s.engine_name for s in specs}
        )
        specs.append(TensorSpec(name, _dtype(tensor.dtype), _shape(tensor), engine_name, "tensor"))
    return specs


def _unique(name: str, taken: set[str]) -> str:
    number = 1
    candidate = name
    while candidate in taken:
        candidate = f"{name}_{(number := number + 1) - 1}"
    return candidate


def _shape(tensor: Any) -> tuple[int, ...]:
    """Return the tensor's shape with a free batch, whatever the file says: comparing needs batches of several sizes."""
    return (-1, *(-1 if size is None else int(size) for size in list(tensor.shape)[1:]))


def _dtype(dtype: Any) -> str:
    return str(getattr(dtype, "name", dtype))


# ---------------------------------------------------------------- SavedModel folders


# Operators that run Python or use files. No answer needs them, and loading a SavedModel may already run them.
UNSAFE = re.compile(r"(Eager)?PyFunc\w*|(Read|Write)File|MatchingFiles|(Save|Load)Dataset\w*|Save(Slices)?|PrintV2")


def _refuse_unsafe_operators(folder: Path) -> None:
    from google.protobuf import text_format
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    model = SavedModel()
    binary = folder / "saved_model.pb"
    try:
        if binary.exists():
            model.ParseFromString(binary.read_bytes())
        else:
            text_format.Parse((folder / "saved_model.pbtxt").read_text(encoding="utf-8"), model)
    except Exception as error:  # protobuf's DecodeError and ParseError share no base
        raise CompileError(f"{folder}: damaged or not a SavedModel ({_brief(error)}). Export it again.") from None
    for graph in (meta.graph_def for meta in model.meta_graphs):
        for node in (
            *graph.node,
            *(node for function in graph.library.function for node in function.node_def),
        ):
            if UNSAFE.fullmatch(node.op):
                raise CompileError(
                    f"{folder}: the operator {node.op} ({node.name}) runs code or uses files. Export the "
                    "model without it."
                )


def _load_saved_model(folder: Path) -> Source:
    tf = import_tensorflow()
    _refuse_unsafe_operators(folder)
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:
        raise CompileError(
            f"{folder}: TensorFlow cannot load this SavedModel ({_brief(error)}). Export it again."
        ) from None
    names = sorted(loaded.signatures)
    if SIGNATURE in names:
        name = SIGNATURE
    elif len(names) == 1:
        name = names[0]
    else:
        found = f"only {', '.join(names)}" if names else "none"
        raise CompileError(f"{folder}: no signature {SIGNATURE} ({found}). Export the model again with that signature.")
    function = loaded.signatures[name]
    arguments = function.structured_input_signature[1]
    results = function.structured_outputs
    inputs = _signature_specs(folder, arguments)
    outputs = _signature_specs(folder, results)

    def reference(tensors: Tensors) -> Tensors:
        assert loaded  # the signature alone does not keep its variables alive
        values = function(**{spec.engine_name: tf.constant(tensors[spec.name]) for spec in inputs})
        return {spec.name: np.asarray(values[spec.engine_name]) for spec in outputs}

    return Source("saved_model", inputs, outputs, reference, folder, name)


def _signature_specs(folder: Path, tensors: dict[str, Any]) -> list[TensorSpec]:
    specs = []
    for key in sorted(tensors):
        tensor = tensors[key]
        if tensor.shape.rank is None or tensor.shape.rank == 0:
            raise CompileError(f"{folder}: {key} has no batch axis. Export the model with shapes [batch, …].")
        name = re.sub(r"^serving_default_|:\d+$", "", key)
        specs.append(TensorSpec(name, _dtype(tensor.dtype), _shape(tensor), key, "tensor"))
    return specs
