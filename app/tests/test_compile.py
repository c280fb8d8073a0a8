"""The compiler reads every format, picks the right engine and refuses what is not proven right."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers

from model_server.answers import check_expected
from model_server.compile import CompileError, build
from model_server.compile.build import Report, compile_model
from model_server.compile.card import CardError
from model_server.compile.convert import CANDIDATES, to_onnx
from model_server.compile.measure import choose, measure
from model_server.compile.sources import Source
from model_server.engines import ENGINES, Engine, LiteRT, Tensors, load_engine
from model_server.manifest import Manifest, read_manifest

APP = Path(__file__).parents[1]

TWICE = """
import keras
class Twice(keras.layers.Layer):
    def call(self, x):
        return x * 2
"""


class Twice(layers.Layer):
    """The layer that TWICE defines, for saving a model with it."""

    def call(self, x: Any) -> Any:
        return x * 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty model folder named m."""
    path = tmp_path / "models" / "m"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    return tmp_path / "compiled"


def dense(*more: layers.Layer, size: int = 4, **options: Any) -> keras.Sequential:
    return keras.Sequential([keras.Input((size,), name="x", **options), *more, layers.Dense(2, name="y")])


def served(folder: Path, compiled: Path) -> tuple[Report, Manifest, Callable[..., dict[str, np.ndarray]]]:
    """Compile the model, and load it as the server would."""
    report = compile_model(folder, compiled)
    manifest = read_manifest(compiled / folder.name)
    return report, manifest, load_engine(manifest, compiled / folder.name).run


def refusal(folder: Path, compiled: Path) -> str:
    """Return the error; the compiled models must not have changed."""
    before = sorted(compiled.rglob("*"))
    with pytest.raises((CompileError, CardError)) as error:
        compile_model(folder, compiled)
    assert sorted(compiled.rglob("*")) == before
    return str(error.value)


def card(folder: Path, text: str) -> None:
    (folder / "model.yml").write_text(text)


# ---------------------------------------------------------------- formats


def save_keras3(folder: Path, model: keras.Model) -> None:
    model.save(folder / "m.keras")


def save_h5(folder: Path, model: keras.Model) -> None:
    model.save(folder / "m.hdf5")


def save_json(folder: Path, model: keras.Model) -> None:
    (folder / "m.json").write_text(model.to_json())
    model.save_weights(folder / "m.weights.h5")


def save_saved_model(folder: Path, model: keras.Model) -> None:
    model.export(folder / "exported", verbose=False)


def save_misnamed(folder: Path, model: keras.Model) -> None:
    model.save(folder / "m.keras")
    (folder / "m.keras").rename(folder / "m.h5")


@pytest.mark.parametrize(
    ("save", "source_format"),
    [
        (save_keras3, "keras"),
        (save_h5, "h5"),
        (save_json, "json+h5"),
        (save_saved_model, "saved_model"),
        (save_misnamed, "keras"),
    ],
)
def test_keras_3_models_are_read_in_every_format(
    folder: Path, compiled: Path, save: Callable[[Path, keras.Model], None], source_format: str
) -> None:
    model = dense(layers.Dense(3, activation="tanh"))
    save(folder, model)
    report, manifest, run = served(folder, compiled)
    assert (report.source_format, report.engine, manifest.inputs[0].name) == (source_format, "LiteRT", "x")
    x = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    (answer,) = run({"x": x}).values()
    np.testing.assert_allclose(answer, model(x), atol=1e-5)


@pytest.mark.parametrize("suffix", ["h5", "keras", "folder"])
def test_keras_2_models_are_read_in_every_format(folder: Path, compiled: Path, suffix: str) -> None:
    stack = tf_keras.layers
    picture = tf_keras.Input((6, 6, 1), name="picture")
    model = tf_keras.Model(picture, stack.Dense(2, name="y")(stack.Flatten()(stack.Conv2D(3, 3)(picture))))
    model.save(folder / f"m.{suffix}", **({"save_format": "tf"} if suffix == "folder" else {}))
    report, manifest, run = served(folder, compiled)
    assert (report.engine, manifest.inputs[0].name, manifest.outputs[0].name) == ("LiteRT", "picture", "y")
    x = np.random.default_rng(1).normal(size=(2, 6, 6, 1)).astype("float32")
    np.testing.assert_allclose(run({"picture": x})["y"], model(x), atol=1e-5)


