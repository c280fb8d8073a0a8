"""Several versions of a model are compiled, served, labelled and removed side by side."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from flask.testing import FlaskClient
from keras import layers

from conftest import APP, Server, make_manifest, python_path
from model_server.app import create_app
from model_server.catalogue import Catalogue
from model_server.compile.card import CardError, find_versions, load_card, load_versions
from model_server.manifest import InputSpec, ManifestError, OutputSpec, _asked, read_versions
from model_server.settings import Settings

CARD = """
title: A net
predict: true
examples: [{input: [1, 2], expect: 3}]
versions:
  labels: {stable: 1, canary: 2, next: 10}
  canary_share: 1/4
"""
# Version 2 has a card of its own, because it answers otherwise.
OWN_CARD = """
title: A recurrent net
predict: true
examples: [{input: [1, 2], expect: 0, tolerance: 1}]
"""
ROW = {"row": [1, 2]}
TENSOR = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


def linear(factor: float, size: int = 2) -> keras.Sequential:
    """Return a model that answers the sum of its inputs times `factor`."""
    model = keras.Sequential([keras.Input((size,), name="x"), layers.Dense(1, use_bias=False, name="y")])
    model.layers[-1].set_weights([np.full((size, 1), factor)])
    return model


def recurrent() -> keras.Sequential:
    """Return a model that takes the same, but that LiteRT does not run. Its answers are between -1 and 1."""
    keras.utils.set_random_seed(1)
    parts = [layers.Reshape((2, 1)), layers.GRU(3), layers.Dense(1, activation="tanh", name="y")]
    return keras.Sequential([keras.Input((2,), name="x"), *parts])


def save(models: Path, path: str, model: keras.Model) -> None:
    (models / path).parent.mkdir(parents=True, exist_ok=True)
    model.save(models / path)


def command(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model_server.compile", *map(str, arguments)],
        cwd=APP,
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
    )


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the mode and the content of all but measured.json in a folder, by path; all times have to be 0."""
    found = [path for path in (folder, *folder.rglob("*")) if path.name != "measured.json"]
    assert {path.stat().st_mtime for path in found} == {0}
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in found
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of three versions and one without."""
    folder = tmp_path_factory.mktemp("models")
    save(folder, "net/1/net.keras", linear(1))
    save(folder, "net/2/net.keras", recurrent())
    save(folder, "net/10/net.keras", linear(1.001))
    (folder / "net/model.yml").write_text(CARD)
    (folder / "net/2/model.yml").write_text(OWN_CARD)
    save(folder, "plain/plain.keras", linear(3, size=3))
    return folder


@pytest.fixture(scope="module")
def command_said(models: Path) -> str:
    """What the compiler prints of them."""
    done = command(models, models.parent / "compiled")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiled_versions(models: Path, command_said: str) -> Path:
    return models.parent / "compiled"


@pytest.fixture
def copy(models: Path, compiled_versions: Path, tmp_path: Path) -> Path:
    """A folder with copies of both, models and compiled, for a test that changes them."""
    shutil.copytree(models, tmp_path / "models")
    shutil.copytree(compiled_versions, tmp_path / "compiled")
    return tmp_path


@pytest.fixture(scope="module")
def served(compiled_versions: Path, start_server: Callable[..., Server]) -> Server:
    return start_server(MODEL_SERVER_MODELS=str(compiled_versions), MODEL_SERVER_REQUEST_LOG="true")


def ask(server: Server, path: str, body: Any = None, request_id: str = "") -> tuple[int, Any, str | None]:
    """Return the status, the JSON of the answer and the version that the header names."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.address + path, data, {"X-Request-ID": request_id})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response), response.headers["X-Model-Version"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers["X-Model-Version"]


# ---------------------------------------------------------------- compiling


def test_each_version_is_compiled_for_the_engine_that_takes_it(command_said: str, compiled_versions: Path) -> None:
    rows = {line.split()[0]: line for line in command_said.splitlines()}
    assert "LiteRT" in rows["net.1"] and "ONNX Runtime" in rows["net.2"] and "LiteRT" in rows["net.10"]
    assert "LiteRT" in rows["plain"]
    assert "net: requests that name no version go to 1, but 25 % of them, at random, to 2" in command_said
    net, plain = read_versions(compiled_versions)
    assert [manifest.version for manifest in net.manifests] == ["1", "2", "10"]
    assert [manifest.title for manifest in net.manifests] == ["A net", "A recurrent net", "A net"]
    assert (plain.labels, [manifest.version for manifest in plain.manifests]) == ({"stable": "1"}, ["1"])


