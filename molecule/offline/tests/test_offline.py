"""The whole site on a host without internet access, from the bundle alone; and which bundles are rejected."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[3]
BUNDLE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "bundle"
PACKAGES = ["nginx", "firewalld", "chrony", "nftables"]


def test_host_has_no_way_out(host: Host) -> None:
    assert host.check_output("ip route show default") == ""
    assert host.run("curl --silent --max-time 3 http://deb.debian.org/").rc != 0


def test_host_serves(host: Host) -> None:
    answer = host.check_output(
        "curl --silent --fail --cacert /etc/slipway/tls/ca.pem --header 'Content-Type: application/json'"
        """ --data '{"X": "1 0|1 1"}' https://localhost/predict"""
    )
    (one,), (zero,) = json.loads(answer)["labels"]
    assert one > 0.9 and zero < 0.1


@pytest.mark.only_on("debian")
def test_packages_come_from_the_bundle_alone(host: Host) -> None:
    for package in [*PACKAGES, "docker.io"]:
        policy = host.check_output("apt-cache policy %s", package)
        assert "file:/var/lib/slipway/packages" in policy and "http" not in policy, policy


@pytest.mark.only_on("rpm")
def test_rpms_come_from_the_bundle_alone(host: Host) -> None:
    assert host.check_output("dnf --quiet repolist").split()[-2:] == ["Slipway's", "bundle"]
    for package in [*PACKAGES, "docker-ce"]:
        assert "slipway-bundle" in host.check_output("dnf info --installed %s | grep '^From repo'", package)


def test_tools_can_be_installed_from_the_wheels_alone(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--target", str(tmp_path)]
    source = ["--no-index", "--find-links", str(BUNDLE / "wheels"), "--requirement", str(ROOT / "requirements.txt")]
    done = subprocess.run([*install, *source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stdout


def test_images_are_those_the_models_were_built_of() -> None:
    about = json.loads((BUNDLE / "bundle.json").read_text())
    there = subprocess.run(["docker", "image", "inspect", *about["images"]], capture_output=True, check=True)
    kinds = {image["RepoTags"][0].split(":")[0] for image in json.loads(there.stdout)}
    assert kinds == {"slipway/base", "slipway/toolchain", "slipway/libraries", "slipway/runtime"}
    saved = subprocess.run(["tar", "-xzOf", BUNDLE / "images.tar.gz", "manifest.json"], capture_output=True, check=True)
    assert sorted(tag for image in json.loads(saved.stdout) for tag in image["RepoTags"]) == sorted(about["images"])


@pytest.mark.only_on("debian")
def test_models_are_compiled_and_their_image_built_without_a_way_out(host: Host, run_roles, tmp_path: Path) -> None:
    """With the host's own engine, from the bundle's images; these models need only one of the bundle's engines."""
    shutil.copytree(ROOT / "models/xor", tmp_path / "one/xor")
    builder = {"model_image_builder": "slipway-offline", "model_image_models": str(tmp_path / "one")}
    outcome = run_roles("model_image", model_image_bundle=str(BUNDLE), **builder)
    assert outcome.failure == ""
    assert "model_image : Compile the models that changed" in outcome.changed
    label = "docker image inspect --format '{{index .Config.Labels \"slipway.models\"}}'"
    models = host.check_output(f"{label} $(docker image ls --quiet slipway/model-server)").splitlines()
    assert [each for each in models if re.fullmatch("xor-[0-9a-f]{12}", each)]

    shutil.copytree(ROOT / "models/digits", tmp_path / "one/digits")
    about = json.loads((BUNDLE / "bundle.json").read_text()) | {"engines": ["onnx"]}
    (tmp_path / "bundle.json").write_text(json.dumps(about))
    outcome = run_roles("model_image", model_image_bundle=str(tmp_path), **builder)
    assert "The models need litert; the offline bundle" in outcome.failure and "has onnx. Remedy" in outcome.failure


def damaged(folder: Path) -> Path:
    """A copy of the bundle, its large files linked, with one byte of the packages changed."""
    shutil.copytree(BUNDLE, folder, copy_function=os.link)
    packages = folder / "packages.tar"
    packages.unlink()
    shutil.copy(BUNDLE / "packages.tar", packages)
    with packages.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    return folder


def test_a_damaged_bundle_is_refused(run_roles, tmp_path: Path) -> None:
    outcome = run_roles("base", base_bundle=str(damaged(tmp_path / "bundle")))
    assert outcome.changed == []
    assert "packages.tar: FAILED" in outcome.failure and "copy it again" in outcome.failure


def test_a_bundle_that_is_missing_or_for_another_system_is_refused(run_roles, tmp_path: Path) -> None:
    assert "SHA256SUMS" in run_roles("base", base_bundle=str(tmp_path)).failure
    about = tmp_path / "bundle.json"
    about.write_text(json.dumps({"system": "RedHat-6", "architecture": "x86_64"}))
    (tmp_path / "SHA256SUMS").write_text(subprocess.check_output(["sha256sum", "bundle.json"], cwd=tmp_path, text=True))
    outcome = run_roles("base", base_bundle=str(tmp_path))
    assert outcome.changed == []
    assert "is for RedHat-6 on x86_64" in outcome.failure
