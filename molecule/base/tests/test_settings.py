"""What the role refuses, and what it reports of a host that was altered by hand."""

from __future__ import annotations

testinfra_hosts = ["ansible://slipway-base"]


def test_what_was_altered_by_hand_is_reported_and_mended(host, play):
    host.check_output("firewall-cmd --quiet --permanent --remove-service https && firewall-cmd --reload")
    if host.system_info.distribution == "debian":
        host.check_output("rm /etc/apt/apt.conf.d/20auto-upgrades")
        updates = "base : Turn on unattended upgrades"
    else:
        files = "/etc/yum/yum-cron.conf /etc/dnf/automatic.conf"
        host.check_output(f"grep -ls ^apply_updates {files} | xargs sed -i 's/^apply_updates.*/apply_updates = no/'")
        updates = "base : Turn on automatic security updates"
    changes = ["base : Open the services", updates]
    assert play("base", check=True).changed == changes
    assert play("base").changed == changes
    assert "https" in host.check_output("firewall-cmd --list-services").split()


def test_port_without_protocol_is_refused(play):
    outcome = play("base", base_firewall_ports=["8443"])
    assert outcome.changed == []
    assert "8443/tcp" in outcome.failure
