"""`vagrant up` with the docker provider, end to end; of the other providers what `vagrant validate` can check here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator

import pytest

from host import ROOT

PACKAGES = ["vagrant", "vagrant-libvirt", "openssh-client"]


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command of Vagrant's; its exit code and what it said."""
    command = ["vagrant", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"VAGRANT_DEFAULT_PROVIDER": "docker"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def vagrant(*arguments: str, **environment: str) -> str:
    """Run a command of Vagrant's that must end well and return what it said."""
    code, said = run(*arguments, **environment)
    assert code == 0, said[-5000:]
    return said


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Vagrant; where there is none, root on Debian or Ubuntu installs the distribution's."""
    if shutil.which("vagrant"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.exit("no Vagrant is here, and only root on Debian or Ubuntu can install one", returncode=77)
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    install = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *PACKAGES]
    subprocess.run(install, check=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})


@pytest.fixture(scope="module")
def staging() -> Iterator[str]:
    """The staging copy; the value is what its `vagrant up` said."""
    vagrant("destroy", "--force")
    yield vagrant("up", "--provider=docker")
    vagrant("destroy", "--force")


@pytest.mark.parametrize("provider", ["docker", "libvirt", "virtualbox"])
def test_the_vagrantfile_is_valid(provider: str) -> None:
    _, said = run("validate", VAGRANT_DEFAULT_PROVIDER=provider)
    if "could not be found" in said or "could not detect" in said:
        warnings.warn(f"{provider} is not here: its own part of the Vagrantfile was NOT checked", stacklevel=1)
        said = vagrant("validate", "--ignore-provider")
    assert "Vagrantfile validated successfully" in said


def test_up_ends_in_a_service(staging: str) -> None:
    assert "address     https://localhost:9443/" in staging
    command = ["curl", "--silent", "--show-error", "--fail", "--cacert", str(ROOT / "ca/staging.pem")]
    command += ["--header", "Content-Type: application/json", "--data", '{"X": "1 0|1 1"}']
    command += ["https://localhost:9443/predict"]
    (one,), (zero,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["labels"]
    assert one > 0.9 and zero < 0.1


def test_ssh_enters(staging: str) -> None:
    assert "vagrant" in vagrant("ssh", "--command", "whoami")


def test_provisioning_again_changes_nothing(staging: str) -> None:
    said = vagrant("provision")
    assert re.search(r"staging +: ok=\d+ +changed=0 +unreachable=0 +failed=0", said), said[-3000:]
