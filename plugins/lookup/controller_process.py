"""Names the ansible-playbook that runs, for the lease on a server: who, on which controller, by which process."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import uuid
from pathlib import Path
from typing import Any

from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
  name: controller_process
  short_description: names a process of this controller
  description:
    - Without a term, this ansible-playbook as C(USER CONTROLLER PID STARTED), four words.
    - The controller is its host name and, since several may have the same one, the number of its network card.
    - With a term, when the process with that id was started; empty where there is none.
  options:
    _terms:
      description: the id of a process
"""


def started(pid: int) -> str:
    """When a process was started, in the system's own units and without blanks; empty where it is gone.

    With its id that names a process for good.
    """
    if Path("/proc/self").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return ""
        # proc(5): the third field and on; the second may have blanks in it, and ends with the last bracket.
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    ps = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return "_".join(ps.stdout.split())


class LookupModule(LookupBase):  # type: ignore[misc]
    """The lookup; tasks are templated in a child of ansible-playbook."""

    def run(self, terms: list[str], variables: Any = None, **kwargs: Any) -> list[str]:
        if terms:
            return [started(int(terms[0]))]
        pid = os.getppid()
        return [f"{getpass.getuser()} {socket.gethostname()}/{uuid.getnode():012x} {pid} {started(pid)}"]