def test_an_h5_of_keras_2_0_is_read(folder: Path, compiled: Path) -> None:
    """Its architecture is a bare list, inside an .h5, as Keras 2.0 to 2.2.2 wrote it."""
    config = {
        "units": 2,
        "name": "dense_1",
        "batch_input_shape": [None, 2],
        "activation": "linear",
        "use_bias": True,
    }
    kernel = np.array([[1, 2], [3, 4]], "float32")
    with h5py.File(folder / "old.h5", "w") as file:
        architecture = {"class_name": "Sequential", "config": [{"class_name": "Dense", "config": config}]}
        file.attrs["model_config"] = json.dumps(architecture).encode()
        file.attrs["keras_version"] = b"2.0.4"
        weights = file.create_group("model_weights")
        weights.attrs.update({"layer_names": [b"dense_1"], "backend": b"tensorflow", "keras_version": b"2.0.4"})
        layer = weights.create_group("dense_1")
        layer.attrs["weight_names"] = [b"dense_1/kernel:0", b"dense_1/bias:0"]
        layer["dense_1/kernel:0"], layer["dense_1/bias:0"] = kernel, np.zeros(2, "float32")
    report, _, run = served(folder, compiled)
    assert report.source_format == "h5"
    np.testing.assert_allclose(run({"dense_1_input": np.eye(2, dtype="float32")})["dense_1"], kernel)


def test_several_inputs_and_outputs_keep_their_names(folder: Path, compiled: Path) -> None:
    a, b = keras.Input((3,), name="a-1"), keras.Input((2,), name="b")
    total = layers.Dense(1, name="total")(layers.Concatenate()([a, b]))
    model = keras.Model({"a-1": a, "b": b}, {"total": total, "a+1": layers.Dense(2, name="other")(a)})
    model.save(folder / "m.keras")
    _, manifest, run = served(folder, compiled)
    assert {spec.name: spec.shape for spec in manifest.inputs} == {"a-1": (-1, 3), "b": (-1, 2)}
    inputs = {"a-1": np.ones((2, 3), "float32"), "b": np.ones((2, 2), "float32")}
    own, given = model(inputs), run(inputs)
    assert set(given) == {"total", "a+1"}
    for name in own:
        np.testing.assert_allclose(given[name], own[name], atol=1e-5)


# ---------------------------------------------------------------- engines


def test_recurrent_layers_go_to_onnx_runtime_in_any_length(folder: Path, compiled: Path) -> None:
    scaled = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])  # constants, not weights
    model = keras.Sequential([keras.Input((None, 3), name="x"), scaled, layers.LSTM(4), layers.Dense(1, name="y")])
    model.save(folder / "m.keras")
    report, manifest, run = served(folder, compiled)
    assert report.engine == "ONNX Runtime" and manifest.inputs[0].shape == (-1, -1, 3)
    assert report.refusals[0].startswith("LiteRT: ") and "TensorList" in report.refusals[0]
    x = np.random.default_rng(1).normal(size=(3, 11, 3)).astype("float32")
    np.testing.assert_allclose(run({"x": x})["y"], model(x), atol=1e-5)


def test_strings_go_to_tensorflow(folder: Path, compiled: Path) -> None:
    lookup = layers.StringLookup(vocabulary=["cat", "dog"])
    text = keras.Input((1,), dtype="string", name="word")
    keras.Model(text, layers.Flatten(name="y")(layers.Embedding(3, 2)(lookup(text)))).save(folder / "m.keras")
    report, manifest, run = served(folder, compiled)
    assert (report.engine, manifest.inputs[0].dtype, len(report.refusals)) == ("TensorFlow", "string", 2)
    dog, cat, again = run({"word": np.array([[b"dog"], [b"cat"], [b"dog"]], dtype=object)})["y"]
    assert (dog == again).all() and (dog != cat).any()


