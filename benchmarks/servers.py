"""The servers that are measured: how each is set up, started and stopped, and what it takes of the machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import items
from load import Target

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = HERE / ".work"
MODELS = WORK / "models"
LOGS = WORK / "logs"
CPUS = len(os.sched_getaffinity(0))
PORT = 38100
SETUP_SECONDS = 1800
STOP_SECONDS = 20


class Unavailable(Exception):
    """The server cannot be set up or started here; the message says why."""


class Server(ABC):
    """`kind` is ours, limit or peer; `how` its settings, for the table."""

    name: str
    title: str
    kind: str
    how: str
    dialect: items.Dialect
    start_seconds = 120

    def set_up(self) -> None:
        """Make what is missing, and stop what an interrupted run left. Raises Unavailable."""
        self.stop()

    @abstractmethod
    def start(self) -> Target:
        """Start it, without waiting until it answers. Raises Unavailable."""

    @abstractmethod
    def stop(self) -> None: ...

    @abstractmethod
    def processes(self) -> list[int]: ...

    @abstractmethod
    def size(self) -> int:
        """Bytes of what is installed to serve: the image, or the environment without the models."""

    def ended(self) -> bool:
        """Whether it has stopped by itself."""
        return not self.processes()

    def memory(self) -> int | None:
        """Bytes, PSS summed over its processes; None if this user may not read it."""
        try:
            return sum(map(_pss, self.processes()))
        except PermissionError:
            return None

    def log(self) -> Path:
        LOGS.mkdir(parents=True, exist_ok=True)
        return LOGS / f"{self.name}.log"


def _pss(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def run(*command: str | Path, log: Path | None = None) -> str:
    """Run a command and return what it printed. Raises Unavailable with the end of it."""
    made = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False, timeout=SETUP_SECONDS
    )
    if log:
        log.write_text(made.stdout + made.stderr)
    if made.returncode != 0:
        lines = (made.stdout + made.stderr).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise Unavailable(f"{Path(command[0]).name} {command[1]}: {' '.join(errors[-2:])[:300]}")
    return made.stdout.strip()


def play(playbook: str, *arguments: str) -> None:
    """Run a playbook."""
    run(ROOT / ".venv/bin/ansible-playbook", playbook, *arguments, log=LOGS / f"{Path(playbook).stem}.log")


def image() -> str:
    """The name of Slipway's image with the models that are measured."""
    return (WORK / "image").read_text()


