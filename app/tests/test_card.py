"""The model card: what it may say, and that every mistake is reported with the card, the key and the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model_server.compile.card import BinaryOutput, CardError, ImageInput, load_card, schema


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a model's file, of which a card reads only the name, and an example's picture."""
    folder = tmp_path / "cats"
    (folder / "examples").mkdir(parents=True)
    (folder / "cats.keras").touch()
    (folder / "examples" / "tom.png").touch()
    return folder


def write(folder: Path, card: str) -> Path:
    (folder / "model.yml").write_text(card, encoding="utf-8")
    return folder


def test_without_a_card_the_only_model_is_found_and_takes_tensors(folder: Path) -> None:
    card = load_card(folder)
    assert (card.name, card.model.name, card.inputs, card.outputs) == ("cats", "cats.keras", {}, {})


def test_a_full_card(folder: Path) -> None:
    card = load_card(
        write(
            folder,
            """
            title: Cats
            inputs: {picture: {kind: image, color: rgb, scale: 1/255, offset: -1e-1, invert: true}}
            outputs: {cat: {kind: binary, labels: [no, yes], threshold: 0.25}}
            examples:
              - {input: examples/tom.png, expect: yes}
              - {name: numbers, input: [[1, 2]], expect: {cat: 0.5}}
            """,
        )
    )
    assert card.inputs == {"picture": ImageInput(kind="image", color="rgb", scale=1 / 255, offset=-0.1, invert=True)}
    assert card.outputs == {"cat": BinaryOutput(kind="binary", labels=("no", "yes"), threshold=0.25)}
    assert [(e.name, e.expect, e.tolerance) for e in card.examples] == [
        ("1", "yes", 0.01),
        ("numbers", {"cat": 0.5}, 0.01),
    ]


def test_labels_may_be_in_a_file(folder: Path) -> None:
    (folder / "labels.txt").write_text("cat\ndog\n\n")
    card = load_card(write(folder, "outputs: {o: {kind: classes, labels: labels.txt}}"))
    assert card.outputs["o"].labels == ("cat", "dog")


def test_an_architecture_takes_the_weights_beside_it(folder: Path) -> None:
    (folder / "cats.keras").unlink()
    (folder / "model.json").write_text(json.dumps({"class_name": "Sequential", "config": []}))
    (folder / "notes.json").write_text("{}")
    (folder / "model.h5").touch()
    card = load_card(folder)
    assert card.weights and (card.model.name, card.weights.name) == ("model.json", "model.h5")


PICTURE = "inputs: {a: {kind: image}}\nexamples: "


