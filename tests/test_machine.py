"""Slipway on a virtual machine with its own kernel: deploy, reboot, roll back, and again under SELinux.

`make machine` runs these steps in order, stops at the first failure, and prints what they saw.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import pytest

from host import ROOT
from machine import ALLOWED, BOOT_SECONDS, BUILD_SECONDS, CA, LOG, NAME, PERMISSIVE, USER, Machine, machine
from prober import ANY, json_question, upload_question

ROWS = json_question("rows", "/predict", {"X": "1 0|1 1"}, {ANY: {"labels": [[0.99844], [0.00218]]}})
THREE = ROOT / "models/digits/examples/three.png"
UPLOAD = upload_question("upload", "/predict/digits", THREE, {ANY: {"answers": [{"digit": {"label": "3"}}]}})
REPLICAS = {"model-server-1": "172.16.239.10", "model-server-2": "172.16.239.11"}
GIB = 2**30
# What curl says of a connection that is made, and of one whose packets are dropped.
REACHED, NO_ANSWER = "0", "28"

SEEN: list[str] = []


def see(what: str, is_so: str) -> None:
    SEEN.append(f"{what:<12}{is_so}")


@pytest.fixture(scope="module")
def server() -> Iterator[Machine]:
    with machine() as made:
        yield made


def changes(said: str) -> int:
    """How many tasks changed something, by Ansible's recap; nothing may have failed."""
    recap = re.search(rf"^{NAME} +: ok=\d+ +changed=(\d+) +unreachable=0 +failed=0", said, re.MULTILINE)
    assert recap, said[-3000:]
    return int(recap[1])


def answers_rightly(server: Machine, seconds: float = 30) -> bool:
    return server.ask(ROWS, seconds) == server.ask(UPLOAD, seconds) == (200, True)


def release(server: Machine) -> str:
    """The one release that serves: by the history, and by the label of every container."""
    history = [json.loads(line) for line in server.on("cat /var/lib/slipway/history").splitlines()]
    serves: str = [line["release"] for line in history if line["result"] == "served"][-1]
    label = """docker ps --filter label=slipway=model-server --format '{{ .Names }} {{ .Label "slipway.release" }}'"""
    assert sorted(server.on(label).splitlines()) == [f"{name} {serves}" for name in sorted(REPLICAS)]
    return serves


def test_it_boots(server: Machine) -> None:
    assert server.on("stat --file-system --format %T /sys/fs/cgroup") == "cgroup2fs"
    debian, kernel = server.on("cat /etc/debian_version; uname --kernel-release").split()
    systemd = server.on("systemctl --version").split()[1]
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    see("machine", f"Debian {debian}, kernel {kernel}, cgroup v2, systemd {systemd}, of Debian's packages")
    see("run by", f"QEMU {qemu.split()[3]}, accel {server.accel}, 2 cores, 4 GB")
    see("to boot", f"made in {server.seconds_to_build:.0f} s, running after {server.seconds_to_boot:.0f} s")


def test_a_user_enters_by_ssh_and_needs_a_password_for_sudo(server: Machine) -> None:
    with pytest.raises(AssertionError, match="a password is required"):
        server.as_user("sudo -n true")
    with pytest.raises(AssertionError, match="Host key verification failed"):
        server.as_user("true", "-o", "ControlPath=none", "-o", f"UserKnownHostsFile={server.folder / 'nobody'}")


def test_the_site_is_deployed(server: Machine) -> None:
    said, seconds = server.run_playbook("site.yml")
    assert changes(said) > 0
    assert answers_rightly(server)
    docker = server.on("docker version --format '{{ .Server.Version }}'")
    driver = server.on("docker info --format '{{ .Driver }}, cgroup driver {{ .CgroupDriver }}'")
    nginx = server.on("nginx -v 2>&1").rpartition("/")[2]
    python = server.on("python3 --version").split()[1]
    core = version("ansible-core")
    see("with", f"Docker Engine {docker} ({driver}), nginx {nginx}, Python {python}, ansible-core {core}")
    see("site.yml", f"{seconds:.0f} s as user {USER} by ssh, sudo asking for a password; right answers over https")


