#!/usr/bin/python
"""Takes the lease that one deploy holds on a server, renews it, or gives it back.

A play that is killed runs neither `always` nor `rescue`, so a lock would stay for ever. A lease expires, and the next
run from the same controller takes it over sooner if its process is gone.

The lease is a line in `folder`/lease: "EXPIRES SINCE USER CONTROLLER PID STARTED", both times in seconds since 1970 by
this server's clock. `holder` is the last four.

Returned: `found`, what was there: `free`, `ours`, `expired`, `gone` (all taken now) or `held` (left alone); and
`lease`, what its line said: `expires`, `since`, `user`, `controller`, `pid`, `started`, `holder`; {} if there was none.

Runs on servers, so it supports Python 2.7 as well as 3.
"""

import errno
import fcntl
import os
import time

from ansible.module_utils.basic import AnsibleModule


def parse(line):
    """The lease of a line, {} if it is not one."""
    words = line.split()
    if len(words) != 6 or not (words[0].isdigit() and words[1].isdigit()):
        return {}
    lease = dict(zip(("user", "controller", "pid", "started"), words[2:]))
    return dict(lease, expires=int(words[0]), since=int(words[1]), holder=" ".join(words[2:]))


def judge(lease, holder, gone, now):
    """What a lease is to `holder`, who knows that the holder `gone` is gone."""
    if not lease:
        return "free"
    if lease["holder"] == holder:
        return "ours"
    if lease["holder"] == gone:
        return "gone"
    return "expired" if now >= lease["expires"] else "held"


def make(folder):
    """Create a folder that is missing."""
    try:
        os.makedirs(folder, 0o755)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


def write(path, line):
    """Replace a file by one of a single line, whole or not at all."""
    with open(path + ".new", "w") as file:
        file.write(line + "\n")
    os.rename(path + ".new", path)


def free_space(folder):
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize // 2**20


def main():
    module = AnsibleModule(
        {
            "folder": {"type": "path", "required": True},
            "holder": {"type": "str", "required": True},
            "minutes": {"type": "int", "default": 30},
            "gone": {"type": "str", "default": ""},
            "state": {"choices": ["taken", "free"], "default": "taken"},
        }
    )
    folder, holder = module.params["folder"], module.params["holder"]
    path = os.path.join(folder, "lease")
    try:
        make(os.path.join(folder, "releases"))
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        lease = {}
        if os.path.exists(path):
            with open(path) as file:
                lease = parse(file.read())
        now = int(time.time())
        found = judge(lease, holder, module.params["gone"], now)
        if module.params["state"] == "free":
            if found == "ours":
                os.remove(path)
        elif found != "held":
            since = lease["since"] if found == "ours" else now
            write(path, "%d %d %s" % (now + 60 * module.params["minutes"], since, holder))
    except EnvironmentError as error:
        full = error.errno == errno.ENOSPC
        why = "%d MB free. Remedy: make room" % free_space(folder) if full else error.strerror
        module.fail_json(msg="%s cannot be written to: %s." % (folder, why))
    module.exit_json(changed=False, found=found, lease=lease)


if __name__ == "__main__":
    main()
