"""The role model_server on a host that has an engine and nginx already."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest
from testinfra.host import Host

ADDRESSES = {"model-server-1": "172.16.239.10", "model-server-2": "172.16.239.11"}
ROLES = ("model_image", "model_server")


def inspect(host: Host, name: str) -> dict:
    return json.loads(host.check_output("docker inspect %s", name))[0]


def ask(host: Host, address: str, path: str, *arguments: str) -> str:
    quoted = " ".join(f"'{argument}'" for argument in arguments)
    return host.check_output(f"curl --silent --show-error --fail {quoted} http://{address}:5000{path}")


@pytest.mark.parametrize(("name", "address"), ADDRESSES.items())
def test_a_replica_answers_at_its_fixed_address(host: Host, name: str, address: str) -> None:
    assert inspect(host, name)["NetworkSettings"]["Networks"]["slipway"]["IPAddress"] == address
    answer = json.loads(ask(host, address, "/predict", "--json", '{"X": "1 0|1 1"}'))
    assert answer["labels"][0][0] > 0.9 and answer["labels"][1][0] < 0.1


def test_docker_hands_out_only_addresses_that_no_replica_takes(host: Host) -> None:
    network = json.loads(host.check_output("docker network inspect slipway"))[0]
    assert network["IPAM"]["Config"] == [
        {"Subnet": "172.16.239.0/24", "IPRange": "172.16.239.128/25", "Gateway": "172.16.239.1"}
    ]


def test_a_replica_has_no_rights_to_lose(host: Host) -> None:
    container = inspect(host, "model-server-1")
    settings = container["HostConfig"]
    assert settings["ReadonlyRootfs"] is True
    assert settings["CapDrop"] == ["ALL"] and not settings["CapAdd"]
    assert settings["SecurityOpt"] == ["no-new-privileges:true"]
    assert settings["Memory"] == settings["MemorySwap"] == 2**30
    assert settings["PidsLimit"] == 256
    assert container["Config"]["User"] == "65534:65534"
    assert settings["PortBindings"] in ({}, None)
    assert host.run("docker exec model-server-1 touch /app/x").rc != 0


def test_a_replica_comes_back_when_its_process_is_killed(host: Host) -> None:
    process = inspect(host, "model-server-2")["State"]["Pid"]
    host.check_output("kill -9 %s", str(process))
    deadline = time.monotonic() + 20
    while host.run("curl --silent --fail http://172.16.239.11:5000/readyz").rc != 0:
        assert time.monotonic() < deadline, "the killed replica is not back after 20 s"
        time.sleep(0.2)
    assert inspect(host, "model-server-2")["State"]["Pid"] != process


def test_a_replica_is_ready_within_two_seconds_of_its_start(host: Host) -> None:
    wait = "until curl --silent --fail --output /dev/null http://172.16.239.11:5000/readyz; do sleep 0.05; done"
    seconds = []
    for _ in range(3):  # the best of three, as other checks run beside this one
        host.check_output("docker restart model-server-2")
        host.check_output(f"timeout 20 sh -c '{wait}'")
        ready = host.check_output("date +%s.%N")
        started = inspect(host, "model-server-2")["State"]["StartedAt"]
        seconds.append(float(ready) - float(host.check_output(f"date +%s.%N --date {started}")))
    assert min(seconds) < 2, seconds


def test_memory_stays_within_its_bound_after_a_hundred_predictions_of_each_model(host: Host) -> None:
    catalogue = json.loads(ask(host, "172.16.239.10", "/models"))["models"]
    assert len(catalogue) == 4
    for model in catalogue:
        row = model["examples"][0]["row"]
        if isinstance(row, dict) and "url" in row:
            ask(host, "172.16.239.10", f"/{row['url']}", "--output", "/tmp/example")
            arguments = "--form file=@/tmp/example"
        else:
            host.check_output("echo %s > /tmp/row", json.dumps({"row": row}))
            arguments = "--header Content-Type:application/json --data @/tmp/row"
        url = f"http://172.16.239.10:5000/predict/{model['name']}?[1-100]"
        codes = host.check_output(f"curl --silent --output /dev/null --write-out '%{{http_code}} ' {arguments} '{url}'")
        assert codes.split() == ["200"] * 100
    processes = host.check_output("docker top model-server-1 -o pid").split()[1:]
    sizes = host.check_output(f"cat {' '.join(f'/proc/{pid}/smaps_rollup' for pid in processes)}")
    megabytes = sum(int(size) for size in re.findall(r"^Pss: +(\d+) kB", sizes, re.MULTILINE)) / 1024
    assert 40 < megabytes <= 180


def test_a_setting_altered_by_hand_is_all_that_is_reported(host: Host, run_roles: Callable) -> None:
    host.check_output("docker update --memory 2g --memory-swap 2g model-server-2")
    try:
        outcome = run_roles(*ROLES, check=True)
        assert outcome.failure == ""
        assert outcome.changed == ["model_server : Compare each replica with the release"]
    finally:
        host.check_output("docker update --memory 1g --memory-swap 1g model-server-2")
    assert run_roles(*ROLES, check=True).changed == []


def test_fewer_replicas_take_the_last_one_away_and_more_bring_it_back(host: Host, run_roles: Callable) -> None:
    assert run_roles(*ROLES, model_server_replicas=1).failure == ""
    assert host.check_output("docker ps --all --format '{{.Names}}'") == "model-server-1"
    assert run_roles(*ROLES, model_server_replicas=2).failure == ""
    assert ask(host, "172.16.239.11", "/readyz")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"model_server_replicas": 150}, "do not fit model_server_subnet=172.16.239.0/24"),
        ({"model_server_subnet": "172.16.239.7/24"}, "do not fit model_server_subnet=172.16.239.7/24"),
        ({"model_server_subnet": "10.99.0.0/24"}, "already routed on slipway-model-server: 10.99.0.0/16"),
    ],
)
def test_a_wrong_set_up_is_refused_before_anything_changes(
    host: Host, run_roles: Callable, variables: dict, message: str
) -> None:
    host.check_output("ip route add 10.99.0.0/16 dev eth0")
    before = host.check_output("docker ps --all --quiet; docker network ls --quiet")
    try:
        outcome = run_roles(*ROLES, **variables)
    finally:
        host.check_output("ip route delete 10.99.0.0/16")
    assert message in outcome.failure and "Remedy: " in outcome.failure
    assert outcome.changed == []
    after = host.check_output("docker ps --all --quiet; docker network ls --quiet")
    assert after == before
