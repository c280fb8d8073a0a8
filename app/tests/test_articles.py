"""POST /predict answers the two articles' clients as their own servers did."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from conftest import MODELS, make_manifest
from model_server.manifest import InputSpec, OutputSpec

SEVEN = (MODELS / "digits/examples/seven.png").read_bytes()


def test_rows_of_text_are_answered(client: FlaskClient) -> None:
    response = client.post("/predict", json={"X": "1 0|1 1"})
    assert response.status_code == 200
    assert response.json.keys() == {"labels"}
    [[different], [equal]] = response.json["labels"]
    assert different > 0.9
    assert equal < 0.1
    assert response.text.startswith('{"labels": [[0.9')


@pytest.mark.parametrize("field", ["file", "image"])
def test_an_upload_is_answered_by_the_picture_models_in_the_order_of_their_names(
    client: FlaskClient, field: str
) -> None:
    response = client.post("/predict", data={field: (io.BytesIO(SEVEN), "seven.png")})
    assert response.status_code == 200
    assert response.json == [7, 0]  # digits, then digits_even


def test_large_uploads_stay_in_memory(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("an upload was about to be written to a file")

    for name in ("TemporaryFile", "SpooledTemporaryFile", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, name, refuse)
        monkeypatch.setattr(f"werkzeug.formparser.{name}", refuse, raising=False)
    noise = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).save(noise, "PNG")
    assert len(noise.getvalue()) > 1_000_000
    noise.seek(0)
    assert client.post("/predict", data={"file": (noise, "noise.png")}).status_code == 200


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "no X in the body"),
        ({"X": 1}, "must be a text"),
        ({"X": ""}, "row 1 of X is empty"),
        ({"X": "1 0|"}, "row 2 of X is empty"),
        ({"X": "1 nan|1 1"}, "nan is not a number"),
        ({"X": "1 1e999"}, "1e999 is not a number"),
        ({"X": "1 0|1"}, "row 2 of X has the length 1"),
        ({"X": "1 0 1"}, "shape is [1, 3]"),
    ],
)
def test_wrong_rows_are_refused(client: FlaskClient, data: dict[str, Any], words: str) -> None:
    response = client.post("/predict", json=data)
    assert response.status_code == 400
    assert words in response.json["error"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "in the field file or image"),
        ({"picture": (io.BytesIO(SEVEN), "seven.png")}, "the form has picture"),
        ({"file": (io.BytesIO(b""), "empty.png")}, "the file is empty"),
        ({"file": (io.BytesIO(b"hello"), "hello.png")}, "not a picture"),
    ],
)
def test_wrong_uploads_are_refused(client: FlaskClient, data: dict[str, Any], words: str) -> None:
    response = client.post("/predict", data=data, content_type="multipart/form-data")
    assert response.status_code == 400
    assert words in response.json["error"]


def rows_model(name: str, predict: bool = True) -> tuple[Any, Callable[..., Any]]:
    manifest = make_manifest([InputSpec("x", "int32", (-1, 2), "x", "tensor")], name=name, predict=predict)
    return manifest, lambda tensors: {"y": tensors["x"].sum(axis=1, keepdims=True).astype(np.float32)}


def picture_model(name: str, answer: float, predict: bool = True) -> tuple[Any, Callable[..., Any]]:
    picture = [InputSpec("p", "float32", (-1, 2, 2, 1), "p", "image", color="grayscale")]
    return make_manifest(picture, name=name, predict=predict), lambda _: {"y": np.array([[answer]], np.float32)}


def test_only_models_whose_card_says_so_answer(serve: Callable[..., FlaskClient]) -> None:
    """A model that is added changes no client's answer."""
    others = [rows_model("a", predict=False), picture_model("b", 1.5, predict=False)]
    client = serve(*others, rows_model("x"), picture_model("y", 2.5))
    assert client.post("/predict", json={"X": "1 2"}).json == {"labels": [[3.0]]}
    assert client.post("/predict", data={"file": (io.BytesIO(SEVEN), "seven.png")}).json == [[2.5]]


@pytest.mark.parametrize("predict", [True, False])
def test_where_it_is_unclear_which_model_answers_rows_the_choices_are_listed(
    serve: Callable[..., FlaskClient], predict: bool
) -> None:
    response = serve(rows_model("a", predict), rows_model("b", predict)).post("/predict", json={"X": "1 2"})
    assert response.status_code == 400
    assert "/predict/NAME" in response.json["error"]
    assert "a and b" in response.json["error"] or "a or b" in response.json["error"]


def test_where_no_model_answers_uploads_the_choices_are_listed(serve: Callable[..., FlaskClient]) -> None:
    client = serve(picture_model("a", 1, False), picture_model("b", 2, False), picture_model("c", 3, False))
    response = client.post("/predict", data={"file": (io.BytesIO(SEVEN), "seven.png")})
    assert response.status_code == 400
    assert "a, b or c" in response.json["error"] and "predict: true" in response.json["error"]


def test_an_upload_gets_zero_or_one_from_a_binary_model_and_numbers_from_others(
    serve: Callable[..., FlaskClient],
) -> None:
    picture = [InputSpec("p", "float32", (-1, 2, 2, 1), "p", "image", color="grayscale")]
    binary = [OutputSpec("y", "float32", (-1, 1), "y", "binary", threshold=0.5)]
    client = serve(
        (make_manifest(picture, binary, name="yes", predict=True), lambda _: {"y": np.array([[0.51]], np.float32)}),
        (make_manifest(picture, binary, name="no", predict=True), lambda _: {"y": np.array([[0.5]], np.float32)}),
        picture_model("number", 2.5),
    )
    response = client.post("/predict", data={"file": (io.BytesIO(SEVEN), "seven.png")})
    assert response.json == [0, [2.5], 1]  # no, number, yes


def test_without_picture_models_an_upload_is_refused(serve: Callable[..., FlaskClient]) -> None:
    response = serve(rows_model("a")).post("/predict", data={"file": (io.BytesIO(SEVEN), "seven.png")})
    assert response.status_code == 400
    assert "no model of this server takes a picture" in response.json["error"]
