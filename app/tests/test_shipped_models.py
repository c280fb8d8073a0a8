"""The models that ship answer their examples, and are right often enough on data that they were not trained on."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from model_server.answers import check_expected
from model_server.engines import Tensors, load_engine
from model_server.inputs import encode_example
from model_server.manifest import read_manifest, read_versions

MODELS = Path(__file__).parents[2] / "models"


def training(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"train_{name}", MODELS / name / "train.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def held_out(compiled: Path, name: str) -> tuple[Tensors, Tensors]:
    """Return the compiled model's answers to its held-out data, and the right ones."""
    questions, answers = training(name).held_out()
    return load_engine(read_manifest(compiled / name), compiled / name).run(questions), answers


def test_every_model_is_compiled_and_both_small_engines_are_used(compiled: Path) -> None:
    manifests = [model.default for model in read_versions(compiled)]
    assert {manifest.name: (manifest.source_format, manifest.engine) for manifest in manifests} == {
        "digits": ("h5", "litert"),
        "digits_even": ("keras", "onnx"),
        "wine": ("saved_model", "litert"),
        "xor": ("json+h5", "litert"),
    }


def test_xor_is_right_on_its_truth_table(compiled: Path) -> None:
    given, answers = held_out(compiled, "xor")
    assert (np.abs(given["activation_2"] - answers["activation_2"]) < 0.1).all()


def test_xor_is_saved_in_the_form_of_keras_2_0_4() -> None:
    architecture = json.loads((MODELS / "xor" / "model.json").read_text())
    assert architecture["keras_version"] == "2.0.4"
    assert [layer["class_name"] for layer in architecture["config"]] == ["Dense", "Activation"] * 2


def test_digits_is_right_on_98_of_100(compiled: Path) -> None:
    given, answers = held_out(compiled, "digits")
    assert (given["digit"].argmax(axis=1) == answers["digit"]).mean() >= 0.98


def test_digits_is_right_on_93_of_100_pictures_like_those_that_users_send() -> None:
    train = training("digits")
    _, pictures, _, digits = train.split()
    rng = np.random.default_rng(5)
    import keras

    model = keras.saving.load_model(MODELS / "digits" / "digits.h5", compile=False)
    sent = np.stack([train.as_sent(picture, rng) for picture in pictures])
    assert (model.predict(sent, verbose=0).argmax(axis=1) == digits).mean() >= 0.93


def test_digits_even_is_right_on_97_of_100(compiled: Path) -> None:
    given, answers = held_out(compiled, "digits_even")
    assert ((given["even"] > 0.5) == (answers["even"] > 0.5)).mean() >= 0.97


def test_wine_is_right_on_95_of_100_and_to_half_a_percent_of_alcohol(compiled: Path) -> None:
    given, answers = held_out(compiled, "wine")
    assert (given["cultivar"].argmax(axis=1) == answers["cultivar"]).mean() >= 0.95
    assert np.abs(given["alcohol"] - answers["alcohol"]).mean() <= 0.5


@pytest.mark.parametrize("name", ["digits", "digits_even", "wine", "xor"])
def test_examples_are_answered_as_the_card_says(compiled: Path, name: str) -> None:
    folder = compiled / name
    manifest = read_manifest(folder)
    engine = load_engine(manifest, folder)
    assert len(manifest.examples) >= 2
    for example in manifest.examples:
        assert check_expected(manifest, engine.run(encode_example(manifest, example, folder)), example) is None


def test_models_stay_small() -> None:
    for folder in MODELS.iterdir():
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 200_000
