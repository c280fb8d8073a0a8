"""A neighbour that routes through this host cannot reach a container on a private bridge.

Each test is repeated without the protection, to show that nothing else keeps the neighbour out.
"""

from __future__ import annotations

import pytest

RESTART_ENGINE = "systemctl reset-failed docker && systemctl restart docker"
# In this order, with no repairs in between. The last one leaves the engine started after firewalld, as at boot.
EVENTS = {
    "converged": "true",
    "firewalld reloaded": "firewall-cmd --reload",
    "engine restarted": RESTART_ENGINE,
    "firewalld restarted": "systemctl restart firewalld",
    "firewalld reloaded again": "firewall-cmd --reload",
    "firewalld stopped": "systemctl stop firewalld",
    "engine restarted without firewalld": RESTART_ENGINE,
    "firewalld started after the engine": "systemctl start firewalld",
    "engine restarted with firewalld": RESTART_ENGINE,
}


@pytest.fixture(scope="module", autouse=True)
def policy_of_later_engines(host, listener):
    """Let firewalld forward into Docker's zone, as engines from 27 on do, so that it does not close the bridge."""
    policy = "firewall-cmd --quiet --permanent"
    host.check_output(
        f"{policy} --new-policy docker-forwarding && {policy} --policy docker-forwarding --add-ingress-zone ANY && "
        f"{policy} --policy docker-forwarding --add-egress-zone docker && "
        f"{policy} --policy docker-forwarding --set-target ACCEPT && firewall-cmd --reload"
    )
    yield
    host.check_output(f"{policy} --delete-policy docker-forwarding && firewall-cmd --reload")


@pytest.fixture
def unprotected(host):
    host.check_output("systemctl stop slipway-private-bridges")
    yield
    host.check_output("systemctl start slipway-private-bridges")


@pytest.mark.parametrize("event", EVENTS)
def test_neighbour_is_kept_out(host, reaches, event):
    host.check_output(EVENTS[event])
    assert reaches("host")
    assert not reaches("neighbour")


def test_neighbour_gets_in_without_the_protection(reaches, unprotected):
    assert reaches("neighbour")


def test_neighbour_gets_in_without_protection_and_firewall(host, reaches, unprotected):
    host.check_output("systemctl stop firewalld")
    try:
        assert reaches("neighbour")
    finally:
        host.check_output(f"systemctl start firewalld && {RESTART_ENGINE}")


def test_restarted_engine_brings_the_protection_back(host, reaches, unprotected):
    host.check_output(RESTART_ENGINE)
    assert not reaches("neighbour")


def test_container_gets_answers_from_outside(host, listener):
    host.check_output(f"docker exec {listener} /usr/bin/busybox ping -c 1 -W 2 198.51.100.2")


def test_protection_comes_at_every_boot(host):
    assert host.service("slipway-private-bridges").is_enabled
