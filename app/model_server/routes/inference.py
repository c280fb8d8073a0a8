"""The Open Inference Protocol, version 2, which KServe, Triton and MLServer speak: JSON and binary tensors.

Sources: https://github.com/kserve/open-inference-protocol and, for binary tensors and the index of models, Triton's
docs/protocol; the code of Triton, tritonclient and KServe where they differ.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flask import Blueprint, Request, Response, request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from .. import __version__
from ..arrays import parse_tensors
from ..bodies import json_response, parse_json, read_body
from ..catalogue import Catalogue, Model
from ..engines import Tensors
from ..inputs import InputError, fits, nearest, shape_text, to_tensor
from ..manifest import InputSpec, Manifest, OutputSpec, TensorSpec
from ..requests import JSON_LENGTH_HEADER
from ..threads import give_way

DATATYPES = {
    "bool": "BOOL",
    "string": "BYTES",
    **{f"{kind}{bits}": f"{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}
PLATFORMS = {"litert": "litert_tflite", "onnx": "onnxruntime_onnx", "tensorflow": "tensorflow_savedmodel"}

# zlib's names for the containers. HTTP's deflate is a zlib stream.
ENCODINGS = {"gzip": 31, "deflate": 15}

# How much is done before other greenlets get a turn: bytes to decompress, elements of a BYTES tensor to read.
SLICE = 16384
TURN = 4096


@dataclass(frozen=True)
class Question:
    """A request to infer: its inputs, and the outputs that it wants, each with whether it is to be binary."""

    tensors: Tensors
    outputs: list[tuple[OutputSpec, bool]]
    id: str | None = None


def inference(catalogue: Catalogue) -> Blueprint:
    """Return the routes."""
    blueprint = Blueprint("inference", __name__, url_prefix="/v2")

    @blueprint.get("")
    def server() -> Response:
        extensions = ["binary_tensor_data", "model_repository"]
        return json_response({"name": "slipway", "version": __version__, "extensions": extensions})

    @blueprint.get("/health/live")
    def live() -> Response:
        return json_response({"live": True})

    @blueprint.get("/health/ready")
    def ready() -> Response:
        return _readiness({"ready": True}, catalogue.check())

    @blueprint.get("/models/<name>")
    @blueprint.get("/models/<name>/versions/<version>")
    def metadata(name: str, version: str | None = None) -> Response:
        manifest = catalogue.get(name, version).manifest
        return json_response(
            {
                "name": name,
                "versions": list(catalogue.versions(name)),
                "platform": PLATFORMS.get(manifest.engine, manifest.engine),
                "inputs": [_described(spec) for spec in manifest.inputs],
                "outputs": [_described(spec) for spec in manifest.outputs],
            }
        )

    @blueprint.get("/models/<name>/ready")
    @blueprint.get("/models/<name>/versions/<version>/ready")
    def model_ready(name: str, version: str | None = None) -> Response:
        reason = catalogue.get(name, version).check(all_examples=False)
        return _readiness({"name": name, "ready": True}, {name: reason} if reason else {})

    @blueprint.post("/models/<name>/infer")
    @blueprint.post("/models/<name>/versions/<version>/infer")
    def infer(name: str, version: str | None = None) -> Response:
        model = catalogue.choose(name, version)
        question = _question(model.manifest, request)
        return _answer(model, question, model.from_tensors(question.tensors))

    @blueprint.post("/repository/index")
    def index() -> Response:
        body = read_body(request)
        only_ready = _flag(parse_json(body) if body else {}, "ready", "")
        models = [_indexed(model) for name in catalogue.names() for model in catalogue.versions(name).values()]
        return json_response([model for model in models if model["state"] == "READY" or not only_ready])

    @blueprint.post("/repository/models/<name>/<any(load,unload):verb>")
    def change(name: str, verb: str) -> Response:
        raise InputError(f"clients cannot {verb} a model; the models of this server change with a deploy")

    return blueprint


def _readiness(ready: dict[str, Any], reasons: dict[str, str]) -> Response:
    if not reasons:
        return json_response(ready)
    text = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return json_response({"error": f"not ready: {text}"}, 503)


def _indexed(model: Model) -> dict[str, str]:
    reason = model.check(all_examples=False)
    state = "UNAVAILABLE" if reason else "READY"
    return {"name": model.manifest.name, "version": model.manifest.version, "state": state, "reason": reason or ""}


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": spec.shape}


# ---------------------------------------------------------------- requests


def _question(manifest: Manifest, request: Request) -> Question:
    """Read the request: JSON, JSON and then binary tensors, or, with a header of 0, nothing but the only input."""
    body = _decoded(request)
    header = request.headers.get(JSON_LENGTH_HEADER, str(len(body)))
    if not re.fullmatch(r"[0-9]{1,18}", header, re.ASCII) or int(header) > len(body):
        raise InputError(f"{JSON_LENGTH_HEADER} is {header[:40]}; send the length of the JSON, 0 to {len(body)}")
    start = int(header)
    if start == 0 and body:
        return Question(_raw(manifest, body), [(spec, True) for spec in manifest.outputs])
    asked = parse_json(bytes(body[:start]), parse_tensors)
    name = asked.get("id")
    if not isinstance(name, str | None):
        raise InputError("id must be a text")
    parameters = _parameters(asked, "")
    if parameters.get("sequence_id"):
        raise InputError("sequence_id: the models of this server keep no state between requests; leave it out")
    outputs = _outputs(manifest, asked.get("outputs"), _flag(parameters, "binary_data_output", ""))
    return Question(_inputs(manifest, asked.get("inputs"), body, start), outputs, name)


def _decoded(request: Request) -> bytes | bytearray:
    """Return the body, decompressed; a decompressed body has the same limit as any other."""
    body = read_body(request)
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in ENCODINGS:
        raise UnsupportedMediaType(f"Content-Encoding: {encoding[:40]}; send {', '.join(ENCODINGS)}, or leave it out")
    limit = request.max_content_length or len(body) * 1032  # deflate's best ratio
    stream, decoded = zlib.decompressobj(ENCODINGS[encoding]), bytearray()
    try:
        for start in range(0, len(body), SLICE):
            decoded += stream.decompress(body[start : start + SLICE], limit - len(decoded) + 1)
            if len(decoded) > limit:
                raise RequestEntityTooLarge
            give_way()
    except zlib.error as error:
        raise InputError(f"the body is not {encoding}, as its Content-Encoding says: {error}") from None
    if not stream.eof or stream.unused_data:
        raise InputError(f"the body is {encoding}, but {'has more after its end' if stream.eof else 'ends too early'}")
    return decoded


def _inputs(manifest: Manifest, given: Any, body: bytes | bytearray, start: int) -> Tensors:
    """Return the model's inputs. Binary ones are in `body` from `start` on, in the order of `given`."""
    specs = {spec.name: spec for spec in manifest.inputs}
    tensors: Tensors = {}
    for item in _named(given, "inputs", specs, tensors):
        spec = specs[item["name"]]
        shape, size = _shape(spec, item), _binary_size(spec, item)
        if size is None:
            tensors[spec.name] = _from_json(spec, shape, item)
            continue
        tensors[spec.name] = _from_binary(spec, shape, body, start, size)
        start += size
    if missing := [_takes(spec) for spec in manifest.inputs if spec.name not in tensors]:
        raise InputError(f"an input is missing: the model takes {', '.join(missing)}")
    if start < len(body):
        raise InputError(f"{len(body) - start} bytes follow the last input; each binary input needs binary_data_size")
    return tensors


