#!/usr/bin/python
"""Returns what is on a server, as data: containers, images, releases, history, rotation. Changes nothing.

Returned under `state`:

- `engine`: whether the Docker Engine answers; without one, the next four are empty.
- `unenforced_limits`: what the engine cannot limit, of `memory`, `swap` and `processes`.
- `networks`: names of the engine's networks.
- `images`: tag -> `{model: hash}` of each image of slipway/model-server.
- `containers`: name -> `release`, `address` ("" if it has none) and `status`, of each model server.
- `serving`: the addresses to which nginx sends requests, without the spare one.
- `drain_folder`: where nginx looks for a file that keeps a model server out of rotation, "" before the first deploy.
- `out`: the addresses that such files keep out, those that nginx does not know included.
- `maintenance`: whether nginx answers every request with 503.
- `history`: with `folder`, the deploys, rollbacks and refused builds, oldest first.
- `releases`: with `folder`, id -> record of each release that can be served again.
- `health`: with `health: true`, how the server is: the containers that are `ready`, `nginx`,
  `certificate_days`, `disks` and the deploy `lease`.

Runs on servers, so it supports Python 2.7 as well as 3.
"""

import calendar
import json
import os
import re
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

NGINX = "/etc/nginx"
REPOSITORY = "slipway/model-server"
LABEL = "slipway=model-server"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# An engine that hangs does not answer for longer than this.
ENGINE_SECONDS = 60
# The words of the lease (module deploy_lease).
LEASE_WORDS = ("expires", "since", "user", "controller", "pid", "started")


class StateError(Exception):
    """Why the state cannot be read."""


def run(*command):
    """Return a command's exit code, output and error output."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        return 127, "", str(error)
    out, err = process.communicate()
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace").strip()


def docker(*command):
    """Return a docker command's output; StateError with the engine's message if it fails."""
    code, out, err = run_docker(*command)
    if code != 0:
        raise StateError("docker %s: %s" % (" ".join(command), err))
    return out


def run_docker(*command):
    code, out, err = run("timeout", str(ENGINE_SECONDS), "docker", *command)
    if code == 124:
        raise StateError(
            "docker %s: no answer in %d s. Remedy: see systemctl status docker." % (command[0], ENGINE_SECONDS)
        )
    return code, out, err


def inspect(kind, names):
    """What `docker inspect` says of those images or containers; of one that was just removed, nothing."""
    _, said, _ = run_docker(kind, "inspect", *names) if names else (0, "[]", "")
    return json.loads(said)


def read(path):
    """Return a file's text, "" if there is none."""
    if not os.path.exists(path):
        return ""
    with open(path, "rb") as file:
        return file.read().decode("utf-8", "replace")


def unenforced_limits(info):
    """What an engine cannot limit, by its `docker info` as JSON."""
    names = (("memory", "MemoryLimit"), ("swap", "SwapLimit"), ("processes", "PidsLimit"))
    return [name for name, field in names if not info.get(field)]


def models(image):
    """The models of an image: name -> hash, by its label "digits-0123456789ab xor-…"."""
    label = (image["Config"].get("Labels") or {}).get("slipway.models") or ""
    split = (entry.rpartition("-") for entry in label.split())
    return {name or version: version for name, _, version in split}


def container(found):
    """What the state has of a container, by its `docker inspect`."""
    networks = found["NetworkSettings"]["Networks"].values()
    return {
        "release": found["Config"]["Labels"].get("slipway.release", ""),
        "address": next((network["IPAddress"] for network in networks if network.get("IPAddress")), ""),
        "status": found["State"]["Status"],
    }


def first(pattern, text):
    """What a pattern's group first matches in a text, "" if nothing."""
    found = re.search(pattern, text, re.MULTILINE)
    return found.group(1) if found else ""


def serving(upstream):
    """The addresses in the group of all model servers, by the text of upstream.conf."""
    group = re.search(r"^upstream model_servers \{(.*?)^\}", upstream, re.DOTALL | re.MULTILINE)
    return re.findall(r"^ *server ([0-9.]+):[0-9]+ max_fails", group.group(1), re.MULTILINE) if group else []


def drain_folder(rotation):
    """The folder of the files that keep a model server out of rotation, by the text of rotation.conf."""
    return os.path.dirname(first(r"\(-f ([^)]+)\)", rotation))


