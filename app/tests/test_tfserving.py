"""Clients of TensorFlow Serving get the answers that TensorFlow Serving would give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from conftest import make_manifest
from model_server.engines import Tensors
from model_server.manifest import InputSpec, OutputSpec

FLOATS = InputSpec("x", "float32", (-1, 2), "x", "tensor")
INTEGERS = InputSpec("n", "int64", (-1,), "n", "tensor")
SUM = OutputSpec("sum", "float32", (-1, 1), "s", "numbers")
LIKELY = OutputSpec("likely", "float32", (-1, 1), "l", "binary", labels=("no", "yes"))


def add(tensors: Tensors) -> Tensors:
    return {"sum": tensors["x"].sum(axis=1, keepdims=True)}


def both(tensors: Tensors) -> Tensors:
    return {"x": tensors["x"], "n": tensors["n"] * 2}


ONE = (make_manifest([FLOATS], [SUM], name="one"), add)
TWO = (
    make_manifest(
        [FLOATS, INTEGERS],
        [
            OutputSpec("x", "float32", (-1, 2), "x", "numbers"),
            OutputSpec("n", "int64", (-1,), "n", "numbers"),
        ],
        name="two",
    ),
    both,
)


def test_the_shipped_models_answer_in_rows_and_columns(client: FlaskClient) -> None:
    rows = client.post("/v1/models/xor:predict", json={"instances": [[1, 0], [1, 1]]}).json["predictions"]
    columns = client.post("/v1/models/xor:predict", json={"inputs": [[1, 0], [1, 1]]}).json["outputs"]
    assert rows == columns
    assert rows[0][0] > 0.9
    assert rows[1][0] < 0.1


def test_named_columns_are_rows_too(client: FlaskClient) -> None:
    barolo = client.get("/models").json["models"][2]["examples"][0]["row"]
    answer = client.post("/v1/models/wine:predict", json={"instances": [barolo]}).json["predictions"][0]
    assert answer.keys() == {"alcohol", "cultivar"}
    assert np.argmax(answer["cultivar"]) == 0


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"instances": [[1, 2], [3, 4]]}, {"predictions": [[3.0], [7.0]]}),
        ({"instances": [{"x": [1, 2]}]}, {"predictions": [[3.0]]}),
        ({"inputs": [[1, 2]]}, {"outputs": [[3.0]]}),
        ({"inputs": {"x": [[1, 2]]}}, {"outputs": [[3.0]]}),
        ({"signature_name": "serving_default", "instances": [[1, 2]], "more": 1}, {"predictions": [[3.0]]}),
    ],
)
def test_one_input(serve: Callable[..., FlaskClient], body: dict[str, Any], answer: dict[str, Any]) -> None:
    assert serve(ONE).post("/v1/models/one:predict", json=body).json == answer


def test_several_inputs_and_outputs(serve: Callable[..., FlaskClient]) -> None:
    client = serve(TWO)
    rows = {"instances": [{"x": [1, 2], "n": 3}, {"x": [4, 5], "n": 6}]}
    columns = {"inputs": {"x": [[1, 2], [4, 5]], "n": [3, 6]}}
    assert client.post("/v1/models/two:predict", json=rows).json == {
        "predictions": [{"x": [1.0, 2.0], "n": 6}, {"x": [4.0, 5.0], "n": 12}]
    }
    assert client.post("/v1/models/two:predict", json=columns).json == {
        "outputs": {"x": [[1.0, 2.0], [4.0, 5.0]], "n": [6, 12]}
    }


def test_numbers_keep_their_kind_and_their_shortest_digits(serve: Callable[..., FlaskClient]) -> None:
    body = {"inputs": {"x": [[0.1, 3]], "n": [3]}}
    assert serve(TWO).post("/v1/models/two:predict", json=body).text == '{"outputs":{"x":[[0.1,3.0]],"n":[6]}}'


def test_numbers_that_are_not_finite_are_written_as_tokens(serve: Callable[..., FlaskClient]) -> None:
    client = serve(TWO)
    body = '{"inputs": {"x": [[NaN, -Infinity], [Infinity, 0.1]], "n": [1, 2]}}'
    response = client.post("/v1/models/two:predict", data=body)
    assert response.text == '{"outputs": {"x": [[NaN, -Infinity], [Infinity, 0.1]], "n": [2, 4]}}'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instanses": [[1, 2]]}, "the body has instanses"),
        ({"instances": [[1, 2]], "inputs": [[1, 2]]}, "only one of"),
        ({"instances": []}, "No values in 'instances'"),
        ({"instances": 3}, "to be a list"),
        ({"instances": [[1, 2], [3]]}, "ragged"),
        ({"instances": [[1, 2, 3]]}, "[1, 3], the model takes [batch, 2]"),
        ({"instances": [[1, None]]}, "takes numbers only"),
        ({"instances": [{"y": [1, 2]}]}, "unknown name y"),
        ({"inputs": {"y": [[1, 2]]}}, "Missing named input: x"),
        ({"signature_name": 1, "instances": [[1, 2]]}, "must be a string"),
        ({"signature_name": "other", "instances": [[1, 2]]}, '"other" not found in signature def'),
        ([[1, 2]], "a list instead of an object"),
    ],
)
def test_wrong_bodies_are_refused(serve: Callable[..., FlaskClient], body: Any, words: str) -> None:
    response = serve(ONE).post("/v1/models/one:predict", json=body)
    assert response.status_code == 400
    assert words in response.json["error"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"instances": [[1, 2]]}, "takes float32 [2] as x; int64 a single value as n"),
        ({"instances": [{"x": [1, 2], "n": 1.0}]}, "integers only"),
        ({"instances": [{"x": [1, 2]}]}, "n missing"),
        ({"inputs": [[1, 2]]}, "an object with x, n"),
        ({"inputs": {"x": [[1, 2]], "n": [1, 2]}}, "same number of rows"),
    ],
)
def test_wrong_bodies_for_several_inputs_are_refused(serve: Callable[..., FlaskClient], body: Any, words: str) -> None:
    response = serve(TWO).post("/v1/models/two:predict", json=body)
    assert response.status_code == 400
    assert words in response.json["error"]


@pytest.mark.parametrize(
    "path",
    ["/V1/Models/xor:PREDICT", "/v1/models/xor/versions/1:predict", "/v1/models/xor/labels/stable:predict"],
)
def test_case_versions_and_labels(client: FlaskClient, path: str) -> None:
    assert client.post(path, json={"instances": [[1, 0]]}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/models/nope:predict", 404, "Servable not found for request: Latest(nope)"),
        (
            "POST",
            "/v1/models/xor/versions/2:predict",
            404,
            "Servable not found for request: Specific(xor, 2)",
        ),
        ("POST", "/v1/models/xor/labels/new:predict", 400, "Unrecognized servable version label: new"),
        ("POST", "/v1/models/xor:guess", 400, "Malformed request: POST /v1/models/xor:guess"),
        ("POST", "/v1/models/xor", 400, "Malformed request"),
        ("GET", "/v1/models/xor:predict", 400, "Malformed request"),
        ("GET", "/v1/models/nope", 404, "Could not find any versions of model nope"),
        ("GET", "/v1/models/xor/versions/2", 404, "Could not find version 2 of model xor"),
        ("GET", "/v1/models/nope/metadata", 404, "Latest(nope)"),
        ("GET", f"/v1/models/xor/versions/{'9' * 5000}", 404, "Could not find version 9"),
        ("PUT", "/v1/models/xor:predict", 405, "does not take PUT"),
    ],
)
def test_wrong_addresses_are_refused(client: FlaskClient, method: str, path: str, status: int, words: str) -> None:
    response = client.open(path, method=method, json={"instances": [[1, 0]]})
    assert response.status_code == status
    assert words in response.json["error"]


@pytest.mark.parametrize("path", ["/v1/models/xor", "/v1/models/xor/versions/1", "/v1/models/xor/labels/stable"])
def test_status(client: FlaskClient, path: str) -> None:
    assert client.get(path).json == {
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }


def test_metadata(serve: Callable[..., FlaskClient]) -> None:
    metadata = serve(TWO).get("/v1/models/two/metadata").json
    assert metadata["model_spec"] == {"name": "two", "signature_name": "", "version": "1"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
            "unknown_rank": False,
        },
        "name": "x",
    }
    assert signature["inputs"]["n"]["dtype"] == signature["outputs"]["n"]["dtype"] == "DT_INT64"


def test_text_goes_in_and_out(serve: Callable[..., FlaskClient]) -> None:
    text = InputSpec("t", "string", (-1,), "t", "tensor")
    outputs = [OutputSpec(name, "string", (-1,), name, "numbers") for name in ("upper", "raw_bytes")]
    model = make_manifest([text], outputs, name="text")

    def upper(tensors: Tensors) -> Tensors:
        return {"upper": np.array([item.upper() for item in tensors["t"]], object), "raw_bytes": tensors["t"]}

    response = serve((model, upper)).post("/v1/models/text:predict", json={"instances": ["ab", {"b64": "/w=="}]})
    assert response.json["predictions"] == [
        {"upper": "AB", "raw_bytes": {"b64": "YWI="}},
        {"upper": "\ufffd", "raw_bytes": {"b64": "/w=="}},
    ]


def test_classify_and_regress(serve: Callable[..., FlaskClient]) -> None:
    likely = (
        make_manifest([FLOATS], [LIKELY], name="likely"),
        lambda tensors: {"likely": tensors["x"][:, :1]},
    )
    client = serve(ONE, likely)
    examples = {"context": {"x": [0.25, 0]}, "examples": [{}, {"x": [1, 0]}]}
    assert client.post("/v1/models/likely:classify", json=examples).json == {
        "results": [[["no", 0.75], ["yes", 0.25]], [["no", 0.0], ["yes", 1.0]]]
    }
    assert client.post("/v1/models/one:regress", json=examples).json == {"results": [0.25, 1.0]}
    refused = client.post("/v1/models/one:classify", json=examples)
    assert refused.status_code == 400
    assert "Was: tensorflow/serving/predict" in refused.json["error"]