def _outputs(manifest: Manifest, given: Any, binary: bool) -> list[tuple[OutputSpec, bool]]:
    """Return the outputs asked for, or all, each with whether it is to be binary."""
    if given is None or (isinstance(given, list) and not given):
        return [(spec, binary) for spec in manifest.outputs]
    specs = {spec.name: spec for spec in manifest.outputs}
    outputs: dict[str, tuple[OutputSpec, bool]] = {}
    for item in _named(given, "outputs", specs, outputs):
        name = item["name"]
        parameters = _parameters(item, f"output {name}: ")
        if parameters.get("classification"):
            raise InputError(
                f"output {name}: classification is not supported; POST /predict/{manifest.name} answers with labels"
            )
        outputs[name] = (specs[name], _flag(parameters, "binary_data", f"output {name}: ", binary))
    return list(outputs.values())


def _named(given: Any, what: str, specs: dict[str, Any], seen: dict[str, Any]) -> Any:
    """Yield the objects of a list, each with the name of one of `specs` that is not in `seen` yet."""
    if not isinstance(given, list) or not given or not all(isinstance(item, dict) for item in given):
        raise InputError(f"{what} must be a list of objects, not empty")
    for item in given:
        name = item.get("name")
        if not isinstance(name, str) or name not in specs:
            hint = nearest(name, list(specs)) if isinstance(name, str) else ""
            known = ", ".join(map(_takes, specs.values()))
            raise InputError(f"{what}: unknown name {str(name)[:80]}{hint}; the model has {known}")
        if name in seen:
            raise InputError(f"{what}: {name} appears twice")
        yield item


