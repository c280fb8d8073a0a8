"""Filters on a server's system: its name by its facts, the nearest known one, and what it may do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


def _version(text: str) -> float:
    """The leading number of a version; an unreleased one ("n/a", "testing/sid") is newer than all."""
    number = re.match(r"\d+(\.\d+)?", text)
    return float(number.group()) if number else float("inf")


def system_of(facts: dict[str, Any]) -> str:
    """Name a system by Ansible's facts of it: Debian-13, Ubuntu-24.04, RedHat-9 (CentOS, Rocky, Alma and RHEL)."""
    if facts["distribution"] == "Ubuntu":
        return f"Ubuntu-{facts['distribution_version']}"
    family = "RedHat" if facts["os_family"] == "RedHat" else facts["distribution"]
    return f"{family}-{facts['distribution_major_version']}"


def nearest_system(facts: dict[str, Any], known: list[str]) -> str:
    """Return the closest of the `known` systems: same distribution, else same family; "" if there is none.

    Among several, it is the one with the closest version; of two equally close, the newer.
    """
    distribution, _, version = system_of(facts).rpartition("-")
    for kind in distribution, facts["os_family"]:
        versions = {_version(name.rpartition("-")[2]): name for name in known if name.rpartition("-")[0] == kind}
        if versions:
            wanted = min(_version(version), max(versions))
            return versions[min(versions, key=lambda each: (abs(each - wanted), -each))]
    return ""


def may_set_clock(status: str) -> bool:
    """Tell from /proc/1/status whether the system has CAP_SYS_TIME (25); a container usually lacks it."""
    bounding = re.search(r"^CapBnd:\s*([0-9a-f]+)", status, re.MULTILINE)
    return bool(bounding and int(bounding[1], 16) >> 25 & 1)


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., str | bool]]:
        return {"system_of": system_of, "nearest_system": nearest_system, "may_set_clock": may_set_clock}
