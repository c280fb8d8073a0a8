"""A filter that finds what in the folder of models would be passed over in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def passed_over(files: Iterable[str], folders: Iterable[str]) -> list[str]:
    """Return a sentence, fact and remedy, for each thing in the folder of models that no model is made of.

    `files` are paths below that folder, `folders` the names of those right in it, hidden ones left out.
    """
    found = []
    files = sorted(files)
    for file in files:
        name = file.rpartition("/")[2]
        if "/" not in file:
            found.append(f"{file} lies beside the model folders: move it into a folder of its own")
        elif name == "model.yaml" and file.count("/") == 1:
            found.append(f"{file} is no card: rename it to model.yml")
    full = {file.partition("/")[0] for file in files}
    found += [f"{folder}/ has no model in it: add one, or remove the folder" for folder in sorted(set(folders) - full)]
    return found


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"passed_over": passed_over}
