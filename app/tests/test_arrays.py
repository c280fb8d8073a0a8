"""Large arrays in JSON: they arrive as orjson and NumPy would read them, and nothing irregular passes."""

from __future__ import annotations

import itertools

import numpy as np
import orjson
import pytest
from flask.testing import FlaskClient

from model_server.arrays import parse_array, parse_tensors

SHAPES = [(1,), (3,), (2, 1, 3), (1, 1), (5, 1), (4, 1, 1, 2), (1, 1, 1, 1), (1, 8, 8, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64"])
@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_a_regular_array_arrives_exactly(shape: tuple[int, ...], dtype: str, space: str) -> None:
    numbers = np.random.default_rng(1).random(shape) * 2 - 1
    array = numbers if dtype == "float64" else (numbers * 2**62).astype(np.int64).astype(dtype)
    if dtype == "uint64":
        array[..., -1] = 2**64 - 1
    text = orjson.dumps({"signature_name": "eE", "instances": array.tolist()}).replace(b",", b"," + space.encode())
    parsed = parse_array(text)
    assert parsed is not None
    assert parsed["signature_name"] == "eE"
    assert parsed["instances"].dtype == array.dtype
    assert np.array_equal(parsed["instances"], array)


@pytest.mark.parametrize(
    "body",
    [
        '{"a":[[1,2],[3]]}',
        '{"a":[[1],2]}',
        '{"a":[1,[2]]}',
        '{"a":[]}',
        '{"a":[[]]}',
        '{"a":[[1,2],[]]}',
        '{"a":[[[1]],[[2,3]]]}',
        '{"a":[[[1,2]],[[3]]]}',
        '{"a":[[[1],[2]],[[3,4]]]}',
        '{"a":[1,"x"]}',
        '{"a":[1,null]}',
        '{"a":[true]}',
        '{"a":[1,{}]}',
        '{"a":[1],"b":[2]}',
        '{"a":{"b":[1]}}',
        '{"a":[1],"b":{}}',
        '{"a":[1],"a":5}',
        '{"a":[1,2',
        '{"a":[1,,2]}',
        '{"a":[1,2,]}',
        '{"a":[NaN]}',
        '{"a":[1e999]}',
        '{"a":[ee]}',
        '{"a":[-]}',
        '{"a":[01]}',
        '{"a":[1]}]',
        "[1,2]",
        "5",
        "",
        "[" * 100_000,
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_anything_else_is_left_to_the_other_parser(body: str) -> None:
    assert parse_array(body.encode()) is None


def test_no_irregular_nesting_passes() -> None:
    leaves = ["1", "[]", "[1]", "[1,2]", "[[1]]", "[[1],[2]]", "[[1,2]]", "[[1],[2,3]]"]
    for parts in itertools.product(leaves, repeat=3):
        text = f'{{"a":[{",".join(parts)}]}}'
        parsed = parse_array(text.encode())
        try:
            array = np.array(orjson.loads(text)["a"])
        except ValueError:
            array = np.array([])
        if array.size == 0:
            assert parsed is None, text
        else:
            assert parsed is not None, text
            assert parsed["a"].shape == array.shape, text


@pytest.mark.parametrize("size", [8, 20, 200])
def test_small_and_large_bodies_are_answered_alike(client: FlaskClient, size: int) -> None:
    pixels = np.random.default_rng(2).random((size, 8, 8, 1)).round(3)
    answers = [
        client.post("/v1/models/digits:predict", data=orjson.dumps({"instances": pixels.tolist()})).json,
        {"predictions": client.post("/v1/models/digits:predict", json={"inputs": pixels.tolist()}).json["outputs"]},
        {
            "predictions": [
                client.post("/v1/models/digits:predict", json={"instances": [row]}).json["predictions"][0]
                for row in pixels.tolist()
            ]
        },
        {
            "predictions": [
                answer["digit"]["values"]
                for answer in client.post("/predict/digits", json={"rows": pixels.tolist()}).json["answers"]
            ]
        },
    ]
    for answer in answers:
        assert np.allclose(answer["predictions"], answers[0]["predictions"], atol=1e-6)
    row = client.post("/predict/digits", json={"row": pixels[0].tolist()}).json["answers"][0]["digit"]["values"]
    assert np.allclose(row, answers[0]["predictions"][0], atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1.5] * 300], "the shape is [1, 300], the model takes [batch, 2]"),
        ([[1.5, 2]] * 200 + [[1]], "ragged"),
        ([[1.5, "x"]] * 200, "takes numbers only"),
        ([[1e300, 1]] * 200, "does not fit float32"),
    ],
)
def test_large_bodies_are_refused_like_small_ones(client: FlaskClient, rows: list[list[float]], words: str) -> None:
    for path, key in (("/v1/models/xor:predict", "instances"), ("/predict/xor", "rows")):
        response = client.post(path, json={key: rows})
        assert response.status_code == 400
        assert words in response.json["error"]


def v2(data: str, more: str = "") -> bytes:
    tensor = f'{{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": {data}}}'
    return f'{{"id": "a", "inputs": [{tensor}]{more}}}'.encode()


@pytest.mark.parametrize("data", ["[1, 2, 3]", "[0.5, -1e3, 2]", f"[{2**64 - 1}, 0, 1]"])
@pytest.mark.parametrize("more", ["", ', "outputs": [{"name": "y", "parameters": {"binary_data": true}}]'])
def test_data_of_a_tensor_arrives_exactly(data: str, more: str) -> None:
    body = v2(data, more)
    parsed, wanted = parse_tensors(body), orjson.loads(body)
    assert parsed is not None
    array, numbers = parsed["inputs"][0].pop("data"), wanted["inputs"][0].pop("data")
    assert parsed == wanted
    assert array.tolist() == numbers


@pytest.mark.parametrize(
    "body",
    [
        v2("[[1, 2, 3]]"),
        v2("[1, [2], 3]"),
        v2('["a", "b", "c"]'),
        v2("[1, true, 3]"),
        v2("[1, null, 3]"),
        v2("[1, {}, 3]"),
        v2("5"),
        v2("[1,2,3]", ', "inputs": []'),
        v2("[1,2,3]").replace(b'"name"', b'"data": [4], "name"'),
        v2("[1, 2, 3]")[:-1],
        b'{"inputs": 5}',
        b'{"inputs": [5]}',
        b'{"inputs": {"data": [1]}}',
        b"[1,2]",
        b"",
    ],
)
def test_any_other_request_to_infer_is_left_to_the_other_parser(body: bytes) -> None:
    assert parse_tensors(body) is None
