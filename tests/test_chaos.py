"""Changes and accidents while clients ask: each event with the prober around it, on the embedded host.

`make test` runs a short form. `make chaos` (CHAOS=full) asks more, takes every event by itself, interrupts deploys at
every stage, holds the service to its targets, and writes what it measured into docs/chaos.md.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from host import (
    CA,
    HOST,
    PORT,
    ROOT,
    PlaybookRun,
    ask,
    asked_again,
    containers,
    ids,
    leased,
    on_host,
    refused,
    release,
    reloads,
    run_playbook,
    served,
    served_certificate,
    wait_until_ready,
)
from prober import ANY, Outcome, Prober, Question, json_question, upload_question

FULL = os.environ.get("CHAOS") == "full"
only_full = pytest.mark.only_full
pytestmark = pytest.mark.usefixtures("first_release")

# Beside other checks on two cores everything takes longer.
LONGEST_GAP_SECONDS = 1.0 if FULL else 5.0

# What xor answers as it ships, and with its last activation replaced by a hard one.
SHIPPED, SHARP = "shipped", "sharp"
THREE = ROOT / "models/digits/examples/three.png"
QUESTIONS = [
    json_question(
        "rows",
        "/predict",
        {"X": "1 0|1 1"},
        {SHIPPED: {"labels": [[0.99844], [0.00218]]}, SHARP: {"labels": [[1.0], [0.0]]}},
    ),
    upload_question("upload", "/predict/digits", THREE, {ANY: {"answers": [{"digit": {"label": "3"}}]}}),
    json_question(
        "tensorflow serving",
        "/v1/models/xor:predict",
        {"instances": [[0, 1], [0, 0]]},
        {SHIPPED: {"predictions": [[0.99833], [0.00236]]}, SHARP: {"predictions": [[1.0], [0.0]]}},
    ),
    upload_question("upload of the article", "/predict", THREE, {ANY: [3, 0]}),
    Question("readiness", "GET", "/readyz", {ANY: {"status": "ready"}}),
]

TABLE: dict[str, Outcome] = {}
FIGURES: dict[str, str] = {}


def prober() -> Prober:
    size: dict[str, Any] = {"at_least": 500} if FULL else {"clients": 6, "pace": 0.2, "at_least": 150}
    return Prober(f"https://localhost:{PORT}", CA, QUESTIONS, [SHIPPED, SHARP], **size)


def enter(event: str, probe: Prober) -> Outcome:
    """Put what the clients saw into the table."""
    TABLE[event] = probe.outcome
    print(f"{event}: {probe.outcome}")
    return probe.outcome


def unnoticed(event: str, probe: Prober, reloads: int = 0, becomes: str = "") -> None:
    """Demand that no client noticed more than that its kept connection was closed, once a reload of nginx.

    In the end the version `becomes` must answer alone; by default one version must have answered all the while.
    """
    seen = enter(event, probe)
    assert set(seen.settled) == {becomes} if becomes else len(seen.versions) == 1, str(seen)
    assert (seen.failed, seen.wrong) == (0, 0), str(seen)
    assert seen.reconnected <= reloads * probe.kept_connections, str(seen)
    assert seen.gap < LONGEST_GAP_SECONDS, str(seen)


def note(what: str, seconds: float) -> None:
    """Put a duration into the table."""
    FIGURES[what] = f"{seconds:.1f} s"
    print(f"{what}: {seconds:.1f} s")


def hold_to(target: float, what: str, seconds: float) -> None:
    """Note a duration; `make chaos` holds it to its target."""
    note(what, seconds)
    assert not FULL or seconds < target, f"{what} took {seconds:.1f} s"


def changed(folder: Path, title: str = "Changed", sharp: bool = False) -> str:
    """A copy of models/ in which xor is another model: by its card, and where it is `sharp` by its answers too."""
    shutil.copytree(ROOT / "models", folder)
    card = folder / "xor/model.yml"
    card.write_text(card.read_text().replace("title: Exclusive or", f"title: {title}"))
    if sharp:
        architecture = folder / "xor/model.json"
        model = json.loads(architecture.read_text())
        model["config"][-1]["config"]["activation"] = "hard_sigmoid"
        architecture.write_text(json.dumps(model))
    return str(folder)


@pytest.fixture(scope="module")
def sharp_models(tmp_path_factory: pytest.TempPathFactory) -> str:
    return changed(tmp_path_factory.mktemp("sharp") / "models", sharp=True)


@pytest.fixture(scope="module")
def first_release(embedded: str) -> str:
    """The release that `make up` served: the models as they ship."""
    return release()


@pytest.fixture
def shipped(first_release: str) -> None:
    """The models as they ship, on two replicas, whatever a test before has left."""
    if release() != first_release or len(containers()) != 2:
        run_playbook("rollback", release=first_release)


PROVISIONING = ["nginx configuration change", "certificate renewal"]


@pytest.mark.parametrize("event", PROVISIONING if FULL else [" and ".join(PROVISIONING)])
def test_provisioning_is_not_noticed(event: str) -> None:
    certificate, variables = served_certificate(), dict[str, Any]()
    if "nginx" in event:
        variables["nginx_hsts_max_age"] = 300
    if "certificate" in event:
        days_left = int(ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) // 86400
        variables |= {"certificate_renew_days": days_left + 2, "certificate_valid_days": days_left + 60}
    before = reloads()
    with prober() as probe:
        run_playbook("provision", **variables)
    unnoticed(event, probe, reloads() - before)
    assert (ask("/models")[0].headers["Strict-Transport-Security"] == "max-age=300") == ("nginx" in event)
    assert (served_certificate()["serialNumber"] != certificate["serialNumber"]) == ("certificate" in event)


def test_a_changed_model_comes_into_service_unnoticed(sharp_models: str, shipped: None) -> None:
    if FULL:
        run_playbook("build", model_image_models=sharp_models)
    before, reloaded, old = ids(), reloads(), release()
    again = asked_again()
    with prober() as probe:
        start = time.monotonic()
        said = run_playbook("deploy", model_image_models=sharp_models)
        seconds = time.monotonic() - start
    unnoticed("redeploy with a changed model", probe, becomes=SHARP)
    assert release() != old and set(ids()) == set(before) and not set(ids().values()) & set(before.values())
    assert (reloads(), asked_again()) == (reloaded, again)
    note("redeploy with a changed model, while clients ask", seconds)
    FIGURES["shipped for it"] = said.partition("shipped ")[2].partition(")")[0] + ")"


def test_going_back_is_not_noticed() -> None:
    reloaded, releases = reloads(), served()
    again = asked_again()
    with prober() as probe:
        start = time.monotonic()
        run_playbook("rollback")
        seconds = time.monotonic() - start
    unnoticed("rollback", probe, becomes=SHIPPED)
    assert release() == releases[-2] and (reloads(), asked_again()) == (reloaded, again)
    note("rollback, while clients ask", seconds)


@only_full
def test_changing_the_release_is_quick(sharp_models: str) -> None:
    for what, target, playbook, variables in (
        ("redeploy of one changed small model, already built", 30, "deploy", {"model_image_models": sharp_models}),
        ("rollback", 20, "rollback", {}),
    ):
        start = time.monotonic()
        run_playbook(playbook, **variables)
        hold_to(target, what, time.monotonic() - start)


def test_going_back_to_what_is_not_there_is_refused() -> None:
    before, serves = ids(), release()
    said = refused("rollback", release="nowhere")
    assert "nowhere is not on slipway-check. Nothing was changed." in said and "Remedy" in said
    assert all(name in said for name in on_host("cd /var/lib/slipway/releases; basename --suffix .json *").split())
    assert (ids(), release()) == (before, serves)


def test_a_bad_release_gets_no_traffic() -> None:
    before, serves, reloaded = ids(), release(), reloads()
    image = containers()["model-server-1"]["Config"]["Image"]
    recipe = f"""FROM {image}
        USER 0
        RUN sed -i 's/"digit": "3"/"digit": "4"/' /models/digits/manifest.json
        USER 65534:65534"""
    on_host("docker build --quiet --tag slipway/model-server:bad -", recipe)
    with prober() as probe:
        said = refused("deploy", model_server_image="slipway/model-server:bad")
    unnoticed("bad release", probe)
    assert "digits: example three: digit should be 4, but is 3" in said and "log lines" in said and "Remedy" in said
    assert (ids(), release(), reloads()) == (before, serves, reloaded)


@only_full
def test_changed_settings_come_into_service_unnoticed(shipped: None) -> None:
    reloaded, old, image = reloads(), release(), containers()["model-server-1"]["Image"]
    again = asked_again()
    with prober() as probe:
        run_playbook("deploy", model_server_workers=2)
    unnoticed("settings change", probe)
    assert release() != old and (reloads(), asked_again()) == (reloaded, again)
    assert all("MODEL_SERVER_WORKERS=2" in c["Config"]["Env"] and c["Image"] == image for c in containers().values())


def test_of_two_deploys_the_second_stops_at_once(shipped: None) -> None:
    reloaded, old = reloads(), release()
    with prober() as probe:
        first = PlaybookRun("deploy", model_server_workers=2)
        first.wait_until(leased)
        start = time.monotonic()
        said = refused("deploy", model_server_workers=3)
        seconds = time.monotonic() - start
        assert first.process.poll() is None, "the first deploy ended before the second one"
        assert first.end() == 0, first.output[-5000:]
    unnoticed("two deploys at once", probe, becomes=SHIPPED)
    assert f"(process {first.process.pid}) since 2" in said and "remove /var/lib/slipway/lease" in said
    assert release() != old and reloads() == reloaded
    assert all("MODEL_SERVER_WORKERS=2" in container["Config"]["Env"] for container in containers().values())
    hold_to(20, "the second of two deploys at once stops after", seconds)


def test_deploys_go_on_behind_maintenance(first_release: str) -> None:
    run_playbook("maintenance", state="on")
    for accept, kind in ("*/*", "application/json"), ("text/html,*/*", "text/html"):
        answer, text = ask("/predict", b"{}", Accept=accept)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "120")
        assert answer.headers["Content-Type"].startswith(kind) and b"aintenance" in text
    run_playbook("rollback", release=first_release, model_server_replicas=1)
    assert ask("/models")[0].status == 503 and release() == first_release
    run_playbook("maintenance", state="off")
    with prober() as probe:
        pass
    unnoticed("after maintenance", probe, becomes=SHIPPED)


def test_a_single_replica_is_replaced_unnoticed(sharp_models: str, first_release: str) -> None:
    if release() != first_release or len(containers()) != 1:
        run_playbook("rollback", release=first_release, model_server_replicas=1)
    before, reloaded = ids(), reloads()
    again = asked_again()
    with prober() as probe:
        run_playbook("deploy", model_server_replicas=1, model_image_models=sharp_models)
    unnoticed("redeploy with a single replica", probe, becomes=SHARP)
    assert set(before) == set(ids()) == {"model-server-1"} and before != ids()
    assert release() != first_release and (reloads(), asked_again()) == (reloaded, again)


def building(deploy: PlaybookRun) -> None:
    deploy.wait_until(lambda: "TASK [model_image : Compile the models that changed]" in deploy.output)
    time.sleep(2)


def shipping(deploy: PlaybookRun) -> None:
    deploy.wait_until(lambda: "TASK [model_image : Load the image]" in deploy.output)


def replacing(deploy: PlaybookRun) -> None:
    deploy.wait_until(lambda: bool(on_host("ls /etc/nginx/out")))


Interruption = tuple[str, Callable[[PlaybookRun], None]]
INTERRUPTIONS: list[list[Interruption]] = (
    [[(signal, stage)] for signal in ("SIGINT", "SIGKILL") for stage in (building, shipping, replacing)]
    if FULL
    else [[("SIGINT", building), ("SIGKILL", replacing)]]
)


def described(interruptions: list[Interruption]) -> str:
    return ", ".join(f"{signal} while {stage.__name__}" for signal, stage in interruptions)


@pytest.mark.parametrize("interruptions", INTERRUPTIONS, ids=described)
def test_an_interrupted_deploy_is_finished_by_the_next(interruptions: list[Interruption], tmp_path: Path) -> None:
    old, reloaded, models = release(), reloads(), changed(tmp_path / "models", f"Changed at {time.time()}")
    with prober() as probe:
        for signal, stage in interruptions:
            deploy = PlaybookRun("deploy", model_image_models=models)
            stage(deploy)
            deploy.interrupt(signal)
            assert leased(), f"{signal} while {stage.__name__}: no lease is left; {deploy.output[-2000:]}"
        said = run_playbook("deploy", model_image_models=models)
    # A reload is due where the test before has left a single replica: from then on there are two.
    event = f"deploy interrupted by {described(interruptions)}, and finished by the next"
    unnoticed(event, probe, reloads() - reloaded, becomes=SHIPPED)
    assert f"(process {deploy.process.pid})" in said and "is gone: its lease was taken over" in said
    assert release() != old and len(containers()) == 2


def test_a_killed_replica_is_not_noticed_and_comes_back() -> None:
    before = containers()["model-server-1"]
    with prober() as probe:
        on_host(f"kill -KILL {before['State']['Pid']}")
        wait_until_ready(1)
    after = containers()["model-server-1"]
    assert (after["Id"], after["RestartCount"]) == (before["Id"], before["RestartCount"] + 1)
    unnoticed("one replica killed (SIGKILL)", probe)


def test_restarting_the_engine_is_not_noticed() -> None:
    before, engine = containers(), on_host("systemctl show --property MainPID docker")
    with prober() as probe:
        on_host("systemctl restart docker")
    assert on_host("systemctl show --property MainPID docker") != engine
    unnoticed("engine restarted", probe)
    after = containers()
    assert [after[name]["State"]["Pid"] for name in before] == [before[name]["State"]["Pid"] for name in before]


def test_a_killed_nginx_comes_back() -> None:
    pid = on_host("systemctl show --property MainPID --value nginx")
    with prober() as probe:
        start = time.monotonic()
        on_host(f"kill -KILL {pid}")
        probe.next_right_answer(timeout=30)
        seconds = time.monotonic() - start
    seen = enter("nginx killed (SIGKILL)", probe)
    assert seen.wrong == 0, str(seen)
    assert on_host("systemctl show --property MainPID --value nginx") not in (pid, "0")
    hold_to(10, "nginx killed, to the first right answer", seconds)


@only_full
def test_a_request_that_hits_the_memory_limit_ends_alone() -> None:
    run_playbook("deploy", model_server_memory="300m")
    before, pids = ids(), on_host("pgrep --full [g]unicorn | sort").split()
    # A second list in the body: such JSON becomes Python's lists, which take the most memory.
    rows = b'{"unused":[],"instances":[' + b"[0,1]," * 2_400_000 + b"[0,1]]}"
    with prober() as probe:
        answer, _ = ask("/v1/models/xor:predict", rows)
        wait_until_ready(1, 2)
    seen = enter("memory limit hit by one request", probe)
    assert answer.status == 502 and seen.wrong == 0, str(seen)
    assert set(pids) - set(on_host("pgrep --full [g]unicorn | sort").split()), "no process was killed"
    assert ids() == before


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Puts what is written all the time (logs, containers' states, releases) on a disk small enough to be filled."""
    folders = "/var/lib/docker/containers /var/log/nginx /var/lib/slipway"
    there = f"for folder in {folders}; do copy=/mnt/small$folder;"
    use_it = "systemctl restart docker; nginx -s reopen"
    on_host(
        "size=$(du --summarize --block-size 1 --total " + folders + " | tail -1 | cut -f 1);"
        " mkdir /mnt/small; mount -t tmpfs -o size=$((size + 4194304)) tmpfs /mnt/small;"
        f" {there} mkdir -p $(dirname $copy); cp -a $folder $copy; mount --bind $copy $folder; done; {use_it}"
    )
    wait_until_ready(1, 2)
    yield
    on_host(
        f"{there} umount --lazy $folder; rm -rf $folder/*; cp -a $copy/. $folder/; done;"
        f" umount --lazy /mnt/small; rmdir /mnt/small; {use_it}"
    )


