"""`make up`, again, and `make down` on an operator's machine that has POSIX's utilities alone.

The machine is a container (tests/operator/) with this machine's engine and a checkout of its own, without .venv. Docker
builds by BuildKit there, as Docker Desktop does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from host import ROOT

HOST = "slipway-operator"
MACHINE = "slipway-operator-machine"
IMAGE = "slipway/operator"
SOCKET = Path("/var/run/docker.sock")
# What containers are given by the role has to have the same path on the machine whose engine starts them.
STAGING = Path(f"/var/tmp/slipway-{os.getuid()}")
AUTHORITIES = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"]
SETTINGS = ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "http_proxy", "https_proxy", "no_proxy"]


def docker(*arguments: str) -> str:
    run = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr
    return run.stdout


class Machine:
    """An operator's machine with a checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
            if (ROOT / name).is_file():
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.checkout / name)
        (folder / "passwd").write_text(f"operator:x:{os.getuid()}:{os.getgid()}::{folder}:/bin/sh\n")

    def run(self, *command: str) -> str:
        """Run a command in the checkout and return what it said."""
        STAGING.mkdir(mode=0o700, exist_ok=True)
        shared = [f"{path}:{path}" for path in (self.folder, STAGING, SOCKET)]
        shared += [f"{self.folder}/passwd:/etc/passwd:ro"]
        shared += [f"{next(filter(os.path.exists, AUTHORITIES))}:{AUTHORITIES[0]}:ro"]
        settings = {"HOME": self.folder, "ANSIBLE_INVENTORY": "tests/operator/inventory"}
        settings |= {"ANSIBLE_STDOUT_CALLBACK": "default"}
        settings |= {"DOCKER_BUILDKIT": "1", "PIP_CERT": AUTHORITIES[0]}
        return docker(
            *("run", "--rm", "--name", MACHINE, "--network", "host", "--workdir", str(self.checkout)),
            *("--user", f"{os.getuid()}:{os.getgid()}", "--group-add", str(SOCKET.stat().st_gid)),
            *(f"--volume={volume}" for volume in shared),
            *(f"--env={name}={value}" for name, value in settings.items()),
            *(f"--env={name}" for name in SETTINGS),
            *(IMAGE, *command),
        )


def left() -> str:
    """The host's container and volume, as far as they are there."""
    return docker("ps", "--all", "--quiet", f"--filter=name=^{HOST}$") + docker(
        "volume", "ls", "--quiet", f"--filter=name=^{HOST}-docker$"
    )


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    docker("build", "--quiet", "--tag", IMAGE, str(ROOT / "tests/operator"))
    with tempfile.TemporaryDirectory(prefix="slipway-operator-") as folder:
        docker("rm", "--force", "--volumes", MACHINE, HOST)
        docker("volume", "rm", "--force", f"{HOST}-docker")
        yield Machine(Path(folder))
        docker("rm", "--force", "--volumes", MACHINE, HOST)
        docker("volume", "rm", "--force", f"{HOST}-docker")


@pytest.fixture(scope="module")
def up(machine: Machine) -> str:
    """What the first `make up` says, of a model that was never compiled before."""
    with (machine.checkout / "models/xor/model.yml").open("a") as card:
        card.write(f"# {uuid.uuid4()}\n")
    return machine.run("make", "up")


def test_the_machine_lacks_what_posix_has_not(machine: Machine) -> None:
    tools = "bash timeout sha256sum stat setsid readlink realpath perl git dpkg"
    machine.run("sh", "-euc", f"for tool in {tools}; do ! command -v $tool; done; command -v sed xargs python3")


def test_up_compiles_builds_and_predicts(machine: Machine, up: str) -> None:
    assert "making .venv" in up
    assert re.search(r"^changed: \[slipway-operator -> localhost\] => \(item=xor-", up, re.MULTILINE), up[-5000:]
    assert "Build the image, a layer a model" in up
    assert 'prediction  digits, example "three":' in up and "digit = 3" in up
    (image,) = set(re.findall(r"slipway/model-server:[0-9a-f]{12}", up))
    # Without a time, another run's pruning would take it for the oldest.
    assert int(docker("image", "inspect", "--format", "{{ .Metadata.LastTagTime.Unix }}", image)) > 0
    ask = ["curl", "--silent", "--show-error", "--fail", "--cacert", f"ca/{HOST}.pem"]
    ask += ["--header", "Content-Type: application/json", "--data", '{"X": "1 0|1 1"}']
    (one,), (zero,) = json.loads(machine.run(*ask, "https://localhost:28443/predict"))["labels"]
    assert one > 0.9 and zero < 0.1


@pytest.mark.usefixtures("up")
def test_up_again_changes_nothing(machine: Machine) -> None:
    again = machine.run("make", "up")
    assert re.search(rf"^{HOST} +: ok=\d+ +changed=0 +unreachable=0 +failed=0", again, re.MULTILINE), again[-5000:]
    assert list(STAGING.glob(f"*{HOST}*")) == []


@pytest.mark.usefixtures("up")
def test_down_leaves_nothing_of_the_host(machine: Machine) -> None:
    assert left() != ""
    machine.run("make", "down")
    assert left() == ""
