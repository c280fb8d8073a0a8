"""What holds for the server as a whole: readiness, errors, headers, settings, and gunicorn."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import pytest
from flask.testing import FlaskClient
from PIL import Image

from conftest import APP, MODELS, Server, make_manifest, python_path
from model_server.engines import EngineError
from model_server.manifest import Example, InputSpec, OutputSpec
from model_server.settings import Settings, SettingsError, usable_cpus

SEVEN = (MODELS / "digits/examples/seven.png").read_bytes()
FLOATS = InputSpec("x", "float32", (-1, 1), "x", "tensor")
LABEL = OutputSpec("y", "float32", (-1, 2), "y", "classes", labels=("no", "yes"))


def always(*scores: float) -> Callable[..., Any]:
    return lambda tensors: {"y": np.array([scores] * len(tensors["x"]), np.float32)}


def example(expect: str) -> Example:
    return Example("sample", [1], {"y": expect})


# ---------------------------------------------------------------- readiness


def test_ready_when_every_example_is_right(client: FlaskClient) -> None:
    response = client.get("/readyz")
    assert response.status_code == 200
    assert response.json == {"status": "ready", "models": ["digits", "digits_even", "wine", "xor"]}


def test_not_ready_while_an_example_is_wrong(serve: Callable[..., FlaskClient]) -> None:
    manifest = make_manifest([FLOATS], [LABEL], examples=(example("no"), Example("other", [1], {"y": "yes"})))
    client = serve((manifest, always(0.9, 0.1)))
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json["models"] == {"made": "example other: y should be yes, but is no (probability 0.9)"}
    assert client.get("/healthz").status_code == 200
    assert client.post("/predict/made", json={"row": [1]}).status_code == 200


def test_a_model_without_examples_must_answer_zeros(serve: Callable[..., FlaskClient]) -> None:
    def refuse(tensors: Any) -> Any:
        raise EngineError("no kernel for this\nand more")

    response = serve((make_manifest([FLOATS], [LABEL]), refuse)).get("/readyz")
    assert response.status_code == 503
    assert response.json["error"] == "not ready: made: made cannot take this: no kernel for this"


def test_readiness_asks_again_each_time(serve: Callable[..., FlaskClient]) -> None:
    scores = [[0.1, 0.9]]
    manifest = make_manifest([FLOATS], [LABEL], examples=(example("yes"),))
    client = serve((manifest, lambda tensors: {"y": np.array(scores, np.float32)}))
    assert client.get("/readyz").status_code == 200
    scores[0] = [0.9, 0.1]
    assert client.get("/readyz").status_code == 503


def test_a_model_that_cannot_be_loaded_leaves_the_others_alone(
    serve: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = [make_manifest([FLOATS], [LABEL], name=name) for name in ("bad", "good")]
    client = serve(*((manifest, always(0.1, 0.9)) for manifest in manifests))
    import model_server.catalogue

    working = model_server.catalogue.load_engine

    def load(manifest: Any, folder: Path) -> Any:
        if manifest.name == "bad":
            raise EngineError("model.tflite is damaged")
        return working(manifest, folder)

    monkeypatch.setattr("model_server.catalogue.load_engine", load)
    assert client.post("/predict/good", json={"row": [1]}).status_code == 200
    response = client.post("/predict/bad", json={"row": [1]})
    assert response.status_code == 503
    assert "model.tflite is damaged" in response.json["error"]
    status = client.get("/v1/models/bad").json["model_version_status"][0]
    assert status["state"] == "END"


def test_a_slow_model_leaves_the_loop_free(serve: Callable[..., FlaskClient]) -> None:
    def slow(tensors: Any) -> Any:
        time.sleep(0.5)
        return {"y": np.array([[0.1, 0.9]], np.float32)}

    client = serve((make_manifest([FLOATS], [LABEL]), slow))
    asking = gevent.spawn(client.post, "/predict/made", json={"row": [1]})
    turns = 0
    while not asking.ready():
        gevent.sleep(0.01)
        turns += 1
    assert asking.value.status_code == 200
    assert turns > 10


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("path", ["/predict", "/predict/xor", "/v1/models/xor:predict"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is empty"),
        (b"{", "not JSON"),
        (b'{"X": NaN', "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[]", "a list instead of an object"),
        (b"[" * 100_000, "not JSON"),
        (b"[" * 100_000 + b"NaN", "not JSON"),
        (b"NaN", "a number instead of an object"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(client: FlaskClient, path: str, body: bytes, words: str) -> None:
    response = client.post(path, data=body)
    assert response.status_code == 400
    assert words in response.json["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nothing", 404, "nothing at /nothing"),
        ("POST", "/predict/xorr", 404, "perhaps you mean xor"),
        ("GET", "/predict", 405, "does not take GET"),
        ("DELETE", "/models", 405, "does not take DELETE"),
        ("POST", "/predict/xor", 400, '{"row": …} or {"rows": […]}'),
    ],
)
def test_wrong_addresses_are_refused(client: FlaskClient, method: str, path: str, status: int, words: str) -> None:
    response = client.open(path, method=method, json={"something": 1})
    assert response.status_code == status
    assert words in response.json["error"]
    if status == 405:
        assert response.headers["Allow"]


def test_an_unexpected_failure_tells_the_client_only_where_to_look(
    serve: Callable[..., FlaskClient], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(tensors: Any) -> Any:
        raise KeyError("a secret")

    client = serve((make_manifest([FLOATS], [LABEL]), fail))
    response = client.post("/predict/made", json={"row": [1]}, headers={"X-Request-ID": "abc-1"})
    assert response.status_code == 500
    assert response.json == {"error": "the server failed on this request; its log has the reason under abc-1"}
    assert "a secret" in caplog.text
    assert "request abc-1 failed" in caplog.text


def test_large_bodies_and_pictures_are_refused_by_settings(serve: Callable[..., FlaskClient]) -> None:
    picture = InputSpec("x", "float32", (-1, 4, 4, 1), "x", "image", color="grayscale")
    client = serve((make_manifest([picture], [LABEL]), always(0, 1)), max_body_bytes=5000, max_pixels=9)
    for kind in ("image/png", "application/json"):
        response = client.post("/predict", data=b" " * 5001, content_type=kind)
        assert response.status_code == 413
        assert "limit" in response.json["error"]
    response = client.post("/predict/made", data=SEVEN, content_type="image/png")
    assert response.status_code == 400
    assert "more than the limit" in response.json["error"]


# ---------------------------------------------------------------- headers


def test_no_origin_may_ask_by_default(client: FlaskClient) -> None:
    response = client.get("/models", headers={"Origin": "https://example.org"})
    assert "Access-Control-Allow-Origin" not in response.headers


def test_allowed_origins_may_ask(serve: Callable[..., FlaskClient]) -> None:
    manifest = make_manifest([FLOATS], [LABEL])
    client = serve((manifest, always(0, 1)), cors_origins=frozenset({"https://example.org"}))
    allowed = client.options("/predict/made", headers={"Origin": "https://example.org"})
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://example.org"
    assert "Content-Type" in allowed.headers["Access-Control-Allow-Headers"]
    other = client.post("/predict/made", json={"row": [1]}, headers={"Origin": "https://example.com"})
    assert "Access-Control-Allow-Origin" not in other.headers
    assert other.headers["Vary"] == "Origin"


def test_a_request_id_is_taken_over_or_made(client: FlaskClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "a1:b.c-d"}).headers["X-Request-ID"] == "a1:b.c-d"
    assert len(client.get("/healthz", headers={"X-Request-ID": 'a"b'}).headers["X-Request-ID"]) == 32


def test_the_page_runs_only_its_own_files(client: FlaskClient) -> None:
    response = client.get("/")
    assert response.mimetype == "text/html"
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for file in ("page.js", "page.css", "icon.svg"):
        assert f'"static/{file}"' in response.text
        addresses = re.findall(r"(?:https?:)?//\w[^\s\"')]*", client.get(f"/static/{file}").text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}


# ---------------------------------------------------------------- settings


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environ(
        {
            "MODEL_SERVER_MODELS": "/b",
            "MODEL_SERVER_WORKERS": "3",
            "MODEL_SERVER_CORS_ORIGINS": "https://a.org/, https://b.org",
            "MODEL_SERVER_MAX_BODY_MB": "0.5",
            "MODEL_SERVER_MAX_MEGAPIXELS": "2",
        }
    )
    assert settings.workers == 3
    assert settings.cors_origins == {"https://a.org", "https://b.org"}
    assert settings.max_body_bytes == 524288
    assert settings.max_pixels == 2_000_000
    with pytest.raises(SettingsError, match="MODEL_SERVER_PORT=http"):
        Settings.from_environ({"MODEL_SERVER_PORT": "http"})


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({}, None),
    ],
)
def test_workers_follow_the_containers_quota(tmp_path: Path, files: dict[str, str], cpus: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cpus(tmp_path) == (cpus or len(os.sched_getaffinity(0)))


# ---------------------------------------------------------------- gunicorn


def test_a_request_is_a_line_of_json_if_the_settings_ask_for_it(
    server: Server, start_server: Callable[..., Server]
) -> None:
    logging = start_server(MODEL_SERVER_REQUEST_LOG="true")
    headers = {"X-Request-ID": "log-me", "X-Real-IP": "192.0.2.7"}
    for one in (logging, server):
        connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=10)
        for path, body in (("/predict?a=b", b'{"X": "1 x"}'), ("/predict/xor", b'{"rows": [[1, 0], [0, 0]]}')):
            connection.request("POST", path, body, headers)
            connection.getresponse().read()
    deadline = time.monotonic() + 10
    found: list[dict[str, Any]] = []
    while len(found) < 2 and time.monotonic() < deadline:  # they are written after the answers
        found = [line for line in logging.request_log() if line["request_id"] == "log-me"]
    refused, answered = found
    assert (refused["client"], refused["method"], refused["path"]) == ("192.0.2.7", "POST", "/predict?a=b")
    assert refused["status"] == 400
    assert refused["milliseconds"] > 0
    assert refused["bytes"] > 0
    assert [answered[key] for key in ("status", "model", "version", "rows")] == [200, "xor", "1", 2]
    assert 0 < answered["stages"]["engine"] < answered["milliseconds"]
    assert server.request_log() == []


def test_connections_do_not_pile_up_on_one_worker(server: Server) -> None:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    connections = []
    for _ in range(24):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        connections.append(connection)

    def accepted(pid: str) -> int:
        return sum(str(fd.readlink()).startswith("socket:") for fd in Path(f"/proc/{pid}/fd").iterdir())

    counts = [accepted(pid) for pid in children]
    assert min(counts) > max(counts) / 3, counts
    for connection in connections:
        connection.close()


def test_an_address_that_is_no_path_is_answered(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("OPTIONS", "*")
    assert connection.getresponse().status < 500


def test_headers_and_body_are_sent_at_once(server: Server) -> None:
    """A process that dies between them would leave nginx with half an answer, which no other process can complete."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        for _ in range(50):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, body = client.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ") and body
            client.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(65536).endswith(b"\r\n\r\n")