@only_full
def test_a_full_disk_is_not_noticed(small_disk: None) -> None:
    serves, before = release(), ids()
    on_host('cat /dev/zero > /mnt/small/fill || test "$(stat --file-system --format %a /mnt/small)" = 0')
    with prober() as probe:
        said = refused("deploy", model_server_workers=2)
    unnoticed("disk full, and a deploy that fails for it", probe)
    assert "/var/lib/slipway cannot be written to: 0 MB free. Remedy: make room" in said
    on_host("rm /mnt/small/fill")
    assert (release(), ids()) == (serves, before)
    run_playbook("deploy", model_server_workers=2)
    assert release() != serves


def test_a_reboot_ends_in_right_answers_by_itself() -> None:
    with prober() as probe:
        start = time.monotonic()
        subprocess.run(["docker", "restart", HOST], check=True, capture_output=True)
        probe.next_right_answer(timeout=120)
        seconds = time.monotonic() - start
        wait_until_ready(1, 2)
    seen = enter("host reboot", probe)
    assert seen.wrong == 0, str(seen)
    hold_to(60, "host reboot, from the command to the first right answer", seconds)


@only_full
def test_twenty_deploys_leave_the_disk_flat(tmp_path: Path) -> None:
    def layers() -> tuple[int, int, int]:
        """Layers and images on the host, images on the builder."""
        images = "docker image ls --quiet slipway/model-server | sort -u | wc -l"
        here = subprocess.run(images, shell=True, capture_output=True, text=True, check=True).stdout
        return int(on_host("ls /var/lib/docker/overlay2 | wc -l")), int(on_host(images)), int(here)

    def megabytes() -> int:
        return int(on_host("du --summarize --one-file-system --block-size 1M /var/lib/docker | cut -f 1"))

    after: list[tuple[tuple[int, int, int], int]] = []
    with prober() as probe:
        for number in range(20):
            run_playbook("deploy", model_image_models=changed(tmp_path / str(number), f"Changed at {time.time()}"))
            after.append((layers(), megabytes()))
    unnoticed("twenty deploys, one after the other", probe, becomes=SHIPPED)
    assert after[9][0] == after[19][0], str(after)
    assert len(on_host("ls /var/lib/slipway/releases").split()) == 5
    FIGURES["/var/lib/docker on the host after ten and after twenty deploys"] = f"{after[9][1]} MB, {after[19][1]} MB"


