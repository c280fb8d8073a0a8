#!/usr/bin/python
"""Packs the sources of an image into one archive (`sources`), and unpacks it on the builder (`unpack_to`).

There it adds the first of `ca_files` that exists, because builds trust what the builder trusts.

It uses Python's tarfile, because the options for owners, modes and names differ between tar programs.

Runs on servers too, so it supports Python 2.7 as well as 3.
"""

import os
import posixpath
import shutil
import tarfile

from ansible.module_utils.basic import AnsibleModule

CA_FILE = "app/ca-certificates.crt"  # where app/Dockerfile looks for it


class SourcesError(Exception):
    """Why an image cannot be built of these sources."""


def normal(member):
    """Make a member readable for any user and drop its owner; return None for what is not a source."""
    name = posixpath.basename(member.name)
    if name == "__pycache__" or name.startswith("."):
        return None
    member.mode |= 0o555 if member.isdir() or member.mode & 0o111 else 0o444
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def pack(path, sources):
    """Write the archive: the names in a source's `what` go from its folder `from` to its folder `to`."""
    with tarfile.open(path, "w") as archive:
        for source in sources:
            folder = tarfile.TarInfo(source["to"])
            folder.type = tarfile.DIRTYPE
            folder.mode = 0o755
            archive.addfile(folder)
            for name in source["what"]:
                target = posixpath.normpath(posixpath.join(source["to"], name))
                archive.add(os.path.join(source["from"], name), target, filter=normal)


def unpack(path, folder, ca_files):
    """Unpack an archive that `pack` wrote, with its modes whatever this user's umask, and add the CA file."""
    with tarfile.open(path) as archive:
        archive.extraction_filter = lambda member, _: member  # Python 3.14 would change modes
        archive.extractall(folder)
    there = [name for name in ca_files if os.path.isfile(name)]
    if not there:
        raise SourcesError(
            "No CA file is at %s. Remedy: name the builder's with model_image_ca_file." % " or ".join(ca_files)
        )
    target = os.path.join(folder, CA_FILE)
    shutil.copyfile(there[0], target)
    os.chmod(target, 0o644)


def main():
    source = {
        "to": {"type": "str", "required": True},
        "from": {"type": "str", "required": True},
        "what": {"type": "list", "elements": "str", "required": True},
    }
    module = AnsibleModule(
        {
            "path": {"type": "path", "required": True},
            "sources": {"type": "list", "elements": "dict", "options": source},
            "unpack_to": {"type": "path"},
            "ca_files": {"type": "list", "elements": "path"},
        },
        required_one_of=[("sources", "unpack_to")],
        mutually_exclusive=[("sources", "unpack_to")],
        required_together=[("unpack_to", "ca_files")],
    )
    path = module.params["path"]
    try:
        if module.params["sources"]:
            pack(path, module.params["sources"])
        else:
            unpack(path, module.params["unpack_to"], module.params["ca_files"])
    except SourcesError as error:
        module.fail_json(msg=str(error))
    except (EnvironmentError, tarfile.TarError) as error:
        module.fail_json(msg="%s: %s. Remedy: see that there is space, and run the same again." % (path, error))
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
