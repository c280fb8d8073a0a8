"""The host that Ansible reached by ssh on port 2222, with a new connection for each task."""

from __future__ import annotations

import os

import pytest
import testinfra

testinfra_hosts = ["ansible://slipway-base"]


@pytest.fixture(params=["", "--permanent "], ids=["now", "after a reload"])
def zone(host, request) -> dict[str, list[str]]:
    """What the firewall's default zone accepts."""
    lines = host.check_output(f"firewall-cmd {request.param}--list-all").splitlines()
    return {name.strip(): values.split() for name, _, values in (line.partition(":") for line in lines)}


def test_port_of_ansibles_connection_is_open(zone):
    assert "2222/tcp" in zone["ports"]


def test_service_is_open(zone):
    assert {"http", "https"} <= set(zone["services"])


def test_further_ports_are_open(zone):
    assert "9000/tcp" in zone["ports"]


def test_firewall_runs_now_and_at_every_boot(host):
    assert host.service("firewalld").is_running
    assert host.service("firewalld").is_enabled


@pytest.mark.parametrize(("port", "answers"), [(9000, True), (8099, False)])
def test_neighbour_reaches_open_ports_only(host, port, answers):
    neighbour = testinfra.get_host(
        "ansible://slipway-base-open", ansible_inventory=os.environ["MOLECULE_INVENTORY_FILE"]
    )
    address = host.check_output("hostname -I").split()[0]
    host.check_output(f"systemd-run --quiet --unit=listener-{port} python3 -m http.server {port}")
    try:
        assert (
            host.run(f"curl -sS -o /dev/null --retry 20 --retry-connrefused --retry-delay 1 127.0.0.1:{port}").rc == 0
        )
        assert (neighbour.run(f"curl -sS -o /dev/null --max-time 2 http://{address}:{port}").rc == 0) == answers
    finally:
        host.check_output(f"systemctl stop listener-{port}")


@pytest.mark.only_on("debian")
def test_security_updates_are_installed_daily(host):
    settings = host.check_output("apt-config dump APT::Periodic")
    assert 'APT::Periodic::Update-Package-Lists "1"' in settings
    assert 'APT::Periodic::Unattended-Upgrade "1"' in settings
    assert host.service("apt-daily.timer").is_running
    assert host.service("apt-daily-upgrade.timer").is_running


@pytest.mark.only_on("debian")
def test_updates_taken_are_those_for_security(host):
    assert "label=Debian-Security" in host.check_output("apt-config dump Unattended-Upgrade::Origins-Pattern")


def test_clock_is_kept_where_it_is_the_systems_own(host):
    may_set_clock = int(host.check_output("grep CapBnd /proc/1/status").split()[1], 16) >> 25 & 1
    chrony = host.service("chrony" if host.system_info.distribution == "debian" else "chronyd")
    assert chrony.is_enabled
    assert chrony.is_running == bool(may_set_clock)
