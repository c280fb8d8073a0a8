"""What plugins/callback/brief.py prints of small playbooks, and what it writes to its log."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from host import ROOT

INVENTORY = """\
[all:vars]
ansible_python_interpreter={{ ansible_playbook_python }}
[local]
one ansible_connection=local
two ansible_connection=local
[remote]
gone ansible_connection=ssh ansible_host=127.0.0.1 ansible_port=1
"""
BROKEN = """\
#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule
AnsibleModule({})
raise ValueError("the disk is gone")
"""
LINE = re.compile(r"^(\w[\w ]*?) +\d+ s(?:  (.*))?$")


class Folder:
    """A checkout with ansible.cfg and the callback alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copy(ROOT / "ansible.cfg", path)
        (path / "plugins/callback").mkdir(parents=True)
        shutil.copy(ROOT / "plugins/callback/brief.py", path / "plugins/callback")
        (path / "hosts").write_text(INVENTORY)
        self.command = [str(Path(sys.executable).parent / "ansible-playbook"), "--inventory", "hosts", "play.yml"]

    def environment(self, **more: str) -> dict[str, str]:
        # With one fork, hosts come in their order.
        return os.environ | {"ANSIBLE_STDOUT_CALLBACK": "brief", "ANSIBLE_FORKS": "1", "CI": ""} | more

    def run(self, playbook: str, *arguments: str, code: int = 0, **environment: str) -> str:
        """Run a playbook and return what it prints, without recap and seconds; a stage is `=== NAME, CHANGES`."""
        (self.path / "play.yml").write_text(playbook)
        run = subprocess.run(
            [*self.command, *arguments],
            cwd=self.path,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert run.returncode == code, run.stdout
        assert "DEPRECAT" not in run.stdout and "callback" not in run.stdout, run.stdout
        self.recap = re.findall(r"^\w+ +: ok=.*", run.stdout, re.MULTILINE)
        lines = [line for line in run.stdout.splitlines() if not re.match(r"\w+ +: ok=\d", line)]
        lines = [LINE.sub(lambda found: f"=== {found[1]}, {found[2]}", line) for line in lines]
        return "\n".join(re.sub(r"^\d+ s in all, log: log/play-[\d-]+\.log$", "log", line) for line in lines)

    def log(self) -> str:
        """Return what the last run logged."""
        return max((self.path / "log").iterdir(), key=lambda log: log.stat().st_mtime_ns).read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_success_is_a_line_for_each_stage_and_the_messages(folder: Folder) -> None:
    said = folder.run("""\
- {name: Nobody, hosts: nobody_at_all}
- name: Quick
  hosts: one
  gather_facts: false
  tasks: [{ansible.builtin.assert: {that: true}}]
- name: Slow
  hosts: one
  gather_facts: false
  tasks: [{ansible.builtin.command: sleep 1.1, changed_when: false}]
- name: Changing
  hosts: one
  gather_facts: false
  vars: {number: 7}
  tasks:
    - {ansible.builtin.command: echo what it says, notify: Follow}
    - {ansible.builtin.command: "false", ignore_errors: true}
    - {ansible.builtin.command: "false", failed_when: false, changed_when: false}
    - ansible.builtin.debug: {msg: "a line\\n  and another\\n"}
    - {ansible.builtin.debug: {msg: [a, list]}, loop: [1]}
    - ansible.builtin.debug: {var: number}
    - ansible.builtin.debug: {msg: for -v, verbosity: 1}
  handlers: [{name: Follow, ansible.builtin.command: "true"}]
""")
    said = re.sub(r"^\[WARNING\]: Could not match supplied host pattern.*\n", "", said)
    assert re.sub(r"=== Quick, None\n", "", said).splitlines() == [
        "=== Slow, None",
        *("a line", "  and another", "a", "list", "number: 7"),
        "=== Changing, 3 changed",
        "log",
    ]
    assert re.fullmatch(r"one +: ok=\d+ +changed=3 .* ignored=1 *", "\n".join(folder.recap))
    log = folder.log()
    assert (
        "RUNNING HANDLER [Follow]" in log
        and "PLAY RECAP" in log
        and "changed=3" in log
        and "...ignoring" in log
        and "\x1b" not in log
    )


def test_nothing_changed_names_no_log(folder: Folder) -> None:
    said = folder.run("[{name: Quick, hosts: one, gather_facts: false, tasks: [{ansible.builtin.meta: noop}]}]")
    assert said in ("", "=== Quick, None")
    assert [log.stat().st_mode & 0o777 for log in (folder.path / "log").iterdir()] == [0o600]


def test_several_hosts_are_told_apart(folder: Folder) -> None:
    said = folder.run("""\
- name: Alike
  hosts: local
  gather_facts: false
  serial: 1
  tasks:
    - ansible.builtin.command: "true"
    - ansible.builtin.debug: {msg: "hello from {{ inventory_hostname }}"}
    - block: [{ansible.builtin.fail: {msg: not to be seen}}]
      rescue: [{ansible.builtin.meta: noop}]
- name: Unlike
  hosts: local
  gather_facts: false
  tasks:
    - {ansible.builtin.command: "true", delegate_to: two, run_once: true}
    - {ansible.builtin.debug: {msg: "more\\nlines"}, when: inventory_hostname == 'two'}
""")
    assert said.splitlines() == [
        *("one: hello from one", "two: hello from two", "=== Alike, 1 changed on each host"),
        *("two:", "more", "lines", "=== Unlike, one: 1 changed", "log"),
    ]
    assert "not to be seen" in folder.log()


def test_a_refusal_is_its_message(folder: Folder) -> None:
    said = folder.run(
        """\
- name: Refuse
  hosts: one
  gather_facts: false
  tasks: [{ansible.builtin.fail: {msg: "Why.\\nRemedy: how."}}]
""",
        code=2,
    )
    assert said.splitlines() == ["=== Refuse, None", "Why.", "Remedy: how.", "log"]


def test_what_a_rescue_took_is_told_if_the_host_fails_after_all(folder: Folder) -> None:
    said = folder.run(
        """\
- name: Fails
  hosts: local
  gather_facts: false
  tasks:
    - block:
        - name: Try
          ansible.builtin.shell: "seq 30; echo {{ item }} is bad >&2; exit {{ item }}"
          loop: [0, 3, 4]
      rescue:
        - {name: Look, ansible.builtin.command: "true", register: looked, failed_when: true, ignore_errors: true}
        - {ansible.builtin.fail: {msg: "{{ inventory_hostname }} goes no further."}, when: inventory_hostname == 'one'}
      always: [{ansible.builtin.debug: {msg: swept}}]
- name: Goes on
  hosts: local
  gather_facts: false
  tasks: [{ansible.builtin.command: "true"}]
""",
        code=2,
    )
    assert said.splitlines() == [
        *(
            "one:",
            "Try (3): exit code 3",
            "3 is bad",
            "one:",
            "Try (4): exit code 4",
            "4 is bad",
            "one goes no further.",
        ),
        *("one: swept", "two: swept", "=== Fails, 1 changed on each host", "=== Goes on, two: 1 changed", "log"),
    ]


def test_errors_have_no_traceback(folder: Folder) -> None:
    (folder.path / "library").mkdir()
    (folder.path / "library/broken.py").write_text(BROKEN)
    said = folder.run(
        """\
- name: Errors
  hosts: local
  gather_facts: false
  tasks:
    - {name: Break, broken: {}, when: inventory_hostname == 'one'}
    - {name: Fill in, ansible.builtin.debug: {msg: "{{ nothing.there }}"}}
""",
        code=2,
        ANSIBLE_LIBRARY="library",
    )
    assert re.search("^one: Break: .*the disk is gone$", said, re.MULTILINE), said
    assert re.search(
        "^Fill in: .*'nothing' is undefined", said.replace("two:\n", "").replace("two: ", ""), re.MULTILINE
    )
    assert "Traceback" not in said and len(said.splitlines()) < 30


def test_hosts_that_an_abort_leaves_out_are_named(folder: Folder) -> None:
    turns = """\
- name: Turns
  hosts: local
  gather_facts: false
  SETTING
  tasks: [{ansible.builtin.fail: {msg: bad}, when: inventory_hostname == 'one'}]
"""
    for setting in "serial: 1", "any_errors_fatal: true":
        said = folder.run(turns.replace("SETTING", setting), code=2)
        assert said.splitlines() == ["one: bad", "=== Turns, None", "The run stopped for two, too.", "log"], setting


def test_an_unreachable_host_has_a_remedy(folder: Folder) -> None:
    said = folder.run("[{name: Far, hosts: gone}]", code=4)
    assert said.startswith("=== Far, None\n") and said.endswith(".\nlog")
    assert (
        "ssh: connect to host 127.0.0.1 port 1: Connection refused" in said
        and "\nRemedy: check that ssh gets in" in said
    )


def test_check_mode_lists_what_would_change(folder: Folder) -> None:
    (folder.path / "a").write_text("old\n")
    (folder.path / "a").chmod(0o644)
    playbook = """\
- name: Files
  hosts: one
  gather_facts: false
  tasks:
    - name: Write
      ansible.builtin.copy: {content: "new\\n", dest: "{{ playbook_dir }}/{{ item.name }}", mode: "0644"}
      loop: [{name: a}]
      loop_control: {label: "{{ item.name }}"}
    - name: Set the mode
      ansible.builtin.file: {path: "{{ playbook_dir }}/a", mode: "0600"}
      diff: false
    - name: Hide
      ansible.builtin.copy: {content: "password\\n", dest: "{{ playbook_dir }}/a", mode: "0644"}
      no_log: true
    - {name: Tell, ansible.builtin.debug: {msg: secret}, no_log: true}
    - {name: Keep, ansible.builtin.file: {path: "{{ playbook_dir }}/a", mode: "0644"}}
"""
    lists = ["changed: Write (a)", "changed: Set the mode", "changed: Hide"]
    rest = ["=== Files, 3 changed", "log"]
    assert folder.run(playbook, "--check").splitlines() == [*lists, *rest]
    with_diff = folder.run(playbook, "--check", "--diff").splitlines()
    assert [line for line in with_diff if line.startswith(("+", "-")) and line[1:2] not in "+-"] == ["-old", "+new"]
    assert [line for line in with_diff if line in lists or line in rest] == [*lists, *rest]
    assert "password" not in folder.log() and "secret" not in folder.log()


def test_verbose_and_ci_print_what_default_prints(folder: Folder) -> None:
    playbook = """\
- name: Plain
  hosts: one
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: hello}
    - {ansible.builtin.command: "true", when: false}
    - ansible.builtin.fail: {msg: bad}
"""
    expected = folder.run(playbook, code=2, ANSIBLE_STDOUT_CALLBACK="default")
    assert "fatal: [one]: FAILED! =>" in expected and "skipping" not in expected
    assert folder.run(playbook, code=2, CI="true") == expected
    expected = folder.run(playbook, "-v", code=2, ANSIBLE_STDOUT_CALLBACK="default")
    assert folder.run(playbook, "-v", code=2) == expected
    assert not (folder.path / "log").exists()
    (folder.path / "log").write_text("in the way")
    said = folder.run(playbook, code=2)
    assert said.count("No log can be written, so everything is printed") == 1 and "fatal: [one]: FAILED! =>" in said


def test_the_newest_twenty_logs_are_kept(folder: Folder) -> None:
    (folder.path / "log").mkdir()
    for age in range(30):
        old = folder.path / f"log/old-{age}.log"
        old.touch()
        os.utime(old, (time.time() - 60 - age,) * 2)
    folder.run("[{name: Quick, hosts: one, gather_facts: false}]")
    kept = {log.name for log in (folder.path / "log").iterdir()}
    assert len(kept) == 20 and kept > {f"old-{age}.log" for age in range(19)}


def test_a_terminal_shows_what_runs_and_ctrl_c_leaves_a_log(folder: Folder) -> None:
    (folder.path / "play.yml").write_text("""\
- name: Long
  hosts: one
  gather_facts: false
  tasks: [{name: Wait, ansible.builtin.shell: "touch {{ playbook_dir }}/begun; exec sleep 60"}]
""")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        folder.command, cwd=folder.path, env=folder.environment(), stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    while b"Long: Wait" not in shown:
        shown += os.read(ours, 1000)
    while not (folder.path / "begun").exists():  # Python loses a signal that comes while it forks
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    while b"log: log/play-" not in shown:
        shown += os.read(ours, 1000)
    os.close(ours)
    assert "PLAY [Long]" in folder.log() and "TASK [Wait]" in folder.log()
