"""The engines give equal answers, also to many threads at once, and say which library is missing."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest

from model_server import engines
from model_server.compile.build import compile_model
from model_server.compile.convert import CANDIDATES
from model_server.engines import EngineError, LoadError, Wide, load_engine, running_threads
from model_server.manifest import Manifest, ManifestError, read_manifest, read_versions

ENGINES = ("litert", "onnx", "tensorflow")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Manifest, Path]]:
    """One model, compiled for each engine: y = x * [1, 2, 3] + [0, 0, 1]."""
    folder = tmp_path_factory.mktemp("models") / "line"
    folder.mkdir()
    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(3, name="y")])
    model.set_weights([np.diag([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0])])
    model.save(folder / "line.keras")
    found = {}
    for candidate in CANDIDATES:
        target = tmp_path_factory.mktemp(candidate.engine)
        (folder / "model.yml").write_text(f"engine: {candidate.engine}")
        compile_model(folder, target)
        found[candidate.engine] = read_manifest(target / "line"), target / "line"
    return found


def rows(count: int, first: float = 0.0) -> dict[str, np.ndarray]:
    return {"x": np.arange(first, first + 3 * count, dtype="float32").reshape(count, 3)}


def right(inputs: dict[str, np.ndarray]) -> np.ndarray:
    return inputs["x"] * [1, 2, 3] + [0, 0, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_of_any_size_are_answered_under_the_models_names(
    compiled: dict[str, tuple[Manifest, Path]], engine: str
) -> None:
    manifest, folder = compiled[engine]
    assert manifest.engine == engine
    loaded = load_engine(manifest, folder)
    for count in (1, 3, 1, 100):
        answer = loaded.run(rows(count))
        assert list(answer) == ["y"] and answer["y"].dtype == np.float32
        np.testing.assert_allclose(answer["y"], right(rows(count)), rtol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_many_threads_at_once_get_their_own_answers(compiled: dict[str, tuple[Manifest, Path]], engine: str) -> None:
    loaded = load_engine(*compiled[engine])

    def ask(number: int) -> bool:
        inputs = rows(1 + number % 4, first=number)
        return np.allclose(loaded.run(inputs)["y"], right(inputs), rtol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refused_call_does_not_disturb_the_next_one(compiled: dict[str, tuple[Manifest, Path]], engine: str) -> None:
    loaded = load_engine(*compiled[engine])
    with pytest.raises(EngineError):
        loaded.run({"x": np.zeros((2, 5), "float32")})
    np.testing.assert_allclose(loaded.run(rows(2))["y"], right(rows(2)), rtol=1e-6)


@pytest.mark.parametrize("engine", ["litert", "onnx"])
def test_more_threads_give_equal_answers(compiled: dict[str, tuple[Manifest, Path]], engine: str) -> None:
    wide = Wide.of(*compiled[engine], cpus=2)
    assert wide and wide.threads == 2
    np.testing.assert_allclose(wide.run(rows(50))["y"], right(rows(50)), rtol=1e-6)


def test_which_models_are_loaded_a_second_time_for_more_threads(
    compiled: dict[str, tuple[Manifest, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = Wide.of(*compiled["litert"], cpus=64)
    assert many and many.threads == 4
    assert Wide.of(*compiled["litert"], cpus=1) is None
    assert Wide.of(*compiled["tensorflow"], cpus=2) is None
    monkeypatch.setattr(engines, "WIDE_BYTES", 100)
    assert Wide.of(*compiled["litert"], cpus=2) is None


def test_more_threads_are_used_only_while_the_machine_has_nothing_else_to_do(
    compiled: dict[str, tuple[Manifest, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Wide.of(*compiled["litert"], cpus=2)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(engines, "running_threads", lambda: 3)
    assert wide and wide.fits()
    monkeypatch.setattr(engines, "running_threads", lambda: 4)
    assert not wide.fits()
    monkeypatch.undo()
    loadavg = tmp_path / "loadavg"
    assert running_threads(loadavg) > 1000  # a system that does not tell counts as busy
    loadavg.write_text("0.20 0.33 0.56 3/412 2041\n")
    assert running_threads(loadavg) == 3
    assert running_threads() >= 1


def test_a_model_that_fails_to_load_a_second_time_is_not_tried_again(
    compiled: dict[str, tuple[Manifest, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, _ = compiled["onnx"]
    wide = Wide(manifest, tmp_path, 2)  # where no model is
    monkeypatch.setattr(engines, "running_threads", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert wide.fits()
    with pytest.raises(LoadError, match="cannot load"):
        wide.run(rows(1))
    assert not wide.fits()


def test_a_missing_library_names_its_requirements(
    compiled: dict[str, tuple[Manifest, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"line needs .*requirements/onnx\.txt"):
        load_engine(*compiled["onnx"])


def test_a_damaged_file_names_the_model(compiled: dict[str, tuple[Manifest, Path]], tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"junk")
    with pytest.raises(EngineError, match=r"line: litert cannot load model\.tflite"):
        load_engine(compiled["litert"][0], tmp_path)


def test_a_manifest_of_another_version_is_refused(compiled: dict[str, tuple[Manifest, Path]], tmp_path: Path) -> None:
    data = json.loads((compiled["litert"][1] / "manifest.json").read_text())
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "manifest.json").write_text(json.dumps({**data, "colour": "red"}))
    with pytest.raises(ManifestError, match=r"line/manifest\.json.*Compile the model again"):
        read_versions(tmp_path)
    with pytest.raises(ManifestError, match="no compiled model here"):
        read_versions(tmp_path / "line")
