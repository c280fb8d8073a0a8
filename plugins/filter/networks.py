"""Filters for the bridge network of the model servers: who gets which address, and which routes are in the way."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any

SPARE, FIRST = 9, 10


def network_fault(subnet: str, replicas: int | str) -> str:
    """Return why that many replicas do not fit a subnet, "" if they do."""
    try:
        network = ipaddress.IPv4Network(subnet)
    except ValueError as error:
        return f"{error}"
    if "/" not in subnet:
        return f"{subnet} has no prefix"
    if int(replicas) < 1:
        return "at least one replica is needed"
    if FIRST + int(replicas) > network.num_addresses // 2:
        return f"{subnet} has room for {max(0, network.num_addresses // 2 - FIRST)} replicas"
    return ""


def replica_network(subnet: str, replicas: int | str) -> dict[str, Any]:
    """Return the addresses of a bridge network: `gateway`, `spare`, `replicas` from the tenth on, and `dynamic`.

    `dynamic`, the upper half of the subnet, is what Docker gives away by itself; otherwise a container that starts
    early could take a replica's address.
    """
    network = ipaddress.IPv4Network(subnet)
    return {
        "gateway": str(network[1]),
        "spare": str(network[SPARE]),
        "replicas": [str(network[FIRST + number]) for number in range(int(replicas))],
        "dynamic": str(list(network.subnets())[1]),
    }


def colliding_routes(routes: Iterable[str], subnet: str, bridge: str) -> list[str]:
    """Return those lines of `ip -4 route show` that lead addresses of the subnet elsewhere than to the bridge."""
    network, found = ipaddress.IPv4Network(subnet), []
    for route in routes:
        words = route.split()
        if not words or words[0] == "default" or f" dev {bridge} " in f"{route} ":
            continue
        # "blackhole 10.0.0.0/8" and the like have a type before the address.
        target = next((word for word in words[:2] if word[0].isdigit()), "")
        if target and ipaddress.IPv4Network(target, strict=False).overlaps(network):
            found.append(route)
    return found


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "colliding_routes": colliding_routes,
            "network_fault": network_fault,
            "replica_network": replica_network,
        }