def test_parts_compiled_one_by_one_are_the_same_to_the_byte(
    models: Path, compiled_versions: Path, tmp_path: Path
) -> None:
    for part in ("net", "net.2", "plain"):
        done = command(models, tmp_path, "--part", part)
        assert done.returncode == 0, done.stderr
    assert names(tmp_path / "net") == ["2", "versions.json"]
    for path in ("net/2", "net/versions.json", "plain"):
        assert tree(tmp_path / path) == tree(compiled_versions / path)
    missing = command(models, tmp_path, "--part", "net.3")
    assert (missing.returncode, missing.stderr) == (1, f"ERROR {models}: there is no net.3 here.\n")


def test_a_removed_version_is_compiled_no_more_and_the_highest_is_the_default(copy: Path) -> None:
    for path in ("models/net/10", "models/plain"):
        shutil.rmtree(copy / path)
    card = copy / "models/net/model.yml"
    refused = command(copy / "models", copy / "compiled")
    assert refused.returncode == 1
    assert f"{card}: versions.labels.next: there is no version 10; the model has 1, 2." in refused.stderr
    assert (copy / "compiled/net/10").exists()

    card.write_text(CARD.partition("versions:")[0])
    assert command(copy / "models", copy / "compiled").returncode == 0
    assert names(copy / "compiled/net") == ["1", "2", "versions.json"]
    client = create_app(Settings(models=copy / "compiled")).test_client()
    assert client.post("/predict/net", json=ROW).headers["X-Model-Version"] == "2"
    assert client.post("/predict/net/labels/stable", json=ROW).headers["X-Model-Version"] == "2"
    assert client.post("/predict/net/versions/10", json=ROW).status_code == 404


def test_a_model_gets_versions_and_loses_them_again(copy: Path) -> None:
    shutil.rmtree(copy / "models/net")
    plain = copy / "models/plain"
    (plain / "7").mkdir()
    shutil.copyfile(plain / "plain.keras", plain / "7/plain.keras")
    beside = command(copy / "models", copy / "compiled")
    assert f"ERROR {plain}/plain.keras: is beside the model's versions. Move it into" in beside.stderr
    (plain / "plain.keras").unlink()
    assert command(copy / "models", copy / "compiled").returncode == 0
    assert names(copy / "compiled/plain") == ["7", "versions.json"]
    shutil.move(plain / "7/plain.keras", plain / "plain.keras")
    (plain / "7").rmdir()
    assert command(copy / "models", copy / "compiled").returncode == 0
    assert names(copy / "compiled/plain") == ["manifest.json", "measured.json", "model.tflite"]


def test_a_version_that_cannot_be_compiled_is_named_and_the_others_serve_on(copy: Path) -> None:
    shutil.rmtree(copy / "models/plain")
    (copy / "models/net/2/net.keras").write_text("no model")
    (copy / "models/net/model.yml").write_text(CARD.replace("stable: 1", "stable: 10"))
    refused = command(copy / "models", copy / "compiled")
    assert refused.returncode == 1
    assert f"ERROR {copy}/models/net/2/net.keras: neither HDF5 nor a Keras archive" in refused.stderr
    [net, _] = read_versions(copy / "compiled")
    assert [manifest.version for manifest in net.manifests] == ["1", "2", "10"]
    assert net.labels["stable"] == "1"


def test_a_canary_that_takes_something_else_gets_no_share(copy: Path) -> None:
    save(copy / "models", "net/2/net.keras", linear(1, size=3))
    (copy / "models/net/2/model.yml").write_text("title: Three numbers")
    assert command(copy / "models", copy / "compiled", "--part", "net.2").returncode == 0
    with pytest.raises(ManifestError, match=r"net: the canary, version 2, takes or answers something else"):
        read_versions(copy / "compiled")
    refused = command("--check", copy / "compiled")
    assert refused.returncode == 1 and "leave canary_share out" in refused.stderr
    (copy / "models/net/model.yml").write_text(CARD.replace("canary_share: 1/4", ""))
    assert command(copy / "models", copy / "compiled", "--part", "net").returncode == 0
    assert "net.1, net.2, net.10, plain" in command("--check", copy / "compiled").stdout


