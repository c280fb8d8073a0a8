"""Plays playbooks, by Ansible itself, on hosts that are only recordings: nothing runs anywhere.

Variables, conditions, loops, includes, handlers and templates are Ansible's own, and so is the choice between yum,
dnf and apt. What would go to the host does not: a module's call is noted, with the arguments it would have had there,
and answered from the recording.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from ansible.cli.playbook import PlaybookCLI
from ansible.executor.playbook_executor import PlaybookExecutor
from ansible.executor.process.worker import WorkerProcess
from ansible.executor.task_executor import TaskExecutor
from ansible.inventory.manager import InventoryManager
from ansible.module_utils.basic import FILE_COMMON_ARGUMENTS, AnsibleModule
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import action_loader, init_plugin_loader, module_loader
from ansible.template import AnsibleEnvironment
from ansible.vars.manager import VariableManager

ROOT = Path(__file__).resolve().parent.parent
Values = dict[str, Any]
init_plugin_loader()


@dataclass(frozen=True)
class Call:
    """A module as it would have run on the host; `text` is what it would have written, `template` its source."""

    role: str
    module: str
    args: Values
    text: str = ""
    template: str = ""


@dataclass
class Host:
    """A host that is a recording.

    facts: as `setup` gathers them, without ansible_ before their names.
    says: a pattern of commands -> what such a command writes, to stdout and stderr alike.
    variables: what the inventory sets.
    """

    name: str
    facts: Values
    says: dict[str, str]
    variables: Values = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def answer(self, module: str, args: Values) -> Values:
        """Returns a module's result; it has always changed something, as on a fresh host."""
        if module == "setup":
            return {"ansible_facts": {f"ansible_{name}": value for name, value in self.facts.items()}}
        if module == "command":
            command = args["_raw_params"]
            known = [said for pattern, said in self.says.items() if re.search(pattern, command)]
            if len(known) != 1:
                raise LookupError(f"{len(known)} answers are known to `{command}`. Remedy: complete the host's `says`.")
            said = {"stdout": known[0], "stderr": known[0]}
            lines = {f"{stream}_lines": text.splitlines() for stream, text in said.items()}
            return {"changed": True, "rc": 0, **said, **lines}
        return {"changed": True, "matched": 0, "files": [], "csr": "a request", "valid_at": {}}


def facts_of(system: str) -> Values:
    """Returns the facts in tests/facts/SYSTEM.yml."""
    file = yaml.safe_load((ROOT / f"tests/facts/{system}.yml").read_text())
    return {**file["recorded"], **file["filled_in_by_hand"]}


def play(playbook: Path, hosts: Iterable[Host]) -> None:
    """Plays a playbook for the group model_servers, made of `hosts`, and notes in each its calls and failures."""
    by_name = {host.name: host for host in hosts}

    def note(action: ActionBase, module: str, args: Values, **more: str) -> Values:
        host = by_name[action._templar.available_variables["inventory_hostname"]]
        module = re.sub(r"^ansible\.(legacy|builtin)\.", "", module)
        args = {name: value for name, value in args.items() if not name.startswith("_ansible")}
        host.calls.append(Call(str(action._task._role or ""), module, args, **more))
        return host.answer(module, args)

    def execute(action: ActionBase, module_name: str = "", module_args: Values | None = None, **_: Any) -> Values:
        return note(action, module_name or action._task.action, module_args or action._task.args)

    def copy(action: ActionBase, tmp: None = None, task_vars: Values | None = None) -> Values:
        args = dict(action._task.args)
        source = Path(args.get("src") or "")
        text = args["content"] if "content" in args else source.read_text()
        return note(action, "copy", args, text=text, template=source.name if source.suffix == ".j2" else "")

    def start(worker: WorkerProcess) -> None:
        # Where Ansible forks a process, on a copy of the task: running it fills in this host's values.
        task = worker._task.copy(exclude_parent=True, exclude_tasks=True)
        task._parent = worker._task._parent
        result = TaskExecutor(
            worker._host,
            task,
            worker._task_vars,
            worker._play_context,
            None,
            worker._loader,
            worker._shared_loader_obj,
            worker._final_q,
            worker._variable_manager,
        ).run()
        worker._final_q.send_task_result(worker._host.name, task._uuid, result, task_fields=task.dump_attrs())

    class Failures(CallbackBase):
        def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
            by_name[result._host.name].failures.append(f"{result._task.name}: {result._result.get('msg')}")

    PlaybookCLI(["ansible-playbook", str(playbook)]).parse()
    loader = DataLoader()
    inventory = InventoryManager(loader, sources=["localhost,"])
    inventory.add_group("model_servers")
    for host in by_name.values():
        inventory.add_host(host.name, "model_servers")
        for name, value in {"ansible_connection": "local", **host.variables}.items():
            inventory._inventory.set_variable(host.name, name, value)
    variables = VariableManager(loader, inventory, PlaybookCLI.version_info())

    compiled: dict[tuple[Any, ...], Any] = {}
    compile_anew = AnsibleEnvironment.compile

    def compile_once(environment: AnsibleEnvironment, source: str, *args: Any, **kwargs: Any) -> Any:
        # A third of the time goes into compiling the same expressions for each host.
        key = (type(environment), environment.trim_blocks, environment.lstrip_blocks, source)
        if key not in compiled:
            compiled[key] = compile_anew(environment, source, *args, **kwargs)
        return compiled[key]

    with (
        mock.patch.object(WorkerProcess, "start", start),
        mock.patch.object(ActionBase, "_execute_module", execute),
        mock.patch.object(ActionBase, "_early_needs_tmp_path", lambda _: False),
        mock.patch.object(action_loader.get("ansible.legacy.copy", class_only=True), "run", copy),
        mock.patch.object(AnsibleEnvironment, "compile", compile_once),
    ):
        executor = PlaybookExecutor([str(playbook)], inventory, variables, loader, {})
        executor._tqm._stdout_callback = Failures()
        executor.run()


def problems(call: Call) -> list[str]:
    """Returns what the module itself would say against its arguments: unknown, missing, a wrong type, no choice."""
    return [f"{call.module}: {message}" for message in _validator(call.module).validate(call.args).error_messages]


class _ReadArguments(Exception):
    """Carries what a module tells of its arguments."""


@cache
def _validator(module: str) -> ArgumentSpecValidator:
    """Runs a module up to where it would read its arguments, so that even a specification it builds is its own."""

    def init(_: AnsibleModule, *args: Any, **kwargs: Any) -> None:
        raise _ReadArguments(*args, kwargs)

    name = module_loader.find_plugin_with_context(module).resolved_fqcn
    path = re.sub(r"^ansible\.(?:builtin|legacy)\.", "ansible.modules.", name)
    if path == name:
        path = re.sub(r"^(\w+\.\w+)\.", r"ansible_collections.\1.plugins.modules.", name)
    with mock.patch.object(AnsibleModule, "__init__", init):
        try:
            importlib.import_module(path).main()
        except _ReadArguments as read:
            *positional, told = read.args
    rules = ("mutually_exclusive", "required_together", "required_one_of", "required_if", "required_by")
    specification = dict(told.get("argument_spec") or positional[0])
    if told.get("add_file_common_args"):
        specification = {**FILE_COMMON_ARGUMENTS, **specification}
    return ArgumentSpecValidator(specification, **{rule: told.get(rule) for rule in rules})
