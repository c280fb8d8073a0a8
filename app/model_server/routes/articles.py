"""POST /predict, as the clients of two articles send it. They work unchanged; Slipway grew from these articles.

- "Deploy Keras models to production level easily" (2020, https://github.com/s-gbz/keras-flask-deploy-webapp): an
  upload in the form field `file`, here also `image`, is answered by every model that takes a picture. The answer is a
  JSON array in the order of the models' names: 0 or 1 of a binary model, else the index of the likeliest class.
- "Hosting a Keras model with the Tensorflow Backend on Azure App Services" (2017,
  https://github.com/mitchellspryn/AzureAppServiceKerasDemo): rows as text, `{"X": "1 0|1 1"}`, are answered by one
  model with `{"labels": [[…], […]]}`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from flask import Blueprint, Response, request

from ..answers import verdict
from ..bodies import is_upload, json_response, read_json, read_upload
from ..catalogue import Catalogue
from ..inputs import InputError, takes_image
from ..manifest import rows_model

INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def articles(catalogue: Catalogue, wanted: str) -> Blueprint:
    """Return the route; `wanted` names the model that answers rows, or is empty.

    Raises ManifestError if it is unclear which model that is.
    """
    pictures = [model.manifest.name for model in catalogue if takes_image(model.manifest)]
    chosen = rows_model([model.manifest for model in catalogue], wanted)
    blueprint = Blueprint("articles", __name__)

    @blueprint.post("/predict")
    def predict() -> Response:
        return _upload() if is_upload(request) else _rows()

    def _upload() -> Response:
        picture = read_upload(request)
        if not pictures:
            raise InputError("no model of this server takes a picture; GET /models lists what they take")
        models = filter(None, [catalogue.choose(name) for name in pictures])
        return json_response([verdict(model.manifest, model.from_upload(picture)) for model in models])

    def _rows() -> Response:
        body = read_json(request)
        if "X" not in body:
            raise InputError('no X in the body; send {"X": "1 0|1 1"}, or a picture in the form field file')
        rows = parse_rows(body["X"])
        model = catalogue.choose(chosen.name) if chosen else None
        if model is None:
            raise InputError("no model of this server takes rows of unnamed numbers; GET /models lists what they take")
        outputs = model.from_rows(rows)
        return json_response({"labels": outputs[model.manifest.outputs[0].name]}, tokens=True)

    return blueprint


def parse_rows(text: Any) -> list[list[int | float]]:
    """Parse rows separated by `|`, each of numbers separated by blanks, all of one length. Raises InputError."""
    if not isinstance(text, str):
        raise InputError('X must be a text: rows separated by |, numbers by blanks, as in "1 0|1 1"')
    rows = [row.split() for row in text.split("|")]
    for number, row in enumerate(rows, 1):
        if not row:
            raise InputError(f"row {number} of X is empty")
        for item in row:
            if not NUMBER.fullmatch(item) or not np.isfinite(float(item)):
                raise InputError(f"row {number} of X: {item[:40]} is not a number")
        if len(row) != len(rows[0]):
            raise InputError(f"row {number} of X has the length {len(row)}, row 1 has {len(rows[0])}")
    return [[int(item) if INTEGER.fullmatch(item) else float(item) for item in row] for row in rows]