@pytest.mark.parametrize(
    ("engine", "title"), [("litert", "LiteRT"), ("onnx", "ONNX Runtime"), ("tensorflow", "TensorFlow")]
)
def test_a_card_pins_an_engine(folder: Path, compiled: Path, engine: str, title: str) -> None:
    model = dense()
    model.save(folder / "m.keras")
    card(folder, f"engine: {engine}")
    report, manifest, run = served(folder, compiled)
    assert (report.engine, manifest.engine, report.others, report.refusals) == (title, engine, {}, ())
    x = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(run({"x": x})["y"], model(x), atol=1e-5)


def test_a_pinned_engine_that_cannot_serve_the_model_is_an_error(folder: Path, compiled: Path) -> None:
    keras.Sequential([keras.Input((None, 3), name="x"), layers.LSTM(4, name="y")]).save(folder / "m.keras")
    card(folder, "engine: litert")
    message = refusal(folder, compiled)
    assert f"{folder}/model.yml: engine: litert cannot serve this model. LiteRT: " in message
    assert "TensorList" in message and "Leave engine out of the card" in message


@pytest.mark.parametrize(("goal", "rows", "unit"), [("latency", 1, " µs a call"), ("throughput", 16, " rows/s")])
def test_engines_are_measured_at_the_cards_goal(
    folder: Path, compiled: Path, goal: str, rows: int, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measured(engines: dict[str, Engine], tensors: Tensors) -> dict[str, float]:
        asked.append(tensors)
        return measure(engines, tensors)

    monkeypatch.setattr(build, "measure", measured)
    dense().save(folder / "m.keras")
    card(folder, f"{{goal: {goal}, examples: [{{input: [1, 2, 3, 4], expect: [0, 0], tolerance: 99}}]}}")
    report, manifest, _ = served(folder, compiled)
    np.testing.assert_array_equal(asked[0]["x"], [[1, 2, 3, 4]] * rows)
    assert report.speed.endswith(unit) and next(iter(report.others.values())).endswith(unit)
    record = json.loads((compiled / "m" / "measured.json").read_text())
    assert (record["goal"], record["rows"], set(record["microseconds"])) == (goal, rows, {"litert", "onnx"})
    assert record["microseconds"][manifest.engine] > 0


@pytest.mark.parametrize(
    ("microseconds", "engine", "title"), [(100, "onnx", "ONNX Runtime"), (130, "litert", "LiteRT")]
)
def test_the_fastest_engine_serves_the_model_and_the_others_leave_no_file(
    folder: Path,
    compiled: Path,
    monkeypatch: pytest.MonkeyPatch,
    microseconds: int,
    engine: str,
    title: str,
) -> None:
    monkeypatch.setattr(build, "measure", lambda *_: {"litert": 150e-6, "onnx": microseconds * 1e-6})
    dense().save(folder / "m.keras")
    report, manifest, run = served(folder, compiled)
    assert (report.engine, manifest.engine) == (title, engine)
    assert report.others == {"onnx": {"LiteRT": "150 µs a call"}, "litert": {"ONNX Runtime": "130 µs a call"}}[engine]
    assert {path.name for path in (compiled / "m").iterdir()} == {"manifest.json", "measured.json", manifest.file}
    assert run({"x": np.zeros((2, 4), "float32")})["y"].shape == (2, 2)


def test_a_large_model_is_served_by_the_first_engine_that_can_unless_it_is_pinned(
    folder: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "LARGE", 1000)
    dense().save(folder / "m.keras")
    report, _, _ = served(folder, compiled)
    assert (report.engine, report.others) == ("LiteRT", {}) and report.refusals[0].startswith("ONNX Runtime: not tried")
    card(folder, "engine: onnx")
    assert served(folder, compiled)[0].engine == "ONNX Runtime"


@pytest.mark.parametrize(
    ("microseconds", "engine"),
    [
        ([50], "litert"),
        ([50, 45], "litert"),  # as fast, as far as measuring can tell
        ([500, 410], "litert"),
        ([500, 390], "onnx"),
        ([6, 1], "litert"),  # a difference that no client notices
        ([20, 9], "onnx"),
        ([45, 50], "litert"),
    ],
)
def test_an_engine_must_be_clearly_faster_than_the_one_before_it(microseconds: list[float], engine: str) -> None:
    seconds = [number * 1e-6 for number in microseconds]
    assert choose(dict(zip(("litert", "onnx"), seconds, strict=False))) == engine


def test_measuring_tells_a_slow_engine_from_a_quick_one() -> None:
    class Work:
        def __init__(self, numbers: int) -> None:
            self._numbers = numbers

        def run(self, inputs: Tensors) -> Tensors:
            return {"y": np.array([sum(range(self._numbers))])}

    seconds = measure({"litert": Work(20_000), "onnx": Work(5_000)}, {})
    assert seconds["onnx"] * 2 < seconds["litert"] and choose(seconds) == "onnx"


def wrong_weights(source: Source, path: Path) -> None:
    path.write_bytes(keras_tflite(dense()))


def nan_weights(source: Source, path: Path) -> None:
    model = dense()
    model.set_weights([np.full((4, 2), np.nan), np.zeros(2)])
    path.write_bytes(keras_tflite(model))


def keras_tflite(model: keras.Model) -> bytes:
    """Convert the model. Its tensors have the converter's own names, which the tests make the engine ignore."""
    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


@pytest.mark.parametrize(("convert", "why"), [(wrong_weights, "is off by"), (nan_weights, "NaN")])
def test_a_conversion_with_other_answers_is_refused(
    folder: Path,
    compiled: Path,
    monkeypatch: pytest.MonkeyPatch,
    convert: Callable[[Source, Path], None],
    why: str,
) -> None:
    dense().save(folder / "m.keras")
    monkeypatch.setattr(build, "CANDIDATES", (replace(CANDIDATES[0], convert=convert), *CANDIDATES[1:]))
    monkeypatch.setattr(
        "model_server.engines._indices",
        lambda specs, details: [
            (spec.name, detail["index"]) for spec, detail in zip(specs, details.values(), strict=True)
        ],
    )
    report, manifest, _ = served(folder, compiled)
    assert manifest.engine == "onnx" and why in report.refusals[0]
    assert sorted(path.name for path in (compiled / "m").iterdir()) == ["manifest.json", "measured.json", "model.onnx"]


def test_a_conversion_with_a_fixed_batch_is_refused(
    folder: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense().save(folder / "m.keras")

    def fixed(source: Source, path: Path) -> None:
        import onnx

        to_onnx(source, path)
        model = onnx.load(path)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(model, path)

    monkeypatch.setattr(build, "CANDIDATES", (replace(CANDIDATES[1], convert=fixed), CANDIDATES[2]))
    report, manifest, _ = served(folder, compiled)
    assert manifest.engine == "tensorflow"
    assert report.refusals[0].startswith("ONNX Runtime: ")


def test_if_no_engine_answers_correctly_every_reason_is_reported(
    folder: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense().save(folder / "m.keras")

    def broken(source: Source, path: Path) -> None:
        raise RuntimeError("no such operator: Frobnicate")

    monkeypatch.setattr(build, "CANDIDATES", tuple(replace(candidate, convert=broken) for candidate in CANDIDATES))
    message = refusal(folder, compiled)
    assert all(f"{name}: no such operator: Frobnicate" in message for name in ("LiteRT", "ONNX Runtime", "TensorFlow"))


def test_a_model_that_answers_nan_is_refused(folder: Path, compiled: Path) -> None:
    model = dense()
    model.set_weights([np.full((4, 2), np.nan), np.zeros(2)])
    model.save(folder / "m.keras")
    assert "NaN" in refusal(folder, compiled)
    card(folder, "examples: [{input: [1, 2, 3, 4], expect: [1, 2]}]")
    assert "example 1: the model itself answers NaN" in refusal(folder, compiled)


def test_an_output_without_a_batch_axis_is_refused(folder: Path, compiled: Path) -> None:
    x = keras.Input((3,))
    keras.Model(x, keras.ops.sum(x)).save(folder / "m.keras")
    assert "batch axis" in refusal(folder, compiled)


# ---------------------------------------------------------------- examples


def test_an_example_without_an_answer_gets_the_models_own(folder: Path, compiled: Path, tmp_path: Path) -> None:
    x = keras.Input((4,), name="x")
    model = keras.Model(x, {"y": layers.Dense(2, name="a")(x), "many": layers.Dense(3000, name="b")(x)})
    model.save(folder / "m.keras")
    card(folder, "examples: [{input: [1, 2, 3, 4]}, {name: two, input: [0, 0, 0, 0], expect: {y: [0, 0]}}]")
    report, manifest, run = served(folder, compiled)
    assert report.recorded == 1
    one, two = manifest.examples
    own = model(np.array([[1, 2, 3, 4]], "float32"))
    np.testing.assert_allclose(one.expect["y"]["values"], own["y"][0], rtol=1e-5)
    assert one.expect["many"]["shape"] == [3000] and len(one.expect["many"]["values"]) < 2000
    assert two.expect == {"y": [0, 0]}
    assert (compiled / "m" / "manifest.json").stat().st_size < 50_000
    answers = run({"x": np.array([[1, 2, 3, 4]], "float32")})
    assert check_expected(manifest, answers, one) is None
    assert "not the recorded answer" in (check_expected(manifest, answers | {"y": -answers["y"]}, one) or "")
    compile_model(folder, tmp_path / "again")
    assert tree(compiled / "m") == tree(tmp_path / "again" / "m")


def test_an_engine_must_answer_the_examples_as_the_card_says(
    folder: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dense()
    model.save(folder / "m.keras")
    exact = model(np.array([[1, 2, 3, 4]], "float32")).numpy()[0].tolist()
    card(folder, f"examples: [{{input: [1, 2, 3, 4], expect: {exact}, tolerance: 1e-6}}]")

    class Near(LiteRT):
        def run(self, inputs: Tensors) -> Tensors:
            return {name: value + 1e-5 for name, value in super().run(inputs).items()}

    monkeypatch.setitem(ENGINES, "litert", Near)
    report, manifest, _ = served(folder, compiled)
    assert manifest.engine == "onnx" and "example 1: y should be" in report.refusals[0]


# ---------------------------------------------------------------- code inside files


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_lambda_runs_only_where_the_card_allows_it(folder: Path, compiled: Path, suffix: str) -> None:
    dense(layers.Lambda(lambda x: x * 3, name="triple")).save(folder / f"m.{suffix}")
    message = refusal(folder, compiled)
    assert "layer triple is a Lambda" in message and "allow_lambda: true" in message and "model.yml" in message
    card(folder, "allow_lambda: true")
    assert served(folder, compiled)[0].engine == "LiteRT"


def test_a_lambda_in_an_old_h5_does_not_run_unless_allowed(folder: Path, compiled: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = str(marker)
    sly = tf_keras.layers.Lambda(lambda x: [open(path, "w"), x][1], name="sly")  # noqa: PTH123, SIM115
    model = tf_keras.Sequential([tf_keras.Input((2,)), sly])
    model.save(folder / "m.h5")
    marker.unlink()
    assert "layer sly is a Lambda" in refusal(folder, compiled)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_custom_layer_needs_a_file_that_defines_it(folder: Path, compiled: Path, suffix: str) -> None:
    model = dense(Twice(name="my_twice"))
    model.save(folder / f"m.{suffix}")
    message = refusal(folder, compiled)
    assert "layer my_twice is of class Twice" in message and "custom_objects" in message and "model.yml" in message
    (folder / "layers.py").write_text("class Thrice: pass")
    card(folder, "custom_objects: layers.py")
    assert "layers.py does not define it" in refusal(folder, compiled)
    (folder / "layers.py").write_text("import nonsense")
    assert "importing layers.py failed (ModuleNotFoundError: No module named 'nonsense')" in refusal(folder, compiled)
    (folder / "layers.py").write_text(TWICE)
    x = np.ones((1, 4), "float32")
    np.testing.assert_allclose(served(folder, compiled)[2]({"x": x})["y"], model(x), atol=1e-5)


def test_a_stateful_layer_is_refused(folder: Path, compiled: Path) -> None:
    x = keras.Input(batch_shape=(1, 5, 4))
    keras.Model(x, layers.LSTM(2, stateful=True, name="memory")(x)).save(folder / "m.keras")
    assert "layer memory (LSTM) is stateful" in refusal(folder, compiled)


# ---------------------------------------------------------------- broken files


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def scribbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3000:-2000] = bytes(1000)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("h5", half),
        ("keras", half),
        ("keras", scribbled),
        ("h5", lambda path: path.write_bytes(b"")),
        ("h5", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1")),
    ],
)
def test_a_damaged_file_is_named(folder: Path, compiled: Path, suffix: str, damage: Callable[[Path], object]) -> None:
    path = folder / f"m.{suffix}"
    dense().save(path)
    compile_model(folder, compiled)
    damage(path)
    assert f"m.{suffix}: " in refusal(folder, compiled)


def test_weights_alone_and_weights_of_another_model_are_refused(folder: Path, compiled: Path) -> None:
    dense(size=5).save_weights(folder / "m.weights.h5")
    assert "weights only" in refusal(folder, compiled)
    (folder / "m.json").write_text(dense().to_json())
    assert "Check that m.weights.h5 belongs to m.json" in refusal(folder, compiled)


def test_a_saved_model_without_a_signature_is_refused(folder: Path, compiled: Path) -> None:
    tf.saved_model.save(tf.Module(), str(folder / "empty"))
    assert "no signature serving_default" in refusal(folder, compiled)


def test_a_saved_model_that_writes_files_is_refused_before_it_runs(folder: Path, compiled: Path) -> None:
    target = str(folder / "written")

    class Sly(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2], name="x")])
        def serve(self, x: Any) -> dict[str, Any]:
            tf.io.write_file(target, "sly")
            return {"y": x}

    sly = Sly()
    tf.saved_model.save(sly, str(folder / "sly"), signatures={"serving_default": sly.serve})
    assert "the operator WriteFile" in refusal(folder, compiled)
    assert not Path(target).exists()
    (folder / "sly" / "saved_model.pb").write_bytes(b"junk")
    assert "not a SavedModel" in refusal(folder, compiled)