def test_the_second_run_changes_nothing(server: Machine) -> None:
    said, seconds = server.run_playbook("site.yml")
    assert changes(said) == 0, said[-3000:]
    see("again", f"{seconds:.0f} s, changed=0")


def test_the_kernel_holds_the_containers_to_their_memory(server: Machine) -> None:
    for name in REPLICAS:
        pid = server.on(f"docker inspect --format '{{{{ .State.Pid }}}}' {name}")
        group = server.on(f"cut -d: -f3 /proc/{pid}/cgroup")
        limits = server.on(f"cd /sys/fs/cgroup{group} && cat memory.max memory.swap.max pids.max").split()
        assert limits == [str(GIB), "0", "256"], group
    see("memory", f"memory.max {GIB}, memory.swap.max 0, pids.max 256 in the cgroups of {len(REPLICAS)} containers")


def asked_by(server: Machine, neighbour: bool) -> list[str]:
    """What curl's exit code is when the machine, or its neighbour, asks each container by its address."""
    enter = "ip netns exec neighbour" if neighbour else ""
    curl = f"{enter} curl --silent --output /dev/null --connect-timeout 3"
    asks = (f"{curl} http://{address}:5000/healthz && echo 0 || echo $?" for address in REPLICAS.values())
    return server.on("\n".join(asks)).split()


@contextmanager
def neighbour(server: Machine) -> Iterator[None]:
    """A neighbour on the LAN that routes through this machine, with everything but the protection opened to it.

    That means firewalld, and the FORWARD policy that Docker sets where it enabled forwarding itself.
    """
    server.on(
        "ip netns add neighbour; ip link add outer0 type veth peer name lan0 netns neighbour;"
        " ip address add 198.51.100.1/24 dev outer0; ip link set outer0 up;"
        " ip -n neighbour address add 198.51.100.2/24 dev lan0; ip -n neighbour link set lan0 up;"
        " ip -n neighbour route add 172.16.239.0/24 via 198.51.100.1;"
        " firewall-cmd --quiet --zone trusted --add-interface outer0; iptables --policy FORWARD ACCEPT"
    )
    yield
    server.on(
        "firewall-cmd --quiet --zone trusted --remove-interface outer0; iptables --policy FORWARD DROP;"
        " ip netns delete neighbour"
    )


def test_containers_are_closed_to_a_neighbour_by_the_protection(server: Machine) -> None:
    with neighbour(server):
        assert asked_by(server, neighbour=False) == [REACHED, REACHED]
        assert asked_by(server, neighbour=True) == [NO_ANSWER, NO_ANSWER]
        server.on("nft delete table inet slipway")
        assert asked_by(server, neighbour=True) == [REACHED, REACHED]
        server.on("systemctl reload slipway-private-bridges")
        assert asked_by(server, neighbour=True) == [NO_ANSWER, NO_ANSWER]
    see("port 5000", "closed to a neighbour with a route; open without the nftables table, closed with it again")


def reboot(server: Machine) -> float:
    """Reboot it and return the seconds from the command to the first right answer."""
    identity = "cat /proc/sys/kernel/random/boot_id"
    before, started = server.on(identity), time.monotonic()
    server.on("systemctl --no-block reboot")
    server.wait_until(lambda: not answers_rightly(server, 5), BOOT_SECONDS, "the machine goes down")
    server.wait_until(lambda: answers_rightly(server, 5), BOOT_SECONDS, "right answers after the reboot")
    seconds = time.monotonic() - started
    server.wait_until_up()
    assert server.on(identity) != before
    return seconds


def test_a_reboot_ends_in_right_answers(server: Machine) -> None:
    seconds = reboot(server)
    ready = " && ".join(f"curl --silent --fail {address}:5000/readyz" for address in REPLICAS.values())
    server.on(f"timeout 120 sh -c 'until {ready}; do sleep 1; done'")
    with neighbour(server):
        assert asked_by(server, neighbour=True) == [NO_ANSWER, NO_ANSWER]
    see("reboot", f"{seconds:.0f} s from the command to the first right answer over https; port 5000 closed as before")


