"""The embedded host of the checks, slipway-check: plays that run on it, and what is to be seen there."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOST = "slipway-check"
PORT = 18443
CA = ROOT / f"ca/{HOST}.pem"
PLAY_SECONDS = 900

# What a shell starts in the background ignores Ctrl-C, and so would the plays that are started here.
signal.signal(signal.SIGINT, signal.default_int_handler)


class PlaybookRun:
    """A playbook that runs on the host, in a process group of its own."""

    def __init__(self, playbook: str, *arguments: str, **variables: Any) -> None:
        command = [str(Path(sys.executable).parent / "ansible-playbook"), f"playbooks/{playbook}.yml"]
        command += ["--inventory", "tests/embedded", "--extra-vars", json.dumps(variables), *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    @property
    def output(self) -> str:
        """What it has said until now, on one line: messages are folded where Ansible likes."""
        return " ".join("".join(self._lines).split())

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait while it runs; AssertionError if it ends first."""
        while not condition():
            assert self.process.poll() is None, self.output[-5000:]
            time.sleep(0.05)

    def interrupt(self, name: str) -> None:
        """SIGINT goes to the whole group, as by Ctrl-C; SIGKILL to the process alone: its children end their tasks."""
        if name == "SIGKILL":
            self.process.kill()
        while self.process.poll() is None:
            if name == "SIGINT":  # Python loses one that comes while it forks, so it is pressed until it helps
                os.killpg(self.process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)

    def end(self) -> int:
        """Wait for its end and return its exit code."""
        code = self.process.wait(PLAY_SECONDS)
        self._reader.join(10)
        return code


def run_playbook(playbook: str, *arguments: str, **variables: Any) -> str:
    """Run a playbook, with ansible-playbook's own arguments too, and return what it said."""
    run = PlaybookRun(playbook, *arguments, **variables)
    assert run.end() == 0, run.output[-5000:]
    return run.output


def refused(playbook: str, *arguments: str, **variables: Any) -> str:
    """Run a playbook that must fail, and return what it said."""
    run = PlaybookRun(playbook, *arguments, **variables)
    assert run.end() != 0, run.output[-5000:]
    return run.output


def on_host(command: str, given: str = "", host: str = HOST) -> str:
    """Run a shell command on the host and return what it said."""
    enter = ["docker", "exec", "--interactive", host, "sh", "-euc", command]
    run = subprocess.run(enter, input=given, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command}: {run.stdout}{run.stderr}"
    return run.stdout.strip()


def containers() -> dict[str, dict[str, Any]]:
    """What `docker inspect` says of the model containers, by name."""
    found = json.loads(on_host("docker inspect $(docker ps --all --quiet --filter label=slipway=model-server)"))
    return {container["Name"].lstrip("/"): container for container in found}


def ids() -> dict[str, str]:
    return {name: container["Id"] for name, container in containers().items()}


def served() -> list[str]:
    """The releases that came into service, oldest first, as the host's history has them."""
    history = [json.loads(line) for line in on_host("cat /var/lib/slipway/history").splitlines()]
    return [line["release"] for line in history if line["result"] == "served"]


def release() -> str:
    """The one release that all replicas have; nothing of another, or of a deploy under way, may be there."""
    found = containers()
    assert {container["Config"]["Labels"]["slipway.release"] for container in found.values()} == {served()[-1]}
    assert set(found) <= {"model-server-1", "model-server-2"}
    left = "/etc/nginx/out /var/lib/slipway/lease /var/cache/slipway-image.tar.gz ~/.ansible/slipway-ship"
    assert on_host(f"find {left} -type f 2>/dev/null || true") == ""
    return served()[-1]


def leased() -> bool:
    """Whether a deploy holds the host, or held it when it was killed."""
    return bool(on_host("cat /var/lib/slipway/lease 2>/dev/null || true"))


def reloads() -> int:
    """How often nginx was reloaded since the host started."""
    return int(on_host("journalctl --unit nginx --output cat | grep --count ^Reloaded || test $? = 1"))


def asked_again() -> int:
    """How many requests nginx had to ask of a second model server, as the first one gave no answer."""
    return int(on_host("""grep --count '"upstream":"[^"]*,' /var/log/nginx/access.log || test $? = 1"""))


def wait_until_ready(*replicas: int) -> None:
    """Wait until each of these replicas answers every example rightly."""
    for replica in replicas:
        url = f"http://172.16.239.{9 + replica}:5000/readyz"
        on_host(f"timeout 60 sh -c 'until curl --silent --fail {url}; do sleep 0.2; done'")


def ask(
    path: str, body: bytes | None = None, port: int = PORT, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """GET an address of the service, or POST a body there, TLS verified; the answer, of any status, and its body."""
    tls = ssl.create_default_context(cafile=str(CA))
    connection = http.client.HTTPSConnection("localhost", port, timeout=90, context=tls)
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    return answer, answer.read()


def served_certificate(port: int = PORT) -> dict[str, Any]:
    """The certificate that the service shows now, as Python's ssl reads it."""
    tls = ssl.create_default_context(cafile=str(CA))
    with (
        socket.create_connection(("localhost", port), timeout=10) as raw,
        tls.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        return dict(connection.getpeercert() or {})
