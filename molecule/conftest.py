"""What the tests of every scenario share: `play`, which runs Ansible against the scenario's host once more."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Outcome:
    """What a play came to: the tasks that changed something, the failure ("" = none), what was told."""

    changed: list[str]
    failure: str
    said: str


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Outcome]:
    """Runs roles on the scenario's hosts: play("nginx", "certificate", check=True, nginx_max_body_mb=1).

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
        changed, failure, said = [], "", []
        for task in (task for each in json.loads(process.stdout[start:])["plays"] for task in each["tasks"]):
            for result in task["hosts"].values():
                if result.get("changed"):
                    changed.append(task["task"]["name"])
                if result.get("action") == "ansible.builtin.debug" and "msg" in result:
                    said.append(str(result["msg"]))
                if result.get("failed") and not failure:
                    failure = " ".join(str(result.get(key, "")) for key in ("msg", "stderr"))
        assert process.returncode == 0 or failure, process.stdout + process.stderr
        return Outcome(changed, failure if process.returncode else "", "\n".join(said))

    return run