# ---------------------------------------------------------------- serving


def test_a_version_is_asked_by_its_number_or_its_label(served: Server) -> None:
    for path, version, answer in (
        ("versions/1", "1", 3.0),
        ("versions/10", "10", 3.003),
        ("labels/stable", "1", 3.0),
        ("labels/next", "10", 3.003),
    ):
        status, body, header = ask(served, f"/predict/net/{path}", ROW)
        assert (status, header) == (200, version)
        assert body["answers"][0]["y"]["values"] == pytest.approx([answer])
        status, body, header = ask(served, f"/v1/models/net/{path}:predict", {"instances": [[1, 2]]})
        assert (status, header) == (200, version)
        assert body["predictions"][0] == pytest.approx([answer])
    status, body, header = ask(served, "/v2/models/net/versions/10/infer", TENSOR)
    assert (status, header, body["model_version"]) == (200, "10", "10")
    assert body["outputs"][0]["data"] == pytest.approx([3.003])
    for path in ("/predict/net/labels/canary", "/predict/net/versions/2"):
        status, body, header = ask(served, path, ROW)
        assert (status, header) == (200, "2")
        assert abs(body["answers"][0]["y"]["values"][0]) <= 1


def test_a_share_of_the_requests_without_a_version_goes_to_the_canary(served: Server) -> None:
    requests = [
        ("/predict/net", ROW),
        ("/v1/models/net:predict", {"instances": [[1, 2]]}),
        ("/v2/models/net/infer", TENSOR),
        ("/predict", {"X": "1 2"}),
    ]
    # A sample's share is within 0.12 of the wanted one but for one time in ten million.
    counts: Counter[str | None] = Counter()
    for number in range(480):
        status, body, version = ask(served, *requests[number % 4])
        counts[version] += 1
        assert status == 200
        if "outputs" in body:
            [value] = body["outputs"][0]["data"]
        else:
            [[value]] = body.get("labels") or body.get("predictions") or [body["answers"][0]["y"]["values"]]
        assert (value == pytest.approx(3)) == (version == "1")
    assert counts.keys() == {"1", "2"}
    assert 0.13 < counts["2"] / 480 < 0.37


def test_the_share_follows_the_draw(compiled_versions: Path) -> None:
    drawn: list[float] = []
    source = random.Random(7)

    def draw() -> float:
        drawn.append(source.random())
        return drawn[-1]

    catalogue = Catalogue(compiled_versions, 1, 1, draw)
    chosen = [catalogue.choose("net").manifest.version for _ in range(50)]
    assert chosen == ["2" if number < 0.25 else "1" for number in drawn]
    assert len(drawn) == 50
    assert catalogue.choose("net", "1").manifest.version == "1"
    assert catalogue.choose("net", label="canary").manifest.version == "2"
    assert catalogue.choose("plain").manifest.version == "1"
    assert len(drawn) == 50  # these leave nothing to chance


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/predict/net/versions/3", ROW, 404, "the model net has no version 3; its versions are 1, 2, 10"),
        ("/predict/net/labels/new", ROW, 404, "the model net has no label new; its labels are stable, canary, next"),
        (
            "/predict/nut/versions/1",
            ROW,
            404,
            "there is no model nut (perhaps you mean net); the models are net, plain",
        ),
        ("/v2/models/net/versions/3/infer", TENSOR, 404, "the model net has no version 3; its versions are 1, 2, 10"),
        ("/v1/models/net/versions/3:predict", ROW, 404, "Servable not found for request: Specific(net, 3)"),
        ("/v1/models/net/labels/new:predict", ROW, 400, "the labels of net are stable, canary, next"),
        ("/v1/models/net/versions/3", None, 404, "Could not find version 3 of model net"),
        ("/predict/plain/versions/2", ROW, 404, "the model plain has no version 2; its versions are 1"),
    ],
)
def test_what_is_not_there_is_said(served: Server, path: str, body: Any, status: int, words: str) -> None:
    found, answer, version = ask(served, path, body)
    assert (found, version) == (status, None)
    assert words in answer["error"]


