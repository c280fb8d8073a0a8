"""The embedded host on an engine with cgroup v2: this machine's own where it has that, else a second one in namespaces.

Where the machine has v1, its controllers stay with v1, so the second engine enforces no limits: a real case, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host import HOST, ROOT

SPACE = "slipway-cgroup2"
DATA = Path("/var/lib") / SPACE
RUN = Path("/run") / SPACE
PLAY_SECONDS = 1200


def say(*command: str, seconds: int = 60, environment: dict[str, str] | None = None) -> str:
    """Run a command that must end well and return what it said."""
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=seconds
    )
    assert run.returncode == 0, f"{' '.join(command)}: {run.stdout[-5000:]}{run.stderr}"
    return run.stdout.strip()


class Engine:
    """An engine with cgroup v2; `enter` is the command that enters its network, `environment` leads docker to it."""

    def __init__(self, enter: list[str], environment: dict[str, str]) -> None:
        self.enter = enter
        self.environment = os.environ | environment

    def run(self, *command: str, seconds: int = 60) -> str:
        return say(*self.enter, *command, seconds=seconds, environment=self.environment)

    def make(self, target: str) -> str:
        return self.run("env", "ANSIBLE_INVENTORY=tests/embedded", "make", target, seconds=PLAY_SECONDS)

    def on_host(self, command: str) -> str:
        return self.run("docker", "exec", HOST, "sh", "-euc", command)

    def ready(self, seconds: int) -> float:
        """Wait until the site answers through nginx with TLS; the seconds that took."""
        start = time.monotonic()
        curl = ["curl", "--silent", "--fail", "--max-time", "5", "--cacert", "ca/slipway-check.pem"]
        while time.monotonic() - start < seconds:
            with contextlib.suppress(AssertionError):
                self.run(*curl, "https://localhost:18443/readyz")
                return time.monotonic() - start
            time.sleep(0.5)
        raise AssertionError(f"the site gave no answer in {seconds} s")


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A network namespace with internet access, so that two engines do not share iptables' chains."""
    outer, address = "slipway-v2", "10.211.255.1"
    rules = [
        ["nat", "POSTROUTING", "--source", "10.211.255.0/30", "!", "--out-interface", outer, "--jump", "MASQUERADE"],
        ["filter", "FORWARD", "--in-interface", outer, "--jump", "ACCEPT"],
        ["filter", "FORWARD", "--out-interface", outer, "--jump", "ACCEPT"],
    ]
    with contextlib.ExitStack() as undo:
        say("ip", "netns", "add", SPACE)
        undo.callback(say, "ip", "netns", "delete", SPACE)
        say("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", SPACE)
        say("ip", "address", "add", f"{address}/30", "dev", outer)
        say("ip", "link", "set", outer, "up")
        for command in "address add 10.211.255.2/30 dev eth0", "link set eth0 up", "link set lo up":
            say("ip", "-n", SPACE, *command.split())
        say("ip", "-n", SPACE, "route", "add", "default", "via", address)
        for table, *rule in rules:
            say("iptables", "--table", table, "--insert", *rule)
            undo.callback(say, "iptables", "--table", table, "--delete", *rule)
        yield


@contextlib.contextmanager
def second_engine() -> Iterator[Engine]:
    """A Docker Engine in a mount namespace where /sys/fs/cgroup is cgroup v2, with images of the first one's."""
    shutil.rmtree(DATA, ignore_errors=True)
    RUN.mkdir(parents=True, exist_ok=True)
    socket = f"unix://{RUN}/docker.sock"
    start = (
        "! mountpoint --quiet /sys/fs/cgroup || umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup;"
        f" exec dockerd --host {socket} --data-root {DATA} --exec-root {RUN}/exec --pidfile {RUN}/docker.pid"
    )
    enter = ["ip", "netns", "exec", SPACE]
    with network(), (ROOT / ".check/cgroup2-engine.log").open("wb") as log:
        unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", start]
        process = subprocess.Popen([*enter, *unshare], stdout=log, stderr=subprocess.STDOUT)
        try:
            engine = Engine(enter, {"DOCKER_HOST": socket})
            say("timeout", "60", "sh", "-c", f"until docker --host {socket} info; do sleep 0.5; done", seconds=90)
            tagged = "docker images --format '{{ .Repository }}:{{ .Tag }}'"
            names = f"slipway/base:trixie $({tagged} slipway/host-debian13) $({tagged} slipway/model-server)"
            say("sh", "-euc", f"docker save {names} | docker --host {socket} load", seconds=300)
            yield engine
        finally:
            process.terminate()
            process.wait(60)
            for mount in Path("/proc/mounts").read_text().splitlines():
                if mount.split()[1].startswith((str(DATA), str(RUN))):
                    say("umount", mount.split()[1])
            shutil.rmtree(DATA)
            shutil.rmtree(RUN)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    if say("docker", "info", "--format", "{{ .CgroupVersion }}") == "2":
        yield Engine([], {})
        return
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        pytest.exit("skipped: this machine has cgroup v1, and only root can start a second engine on v2", returncode=77)
    with second_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def up(engine: Engine) -> Iterator[str]:
    engine.make("down")
    yield engine.make("up")
    engine.make("down")


def test_up_ends_in_a_right_prediction(engine: Engine, up: str) -> None:
    assert engine.run("docker", "info", "--format", "{{ .CgroupVersion }}") == "2"
    assert "digit = 3" in up
    assert engine.on_host("stat --file-system --format %T /sys/fs/cgroup") == "cgroup2fs"


def test_memory_is_limited_or_said_not_to_be(engine: Engine, up: str) -> None:
    limit = engine.on_host("docker inspect --format '{{ .HostConfig.Memory }}' model-server-1")
    if engine.on_host("docker info --format '{{ .MemoryLimit }}'") == "true":
        assert limit == str(1 << 30)
        assert "NOT enforced" not in up
    else:
        assert limit == "0"
        assert re.search(r"limits +NOT enforced: memory", up)


def test_up_again_changes_nothing(engine: Engine, up: str) -> None:
    assert re.search(rf"^{HOST} +: ok=\d+ +changed=0 +unreachable=0 +failed=0", engine.make("up"), re.MULTILINE)


def test_a_killed_replica_comes_back(engine: Engine, up: str) -> None:
    before = engine.on_host("docker inspect --format '{{ .State.Pid }}' model-server-1")
    engine.on_host(f"kill -KILL {before}")
    state = "docker inspect --format '{{ .State.Running }} {{ .State.Pid }}' model-server-1"
    end = time.monotonic() + 60
    while (now := engine.on_host(state)) == f"true {before}" or not now.startswith("true"):
        assert time.monotonic() < end, now
        time.sleep(1)
    engine.ready(60)


def test_the_site_comes_back_after_a_reboot(engine: Engine, up: str) -> None:
    engine.run("docker", "restart", HOST, seconds=120)
    engine.ready(180)
