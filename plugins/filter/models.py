"""A filter that finds files and folders of models/ that would be ignored silently."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def passed_over(files: Iterable[str], folders: Iterable[str]) -> list[str]:
    """Return a fact and its remedy for each file or folder that no model would be built from.

    `files` are paths relative to models/; `folders` are the names of the folders directly in it.
    """
    found = []
    files = sorted(files)
    for file in files:
        name = file.rpartition("/")[2]
        if "/" not in file:
            found.append(f"{file} lies beside the model folders: move it into a folder of its own")
        elif name == "model.yaml" and file.count("/") == 1:
            found.append(f"{file} is ignored: rename it to model.yml")
    full = {file.partition("/")[0] for file in files}
    found += [f"{folder}/ is empty: add a model or remove the folder" for folder in sorted(set(folders) - full)]
    return found


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"passed_over": passed_over}
