"""The plan of a rollout in every state that a deploy can meet, and what follows from the releases on a server.

The states are those of docs/chaos.md, each interruption included, and others that an operator can bring about.
"""

from __future__ import annotations

from typing import Any

import pytest

from conftest import plugin

PLAN = plugin("filter/plan.py")
ONE, TWO, THREE = (f"172.16.239.{number}" for number in (10, 11, 12))
SPARE = "172.16.239.9"


def state(
    containers: str = "1 2", serving: tuple[str, ...] = (ONE, TWO), out: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    """What is on a server whose containers are named by their last word: "1 2 spare"."""
    there: dict[str, Any] = {f"model-server-{name}": {} for name in containers.split()}
    return {"containers": there, "serving": list(serving), "out": list(out), **more}


def steps(found: dict[str, Any], outdated: str, replicas: int = 2) -> str:
    """The steps to so many replicas of which these are outdated, in short: "start spare, gate spare, out 1, …"."""
    short = {"take_out": "out", "put_in": "in"}
    said = []
    for step in PLAN.rollout_steps(found, wished(outdated, replicas)):
        what = " ".join(step["addresses"]) if step["do"] == "route" else step.get("name", step.get("address"))
        said.append(
            f"{short.get(step['do'], step['do'])} {what.replace('model-server-', '').replace('172.16.239', '')}"
        )
    return ", ".join(said).replace("172.16.239", "")


CANDIDATE = "start spare, gate spare"


def replaced(name: int) -> str:
    return f"out {name}, start {name}, gate {name}, in {name}"


def fresh(name: int) -> str:
    return f"start {name}, gate {name}"


def finished(name: int) -> str:
    return f"start {name}, gate {name}, in {name}"


def joined(*parts: str) -> str:
    return ", ".join(parts)


BOTH = "route .10 .11"

STATES: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "nothing is there": (state("", ()), "1 2", 2, joined(fresh(1), fresh(2), BOTH)),
    "nothing is there, one replica": (state("", ()), "1", 1, joined(fresh(1), "route .10")),
    "nothing is there, three replicas": (
        state("", ()),
        "1 2 3",
        3,
        joined(fresh(1), fresh(2), fresh(3), "route .10 .11 .12"),
    ),
    "all is as it should be": (state(), "", 2, BOTH),
    "another release": (
        state(),
        "1 2",
        2,
        joined(CANDIDATE, replaced(1), replaced(2), BOTH, "remove spare"),
    ),
    "another release, single replica": (
        state("1", (ONE,)),
        "1",
        1,
        joined(CANDIDATE, replaced(1), "route .10", "remove spare"),
    ),
    "one replica altered by hand": (
        state(),
        "2",
        2,
        joined(CANDIDATE, replaced(2), BOTH, "remove spare"),
    ),
    "one replica removed by hand": (
        state("1"),
        "2",
        2,
        joined(CANDIDATE, replaced(2), BOTH, "remove spare"),
    ),
    "all replicas removed by hand": (
        state(""),
        "1 2",
        2,
        joined(CANDIDATE, replaced(1), replaced(2), BOTH, "remove spare"),
    ),
    "one replica more": (state("1", (ONE,)), "2", 2, joined(fresh(2), BOTH)),
    "one replica less": (state(), "", 1, joined("route .10", "remove 2")),
    "one replica less and another release": (
        state(),
        "1",
        1,
        joined(CANDIDATE, replaced(1), "route .10", "remove 2", "remove spare"),
    ),
    "one replica more and another release": (
        state("1", (ONE,)),
        "1 2",
        2,
        joined(CANDIDATE, replaced(1), fresh(2), BOTH, "remove spare"),
    ),
    # Interrupted, in the order of the steps; the next deploy is of the same release.
    "interrupted while building": (
        state(),
        "1 2",
        2,
        joined(CANDIDATE, replaced(1), replaced(2), BOTH, "remove spare"),
    ),
    "interrupted on a new server, one replica started": (
        state("1", ()),
        "2",
        2,
        joined(fresh(2), "gate 1", BOTH),
    ),
    "interrupted on a new server, before nginx knows": (state("1 2", ()), "", 2, joined("gate 1", "gate 2", BOTH)),
    "interrupted while the candidate starts": (
        state("1 2 spare"),
        "1 2",
        2,
        joined(CANDIDATE, replaced(1), replaced(2), BOTH, "remove spare"),
    ),
    "interrupted after the first is out": (
        state("1 2 spare", out=(ONE,)),
        "1 2",
        2,
        joined(finished(1), CANDIDATE, replaced(2), BOTH, "remove spare"),
    ),
    "interrupted after the first is removed": (
        state("2 spare", out=(ONE,)),
        "1 2",
        2,
        joined(finished(1), CANDIDATE, replaced(2), BOTH, "remove spare"),
    ),
    "interrupted before the first is back": (
        state("1 2 spare", out=(ONE,)),
        "2",
        2,
        joined(finished(1), CANDIDATE, replaced(2), BOTH, "remove spare"),
    ),
    "interrupted between the replicas": (
        state("1 2 spare"),
        "2",
        2,
        joined(CANDIDATE, replaced(2), BOTH, "remove spare"),
    ),
    "interrupted after the second is out": (
        state("1 2 spare", out=(TWO,)),
        "2",
        2,
        joined(finished(2), BOTH, "remove spare"),
    ),
    "interrupted before the second is back": (
        state("1 2 spare", out=(TWO,)),
        "",
        2,
        joined(finished(2), BOTH, "remove spare"),
    ),
    "interrupted before the candidate is removed": (state("1 2 spare"), "", 2, joined(BOTH, "remove spare")),
    "interrupted, and undone by a deploy of the release before": (
        state("1 2 spare", out=(ONE,)),
        "1",
        2,
        joined(finished(1), BOTH, "remove spare"),
    ),
    "interrupted with the second out, and undone": (
        state("1 2 spare", out=(TWO,)),
        "1 2",
        2,
        joined(finished(2), CANDIDATE, replaced(1), BOTH, "remove spare"),
    ),
    "interrupted, and a third release is deployed": (
        state("1 2 spare", out=(TWO,)),
        "1 2",
        2,
        joined(finished(2), CANDIDATE, replaced(1), BOTH, "remove spare"),
    ),
    "interrupted, single replica": (
        state("1 spare", (ONE,), (ONE,)),
        "1",
        1,
        joined(finished(1), "route .10", "remove spare"),
    ),
    "the gate failed at the first replica": (
        state("1 2 spare", out=(ONE,)),
        "1 2",
        2,
        joined(finished(1), CANDIDATE, replaced(2), BOTH, "remove spare"),
    ),
    "two runs died, both replicas are out": (
        state("1 2 spare", out=(ONE, TWO)),
        "1 2",
        2,
        joined(finished(2), finished(1), BOTH, "remove spare"),
    ),
    "interrupted, then told to keep one replica of another release": (
        state("1 2 spare", out=(TWO,)),
        "1",
        1,
        joined("route .10", CANDIDATE, replaced(1), "route .10", "in .11", "remove 2", "remove spare"),
    ),
    "interrupted with the first out, then told to keep only that": (
        state("1 2 spare", out=(ONE,)),
        "1",
        1,
        joined(finished(1), "route .10", "remove 2", "remove spare"),
    ),
    "interrupted, then told to keep one replica": (
        state("1 2 spare", out=(TWO,)),
        "",
        1,
        joined("route .10", "in .11", "remove 2", "remove spare"),
    ),
    "interrupted, then told to run three": (
        state("1 2 spare", out=(TWO,)),
        "2 3",
        3,
        joined(finished(2), fresh(3), "route .10 .11 .12", "remove spare"),
    ),
    "a drain file of an address that nginx does not know": (state(out=(THREE,)), "", 2, joined(BOTH, "in .12")),
    "a replica put out by hand": (state(out=(ONE,)), "", 2, joined(finished(1), BOTH)),
    "a stranger with our label": (state("1 2 extra"), "", 2, joined(BOTH, "remove extra")),
    "another subnet": (
        state(serving=("10.0.0.10", "10.0.0.11")),
        "1 2",
        2,
        joined(fresh(1), fresh(2), BOTH),
    ),
    "nginx was provisioned anew": (state(serving=()), "", 2, joined("gate 1", "gate 2", BOTH)),
    "nginx was provisioned anew, and another release": (state(serving=()), "1 2", 2, joined(fresh(1), fresh(2), BOTH)),
}


