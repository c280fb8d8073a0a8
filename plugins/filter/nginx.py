"""Filters that read what nginx says of its build and what ss says of its ports."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any


def nginx_build(said: str) -> dict[str, str]:
    """Return the versions of nginx and of the OpenSSL it was built with, from `nginx -V`; "0" where it names none."""
    patterns = {"nginx": r"nginx/([0-9.]+)", "openssl": r"OpenSSL ([0-9.]+)"}
    found = {name: re.search(pattern, said) for name, pattern in patterns.items()}
    return {name: match[1] if match else "0" for name, match in found.items()}


def foreign_listeners(lines: Iterable[str], own: str) -> list[str]:
    """Say who holds each listening port of `ss -ltnp`, except the program `own`."""
    found = []
    for line in lines:
        fields = line.split()
        if fields[:1] != ["LISTEN"] or f'"{own}"' in line:
            continue
        program = re.search(r'"([^"]+)",pid=(\d+)', line)
        holder = f"{program[1]}, pid {program[2]}" if program else "an unknown process"
        found.append(f"{fields[3]} is held by {holder}")
    return found


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"nginx_build": nginx_build, "foreign_listeners": foreign_listeners}