# ---------------------------------------------------------------- the card against the model

PICTURE = "inputs: {x: {kind: image, scale: 1/255}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inputs: {z: {kind: tensor}}", ["inputs.z", "no such input", "its inputs: x"]),
        ("outputs: {yy: {kind: binary}}", ["outputs.yy", "perhaps you mean y"]),
        ("inputs: {x: {kind: image}}", ["inputs.x", "kind: image", "[any, 4]"]),
        ("inputs: {x: {kind: columns, columns: [a, b]}}", ["inputs.x", "2 names", "4 numbers"]),
        ("outputs: {y: {kind: classes, labels: [a, b, c]}}", ["outputs.y", "3 labels", "2 classes"]),
        ("outputs: {y: {kind: binary}}", ["outputs.y", "binary", "[any, 2]", "kind: classes"]),
        ("outputs: {y: {kind: image}}", ["outputs.y", "kind: image", "[any, 2]"]),
        ("examples: [{input: [1, 2], expect: [0, 0]}]", ["example 1", "[batch, 4]"]),
        ("examples: [{input: [1, 2, 3, 4], expect: {z: 1}}]", ["example 1", "no output z", "y"]),
        ("examples: [{input: [1, 2, 3, 4], expect: {y: {a: 1}}}]", ["example 1", "y: an object is not an answer"]),
        ("examples: [{input: [1, 2, 3, 4], expect: cat}]", ["example 1", "no label 'cat'", "number"]),
        (
            "examples: [{name: four, input: [1, 2, 3, 4], expect: [99, 99]}]",
            ["example four", "should be [99, 99]"],
        ),
    ],
)
def test_a_card_that_does_not_fit_the_model_is_refused(
    folder: Path, compiled: Path, text: str, message: list[str]
) -> None:
    dense().save(folder / "m.keras")
    card(folder, text)
    refused = refusal(folder, compiled)
    assert str(folder / "model.yml") in refused
    assert [part for part in message if part not in refused] == []


