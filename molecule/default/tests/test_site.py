"""The whole site on a host that was bare: what a client sees, and what an operator sees when something was altered."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[3]
CURL = "curl --silent --show-error --cacert /etc/slipway/tls/ca.pem"
SITE = "https://slipway-default"


def post(host: Host, path: str, arguments: str) -> tuple[int, object]:
    """POST and return the status and the decoded JSON."""
    output = host.check_output(f"{CURL} --write-out '\\n%{{http_code}}' {arguments} {SITE}{path}")
    body, _, status = output.rpartition("\n")
    return int(status), json.loads(body)


@pytest.fixture
def picture(host: Host) -> Iterator[str]:
    """A picture of a three, on the host."""
    host.check_output(f"{CURL} --fail --output /tmp/three.png {SITE}/models/digits/examples/three.png")
    yield "/tmp/three.png"
    host.check_output("rm /tmp/three.png")


def test_http_redirects_to_https(host: Host) -> None:
    answer = host.check_output("curl --silent --head 'http://slipway-default/a/b?c=d'")
    assert answer.startswith("HTTP/1.1 301")
    assert "\r\nLocation: https://slipway-default/a/b?c=d" in answer


def test_rows_are_answered_as_the_articles_client_expects(host: Host) -> None:
    status, answer = post(host, "/predict", """--header 'Content-Type: application/json' --data '{"X": "1 0|1 1"}'""")
    assert status == 200
    assert list(answer) == ["labels"]
    (one,), (zero,) = answer["labels"]
    assert one > 0.9 and 0 <= zero < 0.1


@pytest.mark.parametrize("field", ["file", "image"])
def test_an_upload_is_answered_by_every_image_model(host: Host, picture: str, field: str) -> None:
    assert post(host, "/predict", f"--form {field}=@{picture}") == (200, [3, 0])


def test_tensorflow_servings_clients_are_answered(host: Host) -> None:
    status, answer = post(host, "/v1/models/xor:predict", """--data '{"instances": [[0, 1], [0, 0]]}'""")
    assert status == 200
    (one,), (zero,) = answer["predictions"]
    assert one > 0.9 and zero < 0.1
    status = json.loads(host.check_output(f"{CURL} {SITE}/v1/models/wine"))
    assert status["model_version_status"][0]["state"] == "AVAILABLE"


def test_a_body_over_the_limit_is_refused_in_json(host: Host) -> None:
    host.check_output("truncate --size 20M /tmp/large")
    status, answer = post(host, "/predict", "--form file=@/tmp/large")
    host.check_output("rm /tmp/large")
    assert status == 413
    assert "error" in answer


def neighbour(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a second container beside the host, with a route to the model network through the host."""
    inspect = ["docker", "inspect", "--format", "{{.Config.Image}} {{.NetworkSettings.IPAddress}}", "slipway-default"]
    image, gateway = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.split()
    route = f"ip route add 172.16.239.0/24 via {gateway}"
    run = [
        "docker",
        "run",
        "--rm",
        "--cap-add",
        "NET_ADMIN",
        "--entrypoint",
        "sh",
        image,
        "-euc",
        f"{route}; {command}",
    ]
    return subprocess.run(run, capture_output=True, text=True, check=False)


def test_only_nginx_is_reached_from_the_network(host: Host) -> None:
    ask = "curl --silent --show-error --max-time 3 http://172.16.239.10:5000/healthz"
    blocked = neighbour(ask)
    assert blocked.returncode != 0 and blocked.stdout == ""
    # The same question with the protections taken away: so it is they that answered above.
    host.check_output("systemctl stop firewalld slipway-private-bridges")
    try:
        reached = neighbour(ask)
        assert reached.returncode == 0, reached.stderr
    finally:
        host.check_output("systemctl start slipway-private-bridges firewalld && systemctl restart docker")
    assert neighbour(ask).returncode != 0


def site_changes(*arguments: str) -> list[str]:
    """The tasks in which `ansible-playbook site.yml` with these arguments changes something, or would."""
    command = ["ansible-playbook", "--inventory", os.environ["MOLECULE_INVENTORY_FILE"], *arguments, "site.yml"]
    environment = os.environ | {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    report, _ = json.JSONDecoder().raw_decode(run.stdout, run.stdout.index("{"))
    return [
        task["task"]["name"]
        for play in report["plays"]
        for task in play["tasks"]
        if any(result.get("changed") for result in task["hosts"].values())
    ]


def test_check_mode_reports_what_was_altered_by_hand_and_nothing_else(host: Host) -> None:
    files = host.check_output("grep --recursive --files-with-matches client_max_body_size /etc/nginx").split()
    host.check_output("cp --archive %s /tmp/nginx-line && cp --archive /etc/slipway/tls/fullchain.pem /tmp/", files[0])
    host.check_output("sed --in-place 's/client_max_body_size .*/client_max_body_size 99m;/' %s", files[0])
    host.check_output("docker update --memory 2g --memory-swap 2g model-server-2")
    host.check_output("cp /etc/slipway/tls/ca.pem /etc/slipway/tls/fullchain.pem")
    try:
        changes = site_changes("--check", "--diff")
    finally:
        host.check_output("mv /tmp/nginx-line %s && mv /tmp/fullchain.pem /etc/slipway/tls/", files[0])
        host.check_output("docker update --memory 1g --memory-swap 1g model-server-2")
    roles = list(dict.fromkeys(name.partition(" : ")[0] for name in changes))
    assert roles == ["certificate", "nginx", "model_server"], changes
    assert site_changes("--check", "--diff") == []
