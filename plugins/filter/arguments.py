"""A filter that finds misspelt role arguments."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import yaml

# What roles set for each other.
RESULTS = {
    "model_image_base_id",
    "model_image_base_name",
    "model_image_name",
    "model_image_versions",
    "model_server_asked",
    "system_known",
    "system_name",
    "system_vars_files",
}


def unknown_arguments(names: list[str], roles: str) -> list[str]:
    """Return the variables among `names` that have a role's prefix but appear in no argument spec below `roles`.

    Each is followed by the argument with the most similar name.
    """
    known: set[str] = set(RESULTS)
    prefixes = []
    for specs in sorted(Path(roles).glob("*/meta/argument_specs.yml")):
        prefixes.append(f"{specs.parent.parent.name}_")
        for entry in yaml.safe_load(specs.read_text())["argument_specs"].values():
            known |= set(entry.get("options", {}))
    found = []
    for name in sorted(set(names) - known):
        if name.startswith(tuple(prefixes)):
            near = difflib.get_close_matches(name, sorted(known - RESULTS), n=1)
            found.append(name + (f" (did you mean {near[0]}?)" if near else ""))
    return found


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"unknown_arguments": unknown_arguments}
