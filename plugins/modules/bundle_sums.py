#!/usr/bin/python
"""Verifies the checksums of an offline bundle as `sha256sum --check` does, or writes them (`write`).

Runs on the operator's machine, which may lack sha256sum.
"""

import hashlib
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def sum_of(path):
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()


def files_in(folder):
    """All its files except the checksums, as relative paths."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if str(path) != SUMS)


def write(folder):
    """Write the checksums of all files and return the files' total size in bytes."""
    files = files_in(folder)
    (folder / SUMS).write_text("".join(f"{sum_of(folder / file)}  ./{file}\n" for file in files))
    return sum((folder / file).stat().st_size for file in files)


def damage(folder):
    """Return a line for each damaged or missing file; none if the bundle is intact."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [f"{SUMS}: {getattr(error, 'strerror', error)}"]
    found = [] if lines else [f"{SUMS}: no sums in it"]
    for number, line in enumerate(lines, start=1):
        match = LINE.fullmatch(line)
        if not match:
            found.append(f"{SUMS}: line {number} is no sum")
            continue
        try:
            right = sum_of(folder / match[2]) == match[1]
        except OSError as error:
            found.append(f"{match[2]}: {error.strerror}")
            continue
        if not right:
            found.append(f"{match[2]}: FAILED")
    return found


def main():
    module = AnsibleModule({"path": {"type": "path", "required": True}, "write": {"type": "bool", "default": False}})
    folder = Path(module.params["path"])
    if not module.params["write"]:
        module.exit_json(changed=False, damage=damage(folder))
    try:
        module.exit_json(changed=True, bytes=write(folder))
    except OSError as error:
        module.fail_json(msg=f"{folder / SUMS}: {error}. Remedy: see that there is space, and run the same again.")


if __name__ == "__main__":
    main()
