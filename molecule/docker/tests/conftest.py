"""A listener in a container at a model server's address, and who can reach it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

ADDRESS = "172.16.239.10"


@pytest.fixture(scope="module")
def listener(host) -> str:
    """Start the container, from an image of one static file, and return its name."""
    for command in (
        "docker rm --force listener",
        "tar --directory / --create --file - usr/bin/busybox | docker import - busybox",
        "docker network inspect slipway >/dev/null || docker network create --subnet 172.16.239.0/24"
        " --opt com.docker.network.bridge.name=slipway0 slipway",
        f"docker run --detach --name listener --restart unless-stopped --network slipway --ip {ADDRESS}"
        " busybox /usr/bin/busybox httpd -f -p 5000 -h /usr/bin",
    ):
        host.check_output(command)
    return "listener"


@pytest.fixture
def reaches(host, listener) -> Callable[[str], bool]:
    """Whether the host (reaches("host")) or the machine beside it (reaches("neighbour")) reaches the listener."""

    def ask(asker: str) -> bool:
        enter = "ip netns exec neighbour " if asker == "neighbour" else ""
        return host.run(f"{enter}curl -sS -o /dev/null --connect-timeout 1 http://{ADDRESS}:5000/busybox").rc == 0

    return ask


@pytest.fixture
def restart_engine(host) -> Callable[[], None]:
    """Restart the engine any number of times: systemd would refuse the fourth start in a minute."""

    def restart() -> None:
        host.check_output("systemctl reset-failed docker && systemctl restart docker")

    return restart
