"""The stand-in for CentOS 7 has packages and keys only from its mirror."""

from __future__ import annotations

import os

import pytest

testinfra_hosts = [f"ansible://slipway-{os.environ['MOLECULE_SCENARIO_NAME']}"]
pytestmark = pytest.mark.only_on("el7-standin")

MIRROR = "http://127.0.0.1:8999"


def test_repositories_are_the_mirrors_and_verified(host):
    lines = host.check_output("cat /etc/yum.repos.d/*.repo").splitlines()
    settings = [line.replace(" ", "").partition("=")[::2] for line in lines if "=" in line]
    addresses = [value for name, value in settings if name == "baseurl"]
    assert {f"{MIRROR}/centos/{name}/$basearch/" for name in ("os", "updates", "extras")} < set(addresses)
    assert f"{MIRROR}/epel/$basearch" in addresses
    assert all(address.startswith(MIRROR) for address in addresses)
    assert [value for name, value in settings if name == "gpgcheck"] == len(addresses) * ["1"]
    assert not [value for name, value in settings if name in ("mirrorlist", "metalink")]


def test_packages_are_rpms(host):
    host.check_output("rpm --query --verify --nomtime ca-certificates firewalld python-firewall")
    host.check_output("rpm --query chrony yum-cron libselinux-python policycoreutils-python")


def test_only_the_mirrors_key_is_trusted(host):
    keys = host.check_output("rpm --query gpg-pubkey --queryformat '%{SUMMARY}\\n'").splitlines()
    assert keys == ["mirror public key"]


def test_security_updates_are_installed_daily(host):
    lines = host.file("/etc/yum/yum-cron.conf").content_string.splitlines()
    assert {"update_cmd = security", "apply_updates = yes"} <= set(lines)
    assert host.service("yum-cron").is_enabled


def test_end_of_life_stops_the_play_unless_it_is_accepted(run_roles):
    outcome = run_roles("base", base_accept_end_of_life=False)
    assert outcome.changed == []
    assert "no security updates since 2024-06-30" in outcome.failure
    assert "base_accept_end_of_life: true" in outcome.failure
