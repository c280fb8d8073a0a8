"""What tests share: the files of roles, and the embedded host of `make up` and of changes under load."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from types import ModuleType

import pytest

from host import HOST, ROOT

# Tests read what Ansible's own callback prints; those of callback brief ask for it. Plays of theirs leave no log.
os.environ["ANSIBLE_STDOUT_CALLBACK"] = "default"


def plugin(path: str) -> ModuleType:
    """Load a plugin or module from its file: plugin("modules/bundle_sums.py")."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "."), ROOT / "plugins" / path)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def make(target: str) -> str:
    """Run a target of the Makefile on the embedded host of the checks' own and return what it said."""
    environment = os.environ | {"ANSIBLE_INVENTORY": "tests/embedded", "ANSIBLE_STDOUT_CALLBACK": "brief", "CI": ""}
    run = subprocess.run(["make", target], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr
    return run.stdout


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only_full: part of `make chaos` alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.get_closest_marker("only_full") and os.environ.get("CHAOS") != "full"]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def embedded() -> Iterator[str]:
    """A fresh embedded host, slipway-check at port 18443; the value is what its `make up` said."""
    make("down")
    yield make("up")
    make("down")
    for left in "ps --all", "volume ls":
        look = f"docker {left} --quiet --filter name={HOST}"
        assert subprocess.run(look, shell=True, capture_output=True, check=True).stdout == b"", look
