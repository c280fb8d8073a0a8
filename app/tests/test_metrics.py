"""What Prometheus reads: right over several processes, and after one of them died."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from conftest import Server

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: Server) -> Samples:
    with urllib.request.urlopen(f"{server.address}/metrics", timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        text = response.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of the samples of that name with at least these labels."""
    return sum(found for (one, given), found in samples.items() if one == name and labels.items() <= set(given))


def ask(server: Server, path: str, body: object, times: int = 1) -> None:
    """Ask `times` times, each on a connection of its own, so that each worker gets some."""
    for _ in range(times):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", path, json.dumps(body))
        connection.getresponse().read()
        connection.close()


def readyz(server: Server) -> tuple[int, set[str]]:
    with urllib.request.urlopen(f"{server.address}/readyz", timeout=10) as response:
        return response.status, set(response.headers)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers(server: Server) -> set[int]:
    return set(map(int, Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()))


def test_metrics_add_up_over_workers_and_their_deaths(start_server: Callable[..., Server]) -> None:
    server = start_server(MODEL_SERVER_RELEASE="1a2b3c4d")
    before = workers(server)
    wait_until(lambda: value(scrape(server), "slipway_batch_rows_count", model="xor") >= 8)  # both asked their examples
    held = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=10) for _ in range(4)]
    for connection in held:  # two on each worker
        connection.request("POST", "/predict/xor", '{"rows": [[1, 0], [0, 0], [1, 1]]}')
        assert connection.getresponse().read()
    ask(server, "/v1/models/xor:predict", {"instances": [[1, 0]]}, 3)
    ask(server, "/v1/models/xor:predict", {"instances": [[1]]}, 2)
    ask(server, "/predict", {"X": "1 0"})
    ask(server, "/predict/unknown", {})
    status, headers = readyz(server)
    assert status == 200
    assert "X-Model-Version" not in headers  # it asks all models, and answers as none of them

    def check() -> None:
        samples = scrape(server)
        xor = {"model": "xor", "version": "1"}
        assert value(samples, "slipway_requests_total", **xor, protocol="predict", code="200") == 4
        assert value(samples, "slipway_requests_total", **xor, protocol="tfserving", code="200") == 3
        assert value(samples, "slipway_requests_total", **xor, protocol="tfserving", code="400") == 2
        assert value(samples, "slipway_requests_total", **xor, protocol="articles") == 1
        assert value(samples, "slipway_requests_total", model="", protocol="predict", code="404") == 1
        assert value(samples, "slipway_request_seconds_count", **xor) == 10
        assert value(samples, "slipway_requests_total", model="", protocol="other", code="200") >= 2
        assert 0 < value(samples, "slipway_request_seconds_sum", **xor) < 10
        # The servers's own examples count here, too: four for each worker, one row each.
        assert value(samples, "slipway_batch_rows_count", **xor) >= 8 + 8
        assert (
            value(samples, "slipway_batch_rows_bucket", **xor, le="4.0")
            - value(samples, "slipway_batch_rows_bucket", **xor, le="2.0")
            == 4
        )
        assert value(samples, "slipway_engine_seconds_total", **xor) > 0
        assert value(samples, "slipway_load_seconds", **xor) > 0
        assert value(samples, "slipway_requests_in_flight") == 1  # this one
        assert value(samples, "slipway_build_info", release="1a2b3c4d") == 1
        assert value(samples, "slipway_memory_bytes") > 20e6  # here also of the tests themselves

    check()
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(workers(server) - {min(before)}) == 2)
    check()


def test_a_worker_that_died_amid_a_request_leaves_nothing_in_flight(start_server: Callable[..., Server]) -> None:
    server = start_server(MODEL_SERVER_WORKERS="1")
    body = b"1" * 1000

    def upload() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", "9000")
        connection.endheaders(body)
        with contextlib.suppress(OSError, http.client.HTTPException):  # its worker is killed
            connection.getresponse()

    uploads = [threading.Thread(target=upload) for _ in range(2)]
    for thread in uploads:
        thread.start()
    wait_until(lambda: value(scrape(server), "slipway_requests_in_flight") == 3)
    os.kill(min(workers(server)), signal.SIGKILL)
    wait_until(lambda: value(scrape(server), "slipway_requests_in_flight") == 1)  # the scrape itself
    for thread in uploads:
        thread.join()
