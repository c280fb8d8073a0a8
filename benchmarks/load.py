"""Asks a server: each question until it is answered rightly, many at once to check answers, and by wrk to measure."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import tempfile
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from items import Dialect, Item, Question, Request

LUA = Path(__file__).parent / "wrk.lua"
TIMEOUT_SECONDS = 30
CHECKED_AT_ONCE = 16
CHECKED_ROUNDS = 4


class Refused(Exception):
    """The server does not take this item, or cannot be loaded with it; the message says why."""


@dataclass(frozen=True)
class Measured:
    """One slice. Times are milliseconds; `errors` are statuses of 400 and above, and requests without an answer."""

    requests_per_second: float
    p50: float
    p99: float
    errors: int


class Client:
    """A connection that is kept. TLS is verified, with `ca`, but not the name: the server is asked at its address."""

    def __init__(self, address: str, ca: Path | None = None, timeout: float = TIMEOUT_SECONDS) -> None:
        url = urllib.parse.urlsplit(address)
        host, port = url.hostname or "", url.port
        self._connection: http.client.HTTPConnection
        if url.scheme == "https":
            tls = ssl.create_default_context(cafile=str(ca))
            tls.check_hostname = False
            self._connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=tls)
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=timeout)

    def post(self, request: Request) -> tuple[int, bytes]:
        """The status and the body. Raises OSError and http.client.HTTPException."""
        try:
            self._connection.request("POST", request.path, request.body, dict(request.headers))
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Target:
    """A server that runs."""

    address: str
    dialect: Dialect
    ca: Path | None = None

    def request(self, item: Item, question: Question) -> Request:
        request = self.dialect.ask(item, question)
        if request is None:
            raise Refused("its protocol has no such form")
        return request

    def wrong(self, item: Item, question: Question, client: Client | None = None) -> str | None:
        """Ask once; what is wrong with the answer, None if it is right. Raises Refused if there is no such route."""
        request = self.request(item, question)
        mine = client or Client(self.address, self.ca)
        try:
            status, body = mine.post(request)
        except (OSError, http.client.HTTPException) as error:
            return f"no answer: {error!r}"
        finally:
            if client is None:
                mine.close()
        if status == 404 and item.form == "binary":
            raise Refused("404: it does not speak V2 yet")
        return f"{status}: {body[:200]!r}" if status != 200 else self.dialect.fault(item, question, body)

    def check(self, item: Item, asked: Sequence[Question]) -> tuple[list[str], int]:
        """Ask all questions at once, so that answers could be mixed up; the faults, and how many were asked."""

        def one(number: int) -> list[str]:
            client = Client(self.address, self.ca)
            try:
                mine = [asked[(number + step) % len(asked)] for step in range(CHECKED_ROUNDS)]
                return [reason for question in mine if (reason := self.wrong(item, question, client))]
            finally:
                client.close()

        with ThreadPoolExecutor(CHECKED_AT_ONCE) as pool:
            faults = [reason for found in pool.map(one, range(CHECKED_AT_ONCE)) for reason in found]
        return faults, CHECKED_AT_ONCE * CHECKED_ROUNDS

    def load(self, item: Item, question: Question, connections: int, seconds: float) -> Measured:
        """Ask by wrk, as fast as it can over so many connections."""
        request = self.request(item, question)
        headers = [text for pair in request.headers.items() for text in pair]
        with tempfile.NamedTemporaryFile() as body:
            body.write(request.body)
            body.flush()
            command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
            command += ["--timeout", f"{TIMEOUT_SECONDS}s", "--script", str(LUA), self.address + request.path]
            command += ["--", body.name, *headers]
            run = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=seconds + 2 * TIMEOUT_SECONDS
            )
        if run.returncode != 0:
            raise Refused(f"wrk: {run.stdout}{run.stderr}")
        said = json.loads(run.stdout.splitlines()[-1])
        good = said["requests"] - said["status"]
        errors = said["status"] + said["broken"] + said["timeout"]
        return Measured(good / said["seconds"], said["p50"], said["p99"], errors)
