#!/usr/bin/python
"""Waits until a model container has answered every example of every model rightly: GET /readyz.

Returned: `ready`; where it is not, `why`, and `log`, the container's last lines.

Runs on servers, so it supports Python 2.7 as well as 3.
"""

import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

INTERVAL_SECONDS = 0.2
ANSWER_SECONDS = 10
# A container that has ended so often since the gate began does not start.
RESTARTS = 3


def said(*command):
    """A command's output and error output, whatever its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return process.communicate()[0].decode("utf-8", "replace")


def restarts(container):
    count = said("docker", "inspect", "--format", "{{ .RestartCount }}", container).strip()
    return int(count) if count.isdigit() else 0


def ask(url):
    """The status (0 for no answer) and the body."""
    body, _, status = said(
        "curl", "--noproxy", "*", "--silent", "--max-time", str(ANSWER_SECONDS), "--write-out", "\n%{http_code}", url
    ).rpartition("\n")
    return int(status or 0), body.strip()


def wait(url, seconds, ask, restarts, clock, sleep):
    """Return why it is not ready, "" if it is."""
    before, end = restarts(), clock() + seconds
    while True:
        status, body = ask(url)
        if status == 200:
            return ""
        if status == 503:  # the app's own verdict: another try would not help
            return body
        if restarts() - before >= RESTARTS:
            return "it ends as soon as it starts"
        if clock() >= end:
            return "it gives no answer in %d s" % seconds
        sleep(INTERVAL_SECONDS)


def main():
    module = AnsibleModule(
        {
            "container": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "seconds": {"type": "int", "required": True},
        }
    )
    container = module.params["container"]
    url = "http://%s:%d/readyz" % (module.params["address"], module.params["port"])
    try:
        why = wait(url, module.params["seconds"], ask, lambda: restarts(container), time.time, time.sleep)
        log = said("docker", "logs", "--tail", "20", container) if why else ""
    except EnvironmentError as error:
        module.fail_json(msg="%s: the gate needs curl and docker" % error)
    module.exit_json(changed=False, ready=not why, why=why, log=log.rstrip())


if __name__ == "__main__":
    main()
