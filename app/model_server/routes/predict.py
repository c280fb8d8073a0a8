"""GET /models, POST /predict/NAME and for its versions: Slipway's own API, which answers labels and probabilities."""

from __future__ import annotations

import mimetypes
import time
from typing import Any

import numpy as np
from flask import Blueprint, Response, request, send_file

from ..bodies import is_upload, json_response, read_json, read_upload
from ..catalogue import Catalogue, NotFound
from ..inputs import InputError
from ..manifest import Example, InputSpec, Manifest, OutputSpec, example_files, replace_files


def predict(catalogue: Catalogue) -> Blueprint:
    """Return the routes."""
    blueprint = Blueprint("predict", __name__)

    @blueprint.get("/models")
    def models() -> Response:
        return json_response({"models": [_described(model.manifest, catalogue) for model in catalogue]})

    @blueprint.get("/models/<name>/<path:path>")
    def example(name: str, path: str) -> Response:
        model = catalogue.get(name)
        manifest = model.manifest
        if path not in {file for one in manifest.examples for file in example_files(one.input, manifest.pictures)}:
            raise NotFound(f"the model {name} has no example {path}; GET /models lists its examples")
        kind = mimetypes.guess_type(path)[0] or ""
        return send_file(
            model.folder / path,
            mimetype=kind if kind.startswith("image/") else "application/octet-stream",
            max_age=3600,
        )

    @blueprint.post("/predict/<name>")
    @blueprint.post("/predict/<name>/versions/<version>")
    @blueprint.post("/predict/<name>/labels/<label>")
    def answer(name: str, version: str | None = None, label: str | None = None) -> Response:
        model = catalogue.choose(name, version, label)
        start = time.perf_counter()
        if is_upload(request):
            outputs, count = model.from_upload(read_upload(request)), 1
        else:
            rows = _rows(read_json(request))
            outputs, count = model.from_rows(rows), len(rows)
        answers = model.answers(outputs, count)
        milliseconds = round((time.perf_counter() - start) * 1000, 3)
        return json_response({"model": name, "answers": answers, "milliseconds": milliseconds})

    return blueprint


def _rows(body: dict[str, Any]) -> list[Any] | np.ndarray:
    if body.keys() == {"row"}:
        row = body["row"]
        return row[np.newaxis] if isinstance(row, np.ndarray) else [row]
    if body.keys() == {"rows"} and isinstance(body["rows"], list | np.ndarray):
        return body["rows"]
    found = ", ".join(body) or "nothing"
    raise InputError(
        f'send {{"row": …}} or {{"rows": […]}}, or a picture in the form field file; the body has {found[:80]}'
    )


def _described(manifest: Manifest, catalogue: Catalogue) -> dict[str, Any]:
    """Return what clients have to know of a model: of its default version, but for the list of versions and labels."""
    return {
        "name": manifest.name,
        "title": manifest.title,
        "description": manifest.description,
        "version": manifest.version,
        "versions": list(catalogue.versions(manifest.name)),
        "labels": catalogue.labels(manifest.name),
        "canary_share": catalogue.canary_share(manifest.name),
        "engine": manifest.engine,
        "source_format": manifest.source_format,
        "inputs": [_input(spec) for spec in manifest.inputs],
        "outputs": [_output(spec) for spec in manifest.outputs],
        "examples": [{"name": one.name, "row": _row(manifest, one)} for one in manifest.examples],
    }


def _input(spec: InputSpec) -> dict[str, Any]:
    described = {"name": spec.name, "kind": spec.kind, "dtype": spec.dtype, "shape": spec.shape}
    return described | ({"columns": spec.columns} if spec.kind == "columns" else {})


def _output(spec: OutputSpec) -> dict[str, Any]:
    described = {"name": spec.name, "kind": spec.kind, "dtype": spec.dtype, "shape": spec.shape}
    return described | ({"labels": spec.labels} if spec.kind in ("binary", "classes") else {})


def _row(manifest: Manifest, example: Example) -> Any:
    """Return the example's row, with `{"url": …}` for each picture: where the page fetches it from."""
    return replace_files(example.input, manifest.pictures, lambda file: {"url": f"models/{manifest.name}/{file}"})