def test_another_release_comes_and_goes(server: Machine) -> None:
    first = release(server)
    _, there = server.run_playbook("playbooks/deploy.yml", model_server_workers=2)
    second = release(server)
    assert second != first and answers_rightly(server)
    _, back = server.run_playbook("playbooks/rollback.yml")
    assert release(server) == first and answers_rightly(server)
    see("releases", f"{first} -> {second} (two workers, {there:.0f} s) -> {first} (rollback.yml, {back:.0f} s)")


CERTIFICATES = [f"/etc/slipway/tls/{name}" for name in ("ca.key", "ca.pem", "fullchain.pem", "key.pem")]


def labels(server: Machine) -> set[str]:
    """The SELinux types of the certificates and keys."""
    return {label.split(":")[2] for label in server.on(f"stat --format %C {' '.join(CERTIFICATES)}").split()}


def denied(server: Machine, domain: str) -> list[str]:
    """What SELinux has denied that domain since boot."""
    return server.on(rf"journalctl --boot --output cat | awk '/avc:  denied.* scontext=[^ ]*:{domain}:/'").splitlines()


def test_selinux_is_turned_on(server: Machine) -> None:
    assert server.on("getenforce") == "Disabled"
    started = time.monotonic()
    server.switch_off()
    # Permissive at first, as Debian's package sets it: no file has a label yet.
    server.start("security=selinux")
    server.on(
        "restorecon -R -F -x /; sed -i 's/^SELINUX=.*/SELINUX=enforcing/' /etc/selinux/config", seconds=BUILD_SECONDS
    )
    server.switch_off()
    server.start("security=selinux")
    assert server.on("getenforce") == "Enforcing"
    domains = "for pid in $(pgrep nginx) $(pgrep dockerd); do cut -d: -f3 /proc/$pid/attr/current; done"
    assert set(server.on(domains).split()) == {"httpd_t", "dockerd_t"}
    policy = server.on("dpkg-query --show --showformat '${Version}' selinux-policy-default")
    see("SELinux", f"enforcing in {time.monotonic() - started:.0f} s with Debian's selinux-policy-default {policy}")
    see("", f"This is Debian's policy, NOT Enterprise Linux's. Permissive in it: {' '.join(PERMISSIVE)};")
    see("", f"added to it: {' '.join(ALLOWED)}; nginx is httpd_t, enforced")


def test_selinux_keeps_nginx_from_the_model_servers_until_the_role_lets_it(server: Machine) -> None:
    assert server.on("getsebool httpd_can_network_connect").endswith("off")
    assert server.ask(ROWS)[0] == 502
    assert any("name_connect" in line for line in denied(server, "httpd_t"))
    assert labels(server) == {"etc_t"}
    said, seconds = server.run_playbook("site.yml")
    assert changes(said) > 0
    assert server.on("getsebool httpd_can_network_connect").endswith("on")
    assert answers_rightly(server)
    assert labels(server) == {"cert_t"}
    see("", f"502 with httpd_can_network_connect off; site.yml ({seconds:.0f} s) turns it on: right answers,")
    see("", f"and labels the {len(CERTIFICATES)} files of the certificate and its CA cert_t")


def test_the_second_run_under_selinux_changes_nothing(server: Machine) -> None:
    said, seconds = server.run_playbook("site.yml")
    assert changes(said) == 0, said[-3000:]
    see("", f"again {seconds:.0f} s, changed=0")


def test_a_reboot_under_selinux_ends_in_right_answers(server: Machine) -> None:
    seconds = reboot(server)
    assert server.on("getenforce") == "Enforcing"
    assert denied(server, "httpd_t") == []
    see("", f"reboot: {seconds:.0f} s to the first right answer, and nothing that nginx was denied")


def test_nothing_is_left(server: Machine) -> None:
    server.destroy()
    assert not server.folder.exists() and not CA.exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(server.folder) not in running
    see("left", "nothing: no process, no disk, no folder")
    print("\n\n" + "\n".join(SEEN) + f"\n\nthe rest is in {LOG}")