def _parameters(item: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the parameters of a request, an input or an output. Those that nobody reads are ignored."""
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InputError(f"{where}parameters must be an object")
    if "shared_memory_region" in parameters:
        raise InputError(f"{where}this server shares no memory with clients; send and ask for the data itself")
    return parameters


def _flag(values: dict[str, Any], key: str, where: str, default: bool = False) -> bool:
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise InputError(f"{where}{key} must be true or false")
    return value


def _shape(spec: InputSpec, item: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape of an input that has the model's datatype and a shape that the model takes."""
    datatype, shape = item.get("datatype"), item.get("shape")
    if datatype != DATATYPES[spec.dtype]:
        unknown = "" if datatype in DATATYPES.values() else "unknown "
        raise InputError(f"input {spec.name}: {unknown}datatype {str(datatype)[:40]}; the model takes {_takes(spec)}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise InputError(f"input {spec.name}: shape must be a list of sizes; the model takes {shape_text(spec)}")
    if not fits(tuple(shape), spec.shape):
        raise InputError(f"input {spec.name}: the shape is {str(shape)[:80]}, the model takes {shape_text(spec)}")
    return tuple(shape)


def _binary_size(spec: InputSpec, item: dict[str, Any]) -> int | None:
    """Return how many bytes of the body are the input's data, or None if its data is JSON."""
    where = f"input {spec.name}: "
    size = _parameters(item, where).get("binary_data_size")
    if (size is None) == (item.get("data") is None):
        raise InputError(f"{where}send either data (JSON) or the parameter binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise InputError(f"{where}binary_data_size must be an integer of 0 or more")
    return size


def _from_json(spec: InputSpec, shape: tuple[int, ...], item: dict[str, Any]) -> np.ndarray:
    """Return the tensor of data that is flat, or nested in whatever way, row by row."""
    data = item["data"]
    nested: list[int] = [len(data)] if isinstance(data, np.ndarray) else []
    while isinstance(data, list) and len(nested) < 64:  # deeper is beyond NumPy
        nested.append(len(data))
        data = data[0] if data else None
    if not nested or math.prod(nested) != math.prod(shape):
        raise InputError(
            f"input {spec.name}: data must be a list of {math.prod(shape)} values, flat or nested, for the shape "
            f"{list(shape)}; it {f'has {math.prod(nested)}' if nested else 'is not a list'}"
        )
    return to_tensor(replace(spec, shape=tuple(nested)), item["data"]).reshape(shape)


def _from_binary(spec: InputSpec, shape: tuple[int, ...], body: bytes | bytearray, start: int, size: int) -> np.ndarray:
    """Return the tensor that is in `body`: a view of it where a processor may read it in place."""
    left, count = len(body) - start, math.prod(shape)
    if size > left:
        raise InputError(f"input {spec.name}: binary_data_size is {size}, but only {left} bytes of the body are left")
    if spec.dtype == "string":
        return _byte_strings(spec, count, memoryview(body)[start : start + size]).reshape(shape)
    needed = count * np.dtype(spec.dtype).itemsize
    if size != needed:
        raise InputError(
            f"input {spec.name}: binary_data_size is {size}, but {DATATYPES[spec.dtype]} {list(shape)} takes {needed}"
        )
    if spec.dtype == "bool" and np.frombuffer(body, np.uint8, count, start).max(initial=0) > 1:
        raise InputError(f"input {spec.name}: a byte is neither 0 nor 1; BOOL takes one such byte per value")
    tensor = np.frombuffer(body, spec.dtype, count, start).reshape(shape)
    return tensor if tensor.flags.aligned else tensor.copy()


def _byte_strings(spec: InputSpec, count: int, data: memoryview) -> np.ndarray:
    """Read texts, each after its length in four bytes."""
    if 4 * count > len(data):
        raise InputError(f"input {spec.name}: {count} values of BYTES take at least {4 * count} bytes")
    values, position = np.empty(count, object), 0
    for index in range(count):
        start = position + 4
        position = start + int.from_bytes(data[position:start], "little")
        if start > len(data) or position > len(data):
            raise InputError(f"input {spec.name}: value {index} of {count} ends after its last byte, {len(data)}")
        values[index] = bytes(data[start:position])
        if index % TURN == TURN - 1:
            give_way()
    if position < len(data):
        raise InputError(f"input {spec.name}: {len(data) - position} bytes follow the last of {count} values")
    return values


def _raw(manifest: Manifest, body: bytes | bytearray) -> Tensors:
    """Return the only input, which is the whole body: one text, or numbers whose count gives the one free size.

    Where a size beside the batch is free, the batch is 1.
    """
    if len(manifest.inputs) > 1:
        raise InputError(f"{JSON_LENGTH_HEADER} is 0, but the model has several inputs; name them in JSON")
    spec = manifest.inputs[0]
    free = [axis for axis, size in enumerate(spec.shape) if size < 0]
    if len(free) > 2 or (spec.dtype == "string" and any(size > 1 for size in spec.shape)):
        raise InputError(f"input {spec.name}: {JSON_LENGTH_HEADER} is 0, but the shape, {shape_text(spec)}, needs JSON")
    shape = [max(size, 1) for size in spec.shape]
    if spec.dtype == "string":
        return {spec.name: np.full(shape, bytes(body), object)}
    row = math.prod(shape) * np.dtype(spec.dtype).itemsize
    if len(body) % row:
        raise InputError(f"input {spec.name}: {len(body)} bytes are not a multiple of {row}; it takes {_takes(spec)}")
    shape[free[-1]] = len(body) // row
    return {spec.name: _from_binary(spec, tuple(shape), body, 0, len(body))}


def _takes(spec: TensorSpec) -> str:
    return f"{spec.name} ({DATATYPES[spec.dtype]} {shape_text(spec)})"


# ---------------------------------------------------------------- answers


def _answer(model: Model, question: Question, tensors: Tensors) -> Response:
    """Write the answer: JSON, and after it the outputs that are to be binary, in their order."""
    outputs: list[dict[str, Any]] = []
    parts: list[memoryview] = []
    for spec, binary in question.outputs:
        array = tensors[spec.name]
        output: dict[str, Any] = {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": array.shape}
        if binary:
            parts.append(_to_bytes(spec, array))
            output["parameters"] = {"binary_data_size": parts[-1].nbytes}
        else:
            output["data"] = _to_list(spec, array)
        outputs.append(output)
    named = {} if question.id is None else {"id": question.id}
    manifest = model.manifest
    response = json_response(
        {**named, "model_name": manifest.name, "model_version": manifest.version, "outputs": outputs}
    )
    if parts:
        head = response.get_data()
        response.set_data(b"".join([head, *parts]))
        response.mimetype = "application/octet-stream"
        response.headers[JSON_LENGTH_HEADER] = str(len(head))
    return response


def _to_bytes(spec: OutputSpec, array: np.ndarray) -> memoryview:
    if spec.dtype != "string":
        return np.ascontiguousarray(array, spec.dtype).data
    texts = [item if isinstance(item, bytes) else str(item).encode() for item in array.flat]
    return memoryview(b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text)))


def _to_list(spec: OutputSpec, array: np.ndarray) -> np.ndarray | list[str]:
    if spec.dtype != "string":
        return np.ascontiguousarray(array, spec.dtype).ravel()
    try:
        return [item.decode() if isinstance(item, bytes) else str(item) for item in array.flat]
    except UnicodeDecodeError:
        raise InputError(f"output {spec.name} is not UTF-8 text, as JSON needs; ask for it with binary_data") from None