def _address(container: str) -> str:
    return run("docker", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", container)


class Container(Server):
    """Slipway's image on this machine's Docker Engine, with the limits that role model_server gives it."""

    kind = "ours"
    name = "slipway"
    title = "Slipway, container"
    how = f"the container alone, {CPUS} workers"
    dialect: items.Dialect = items.Slipway()

    def __init__(self, models: Path | None = None) -> None:
        self._models = models

    def options(self) -> list[str]:
        return ["--volume", f"{self._models}:/models:ro"] if self._models else []

    def command(self) -> list[str]:
        return []

    @property
    def container(self) -> str:
        return f"slipway-bench-{self.name}"

    def start(self) -> Target:
        self.stop()
        limits = "--read-only --tmpfs /tmp --user 65534:65534 --cap-drop ALL --security-opt no-new-privileges --init"
        limits += f" --memory 1g --memory-swap 1g --pids-limit 256 --env MODEL_SERVER_WORKERS={CPUS}"
        run(
            "docker",
            "run",
            "--detach",
            "--name",
            self.container,
            *limits.split(),
            *self.options(),
            image(),
            *self.command(),
        )
        return Target(f"http://{_address(self.container)}:5000", self.dialect)

    def stop(self) -> None:
        subprocess.run(["docker", "rm", "--force", self.container], capture_output=True, check=False)

    def processes(self) -> list[int]:
        top = subprocess.run(
            ["docker", "top", self.container, "-o", "pid"], capture_output=True, text=True, check=False
        )
        return [int(line) for line in top.stdout.split()[1:]]

    def size(self) -> int:
        return int(run("docker", "image", "inspect", "--format", "{{.Size}}", image()))


class BareFlask(Container):
    kind = "limit"
    name = "bare"
    title = "bare Flask endpoint"
    how = "reads the request, answers a constant; an equal container, the same gunicorn settings"
    dialect = items.Bare()

    def options(self) -> list[str]:
        return [
            "--volume",
            f"{HERE / 'bare_flask.py'}:/bare/bare_flask.py:ro",
            "--env",
            "PYTHONPATH=/bare:/app:/opt/libraries",
        ]

    def command(self) -> list[str]:
        return ["python3", "-m", "gunicorn", "--config", "python:bare_flask", "bare_flask:app"]


class BehindNginx(Server):
    """An embedded host of its own, deployed by site.yml: nginx with TLS, two containers behind it."""

    kind = "ours"
    name = "nginx"
    title = "Slipway, nginx + TLS"
    how = "site.yml's embedded host: TLS, nginx, two containers of one worker each; its start is the boot of that host"
    dialect = items.Slipway()
    _host = "slipway-bench"

    def set_up(self) -> None:
        play("site.yml", "--inventory", str(HERE / "inventory"))
        self.stop()

    def start(self) -> Target:
        run("docker", "start", self._host)
        # Not by its published port: there Docker's proxy would copy every byte once more.
        return Target(f"https://{_address(self._host)}", self.dialect, ROOT / f"ca/{self._host}.pem")

    def stop(self) -> None:
        subprocess.run(["docker", "stop", self._host], capture_output=True, check=False)

    def ended(self) -> bool:
        """By the host, as its services start later."""
        return run("docker", "inspect", "--format", "{{.State.Running}}", self._host) != "true"

    def tear_down(self) -> None:
        play("playbooks/down.yml", "--inventory", str(HERE / "inventory"))

    def processes(self) -> list[int]:
        """nginx's and the model servers', which are in containers of the host's own engine."""
        found = [int(run("docker", "inspect", "--format", "{{.State.Pid}}", self._host))]
        for process in found:
            for children in Path(f"/proc/{process}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return [process for process in found if _command(process).startswith(("nginx:", "python3 -m gunicorn"))]

    def size(self) -> int:
        return Container().size()


class Peer(Server):
    """A server in an environment of its own, with the requirements and files in peers/FOLDER/."""

    kind = "peer"

    def __init__(
        self, name: str, title: str, how: str, dialect: items.Dialect, command: str, *, folder: str = "", once: str = ""
    ) -> None:
        self.name, self.title, self.how, self.dialect = name, title, how, dialect
        self._command, self._once = command, once
        self._files = HERE / "peers" / (folder or name)
        self._environment = WORK / "peers" / (folder or name)
        self._mark = ""

    def set_up(self) -> None:
        requirements, installed = self._files / "requirements.txt", self._environment / "requirements.txt"
        if not installed.exists() or installed.read_bytes() != requirements.read_bytes():
            print(f"installing {self.title} (a minute or two, once)", flush=True)
            shutil.rmtree(self._environment, ignore_errors=True)
            run(_python(), "-m", "venv", self._environment)
            run(
                self._environment / "bin/python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--requirement",
                requirements,
                log=LOGS / f"pip-{self.name}.log",
            )
            shutil.copy(requirements, installed)
        if self._once:
            made = subprocess.run(
                self._words(self._once),
                cwd=self._files,
                env=self._variables(),
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode != 0:
                raise Unavailable(made.stderr.strip().splitlines()[-1][:300])

    def _words(self, command: str) -> list[str]:
        program, *rest = command.format(port=PORT, cpus=CPUS).split()
        return [str(self._environment / "bin" / program), *rest]

    def _variables(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{self._environment / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(HERE / "peers"),
            "PYTHONUNBUFFERED": "1",
            "BENCHMARK": self._mark,
            "BENCHMARK_MODELS": str(MODELS),
            "BENCHMARK_WORK": str(WORK / "peers"),
            "PORT": str(PORT),
            "CPUS": str(CPUS),
        }

    def start(self) -> Target:
        self._mark = uuid.uuid4().hex
        with self.log().open("w") as log:
            subprocess.Popen(
                self._words(self._command),
                cwd=self._files,
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return Target(f"http://127.0.0.1:{PORT}", self.dialect)

    def processes(self) -> list[int]:
        """All that have our mark in their environment: some servers start processes in sessions of their own."""
        mark = f"BENCHMARK={self._mark}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes().split(b"\0") and _state(path) != "Z":
                    found.append(int(path.name))
            except (OSError, IndexError):
                continue
        return found

    def stop(self) -> None:
        if not self._mark:
            return
        for name, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            for process in self.processes():
                try:
                    os.kill(process, name)
                except ProcessLookupError:
                    continue
            deadline = time.monotonic() + seconds
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.1)

    def size(self) -> int:
        return sum(path.lstat().st_size for path in self._environment.rglob("*") if path.is_file())


def _command(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")


def _state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


def _python() -> str:
    """A Python that the peers' pins are for."""
    candidates = [sys.executable, "python3.11", "python3.12", "python3"]
    for python in candidates:
        version = (
            subprocess.run(
                [python, "-c", "import sys, venv; print(*sys.version_info[:2])"],
                capture_output=True,
                text=True,
                check=False,
            )
            if shutil.which(python)
            else None
        )
        if version and version.stdout.split() in (["3", "11"], ["3", "12"]):
            return python
    raise Unavailable("the peers' pins need Python 3.11 or 3.12, and there is none here")


def engine_loop(model: str, rows: int, seconds: float) -> dict[str, float]:
    """Calls/s of the engine alone, on all cores, and milliseconds a call. Raises Unavailable."""
    command = f"docker run --rm --network none --volume {HERE / 'engine_loop.py'}:/engine_loop.py:ro {image()}"
    said = run(*command.split(), "python3", "/engine_loop.py", model, str(rows), str(seconds))
    measured: dict[str, float] = json.loads(said.splitlines()[-1])
    return measured


OWN = items.Own("/predict", "/predict")
ARTICLE = items.Own("/rows", "/predict")
MLFLOW = "mlflow models serve --model-uri ../../.work/peers/mlflow-model --env-manager local --host 127.0.0.1"
PEERS = (
    Peer(
        "bentoml",
        "BentoML",
        f"{CPUS} workers, no batching",
        items.Own("/rows", "/picture"),
        "bentoml serve serve:Models --host 127.0.0.1 --port {port}",
    ),
    Peer("litserve", "LitServe", f"{CPUS} workers and API servers, no batching", OWN, "python serve.py"),
    Peer("kserve", "KServe", f"its Python server, {CPUS} workers", items.KServe(), "python serve.py"),
    Peer("mlserver", "MLServer", f"{CPUS} inference workers, no batching", items.MLServer(), "python serve.py"),
    Peer("rayserve", "Ray Serve", f"{CPUS} replicas, set for throughput", OWN, "python serve.py"),
    Peer(
        "mlflow",
        "MLflow",
        f"{CPUS} workers",
        items.MLflow(),
        f"{MLFLOW} --port {{port}} --workers {{cpus}}",
        once="python save.py",
    ),
    Peer(
        "article",
        "the first article's server",
        "as written: gevent's WSGIServer, one process, model.predict",
        ARTICLE,
        "python app.py",
    ),
    Peer(
        "article-function",
        "the same with tf.function",
        "a concrete function instead of model.predict",
        ARTICLE,
        "python app.py function",
        folder="article",
    ),
)


def choose(names: Iterable[str]) -> list[Server]:
    """Slipway's container and the bare endpoint, and those named of the others, or all. ValueError: no such server."""
    others: dict[str, Server] = {server.name: server for server in (BehindNginx(), *PEERS)}
    wanted = list(names) or list(others)
    if unknown := [name for name in wanted if name not in others]:
        raise ValueError(f"no such peer: {', '.join(unknown)}; there are {', '.join(others)}")
    return [Container(), BareFlask(), *(others[name] for name in others if name in wanted)]
