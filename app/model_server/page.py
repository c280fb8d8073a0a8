"""The page at /, and the small API behind it, which is also the friendliest one for people and scripts."""

from __future__ import annotations

import mimetypes
import time
from typing import Any

from flask import Blueprint, Response, current_app, request, send_file

from .answers import decode
from .bodies import is_upload, json_response, read_json, read_upload
from .bundle import Example, InputSpec, Manifest, OutputSpec
from .catalogue import Catalogue, Model
from .inputs import InputError, nearest

# The page loads nothing from elsewhere and runs no inline script; blob: is the preview of a chosen picture.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class UnknownModel(LookupError):
    """No model of that name."""


def page(catalogue: Catalogue) -> Blueprint:
    """The routes."""
    blueprint = Blueprint("page", __name__)

    def model_named(name: str) -> Model:
        model = catalogue.get(name)
        if model is None:
            hint = nearest(name, catalogue.names())
            raise UnknownModel(f"no model {name}{hint}; the models are {', '.join(catalogue.names())}")
        return model

    @blueprint.errorhandler(UnknownModel)
    def unknown_model(error: UnknownModel) -> Response:
        return json_response({"error": str(error)}, 404)

    @blueprint.get("/")
    def index() -> Response:
        response = current_app.send_static_file("index.html")
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return response

    @blueprint.get("/models")
    def models() -> Response:
        return json_response({"models": [_described(model.manifest) for model in catalogue]})

    @blueprint.get("/models/<name>/<path:path>")
    def example(name: str, path: str) -> Response:
        model = model_named(name)
        if path not in {file for one in model.manifest.examples for file in _files(one)}:
            raise UnknownModel(f"no example {path} of the model {name}; GET /models lists them")
        kind = mimetypes.guess_type(path)[0] or ""
        return send_file(
            model.folder / path,
            mimetype=kind if kind.startswith("image/") else "application/octet-stream",
            max_age=3600,
        )

    @blueprint.post("/predict/<name>")
    def predict(name: str) -> Response:
        model = model_named(name)
        start = time.perf_counter()
        if is_upload(request):
            outputs, count = model.from_upload(read_upload(request)), 1
        else:
            rows = _rows(read_json(request))
            outputs, count = model.from_rows(rows), len(rows)
        answers = [decode(model.manifest, outputs, row) for row in range(count)]
        milliseconds = round((time.perf_counter() - start) * 1000, 3)
        return json_response({"model": name, "answers": answers, "milliseconds": milliseconds})

    return blueprint


def _rows(body: dict[str, Any]) -> list[Any]:
    if body.keys() == {"row"}:
        return [body["row"]]
    if body.keys() == {"rows"} and isinstance(body["rows"], list):
        return body["rows"]
    found = ", ".join(body) or "nothing"
    raise InputError(f'send {{"row": …}} or {{"rows": […]}}, or a picture as the form field file; it has {found[:80]}')


def _described(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "title": manifest.title or manifest.name,
        "description": manifest.description,
        "version": manifest.version,
        "engine": manifest.engine,
        "source_format": manifest.source_format,
        "inputs": [_input(spec) for spec in manifest.inputs],
        "outputs": [_output(spec) for spec in manifest.outputs],
        "examples": [{"name": one.name, "row": _shown(manifest, one)} for one in manifest.examples],
    }


def _input(spec: InputSpec) -> dict[str, Any]:
    described = {"name": spec.name, "kind": spec.kind, "dtype": spec.dtype, "shape": spec.shape}
    return described | ({"columns": spec.columns} if spec.kind == "columns" else {})


def _output(spec: OutputSpec) -> dict[str, Any]:
    described = {"name": spec.name, "kind": spec.kind, "dtype": spec.dtype, "shape": spec.shape}
    return described | ({} if spec.kind == "numbers" else {"labels": spec.labels})


def _files(example: Example) -> list[str]:
    values = example.input.values() if isinstance(example.input, dict) else [example.input]
    return [value for value in values if isinstance(value, str)]


def _shown(manifest: Manifest, example: Example) -> Any:
    """The example's row; a picture in it is `{"url": …}`, from where the page fetches it."""

    def show(value: Any) -> Any:
        return {"url": f"models/{manifest.name}/{value}"} if isinstance(value, str) else value

    row = example.input
    return {key: show(value) for key, value in row.items()} if isinstance(row, dict) else show(row)
