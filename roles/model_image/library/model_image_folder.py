#!/usr/bin/python
"""Makes a folder for one run among those of this user's runs, and removes what runs that were killed left there.

Without a name it makes none, and only looks for builds that are under way.

Runs on servers too, so it is written for Python 2.7 and 3 alike.
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
    """The folder that has those of this user's runs.

    Containers see what is in it. On macOS they run in a virtual machine, which shares the home with them whatever
    it is made by; /var/tmp it may not, and then they see an empty folder instead.
    """
    if platform == "darwin":
        return os.path.join(home, "Library/Caches/slipway")
    return "/var/tmp/slipway-%d" % uid


def make(path):
    """Make a folder that only this user may enter; the same where it is there already."""
    try:
        os.makedirs(path, 0o700)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise FolderError("%s is not this user's own. Remedy: remove it." % path)


def remove_old(folder, now):
    """Remove what nothing was added to for a day; another run may be at the same."""
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
    """Make the folder `name`, each X at its end a random character, and return its path."""
    make(folder)
    remove_old(folder, now)
    if name.endswith(RANDOM):
        return tempfile.mkdtemp(prefix=name[: -len(RANDOM)], dir=folder)
    path = os.path.join(folder, name)
    make(path)
    return path


def building(folder, now):
    """The builds that were begun in the last hour and have not ended."""
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
