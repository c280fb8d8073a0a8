"""The role model_image: what is built, shipped, refused and removed, and that equal input does nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[3]
OWN = Path(f"/var/tmp/slipway-{os.getuid()}")  # where a run has its folders
MEGABYTE = 10**6
SHIP = ("model_image", "model_image/ship")
COMPILE = "model_image : Compile the models that changed"


def docker(*arguments: str) -> str:
    """Ask the engine of this machine, which is the builder here."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def compiled_models(*conditions: str) -> set[str]:
    """The compiled models on this machine, where other checks compile meanwhile."""
    volume = ("run", "--rm", "--volume", "slipway-compiled:/compiled:ro", "slipway/base:trixie")
    return set(docker(*volume, "find", "/compiled", "-name", "*.tar", *conditions, "-printf", "%f\n").split())


def images_of(*names: str) -> list[str]:
    """The images on this machine with these models and no others."""
    ids = docker("image", "ls", "--quiet", "slipway/model-server").split()
    label = '{{.Id}} {{index .Config.Labels "slipway.models"}}'
    images = [line.split() for line in docker("image", "inspect", "--format", label, *ids).splitlines()]
    return [image for image, *models in images if [model.rpartition("-")[0] for model in models] == list(names)]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "models", tmp_path / "models"))


def test_the_server_has_the_image_with_a_layer_a_model(host: Host) -> None:
    (tag,) = host.check_output("docker image ls slipway/model-server --format '{{.Tag}}'").split()
    image = json.loads(host.check_output("docker image inspect slipway/model-server:%s", tag))[0]
    models = re.findall("([a-z_]+)-[0-9a-f]{12}", image["Config"]["Labels"]["slipway.models"])
    assert models == ["digits", "digits_even", "wine", "xor"]
    assert image["Config"]["Labels"]["slipway.engines"] == "litert onnx"
    assert image["Size"] <= 430 * MEGABYTE
    history = host.check_output("docker history --no-trunc --format '{{.CreatedBy}}' slipway/model-server:%s", tag)
    assert sum(" ADD file:" in line for line in history.splitlines()) == 4
    assert "tensorflow" not in host.check_output(
        "docker run --rm --network none slipway/model-server:%s ls /opt/libraries", tag
    )


def newest(host: Host) -> str:
    return host.check_output("docker image ls slipway/model-server --format '{{.Repository}}:{{.Tag}}'").split()[0]


def shipped(said: str) -> tuple[float, int]:
    """The bytes and the layers that were shipped, as the operator is told."""
    match = re.search(r"shipped ([\d.]+) (Bytes|KB|MB) \((\d+) of \d+ layers", said)
    assert match, said
    return float(match[1]) * {"Bytes": 1, "KB": 2**10, "MB": 2**20}[match[2]], int(match[3])


def assert_it_serves(host: Host, image: str) -> None:
    """Ready means that every example of every model was answered rightly."""
    assert host.check_output("docker image inspect --format '{{.Id}}' %s", image) == docker(
        "image", "inspect", "--format", "{{.Id}}", image
    )
    host.check_output("docker run --detach --rm --name try --publish 127.0.0.1:5000:5000 %s", image)
    try:
        host.check_output(
            "curl --silent --show-error --fail --retry 20 --retry-delay 1 --retry-all-errors http://127.0.0.1:5000/readyz"
        )
    finally:
        host.check_output("docker kill try")


def test_a_model_that_changed_is_compiled_and_shipped_alone(host: Host, models: Path, run_roles: Callable) -> None:
    card = models / "digits/model.yml"  # the other models' layers lie upon its own
    card.write_text(card.read_text().replace("title: Handwritten digits", f"title: Digits of {models}"))
    start = time.time()
    outcome = run_roles(*SHIP, model_image_models=str(models))
    assert outcome.failure == ""
    image = newest(host)
    needs = host.check_output("docker image inspect --format '{{index .Config.Labels \"slipway.needs\"}}' %s", image)
    compiled = compiled_models("-newermt", f"@{start}") & set(needs.split())
    assert [name.split("-")[0] for name in compiled] == ["digits"]
    size, layers = shipped(outcome.said)
    files = sum(file.stat().st_size for file in (models / "digits").rglob("*"))
    assert layers == 1
    assert size < 2 * files + 100_000
    assert_it_serves(host, image)

    again = run_roles(*SHIP, model_image_models=str(models))
    assert (again.failure, again.changed, again.said) == ("", [], "")


def test_an_app_that_changed_ships_no_libraries_and_a_killed_run_leaves_nothing(
    host: Host, tmp_path: Path, run_roles: Callable
) -> None:
    app = Path(shutil.copytree(ROOT / "app", tmp_path / "app"))
    with (app / "model_server/routes/page.py").open("a") as page:
        page.write(f"# {app}\n")
    left = ("/var/cache/slipway-image.tar.gz", "/root/.ansible/slipway-ship/ansible-tmp-1/source")
    host.check_output(f"install -D /etc/passwd {left[0]} && install -D /etc/passwd {left[1]}")
    killed = OWN / "build-killed"
    killed.mkdir(parents=True, exist_ok=True)
    os.utime(killed, (0, 0))
    outcome = run_roles(*SHIP, _model_image_app=str(app))
    assert outcome.failure == ""
    assert COMPILE not in outcome.changed
    size, layers = shipped(outcome.said)
    assert layers == 2  # the app, and what Python compiled of it
    assert size < MEGABYTE
    assert_it_serves(host, newest(host))
    assert not killed.exists() and not list(OWN.glob("ship-slipway-model-image-*"))
    assert not any(host.file(path).exists for path in (left[0], "/root/.ansible/slipway-ship"))


