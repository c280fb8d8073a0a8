"""What preflight.yml refuses of the variables that roles are given: wrong choices, and names that no role knows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from conftest import plugin
from host import ROOT

PREFLIGHT = yaml.safe_load((ROOT / "playbooks/preflight.yml").read_text())[-1]["vars"]["preflight_roles"]


def options(role: str) -> dict[str, dict[str, Any]]:
    """The arguments of a role that its entry point `assert` has a specification of."""
    specs = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text())["argument_specs"]
    found: dict[str, dict[str, Any]] = specs["assert"]["options"]
    return found


def test_each_misspelt_choice_is_refused(tmp_path: Path) -> None:
    choices = {name: role for role in PREFLIGHT for name, option in options(role).items() if "choices" in option}
    assert {"certificate_source", "docker_source", "nginx_source"} <= set(choices)
    hosts = {name: {"misspelt_role": role, name: "misspelt"} for name, role in choices.items()}
    hosts["none"] = {"misspelt_role": PREFLIGHT[0]}
    same = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": same}}))
    command = ["ansible-playbook", "--inventory", str(inventory), "--tags", "none", "tests/misspell.yml"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    failed = dict(re.findall(r"^(\w+) +: .*failed=(\d)", said, re.MULTILINE))
    assert failed == dict.fromkeys(choices, "1") | {"none": "0"}, said
    for name in choices:
        assert re.search(rf"value of {name} must be one of:", said), name


def test_unknown_names_are_refused_with_the_nearest() -> None:
    arguments = plugin("filter/arguments.py")
    known = [name for role in PREFLIGHT for name in options(role)]
    assert arguments.unknown_arguments([*known, "inventory_hostname", "modelling"], str(ROOT / "roles")) == []
    assert arguments.unknown_arguments(["model_server_replica", *known], str(ROOT / "roles")) == [
        "model_server_replica (did you mean model_server_replicas?)",
    ]
