"""The engine's settings, what the role reports about a host that was changed by hand, and what it rejects."""

from __future__ import annotations

import json
import os

import pytest

# The stand-in has Debian 12's engine under another name.
VERSION = {"debian13": "26.1", "ubuntu2204": "", "ubuntu2404": "", "ubuntu2604": ""}.get(
    os.environ.get("MOLECULE_DISTRO") or "debian13", "20.10"
)


def inspect(host, kind: str, template: str) -> str:
    return host.check_output(f"docker {kind} --format '{{{{{template}}}}}'")


def test_engine_runs_now_and_at_every_boot(host):
    assert host.service("docker").is_running
    assert host.service("docker").is_enabled


def test_engine_has_the_pinned_version(host):
    assert inspect(host, "version", ".Server.Version").startswith(VERSION)


def test_engine_past_its_start_limit_is_started_once_its_file_is_mended(host, listener, run_roles):
    before = inspect(host, f"inspect {listener}", ".State.Pid")
    host.check_output(
        "echo '{' > /etc/docker/daemon.json && systemctl reset-failed docker && ! systemctl restart docker"
    )
    host.check_output("timeout 60 sh -c 'until systemctl is-failed --quiet docker; do sleep 1; done'")
    assert host.run("systemctl start docker").rc != 0
    outcome = run_roles("docker")
    assert outcome.failure == ""
    assert "docker : Reset the start limit of a failed engine" in outcome.changed
    assert inspect(host, f"inspect {listener}", ".State.Pid") == before


def test_containers_outlive_a_restart_of_the_engine(host, listener, restart_engine):
    before = inspect(host, f"inspect {listener}", ".State.Pid")
    restart_engine()
    assert inspect(host, f"inspect {listener}", ".State.Pid") == before
    assert host.run(f"test -d /proc/{before}").rc == 0


def test_started_firewall_restarts_the_engine_and_no_container(host, listener, run_roles):
    host.check_output("systemctl reset-failed docker && systemctl stop firewalld")
    engine = host.check_output("pidof dockerd")
    container = inspect(host, f"inspect {listener}", ".State.Pid")
    changes = ["base : Start firewalld", "base : Restart Docker to restore its firewall rules"]
    assert run_roles("base").changed == changes
    assert host.check_output("pidof dockerd") != engine
    assert inspect(host, f"inspect {listener}", ".State.Pid") == container


def test_a_container_comes_back_that_the_engine_failed_to_start_again(host, listener):
    for name in ("failing", "stopped"):
        run = "docker run --detach --restart unless-stopped --mount type=bind,source=/srv/needed,target=/needed"
        host.check_output(f"mkdir -p /srv/needed && {run} --name {name} busybox /usr/bin/busybox sleep 1000")
    try:
        pid = inspect(host, "inspect failing", ".State.Pid")
        host.check_output(f"rmdir /srv/needed && kill -KILL {pid} && docker kill stopped && sleep 2")
        assert inspect(host, "inspect failing", ".State.Status") == "exited", "the engine should fail to restart it"
        host.check_output("mkdir /srv/needed")
        running = "test $(docker inspect --format '{{.State.Status}}' failing) = running"
        host.check_output(f"timeout 60 sh -c 'until {running}; do sleep 1; done'")
        assert inspect(host, "inspect stopped", ".State.Status") == "exited", "it was stopped on purpose"
    finally:
        host.check_output("docker rm --force failing stopped")


def test_logs_are_rotated(host, listener):
    assert json.loads(inspect(host, f"inspect {listener}", "json .HostConfig.LogConfig")) == {
        "Type": "json-file",
        "Config": {"max-size": "10m", "max-file": "3"},
    }


def test_networks_take_their_addresses_from_the_pool(host):
    host.check_output("docker network create pooled")
    try:
        assert inspect(host, "network inspect pooled", "(index .IPAM.Config 0).Subnet").startswith("10.210.")
    finally:
        host.check_output("docker network rm pooled")


def test_modules_for_docker_find_what_they_need(host):
    host.check_output("python3 -c 'import requests'")


def test_what_was_altered_by_hand_is_reported_and_mended(host, run_roles, listener, reaches):
    host.check_output("sed -i s/10m/90m/ /etc/docker/daemon.json && nft delete table inet slipway")
    host.check_output("systemctl reset-failed docker")
    before = inspect(host, f"inspect {listener}", ".State.Pid")
    changes = [
        "docker : Check that the rules are loaded",
        "docker : Write the engine's configuration",
        "docker : Load the rules of the private bridges again",
        "docker : Reload Docker",
        "docker : Restart Docker",
    ]
    assert run_roles("docker", check=True).changed == changes
    assert "90m" in host.file("/etc/docker/daemon.json").content_string
    assert run_roles("docker").changed == changes
    assert not reaches("neighbour")
    assert inspect(host, f"inspect {listener}", ".State.Pid") == before


@pytest.fixture
def stub(host):
    """Shadow a program with one that prints the given lines: stub("xfs_info", "ftype=0")."""
    paths = []

    def write(name: str, lines: str) -> None:
        paths.append(f"/usr/local/bin/{name}")
        host.check_output(f"printf '#!/bin/sh\\necho %s\\n' '\"{lines}\"' > {paths[-1]} && chmod +x {paths[-1]}")

    yield write
    host.check_output(f"rm {' '.join(paths)}")


def refuse(outcome, *words: str) -> None:
    """Assert that the play failed with these words and changed nothing."""
    assert outcome.changed == []
    assert all(word in outcome.failure for word in words), outcome.failure


@pytest.mark.only_on("debian")
def test_other_version_is_refused(run_roles):
    refuse(run_roles("docker", docker_version="19.03"), f"dockerd is {VERSION}", "19.03", "Remedy")


def test_engine_without_its_client_is_refused(host, run_roles):
    client = host.check_output("command -v docker")
    host.check_output(f"mv {client} /root/")
    try:
        refuse(run_roles("docker"), "no working client", "docker-cli")
    finally:
        host.check_output(f"mv /root/docker {client}")


def test_engine_from_a_snap_is_refused(host, run_roles):
    host.check_output("mkdir -p /snap/bin && touch /snap/bin/docker")
    try:
        refuse(run_roles("docker"), "snap remove docker")
    finally:
        host.check_output("rm -r /snap")


@pytest.mark.only_on("debian")
def test_engine_in_the_way_is_refused(run_roles):
    refuse(run_roles("docker", docker_source="upstream"), "docker.io", "docker_remove_conflicting")


def test_file_system_without_types_is_refused(run_roles, stub):
    stub("findmnt", "xfs /var/lib")
    stub("xfs_info", "naming =version 2 bsize=4096 ascii-ci=0 ftype=0")
    refuse(run_roles("docker"), "ftype=0", "mkfs.xfs -n ftype=1")


def test_ruleset_of_nftables_service_is_refused(host, run_roles):
    host.check_output("systemctl enable nftables")
    try:
        refuse(run_roles("docker"), "nftables.service", "systemctl disable --now nftables")
    finally:
        host.check_output("systemctl disable nftables")


def test_live_restore_in_a_swarm_is_refused(run_roles, stub):
    stub("docker", "20.10.24 active")
    refuse(run_roles("docker"), "docker_live_restore: false")


def test_bridge_that_the_kernel_refuses_is_refused(run_roles):
    refuse(run_roles("docker", docker_private_bridges=["a bridge"]), "docker_private_bridges has a bridge")
