"""Compares what the roles decide on each system with the table in decisions.yml.

Ansible itself templates the roles' variables on the facts recorded of each system (decide.yml). That the tasks do what
the variables say is for the hosts of the scenarios to show.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from conftest import plugin
from host import ROOT

SYSTEMS: dict[str, Any] = yaml.safe_load((ROOT / "tests/decisions.yml").read_text())
# The words by which the table's cells have conditions, and the settings with which they hold; truth as text, as
# `-e name=false` gives it.
SETTINGS: dict[str, dict[str, str]] = {
    "distribution": {},
    "upstream": {
        "base_firewall": "false",
        "base_security_updates": "false",
        "docker_live_restore": "false",
        "docker_source": "upstream",
        "nginx_source": "upstream",
    },
}
WORDS = {"distribution": ["always", "distribution", "firewall", "updates"], "upstream": ["always", "upstream"]}


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What the roles decide, by system and settings."""
    folder = tmp_path_factory.mktemp("decided")
    cases = list(itertools.product(SYSTEMS, SETTINGS))
    hosts = {f"{system}_{case}": {"recorded_system": system, **SETTINGS[case]} for system, case in cases}
    same = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "folder": str(folder)}
    inventory = folder / "inventory.yml"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": same}}))
    command = ["ansible-playbook", "--inventory", str(inventory), "--tags", "decide", "--skip-tags", "always"]
    run = subprocess.run([*command, "tests/decide.yml"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr
    return {case: json.loads((folder / f"{'_'.join(case)}.json").read_text()) for case in cases}


def chosen(cell: dict[str, Any], case: str) -> Any:
    """Returns what a cell of the table says under these settings: lists and mappings joined, the one text."""
    values = [cell[word] for word in WORDS[case] if word in cell]
    if all(isinstance(value, dict) for value in values):
        return {name: entry for value in values for name, entry in value.items()}
    if all(isinstance(value, list) for value in values):
        return sorted({*itertools.chain(*values)})
    (text,) = values
    return text


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_system_gets_what_the_table_says(
    decided: dict[tuple[str, str], dict[str, Any]], system: str, case: str
) -> None:
    found, table = decided[system, case], SYSTEMS[system]
    repositories = {name: [each["baseurl"], each["gpgkey"]] for name, each in found["base_repositories"].items()}
    repositories |= {name: value for name, value in found["repositories"].items() if value}
    assert repositories == chosen(table["repositories"], case)
    for role, cell in table["packages"].items():
        selinux = found["selinux_packages"].get(role, [])
        assert sorted({*found["packages"][role]}) == chosen(cell, case), role
        assert sorted({*selinux}) == sorted(cell.get("SELinux", [])), role
    # Of a version of which the table has more than the role asks for, such as 26.1.5 for 26.1, the beginning.
    engine = chosen(table["engine"], case)
    assert f"{engine}.".startswith(f"{found['engine']}." if found["engine"] else "")
    assert sorted(found["services"]) == chosen(table["services"], "distribution")
    assert {each["option"]: each["value"] for each in found["settings"]} == table["settings"]
    assert found["nginx_user"] == chosen(table["nginx_user"], case)
    assert found["nginx_default_site"] == chosen(table["nginx_default_site"], case)
    assert [found["apt_components"], found["apt_keyring"]] == table.get("apt", ["", found["apt_keyring"]])
    assert found["live_restore"] is (case == "distribution")


KNOWN = yaml.safe_load((ROOT / "roles/system/vars/main.yml").read_text())["system_known"]


def test_the_table_has_every_known_system(decided: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert sorted({found["system"] for found in decided.values()}) == sorted(KNOWN)


@pytest.mark.parametrize(
    ("distribution", "version", "major", "family", "nearest"),
    [
        ("Debian", "11.9", "11", "Debian", "Debian-12"),
        ("Debian", "testing/sid", "testing/sid", "Debian", "Debian-13"),
        ("Ubuntu", "25.10", "25", "Debian", "Ubuntu-26.04"),
        ("Ubuntu", "18.04", "18", "Debian", "Ubuntu-22.04"),
        ("Linux Mint", "22.1", "22", "Debian", "Debian-13"),
        ("Raspbian", "12", "12", "Debian", "Debian-12"),
        ("Fedora", "43", "43", "RedHat", "RedHat-10"),
        ("Alpine", "3.22.1", "3", "Alpine", ""),
    ],
)
def test_an_unknown_system_has_a_nearest_one(
    distribution: str, version: str, major: str, family: str, nearest: str
) -> None:
    facts = {
        "distribution": distribution,
        "distribution_version": version,
        "distribution_major_version": major,
        "os_family": family,
    }
    systems = plugin("filter/systems.py")
    assert systems.system_of(facts) not in KNOWN
    assert systems.nearest_system(facts, KNOWN) == nearest
