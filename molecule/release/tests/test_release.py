"""The role release on a host that has an engine, nginx and the image already."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

LEASE = "/var/lib/slipway/lease"
RunRoles = Callable[..., Any]


@pytest.fixture
def image(host: Host) -> str:
    """The image that the scenario has shipped."""
    return host.check_output("docker inspect --format '{{.Config.Image}}' model-server-1")


def history(host: Host) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.check_output("cat /var/lib/slipway/history").splitlines()]


def serving(host: Host) -> str:
    """The release of both replicas, and the one that the history ends with."""
    labels = host.check_output(
        "docker inspect --format '{{index .Config.Labels \"slipway.release\"}}' model-server-1 model-server-2"
    ).split()
    assert labels[0] == labels[1] == [line["release"] for line in history(host) if line["result"] == "served"][-1]
    return labels[0]


def derived(host: Host, image: str, tag: str) -> str:
    """Another image of the same content."""
    name = f"slipway/model-server:{tag}"
    host.check_output(f"printf 'FROM {image}\\nLABEL n={tag}\\n' | docker build --quiet --tag {name} -")
    return name


def test_the_history_says_who_served_what_when(host: Host, image: str) -> None:
    (line,) = history(host)
    assert (line["action"], line["result"]) == ("deploy", "served")
    assert line["who"].endswith("@" + socket.gethostname())
    assert line["time"].startswith("20") and line["git"] and line["seconds"] >= 0
    record = json.loads(host.check_output(f"cat /var/lib/slipway/releases/{line['release']}.json"))
    assert (record["id"], record["image"]) == (line["release"], image)
    assert sorted(record["models"]) == ["digits", "digits_even", "wine", "xor"]
    assert line["changes"]["added"] == sorted(record["models"])
    assert not host.file(LEASE).exists


def test_status_says_what_serves_and_how_it_is(host: Host, run_roles: RunRoles) -> None:
    release = serving(host)
    host.check_output("docker stop --time 1 model-server-2 && touch /etc/nginx/maintenance")
    try:
        outcome = run_roles("release/status", model_server_workers=2)
    finally:
        host.check_output("docker start model-server-2 && rm /etc/nginx/maintenance")
    assert outcome.changed == []
    for said in (
        f"release {release} serves since 20",
        f"model-server-1 at 172.16.239.10: release {release}, running, ready",
        f"model-server-2 at no address: release {release}, exited, not ready",
        "nginx: active, in maintenance",
        "certificate: 819 days left",
        "disk /var/lib/docker: ",
        "this folder: makes another release, ",
    ):
        assert said in outcome.said
    assert "this folder: makes the same release" in run_roles("release/status").said


def holder(pid: int, started: str, controller: str = "") -> str:
    here = f"{socket.gethostname()}/{uuid.getnode():012x}"
    return f"somebody {controller or here} {pid} {started}"


def own_start() -> str:
    return Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]


@pytest.mark.parametrize(
    ("left", "minutes", "taken"),
    [
        (holder(os.getpid(), own_start()), 10, False),
        (holder(os.getpid(), "1"), 10, True),
        (holder(1, "1", "elsewhere"), 10, False),
        (holder(1, "1", f"{socket.gethostname()}/0"), 10, False),
        (holder(1, "1", "elsewhere"), -1, True),
    ],
    ids=["alive here", "gone here", "elsewhere", "elsewhere, of the same name", "elsewhere, expired"],
)
def test_a_lease_is_taken_over_only_from_the_dead(
    host: Host, run_roles: RunRoles, left: str, minutes: int, taken: bool
) -> None:
    now = int(time.time())
    host.check_output(f"echo '{now + 60 * minutes} {now - 100} {left}' > {LEASE}")
    try:
        outcome = run_roles("release/lease")
        line = host.file(LEASE).content_string
    finally:
        host.check_output(f"rm {LEASE}")
    if taken:
        assert outcome.failure == ""
        assert "somebody" not in line
        assert "its lease was taken over" in outcome.said and "by somebody from" in outcome.said
    else:
        assert all(part in outcome.failure for part in ("by somebody from", "since 20", f"remove {LEASE}"))
        assert "somebody" in line


def test_a_release_can_be_gone_back_to_and_old_ones_are_removed(host: Host, run_roles: RunRoles, image: str) -> None:
    first = serving(host)
    stranger = "docker run --detach --name stranger"
    settings = {"model_image_name": derived(host, image, "second"), "release_keep": 2}
    assert run_roles("release", **settings).failure == ""
    second = serving(host)
    assert second != first
    assert run_roles("release", **settings).changed == []

    assert run_roles("release/rollback").failure == ""
    assert serving(host) == first
    assert run_roles("release/rollback", release_target=second).failure == ""
    assert serving(host) == second
    refused = run_roles("release/rollback", release_target="0000")
    assert refused.changed == [] and "0000 is not on slipway-release" in refused.failure
    assert all(release in refused.failure for release in (first, second))

    # Only what serves and what served before is kept now. An image in use can't be removed: that is no reason to fail.
    used, third_image = derived(host, image, "used"), derived(host, image, "third")
    host.check_output(f"{stranger} {used} sleep 1000")
    assert run_roles("release", model_image_name=third_image, release_keep=2).failure == ""
    third = serving(host)
    records = host.check_output("ls /var/lib/slipway/releases").split()
    assert sorted(records) == sorted(f"{release}.json" for release in (second, third))
    host.check_output("docker rm --force stranger")
    assert run_roles("release", model_image_name=third_image, model_server_workers=2, release_keep=2).failure == ""
    images = host.check_output("docker image ls --format '{{.Tag}}' slipway/model-server").split()
    assert images == ["third"]
    assert "No release" not in run_roles("release/rollback").failure
    assert serving(host) == third


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address that takes notifications, and what came."""
    messages: list[dict[str, Any]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook", messages
        server.shutdown()


def test_hooks_run_and_the_team_is_told(
    host: Host, run_roles: RunRoles, tmp_path: Path, received: tuple[str, list[dict[str, Any]]]
) -> None:
    url, messages = received
    (image,) = {
        line.split()[1] for line in host.check_output("docker ps --format '{{.Names}} {{.Image}}'").splitlines()
    }
    before, after, bad = (tmp_path / name for name in ("before.yml", "after.yml", "bad.yml"))
    task = '[{"name": "Leave a mark", "ansible.builtin.command": "touch /tmp/%s-{{ model_server_asked.id }}"}]'
    before.write_text(task % "before")
    after.write_text(task % "after")
    bad.write_text('[{"name": "Refuse", "ansible.builtin.fail": {"msg": "not on a Friday"}}]')
    old = serving(host)
    containers = host.check_output("docker ps --quiet --no-trunc")

    settings = {"model_image_name": image, "model_server_max_body_mb": 7, "release_notification_url": url}
    outcome = run_roles("release", release_before_tasks=[str(before), str(bad)], **settings)
    assert outcome.failure.startswith("not on a Friday")
    assert host.check_output("docker ps --quiet --no-trunc") == containers
    assert history(host)[-1]["result"] == messages[-1]["result"] == "failed"
    assert not host.file(LEASE).exists

    outcome = run_roles("release", release_before_tasks=[str(before)], release_after_tasks=[str(after)], **settings)
    assert outcome.failure == ""
    new = serving(host)
    assert new != old
    assert host.file(f"/tmp/before-{new}").exists and host.file(f"/tmp/after-{new}").exists
    assert messages[-1] == history(host)[-1] | {"host": "slipway-release"}
    assert (messages[-1]["release"], messages[-1]["result"]) == (new, "served")
    assert len(messages) == 2

    # Nobody listens: no reason to fail. Nothing new: nobody is told.
    settings["release_notification_url"] = "http://127.0.0.1:9/"
    assert run_roles("release", **(settings | {"model_server_max_body_mb": 8})).failure == ""
    assert (
        run_roles("release", **(settings | {"model_server_max_body_mb": 8, "release_before_tasks": [str(bad)]})).changed
        == []
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"release_keep": 1}, "release_keep=1"),
        ({"release_after_tasks": ["/nowhere/after.yml"]}, "/nowhere/after.yml: there is no such file"),
    ],
)
def test_a_wrong_set_up_is_refused_before_anything_changes(
    run_roles: RunRoles, variables: dict[str, Any], message: str
) -> None:
    outcome = run_roles("release", model_image_name="slipway/model-server:none", **variables)
    assert message in outcome.failure and "Remedy" in outcome.failure
    assert outcome.changed == []