@pytest.mark.parametrize("name", STATES)
def test_the_steps_follow_from_what_is_there(name: str) -> None:
    found, outdated, replicas, expected = STATES[name]
    assert steps(found, outdated, replicas) == expected


class Server:
    """Carries out steps as the task files do, and knows where nginx sends requests (rotation.conf, upstream.conf)."""

    def __init__(self, found: dict[str, Any]) -> None:
        number = {"model-server-spare": 9} | {f"model-server-{n}": 9 + n for n in range(1, 10)}
        self.containers = {f"172.16.239.{number[name]}": name for name in found["containers"] if name in number}
        self.others = [name for name in found["containers"] if name not in number]
        self.serving, self.out = list(found["serving"]), list(found["out"])
        # What an interrupted run left out of rotation may not have passed its gate.
        self.gated = set(self.containers) - {address for address in self.serving if address in self.out[-1:]}

    def active(self) -> set[str]:
        """The addresses that get requests: of several drain files, the last replica's counts."""
        drained = [address for address in self.serving if address in self.out]
        return {address for address in self.serving if address != drained[-1]} | {SPARE} if drained else {*self.serving}

    def do(self, step: dict[str, Any]) -> None:
        address = step.get("address", "")
        match step["do"]:
            case "start":
                assert address not in self.active(), "a container that gets requests is replaced"
                self.containers[address] = step["name"]
                self.gated.discard(address)
            case "gate":
                self.gated.add(address)
            case "take_out":
                self.out.append(address)
            case "put_in":
                assert address not in self.serving or address in self.gated
                self.out.remove(address)
            case "route":
                self.serving = list(step["addresses"])
            case "remove":
                gone = [at for at, name in self.containers.items() if name == step["name"]]
                assert not self.active() & set(gone), "a container that gets requests is removed"
                self.containers = {at: name for at, name in self.containers.items() if at not in gone}
                self.others = [name for name in self.others if name != step["name"]]

    def state(self) -> dict[str, Any]:
        names = [*self.containers.values(), *self.others]
        return {"containers": {name: {} for name in names}, "serving": self.serving, "out": self.out}