def test_a_picture_of_the_wrong_color_is_refused(folder: Path, compiled: Path) -> None:
    keras.Sequential([keras.Input((8, 8, 3), name="x"), layers.Flatten(name="y")]).save(folder / "m.keras")
    card(folder, "inputs: {x: {kind: image, color: grayscale}}")
    assert "write rgb" in refusal(folder, compiled)
    card(folder, PICTURE)
    assert read_manifest_of(folder, compiled).inputs[0].color == "rgb"


def read_manifest_of(folder: Path, compiled: Path) -> Manifest:
    compile_model(folder, compiled)
    return read_manifest(compiled / folder.name)


# ---------------------------------------------------------------- the compiled models


def tree(folder: Path) -> dict[str, tuple[str, int, float]]:
    """Return the content's hash, the mode and the time of every file but the measurements."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mode & 0o777,
            path.stat().st_mtime,
        )
        for path in folder.rglob("*")
        if path.name != "measured.json"
    }


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(APP), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-m", "model_server.compile", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "random"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_gives_equal_files_every_time_and_removes_models_that_are_gone(
    folder: Path, tmp_path: Path
) -> None:
    models = folder.parent
    keras.Sequential([keras.Input((4, 3), name="x"), layers.GRU(4), layers.Dense(2, name="y")]).save(folder / "m.keras")
    one, two = tmp_path / "one", tmp_path / "two"
    done = command(models, one)
    assert done.returncode == 0, done.stderr
    header, _, row, why, warning = done.stdout.splitlines()
    assert header.split() == ["model", "source", "engine", "speed", "size", "largest", "difference", "seconds"]
    assert row.split()[:4] == ["m", "keras", "ONNX", "Runtime"] and why.startswith("m: not served by LiteRT: ")
    assert warning.startswith("m: warning: no example")
    shutil.copytree(one / "m", two / "gone")
    shutil.copytree(one / "m", two / "m")
    (two / "m" / "left_over").touch()
    assert command(models, two).returncode == 0
    assert not (two / "gone").exists()
    assert tree(one / "m") == tree(two / "m")
    assert {mode for _, mode, _ in tree(one).values()} == {0o644, 0o755}
    assert {time for _, _, time in tree(one).values()} == {0}
    (folder / "m.keras").unlink()
    refused = command(models, two)
    assert refused.returncode == 1 and refused.stderr.startswith(f"ERROR {folder}: model: there is no model here; put ")
    assert (two / "m" / "manifest.json").exists()


def test_the_command_reports_a_mistake_in_one_line(folder: Path, compiled: Path) -> None:
    (folder / "m.h5").write_text("no model")
    (folder.parent / "n").mkdir()
    done = command(folder.parent, compiled)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [f"ERROR {folder.parent}/n: " + done.stderr.split("/n: ")[1].rstrip()]
    (folder.parent / "n").rmdir()
    done = command(folder.parent, compiled)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f"ERROR {folder}/m.h5: neither HDF5")
    assert command(folder, compiled).returncode == 1


def test_a_converter_that_aborts_is_an_error_with_the_models_name(folder: Path, compiled: Path) -> None:
    dense(Twice()).save(folder / "m.keras")
    card(folder, "custom_objects: layers.py")
    (folder / "layers.py").write_text("import os\nos.abort()")
    done = command(folder.parent, compiled)
    assert done.returncode == 1 and f"ERROR {folder}: the compiling process died" in done.stderr


def test_the_check_names_the_models_that_answer_without_being_named(folder: Path, compiled: Path) -> None:
    dense().save(folder / "m.keras")
    compile_model(folder, compiled)
    assert (
        'pictures go to no model; rows such as {"X": "1 0|1 1"} go to no model.' in command("--check", compiled).stdout
    )
    card(folder, "predict: true")
    compile_model(folder, compiled)
    assert "go to m." in command("--check", compiled).stdout
    shutil.copytree(compiled / "m", compiled / "n")
    manifest = json.loads((compiled / "n" / "manifest.json").read_text())
    (compiled / "n" / "manifest.json").write_text(json.dumps({**manifest, "name": "n"}))
    done = command("--check", compiled)
    assert done.returncode == 0 and "go to no model: m, n all take them" in done.stdout


def test_a_model_that_needs_more_than_a_row_of_numbers_cannot_answer_without_being_named(
    folder: Path, compiled: Path
) -> None:
    keras.Sequential([keras.Input((4, 3), name="x"), layers.Flatten(name="y")]).save(folder / "m.keras")
    card(folder, "predict: true")
    assert "POST /predict takes a picture or rows of numbers" in refusal(folder, compiled)
