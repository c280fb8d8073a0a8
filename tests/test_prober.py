"""The prober against a server that misbehaves in known ways: what it counts, and as what."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prober import Outcome, Prober, Question


class Misbehaving(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stalls = False

    def do_GET(self) -> None:
        if type(self).stalls:
            type(self).stalls = False
            time.sleep(0.7)
        said = b'{"x": [2.0], "more": 1}' if self.path == "/wrong" else b'{"x": [1.00001], "more": 1}'
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        if self.path == "/half":
            said = said[:5]
        self.wfile.write(said)
        self.close_connection = self.path in ("/half", "/closes")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=test",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(file), "-out", str(file.with_suffix(".crt"))]
    subprocess.run(command, check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + file.with_suffix(".crt").read_bytes())
    return file


@pytest.fixture
def port(certificate: Path) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def ask(port: int, certificate: Path, path: str, name: str = "localhost") -> Outcome:
    question = Question("x", "GET", path, {"one": {"x": [1.0]}, "other": {"x": [2.0]}})
    with Prober(
        f"https://{name}:{port}", certificate, [question], ["one"], clients=2, pace=0.05, margin=0.3, at_least=20
    ) as probe:
        if path == "/stalls":
            Misbehaving.stalls = True
    return probe.outcome


def test_right_answers(port: int, certificate: Path) -> None:
    seen = ask(port, certificate, "/right")
    assert seen.requests >= 20
    assert (seen.failed, seen.wrong, seen.reconnected) == (0, 0, 0), seen
    assert seen.versions == {"one": seen.requests} and 0 < seen.settled["one"] < seen.requests
    assert 0.05 <= seen.gap < 0.5


def test_an_answer_of_another_version_is_wrong(port: int, certificate: Path) -> None:
    seen = ask(port, certificate, "/wrong")
    assert (seen.failed, seen.wrong) == (0, seen.requests), seen
    assert seen.gap > 0.5


def test_an_error_and_half_an_answer_fail(port: int, certificate: Path) -> None:
    for path in "/busy", "/half":
        seen = ask(port, certificate, path)
        assert (seen.failed, seen.wrong, seen.reconnected) == (seen.requests, 0, 0), seen
    assert "IncompleteRead" in str(seen)


def test_only_kept_connections_are_opened_again(port: int, certificate: Path) -> None:
    seen = ask(port, certificate, "/closes")
    assert (seen.failed, seen.wrong) == (0, 0), seen
    assert 0 < seen.reconnected < seen.requests


def test_a_stall_is_the_longest_gap(port: int, certificate: Path) -> None:
    assert 0.7 < ask(port, certificate, "/stalls").gap < 1.2


def test_another_name_than_the_certificate_s_fails(port: int, certificate: Path) -> None:
    seen = ask(port, certificate, "/right", name="127.0.0.1")
    assert seen.failed == seen.requests and "CERTIFICATE_VERIFY_FAILED" in str(seen), seen
