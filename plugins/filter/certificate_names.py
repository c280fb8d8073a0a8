"""Filters on the host names and IP addresses that a certificate is for."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return "%" not in name  # a zone, which no certificate can have


def invalid_certificate_names(names: Iterable[str]) -> list[str]:
    """Return the names that are neither a host name (it may begin with `*.`) nor an IP address."""

    def is_host(name: str) -> bool:
        # Digits and dots alone are a mistyped address.
        return bool(HOST.fullmatch(name)) and not re.fullmatch(r"[0-9.]+", name)

    return [name for name in names if not is_host(name) and not _is_address(name)]


def subject_alt_names(names: Iterable[str]) -> list[str]:
    """Return the names as OpenSSL writes subject alternative names, IP addresses first."""
    typed = [f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names]
    return sorted(typed, key=lambda name: name.startswith("DNS:"))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"invalid_certificate_names": invalid_certificate_names, "subject_alt_names": subject_alt_names}