MOVED, MOVED_PORT = "slipway-moved", 18444


@pytest.fixture(scope="module")
def two_servers() -> Iterator[tuple[str, ...]]:
    """Arguments of ansible-playbook by which there is another server, slipway-moved, which is bare at first."""
    inventory = ("--inventory", "tests/moved.yml")
    run_playbook("down", *inventory, "--limit", MOVED)
    yield inventory
    run_playbook("down", *inventory, "--limit", MOVED)


def test_a_service_moves_to_another_server_unnoticed(two_servers: tuple[str, ...]) -> None:
    certificate, reloaded = served_certificate(), reloads()
    with prober() as probe:
        run_playbook("move", *two_servers, old=HOST, new=MOVED)
    unnoticed("moved to another server", probe, reloads() - reloaded)
    # The old one sends every request on: its own containers may be gone.
    on_host("docker stop $(docker ps --quiet --filter label=slipway=model-server)")
    for port in PORT, MOVED_PORT:
        assert served_certificate(port) == certificate
        assert ask("/readyz", port=port)[0].status == 200
    for what in "cat history", "ls releases", "cat releases/*":
        assert on_host(f"cd /var/lib/slipway; {what}", host=MOVED) == on_host(f"cd /var/lib/slipway; {what}")
    run_playbook("rollback", *two_servers, "--limit", MOVED)
    on_host("docker start model-server-1 model-server-2")


