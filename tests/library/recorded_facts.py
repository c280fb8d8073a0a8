#!/usr/bin/python
"""Gives a host the facts that were recorded of another: what `setup` would gather there."""

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule({"facts": {"type": "dict", "required": True}}, supports_check_mode=True)
    module.exit_json(ansible_facts={f"ansible_{name}": value for name, value in module.params["facts"].items()})


if __name__ == "__main__":
    main()
