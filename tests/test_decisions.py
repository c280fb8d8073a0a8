"""Compares what the roles would do on each system with the table in decisions.yml.

Ansible plays them on recorded facts, so that what is compared are the calls that modules would have got. Roles that
tell no system from another are not played: there ansible-lint compares the arguments with the modules.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from recordings import ROOT, Call, Host, facts_of, play, problems

TABLE = yaml.safe_load((ROOT / "tests/decisions.yml").read_text())
SYSTEMS = TABLE["systems"]
SELINUX = TABLE["SELinux"]
SEFCONTEXT = "community.general.sefcontext"
MANAGERS = ("yum", "dnf", "apt")

# The other way of what the table has conditions for, and what makes the rest of the templates be rendered.
# Truth as text, as `-e name=false` gives it.
OTHERWISE = {
    "base_apt_url": "http://mirror.example.org/debian",
    "base_firewall": "false",
    "base_http_proxy": "http://proxy.example.org:3128",
    "base_ntp_servers": ["time.example.org"],
    "base_security_updates": "false",
    "docker_live_restore": "false",
    "docker_source": "upstream",
    "nginx_source": "upstream",
}


class Case(NamedTuple):
    system: str
    selinux: str
    firewalld: str = "active"
    nginx: str = "1.20.1"
    openssl: str = "1.1.1k"
    otherwise: bool = False

    def words(self) -> list[str]:
        """Returns the table's conditions that hold here."""
        words = ["always"] + (["SELinux"] if self.selinux == "enforcing" else [])
        return words + (["company", "upstream"] if self.otherwise else ["distribution", "firewall", "updates"])

    def host(self) -> Host:
        selinux = {"status": "disabled" if self.selinux == "disabled" else "enabled", "mode": self.selinux}
        engine = chosen(SYSTEMS[self.system]["engine"], self.words())
        return Host(
            name="_".join(map(str, self)),
            facts={**facts_of(self.system), "selinux": selinux},
            says={
                "^systemctl is-active firewalld docker": f"{self.firewalld}\ninactive\n",
                "^printenv SSH_CONNECTION": "192.0.2.1 50000 192.0.2.2 22",
                "CapBnd": "000001ffffffffff",
                "^(rpm|dpkg-query) ": "",
                "^systemctl show": "\n\n".join(["ActiveState=inactive\nUnitFileState=disabled"] * 2),
                "^findmnt": "xfs /",
                "^xfs_info": "naming   =version 2   bsize=4096   ascii-ci=0, ftype=1",
                "^dockerd --version": f"Docker version {engine}, build 0000000",
                "^nft ": "",
                "^ss ": "",
                "^restorecon ": "",
                "nginx -V": f"nginx version: nginx/{self.nginx}\nbuilt with OpenSSL {self.openssl}",
                "nginx -t": "",
                "^find ": "/etc/nginx/nginx.conf",
            },
            variables={"base_accept_end_of_life": True, **(OTHERWISE if self.otherwise else {})},
        )


Hosts = dict[Case, Host]


@pytest.fixture(scope="module")
def provisioned() -> Hosts:
    cases = [Case(*axes) for axes in itertools.product(SYSTEMS, SELINUX, ("active", "inactive"))]
    cases += [Case(system, "enforcing", otherwise=True) for system in SYSTEMS]
    hosts = {case: case.host() for case in cases}
    play(ROOT / "playbooks/provision.yml", hosts.values())
    return hosts


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Hosts:
    """Role nginx alone, with every nginx: the roles before it do not see one, and it does not see the firewall."""
    playbook: Path = tmp_path_factory.mktemp("playbooks") / "nginx.yml"
    playbook.write_text("- hosts: model_servers\n  roles: [nginx]\n")
    axes = itertools.product(SYSTEMS, SELINUX, ["active"], TABLE["http2"], TABLE["TLS"])
    hosts = {case: case.host() for case in itertools.starmap(Case, axes)}
    play(playbook, hosts.values())
    return hosts


@pytest.fixture(scope="module")
def every_host(provisioned: Hosts, served: Hosts) -> list[Host]:
    return [*provisioned.values(), *served.values()]


def chosen(cell: dict[str, Any], words: list[str]) -> Any:
    """Returns what a cell of the table says under these conditions: lists and mappings joined, the one text."""
    values = [cell[word] for word in words if word in cell]
    if all(isinstance(value, dict) for value in values):
        return {name: entry for value in values for name, entry in value.items()}
    if all(isinstance(value, list) for value in values):
        return sorted(itertools.chain(*values))
    (text,) = values
    return text


def calls(host: Host, *modules: str, role: str = "") -> Iterator[Call]:
    return (call for call in host.calls if call.module in modules and role in ("", call.role))


def names(call: Call) -> list[str]:
    name = call.args.get("name", [])
    return [name] if isinstance(name, str) else name


def repositories(host: Host) -> dict[str, Any]:
    """Returns, by name, address and key of yum's repositories, and the lines of apt's."""
    found: dict[str, Any] = {}
    for call in calls(host, "yum_repository", "apt_repository", "copy"):
        if call.module == "yum_repository":
            assert call.args["gpgcheck"], call
            found[call.args["name"]] = [call.args["baseurl"], call.args["gpgkey"]]
        elif call.module == "apt_repository":
            found[call.args["filename"]] = " ".join(call.args["repo"].split())
        elif match := re.fullmatch(r"/etc/apt/sources\.list\.d/(\w+)\.list", call.args["dest"]):
            found[match[1]] = call.text.strip()
    return found


