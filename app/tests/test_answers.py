"""Outputs become answers that people read, and wrong ones are told from right ones."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import make_manifest
from model_server.answers import check_expected, decode, record, verdict
from model_server.manifest import Example, InputSpec, OutputSpec

INPUT = InputSpec("x", "float32", (-1, 1), "x", "tensor")
FRUIT = OutputSpec("fruit", "float32", (-1, 3), "f", "classes", labels=("apple", "pear", "fig"))
RIPE = OutputSpec("ripe", "float32", (-1, 1), "r", "binary", labels=("no", "yes"), threshold=0.6)
GRAMS = OutputSpec("grams", "float32", (-1, 2), "g", "numbers")
MODEL = make_manifest([INPUT], [FRUIT, RIPE, GRAMS])
OUTPUTS = {
    "fruit": np.array([[0.1, 0.7, 0.2]], np.float32),
    "ripe": np.array([[0.55]], np.float32),
    "grams": np.array([[10.0, 20.5]], np.float32),
}


def test_classes_binary_and_numbers() -> None:
    answer = decode(MODEL, OUTPUTS)
    assert (answer["fruit"]["label"], answer["fruit"]["index"]) == ("pear", 1)
    assert answer["fruit"]["probability"] == pytest.approx(0.7)
    assert (answer["ripe"]["label"], answer["ripe"]["index"]) == ("no", 0)
    assert answer["ripe"]["probability"] == pytest.approx(0.45)
    assert answer["grams"]["values"].tolist() == [10.0, 20.5]
    assert verdict(MODEL, OUTPUTS) == 1


def test_text_alone_or_in_lists() -> None:
    specs = [OutputSpec("one", "string", (-1,), "o", "numbers"), OutputSpec("two", "string", (-1, 2), "t", "numbers")]
    model = make_manifest([INPUT], specs)
    outputs = {"one": np.array([b"a"], object), "two": np.array([[b"b", b"\xff"]], object)}
    assert decode(model, outputs) == {"one": {"values": "a"}, "two": {"values": ["b", "\ufffd"]}}
    assert verdict(model, outputs) == "a"
    assert check_expected(model, outputs, Example("e", None, {"one": "a", "two": ["b", "\ufffd"]})) is None
    assert check_expected(model, outputs, Example("e", None, {"one": "b"})) == "example e: one should be b, but is a"


def test_scores_outside_0_and_1_are_not_called_probabilities() -> None:
    assert "probability" not in decode(MODEL, OUTPUTS | {"fruit": np.array([[-3.0, 8.0, 1.0]])})["fruit"]


def test_a_score_that_is_not_finite_has_no_label() -> None:
    assert decode(MODEL, OUTPUTS | {"fruit": np.array([[np.nan, 0.5, 0.5]])})["fruit"]["label"] is None


@pytest.mark.parametrize(
    "expect",
    [
        {"fruit": "pear"},
        {"fruit": 1},
        {"ripe": "no"},
        {"ripe": 0.55},
        {"grams": [10, 20.5]},
        {"fruit": [0.1, 0.7, 0.2]},
    ],
)
def test_right_answers_are_accepted(expect: dict[str, Any]) -> None:
    assert check_expected(MODEL, OUTPUTS, Example("e", None, expect)) is None


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        ({"fruit": "fig"}, "but is pear (probability 0.7)"),
        ({"fruit": 2}, "but is 1"),
        ({"ripe": 0.7}, "off by 0.15, allowed 0.01"),
        ({"grams": [10]}, "has 2 numbers instead of 1"),
        ({"grams": [10, float("nan")]}, "off by nan"),
        ({"weight": 1}, "expects an output weight"),
    ],
)
def test_wrong_answers_are_reported(expect: dict[str, Any], words: str) -> None:
    reason = check_expected(MODEL, OUTPUTS, Example("e", None, expect))
    assert reason is not None
    assert words in reason
    assert "example e" in reason


def test_nan_is_never_right() -> None:
    outputs = OUTPUTS | {"grams": np.array([[np.nan, 20.5]])}
    assert check_expected(MODEL, outputs, Example("e", None, {"grams": [10, 20.5]})) is not None


def recorded(values: np.ndarray, tolerance: float = 0.01) -> Callable[[np.ndarray], str | None]:
    """Record the answer `values`; return a function that compares another one with it."""
    model = make_manifest([INPUT], [OutputSpec("y", str(values.dtype), (-1, *values.shape), "y", "numbers")])
    expect = json.loads(json.dumps(record(model, {"y": values[None]})))
    return lambda given: check_expected(model, {"y": given[None]}, Example("e", None, expect, tolerance))


def test_a_recorded_answer_allows_a_share_of_its_largest_number() -> None:
    check = recorded(np.array([20_000.25, 3, 0], np.float32))
    assert check(np.array([20_150, 150, -150], np.float32)) is None
    assert "250 instead of 3 (off by 247, allowed 200)" in (check(np.array([20_000, 250, 0], np.float32)) or "")
    assert "nan instead of 0" in (check(np.array([20_000, 3, np.nan], np.float32)) or "")
    assert "the shape is [2] instead of [3]" in (check(np.array([20_000, 3], np.float32)) or "")


def test_recorded_zeros_allow_what_engines_differ_by() -> None:
    check = recorded(np.zeros(2, np.float32), tolerance=0)
    assert check(np.array([0, 5e-5], np.float32)) is None
    assert check(np.array([0, 5e-4], np.float32)) is not None


def test_recorded_integers_and_texts_must_be_equal() -> None:
    assert recorded(np.array([70_000, 3]))(np.array([70_000, 3])) is None
    assert "70001 instead of 70000" in (recorded(np.array([70_000, 3]))(np.array([70_001, 3])) or "")
    words = np.array([b"cat", "h\u00e9".encode()], dtype=object)
    assert recorded(words)(words.copy()) is None
    assert "dog instead of cat" in (recorded(words)(np.array([b"dog", b"x"], dtype=object)) or "")


def test_a_large_recorded_answer_is_small_and_still_held() -> None:
    """A mask of 256 x 256: it is compared at points in every row and all over the columns."""
    mask = np.random.default_rng(0).random((256, 256, 1)).astype(np.float32)
    model = make_manifest([INPUT], [OutputSpec("y", "float32", (-1, 256, 256, 1), "y", "numbers")])
    assert len(json.dumps(record(model, {"y": mask[None]}))) < 12_000
    check = recorded(mask)
    assert check(mask) is None
    assert check(mask.transpose(1, 0, 2)) is not None
    for spoilt in (np.s_[100], np.s_[:, 100:104], np.s_[:40, :40]):
        wrong = mask.copy()
        wrong[spoilt] += 0.5
        assert check(wrong) is not None


TAGS = OutputSpec("tag", "float32", (-1, -1, 3), "t", "classes", labels=("O", "PER", "LOC"))
TAGGED = np.array([[[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]]], np.float32)


def test_each_step_has_a_label() -> None:
    answer = decode(make_manifest([INPUT], [TAGS]), {"tag": TAGGED})["tag"]
    assert (answer["label"], answer["index"]) == (["O", "LOC", "PER"], [0, 2, 1])
    assert answer["probability"].tolist() == pytest.approx([0.8, 0.7, 0.6])
    assert answer["values"].shape == (3, 3)


def test_a_step_that_is_not_finite_has_no_label() -> None:
    scores = TAGGED.copy()
    scores[0, 1, 0] = np.nan
    answer = decode(make_manifest([INPUT], [TAGS]), {"tag": scores})["tag"]
    assert (answer["label"], answer["index"]) == (["O", None, "PER"], [0, None, 1])
    assert np.isnan(answer["probability"][1])
    logits = decode(make_manifest([INPUT], [TAGS]), {"tag": TAGGED * 9})["tag"]
    assert logits["label"] == ["O", "LOC", "PER"] and "probability" not in logits


def test_each_pixel_of_a_mask_has_a_label() -> None:
    mask = OutputSpec("m", "float32", (-1, 2, 2, 1), "m", "binary", labels=("sky", "cloud"), threshold=0.6)
    answer = decode(make_manifest([INPUT], [mask]), {"m": np.array([[[[0.55], [0.7]], [[0.9], [0]]]], np.float32)})["m"]
    assert answer["label"] == [["sky", "cloud"], ["cloud", "sky"]]
    assert answer["probability"].tolist() == [pytest.approx([0.45, 0.7]), pytest.approx([0.9, 1])]


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        (["O", "LOC", "PER"], None),
        ([0, 2, 1], None),
        (TAGGED[0].tolist(), None),
        (["O", "LOC", "O"], "is PER instead of O at step 3 (1 of 3 differ)"),
        ([0, 2, 2], "is 1 instead of 2 at step 3"),
        (["O", "LOC"], "has the shape [3] instead of [2]"),
        ((TAGGED[0] + 0.1).tolist(), "off by 0.1"),
    ],
)
def test_the_labels_of_steps_are_compared(expect: Any, words: str | None) -> None:
    reason = check_expected(make_manifest([INPUT], [TAGS]), {"tag": TAGGED}, Example("e", None, {"tag": expect}))
    assert reason is None if words is None else words in (reason or "")


@pytest.mark.parametrize(("shape", "mode"), [((2, 3), "L"), ((2, 3, 1), "L"), ((2, 3, 3), "RGB")])
def test_a_picture_is_a_png_of_the_pixels_that_the_numbers_stand_for(shape: tuple[int, ...], mode: str) -> None:
    spec = OutputSpec("p", "float32", (-1, *shape), "p", "image", scale=1 / 127.5, offset=-1)
    values = np.linspace(-1.2, 1.2, int(np.prod(shape)), dtype=np.float32).reshape(1, *shape)
    model = make_manifest([INPUT], [spec])
    answer = decode(model, {"p": values})["p"]
    assert answer.keys() == {"image"}
    picture = Image.open(io.BytesIO(base64.b64decode(answer["image"]["b64"])))
    assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (3, 2))
    pixels = np.asarray(picture).ravel().tolist()
    assert pixels[0] == 0 and pixels[-1] == 255 and pixels == sorted(pixels)
    assert verdict(model, {"p": values}).shape == shape
    assert decode(model, {"p": values * np.nan})["p"] == {"image": None}
