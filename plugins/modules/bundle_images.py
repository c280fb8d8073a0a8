#!/usr/bin/python
"""Saves images of this machine's engine into one compressed archive, which `docker load` reads."""

import gzip
import shutil
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule


class SaveError(Exception):
    """What the engine says of images that it did not save."""


def save(images, path):
    with gzip.open(path, "wb", compresslevel=1) as target, tempfile.TemporaryFile() as errors:
        with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE, stderr=errors) as saver:
            shutil.copyfileobj(saver.stdout, target, 1 << 20)
        if saver.returncode != 0:
            errors.seek(0)
            raise SaveError(errors.read().decode(errors="replace").strip())


def main():
    module = AnsibleModule(
        {
            "images": {"type": "list", "elements": "str", "required": True},
            "path": {"type": "path", "required": True},
        }
    )
    try:
        save(module.params["images"], module.params["path"])
    except (SaveError, OSError) as error:
        module.fail_json(msg=f"docker save: {error}. Remedy: see that there is space, and run the same again.")
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
