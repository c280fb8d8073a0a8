#!/usr/bin/python
"""Packs the sources of an image into one archive (`sources`), and unpacks it on the builder (`unpack_to`).

It uses Python's tarfile, because the options for owners, modes and names differ between tar programs.

Runs on servers too, so it supports Python 2.7 as well as 3.
"""

import os
import posixpath
import tarfile

from ansible.module_utils.basic import AnsibleModule


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


def unpack(path, folder):
    """Unpack an archive that `pack` wrote: modes as they are in there, whatever this user's umask."""
    with tarfile.open(path) as archive:
        archive.extraction_filter = lambda member, _: member  # Python 3.14 would change modes
        archive.extractall(folder)


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
        },
        required_one_of=[("sources", "unpack_to")],
        mutually_exclusive=[("sources", "unpack_to")],
    )
    path = module.params["path"]
    try:
        if module.params["sources"]:
            pack(path, module.params["sources"])
        else:
            unpack(path, module.params["unpack_to"])
    except (EnvironmentError, tarfile.TarError) as error:
        module.fail_json(msg="%s: %s. Remedy: see that there is space, and run the same again." % (path, error))
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
