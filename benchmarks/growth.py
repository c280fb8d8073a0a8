"""Cost as work grows, of Slipway's container: more models in a server, more rows a request, larger bodies, and what a
slow model costs the clients of another one.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from items import ITEMS, Item, Question, questions, solid_picture
from load import Refused, Target
from servers import WORK, Container, Unavailable, image, run

MODELS = (1, 10, 100)
ROWS = (1, 4, 16, 64, 256)
BYTES = (1_000, 10_000, 100_000, 1_000_000, 15_000_000)
ROWS_OF = ("xor-json", "lstm-json")
UPLOAD = "cnn-jpeg"
MODEL = "cnn"
START_SECONDS = 60
SLOW = "slow"
SLOW_CLIENTS = 4
WITHOUT_SLOW, WITH_SLOW = "alone", f"beside {SLOW_CLIENTS} clients of the slow model"


@dataclass
class Grown:
    """What was seen, a value a round: start (s) and memory (bytes) by number of models; milliseconds a request, the
    median at one connection, by item and rows and by bytes of the body; all milliseconds of single requests, by what
    was asked and whether the slow model had clients; and milliseconds of that model's requests."""

    starts: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    bodies: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    beside: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    slow: list[float] = field(default_factory=list)
    errors: int = 0
    faults: list[str] = field(default_factory=list)


def measure(grown: Grown, seconds: int) -> None:
    """One round."""
    try:
        _measure_requests(grown, seconds)
    except (Refused, Unavailable) as error:
        grown.faults.append(f"rows and bodies: {error}")
    try:
        _measure_beside(grown, seconds)
    except Unavailable as error:
        grown.faults.append(f"beside a slow model: {error}")
    for count in MODELS:
        try:
            _measure_models(grown, count)
        except Unavailable as error:
            grown.faults.append(f"{count} models: {error}")


def _measure_requests(grown: Grown, seconds: int) -> None:
    by_name = {item.name: item for item in ITEMS}
    with _running(Container()) as (_, target):
        for name in ROWS_OF:
            for rows in ROWS:
                took = _milliseconds(grown, target, by_name[name], _repeated(by_name[name], rows), seconds)
                grown.rows[name, rows].append(took)
        for size in BYTES:
            item = by_name[UPLOAD]
            grown.bodies[size].append(_milliseconds(grown, target, item, solid_picture(item.model, size), seconds))


def _measure_models(grown: Grown, count: int) -> None:
    copies = _copies(MODEL, count)
    question = questions(Item("", "", MODEL, "json"))[0]
    begin = time.monotonic()
    with _running(Container(copies), Item("", "", f"{MODEL}-0", "json")) as (server, target):
        grown.starts[count].append(time.monotonic() - begin)
        for number in range(count):  # each is asked once, so that each is loaded wherever that is done late
            if reason := target.wrong(Item("", "", f"{MODEL}-{number}", "json"), question):
                grown.faults.append(f"{count} models, number {number}: {reason}")
        if (memory := server.memory()) is not None:
            grown.memory[count].append(memory)


def _measure_beside(grown: Grown, seconds: int) -> None:
    """Ask a small model and a health check, one after the other, without and with clients of the slow model."""
    with _running(Container()) as (_, target):
        _ask_in_turn(grown, target.address, WITHOUT_SLOW, seconds)
        ended = threading.Event()
        with ThreadPoolExecutor(SLOW_CLIENTS) as pool:
            clients = [pool.submit(_ask_slow, grown, target.address, ended) for _ in range(SLOW_CLIENTS)]
            try:
                time.sleep(2)  # the first call is under way
                _ask_in_turn(grown, target.address, WITH_SLOW, 2 * seconds)
            finally:
                ended.set()
            for client in clients:
                client.result()


def _ask_in_turn(grown: Grown, address: str, how: str, seconds: int) -> None:
    asked = {
        "xor": ("POST", "/v1/models/xor:predict", '{"instances": [[0, 1]]}'),
        "/healthz": ("GET", "/healthz", None),
    }
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, (method, path, body) in asked.items():
            grown.beside[name, how].append(_timed(connection, method, path, body))
        time.sleep(0.002)
    connection.close()


def _ask_slow(grown: Grown, address: str, ended: threading.Event) -> None:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60)
    while not ended.is_set():
        grown.slow.append(_timed(connection, "POST", f"/v1/models/{SLOW}:predict", '{"instances": [[1]]}'))
    connection.close()


def _timed(connection: http.client.HTTPConnection, method: str, path: str, body: str | None) -> float:
    begin = time.perf_counter()
    connection.request(method, path, body)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise Unavailable(f"{path}: {answer.status}")
    return (time.perf_counter() - begin) * 1000


@contextmanager
def _running(server: Container, item: Item = ITEMS[0]) -> Iterator[tuple[Container, Target]]:
    question = questions(Item("", "", item.model.partition("-")[0], "json"))[0]
    try:
        target = server.start()
        deadline = time.monotonic() + START_SECONDS
        while (reason := target.wrong(item, question)) and time.monotonic() < deadline:
            time.sleep(0.01)
        if reason:
            raise Unavailable(f"Slipway's container gave no right answer within {START_SECONDS} s: {reason}")
        yield server, target
    finally:
        server.stop()


def _milliseconds(grown: Grown, target: Target, item: Item, question: Question, seconds: int) -> float:
    if reason := target.wrong(item, question):
        grown.faults.append(f"{item.name}: {reason}")
    measured = target.load(item, question, 1, seconds)
    grown.errors += measured.errors
    return measured.p50


def _repeated(item: Item, rows: int) -> Question:
    asked = questions(item)[0]
    assert asked.rows is not None
    width = len(asked.answer) // len(asked.rows)
    times = -(-rows // len(asked.rows))
    return Question((asked.answer * times)[: rows * width], rows=(asked.rows * times)[:rows])


def _copies(name: str, count: int) -> Path:
    """A folder with a compiled model under so many names."""
    one, folder = WORK / "grown/compiled", WORK / f"grown/{count}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(one, ignore_errors=True)
    one.mkdir(parents=True)
    command = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        image(),
        "tar",
        "--create",
        "--directory",
        f"/models/{name}",
        ".",
    ]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract", "--no-same-owner", "--directory", str(one)], input=archive, check=True)
    run("chmod", "--recursive", "a+rX", one)
    for number in range(count):
        copy = folder / f"{name}-{number}"
        shutil.copytree(one, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {"name": copy.name}))
    return folder