def test_a_text_is_a_file_only_for_a_picture(folder: Path) -> None:
    card = load_card(
        write(folder, "inputs: {a: {kind: image}}\nexamples: [{input: {a: examples/tom.png, b: some words}}]")
    )
    assert card.examples[0].input["b"] == "some words"
    assert load_card(write(folder, "examples: [{input: some words}]")).examples[0].input == "some words"


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("titel: Cats", ["titel", "title", "known keys", "custom_objects"]),
        ("title: 3", ["title", "quotes"]),
        ("title: a\ntitle: b", ["line 2", "'title'", "twice"]),
        ("inputs: [", ["line 1", "not valid YAML"]),
        ("- cats", ["the card", "not a mapping"]),
        ("model: cat.keras", ["model", "cat.keras", "cats.keras"]),
        ("model: ../cats/cats.keras\nweights: /etc/passwd", ["weights", "outside"]),
        ("model: examples/tom.png", ["model", "tom.png", ".keras"]),
        ("weights: cats.keras", ["weights", "leave weights out"]),
        ("custom_objects: cats.keras", ["custom_objects", ".py"]),
        ("allow_lambda: yes", ["allow_lambda", "true or false"]),
        ("engine: onyx", ["engine", "'litert', 'onnx' or 'tensorflow'"]),
        ("goal: speed", ["goal", "'latency' or 'throughput'"]),
        ("inputs: {a: {kind: picture}}", ["inputs.a.kind", "tensor, image, columns"]),
        ("inputs: {a: {color: rgb}}", ["inputs.a", "kind is missing"]),
        ("inputs: {a: {kind: image, columns: [b]}}", ["inputs.a.columns", "unknown key", "scale"]),
        ("inputs: {a: {kind: image, color: cmyk}}", ["inputs.a.color", "grayscale"]),
        ("inputs: {a: {kind: image, scale: x}}", ["inputs.a.scale", "number", "1/255"]),
        ("inputs: {a: {kind: image, scale: .nan}}", ["inputs.a.scale", "number"]),
        ("inputs: {a: {kind: columns}}", ["inputs.a", "columns is missing"]),
        ("inputs: {a: {kind: columns, columns: [b, b]}}", ["inputs.a.columns", "'b'", "twice"]),
        ("inputs: {a: {kind: tensor, shape: [0, 4]}}", ["inputs.a.shape", "[0, 4]", "[10001, 4]"]),
        ("inputs: {a: {kind: image, shape: 64}}", ["inputs.a.shape", "64", "[10001, 4]"]),
        ("outputs: {a: {kind: classes}}", ["outputs.a", "labels is missing"]),
        ("outputs: {a: {kind: binary, labels: [a, b, c]}}", ["outputs.a.labels", "3 labels", "[no, yes]"]),
        ("outputs: {a: {kind: binary, threshold: 50}}", ["outputs.a.threshold", "is not below 1"]),
        ("examples: {input: 1}", ["examples", "not a list"]),
        ("examples: [{expect: 1}]", ["examples[0]", "input is missing"]),
        (f"{PICTURE}[{{input: examples/tim.png, expect: 1}}]", ["examples: ", "tim.png", "tom.png"]),
        (f"{PICTURE}[{{input: {{a: cats.keras}}, expect: 1}}]", ["examples: 1", "below examples/"]),
        (f"{PICTURE}[{{name: all, input: examples}}]", ["examples: all", "not a file"]),
        (
            "examples: [{input: 1, expect: 1, name: a}, {input: 2, expect: 1, name: a}]",
            ["'a'", "its own name"],
        ),
    ],
)
def test_a_mistake_is_reported_with_its_remedy(folder: Path, card: str, told: list[str]) -> None:
    with pytest.raises(CardError) as error:
        load_card(write(folder, card))
    assert str(error.value).startswith(f"{folder}/model.yml: ")
    assert [part for part in told if part not in str(error.value)] == []


def test_all_mistakes_are_reported_at_once(folder: Path) -> None:
    card = (
        "{titel: a, allow_lambda: 1, outputs: {a: {kind: classes}}, examples: [{tolerance: 1}, {expect: 1, extra: 2}]}"
    )
    with pytest.raises(CardError) as error:
        load_card(write(folder, card))
    places = [message.removeprefix(f"{folder}/model.yml: ").partition(":")[0] for message in error.value.args]
    assert places == ["allow_lambda", "outputs.a", "examples[0]", "examples[1]", "examples[1].extra", "titel"]


def test_an_empty_folder_is_refused_with_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"\.keras.*SavedModel"):
        load_card(tmp_path)


def test_with_several_models_the_card_must_name_one(folder: Path) -> None:
    (folder / "dogs.h5").touch()
    with pytest.raises(CardError, match=r"model: several .*cats\.keras, dogs\.h5"):
        load_card(folder)
    assert load_card(write(folder, "model: dogs.h5")).model.name == "dogs.h5"


def test_a_folder_name_that_does_not_fit_an_address_is_refused(tmp_path: Path) -> None:
    (tmp_path / "My Cats").mkdir()
    with pytest.raises(CardError, match="lower-case"):
        load_card(tmp_path / "My Cats")


@pytest.mark.parametrize("label", ["no", "on", "007", "1_2", "2026-01-01", "1:30", "0x1F", "0.5", "12", "~a"])
def test_a_label_is_read_as_it_is_written(folder: Path, label: str) -> None:
    card = load_card(write(folder, f"outputs: {{o: {{kind: classes, labels: [{label}, other]}}}}"))
    assert card.outputs["o"].labels == (label, "other")


def test_the_schema_for_editors_is_that_of_the_code() -> None:
    published = Path(__file__).parents[2] / "docs" / "model-card.schema.json"
    remedy = "run in app/: python -m model_server.compile.card > ../docs/model-card.schema.json"
    assert published.read_text() == schema(), remedy
