"""The server's settings, read from environment variables. docs/api.md has the table of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class SettingsError(ValueError):
    """A variable's value cannot be used; the message names the variable and what it takes."""


@dataclass(frozen=True)
class Settings:
    """The server's settings. `models` is the folder of compiled models."""

    models: Path
    port: int = 5000
    workers: int = 1
    cors_origins: frozenset[str] = frozenset()
    max_body_bytes: int = 15 * 2**20
    max_pixels: int = 25_000_000
    queue: int = 64
    timeout_seconds: float = 60
    request_log: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the MODEL_SERVER_* variables. Raises SettingsError."""
        origins = environ.get("MODEL_SERVER_CORS_ORIGINS", "").split(",")
        return cls(
            models=Path(environ.get("MODEL_SERVER_MODELS") or "/models"),
            port=int(_number(environ, "MODEL_SERVER_PORT", 5000)),
            workers=int(_number(environ, "MODEL_SERVER_WORKERS", usable_cpus())),
            cors_origins=frozenset(origin.strip().rstrip("/") for origin in origins if origin.strip()),
            max_body_bytes=int(_number(environ, "MODEL_SERVER_MAX_BODY_MB", 15) * 2**20),
            max_pixels=int(_number(environ, "MODEL_SERVER_MAX_MEGAPIXELS", 25) * 1_000_000),
            queue=int(_number(environ, "MODEL_SERVER_QUEUE", 64)),
            timeout_seconds=_number(environ, "MODEL_SERVER_TIMEOUT_SECONDS", 60),
            request_log=_switch(environ, "MODEL_SERVER_REQUEST_LOG"),
        )


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many CPUs this container may use, at least 1, by its affinity and its quota in cgroup v1 or v2."""
    cpus = len(os.sched_getaffinity(0))
    for quota_file, period_file in (
        ("cpu.max", "cpu.max"),
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        try:
            quota = (cgroup / quota_file).read_text().split()[0]
            period = (cgroup / period_file).read_text().split()[-1]
        except (OSError, IndexError):
            continue
        if quota.isdecimal() and period.isdecimal():  # "max" and -1 mean no limit
            cpus = min(cpus, math.ceil(int(quota) / int(period)))
    return max(cpus, 1)


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise SettingsError(f"{name}={text}: not a number above 0. Correct it, or leave it out for {default:g}.")
    return value


def _switch(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name) or "false"
    if text not in ("true", "false"):
        raise SettingsError(f"{name}={text}: neither true nor false. Correct it, or leave it out for false.")
    return text == "true"
