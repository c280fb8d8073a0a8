"""Measures the engines that answer as the model does, on this CPU, and chooses the one that serves it."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import numpy as np

from ..engines import Engine, Tensors
from .convert import Probe

MEASURED = "measured.json"
# How many rows a call has, by the card's goal.
ROWS = {"latency": 1, "throughput": 16}
# A model with more bytes is served by the first engine that can: tf2onnx takes 25 times its size in memory.
LARGE = 64_000_000
# An engine replaces the one before it if it takes less than 1/RATIO of its time and at least SECONDS less a call.
# Measuring again must not change the choice, and a difference that no client notices is not worth another engine.
RATIO = 1.25
SECONDS = 10e-6
# How long measuring takes for each engine, and an engine's turn in it. A slow one still gets ROUNDS turns of one call.
BUDGET_SECONDS = 0.5
TURN_SECONDS = 0.01
ROUNDS = 3
# Other processes fill the caches and make calls slower, never faster: the quick turns say what the engine takes.
QUANTILE = 0.1


def question(probes: list[Probe], rows: int) -> Tensors:
    """Return what the engines are asked: `rows` times the first row of the first probe, an example if there is one."""
    return {name: np.repeat(array[:1], rows, axis=0) for name, array in probes[0].inputs.items()}


def measure(engines: dict[str, Engine], asked: Tensors) -> dict[str, float]:
    """Return the seconds of the processor that a call of each engine takes.

    The engines take turns, so that a busy moment of the machine hits them all.
    """
    turns: dict[str, list[float]] = {name: [] for name in engines}
    start = time.perf_counter()
    rounds = 0
    while rounds <= ROUNDS or time.perf_counter() - start < BUDGET_SECONDS * len(engines):
        for name, engine in engines.items():
            seconds = _turn(engine, asked)
            turns[name] += [seconds] if rounds else []  # the first round warms up
        rounds += 1
    return {name: float(np.quantile(seconds, QUANTILE)) for name, seconds in turns.items()}


def _turn(engine: Engine, asked: Tensors) -> float:
    calls = 0
    end = time.perf_counter() + TURN_SECONDS
    start = time.process_time()  # what other processes take does not count
    while not calls or time.perf_counter() < end:
        engine.run(asked)
        calls += 1
    return (time.process_time() - start) / calls


def choose(seconds: dict[str, float]) -> str:
    """Return the name of the engine to serve with: the first, or a later one that is clearly faster."""
    chosen, *others = seconds
    for name in others:
        if seconds[name] * RATIO < seconds[chosen] and seconds[name] + SECONDS <= seconds[chosen]:
            chosen = name
    return chosen


def speed(seconds: float, goal: str) -> str:
    """Return how fast a call of `seconds` is, in the goal's unit."""
    if goal == "throughput":
        return f"{ROWS[goal] / seconds:,.0f} rows/s"
    return f"{seconds * 1e6:,.0f} µs a call" if seconds >= 10e-6 else f"{seconds * 1e6:.1f} µs a call"


def write_measured(seconds: dict[str, float], goal: str, folder: Path) -> None:
    """Write `folder`/measured.json. It is no part of the model: no two measurements are equal."""
    data = {
        "goal": goal,
        "rows": ROWS[goal],
        "cpu": _cpu(),
        "microseconds": {engine: round(value * 1e6, 2) for engine, value in seconds.items()},
    }
    (folder / MEASURED).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