def test_servers_after_the_first_that_fails_are_not_touched(two_servers: tuple[str, ...], tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text('[{"name": "Refuse", "ansible.builtin.fail": {"msg": "not on a Friday"}}]')
    look = "cat /var/lib/slipway/history; docker ps --quiet --no-trunc"
    before = on_host(look, host=MOVED)
    said = refused("deploy", *two_servers, model_server_workers=3, release_before_tasks=[str(bad)])
    assert "not on a Friday" in said and "Servers after this one were not touched." in said
    assert json.loads(on_host("tail -n 1 /var/lib/slipway/history"))["result"] == "failed"
    assert on_host(look, host=MOVED) == before
    assert not any(on_host("ls /var/lib/slipway/lease 2>/dev/null || true", host=host) for host in (HOST, MOVED))


@only_full
def test_what_was_measured_is_written_down(request: pytest.FixtureRequest) -> None:
    assert not request.session.testsfailed, "docs/chaos.md stays as it is: something above failed"
    engine = on_host("docker version --format '{{ .Server.Version }}'")
    lines = [
        f"Measured on {os.cpu_count()} {platform.machine()} cores, with Docker Engine {engine} in the embedded host.",
        "",
        "| Event | Requests | Failed | Wrong | Reconnected | Longest gap, ms |",
        "|---|---|---|---|---|---|",
        *(
            f"| {event} | {seen.requests} | {seen.failed} | {seen.wrong} | {seen.reconnected} | {seen.gap * 1000:.0f} |"
            for event, seen in TABLE.items()
        ),
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {figure} |" for what, figure in FIGURES.items()),
    ]
    page = ROOT / "docs/chaos.md"
    marked = re.compile(r"(?<=<!-- measured -->\n).*(?=<!-- /measured -->)", re.DOTALL)
    page.write_text(marked.sub(lambda _: "\n".join(lines) + "\n", page.read_text()))
