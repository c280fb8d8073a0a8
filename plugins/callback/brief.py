"""What a run prints: a line for each stage, messages, failures and the recap. The rest is in a log file."""

from __future__ import annotations

import atexit
import contextlib
import copy
import os
import re
import shutil
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from ansible import constants as C  # noqa: N812, Ansible's own name for it
from ansible import context
from ansible.plugins.callback.default import CallbackModule as Default

# None of the callbacks that the package ansible brings serves instead: community.general's unixy and dense print a line
# for each task, its selective only tagged tasks, and none keeps what it leaves out.
DOCUMENTATION = """
name: brief
type: stdout
short_description: A line for each play; everything else goes to a log file
description:
  - Prints a line for each play, the messages of debug tasks, failures and the recap.
  - Writes what the callback default prints to a file in the checkout's folder log.
  - Prints what default prints if C(-v) is given or the environment variable E(CI) is set.
extends_documentation_fragment: [default_callback, result_format_callback]
"""

LOGS = Path(__file__).resolve().parents[2] / "log"
LOGS_KEPT = 20
TAIL_LINES = 20
COLOR = re.compile(r"\x1b\[[0-9;]*m")
# Messages of other modules do not say which task they are about.
AUTHORED = {"assert", "fail", "validate_argument_spec"}


def kind(result: Any) -> str:
    """Return the name of a result's module, without its collection."""
    return str(result._task.action).rpartition(".")[2]


def looped(result: Any) -> bool:
    """Return whether a result is that of a whole loop, whose items had events of their own."""
    return bool(result._task.loop) and "results" in result._result


def text(message: Any) -> str:
    return "\n".join(map(str, message)) if isinstance(message, list) else str(message).rstrip()


def reason(each: dict[str, Any]) -> str:
    """Return why a task or an item failed."""
    message = text(each.get("msg") or each.get("reason") or each.get("censored") or "failed")
    if "non-zero return code" in message:
        said = text(each.get("stderr") or each.get("stdout") or "").strip().splitlines()
        return "\n".join([f"exit code {each.get('rc')}", *said[-TAIL_LINES:]])
    if message.startswith("MODULE FAILURE"):  # before ansible-core 2.19, for any exception
        said = text(each.get("module_stderr") or each.get("module_stdout") or message).strip().splitlines()
        return said[-1]
    if each.get("unreachable") and "ssh" in message.lower():
        return f"{message}\nRemedy: check that ssh gets in with the address, port, user and key of the inventory."
    return message


class Stage:
    """A play, with all its batches."""

    def __init__(self, play: Any) -> None:
        self.uuid = play._uuid
        self.name = play.get_name().strip()
        self.hosts: list[str] = play.get_variable_manager().get_vars(play=play)["ansible_play_hosts_all"]
        self.started = time.monotonic()
        self.begun: set[str] = set()  # hosts of this batch
        self.done: set[str] = set()  # hosts of those before
        self.cut = False
        self.changed: Counter[str] = Counter()
        self.failures: dict[str, dict[str, None]] = {}  # messages by host, those of a rescue too
        self.failed: set[str] = set()
        self.told = False

    def changes(self) -> str:
        """Say how many tasks changed something: once for all hosts if they are alike, else for each that has any."""
        counts = {host: self.changed[host] for host in self.hosts if self.changed[host]}
        if len(set(counts.values())) == 1 and len(counts) == len(self.hosts):
            return f"{self.changed[self.hosts[0]]} changed" + (" on each host" if len(counts) > 1 else "")
        return ", ".join(f"{host}: {count} changed" for host, count in counts.items())


