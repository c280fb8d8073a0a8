"""The README's first command, run as a stranger would: up, and up again; the fixture sees what `make down` leaves."""

from __future__ import annotations

import json
import re
import subprocess

from conftest import make
from host import ROOT, ask, on_host

# What is printed: a line a stage, and the summary; the first time also what was made.
UP_LINES, UP_AGAIN_LINES = 30, 20


def predict() -> list[list[float]]:
    command = ["curl", "--silent", "--show-error", "--fail", "--cacert", str(ROOT / "ca/slipway-check.pem")]
    command += [
        "--header",
        "Content-Type: application/json",
        "--data",
        '{"X": "1 0|1 1"}',
        "https://localhost:18443/predict",
    ]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["labels"]


def test_up_ends_in_a_right_prediction(embedded: str) -> None:
    assert len(embedded.splitlines()) <= UP_LINES, embedded
    assert re.search(r"^\d+ s in all, log: log/site-[\d-]+\.log$", embedded, re.MULTILINE)
    assert "address     https://localhost:18443/" in embedded
    assert 'prediction  digits, example "three":' in embedded
    assert "digit = 3" in embedded
    (one,), (zero,) = predict()
    assert one > 0.9 and zero < 0.1


def test_metrics_are_on_the_containers_own_addresses_alone(embedded: str) -> None:
    shown = on_host("curl --silent --fail http://172.16.239.10:5000/metrics")
    assert re.search(r'^slipway_build_info{.*release="[0-9a-f]{8}"', shown, re.MULTILINE), shown
    assert 'slipway_load_seconds{model="digits",version="1"}' in shown
    assert ask("/metrics/1")[0].status == ask("/metrics")[0].status == 404


def test_http_is_redirected_to_the_published_port(embedded: str) -> None:
    command = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code} %{redirect_url}"]
    answer = subprocess.run(
        [*command, "http://localhost:18080/x?y=1"], capture_output=True, text=True, check=True
    ).stdout
    assert answer == "301 https://localhost:18443/x?y=1"


def test_up_again_changes_nothing(embedded: str) -> None:
    output = make("up")
    assert len(output.splitlines()) <= UP_AGAIN_LINES, output
    assert re.search(r"^slipway-check +: ok=\d+ +changed=0 +unreachable=0 +failed=0", output, re.MULTILINE), output[
        -3000:
    ]
