"""TensorFlow Serving's REST API, version 1: predict, classify, regress, status and metadata.

Source: https://www.tensorflow.org/tfx/serving/api_rest, and the code of TensorFlow Serving where the two differ. Its
error messages are kept word for word, because clients may read them; a remedy of ours follows.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
from flask import Blueprint, Response, request
from werkzeug.routing import BaseConverter

from ..answers import all_finite
from ..bodies import json_response, read_json
from ..catalogue import Catalogue, Model, NotFound
from ..engines import Tensors
from ..inputs import InputError, to_tensor
from ..manifest import Manifest, OutputSpec, TensorSpec

PATH = re.compile(
    r"v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
    r"(?:(?P<metadata>/metadata)|:(?P<verb>predict|classify|regress))?",
    re.IGNORECASE,
)
DTYPES = {
    "float16": "DT_HALF",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "bool": "DT_BOOL",
    "string": "DT_STRING",
    **{f"{kind}{bits}": f"DT_{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}


class AnyCasePath(BaseConverter):
    """A path below /v1/. TensorFlow Serving ignores case in it."""

    regex = "[vV]1/.*"


def tfserving(catalogue: Catalogue) -> Blueprint:
    """Return the route. The application has to register AnyCasePath as the URL converter `tfserving`."""
    blueprint = Blueprint("tfserving", __name__)

    @blueprint.route("/<tfserving:path>", methods=["GET", "POST"])
    def answer(path: str) -> Response:
        parts = PATH.fullmatch(path)
        if parts is None or (parts["verb"] is None) != (request.method == "GET"):
            raise InputError(
                f"Malformed request: {request.method} /{path}. Ask with POST /v1/models/NAME:predict, "
                "GET /v1/models/NAME or GET /v1/models/NAME/metadata."
            )
        name, label = parts["name"], parts["label"]
        version = parts["version"] and (parts["version"].lstrip("0") or "0")
        versions = catalogue.versions(name)
        if label and versions and label not in catalogue.labels(name):
            known = ", ".join(catalogue.labels(name))
            raise InputError(f"Unrecognized servable version label: {label}; the labels of {name} are {known}")
        find = catalogue.choose if parts["verb"] else catalogue.get
        try:
            model = find(name, version, label)
        except NotFound:
            raise NotFound(_missing(name, version, parts["verb"] or parts["metadata"])) from None
        if parts["metadata"]:
            return json_response(_metadata(model.manifest))
        if parts["verb"] is None:
            # TensorFlow Serving lists the newest first.
            return json_response(_status([model] if version or label else [*reversed(versions.values())]))
        verb = parts["verb"].lower()
        body = read_json(request)
        _check_signature(model.manifest, body)
        return _predict(model, body) if verb == "predict" else _examples(model, body, verb)

    return blueprint


def has_signature(manifest: Manifest, verb: str) -> bool:
    """Return whether the model answers :classify or :regress."""
    spec = manifest.outputs[0]
    scored = spec.kind in ("classes", "binary") and len(spec.shape) <= 2 if verb == "classify" else _one_number(spec)
    return scored and len(manifest.outputs) == 1


def _predict(model: Model, body: dict[str, Any]) -> Response:
    rows = "instances" in body
    if rows and "inputs" in body:
        raise InputError("Not formatted correctly expecting only one of 'inputs' or 'instances' keys")
    if not rows and "inputs" not in body:
        raise InputError(f"Missing 'inputs' or 'instances' key; the body has {_names(body)}")
    if not rows:
        outputs = model.from_tensors(_columns(model.manifest, body["inputs"]))
        return json_response({"outputs": _single(_written(outputs))}, tokens=not all_finite(outputs))
    instances = body["instances"]
    if not isinstance(instances, list | np.ndarray):
        raise InputError("Expecting 'instances' to be a list/array")
    if not len(instances):
        raise InputError("No values in 'instances' array")
    outputs = model.from_rows(instances)
    sizes = {array.shape[0] if array.ndim else 0 for array in outputs.values()}
    if len(sizes) > 1:
        raise InputError(
            "the outputs of this model do not have one value per row; ask in the column form, with 'inputs'"
        )
    written = _written(outputs)
    predictions = _single(written)
    if len(written) > 1:
        predictions = [{name: values[row] for name, values in written.items()} for row in range(sizes.pop())]
    return json_response({"predictions": predictions}, tokens=not all_finite(outputs))


def _columns(manifest: Manifest, value: Any) -> Tensors:
    """Return the tensors of the column form: whole tensors, by name or, for a single input, bare."""
    if not isinstance(value, dict) or value.keys() == {"b64"}:
        if len(manifest.inputs) > 1:
            names = ", ".join(spec.name for spec in manifest.inputs)
            raise InputError(f"inputs is a plain value/list, but this model needs an object with {names}")
        return {manifest.inputs[0].name: to_tensor(manifest.inputs[0], value)}
    for spec in manifest.inputs:
        if spec.name not in value:
            raise InputError(f"Missing named input: {spec.name} in 'inputs' object; it has {_names(value)}")
    return {spec.name: to_tensor(spec, value[spec.name]) for spec in manifest.inputs}


def _examples(model: Model, body: dict[str, Any], verb: str) -> Response:
    """Answer :classify and :regress: rows by name in `examples`, what all rows share in `context`."""
    spec = model.manifest.outputs[0]
    if not has_signature(model.manifest, verb):
        raise InputError(
            f"Expected {verb} signature method_name to be tensorflow/serving/{verb}. Was: "
            "tensorflow/serving/predict. Ask with :predict."
        )
    examples, context = body.get("examples"), body.get("context", {})
    if not isinstance(examples, list) or not examples:
        raise InputError(f"When method is {verb}, key 'examples' is expected, a list that is not empty")
    if not all(isinstance(example, dict) for example in [context, *examples]):
        raise InputError("Example must be a JSON object")
    outputs = model.from_rows([{**context, **example} for example in examples])
    scores = outputs[spec.name].reshape(len(examples), -1)
    results = [_classes(spec, row) for row in scores] if verb == "classify" else scores[:, 0]
    return json_response({"results": results}, tokens=not all_finite(outputs))


def _classes(spec: OutputSpec, scores: np.ndarray) -> list[list[Any]]:
    if spec.kind == "binary":
        scores = np.array([1 - scores[0], scores[0]])
    labels = spec.labels or [str(index) for index in range(len(scores))]
    return [[label, score] for label, score in zip(labels, scores, strict=True)]


def _one_number(spec: OutputSpec) -> bool:
    return spec.kind != "classes" and spec.dtype != "string" and all(size == 1 for size in spec.shape[1:])


def _check_signature(manifest: Manifest, body: dict[str, Any]) -> None:
    name = body.get("signature_name", "serving_default")
    if not isinstance(name, str):
        raise InputError("'signature_name' key must be a string value.")
    if name not in ("", "serving_default", manifest.signature):
        raise InputError(f'Serving signature name: "{name}" not found in signature def')


def _written(outputs: Tensors) -> dict[str, Any]:
    """Return the outputs with text as JSON has it: `{"b64": "…"}` if the output's name ends in _bytes, else text."""
    text = {name: _text(name, array) for name, array in outputs.items() if array.dtype.kind in "OSU"}
    return outputs | text