def test_chunked_bodies_count_against_the_limit(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/predict", (b" " * 2**20 for _ in range(16)), encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert "limit of 15 MB" in json.load(response)["error"]


def test_the_health_check_asks_the_server(server: Server) -> None:
    def ask(port: int) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "PYTHONPATH": python_path(), "MODEL_SERVER_PORT": str(port)}
        command = [sys.executable, "-m", "model_server.healthcheck"]
        return subprocess.run(command, env=environ, cwd=APP, capture_output=True, text=True, timeout=20)

    assert ask(server.port).returncode == 0
    assert ask(9).returncode == 1


def test_clients_take_turns(start_server: Callable[..., Server]) -> None:
    """A client whose next request is always there already must not keep the others of its worker waiting."""
    server = start_server(MODEL_SERVER_WORKERS="1")
    requests = 6000
    greedy = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    answers = bytearray()

    def answered() -> int:
        return answers.count(b"HTTP/1.1 200")

    def read() -> None:
        while answered() < requests:
            answers.extend(greedy.recv(65536))

    reader = threading.Thread(target=read)
    reader.start()
    greedy.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * requests)
    assert server.request("/healthz")[0] == 200
    assert answered() < requests / 2
    reader.join()
    greedy.close()


def memory(server: Server) -> int:
    """Return the memory of the server's processes in megabytes, with what they share counted once."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    kilobytes = 0
    for pid in [str(server.process.pid), *children]:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        kilobytes += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    return kilobytes // 1024


def test_two_workers_need_little_memory(server: Server) -> None:
    row = server.request("/models")[1]["models"][2]["examples"][0]["row"]
    wine, xor = json.dumps({"row": row}).encode(), b'{"row": [1, 0]}'
    for _ in range(10):  # connections, so that both workers get some
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for _ in range(20):
            for path, body, kind in (
                ("/predict", SEVEN, "image/png"),
                ("/predict/wine", wine, "application/json"),
                ("/predict/xor", xor, "application/json"),
            ):
                connection.request("POST", path, body, {"Content-Type": kind})
                response = connection.getresponse()
                response.read()
                assert response.status == 200
        connection.close()
    assert memory(server) < 180


def test_large_pictures_are_decoded_one_at_a_time_and_their_memory_is_returned(server: Server) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (5000, 4900), "teal").save(buffer, "PNG", compress_level=1)
    before, peak, answers = memory(server), 0, []
    asking = [
        threading.Thread(
            target=lambda: answers.append(server.request("/predict/digits", buffer.getvalue(), "image/png"))
        )
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    while any(thread.is_alive() for thread in asking):
        peak = max(peak, memory(server))
        time.sleep(0.02)
    assert [status for status, _ in answers] == [200] * 4
    assert peak < before + 300  # one takes 200
    assert memory(server) < 180


def test_a_stopping_server_answers_its_requests_and_closes_idle_connections(
    start_server: Callable[..., Server],
) -> None:
    server = start_server(MODEL_SERVER_WORKERS="1")
    slow = socket.create_connection(("127.0.0.1", server.port), timeout=15)
    slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n")
    idle, late = (http.client.HTTPConnection("127.0.0.1", server.port, timeout=15) for _ in range(2))
    for connection in (idle, late):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b'{"status":"alive"}'
    server.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    told = False
    while not told:  # the worker hears of it within milliseconds, and closes idle connections half a second later
        time.sleep(0.05)
        late.request("GET", "/healthz")
        response = late.getresponse()
        assert (response.status, response.read()) == (200, b'{"status":"alive"}')
        told = response.headers["Connection"] == "close"
    slow.sendall(b'{"X": "1 0|1 1"}')
    answer = b""
    while part := slow.recv(4096):
        answer += part
    assert b"200 OK" in answer
    assert b"Connection: close" in answer
    assert b'"labels"' in answer
    assert idle.sock.recv(1) == b""
    assert server.process.wait(timeout=15) == 0
    assert time.monotonic() - start < 10
