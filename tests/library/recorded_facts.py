#!/usr/bin/python
"""Gives a host the facts that a file of tests/facts has of another: what `setup` would gather there."""

from pathlib import Path

import yaml
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule({"path": {"type": "path", "required": True}}, supports_check_mode=True)
    file = yaml.safe_load(Path(module.params["path"]).read_text())
    facts = file["recorded"] | file["filled_in_by_hand"]
    module.exit_json(ansible_facts={f"ansible_{name}": value for name, value in facts.items()})


if __name__ == "__main__":
    main()
