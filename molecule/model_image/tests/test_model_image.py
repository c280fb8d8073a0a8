"""The role model_image: what is built, how large, what is refused, and that equal input builds nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

MODELS = Path(__file__).resolve().parents[3] / "models"
MEGABYTE = 10**6


def docker(*arguments: str) -> str:
    """Ask the engine of this machine, which is the builder here."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def built() -> set[str]:
    return set(docker("image", "ls", "slipway/model-server", "--format", "{{.Tag}}").split())


def bundles() -> set[str]:
    volume = ("run", "--rm", "--volume", "slipway-bundles:/bundles:ro", "slipway/base:bookworm")
    return set(docker(*volume, "ls", "/bundles").split())


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS, tmp_path / "models"))


def test_the_server_has_the_image_with_a_layer_a_model(host: Host) -> None:
    (tag,) = host.check_output("docker image ls slipway/model-server --format '{{.Tag}}'").split()
    image = json.loads(host.check_output("docker image inspect slipway/model-server:%s", tag))[0]
    assert image["Config"]["Labels"] == {
        "slipway.models": "digits digits_even wine xor",
        "slipway.engines": "litert onnx",
    }
    assert image["Size"] <= 430 * MEGABYTE
    history = host.check_output("docker history --no-trunc --format '{{.CreatedBy}}' slipway/model-server:%s", tag)
    assert sum(" in /bundle/" in line for line in history.splitlines()) == 4
    assert "tensorflow" not in host.check_output(
        "docker run --rm --network none slipway/model-server:%s ls /opt/libraries", tag
    )


def test_a_model_that_changed_is_compiled_alone_and_litert_alone_makes_a_smaller_image(
    models: Path, play: Callable
) -> None:
    for name in ("digits_even", "wine"):
        shutil.rmtree(models / name)
    card = models / "xor/model.yml"
    card.write_text(card.read_text() + f"# {models}\n")
    images, before = built(), bundles()
    assert play("model_image", model_image_models=str(models)).failure == ""
    assert [name.split("-")[0] for name in bundles() - before] == ["xor"]
    (tag,) = built() - images
    image = json.loads(docker("image", "inspect", f"slipway/model-server:{tag}"))[0]
    assert image["Config"]["Labels"]["slipway.engines"] == "litert"
    assert image["Size"] <= 350 * MEGABYTE
    assert play("model_image", model_image_models=str(models)).changed == []


def spoil_weights(models: Path) -> None:
    (models / "digits/digits.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)


def name_a_missing_file(models: Path) -> None:
    card = models / "digits/model.yml"
    card.write_text("model: nowhere.h5\n" + card.read_text())


def drop_a_label(models: Path) -> None:
    card = models / "digits/model.yml"
    card.write_text(card.read_text().replace(", 9]", "]"))


def add_an_unknown_key(models: Path) -> None:
    with (models / "digits/model.yml").open("a") as card:
        card.write("titel: Digits\n")


def name_it_badly(models: Path) -> None:
    (models / "digits").rename(models / "My Digits")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, "digits.h5"),
        (name_a_missing_file, "nowhere.h5"),
        (drop_a_label, "labels"),
        (add_an_unknown_key, "titel"),
        (name_it_badly, "My Digits"),
    ],
)
def test_a_model_that_can_not_be_served_stops_the_build(
    models: Path, play: Callable, spoil: Callable[[Path], None], message: str
) -> None:
    for name in ("digits_even", "wine"):
        shutil.rmtree(models / name)
    spoil(models)
    images, before = built(), bundles()
    outcome = play("model_image", model_image_models=str(models))
    assert message in outcome.failure
    assert built() == images
    assert bundles() == before


def test_a_server_of_another_architecture_is_refused(play: Callable) -> None:
    facts = ("--extra-vars", json.dumps({"_model_image_architectures": {"x86_64": "arm64", "aarch64": "amd64"}}))
    outcome = play("model_image", arguments=facts)
    assert "would not start there" in outcome.failure
    assert "Remedy: set model_image_builder" in outcome.failure