def test_models_that_need_only_litert_make_a_smaller_image(models: Path, run_roles: Callable) -> None:
    for name in ("digits_even", "wine"):
        shutil.rmtree(models / name)
    outcome = run_roles("model_image", model_image_models=str(models))
    assert outcome.failure == ""
    assert COMPILE not in outcome.changed
    settings = json.loads(docker("image", "inspect", images_of("digits", "xor")[0]))[0]
    assert settings["Config"]["Labels"]["slipway.engines"] == "litert"
    assert settings["Size"] <= 350 * MEGABYTE


def spoil_weights(models: Path) -> None:
    (models / "spoilt/digits.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)


def name_a_missing_file(models: Path) -> None:
    card = models / "spoilt/model.yml"
    card.write_text("model: nowhere.h5\n" + card.read_text())


def drop_a_label(models: Path) -> None:
    card = models / "spoilt/model.yml"
    card.write_text(card.read_text().replace(", 9]", "]"))


def make_two_mistakes(models: Path) -> None:
    with (models / "spoilt/model.yml").open("a") as card:
        card.write("titel: Digits\nallow_lambda: perhaps\n")


def name_it_badly(models: Path) -> None:
    (models / "spoilt").rename(models / "My Spoilt")


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (spoil_weights, ["digits.h5"]),
        (name_a_missing_file, ["nowhere.h5"]),
        (drop_a_label, ["labels"]),
        (make_two_mistakes, ["{models}/spoilt/model.yml: titel", "{models}/spoilt/model.yml: allow_lambda"]),
        (name_it_badly, ["My Spoilt"]),
    ],
)
def test_a_model_that_cannot_be_served_stops_the_build(
    models: Path, run_roles: Callable, spoil: Callable[[Path], None], messages: list[str]
) -> None:
    for name in ("digits_even", "wine"):
        shutil.rmtree(models / name)
    (models / "digits").rename(models / "spoilt")
    spoil(models)
    outcome = run_roles("model_image", model_image_models=str(models))
    for message in messages:
        assert message.format(models=models) in outcome.failure
    assert images_of("spoilt", "xor") == []
    assert not compiled_models("-name", "spoilt*")
    assert not list(OWN.glob("build-*/models/spoilt"))


def rows(said: str) -> list[str]:
    """The models in the table that the operator is shown."""
    return re.findall(r"^(\S+) +\S+ +(?:LiteRT|ONNX Runtime) .*\d$", said, re.MULTILINE)


def test_a_build_prints_how_models_were_compiled(models: Path, run_roles: Callable) -> None:
    with (models / "xor/model.yml").open("a") as card:
        card.write(f"# {models}\n")
    outcome = run_roles("model_image", model_image_models=str(models))
    assert outcome.failure == ""
    assert rows(outcome.said) == ["xor"]


def test_a_check_prints_every_fault_and_how_the_other_models_were_compiled(models: Path, run_roles: Callable) -> None:
    (models / "digits").rename(models / "spoilt")
    make_two_mistakes(models)
    (models / "wine/saved_model/saved_model.pb").write_bytes(b"none")
    (models / "stray.h5").touch()
    outcome = run_roles("model_image/check", model_image_models=str(models))
    for fault in ("spoilt/model.yml: titel", "spoilt/model.yml: allow_lambda", "wine", "stray.h5 is beside"):
        assert f"{models}/{fault}" in outcome.failure
    assert rows(outcome.said) == ["digits_even", "xor"]
    assert not list(OWN.glob("build-*/models/spoilt"))

    for bad in "spoilt", "wine":
        shutil.rmtree(models / bad)
    (models / "stray.h5").unlink()
    outcome = run_roles("model_image/check", model_image_models=str(models))
    assert outcome.failure == "" and COMPILE not in outcome.changed
    assert rows(outcome.said) == ["digits_even", "xor"]
    assert "pictures go to digits_even" in outcome.said and "go to xor" in outcome.said


def test_a_check_of_one_model_leaves_the_others_alone(models: Path, run_roles: Callable) -> None:
    (models / "digits").rename(models / "spoilt")
    make_two_mistakes(models)
    outcome = run_roles("model_image/check", model_image_models=str(models), _model_image_only="xor")
    assert outcome.failure == ""
    assert rows(outcome.said) == ["xor"]
    outcome = run_roles("model_image/check", model_image_models=str(models), _model_image_only="nowhere")
    assert "No model nowhere is in" in outcome.failure and "digits_even, spoilt, wine, xor" in outcome.failure


