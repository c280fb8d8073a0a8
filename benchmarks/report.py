"""Writes what was measured as RESULTS.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import growth
from items import Item

if TYPE_CHECKING:
    from bench import Result

MEGABYTE = 1e6
COMPARED_AT = 16  # connections


def write(
    machine: str,
    settings: str,
    chosen: Sequence[Item],
    connections: Sequence[int],
    results: Sequence[Result],
    loops: Mapping[str, Sequence[Mapping[str, float]]],
    grown: growth.Grown,
) -> str:
    """The whole page, in Markdown."""
    parts = [
        "# Slipway beside other model servers",
        f"Written by `make bench`: {settings}, on {machine}.",
        METHOD,
        "## At a glance",
        _ratios(chosen, results, loops),
        "## Targets",
        "What we set out for, at 16 connections; README.md says what was tried where one is missed.",
        _targets(chosen, results, loops),
        "## The servers",
        _servers(results),
    ]
    for item in chosen:
        parts += [f"## {item.title}", _item(item, connections, results, loops[item.name])]
    if grown.starts:
        parts += ["## Cost as work grows", _growth(grown)]
    return "\n\n".join(parts) + "\n"


METHOD = """\
In each round every server is started, checked, asked for a slice of time per item and number of connections, and
stopped; the order rotates from round to round. Figures are medians over the rounds. All servers have a worker per CPU
and serve the same Keras files: the peers by TensorFlow 2.21 as a concrete function on one thread, the first article's
server as written by `model.predict`. The load (wrk, one thread) runs on the same CPUs. The peers run on the machine
itself, Slipway in a container on the engine's bridge.

- requests/s: those of status 200. p50, p99: milliseconds. errors: other statuses, and requests without an answer.
- wrong: of the answers that were compared with Keras's own, those off by more than 0.001. They are asked before the
  load, four different questions over 16 connections at once, and between the slices.
