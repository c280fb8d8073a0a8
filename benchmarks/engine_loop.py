"""The limit that the engine sets: calls a compiled model in a loop, in as many processes as there are CPUs.

Run in Slipway's image: python3 engine_loop.py MODEL ROWS SECONDS. Prints calls/s, and milliseconds a call (p50, p99).
"""

import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

from model_server.engines import load_engine
from model_server.manifest import read_manifest
from model_server.settings import usable_cpus


def loop(name: str, rows: int, seconds: float) -> list[float]:
    folder = Path("/models") / name
    manifest = read_manifest(folder)
    engine = load_engine(manifest, folder)
    random = np.random.default_rng(7)
    inputs = {
        spec.name: random.random((rows, *spec.shape[1:]), dtype="float32").astype(spec.dtype)
        for spec in manifest.inputs
    }
    engine.run(inputs)
    times = []
    now = time.perf_counter()
    end = now + seconds
    while now < end:
        engine.run(inputs)
        times.append(time.perf_counter() - now)
        now = time.perf_counter()
    return times


if __name__ == "__main__":
    model, rows, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    processes = usable_cpus()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        times = sorted(t for part in pool.starmap(loop, [(model, rows, seconds)] * processes, 1) for t in part)
    p50, p99 = (times[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
    print(json.dumps({"calls_per_second": len(times) / seconds, "p50": p50, "p99": p99}))