def settings(host: Host) -> dict[str, dict[str, str]]:
    """Returns file -> option -> value."""
    found: dict[str, dict[str, str]] = {}
    for call in calls(host, "community.general.ini_file"):
        found.setdefault(call.args["path"], {})[call.args["option"]] = call.args["value"]
    return found


def configuration(host: Host) -> str:
    (text,) = [call.text for call in calls(host, "copy") if call.args["dest"] == "/etc/nginx/nginx.conf"]
    return text


def test_every_play_ends_well(every_host: list[Host]) -> None:
    assert {host.name: host.failures for host in every_host if host.failures} == {}


def test_every_template_is_rendered(every_host: list[Host]) -> None:
    roles = {call.role for host in every_host for call in host.calls if call.role}
    templates = {(role, file.name) for role in roles for file in (ROOT / "roles" / role).glob("templates/*")}
    assert {(call.role, call.template) for host in every_host for call in host.calls if call.template} == templates


def test_modules_take_their_arguments(every_host: list[Host]) -> None:
    distinct = {repr((call.module, call.args)): call for host in every_host for call in host.calls}.values()
    assert {call.module for call in distinct} > {*MANAGERS, "yum_repository", "ansible.posix.seboolean"}
    assert [problem for call in distinct for problem in problems(call)] == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_system_gets_what_the_table_says(provisioned: Hosts, system: str) -> None:
    table = SYSTEMS[system]
    for case, host in provisioned.items():
        if case.system != system:
            continue
        words = case.words()
        assert {call.module for call in calls(host, *MANAGERS)} == {table["packages_by"]}, case
        assert repositories(host) == chosen(table["repositories"], words), case
        for role, cell in table["packages"].items():
            installed = {name for call in calls(host, *MANAGERS, role=role) for name in names(call)}
            assert installed == set(chosen(cell, words)), case
        services = {call.args["name"] for call in calls(host, "systemd_service", role="base")}
        assert services - {"dbus", "docker"} == set(chosen(table["services"], words)), case
        assert settings(host) == chosen(table["settings"], words), case
        removed = [call.args["path"] for call in calls(host, "file", role="nginx") if call.args["state"] == "absent"]
        assert removed == [chosen(table["nginx_default_site"], words)], case
        user = re.findall("^user (.+);$", configuration(host), re.MULTILINE)
        assert user == [chosen(table["nginx_user"], words)], case


def test_centos_7_gets_repositories_before_packages_and_authorities_before_https(provisioned: Hosts) -> None:
    for case, host in provisioned.items():
        if case.system == "centos-7":
            order = [names(call)[0] for call in calls(host, "yum_repository", "yum", role="base")]
            assert order[:6] == ["base", "updates", "extras", "ca-certificates", "epel", "ca-certificates"], case


def test_firewall_is_opened_before_it_starts_and_starts_before_docker(provisioned: Hosts) -> None:
    for case, host in provisioned.items():
        opened = [call.args for call in calls(host, "ansible.posix.firewalld")]
        doors = [args.get("port") or args["service"] for args in opened]
        assert doors == chosen(TABLE["firewall"], case.words()), case
        # One that runs is told at once, one that does not by its files.
        assert all(args["immediate"] == (case.firewalld == "active") for args in opened), case
        order = [call.args.get("name", "a door") for call in calls(host, "ansible.posix.firewalld", "systemd_service")]
        steps = [step for step in dict.fromkeys(order) if step in ("a door", "firewalld", "docker")]
        assert steps == ([] if case.otherwise else ["a door", "firewalld"]) + ["docker"], case


def test_engine_is_told_truth_as_truth(provisioned: Hosts) -> None:
    for case, host in provisioned.items():
        (text,) = [call.text for call in calls(host, "copy") if call.args["dest"] == "/etc/docker/daemon.json"]
        assert json.loads(text)["live-restore"] is not case.otherwise, case


def test_booleans_and_labels_are_set_only_under_selinux_which_stays_as_it_is(provisioned: Hosts, served: Hosts) -> None:
    for case, host in (provisioned | served).items():
        booleans = [call.args for call in calls(host, "ansible.posix.seboolean")]
        assert {args["name"]: args["state"] for args in booleans} == SELINUX[case.selinux]["booleans"], case
        assert all(args["persistent"] for args in booleans), case
        for role in {call.role for call in host.calls} & set(SELINUX[case.selinux]["labels"]):
            labels = {call.args["target"]: call.args["setype"] for call in calls(host, SEFCONTEXT, role=role)}
            assert labels == SELINUX[case.selinux]["labels"][role], case
        assert not list(calls(host, "ansible.posix.selinux", "ansible.posix.selinux_permissive")), case


def test_nginx_is_told_what_its_build_can_do(served: Hosts) -> None:
    for case, host in served.items():
        text = configuration(host)
        http2 = {
            "a word of listen": re.search(r"^ *listen .*\bhttp2\b", text, re.MULTILINE),
            "a directive": re.search(r"^ *http2 on;", text, re.MULTILINE),
        }
        assert [way for way, used in http2.items() if used] == [TABLE["http2"][case.nginx]], case
        protocols = re.findall(r"^ *ssl_protocols (.+);$", text, re.MULTILINE)
        assert protocols == [" ".join(TABLE["TLS"][case.openssl])], case
