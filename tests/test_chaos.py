"""Changes and accidents while clients ask: each event with the prober around it, on the embedded host.

`make test` runs a short form. `make chaos` (CHAOS=full) asks more and holds the service to a gap below one second.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from prober import ANY, Outcome, Prober, Question, json_question, upload_question

FULL = os.environ.get("CHAOS") == "full"
HOST = "slipway-check"
PORT = 18443
CA = ROOT / "ca/slipway-check.pem"
LONGEST_GAP_SECONDS = 1.0 if FULL else 3.0

# What xor answers as it ships, and with its last activation replaced by a hard one.
SHIPPED, SHARP = "shipped", "sharp"
THREE = ROOT / "models/digits/examples/three.png"
QUESTIONS = [
    json_question(
        "rows",
        "/predict",
        {"X": "1 0|1 1"},
        {SHIPPED: {"labels": [[0.99844], [0.00218]]}, SHARP: {"labels": [[1.0], [0.0]]}},
    ),
    upload_question("upload", "/predict/digits", THREE, {ANY: {"answers": [{"digit": {"label": "3"}}]}}),
    json_question(
        "tensorflow serving",
        "/v1/models/xor:predict",
        {"instances": [[0, 1], [0, 0]]},
        {SHIPPED: {"predictions": [[0.99833], [0.00236]]}, SHARP: {"predictions": [[1.0], [0.0]]}},
    ),
    upload_question("upload of the article", "/predict", THREE, {ANY: [3, 0]}),
    Question("readiness", "GET", "/readyz", {ANY: {"status": "ready"}}),
]

TABLE: dict[str, Outcome] = {}

pytestmark = pytest.mark.usefixtures("embedded")


def prober(*versions: str) -> Prober:
    size: dict[str, Any] = {"at_least": 500} if FULL else {"clients": 6, "pace": 0.2, "at_least": 150}
    return Prober(f"https://localhost:{PORT}", CA, QUESTIONS, versions or [SHIPPED], **size)


def enter(event: str, probe: Prober) -> None:
    """Put what the clients saw into the table."""
    TABLE[event] = probe.outcome
    print(f"{event}: {probe.outcome}")


def unnoticed(event: str, probe: Prober, reloads: int = 0) -> None:
    """Demand that no client noticed more than that its kept connection was closed, once a reload of nginx."""
    enter(event, probe)
    seen = probe.outcome
    assert (seen.failed, seen.wrong) == (0, 0), seen
    assert seen.reconnected <= reloads * probe.kept_connections, seen
    assert seen.gap < LONGEST_GAP_SECONDS, seen


def on_host(command: str) -> str:
    """Run a shell command on the embedded host and return what it said."""
    run = subprocess.run(["docker", "exec", HOST, "sh", "-euc", command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command}: {run.stdout}{run.stderr}"
    return run.stdout.strip()


def play(playbook: str, **variables: Any) -> str:
    """Run a playbook on the embedded host and return what it said."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), f"playbooks/{playbook}.yml"]
    command += ["--inventory", "tests/embedded", "--extra-vars", json.dumps(variables)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:]
    return run.stdout


def containers() -> dict[str, dict[str, Any]]:
    """What `docker inspect` says of the model containers, by name."""
    found = json.loads(on_host("docker inspect $(docker ps --all --quiet --filter label=slipway=model-server)"))
    return {container["Name"].lstrip("/"): container for container in found}


def ids() -> dict[str, str]:
    return {name: container["Id"] for name, container in containers().items()}


def reloads() -> int:
    """How often nginx was reloaded since the host started."""
    return int(on_host("journalctl --unit nginx --output cat | grep --count ^Reloaded || test $? = 1"))


def wait_until_ready(address: str) -> None:
    """Wait until a container answers every example rightly."""
    on_host(f"timeout 60 sh -c 'until curl -sf http://{address}:5000/readyz; do sleep 0.2; done'")


def ask(path: str) -> http.client.HTTPResponse:
    """GET an address of the service, TLS verified; an answer of any status."""
    connection = http.client.HTTPSConnection(
        "localhost", PORT, timeout=30, context=ssl.create_default_context(cafile=str(CA))
    )
    connection.request("GET", path)
    return connection.getresponse()


def served_certificate() -> dict[str, Any]:
    """The certificate that the service shows now, as Python's ssl reads it."""
    context = ssl.create_default_context(cafile=str(CA))
    with (
        socket.create_connection(("localhost", PORT), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        return dict(tls.getpeercert() or {})


def test_changing_nginx_s_configuration_is_not_noticed() -> None:
    before = reloads()
    with prober() as probe:
        play("provision", nginx_hsts_max_age=300)
    unnoticed("nginx configuration change", probe, reloads() - before)
    assert ask("/models").headers["Strict-Transport-Security"] == "max-age=300"


def test_renewing_the_certificate_is_not_noticed() -> None:
    before, certificate = reloads(), served_certificate()
    days_left = int(ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) // 86400
    with prober() as probe:
        play("provision", certificate_renew_days=days_left + 2, certificate_valid_days=days_left + 60)
    assert served_certificate()["serialNumber"] != certificate["serialNumber"]
    unnoticed("certificate renewal", probe, reloads() - before)


def test_a_killed_replica_is_not_noticed_and_comes_back() -> None:
    before = containers()["model-server-1"]
    with prober() as probe:
        on_host(f"kill -KILL {before['State']['Pid']}")
        wait_until_ready("172.16.239.10")
    after = containers()["model-server-1"]
    assert (after["Id"], after["RestartCount"]) == (before["Id"], before["RestartCount"] + 1)
    unnoticed("replica killed (SIGKILL)", probe)


def test_restarting_the_engine_is_not_noticed() -> None:
    before, engine = containers(), on_host("systemctl show --property MainPID docker")
    with prober() as probe:
        on_host("systemctl restart docker")
    assert on_host("systemctl show --property MainPID docker") != engine
    unnoticed("engine restarted", probe)
    after = containers()
    assert {name: c["State"]["Pid"] for name, c in after.items()} == {
        name: c["State"]["Pid"] for name, c in before.items()
    }


def test_a_reboot_ends_in_right_answers_by_itself() -> None:
    with prober() as probe:
        start = time.monotonic()
        subprocess.run(["docker", "restart", HOST], check=True, capture_output=True)
        probe.next_right_answer(timeout=120)
        seconds = time.monotonic() - start
        for address in "172.16.239.10", "172.16.239.11":
            wait_until_ready(address)
    enter("host reboot", probe)
    print(f"first right answer {seconds:.1f} s after the command to reboot")
    assert probe.outcome.wrong == 0, probe.outcome