def test_each_version_of_a_model_is_compiled_alone_and_none_when_a_label_moves(
    models: Path, run_roles: Callable
) -> None:
    card = models / "xor/model.yml"
    shared = f"{card.read_text()}# {models}\n"
    card.write_text(shared)
    for version in ("1", "2"):
        (models / "xor" / version).mkdir()
        for name in ("model.json", "model.h5"):
            shutil.copyfile(models / "xor" / name, models / "xor" / version / name)

    def compiled() -> set[str]:
        start = time.time()
        outcome = run_roles("model_image/check", model_image_models=str(models), _model_image_only="xor")
        assert outcome.failure == ""
        assert rows(outcome.said) == ["xor.1", "xor.2"]
        # Other checks may compile the shipped xor meanwhile, which has no versions.
        return {name.rpartition("-")[0] for name in compiled_models("-newermt", f"@{start}", "-name", "xor*")}

    outcome = run_roles("model_image/check", model_image_models=str(models), _model_image_only="xor")
    assert f"{models}/xor/model.json: is beside the model's versions" in outcome.failure
    for name in ("model.json", "model.h5"):
        (models / "xor" / name).unlink()
    assert compiled() == {"xor", "xor.1", "xor.2"}
    card.write_text(f"{shared}versions: {{labels: {{stable: 1, canary: 2}}, canary_share: 0.1}}\n")
    assert compiled() == {"xor"}


def test_a_check_says_that_several_models_take_rows(models: Path, run_roles: Callable) -> None:
    shutil.copytree(models / "xor", models / "xor_again")
    outcome = run_roles("model_image/check", model_image_models=str(models))
    assert outcome.failure == ""
    assert rows(outcome.said) == ["digits", "digits_even", "wine", "xor", "xor_again"]
    assert "go to no model: xor, xor_again all take them" in outcome.said


def test_a_server_of_another_architecture_is_refused(run_roles: Callable) -> None:
    facts = ("--extra-vars", json.dumps({"_model_image_architectures": {"x86_64": "arm64", "aarch64": "amd64"}}))
    outcome = run_roles("model_image", arguments=facts)
    assert "would not start there" in outcome.failure
    assert "Remedy: set model_image_builder" in outcome.failure


@pytest.fixture
def nested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the role prune the engine of the test host in place of this machine's, whose images are not for a test."""
    command = tmp_path / "bin/docker"
    command.parent.mkdir()
    command.write_text(
        f"""#!/bin/sh
case $1 in
image | rmi | run) exec {shutil.which("docker")} exec --interactive slipway-model-image docker "$@" ;;
*) exec {shutil.which("docker")} "$@" ;;
esac
"""
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("nested")
def test_the_builder_keeps_the_images_asked_for_last_and_what_they_were_built_of(
    host: Host, tmp_path: Path, run_roles: Callable
) -> None:
    base = newest(host)

    def build(name: str, label: str) -> None:
        host.check_output(f"printf 'FROM {base}\\nLABEL {label}' | docker build --tag slipway/{name} -")

    in_volume = "docker run --rm --user 0 --volume slipway-compiled:/compiled slipway/model-server:2"
    for number in (1, 2, 3, 4):
        needs = f"slipway/toolchain:common slipway/runtime:{number} common.tar xor-{number}.tar"
        build(f"model-server:{number}", f'slipway.needs="{needs}"')
        build(f"runtime:{number}", f"n={number}")
        time.sleep(1)  # that is how exactly their order is known
    build("toolchain:common", "n=common")
    build("toolchain:old", "n=old")
    host.check_output("docker tag slipway/model-server:3 slipway/model-server:3")  # as a run does that asks for it
    files = "common.tar xor-1.tar xor-1.txt xor-2.tar xor-2.txt xor-3.tar xor-4.tar part.x"
    host.check_output(f"{in_volume} sh -c 'cd /compiled; touch {files}'")

    def there() -> set[str]:
        images = host.check_output("docker image ls --format '{{.Repository}}:{{.Tag}}' 'slipway/*'").split()
        return {*images, *host.check_output(f"{in_volume} ls /compiled").split()}

    def prune() -> tuple[list[str], str]:
        outcome = run_roles(
            "model_image/prune",
            model_image_name="slipway/model-server:2",
            model_image_keep=2,
            _model_image_builds=str(tmp_path / "builds"),
        )
        assert outcome.failure == ""
        return outcome.changed, outcome.said

    kept = {f"slipway/{name}" for name in ("model-server:2", "model-server:3", "runtime:2", "runtime:3")}
    kept |= {"slipway/toolchain:common", "common.tar", "xor-2.tar", "xor-2.txt", "xor-3.tar"}
    building = tmp_path / "builds/build-x"
    building.mkdir(parents=True)
    host.check_output("docker run --detach --rm --name busy slipway/model-server:1 sleep 600")
    _, said = prune()
    assert "WARNING" in said and '"slipway/model-server:1"' in said
    assert there() >= kept | {"slipway/model-server:1", "slipway/toolchain:old", "slipway/runtime:1", "xor-1.tar"}
    assert not there() & {"slipway/model-server:4", base}

    building.rmdir()
    host.check_output("docker kill busy")
    prune()
    assert there() == kept
    assert prune() == ([], "")