def test_status_and_metadata_are_by_version(served: Server) -> None:
    def versions(path: str) -> list[str]:
        found = ask(served, path)[1]["model_version_status"]
        assert {one["state"] for one in found} == {"AVAILABLE"}
        return [one["version"] for one in found]

    assert versions("/v1/models/net") == ["10", "2", "1"]
    assert versions("/v1/models/net/versions/2") == versions("/v1/models/net/labels/canary") == ["2"]
    for path, version in (("", "1"), ("/versions/10", "10"), ("/labels/canary", "2")):
        metadata = ask(served, f"/v1/models/net{path}/metadata")[1]
        assert metadata["model_spec"] == {"name": "net", "signature_name": "", "version": version}
    assert ask(served, "/v2/models/net")[1]["versions"] == ["1", "2", "10"]
    assert ask(served, "/v2/models/net/versions/2")[1]["platform"] == "onnxruntime_onnx"
    index = ask(served, "/v2/repository/index", {})[1]
    assert [(one["name"], one["version"]) for one in index] == [
        ("net", "1"),
        ("net", "2"),
        ("net", "10"),
        ("plain", "1"),
    ]


def test_the_models_are_listed_with_their_versions_and_labels(served: Server) -> None:
    net, plain = ask(served, "/models")[1]["models"]
    assert (net["version"], net["versions"], net["canary_share"]) == ("1", ["1", "2", "10"], 0.25)
    assert net["labels"] == {"stable": "1", "canary": "2", "next": "10"}
    assert (plain["version"], plain["versions"], plain["labels"]) == ("1", ["1"], {"stable": "1"})


def test_the_request_log_and_the_headers_name_model_and_version(served: Server, client: FlaskClient) -> None:
    status, _, version = ask(served, "/predict/net/versions/10", {"row": "wrong"}, "wrong-row")
    assert (status, version) == (400, "10")
    deadline = time.monotonic() + 10
    found: list[dict[str, Any]] = []
    while not found and time.monotonic() < deadline:  # it is written after the answer
        found = [line for line in served.request_log() if line["request_id"] == "wrong-row"]
    assert [(line["model"], line["version"]) for line in found] == [("net", "10")]
    picture = (APP.parent / "models/digits/examples/seven.png").read_bytes()
    answer = client.post("/predict", data=picture, content_type="image/png")
    assert (answer.headers["X-Model"], answer.headers["X-Model-Version"]) == ("digits, digits_even", "1, 1")
    assert "X-Model-Version" not in client.get("/models").headers


def test_readiness_asks_every_version(copy: Path) -> None:
    (copy / "compiled/net/2/model.onnx").write_bytes(b"junk")
    client = create_app(Settings(models=copy / "compiled")).test_client()
    response = client.get("/readyz")
    assert response.status_code == 503 and list(response.json["models"]) == ["net.2"]
    assert client.post("/predict/net/versions/1", json=ROW).status_code == 200
    assert client.post("/predict/net/versions/2", json=ROW).status_code == 503
    states = {one["version"]: one["state"] for one in client.get("/v1/models/net").json["model_version_status"]}
    assert states == {"10": "AVAILABLE", "2": "END", "1": "AVAILABLE"}


# ---------------------------------------------------------------- the card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with two versions, of whose models a card reads only the name."""
    folder = tmp_path / "cats"
    for version in ("1", "2"):
        (folder / version).mkdir(parents=True)
        (folder / version / "cats.keras").touch()
    (folder / "examples").mkdir()
    (folder / "examples/tom.png").touch()
    return folder


@pytest.mark.parametrize(
    ("card", "mistakes"),
    [
        ("labels: {stable: 3}", ["versions.labels.stable: there is no version 3; the model has 1, 2."]),
        ("labels: {stable: '1'}", ['versions.labels.stable: "1" is not a whole number; write a version\'s number']),
        ("labels: {My: 1}", ["versions.labels.My: 'My' cannot be part of an address; use lower-case letters"]),
        ("labels: {'7': 1}", ["versions.labels.7: '7' cannot be part of an address"]),
        ("labels: [1]", ["versions.labels: [1] is not a mapping"]),
        ("label: {}", ["versions.label: unknown key (perhaps you mean labels); known keys: labels, canary_share"]),
        ("canary_share: 0.1", ["versions: no version has the label canary for canary_share; write labels"]),
        ("{canary_share: 2, labels: {canary: 2, stable: 1}}", ["versions.canary_share: 2 is not below 1"]),
        ("{canary_share: 0.1, labels: {canary: 2}}", ["versions: version 2 is both the canary and stable, which by"]),
        ("{labels: {a: 3, b: 4}, x: 1}", ["versions.labels.a: ", "versions.labels.b: ", "versions.x: "]),
    ],
)
def test_a_mistake_about_versions_is_reported_with_its_remedy(folder: Path, card: str, mistakes: list[str]) -> None:
    path = folder / "model.yml"
    path.write_text(f"versions:\n  {card}\n")
    for load in (load_versions, lambda folder: load_card(folder, "1")):
        with pytest.raises(CardError) as error:
            load(folder)
        assert len(error.value.args) == len(mistakes)
        for said, expected in zip(error.value.args, mistakes, strict=True):
            assert said.startswith(f"{path}: {expected}")