def _text(name: str, array: np.ndarray) -> Any:
    def write(item: Any) -> Any:
        data = item if isinstance(item, bytes) else str(item).encode()
        if name.endswith("_bytes"):
            return {"b64": base64.b64encode(data).decode()}
        return data.decode(errors="replace")

    written = np.empty(array.size, dtype=object)
    written[:] = [write(item) for item in array.ravel()]
    return written.reshape(array.shape).tolist()


def _single(written: dict[str, Any]) -> Any:
    return next(iter(written.values())) if len(written) == 1 else written


def _names(data: dict[str, Any]) -> str:
    return ", ".join(list(data)[:10]) or "nothing"


def _missing(name: str, version: str | None, asked: str | None) -> str:
    """Return TensorFlow Serving's message: it has one for predictions and metadata, and one for the status."""
    if asked:
        servable = f"Specific({name}, {version})" if version else f"Latest({name})"
        return f"Servable not found for request: {servable}"
    return f"Could not find {f'version {version}' if version else 'any versions'} of model {name}"


def _status(models: list[Model]) -> dict[str, Any]:
    reasons = {model.manifest.version: model.check(all_examples=False) for model in models}
    return {
        "model_version_status": [
            {
                "version": version,
                "state": "END" if reason else "AVAILABLE",
                "status": {"error_code": "UNKNOWN" if reason else "OK", "error_message": reason or ""},
            }
            for version, reason in reasons.items()
        ]
    }


def _metadata(manifest: Manifest) -> dict[str, Any]:
    signature = {
        "inputs": {spec.name: _tensor_info(spec) for spec in manifest.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in manifest.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": manifest.name, "signature_name": "", "version": manifest.version},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    return {
        "dtype": DTYPES.get(spec.dtype, "DT_INVALID"),
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in spec.shape],
            "unknown_rank": False,
        },
        "name": spec.name,
    }