class CallbackModule(Default):
    """Hands every event on to the callback default, whose display is the log file, and prints the brief lines itself.

    Results are read by `_result`, `_task` and `_host`, the only names that ansible-core before 2.19 has.
    """

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "brief"

    def __init__(self) -> None:
        super().__init__()
        self._screen = self._display
        self._log: TextIO | None = None  # without one, default prints to the screen and nothing else does
        self._log_path = Path()
        self._started = 0.0
        self._ended = False
        self._lists_changes = bool(context.CLIARGS.get("check") or context.CLIARGS.get("diff"))
        self._transient = ""
        self._task_names: dict[str, str] = {}
        self._item_failures: dict[tuple[str, str], list[str]] = {}
        self._stage: Stage | None = None

    # The log and the screen

    def _open_log(self, playbook: str) -> None:
        with contextlib.suppress(OSError):  # another run may be removing the same ones
            for old in sorted(LOGS.glob("*.log"), key=lambda log: log.stat().st_mtime)[: 1 - LOGS_KEPT]:
                old.unlink()
        self._log_path = LOGS / f"{playbook}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        try:
            LOGS.mkdir(exist_ok=True)
            self._log_path.touch(0o600, exist_ok=False)
            self._log = self._log_path.open("w", buffering=1, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self._screen.warning(f"No log can be written, so everything is printed: {error}")
            return
        self._started, self._ended = time.monotonic(), False
        self.set_option("display_skipped_hosts", True)  # so that a task is in the log from its start
        self._display = copy.copy(self._screen)
        self._display.display = self._write
        atexit.register(self._name_log)

    def _write(
        self, message: str, color: str | None = None, stderr: bool = False, screen_only: bool = False, **_: Any
    ) -> None:
        """Take what default displays. The recap in color is for the screen alone; warnings are for both."""
        assert self._log is not None
        if not screen_only:
            self._log.write(COLOR.sub("", message).rstrip("\n") + "\n")
        if color in (C.COLOR_WARN, C.COLOR_DEPRECATE) or (screen_only and message):
            self._print(message, color, stderr)

    def _print(self, message: str, color: str | None = None, stderr: bool = False) -> None:
        if self._log:
            self._wipe()
            self._screen.display(message, color=color, stderr=stderr)
            sys.stdout.flush()

    def _show(self, task: str = "") -> None:
        """On a terminal, show what runs until something is printed. The cursor stays at the line's beginning."""
        if self._log and self._stage and sys.stdout.isatty():
            line = f"{self._stage.name}: {task}".removesuffix(": ")[: shutil.get_terminal_size().columns - 1]
            print(line.ljust(len(self._transient)), end="\r", flush=True)
            self._transient = line

    def _wipe(self) -> None:
        if self._transient:
            print(" " * len(self._transient), end="\r", flush=True)
            self._transient = ""

    def _name_log(self) -> None:
        """Name the log, also where the run is cut short."""
        if not self._ended:
            self._ended = True
            here = Path.cwd()
            path = self._log_path.relative_to(here) if self._log_path.is_relative_to(here) else self._log_path
            self._print(f"{time.monotonic() - self._started:.0f} s in all, log: {path}")

    # What is said of a stage

    def _alive(self) -> set[str]:
        """Name the play's hosts that have not failed for good: a rescue puts a host back before its failure is told."""
        variables = self._play.get_variable_manager().get_vars(play=self._play)
        return set(variables["ansible_play_hosts"])

    def _finished(self, stage: Stage) -> set[str]:
        return set() if stage.cut else self._alive() & stage.begun

    def _of(self, host: str, message: str) -> str:
        if len(self._stage.hosts) == 1 or re.match(rf"{re.escape(host)}\b", message):
            return message
        return f"{host}:\n{message}" if "\n" in message else f"{host}: {message}"

    def _tell(self, result: Any) -> None:
        """Print a debug task's message, and what a task changes where that is asked for."""
        host = result._host.get_name()
        if "censored" not in result._result and kind(result) == "debug":
            said = dict(result._result)
            self._clean_results(said, result._task.action)
            message = said.get("msg")
            if not isinstance(message, (str, list)):
                message = textwrap.dedent(self._dump_results(said)).strip()
            self._print(self._of(host, text(message)))
        elif self._lists_changes and result._result.get("changed"):
            self._print(self._of(host, f"changed: {self._name_of(result)}"), C.COLOR_CHANGED)
            if result._task.diff and result._result.get("diff"):
                self._print(self._get_diff(result._result["diff"]).rstrip())

    def _label(self, result: Any) -> str:
        """Return an item's label; "" for the result of a task without a loop."""
        return str(self._get_item_label(result._result)) if "ansible_loop_var" in result._result else ""

    def _name_of(self, result: Any) -> str:
        name = self._task_names.get(result._task._uuid) or result._task.get_name().strip()
        label = self._label(result)
        return f"{name} ({label})" if label else name

    def _failure(self, result: Any) -> str:
        message = reason(result._result)
        if result._result.get("unreachable"):
            return message
        if kind(result) not in AUTHORED:
            return f"{self._name_of(result)}: {message}"
        label = self._label(result)
        return message if label in message else f"{label}: {message}"

    def _fail(self, result: Any, ignored: bool) -> None:
        """Note a failure, and print all that its host has had in this stage once no rescue is left."""
        host = result._host.get_name()
        messages = self._item_failures.pop((host, result._task._uuid), None) or [self._failure(result)]
        if ignored:
            self._count(result)
        else:
            self._stage.failures.setdefault(host, {}).update(dict.fromkeys(messages))
            self._tell_failures()

    def _tell_failures(self) -> None:
        alive = self._alive()
        for host in [host for host in self._stage.failures if host not in alive]:
            self._stage.failed.add(host)
            if not alive:
                self._tell_stage()
            for message in self._stage.failures.pop(host):
                self._print(self._of(host, message), C.COLOR_ERROR)

    def _tell_stage(self) -> None:
        stage = self._stage
        seconds = time.monotonic() - stage.started
        if not stage.told and (stage.changed or stage.failed or seconds >= 1):
            stage.told = True
            self._print(f"{stage.name:<56}{seconds:>5.0f} s  {stage.changes()}".rstrip())

    def _end_stage(self) -> None:
        if self._stage:
            self._tell_failures()
            self._tell_stage()
            self._wipe()
            self._stage = None

    # Ansible's events

    def v2_playbook_on_start(self, playbook: Any) -> None:
        if not self._screen.verbosity and not os.environ.get("CI"):
            self._open_log(Path(playbook._file_name).stem)
        super().v2_playbook_on_start(playbook)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        if self._stage and self._stage.uuid == play._uuid:  # the next batch of a play with `serial`
            self._tell_failures()
            self._stage.done |= self._finished(self._stage)
            self._stage.begun = set()
        else:
            self._end_stage()
            self._stage = Stage(play)
        super().v2_playbook_on_play_start(play)
        self._show()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        super().v2_playbook_on_task_start(task, is_conditional)
        self._begin(task)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        super().v2_playbook_on_handler_task_start(task)
        self._begin(task)

    def _begin(self, task: Any) -> None:
        # Its variables are known only now; afterwards, the name is a template again.
        self._task_names[task._uuid] = task.get_name().strip()
        self._show(self._task_names[task._uuid])

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._stage.begun.add(host.get_name())
        super().v2_runner_on_start(host, task)

    def _count(self, result: Any) -> None:
        if result.is_changed():
            self._stage.changed[result._host.get_name()] += 1

    def v2_runner_item_on_ok(self, result: Any) -> None:
        self._tell(result)
        super().v2_runner_item_on_ok(result)

    def v2_runner_on_ok(self, result: Any) -> None:
        self._count(result)
        if not looped(result):
            self._tell(result)
        super().v2_runner_on_ok(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        key = result._host.get_name(), result._task._uuid
        self._item_failures.setdefault(key, []).append(self._failure(result))
        super().v2_runner_item_on_failed(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._fail(result, ignored=ignore_errors)
        super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._fail(result, ignored=result._task.ignore_unreachable)
        super().v2_runner_on_unreachable(result)

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        self._stage.cut = True
        super().v2_playbook_on_no_hosts_remaining()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        stage = self._stage
        self._end_stage()
        if stage and stage.failed:
            ended = stage.done | stage.failed | self._finished(stage)
            stopped = [host for host in stage.hosts if host not in ended]
            if stopped:
                self._print(f"The run stopped for {', '.join(stopped)}, too.")
        super().v2_playbook_on_stats(stats)
        if stats.changed or stats.failures or stats.dark:
            self._name_log()
        self._ended = True
