"""Fixtures: the models that ship, compiled once; the application that serves them; a real gunicorn that runs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from model_server.app import create_app
from model_server.engines import Tensors
from model_server.manifest import InputSpec, Manifest, OutputSpec, write_manifest
from model_server.settings import Settings

APP = Path(__file__).parent.parent
MODELS = APP.parent / "models"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of compiled models, from models/."""
    folder = tmp_path_factory.mktemp("compiled")
    command = [sys.executable, "-m", "model_server.compile", str(MODELS), str(folder)]
    subprocess.run(command, cwd=APP, env={**os.environ, "PYTHONPATH": python_path()}, check=True)
    return folder


@pytest.fixture(scope="session")
def client(compiled: Path) -> FlaskClient:
    """A client of the application, in this process, with the models that ship."""
    return create_app(Settings(models=compiled)).test_client()


@dataclass
class Server:
    """A gunicorn that runs the application, with its configuration."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        """Send a request on a new connection; return the status and the JSON of the answer."""
        request = urllib.request.Request(self.address + path, data=body, headers={"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def request_log(self) -> list[dict[str, Any]]:
        """Return the lines logged so far."""
        return [json.loads(line) for line in (self.folder / "stdout").read_text().splitlines()]


@pytest.fixture(scope="session")
def start_server(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """A function that starts gunicorn with the models that ship; its keyword arguments are environment variables."""
    servers: list[Server] = []

    def start(**environ: str) -> Server:
        folder = tmp_path_factory.mktemp("server")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--config", "python:model_server.gunicorn_conf"]
        command += ["--bind", f"127.0.0.1:{port}", "model_server.app:create_app()"]
        variables = {
            **os.environ,
            "PYTHONPATH": python_path(),
            "MODEL_SERVER_MODELS": str(compiled),
            "MODEL_SERVER_PORT": str(port),
            "MODEL_SERVER_WORKERS": "2",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(command, env=variables | environ, cwd=folder, stdout=out, stderr=err)
        server = Server(process, port, folder)
        servers.append(server)
        for _ in range(200):
            try:
                if server.request("/healthz")[0] == 200:
                    return server
            except OSError:
                time.sleep(0.1)
            if process.poll() is not None:
                break
        raise AssertionError(f"gunicorn did not start: {(folder / 'stderr').read_text()}")

    yield start
    for server in servers:
        server.process.send_signal(signal.SIGTERM)
    for server in servers:
        server.process.wait(timeout=40)  # longer than gunicorn lets requests end


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server]) -> Server:
    """One gunicorn, shared by the tests that only send requests."""
    return start_server()


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FlaskClient]:
    """A function that serves made-up models, each a manifest and a function from tensors to tensors."""

    def start(*models: tuple[Manifest, Callable[[Tensors], Tensors]], **settings: Any) -> FlaskClient:
        functions = {manifest.name: function for manifest, function in models}

        class Engine:
            def __init__(self, manifest: Manifest, folder: Path) -> None:
                self.run = functions[manifest.name]

        monkeypatch.setattr("model_server.catalogue.load_engine", Engine)
        for manifest, _ in models:
            (tmp_path / manifest.name).mkdir()
            write_manifest(manifest, tmp_path / manifest.name)
        return create_app(Settings(models=tmp_path, **settings)).test_client()

    return start


def make_manifest(
    inputs: list[InputSpec], outputs: list[OutputSpec] | None = None, name: str = "made", **fields: Any
) -> Manifest:
    """Return a manifest, with default values for what the test does not care about."""
    given = {"examples": (), "version": "1", "engine": "litert", "source_format": "keras"} | fields
    return Manifest(
        name=name,
        title="",
        description="",
        file="model",
        signature="serving_default",
        inputs=tuple(replace(one, row_shape=tuple(max(size, 1) for size in one.shape[1:])) for one in inputs),
        outputs=tuple(outputs or [OutputSpec("y", "float32", (-1, 1), "y", "numbers")]),
        **given,
    )


def python_path() -> str:
    """Return a PYTHONPATH with which a child process finds the application and all that this process finds."""
    return os.pathsep.join([str(APP), *filter(None, sys.path)])
