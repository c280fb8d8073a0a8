#!/usr/bin/env python3
"""Measures Slipway beside other model servers, interleaved, and writes RESULTS.md. `make bench` runs it.

    make bench                                              # everything
    make bench ONLY=xor,cnn-jpeg PEERS=litserve SECONDS=1   # these items; Slipway, the bare endpoint, LitServe

In each round every server in turn is started, checked, asked for a slice of time per item and number of connections,
and stopped; the order rotates from round to round. So no server runs while another is measured, and a drift of the
machine's speed affects all of them. It is not a test: it asserts nothing about time, and only counts wrong answers.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import growth
import report
from items import ITEMS, Item, Question, questions
from load import Measured, Refused, Target
from servers import (
    CPUS,
    HERE,
    LOGS,
    MODELS,
    ROOT,
    BehindNginx,
    Server,
    Unavailable,
    choose,
    engine_loop,
    play,
)

CONNECTIONS = (1, 16, 64)
WARM_SECONDS = 1
# After the first right answer: processes and containers beside the one that gave it may still be starting.
SETTLE_SECONDS = 2


@dataclass
class Result:
    """What was seen of one server. `faults` are wrong answers by item, `notes` why an item was not measured."""

    server: Server
    failure: str = ""
    starts: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    size: int = 0
    slices: dict[tuple[str, int], list[Measured]] = field(default_factory=lambda: defaultdict(list))
    checked: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    first_fault: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def prepare() -> None:
    """Make the models, the questions and Slipway's image, as far as they are missing or out of date."""
    LOGS.mkdir(parents=True, exist_ok=True)
    script, made = HERE / "make_models.py", MODELS / "xor/train.py"
    if not made.exists() or made.read_bytes() != script.read_bytes() or not (MODELS / ".questions.json").exists():
        say("making the models (a minute)")
        shutil.rmtree(MODELS, ignore_errors=True)
        made.parent.mkdir(parents=True)
        (made.parent / "model.yml").touch()  # playbooks/train.yml takes no folder that has a train.py alone
        shutil.copy(script, made)
        play("playbooks/train.yml", "--extra-vars", f"model_image_models={MODELS}")
    say("building Slipway's image")
    play(str(HERE / "image.yml"))


def measure(result: Result, chosen: Sequence[Item], seconds: int) -> None:
    """One server's turn in a round."""
    server = result.server
    try:
        begin = time.monotonic()
        target = server.start()
        _until_right(server, target, begin)
        result.starts.append(time.monotonic() - begin)
        time.sleep(SETTLE_SECONDS)
        for item in chosen:
            try:
                _measure_item(result, target, item, seconds)
            except Refused as error:
                result.notes[item.name] = str(error)
        if (memory := server.memory()) is not None:
            result.memory.append(memory)
    finally:
        server.stop()


def _until_right(server: Server, target: Target, begin: float) -> None:
    question = questions(ITEMS[0])[0]
    while reason := target.wrong(ITEMS[0], question):
        if server.ended():
            lines = server.log().read_text().strip().splitlines() if server.log().exists() else []
            raise Unavailable(f"it stopped by itself: {lines[-1][:300] if lines else reason}")
        if time.monotonic() - begin > server.start_seconds:
            raise Unavailable(f"no right answer within {server.start_seconds} s: {reason[:300]}")
        time.sleep(0.01)


def _measure_item(result: Result, target: Target, item: Item, seconds: int) -> None:
    asked = questions(item)
    _check(result, target, item, asked)
    if result.wrong[item.name] == result.checked[item.name]:
        result.notes[item.name] = f"no right answer: {result.first_fault[item.name]}"
        return
    target.load(item, asked[0], max(CONNECTIONS), WARM_SECONDS)
    for connections in CONNECTIONS:
        _check(result, target, item, asked[:1], once=True)  # waits its turn behind what the last slice left
        result.slices[item.name, connections].append(target.load(item, asked[0], connections, seconds))
    _check(result, target, item, asked[:1], once=True)


def _check(result: Result, target: Target, item: Item, asked: Sequence[Question], once: bool = False) -> None:
    if once:
        reason = target.wrong(item, asked[0])
        faults, count = ([reason] if reason else []), 1
    else:
        faults, count = target.check(item, asked)
    result.checked[item.name] += count
    result.wrong[item.name] += len(faults)
    if faults:
        result.first_fault.setdefault(item.name, faults[0])


def rotated(results: Sequence[Result], by: int) -> list[Result]:
    return [*results[by % len(results) :], *results[: by % len(results)]]


def machine() -> str:
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    engine = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=False
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return (
        f"{CPUS} CPUs ({processor}), {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}, "
        f"Docker Engine {engine.stdout.strip()}; {time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip()}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure Slipway beside other model servers and write RESULTS.md.")
    parser.add_argument("--only", default="", help="items or models, such as xor,cnn-jpeg; growth is one, too")
    parser.add_argument("--peers", default="", help="such as litserve,nginx; by default all")
    parser.add_argument("--seconds", type=int, default=3, help="length of a slice")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    chosen = [item for item in ITEMS if not only or item.name in only or item.model in only]
    known = {name for item in ITEMS for name in (item.name, item.model)} | {"growth"}
    if unknown := [name for name in only if name not in known]:
        print(f"no such item: {', '.join(unknown)}; there are {', '.join(sorted(known))}", file=sys.stderr)
        return 2
    if not shutil.which("wrk"):
        print("make bench needs wrk, which is not here. Debian, Ubuntu: apt-get install wrk", file=sys.stderr)
        return 2
    try:
        servers = choose([name for name in options.peers.split(",") if name])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is stopped

    prepare()
    results = [Result(server) for server in servers]
    loops: dict[str, list[dict[str, float]]] = defaultdict(list)
    grown = growth.Grown()
    for result in results:
        try:
            result.server.set_up()
            result.size = result.server.size()
        except Unavailable as error:
            result.failure = f"cannot be set up: {error}"
            say(f"{result.server.name}: {result.failure}")
    try:
        for number in range(options.rounds):
            for result in rotated(results, number):
                if result.failure:
                    continue
                say(f"round {number + 1} of {options.rounds}: {result.server.name}")
                try:
                    measure(result, chosen, options.seconds)
                except Unavailable as error:
                    result.failure = str(error)
                    say(f"{result.server.name}: {result.failure}")
            say(f"round {number + 1} of {options.rounds}: the engines alone")
            for item in chosen:
                rows = 2 if item.model == "xor" else 1
                try:
                    loops[item.name].append(engine_loop(item.model, rows, options.seconds))
                except Unavailable as error:
                    say(f"the engine of {item.model}: {error}")
            if not only or "growth" in only:
                say(f"round {number + 1} of {options.rounds}: cost as work grows")
                growth.measure(grown, options.seconds)
            settings = f"{number + 1} of {options.rounds} rounds, slices of {options.seconds} s"
            page = report.write(machine(), settings, chosen, CONNECTIONS, results, loops, grown)
            (HERE / "RESULTS.md").write_text(page)
    finally:
        for result in results:
            result.server.stop()
            if isinstance(result.server, BehindNginx):
                result.server.tear_down()
    say(f"written: {HERE / 'RESULTS.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
