#!/usr/bin/python
"""Creates the working folder of a run, and removes what killed runs left behind a day ago or more.

Without a name it creates nothing and only lists the builds in progress.

Runs on servers too, so it supports Python 2.7 as well as 3.
"""

import errno
import os
import shutil
import stat
import sys
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule

HOUR = 3600
DAY = 24 * HOUR
RANDOM = "XXXXXX"


class FolderError(Exception):
    """Why no folder can be made."""


def folder_of_all(platform, home, uid):
    """Return the parent folder of this user's runs, from which containers mount what they need.

    On macOS containers run in a virtual machine. Every kind of it shares the home; where /var/tmp is not shared,
    containers would see an empty folder.
    """
    if platform == "darwin":
        return os.path.join(home, "Library/Caches/slipway")
    return "/var/tmp/slipway-%d" % uid


def make(path):
    """Create a folder that only this user can enter; one that exists must be such a folder."""
    try:
        os.makedirs(path, 0o700)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise FolderError("%s is not this user's own. Remedy: remove it." % path)


def remove_old(folder, now):
    """Remove what has not changed for a day; another run may be doing the same."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        try:
            if now - os.lstat(path).st_mtime <= DAY:
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


def make_for_run(folder, name, now):
    """Create the folder `name`, with each X at its end replaced by a random character, and return its path."""
    make(folder)
    remove_old(folder, now)
    if name.endswith(RANDOM):
        return tempfile.mkdtemp(prefix=name[: -len(RANDOM)], dir=folder)
    path = os.path.join(folder, name)
    make(path)
    return path


def building(folder, now):
    """Return the folders of builds that began within the last hour and have not ended."""
    if not os.path.isdir(folder):
        return []
    found = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.startswith("build-")]
    return [path for path in found if os.path.isdir(path) and now - os.lstat(path).st_mtime < HOUR]


def main():
    module = AnsibleModule({"name": {"type": "str"}, "parent": {"type": "path"}})
    name = module.params["name"]
    folder = module.params["parent"] or folder_of_all(sys.platform, os.path.expanduser("~"), os.geteuid())
    try:
        if name:
            module.exit_json(changed=True, path=make_for_run(folder, name, time.time()))
        module.exit_json(changed=False, building=building(folder, time.time()))
    except (FolderError, EnvironmentError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
