"""Each kind of input and output that a card knows, with a small model: compiled, served, asked as clients ask."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from flask.testing import FlaskClient
from keras import layers
from PIL import Image

from model_server.app import create_app
from model_server.compile import CompileError
from model_server.compile.__main__ import _table
from model_server.compile.build import compile_model
from model_server.manifest import Manifest, read_manifest
from model_server.settings import Settings

Deploy = Callable[..., tuple[Manifest, FlaskClient]]


@pytest.fixture
def deploy(tmp_path: Path) -> Deploy:
    """A function that compiles a model with a card and serves it as `m`; every example must be answered right."""

    def deploy(model: keras.Model, card: str) -> tuple[Manifest, FlaskClient]:
        folder = tmp_path / "models" / "m"
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder / "m.keras")
        (folder / "model.yml").write_text(card)
        compile_model(folder, tmp_path / "compiled")
        client = create_app(Settings(models=tmp_path / "compiled")).test_client()
        assert client.get("/readyz").status_code == 200, client.get("/readyz").json
        return read_manifest(tmp_path / "compiled" / "m"), client

    return deploy


def ask(client: FlaskClient, *rows: Any) -> list[dict[str, Any]]:
    response = client.post("/predict/m", json={"rows": rows})
    assert response.status_code == 200, response.json
    answers: list[dict[str, Any]] = response.json["answers"]
    return answers


def splice(context: int = 100) -> keras.Model:
    """A model like SpliceAI: bases in, of each base but the outer ones three probabilities out."""
    bases = keras.Input((None, 4), name="bases")
    x = layers.Conv1D(8, 11, dilation_rate=context // 10, activation="relu")(bases)
    return keras.Model(bases, layers.Conv1D(3, 1, activation="softmax", name="site")(x))


# ---------------------------------------------------------------- free sizes


def test_a_model_that_needs_a_least_length_is_compiled_with_the_cards_shape(deploy: Deploy) -> None:
    model = splice()
    manifest, client = deploy(model, "inputs: {bases: {kind: tensor, shape: [101, 4]}}")
    assert (manifest.inputs[0].shape, manifest.inputs[0].row_shape) == ((-1, -1, 4), (101, 4))
    bases = np.eye(4)[np.random.default_rng(0).integers(0, 4, 130)]
    (answer,) = ask(client, bases.tolist())
    np.testing.assert_allclose(answer["site"]["values"], model(bases[None])[0], atol=1e-4)
    short = client.post("/predict/m", json={"row": bases[:50].tolist()})
    assert short.status_code == 400


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("", ["bases [1, 16, 4]", "give the input a shape in the card"]),
        ("inputs: {bases: {kind: tensor, shape: [60, 4]}}", ["bases [1, 60, 4]", "the shape that the card gives"]),
        ("inputs: {bases: {kind: tensor, shape: [101, 5]}}", ["inputs.bases: shape", "[101, 5]", "[any, any, 4]"]),
        ("inputs: {bases: {kind: tensor, shape: [101]}}", ["inputs.bases: shape", "[101]", "[any, any, 4]"]),
        ("inputs: {bases: {kind: tensor, shape: [1, 101, 4]}}", ["[1, 101, 4]", "after the first, which is the batch"]),
    ],
)
def test_a_shape_that_the_model_does_not_take_is_refused(deploy: Deploy, card: str, words: list[str]) -> None:
    with pytest.raises(CompileError) as error:
        deploy(splice(), card)
    assert [word for word in words if word not in str(error.value)] == []


def test_a_model_of_free_length_without_examples_is_ready(deploy: Deploy) -> None:
    """Zeros of the length 1 would be too short for it."""
    x = keras.Input((None, 3), name="x")
    deploy(keras.Model(x, layers.Conv1D(2, 7, name="y")(x)), "")


def test_a_picture_of_free_size_may_need_a_least_one(deploy: Deploy) -> None:
    picture = keras.Input((None, None, 3), name="picture")
    x = layers.Conv2D(2, 40)(picture)
    manifest, _ = deploy(
        keras.Model(picture, layers.GlobalAveragePooling2D(name="y")(x)),
        "inputs: {picture: {kind: image, scale: 1/255, shape: [48, 40, 3]}}",
    )
    assert manifest.inputs[0].row_shape == (48, 40, 3)


# ---------------------------------------------------------------- an answer a step


def tagger(steps: int | None = None) -> keras.Model:
    """A model that labels each word number of a sentence by its rest on division by 3."""
    words = keras.Input((steps,), dtype="int32", name="words")
    scores = layers.Embedding(30, 3, name="e")(words)
    model = keras.Model(words, layers.Softmax(name="tag")(scores))
    model.get_layer("e").set_weights([np.eye(3)[np.arange(30) % 3] * 4])
    return model


def test_each_step_of_a_sentence_has_a_label(deploy: Deploy) -> None:
    _, client = deploy(
        tagger(),
        """
        outputs: {tag: {kind: classes, labels: [O, PER, LOC]}}
        examples: [{input: [3, 4, 5, 28], expect: [O, PER, LOC, PER]}]
        """,
    )
    first, second = ask(client, [0, 2], [1, 1])
    assert (first["tag"]["label"], first["tag"]["index"]) == (["O", "LOC"], [0, 2])
    assert second["tag"]["label"] == ["PER", "PER"]
    assert first["tag"]["probability"] == pytest.approx([np.e**4 / (np.e**4 + 2)] * 2, abs=1e-4)
    refused = client.post("/v1/models/m:classify", json={"examples": [{"words": [0, 2]}]})
    assert refused.status_code == 400 and "Ask with :predict" in refused.json["error"]


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("outputs: {tag: {kind: classes, labels: [a, b]}}", ["2 labels", "3 classes", "[any, any, 3]"]),
        ("outputs: {tag: {kind: binary}}", ["the last size", "[any, any, 3]"]),
        (
            "{outputs: {tag: {kind: classes, labels: [a, b, c]}}, examples: [{input: [1, 2], expect: [a, d]}]}",
            ["example 1", "no label 'd'", "a, b, c"],
        ),
        (
            "{outputs: {tag: {kind: classes, labels: [a, b, c]}}, examples: [{input: [1, 2], expect: [b, b]}]}",
            ["c instead of b at step 2"],
        ),
    ],
)
def test_labels_that_do_not_fit_the_steps_are_refused(deploy: Deploy, card: str, words: list[str]) -> None:
    with pytest.raises(CompileError) as error:
        deploy(tagger(), card)
    assert [word for word in words if word not in str(error.value)] == []


# ---------------------------------------------------------------- pictures out


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def test_an_autoencoder_answers_a_picture_that_is_a_valid_input(deploy: Deploy) -> None:
    picture = keras.Input((16, 16, 3), name="picture")
    x = layers.Conv2D(3, 1, use_bias=False, name="c")(picture)
    model = keras.Model(picture, layers.Activation("linear", name="again")(x))
    model.get_layer("c").set_weights([np.eye(3)[None, None, ::-1]])  # swaps red and blue
    _, client = deploy(
        model,
        """
        inputs: {picture: {kind: image, scale: 1/255}}
        outputs: {again: {kind: image, scale: 1/255}}
        """,
    )
    answer = client.post("/predict/m", data=png(NOISE), content_type="image/png").json["answers"][0]["again"]
    assert answer.keys() == {"image"}
    swapped = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["image"]["b64"]))))
    np.testing.assert_array_equal(swapped, NOISE[:, :, ::-1])
    (back,) = ask(client, answer["image"])
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(back["again"]["image"]["b64"])))), NOISE
    )


def test_a_mask_has_a_label_for_each_pixel(deploy: Deploy) -> None:
    picture = keras.Input((16, 16, 3), name="picture")
    model = keras.Model(picture, layers.Conv2D(1, 1, activation="sigmoid", name="mask")(picture))
    model.get_layer("mask").set_weights([np.array([20.0, 0, 0]).reshape(1, 1, 3, 1), np.array([-10.0])])
    _, client = deploy(
        model,
        """
        inputs: {picture: {kind: image, scale: 1/255}}
        outputs: {mask: {kind: binary, labels: [other, red]}}
        """,
    )
    answer = client.post("/predict/m", data=png(NOISE), content_type="image/png").json["answers"][0]["mask"]
    assert np.shape(answer["values"]) == (16, 16, 1)
    np.testing.assert_array_equal(np.array(answer["label"]) == "red", NOISE[:, :, 0] > 127)


# ---------------------------------------------------------------- warnings


def digit(*first: layers.Layer, bias: float = 0.0) -> keras.Model:
    picture = keras.Input((4, 4, 1), name="picture")
    x = picture
    for layer in first:
        x = layer(x)
    model = keras.Model(picture, layers.Dense(1, activation="sigmoid", name="one")(layers.Flatten()(x)))
    kernel, _ = model.get_layer("one").get_weights()
    model.get_layer("one").set_weights([kernel, np.array([bias])])
    return model


EXAMPLE = (
    "examples: [{input: [[[0], [0.1], [0], [0]], [[0], [0], [0.3], [0]], [[0], [0], [0], [0]], [[1], [0], [0], [1]]]}]"
)


@pytest.mark.parametrize(
    ("model", "card", "words"),
    [
        (digit(), "inputs: {picture: {kind: image, scale: 1/255}}", ["no example"]),
        (digit(), "inputs: {picture: {kind: image}}\n" + EXAMPLE, ["inputs.picture has no scale"]),
        (digit(), "inputs: {picture: {kind: image, scale: 1}}\n" + EXAMPLE, []),
        (digit(layers.Rescaling(1 / 255)), "inputs: {picture: {kind: image}}\n" + EXAMPLE, []),
        (digit(bias=90), "inputs: {picture: {kind: image, scale: 1/255}}\n" + EXAMPLE, ["every answer", "0 or 1"]),
        (
            digit(),
            "inputs: {picture: {kind: image, scale: 1/255}}\noutputs: {one: {kind: binary}}\n" + EXAMPLE,
            [],
        ),
    ],
)
def test_what_hides_a_wrong_scale_is_a_warning(tmp_path: Path, model: keras.Model, card: str, words: list[str]) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    model.save(folder / "m.keras")
    (folder / "model.yml").write_text(card)
    report = compile_model(folder, tmp_path / "compiled")
    assert [word for word in words if word not in " ".join(report.warnings)] == []
    assert bool(report.warnings) == bool(words)
    assert all(f"m: warning: {warning}" in _table([report]) for warning in report.warnings)


def test_a_picture_whose_numbers_are_small_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    picture = keras.Input((4, 4, 1), name="picture")
    keras.Model(picture, layers.Conv2D(1, 1, activation="sigmoid", name="mask")(picture)).save(folder / "m.keras")
    (folder / "model.yml").write_text(
        f"inputs: {{picture: {{kind: image, scale: 1/255}}}}\noutputs: {{mask: {{kind: image}}}}\n{EXAMPLE}"
    )
    (warning,) = compile_model(folder, tmp_path / "compiled").warnings
    assert "outputs.mask" in warning and "black" in warning


# ---------------------------------------------------------------- text and categories


@pytest.mark.parametrize("shape", [(), (1,)])
def test_text_in(deploy: Deploy, shape: tuple[int, ...]) -> None:
    vectorize = layers.TextVectorization(output_mode="multi_hot", vocabulary=["good", "bad"])
    text = keras.Input(shape, dtype="string", name="text")
    mood = layers.Dense(1, activation="sigmoid", name="mood")(vectorize(text))
    model = keras.Model(text, mood)
    model.get_layer("mood").set_weights([np.array([[0.0], [2], [-2]]), np.zeros(1)])
    row = {(): "a {} film", (1,): "[a {} film]"}[shape]
    manifest, client = deploy(
        model,
        f"""
        outputs: {{mood: {{kind: binary, labels: [bad, good]}}}}
        examples:
          - {{input: {row.format("good")}, expect: good}}
          - {{input: {{text: {row.format("bad")}}}, expect: bad}}
          - {{input: {row.format("new")}}}
        """,
    )
    assert (manifest.engine, manifest.inputs[0].dtype) == ("tensorflow", "string")
    answers = ask(client, *(one if shape == () else [one] for one in ("good and good", "bad", "")))
    assert [round(one["mood"]["values"][0], 2) for one in answers] == [0.88, 0.12, 0.5]
    (described,) = client.get("/models").json["models"]
    assert described["examples"][0]["row"] == ("a good film" if shape == () else ["a good film"])


def test_categories_and_numbers_in_and_several_outputs(deploy: Deploy) -> None:
    """A table's row, as Keras's guide to structured data has it: an input a column, each of one value."""
    color = keras.Input((1,), dtype="string", name="color")
    rooms = keras.Input((1,), dtype="int32", name="rooms")
    area = keras.Input((1,), name="area")
    known = layers.StringLookup(vocabulary=["red", "blue"], output_mode="one_hot")(color)
    size = layers.IntegerLookup(vocabulary=[1, 2], output_mode="one_hot")(rooms)
    features = layers.Concatenate()([known, size, area])
    scores = layers.Dense(2, activation="softmax", name="sold")(features)
    model = keras.Model([color, rooms, area], [scores, layers.Dense(1, name="price")(features)])
    manifest, client = deploy(
        model,
        """
        inputs:
          color: {kind: columns, columns: [color]}
          rooms: {kind: columns, columns: [rooms]}
          area: {kind: columns, columns: [square_metres]}
        outputs:
          sold: {kind: classes, labels: [no, yes]}
        examples:
          - {name: red, input: {color: red, rooms: 2, square_metres: 1.5}}
          - {name: grey, input: {color: grey, rooms: 7, square_metres: 0.5}}
        """,
    )
    assert set(manifest.examples[0].expect) == {"sold", "price"}
    (answer,) = ask(client, {"color": "blue", "rooms": 1, "square_metres": 2})
    own = model([np.array([["blue"]], object), np.array([[1]]), np.array([[2.0]])])
    np.testing.assert_allclose(answer["sold"]["values"], own[0][0], atol=1e-5)
    np.testing.assert_allclose(answer["price"]["values"], own[1][0], atol=1e-5)
    assert answer["sold"]["label"] in ("no", "yes")


def test_a_picture_without_its_kind_is_refused_with_the_remedy(deploy: Deploy) -> None:
    with pytest.raises(CompileError, match=r"give the input kind: image"):
        deploy(digit(), "examples: [{input: examples/seven.png}]")
