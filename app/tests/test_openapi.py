"""GET /openapi.json: the document is valid, has every route, and its examples are answered as it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from werkzeug.test import TestResponse

from conftest import make_manifest
from model_server.manifest import Example, InputSpec, OutputSpec

TEXT = (
    make_manifest([InputSpec("words", "string", (-1,), "w", "tensor")], name="text"),
    lambda tensors: {"y": np.full((len(tensors["words"]), 1), np.nan, np.float32)},
)
TWO = (
    make_manifest(
        [
            InputSpec("photo", "float32", (-1, -1, -1, 3), "p", "image", color="rgb"),
            InputSpec("facts", "int32", (-1, 2), "f", "columns", columns=("age", "facts")),
        ],
        [
            OutputSpec("kind", "float32", (-1, 2), "k", "classes", labels=("cat", "dog")),
            OutputSpec("caption", "string", (-1,), "c", "numbers"),
        ],
        name="two",
        examples=(
            Example("whole", {"photo": [[[0, 0, 0]]], "facts": [3, 4]}, {"kind": "dog", "caption": "a dog"}),
            Example("columns", {"photo": [[[0, 0, 0]]], "age": 3, "facts": 4}, {"kind": 1}),
        ),
    ),
    lambda tensors: {
        "kind": np.tile(np.array([0, 1], np.float32), (len(tensors["facts"]), 1)),
        "caption": np.array([b"a dog"] * len(tensors["facts"]), object),
    },
)
SCORE = (
    make_manifest(
        [InputSpec("x", "float32", (-1, 2), "x", "tensor")],
        [OutputSpec("y", "float32", (-1, 1), "y", "binary")],
        name="score",
        predict=True,
        examples=(Example("high", [1, 2], {"y": 1}), Example("many", [0.5, 2], {"y": [0.75]})),
    ),
    lambda tensors: {"y": np.full((len(tensors["x"]), 1), 0.75, np.float32)},
)

LETTERS = (
    make_manifest(
        [InputSpec("x", "float32", (-1, 3), "x", "tensor")],
        [
            OutputSpec("gene", "float32", (-1, 3, 2), "g", "classes", labels=("no", "yes")),
            OutputSpec("cut", "float32", (-1, -1, 1), "c", "binary"),
            OutputSpec("mask", "float32", (-1, 2, 2, 1), "m", "image", scale=1 / 255),
        ],
        name="letters",
        examples=(
            Example(
                "recorded",
                [1, 2, 3],
                {
                    "gene": {"shape": [3, 2], "values": [0, 1, 0, 1, 0, 1]},
                    "cut": {"shape": [3, 1], "values": [0.25, 0.25, 0.25]},
                    "mask": {"shape": [2, 2, 1], "values": [0.5, 0.5, 0.5, 0.5]},
                },
            ),
            Example(
                "labels", [1, 2, 3], {"gene": ["yes", "yes", "yes"], "cut": [0, 0, 0], "mask": [[[0.5], [0.5]]] * 2}
            ),
        ),
    ),
    lambda tensors: {
        "gene": np.tile(np.array([0, 1], np.float32), (len(tensors["x"]), 3, 1)),
        "cut": np.full((len(tensors["x"]), 3, 1), 0.25, np.float32),
        "mask": np.full((len(tensors["x"]), 2, 2, 1), 0.5, np.float32),
    },
)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            values = {
                parameter["name"]: parameter["example"]
                for parameter in operation.get("parameters", [])
                if parameter.get("in") == "path"
            }
            yield method.upper(), re.sub(r"{(\w+)}", lambda found, values=values: values[found[1]], path), operation


def requests(client: FlaskClient, document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], TestResponse]]:
    """Send every example of the document, and every request that needs none; yield what it is and the answer."""
    for method, path, operation in operations(document):
        if method == "GET":
            yield operation, client.get(path)
        for kind, media in operation.get("requestBody", {}).get("content", {}).items():
            for example in media.get("examples", {}).values():
                if "value" in example:
                    yield operation, client.post(path, json=example["value"], content_type=kind)
                else:
                    picture = client.get(example["externalValue"])
                    assert picture.mimetype.startswith("image/")
                    yield operation, client.post(path, data=picture.data, content_type=picture.mimetype)


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({"components": document["components"], **schema})


def check_examples(document: dict[str, Any]) -> int:
    """Compare every example, of requests and answers, with its schema; return how many there are."""
    medias = [
        media
        for _, _, operation in operations(document)
        for holder in (operation.get("requestBody", {}), operation["responses"]["200"])
        for media in holder.get("content", {}).values()
    ]
    values = [
        (media["schema"], one["value"])
        for media in medias
        for one in media.get("examples", {}).values()
        if "value" in one
    ]
    for schema, value in values:
        validator(document, schema).validate(value)
    return len(values)


def check_answers(client: FlaskClient) -> set[str]:
    """Ask for the document and everything that it describes; return the operations that were asked."""
    document = client.get("/openapi.json").json
    validate(document)
    assert check_examples(document)
    asked = set()
    for operation, response in requests(client, document):
        assert response.status_code == 200, (operation["operationId"], response.text)
        content = operation["responses"]["200"]["content"]
        [kind] = [kind for kind in content if re.fullmatch(kind.replace("*", ".*"), response.mimetype)]
        if kind == "application/json":
            validator(document, content[kind]["schema"]).validate(response.json)
        asked.add(operation["operationId"])
    return asked


def test_every_example_of_the_shipped_models_is_answered_as_documented(client: FlaskClient) -> None:
    document = client.get("/openapi.json").json
    asked = check_answers(client)
    documented = {operation["operationId"] for _, _, operation in operations(document)}
    # These have no example: what they take differs by model, and stands with the model.
    by_version = {
        "predict_by_version",
        "predict_by_label",
        "tfserving_ask_version",
        "tfserving_ask_label",
        "infer_by_version",
    }
    assert documented - asked == by_version


def test_examples_of_other_kinds_of_models_are_answered_as_documented(serve: Callable[..., FlaskClient]) -> None:
    asked = check_answers(serve(TEXT, TWO, SCORE, LETTERS))
    assert {
        "predict",
        "predict_text",
        "predict_two",
        "predict_letters",
        "tfserving_predict_two",
        "infer_two",
        "tfserving_classify_score",
    } <= asked


def test_a_recorded_answer_is_an_example_of_the_answer(serve: Callable[..., FlaskClient]) -> None:
    asked = serve(LETTERS).get("/openapi.json").json["paths"]["/predict/letters"]["post"]
    [(name, example)] = asked["responses"]["200"]["content"]["application/json"]["examples"].items()
    assert name == "recorded" and example["description"] == "The model's own answer, recorded when it was compiled."
    [answer] = example["value"]["answers"]
    assert answer["gene"]["label"] == ["yes"] * 3 and answer["cut"]["index"] == [0] * 3
    assert answer["mask"]["image"]["b64"]


def test_every_route_is_in_the_document_and_nothing_else(client: FlaskClient) -> None:
    app: Flask = client.application
    router = app.url_map.bind("localhost")
    documented = set()
    for method, path, operation in operations(client.get("/openapi.json").json):
        rule, _ = router.match(quote(path), method, return_rule=True)
        documented.add((method, rule.rule))
        assert operation["operationId"]
    # The second refuses every request.
    left_out = {"static", "inference.change"}
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint not in left_out]
    assert documented == {(method, rule.rule) for rule in rules for method in rule.methods - {"HEAD", "OPTIONS"}}


def test_names_of_operations_are_unique(client: FlaskClient) -> None:
    names = [operation["operationId"] for _, _, operation in operations(client.get("/openapi.json").json)]
    assert len(names) == len(set(names))


def test_the_card_is_in_the_document(client: FlaskClient) -> None:
    wine = client.get("/openapi.json").json["paths"]["/predict/wine"]["post"]
    assert wine["summary"] == "Wine"
    assert wine["description"].startswith("Twelve measurements")
    asked = wine["requestBody"]["content"]["application/json"]["examples"]
    assert asked["a Barolo"]["value"]["row"]["proline"] == 845
    assert asked["a Barolo"]["description"] == "The card expects cultivar: Barolo, alcohol: 13.5."
    answered = wine["responses"]["200"]["content"]["application/json"]["examples"]
    assert list(answered) == ["a Barolo", "a Barbera"]  # nothing is expected of the other's alcohol
    assert answered["a Barolo"]["value"]["answers"][0]["cultivar"]["label"] == "Barolo"


def test_a_large_example_is_left_out(serve: Callable[..., FlaskClient]) -> None:
    large = make_manifest([InputSpec("x", "float32", (-1, 64, 64, 3), "x", "tensor")])
    document = serve((large, lambda tensors: tensors)).get("/openapi.json").json
    assert "examples" not in document["paths"]["/predict/made"]["post"]["requestBody"]["content"]["application/json"]


def test_a_row_has_the_shape_of_the_input(serve: Callable[..., FlaskClient]) -> None:
    free = make_manifest([InputSpec("x", "float32", (-1, -1, 3), "x", "tensor")])
    document = serve((free, lambda tensors: tensors)).get("/openapi.json").json
    row = validator(document, {"$ref": "#/components/schemas/made.row"})
    assert all(row.is_valid(value) for value in ([[1, 2, 3]], [[1, 2.5, 3]] * 9, {"x": [[1, 2, 3]]}))
    assert not any(row.is_valid(value) for value in ([], [1, 2, 3], [[1, 2]], [["a", 2, 3]], {"y": [[1, 2, 3]]}, {}))


def test_the_document_is_sent_again_only_when_it_changed(client: FlaskClient) -> None:
    first = client.get("/openapi.json")
    assert first.headers["Cache-Control"] == "no-cache"
    assert first.headers["ETag"] == f'"{first.json["info"]["version"]}"'
    again = client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