- start: from the command to the first right answer. memory: PSS summed over the server's processes, after the load.
- size: of Slipway's image; of a peer's environment, without Python itself."""


def _ratios(
    chosen: Sequence[Item], results: Sequence[Result], loops: Mapping[str, Sequence[Mapping[str, float]]]
) -> str:
    rows = []
    by_name = {result.server.name: result for result in results}
    for item in chosen:
        ours = _rate(by_name["slipway"], item)
        peers = {
            result.server.title: rate
            for result in results
            if result.server.kind == "peer" and not math.isnan(rate := _rate(result, item))
        }
        best = max(peers, key=lambda title: peers[title], default="")
        nginx = by_name.get("nginx")
        rows.append(
            [
                item.title,
                _number(ours),
                f"{best} {_number(peers[best])}" if best else "-",
                _times(ours, peers[best]) if best else "-",
                _percent(ours, _rate(by_name["bare"], item)),
                _percent(ours, _median(loop["calls_per_second"] for loop in loops[item.name])),
                _percent(_rate(nginx, item), ours) if nginx else "-",
                _times(_p99(nginx, item), _p50(nginx, item)) if nginx else "-",
            ]
        )
    heads = [
        f"at {COMPARED_AT} connections",
        "requests/s",
        "best peer",
        "of it",
        "of the bare endpoint",
        "of the engine's loop",
    ]
    return _table([*heads, "nginx + TLS, of the container", "its p99 / p50"], rows)


@dataclass(frozen=True)
class _Target:
    """`measured` has a value for each item that it is about: the worst counts."""

    text: str
    measured: dict[str, float]
    wanted: float
    unit: str
    at_most: bool = False

    def row(self) -> list[str]:
        known = {name: value for name, value in self.measured.items() if not math.isnan(value)}
        if not known:
            return [self.text, self._said(self.wanted), "-", "not measured"]
        worst = (max if self.at_most else min)(known, key=lambda name: known[name])
        value = known[worst]
        met = value <= self.wanted if self.at_most else value >= self.wanted
        where = f" ({worst})" if len(known) > 1 else ""
        return [self.text, self._said(self.wanted), f"{self._said(value)}{where}", "yes" if met else "**no**"]

    def _said(self, value: float) -> str:
        return {
            "%": f"{value * 100:.0f} %",
            "x": f"{value:.1f} x",
            "s": f"{value:.2f} s",
            "MB": f"{value / MEGABYTE:,.0f} MB",
        }[self.unit]


def _targets(
    chosen: Sequence[Item], results: Sequence[Result], loops: Mapping[str, Sequence[Mapping[str, float]]]
) -> str:
    by_name = {result.server.name: result for result in results}
    ours, bare, nginx = by_name["slipway"], by_name["bare"], by_name.get("nginx")
    items = {item.name: item for item in chosen}
    peers = [result for result in results if result.server.kind == "peer"]

    def of_peers(name: str) -> dict[str, float]:
        best = max((rate for peer in peers if (rate := _rate(peer, items[name])) > 0), default=math.nan)
        return {name: _rate(ours, items[name]) / best}

    targets = []
    if xor := items.get("xor-json"):
        share = _rate(ours, xor) / _rate(bare, xor)
        targets.append(_Target("XOR, of the bare endpoint", {"xor-json": share}, 0.8, "%"))
    for name, wanted in (("xor-json", 3.0), ("cnn-json", 3.5), ("cnn-jpeg", 2.2)):
        if name in items:
            targets.append(_Target(f"{name}, of the best peer", of_peers(name), wanted, "x"))
    if binary := items.get("cnn-binary"):
        loop = _median(one["calls_per_second"] for one in loops["cnn-binary"])
        targets.append(_Target("binary tensors, of the engine's loop", {"": _rate(ours, binary) / loop}, 0.6, "%"))
    if nginx:
        tails = {name: _p99(nginx, item) / _p50(nginx, item) for name, item in items.items()}
        shares = {name: _rate(nginx, item) / _rate(ours, item) for name, item in items.items()}
        targets.append(_Target("nginx + TLS, p99 of p50", tails, 4, "x", at_most=True))
        targets.append(_Target("nginx + TLS, of the container alone", shares, 0.75, "%"))
    targets.append(_Target("start", {"": _median(ours.starts)}, 1, "s", at_most=True))
    targets.append(_Target("memory of two processes", {"": _median(ours.memory)}, 180 * MEGABYTE, "MB", at_most=True))
    return _table(["", "wanted", "measured", "met"], [target.row() for target in targets])


def _servers(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        server = result.server
        checked, wrong = result.checked.total(), result.wrong.total()
        rows.append(
            [
                server.title,
                _number(_median(result.starts), 2),
                _number(_median(result.memory) / MEGABYTE),
                _number(result.size / MEGABYTE) if result.size else "-",
                f"{wrong:,} of {checked:,}" if checked else "-",
                server.how,
            ]
        )
    table = _table(["", "start, s", "memory, MB", "size, MB", "wrong", "settings"], rows)
    notes = [f"- **{result.server.title}** was not measured: {result.failure}" for result in results if result.failure]
    notes += [
        f"- {result.server.title}, {name}: the first wrong answer was {text}"
        for result in results
        for name, text in result.first_fault.items()
    ]
    return "\n\n".join([table, *(["\n".join(notes)] if notes else [])])


def _item(
    item: Item, connections: Sequence[int], results: Sequence[Result], loops: Sequence[Mapping[str, float]]
) -> str:
    heads = ["", *(f"{count} conn., requests/s | p50 | p99" for count in connections), "errors"]
    rows = []
    for result in sorted(results, key=lambda result: -_or_zero(_rate(result, item))):
        cells = [result.server.title]
        if result.failure or item.name in result.notes:
            cells += [
                f"not measured: {result.notes.get(item.name) or 'see above'}",
                *["-"] * (3 * len(connections) - 1),
                "-",
            ]
        else:
            errors = 0
            for count in connections:
                slices = result.slices[item.name, count]
                errors += sum(one.errors for one in slices)
                cells += [
                    _number(_median(one.requests_per_second for one in slices)),
                    _number(_median(one.p50 for one in slices), 1),
                    _number(_median(one.p99 for one in slices), 1),
                ]
            cells.append(_number(errors))
        rows.append(cells)
    rate, p50, p99 = (_median(loop[key] for loop in loops) for key in ("calls_per_second", "p50", "p99"))
    loop = (
        f"The engine in a loop on all cores, without any server: {_number(rate)} calls/s, "
        f"p50 {_number(p50, 3)} ms, p99 {_number(p99, 3)} ms."
    )
    return f"{_table(heads, rows)}\n\n{loop}"


def _growth(grown: growth.Grown) -> str:
    models = [
        [str(count), _number(_median(grown.starts[count]), 2), _number(_median(grown.memory[count]) / MEGABYTE)]
        for count in growth.MODELS
    ]
    rows = [
        [str(count), *(_number(_median(grown.rows[name, count]), 2) for name in growth.ROWS_OF)]
        for count in growth.ROWS
    ]
    bodies = [[_number(size / 1000), _number(_median(grown.bodies[size]), 2)] for size in growth.BYTES]
    beside = [
        [f"{name}, {how}", _number(len(times)), *(_number(_quantile(times, share), 1) for share in (0.5, 0.99, 1))]
        for (name, how), times in sorted(grown.beside.items(), reverse=True)
    ]
    found = [f"- {text}" for text in grown.faults] or ["Every answer was right."]
    return "\n\n".join(
        [
            "Slipway's container alone. Models are copies of the CNN under other names, each asked once.",
            _table(["models", "start, s", "memory, MB"], models),
            "Milliseconds a request at one connection (p50):",
            _table(["rows", *growth.ROWS_OF], rows),
            _table(["kB of a picture (BMP) for the CNN", "ms"], bodies),
            f"Milliseconds a request, one at a time, without and with {growth.SLOW_CLIENTS} clients of a slow model, "
            f"whose answers take {_number(_median(grown.slow))} ms then (p50):",
            _table(["", "requests", "p50", "p99", "longest"], beside),
            "\n".join([*found, *([f"{grown.errors} errors under load."] if grown.errors else [])]),
        ]
    )


def _rate(result: Result, item: Item) -> float:
    return _median(one.requests_per_second for one in result.slices[item.name, COMPARED_AT])


def _p50(result: Result, item: Item) -> float:
    return _median(one.p50 for one in result.slices[item.name, COMPARED_AT])


def _p99(result: Result, item: Item) -> float:
    return _median(one.p99 for one in result.slices[item.name, COMPARED_AT])


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else math.nan


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _number(value: float, digits: int = 0) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def _times(value: float, of: float) -> str:
    return f"{value / of:.1f} x" if of and not math.isnan(value / of) else "-"


def _percent(value: float, of: float) -> str:
    return f"{value / of * 100:.0f} %" if of and not math.isnan(value / of) else "-"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    names = " | ".join(heads)
    columns = names.count("|") + 1
    rule = "|".join(["---", *["---:"] * (columns - 1)])
    return "\n".join([f"| {names} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])
