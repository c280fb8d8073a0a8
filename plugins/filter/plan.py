"""What follows from what is on a server: the steps of a rollout, where a rollback leads, what a release changes.

Pure functions, data in and data out. `state` is what the module server_state returns; a release is its record: `id`,
`image`, `memory`, `env`, `models` (name -> hash), and who made it when (`time`, `who`, `git`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Data = Mapping[str, Any]
Step = dict[str, Any]


def rollout_steps(state: Data, wish: Data) -> list[Step]:
    """Return the steps by which the replicas come to serve a release without losing a request.

    `wish` has `replicas` and `spare`, each a name and an address, and `outdated`, the names of the replicas that are
    missing or differ from the release.

    A replica in rotation is replaced only while a candidate at the spare address, which has passed its gate, answers in
    its place. There is no journal: an interrupted rollout leaves a replica out of rotation, and the next one, of
    whichever release, finishes that first. That replica gets no requests, so it needs no candidate; the container at
    the spare address, possibly of another release, serves meanwhile.
    """
    replicas = [{"name": name, "address": address} for name, address in wish["replicas"]]
    spare = dict(zip(("name", "address"), wish["spare"], strict=True))
    addresses = [replica["address"] for replica in replicas]

    # Of several drain files, nginx goes by the last replica's: that one gets no requests.
    interrupted = [replica for replica in reversed(replicas) if replica["address"] in state["out"]]
    left = [replica for replica in replicas if replica["name"] in wish["outdated"] and replica not in interrupted]
    in_rotation = [replica for replica in left if replica["address"] in state["serving"]]
    # A run may have ended between the start of a replica that nginx does not know yet and its gate.
    unproven = [r for r in replicas if r not in interrupted + left and r["address"] not in state["serving"]]

    def step(verb: str, container: Data) -> Step:
        return {"do": verb, **container}

    def route(to: list[str]) -> Step:
        return {"do": "route", "addresses": to, "spare": spare["address"]}

    steps = []
    staying = [address for address in state["serving"] if address in addresses]
    # An interrupted replica that is wanted no longer keeps the spare address in rotation until nginx forgets it.
    if staying and set(state["out"]) & (set(state["serving"]) - set(addresses)):
        steps.append(route(staying))
    steps += [step(verb, replica) for replica in interrupted for verb in ("start", "gate", "put_in")]
    if in_rotation:
        steps += [step("start", spare), step("gate", spare) | {"candidate": True}]
    for replica in left:
        steps += [step("take_out", replica)] if replica in in_rotation else []
        steps += [step("start", replica), step("gate", replica)]
        steps += [step("put_in", replica)] if replica in in_rotation else []
    steps += [step("gate", replica) for replica in unproven]
    if steps != [route(addresses)]:
        steps.append(route(addresses))
    steps += [{"do": "put_in", "address": address} for address in state["out"] if address not in addresses]
    surplus = set(state["containers"]) | ({spare["name"]} if in_rotation else set())
    steps += [{"do": "remove", "name": name} for name in sorted(surplus - {replica["name"] for replica in replicas})]
    return steps


def outdated_containers(compared: Iterable[Data]) -> list[str]:
    """Return the names of the replicas that differ, by the results of docker_container in check mode, one a replica."""
    return [result["item"][0] for result in compared if result["diff"]["before"] != result["diff"]["after"]]


def changes_something(steps: Iterable[Data]) -> bool:
    """Return whether a rollout does more than route requests to the same replicas."""
    return any(step["do"] != "route" for step in steps)


def rollout_in_words(steps: Iterable[Data]) -> list[str]:
    """Return a line for each step of a rollout that changes something."""
    words = {
        "start": "start {name} at {address}",
        "gate": "wait until {name} answers every example of every model",
        "take_out": "take {name} out of nginx's rotation",
        "put_in": "put {name} back into nginx's rotation",
        "remove": "remove {name}",
    }
    return [
        words[step["do"]].format(**step) if "name" in step else f"remove the stale drain file of {step['address']}"
        for step in steps
        if step["do"] in words
    ]


def served_releases(history: Iterable[Data]) -> list[str]:
    """Return the releases that came into service, the one that serves first, each once."""
    releases = [line["release"] for line in history if line["result"] == "served"]
    return list(dict.fromkeys(reversed(releases)))


def _models(release: Data) -> Data:
    """The models of a release; early records have their names alone."""
    models = release.get("models", {})
    return models if isinstance(models, Mapping) else dict.fromkeys(models, "")


def release_changes(new: Data, old: Data) -> dict[str, Any]:
    """Return what a release changes: models `added`, `removed` and `changed`, `settings` (name -> old, new) and `app`.

    `app`: another image with equal models has another app, runtime or base image. `old` is {} for the first release.
    """

    def settings(release: Data) -> dict[str, str]:
        # The app's variables have the names of the role's, in capitals.
        named = {name.lower(): value for name, value in release.get("env", {}).items()}
        return {"model_server_memory": release.get("memory", "")} | named

    models, before = _models(new), _models(old)
    now, then = settings(new), settings(old)
    return {
        "added": sorted(set(models) - set(before)),
        "removed": sorted(set(before) - set(models)),
        "changed": sorted(name for name in models if name in before and models[name] != before[name]),
        "settings": {
            name: [then.get(name, ""), now.get(name, "")]
            for name in sorted({*now, *then})
            if old and now.get(name, "") != then.get(name, "")
        },
        "app": bool(old) and new["image"] != old["image"] and models == before,
    }


def changes_in_words(changes: Data) -> str:
    """Return what a release changes on one line: "+ ham  ~ xor  - wine  model_server_memory 1g -> 2g"."""
    signs = {"added": "+", "changed": "~", "removed": "-"}
    parts = [f"{sign} {name}" for kind, sign in signs.items() for name in changes.get(kind, [])]
    parts += [f"{name} {old or '-'} -> {new or '-'}" for name, (old, new) in changes.get("settings", {}).items()]
    parts += ["~ app, runtime or base image"] if changes.get("app") else []
    return "  ".join(parts) or "nothing"


def history_lines(state: Data) -> list[str]:
    """Return a line for each line of the history, the newest first, and whether its release can be served again."""
    lines, current = [], False
    for line in reversed(state["history"]):
        release, mark = line["release"], line["result"]
        if mark == "served":
            there = state["releases"].get(release, {}).get("image") in state["images"]
            mark = "on the server" if there and current else "" if current else "serves"
            current = True
        lines.append(
            f"{line['time']}  {release}  {line['action']:<8}  {mark:<13}  {changes_in_words(line.get('changes', {}))}"
            f"  (by {line['who']}, git {line['git']}, {line['seconds']} s)"
        )
    return lines


def extended_history(history: Sequence[Data], line: Data, keep: int | str) -> list[Data]:
    """Return the history with a line more: the last 200, and those of the last `keep` releases that served."""
    lines = [*history, line]
    last = {each["release"]: number for number, each in enumerate(lines) if each["result"] == "served"}
    kept = {last[release] for release in served_releases(lines)[: int(keep)]}
    return [each for number, each in enumerate(lines) if number in kept or number >= len(lines) - 200]


def available_releases(state: Data) -> list[Data]:
    """Return the releases that are recorded and whose image is there, the newest first."""
    there = [record for record in state["releases"].values() if record["image"] in state["images"]]
    return sorted(there, key=lambda record: record["time"], reverse=True)


def rollback_target(state: Data, asked: str) -> str:
    """Return the release to go back to: the one asked for, else the one that served before; "" if there is none."""
    return asked or next(iter(served_releases(state["history"])[1:]), "")


def rollback_refusal(state: Data, target: str, host: str) -> str:
    """Return why a server cannot go back to a release, with the releases that it can go back to; "" if it can."""
    if not state["engine"]:
        return f"No Docker Engine answers on {host}. Nothing was changed. Remedy: see systemctl status docker there."
    there = available_releases(state)
    if target in [record["id"] for record in there]:
        return ""
    lines = [
        f"Release {target} is not on {host}. Nothing was changed."
        if target
        else f"No release before the one that serves is on {host}. Nothing was changed."
    ]
    current = (served_releases(state["history"]) or [""])[0]
    for record in there:
        models = ", ".join(sorted(record["models"]))
        mark = "  (serves)" if record["id"] == current else ""
        lines.append(f"  {record['id']}  {record['time']}  by {record['who']}, git {record['git']}: {models}{mark}")
    choice = "run playbooks/rollback.yml -e release=ID with one of these, or deploy" if there else "deploy"
    return "\n".join([*lines, f"Remedy: {choice} the commit you want."])


def prunable(state: Data, keep: int | str) -> dict[str, list[str]]:
    """Return what is too old to go back to: `records` (ids), and `images` that no remaining record needs.

    The release that serves and the one before are the first two of the recent ones, so with `keep` >= 2 they stay.
    """
    kept: Sequence[str] = served_releases(state["history"])[: int(keep)]
    needed = {record["image"] for record in state["releases"].values() if record["id"] in kept}
    return {
        "records": sorted(set(state["releases"]) - set(kept)),
        "images": sorted(set(state["images"]) - needed),
    }


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        functions = (
            available_releases,
            changes_in_words,
            changes_something,
            extended_history,
            history_lines,
            outdated_containers,
            prunable,
            release_changes,
            rollback_refusal,
            rollback_target,
            rollout_steps,
            rollout_in_words,
            served_releases,
        )
        return {function.__name__: function for function in functions}