def out(folder):
    """The addresses out of rotation: a file is named as one, with its port."""
    return [name.partition(":")[0] for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []


def history(text):
    """The lines of the history as data; one that is cut off is left out."""
    return [line for line in map(parse, text.splitlines()) if line]


def parse(text):
    """The object in a text of JSON, {} if it is not one."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def releases(folder):
    """The recorded releases, id -> record."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, name) for name in names if name.endswith(".json")]
    records = [(path, parse(read(path))) for path in paths]
    for path, record in records:
        if "id" not in record or "image" not in record:
            raise StateError("%s is not a release's record. Remedy: remove it." % path)
    return {record["id"]: record for _, record in records}


def engine_state():
    """What the engine has; nothing if none answers."""
    state = {"engine": False, "unenforced_limits": [], "networks": [], "images": {}, "containers": {}}
    code, said, _ = run_docker("info", "--format", "{{ json . }}")
    info = json.loads(said) if code == 0 else {}
    if info.get("ServerVersion"):
        tags = docker("image", "ls", "--format", "{{ .Repository }}:{{ .Tag }}", REPOSITORY).split()
        for image in inspect("image", tags):
            state["images"].update((tag, models(image)) for tag in image["RepoTags"] if tag in tags)
        ids = docker("ps", "--all", "--quiet", "--no-trunc", "--filter", "label=" + LABEL).split()
        for found in inspect("container", ids):
            state["containers"][found["Name"].lstrip("/")] = container(found)
        state["engine"] = True
        state["unenforced_limits"] = unenforced_limits(info)
        state["networks"] = docker("network", "ls", "--format", "{{ .Name }}").split()
    return state


def days_left(path):
    """The days until a certificate expires, None if it cannot be read."""
    code, said, _ = run("openssl", "x509", "-noout", "-enddate", "-in", path)
    return days_until(said, time.time()) if code == 0 else None


def days_until(line, now):
    """The days from `now` until the date in "notAfter=Feb  8 21:04:05 2029 GMT", whatever the locale."""
    month, day, clock, year = line.strip().partition("=")[2].split()[:4]
    hours, minutes, seconds = clock.split(":")
    fields = (year, MONTHS.index(month) + 1, day, hours, minutes, seconds)
    return int((calendar.timegm([int(field) for field in fields]) - now) // 86400)


def lease(line, now):
    """The lease of a deploy under way, {} if there is none."""
    words = line.split()
    under_way = len(words) == len(LEASE_WORDS) and words[0].isdigit() and int(words[0]) > now
    return dict(zip(LEASE_WORDS, words)) if under_way else {}


def disk(path):
    """How full the disk at a path is: `used` in percent, `free` in bytes."""
    found = os.statvfs(path)
    used = found.f_blocks - found.f_bfree
    return {
        "path": path,
        "used": 100 * used // max(1, used + found.f_bavail),
        "free": found.f_bavail * found.f_frsize,
    }


def ready(containers, port):
    """The names of the containers that answer every example of every model."""

    def answers(address):
        url = "http://%s:%s/readyz" % (address, port)
        return (
            run("curl", "--noproxy", "*", "--silent", "--fail", "--max-time", "10", "--output", "/dev/null", url)[0]
            == 0
        )

    return [name for name, found in sorted(containers.items()) if found["address"] and answers(found["address"])]


def health(state, folder):
    """How the server is."""
    port = first(r"^ *server [0-9.]+:([0-9]+) max_fails", read(os.path.join(NGINX, "upstream.conf")))
    certificate = first(r"^ *ssl_certificate +([^;]+);", read(os.path.join(NGINX, "nginx.conf")))
    _, root, _ = run_docker("info", "--format", "{{ .DockerRootDir }}")
    places = ["/"] + ([root.strip()] if os.path.isdir(root.strip()) else [])
    return {
        "ready": ready(state["containers"], port),
        "nginx": run("systemctl", "is-active", "nginx")[1].strip(),
        "certificate_days": days_left(certificate),
        "disks": [disk(place) for place in places],
        "lease": lease(read(os.path.join(folder, "lease")), time.time()),
    }


def main():
    module = AnsibleModule(
        {
            "folder": {"type": "path"},
            "health": {"type": "bool", "default": False},
        },
        required_if=[("health", True, ["folder"])],
        supports_check_mode=True,
    )
    folder = module.params["folder"]
    try:
        drained = drain_folder(read(os.path.join(NGINX, "rotation.conf")))
        state = engine_state()
        state.update(
            serving=serving(read(os.path.join(NGINX, "upstream.conf"))),
            drain_folder=drained,
            maintenance=os.path.exists(os.path.join(NGINX, "maintenance")),
            out=out(drained),
        )
        if folder:
            state["history"] = history(read(os.path.join(folder, "history")))
            state["releases"] = releases(os.path.join(folder, "releases"))
        if module.params["health"]:
            state["health"] = health(state, folder)
    except (StateError, EnvironmentError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, state=state)


if __name__ == "__main__":
    main()