def wished(outdated: str, replicas: int) -> dict[str, Any]:
    return {
        "replicas": [(f"model-server-{n}", f"172.16.239.{9 + n}") for n in range(1, replicas + 1)],
        "spare": ("model-server-spare", SPARE),
        "outdated": [f"model-server-{name}" for name in outdated.split()],
    }


# Whoever removes every container, or moves to another subnet, has left nginx nothing to send requests to.
UNSERVED = {"all replicas removed by hand", "another subnet"}


@pytest.mark.parametrize("name", STATES)
def test_requests_always_reach_a_container_that_passed_its_gate(name: str) -> None:
    found, outdated, replicas, _ = STATES[name]
    server = Server(found)
    for step in PLAN.rollout_steps(found, wished(outdated, replicas)):
        server.do(step)
        if server.serving and name not in UNSERVED:
            answering = server.active() & set(server.containers)
            assert answering and answering <= server.gated, (step, server.active())


@pytest.mark.parametrize("name", STATES)
def test_the_next_run_has_nothing_left_to_do(name: str) -> None:
    found, outdated, replicas, _ = STATES[name]
    server = Server(found)
    for step in PLAN.rollout_steps(found, wished(outdated, replicas)):
        server.do(step)
    assert [step["do"] for step in PLAN.rollout_steps(server.state(), wished("", replicas))] == ["route"]


@pytest.mark.parametrize("name", STATES)
def test_a_run_that_stops_anywhere_is_finished_by_the_next(name: str) -> None:
    found, outdated, replicas, _ = STATES[name]
    steps = PLAN.rollout_steps(found, wished(outdated, replicas))
    for stop in range(len(steps)):
        server, left = Server(found), set(outdated.split())
        for step in steps[:stop]:
            server.do(step)
            left -= {step["name"].rpartition("-")[2]} if step["do"] == "start" else set()
        for step in PLAN.rollout_steps(server.state(), wished(" ".join(sorted(left)), replicas)):
            server.do(step)
        assert server.active() <= server.gated or name in UNSERVED, stop
        again = PLAN.rollout_steps(server.state(), wished("", replicas))
        assert [step["do"] for step in again] == ["route"], stop


def test_the_candidate_is_the_only_one_that_a_failed_gate_removes() -> None:
    wish = {
        "replicas": [("model-server-1", ONE)],
        "spare": ("model-server-spare", SPARE),
        "outdated": ["model-server-1"],
    }
    marked = [step for step in PLAN.rollout_steps(state("1", (ONE,)), wish) if step.get("candidate")]
    assert [(step["do"], step["name"]) for step in marked] == [("gate", "model-server-spare")]


def test_the_plan_reads_as_words() -> None:
    wish = {"replicas": [("model-server-1", ONE)], "spare": ("model-server-spare", SPARE), "outdated": []}
    found = PLAN.rollout_steps(state("1 spare", (ONE,), (THREE,)), wish)
    assert PLAN.rollout_in_words(found) == [
        "remove the stale drain file of 172.16.239.12",
        "remove model-server-spare",
    ]
    assert PLAN.changes_something(found)
    assert not PLAN.changes_something(PLAN.rollout_steps(state("1", (ONE,)), wish))


def release(
    name: str, models: dict[str, str], image: str = "", memory: str = "1g", workers: str = "2"
) -> dict[str, Any]:
    return {
        "id": name,
        "image": image or f"slipway/model-server:{name}",
        "memory": memory,
        "env": {"MODEL_SERVER_WORKERS": workers},
        "models": models,
        "time": f"2026-01-0{name[-1]}T00:00:00Z",
        "who": "operator@controller",
        "git": "v1",
    }


OLD = release("r1", {"digits": "a", "wine": "b"})


