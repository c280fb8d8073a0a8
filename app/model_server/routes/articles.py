"""POST /predict, as the clients of two articles send it. They work unchanged; Slipway grew from these articles.

- "Deploy Keras models to production level easily" (2020, https://github.com/s-gbz/keras-flask-deploy-webapp): an
  upload in the form field `file`, here also `image`, is answered by several models. The answer is a JSON array in the
  order of the models' names: 0 or 1 of a binary model, else the index of the likeliest class.
- "Hosting a Keras model with the Tensorflow Backend on Azure App Services" (2017,
  https://github.com/mitchellspryn/AzureAppServiceKerasDemo): rows as text, `{"X": "1 0|1 1"}`, are answered by one
  model with `{"labels": [[…], […]]}`.

These requests name no model. A model answers them only if its card says so, so that a model that is added changes no
client's answer.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from flask import Blueprint, Response, request

from ..bodies import is_upload, json_response, read_json, read_upload
from ..catalogue import Catalogue, Model
from ..inputs import InputError
from ..manifest import takes_image, takes_numbers

INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def articles(catalogue: Catalogue) -> Blueprint:
    """Return the route."""
    pictures = [model for model in catalogue if model.manifest.predict and takes_image(model.manifest)]
    numbers = [model for model in catalogue if model.manifest.predict and takes_numbers(model.manifest)]
    blueprint = Blueprint("articles", __name__)

    @blueprint.post("/predict")
    def predict() -> Response:
        return _upload() if is_upload(request) else _rows()

    def _upload() -> Response:
        picture = read_upload(request)
        if not pictures:
            raise _no_model("a picture", [model for model in catalogue if takes_image(model.manifest)])
        models = [catalogue.choose(model.manifest.name) for model in pictures]
        return json_response([model.verdict(model.from_upload(picture)) for model in models])

    def _rows() -> Response:
        body = read_json(request)
        if "X" not in body:
            raise InputError('no X in the body; send {"X": "1 0|1 1"}, or a picture in the form field file')
        rows = parse_rows(body["X"])
        if not numbers:
            raise _no_model("rows of numbers", [model for model in catalogue if takes_numbers(model.manifest)])
        if len(numbers) > 1:
            raise InputError(f"{_names(numbers)} take rows of numbers; ask one of them at /predict/NAME")
        model = catalogue.choose(numbers[0].manifest.name)
        outputs = model.from_rows(rows)
        return json_response({"labels": outputs[model.manifest.outputs[0].name]}, tokens=True)

    return blueprint


def _no_model(what: str, able: list[Model]) -> InputError:
    if not able:
        return InputError(f"no model of this server takes {what}; GET /models lists what they take")
    return InputError(
        f"no model answers {what} at this address; ask at /predict/NAME, where NAME is {_names(able, 'or')}. Only "
        "models with predict: true in their cards answer here"
    )


def _names(models: list[Model], word: str = "and") -> str:
    *most, last = [model.manifest.name for model in models]
    return f"{', '.join(most)} {word} {last}" if most else last


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
