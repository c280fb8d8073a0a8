"""Slipway's own API, which the page uses, too: GET /models and POST /predict/NAME."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flask.testing import FlaskClient

from conftest import make_manifest
from model_server.manifest import InputSpec, OutputSpec

FLOATS = InputSpec("x", "float32", (-1, 1), "x", "tensor")
LABEL = OutputSpec("y", "float32", (-1, 2), "y", "classes", labels=("no", "yes"))


def test_models_are_listed_with_what_the_page_needs(client: FlaskClient) -> None:
    models = {model["name"]: model for model in client.get("/models").json["models"]}
    assert list(models) == ["digits", "digits_even", "wine", "xor"]
    assert models["digits"]["inputs"][0]["kind"] == "image"
    sample = models["digits"]["examples"][0]["row"]["url"]
    response = client.get("/" + sample)
    assert response.mimetype == "image/png"
    assert client.post("/predict/digits", data=response.data, content_type="image/png").status_code == 200


@pytest.mark.parametrize("path", ["manifest.json", "model.tflite", "examples/../manifest.json", "examples/none.png"])
def test_only_a_models_examples_can_be_fetched(client: FlaskClient, path: str) -> None:
    assert client.get(f"/models/digits/{path}").status_code == 404


def test_rows_are_answered_in_one_batch(client: FlaskClient) -> None:
    answer = client.post("/predict/xor", json={"rows": [[1, 0], [0, 0]]}).json
    assert answer["model"] == "xor"
    assert [round(one["activation_2"]["values"][0]) for one in answer["answers"]] == [1, 0]
    assert answer["milliseconds"] > 0


def test_answers_are_strict_json(serve: Callable[..., FlaskClient]) -> None:
    response = serve((make_manifest([FLOATS], [LABEL]), lambda _: {"y": np.array([[np.nan, 1]], np.float32)})).post(
        "/predict/made", json={"row": [1]}
    )
    assert response.json["answers"] == [{"y": {"index": None, "label": None, "values": [None, 1.0]}}]