@pytest.mark.parametrize(
    ("new", "old", "words"),
    [
        (OLD, {}, "+ digits  + wine"),
        (release("r2", {"digits": "a", "wine": "b", "xor": "c"}), OLD, "+ xor"),
        (release("r2", {"digits": "A"}), OLD, "~ digits  - wine"),
        (release("r2", OLD["models"], OLD["image"], workers="1"), OLD, "model_server_workers 2 -> 1"),
        (release("r2", OLD["models"], OLD["image"], memory="2g"), OLD, "model_server_memory 1g -> 2g"),
        (release("r2", OLD["models"]), OLD, "~ app, runtime or base image"),
        (release("r2", {"digits": "a"}), OLD | {"models": ["digits", "wine"]}, "~ digits  - wine"),
        (release("r2", OLD["models"], OLD["image"]), OLD, "nothing"),
    ],
)
def test_what_a_release_changes_reads_as_words(new: dict[str, Any], old: dict[str, Any], words: str) -> None:
    assert PLAN.changes_in_words(PLAN.release_changes(new, old)) == words


def line(name: str, result: str = "served", action: str = "deploy") -> dict[str, Any]:
    made = {"time": "2026-01-01T00:00:00Z", "who": "operator@controller", "git": "v1", "seconds": 9}
    return made | {"release": name, "result": result, "action": action, "changes": {"added": ["xor"]}}


def releases(history: list[dict[str, Any]], recorded: str, images: str) -> dict[str, Any]:
    return {
        "engine": True,
        "history": history,
        "releases": {name: release(name, {"xor": "c"}) for name in recorded.split()},
        "images": {f"slipway/model-server:{name}": {} for name in images.split()},
    }


def test_a_rollback_goes_to_what_served_before() -> None:
    history = [line("r1"), line("r2"), line("r3", "failed"), line("r2")]
    found = releases(history, "r1 r2", "r1 r2")
    assert PLAN.rollback_target(found, "") == "r1"
    assert PLAN.rollback_target(found, "r9") == "r9"
    # A rollback itself came into service: the next one goes back from it.
    assert PLAN.rollback_target(releases([*history, line("r1", action="rollback")], "r1 r2", "r1 r2"), "") == "r2"
    assert PLAN.rollback_target(releases([line("r1")], "r1", "r1"), "") == ""


def test_a_rollback_to_what_is_not_there_is_refused_with_what_is() -> None:
    found = releases([line("r1"), line("r2"), line("r3")], "r1 r2 r3", "r2 r3")
    assert PLAN.rollback_refusal(found, "r2", "server") == ""
    gone = PLAN.rollback_refusal(found, "r1", "server")
    assert gone.startswith("Release r1 is not on server. Nothing was changed.\n  r3 ")
    assert "xor  (serves)" in gone and "  r2  2026-01-02" in gone and gone.endswith("deploy the commit you want.")
    none = PLAN.rollback_refusal(releases([line("r1")], "r1", "r1"), "", "server")
    assert none.startswith("No release before the one that serves is on server.")
    silent = releases([line("r1")], "r1", "") | {"engine": False}
    assert PLAN.rollback_refusal(silent, "r1", "server").startswith("No Docker Engine answers on server.")
    empty = PLAN.rollback_refusal(releases([], "", ""), "", "server")
    assert empty.endswith("Remedy: deploy the commit you want.")


def test_what_serves_and_what_served_before_is_never_removed() -> None:
    history = [line("r1"), line("r2"), line("r3"), line("r4", "failed"), line("r2")]
    found = releases(history, "r1 r2 r3 r4", "r1 r2 r3 r4 stray")
    assert PLAN.prunable(found, 2) == {
        "records": ["r1", "r4"],
        "images": [f"slipway/model-server:{name}" for name in ("r1", "r4", "stray")],
    }
    assert PLAN.prunable(found, "5")["records"] == ["r4"]
    assert PLAN.prunable(releases([], "", ""), 2) == {"records": [], "images": []}


def test_the_history_says_what_can_be_served_again() -> None:
    history = [line("r1"), line("r2"), line("r3", "refused"), line("r4", "failed")]
    lines = PLAN.history_lines(releases(history, "r1 r2", "r2"))
    assert [" ".join(each.split("  (")[0].split()[1:]) for each in lines] == [
        "r4 deploy failed + xor",
        "r3 deploy refused + xor",
        "r2 deploy serves + xor",
        "r1 deploy + xor",
    ]
    assert lines[0].endswith("(by operator@controller, git v1, 9 s)")


def test_failed_tries_never_push_what_served_out_of_the_history() -> None:
    history = [line("r1"), line("r2")]
    for _ in range(300):
        history = PLAN.extended_history(history, line("r3", "failed"), 2)
    assert PLAN.served_releases(history) == ["r2", "r1"] and len(history) == 202
