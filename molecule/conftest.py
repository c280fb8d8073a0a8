"""What the tests of every scenario share: which systems a test is for, and running Ansible once more."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

DISTRO = os.environ.get("MOLECULE_DISTRO") or "debian13"
SYSTEMS = {DISTRO, "debian" if DISTRO.startswith(("debian", "ubuntu")) else "rpm"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only_on(system): debian, rpm, or a value of MOLECULE_DISTRO")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("only_on"):
        if mark.args[0] not in SYSTEMS:
            pytest.skip(f"only on {mark.args[0]}")


@dataclass
class Outcome:
    """What a play came to: the tasks that changed something, the failure ("" = none), what was told."""

    changed: list[str]
    failure: str
    said: str


@pytest.fixture
def run_roles(tmp_path: Path) -> Callable[..., Outcome]:
    """Runs roles on the scenario's hosts: run_roles("nginx", "certificate", check=True, nginx_max_body_mb=1).

    A role may be "role/entry point". `check` asks what would change; `arguments` are ansible-playbook's own.
    """

    def run(*roles: str, check: bool = False, arguments: tuple[str, ...] = (), **variables: object) -> Outcome:
        tasks = [
            {
                "name": f"Include {role}",
                "ansible.builtin.include_role": {
                    "name": role.partition("/")[0],
                    "tasks_from": role.partition("/")[2] or "main",
                },
            }
            for role in roles
        ]
        playbook = tmp_path / "playbook.yml"
        playbook.write_text(json.dumps([{"hosts": "all", "tasks": tasks}]))
        command = [
            *("ansible-playbook", "--inventory", os.environ["MOLECULE_INVENTORY_FILE"]),
            *(
                "--extra-vars",
                json.dumps(variables),
                *(("--check", "--diff") if check else ()),
                *arguments,
                str(playbook),
            ),
        ]
        environment = os.environ | {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        start = process.stdout.find("{")
        assert start >= 0, process.stdout + process.stderr
        report, _ = json.JSONDecoder().raw_decode(process.stdout, start)
        changed, failure, said = [], "", []
        for task in (task for each in report["plays"] for task in each["tasks"]):
            for result in task["hosts"].values():
                if result.get("changed"):
                    changed.append(task["task"]["name"])
                if result.get("action") == "ansible.builtin.debug" and "msg" in result:
                    said.append(str(result["msg"]))
                if result.get("failed") and not failure:
                    results = [result, *(item for item in result.get("results", []) if item.get("failed"))]
                    failure = " ".join(str(each.get(key, "")) for each in results for key in ("msg", "stderr"))
        assert process.returncode == 0 or failure, process.stdout + process.stderr
        return Outcome(changed, failure if process.returncode else "", "\n".join(said))

    return run


@pytest.fixture
def python27(tmp_path: Path) -> tuple[str, ...]:
    """Gives ansible-playbook's arguments for a second pass under Python 2.7, without packages and firewall.

    The dnf module runs in Python 3 alone, and firewalld's bindings for Python 2.7 exist on CentOS 7 alone.
    """
    hosts = yaml.safe_load(Path(os.environ["MOLECULE_INVENTORY_FILE"]).read_text())["all"]["hosts"]
    inventory = tmp_path / "python27.yml"
    variables = {"ansible_python_interpreter": "/usr/bin/python2.7"}
    inventory.write_text(json.dumps({"all": {"hosts": dict.fromkeys(hosts, variables)}}))
    return ("--inventory", str(inventory), "--skip-tags", "packages,firewall")
