"""GET /openapi.json: all routes of this server, with its models, as an OpenAPI 3.1 document. GET /docs shows it.

Source: https://spec.openapis.org/oas/v3.1.1.html. A test compares this document with the routes of the application.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import gevent
import numpy as np
from flask import Blueprint, Response, request

from .. import schemas
from ..answers import decode
from ..bodies import json_response
from ..catalogue import Catalogue, Model
from ..engines import Tensors
from ..manifest import STABLE, Manifest, TensorSpec, takes_image, takes_numbers
from ..requests import TIMEOUT_HEADER
from ..schemas import Sample, Schema, by_name
from .inference import DATATYPES
from .tfserving import has_signature

# A larger example is left out: nobody reads it.
EXAMPLE_BYTES = 4096
IDEALIZED = " The scores of a label are idealized."

PREDICTIONS, ARTICLES, SERVER = "Predictions", "Clients of the articles", "The server"
TFSERVING, INFERENCE = "TensorFlow Serving", "Open Inference Protocol"
TAGS = {
    PREDICTIONS: "Labels and probabilities, of a picture or of rows.",
    ARTICLES: "What the clients of two articles send; they work unchanged.",
    TFSERVING: "TensorFlow Serving's REST API. NaN, Infinity and -Infinity are read and written as such.",
    INFERENCE: "Version 2, which KServe, Triton and MLServer speak.",
    SERVER: "What is served, and whether it is healthy.",
}
ERRORS = {
    "400": "The input cannot be used.",
    "404": "There is no such model, version, label or example.",
    "413": "The body is larger than the limit.",
    "415": "The Content-Encoding is neither gzip nor deflate.",
    "500": "The server failed; its log has the reason under the request id.",
    "503": "A model cannot be loaded or is not ready, or its queue is full (Retry-After: how many seconds to wait).",
    "504": "The request waited too long for its model.",
}
ERRORS_OF_VERSIONS = ["400", "404", "413", "500", "503", "504"]

STRING: Schema = {"type": "string"}
STRINGS: Schema = {"type": "array", "items": STRING}
OBJECT: Schema = {"type": "object"}
CLOSED: Schema = {"additionalProperties": False}
BINARY: Schema = {"application/octet-stream": {"schema": {}}}
INDEX_EXAMPLES = {"all": {"value": {}}, "ready": {"value": {"ready": True}}}
HTML: Schema = {"text/html": {"schema": STRING}}
SHAPE: Schema = {"type": "array", "items": {"type": "integer"}, "description": "-1 is a free size, the first the batch"}

Content = dict[str, dict[str, Any]]
Operation = dict[str, Any]
Paths = dict[str, dict[str, Operation]]


def openapi(catalogue: Catalogue) -> Blueprint:
    """Return the route."""
    blueprint = Blueprint("openapi", __name__)
    written: list[tuple[str, bytes]] = []

    def write() -> tuple[str, bytes]:
        document = _document(list(catalogue))
        version = hashlib.sha256(json_response(document).get_data()).hexdigest()[:12]
        document["info"]["version"] = version
        return version, json_response(document).get_data()

    @blueprint.get("/openapi.json")
    def document() -> Response:
        if not written:  # a process serves the same models all its life
            written.append(gevent.get_hub().threadpool.apply(write))
        version, body = written[0]
        response = Response(body, mimetype="application/json")
        response.set_etag(version)
        response.cache_control.no_cache = True
        response.make_conditional(request)
        return response

    return blueprint


def _document(models: list[Model]) -> dict[str, Any]:
    samples = {model.manifest.name: schemas.samples(model.manifest, model.folder) for model in models}
    manifests = [model.manifest for model in models]
    own = [_predictions(manifest, samples[manifest.name]) for manifest in manifests]
    articles = _articles([one for one in manifests if one.predict], samples)
    tfserving = [_tfserving(manifest, samples[manifest.name]) for manifest in manifests]
    inference = [_inference(manifest, samples[manifest.name]) for manifest in manifests]
    general = [
        _prediction_versions(manifests),
        _tfserving_models(manifests),
        _inference_server(manifests),
        _server(manifests, samples),
    ]
    paths: Paths = {}
    for part in [*own, articles, *tfserving, *inference, *general]:
        paths |= part
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Slipway",
            "version": "",
            "description": "Every answer has the header X-Request-ID: the client's, if it sends one, else a new one. "
            "Every answer of a model has the headers X-Model and X-Model-Version.",
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": {
                "Error": by_name({"error": {**STRING, "description": "What was wrong, and what to send instead"}}),
                "File": by_name({"b64": {**STRING, "contentEncoding": "base64"}}) | CLOSED,
                **{f"{one.name}.row": schemas.row(one) for one in manifests},
                **{f"{one.name}.answer": schemas.answer(one) for one in manifests},
            },
            "parameters": {
                "timeout": {
                    "name": TIMEOUT_HEADER,
                    "in": "header",
                    "description": "How many seconds the client waits; it is then answered with 504",
                    "schema": {"type": "number", "exclusiveMinimum": 0},
                },
                "json_length": {
                    "name": "Inference-Header-Content-Length",
                    "in": "header",
                    "description": "Where the JSON ends and binary tensors begin; with 0, the body is the only input",
                    "schema": {"type": "integer", "minimum": 0},
                },
            },
            "responses": {
                code: {"description": text, "content": _json(_ref("schemas/Error"))} for code, text in ERRORS.items()
            },
        },
    }


# ---------------------------------------------------------------- the protocols


def _predictions(manifest: Manifest, samples: list[Sample]) -> Paths:
    name, row = manifest.name, _ref(f"schemas/{manifest.name}.row")
    asked = {"row": row, "rows": {"type": "array", "items": row, "minItems": 1}}
    body = _json(
        {"oneOf": [by_name({key: schema}) | CLOSED for key, schema in asked.items()]},
        _examples((sample, {"row": sample.row}) for sample in samples),
    )
    answers = {"type": "array", "items": _ref(f"schemas/{name}.answer"), "description": "One for each row"}
    answered = by_name({"model": {"const": name}, "answers": answers, "milliseconds": {"type": "number"}})
    right = [
        (sample, {"model": name, "answers": [decode(manifest, sample.outputs)], "milliseconds": 1.8})
        for sample in samples
        if sample.outputs is not None
    ]
    operation = _operation(
        PREDICTIONS,
        f"predict_{name}",
        manifest.title or name,
        _json(answered, _examples(right, answers=True)),
        description=manifest.description,
        body=(_uploads(name, samples) if takes_image(manifest) else {}) | body,
    )
    return {f"/predict/{name}": {"post": operation}}


def _prediction_versions(manifests: list[Manifest]) -> Paths:
    model = _parameter("model", manifests[0].name, [manifest.name for manifest in manifests])
    body = _json(OBJECT) | {"image/*": {"schema": {}}, "multipart/form-data": {"schema": OBJECT}}
    return {
        f"/predict/{{model}}/{where}s/{{{where}}}": {
            "post": _operation(
                PREDICTIONS,
                f"predict_by_{where}",
                f"Ask a model by {where}",
                _json(OBJECT),
                description=f"Bodies and answers are those of the addresses without a {where}, which describe the "
                "version labelled stable; labels may differ.",
                body=body,
                parameters=[model, _parameter(where, example)],
                errors=ERRORS_OF_VERSIONS,
            )
        }
        for where, example in (("version", manifests[0].version), ("label", STABLE))
    }


def _articles(manifests: list[Manifest], samples: dict[str, list[Sample]]) -> Paths:
    pictures = [manifest for manifest in manifests if takes_image(manifest)]
    numbers = [manifest for manifest in manifests if takes_numbers(manifest)]
    body: Content = {}
    answers: list[Schema] = []
    if pictures:
        body |= _uploads(pictures[0].name, samples[pictures[0].name])
        verdicts = [schemas.verdict(manifest.outputs[0]) for manifest in pictures]
        names = ", ".join(manifest.name for manifest in pictures)
        sizes = {"minItems": len(verdicts), "maxItems": len(verdicts)}
        answers.append({"type": "array", "prefixItems": verdicts, **sizes, "description": f"The answers of {names}"})
    if len(numbers) == 1:
        [chosen], [first] = numbers, numbers[0].inputs
        body |= _json(
            by_name({"X": {**STRING, "description": "Rows separated by |, numbers by blanks"}}),
            _examples((sample, {"X": _text(sample.inputs[first.name][0])}) for sample in samples[chosen.name]),
        )
        labels = schemas.tensor(chosen.outputs[0], batch=True)
        answers.append(by_name({"labels": labels}) | {"description": f"The numbers of {chosen.name}"})
    if not answers:
        return {}
    operation = _operation(
        ARTICLES,
        "predict",
        "A picture or rows of text",
        _json({"oneOf": answers}),
        description="Of the models with predict: true in their cards, every one whose only input is a picture answers "
        "an upload: with the class's index or its numbers, in the order of the models' names. The one whose only input "
        "is a row of numbers answers rows of text.",
        body=body,
    )
    return {"/predict": {"post": operation}}


def _tfserving(manifest: Manifest, samples: list[Sample]) -> Paths:
    name, title = manifest.name, manifest.title or manifest.name
    columns = by_name({spec.name: schemas.tensor(spec, batch=True) for spec in manifest.inputs})
    if len(manifest.inputs) == 1:
        columns = {"anyOf": [schemas.tensor(manifest.inputs[0], batch=True), columns]}
    rows = {"type": "array", "items": _ref(f"schemas/{name}.row"), "minItems": 1}
    outputs = {spec.name: schemas.tensor(spec, batch=True) for spec in manifest.outputs}
    values = {spec.name: schemas.tensor(spec) for spec in manifest.outputs}
    predictions = {"type": "array", "items": _single(values, by_name(values))}
    right = [
        (sample, {"predictions": [_single(row, row)]})
        for sample in samples
        if sample.outputs is not None
        for row in [{key: array[0] for key, array in sample.outputs.items()}]
    ]
    operations = {
        "predict": _operation(
            TFSERVING,
            f"tfserving_predict_{name}",
            title,
            _json(
                {
                    "oneOf": [
                        by_name({"predictions": predictions}),
                        by_name({"outputs": _single(outputs, by_name(outputs))}),
                    ]
                },
                _examples(right, answers=True),
            ),
            description="Rows as instances, or whole tensors, the batch axis first, as inputs.",
            body=_json(
                {"oneOf": [by_name({"instances": rows}), by_name({"inputs": columns})]},
                _examples((sample, {"instances": [sample.row]}) for sample in samples),
            ),
        )
    }
    named = {"type": "object", "properties": schemas.named_row(manifest)["properties"]}
    score = {"type": "array", "prefixItems": [STRING, {"type": "number"}], "minItems": 2, "maxItems": 2}
    for verb, result in ("classify", {"type": "array", "items": score}), ("regress", {"type": "number"}):
        if has_signature(manifest, verb):
            operations[verb] = _operation(
                TFSERVING,
                f"tfserving_{verb}_{name}",
                title,
                _json(by_name({"results": {"type": "array", "items": result}})),
                description="Rows by name as examples, and what all rows share as context.",
                body=_json(
                    {
                        "type": "object",
                        "required": ["examples"],
                        "properties": {"examples": {"type": "array", "items": named, "minItems": 1}, "context": named},
                    },
                    _examples((sample, {"examples": [_named(manifest, sample.row)]}) for sample in samples),
                ),
            )
    return {f"/v1/models/{name}:{verb}": {"post": operation} for verb, operation in operations.items()}


def _tfserving_models(manifests: list[Manifest]) -> Paths:
    model = _parameter("model", manifests[0].name, [manifest.name for manifest in manifests])
    version = _parameter("version", manifests[0].version)
    label = _parameter("label", STABLE)
    state = by_name({"error_code": STRING, "error_message": STRING})
    states = {"type": "array", "items": by_name({"version": STRING, "state": STRING, "status": state})}
    status = _json(by_name({"model_version_status": states}))
    spec = by_name({"name": STRING, "signature_name": STRING, "version": STRING})
    metadata = _json(by_name({"model_spec": spec, "metadata": by_name({"signature_def": OBJECT})}))
    paths: Paths = {}
    for suffix, where, parameters in (
        ("", "", [model]),
        ("/versions/{version}", "_version", [model, version]),
        ("/labels/{label}", "_label", [model, label]),
    ):
        path, errors = f"/v1/models/{{model}}{suffix}", ["400", "404", "500"]
        for name, ending, summary, answer in (
            ("status", "", "Whether a model is ready", status),
            ("metadata", "/metadata", "The inputs and outputs of a model", metadata),
        ):
            operation = _operation(
                TFSERVING, f"tfserving_{name}{where}", summary, answer, parameters=parameters, errors=errors
            )
            paths[path + ending] = {"get": operation}
        if where:
            operation = _operation(
                TFSERVING,
                f"tfserving_ask{where}",
                "Ask a model by version or label",
                _json(OBJECT),
                description="The verb is predict, classify or regress. Bodies and answers are those of the addresses "
                "without a version, which describe the one labelled stable; labels may differ.",
                body=_json(OBJECT),
                parameters=[*parameters, _parameter("verb", "predict", ["predict", "classify", "regress"])],
                errors=ERRORS_OF_VERSIONS,
            )
            paths[path + ":{verb}"] = {"post": operation}
    return paths


def _inference(manifest: Manifest, samples: list[Sample]) -> Paths:
    name = manifest.name
    inputs = {"anyOf": [_named_tensor(spec, {"data": {"type": "array"}}) for spec in manifest.inputs]}
    values = {spec.name: {"type": "array", "items": schemas.scalar(spec, nullable=True)} for spec in manifest.outputs}
    outputs = {"anyOf": [_named_tensor(spec, {"data": values[spec.name]}) for spec in manifest.outputs]}
    count = len(manifest.inputs)
    asked = by_name({"inputs": {"type": "array", "items": inputs, "minItems": count, "maxItems": count}})
    asked["properties"] |= {
        "id": STRING,
        "outputs": {"type": "array", "items": by_name({"name": {"enum": [spec.name for spec in manifest.outputs]}})},
    }
    answered = by_name(
        {"model_name": {"const": name}, "model_version": STRING, "outputs": {"type": "array", "items": outputs}}
    )
    answered["properties"] |= {"id": STRING}
    right = [
        (
            sample,
            {"model_name": name, "model_version": manifest.version, "outputs": _tensors(manifest.outputs, tensors)},
        )
        for sample in samples
        if (tensors := sample.outputs) is not None
    ]
    operation = _operation(
        INFERENCE,
        f"infer_{name}",
        manifest.title or name,
        _json(answered, _examples(right, answers=True)) | BINARY,
        description="Whole tensors, the batch axis first in shape, data flat or nested; a picture is its pixels as the "
        "model takes them. A binary input has the parameter binary_data_size instead of data; the parameters "
        "binary_data and binary_data_output ask for binary outputs.",
        body=_json(
            asked, _examples((sample, {"inputs": _tensors(manifest.inputs, sample.inputs)}) for sample in samples)
        )
        | BINARY,
        parameters=[_ref("parameters/json_length")],
        errors=["400", "413", "415", "500", "503", "504"],
    )
    return {f"/v2/models/{name}/infer": {"post": operation}}


def _inference_server(manifests: list[Manifest]) -> Paths:
    model = _parameter("model", manifests[0].name, [manifest.name for manifest in manifests])
    version = _parameter("version", manifests[0].version)
    tensors = {"type": "array", "items": by_name({"name": STRING, "datatype": STRING, "shape": SHAPE})}
    texts = by_name({"name": STRING, "versions": STRINGS, "platform": STRING})
    texts["properties"] |= {"inputs": tensors, "outputs": tensors}
    state = by_name(dict.fromkeys(("name", "version", "state", "reason"), STRING))
    server = by_name({"name": STRING, "version": STRING, "extensions": STRINGS})
    ready = _json(by_name({"ready": {"const": True}}))
    paths: Paths = {}
    for path, name, summary, answer, errors in (
        ("", "server", "The server's name, version and extensions", _json(server), ["500"]),
        ("/health/live", "live", "Whether the process answers", _json(by_name({"live": {"const": True}})), ["500"]),
        ("/health/ready", "ready", "Whether every model is ready", ready, ["500", "503"]),
    ):
        paths[f"/v2{path}"] = {"get": _operation(INFERENCE, f"inference_{name}", summary, answer, errors=errors)}
    for suffix, where, parameters in ("", "", [model]), ("/versions/{version}", "_version", [model, version]):
        path = f"/v2/models/{{model}}{suffix}"
        for ending, name, summary, answer, errors in (
            ("", "metadata", "The inputs and outputs of a model", _json(texts), ["404", "500"]),
            ("/ready", "model_ready", "Whether a model is ready", ready, ["404", "500", "503"]),
        ):
            operation = _operation(
                INFERENCE, f"inference_{name}{where}", summary, answer, parameters=parameters, errors=errors
            )
            paths[path + ending] = {"get": operation}
    paths["/v2/models/{model}/versions/{version}/infer"] = {
        "post": _operation(
            INFERENCE,
            "infer_by_version",
            "Ask a model by version",
            _json(OBJECT) | BINARY,
            description="Bodies and answers are those of the addresses without a version, which describe the one "
            "labelled stable.",
            body=_json(OBJECT) | BINARY,
            parameters=[model, version, _ref("parameters/json_length")],
            errors=[*ERRORS],
        )
    }
    paths["/v2/repository/index"] = {
        "post": _operation(
            INFERENCE,
            "inference_index",
            "The models and their states",
            _json({"type": "array", "items": state}),
            body=_json({"type": "object", "properties": {"ready": {"type": "boolean"}}}, INDEX_EXAMPLES),
        )
    }
    return paths


def _server(manifests: list[Manifest], samples: dict[str, list[Sample]]) -> Paths:
    names = [manifest.name for manifest in manifests]
    tensor = {"name": STRING, "kind": STRING, "dtype": STRING, "shape": SHAPE}
    inputs, outputs = by_name(tensor), by_name(tensor)
    inputs["properties"] = tensor | {"columns": STRINGS}
    outputs["properties"] = tensor | {"labels": STRINGS}
    texts = ("name", "title", "description", "version", "engine", "source_format")
    model = by_name(
        dict.fromkeys(texts, STRING)
        | {
            "versions": STRINGS,
            "labels": {"type": "object", "additionalProperties": STRING},
            "canary_share": {"type": "number"},
            "inputs": {"type": "array", "items": inputs},
            "outputs": {"type": "array", "items": outputs},
            "examples": {"type": "array", "items": by_name({"name": STRING, "row": {}})},
        }
    )
    ready = _json(by_name({"status": {"const": "ready"}, "models": STRINGS}))
    not_ready = by_name({"error": STRING, "models": {"type": "object", "additionalProperties": STRING}})
    operations = {
        "/models": _operation(
            SERVER,
            "models",
            "The models, with their inputs, outputs and examples",
            _json(by_name({"models": {"type": "array", "items": model}})),
        ),
        "/healthz": _operation(
            SERVER, "healthz", "Whether the process answers", _json(by_name({"status": {"const": "alive"}}))
        ),
        "/readyz": _operation(SERVER, "readyz", "Whether every model gives the right answer to its examples", ready),
        "/metrics": _operation(
            SERVER,
            "metrics",
            "Metrics for Prometheus",
            {"text/plain": {"schema": STRING}},
            description="At each container's own address. nginx shows it as /metrics/1 … to the networks it is set to.",
        ),
        "/openapi.json": _operation(SERVER, "openapi", "This document", _json(OBJECT)),
        "/docs": _operation(SERVER, "docs", "This document as a page", HTML),
        "/": _operation(SERVER, "page", "The page", HTML),
    }
    operations["/readyz"]["responses"]["503"] = {
        "description": "A model is not ready: the reasons, by model.",
        "content": _json(not_ready),
    }
    pictures = [(name, sample.picture) for name in names for sample in samples[name] if sample.picture]
    if pictures:
        name, file = pictures[0]
        operations["/models/{model}/examples/{file}"] = _operation(
            SERVER,
            "example",
            "An example's picture",
            {"image/*": {}},
            parameters=[_parameter("model", name, names), _parameter("file", file.removeprefix("examples/"))],
            errors=["404"],
        )
    return {path: {"get": operation} for path, operation in operations.items()}


# ---------------------------------------------------------------- small helpers


def _operation(
    tag: str,
    name: str,
    summary: str,
    answer: Content,
    *,
    description: str = "",
    body: Content | None = None,
    parameters: list[Schema] | None = None,
    errors: list[str] | None = None,
) -> Operation:
    operation: Operation = {"tags": [tag], "operationId": name, "summary": summary}
    if description:
        operation["description"] = description
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
        parameters = [*(parameters or []), _ref("parameters/timeout")]
    if parameters:
        operation["parameters"] = parameters
    codes = errors or (["400", "413", "500", "503", "504"] if body is not None else ["500"])
    errors_by_code = {code: _ref(f"responses/{code}") for code in codes}
    operation["responses"] = {"200": {"description": "The answer.", "content": answer}, **errors_by_code}
    return operation


def _parameter(name: str, example: str, known: list[str] | None = None) -> Schema:
    schema = STRING | ({"enum": known} if known else {})
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def _json(schema: Schema, examples: dict[str, Any] | None = None) -> Content:
    return {"application/json": {"schema": schema} | ({"examples": examples} if examples else {})}


def _uploads(name: str, samples: list[Sample]) -> Content:
    """Return the two ways to upload a picture."""
    pictures = {
        sample.name: {"externalValue": f"models/{name}/{sample.picture}"} for sample in samples if sample.picture
    }
    file = {**STRING, "contentMediaType": "image/*"}
    either = {"type": "object", "properties": {"file": file, "image": file}, "minProperties": 1}
    return {
        "image/*": {"schema": {}} | ({"examples": pictures} if pictures else {}),
        "multipart/form-data": {"schema": either},
    }


def _examples(values: Iterable[tuple[Sample, Any]], answers: bool = False) -> dict[str, Any]:
    """Return an Example Object for each value, by its sample's name."""
    examples = {}
    for sample, value in values:
        if len(json_response(value).get_data()) <= EXAMPLE_BYTES:
            text = sample.expects + (IDEALIZED if answers and not sample.recorded else "")
            examples[sample.name] = ({"description": text} if sample.expects else {}) | {"value": value}
    return examples


def _named_tensor(spec: TensorSpec, more: dict[str, Schema]) -> Schema:
    """Return the schema of a tensor of the Open Inference Protocol."""
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    return by_name({"name": {"const": spec.name}, "datatype": {"const": DATATYPES[spec.dtype]}, "shape": shape, **more})


def _tensors(specs: Sequence[TensorSpec], tensors: Tensors) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "datatype": DATATYPES[spec.dtype],
            "shape": tensors[spec.name].shape,
            "data": schemas.listed(tensors[spec.name].ravel()),
        }
        for spec in specs
    ]


def _text(row: np.ndarray) -> str:
    return " ".join(str(number).removesuffix(".0") for number in row)


def _named(manifest: Manifest, row: Any) -> Any:
    return row if isinstance(row, dict) and row.keys() != {"b64"} else {manifest.inputs[0].name: row}


def _single(named: dict[str, Any], otherwise: Any) -> Any:
    return next(iter(named.values())) if len(named) == 1 else otherwise


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/{name}"}