def test_each_folder_that_is_no_version_and_each_file_beside_them_is_a_mistake(folder: Path) -> None:
    (folder / "003").mkdir()
    (folder / ("9" * 19)).mkdir()
    (folder / "old.h5").touch()
    (folder / "3").mkdir()
    (folder / "3/train.py").touch()
    with pytest.raises(CardError) as error:
        find_versions(folder)
    assert [said.partition(":")[0] for said in error.value.args] == [
        f"{folder}/003",
        f"{folder}/{'9' * 19}",
        f"{folder}/old.h5",
        f"{folder}/3",
    ]
    shutil.rmtree(folder / "3")
    for path in ("003", "9" * 19):
        (folder / path).rmdir()
    (folder / "old.h5").unlink()
    assert find_versions(folder) == ("1", "2")


def test_files_are_shared_by_the_versions_but_for_those_that_one_has_itself(folder: Path) -> None:
    (folder / "labels.txt").write_text("no\nyes\n")
    (folder / "2/labels.txt").write_text("tabby\nblack\n")
    card = "outputs: {o: {kind: classes, labels: labels.txt}}\nexamples: [{input: examples/tom.png, expect: 0}]"
    (folder / "model.yml").write_text(card)
    one, two = load_card(folder, "1"), load_card(folder, "2")
    assert (one.name, one.version, two.version) == ("cats", "1", "2")
    assert (one.model, two.model) == (folder / "1/cats.keras", folder / "2/cats.keras")
    assert (one.outputs["o"].labels, two.outputs["o"].labels) == (("no", "yes"), ("tabby", "black"))
    assert one.file("examples/tom.png") == folder / "examples/tom.png"
    (folder / "model.yml").write_text("model: 1/cats.keras")
    with pytest.raises(CardError, match=r"there is no file 1/cats.keras in .*cats/2 or .*cats"):
        load_card(folder, "2")


def test_versions_belong_into_the_card_of_all_of_them(folder: Path) -> None:
    (folder / "1/model.yml").write_text("versions: {labels: {stable: 1}}")
    with pytest.raises(CardError, match=rf"1/model\.yml: versions: .* move it to {folder}/model\.yml"):
        load_card(folder, "1")
    (folder / "1/model.yml").write_text("title: One")
    (folder / "2/model.yml").write_text("title: Two")
    (folder / "model.yml").write_text("title: Cats\nversions: {labels: {stable: 1}}")
    with pytest.raises(CardError, match=r"each version has a card of its own, so nothing reads title here"):
        load_versions(folder)
    (folder / "model.yml").write_text("versions: {labels: {stable: 1}}")
    assert load_versions(folder).labels == {"stable": 1}
    for version in ("1", "2"):
        shutil.rmtree(folder / version)
    (folder / "cats.keras").touch()
    with pytest.raises(CardError, match=r"versions: the model has no numbered folders; put each version into one"):
        load_card(folder)


def test_a_canary_takes_and_answers_tensors_alike() -> None:
    picture = InputSpec("p", "float32", (-1, 8, 8, 3), "p", "image", color="rgb", scale=1 / 255)
    scores = OutputSpec("s", "float32", (-1, 2), "s", "classes")
    ours = make_manifest([picture], [scores, replace(scores, name="t")])
    assert _asked(ours) == _asked(make_manifest([picture], [replace(one, labels=("a", "b")) for one in ours.outputs]))
    for other in (
        make_manifest([replace(picture, scale=1 / 127.5, offset=-1)], [*ours.outputs]),
        make_manifest([replace(picture, shape=(-1, 16, 16, 3))], [*ours.outputs]),
        make_manifest([picture], [*reversed(ours.outputs)]),
        make_manifest([picture], [scores, replace(scores, name="t", dtype="float64")]),
    ):
        assert _asked(ours) != _asked(other)
