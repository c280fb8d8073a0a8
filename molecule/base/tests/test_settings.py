"""What the role rejects, and what it reports about a host that was changed by hand."""

from __future__ import annotations

import pytest

testinfra_hosts = ["ansible://slipway-base"]


def test_what_was_altered_by_hand_is_reported_and_mended(host, run_roles):
    host.check_output("firewall-cmd --quiet --permanent --remove-service https && firewall-cmd --reload")
    if host.system_info.distribution == "debian":
        host.check_output("rm /etc/apt/apt.conf.d/20auto-upgrades")
        updates = "base : Enable unattended upgrades"
    else:
        files = "/etc/yum/yum-cron.conf /etc/dnf/automatic.conf"
        host.check_output(f"grep -ls ^apply_updates {files} | xargs sed -i 's/^apply_updates.*/apply_updates = no/'")
        updates = "base : Configure yum or dnf to install security updates"
    changes = ["base : Open the services", updates]
    assert run_roles("base", check=True).changed == changes
    assert run_roles("base").changed == changes
    assert "https" in host.check_output("firewall-cmd --list-services").split()


def test_port_without_protocol_is_refused(run_roles):
    outcome = run_roles("base", base_firewall_ports=["8443"])
    assert outcome.changed == []
    assert "8443/tcp" in outcome.failure


@pytest.mark.only_on("debian")
def test_second_firewall_is_refused_while_it_is_on(host, run_roles):
    host.check_output("apt-get install --quiet=2 --yes --no-install-recommends ufw")
    host.check_output("sed -i s/^ENABLED=.*/ENABLED=yes/ /etc/ufw/ufw.conf")
    outcome = run_roles("base")
    assert outcome.changed == []
    assert "ufw disable" in outcome.failure and "base_firewall: false" in outcome.failure
    host.check_output("sed -i s/^ENABLED=.*/ENABLED=no/ /etc/ufw/ufw.conf")
    assert run_roles("base", check=True).failure == ""


@pytest.mark.only_on("debian13")
def test_unknown_system_is_refused_with_the_nearest_and_taken_at_ones_own_risk(host, run_roles):
    host.check_output("cp /usr/lib/os-release /etc/debian_version /root/")
    host.check_output(
        """sed -i 's/^VERSION_ID=.*/VERSION_ID="99"/' /usr/lib/os-release && echo 99.0 > /etc/debian_version"""
    )
    try:
        outcome = run_roles("base")
        assert outcome.changed == []
        assert "runs Debian 99" in outcome.failure and "system_treat_as: Debian-13" in outcome.failure
        assert "system_treat_as is Debian-98" in run_roles("base", system_treat_as="Debian-98").failure
        outcome = run_roles("base", system_treat_as="Debian-13")
        assert (outcome.changed, outcome.failure) == ([], "")
    finally:
        host.check_output("cp /root/os-release /usr/lib/ && cp /root/debian_version /etc/")
