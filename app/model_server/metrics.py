"""What Prometheus reads of the server, added up over its processes.

prometheus_client keeps each process's numbers in files of their own, in the folder that PROMETHEUS_MULTIPROC_DIR names;
gunicorn_conf.py sets that before this module is imported. Numbers of a process that died still count.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from .records import Record

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
MODEL = ("model", "version")

REQUESTS = Counter(
    "slipway_requests", "Requests by model (empty: none was reached) and status.", (*MODEL, "protocol", "code")
)
SECONDS_OF_REQUESTS = Histogram(
    "slipway_request_seconds", "From the request's headers to its answer.", (*MODEL, "protocol"), buckets=SECONDS
)
ENGINE_SECONDS = Counter("slipway_engine_seconds", "In the model's engine.", MODEL)
QUEUE_SECONDS = Counter("slipway_queue_seconds", "Of requests waiting for the model's turn.", MODEL)
ROWS_OF_CALLS = Histogram("slipway_batch_rows", "Rows of each call to the engine.", MODEL, buckets=ROWS)
IN_FLIGHT = Gauge("slipway_requests_in_flight", "Requests being answered.", multiprocess_mode="livesum")
QUEUE = Gauge("slipway_queue_requests", "Requests that wait for the model.", MODEL, multiprocess_mode="livesum")
LOAD_SECONDS = Gauge("slipway_load_seconds", "Loading the model's engine.", MODEL, multiprocess_mode="max")


def observe(record: Record, protocol: str, code: str, seconds: float) -> None:
    """Count a request that was answered, for each model that it reached."""
    for model, version in record.models or [("", "")]:
        requests, duration = _counters(model, version, protocol, code)
        requests.inc()
        duration.observe(seconds)


@cache
def _counters(model: str, version: str, protocol: str, code: str) -> tuple[Counter, Histogram]:
    return (
        REQUESTS.labels(model, version, protocol, code),
        SECONDS_OF_REQUESTS.labels(model, version, protocol),
    )


class ModelMetrics:
    """One model's metrics."""

    def __init__(self, model: str, version: str) -> None:
        self._engine = ENGINE_SECONDS.labels(model, version)
        self._waited = QUEUE_SECONDS.labels(model, version)
        self._rows = ROWS_OF_CALLS.labels(model, version)
        self.queue = QUEUE.labels(model, version)
        self.load_seconds = LOAD_SECONDS.labels(model, version)

    def called(self, rows: int, seconds: float) -> None:
        """Count a call to the engine."""
        self._rows.observe(rows)
        self._engine.inc(seconds)

    def waited(self, seconds: float) -> None:
        """Count what a request waited for its turn."""
        self._waited.inc(seconds)


def text() -> bytes:
    """Return the metrics of all processes in Prometheus's text format."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    registry.register(_Container())
    return generate_latest(registry)


class _Container(Collector):
    """What is the same whichever process is asked."""

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "slipway_build",
            "The release that this container serves.",
            value={"release": os.environ.get("MODEL_SERVER_RELEASE", ""), "python": platform.python_version()},
        )
        memory = sum(map(_pss, Path("/proc").glob("[0-9]*")))
        yield GaugeMetricFamily("slipway_memory_bytes", "Of all processes, what they share counted once.", memory)


def _pss(process: Path) -> int:
    """Return a process's proportional set size in bytes; 0 if it has ended or is another user's."""
    try:
        rollup = (process / "smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
