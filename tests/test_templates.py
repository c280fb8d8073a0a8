"""Renders each template of role nginx as strictly as Ansible can, and has real nginx test the results.

One container, made from tests/nginx/, tests the whole matrix.
"""

from __future__ import annotations

import io
import itertools
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from conftest import plugin

try:
    from ansible.template import trust_as_template
except ImportError:  # before ansible-core 2.19 all text was trusted

    def trust_as_template(value: str) -> str:
        return value


ROOT = Path(__file__).resolve().parent.parent
ROLE = ROOT / "roles/nginx"
IMAGE = "slipway/nginx-test"

# nginx's version, OpenSSL's, whether `http2 on` is due, the suite whose nginx is on the same side of that change.
BUILDS = [
    ("1.20.1", "1.0.2", False, "bookworm"),
    ("1.20.1", "1.1.1", False, "bookworm"),
    ("1.22.1", "3.0.20", False, "bookworm"),
    ("1.26.1", "1.0.2", True, "trixie"),
    ("1.26.3", "3.5.6", True, "trixie"),
]
SYSTEMS = {
    "Debian": {"os_family": "Debian", "distribution": "Debian", "distribution_major_version": "12"},
    "RedHat": {"os_family": "RedHat", "distribution": "Rocky", "distribution_major_version": "9"},
}
SERVERS = [[], ["172.16.239.10:5000"], ["172.16.239.10:5000", "172.16.239.11:5000"]]
SETTINGS = [
    {},
    {
        # Strings, as `-e name=value` gives them.
        "nginx_https_public_port": "8443",
        "nginx_hsts_max_age": "31536000",
        "nginx_max_body_mb": "100",
        "nginx_answer_timeout_seconds": "2",
        "nginx_acme_webroot": "/srv/acme",
        "nginx_metrics_networks": ["10.0.0.0/8", "2001:db8::/32"],
        "nginx_source": "upstream",
    },
    {
        "nginx_successor": {
            "address": "192.0.2.7",
            "name": "models.example.org",
            "ca": "/etc/slipway/tls/fullchain.pem",
        },
    },
]
LOOPBACKS: list[dict[str, Any]] = [{"device": "lo"}, {"device": "lo", "ipv6": [{"address": "::1"}]}]


def load(file: Path) -> Any:
    """Reads a YAML file of the role's, whose text is then a template."""
    return DataLoader().load(trust_as_template(file.read_text()))


def variables_of(system: str, **more: Any) -> dict[str, Any]:
    """Returns the role's variables on a system, as Ansible would load them, `more` on top."""
    files = (ROLE / "defaults/main.yml", ROLE / "vars/main.yml", ROLE / f"vars/{system}.yml")
    variables: dict[str, Any] = {"ansible_managed": "Ansible managed", "ansible_facts": SYSTEMS[system]}
    for file in files:
        variables |= load(file)
    return variables | more


def render(template: str, variables: dict[str, Any]) -> str:
    """Renders a template as Ansible's template module does; an undefined variable is an error."""
    templar = Templar(loader=DataLoader(), variables=variables)
    text = trust_as_template((ROLE / "templates" / template).read_text())
    return templar.template(text, preserve_trailing_newlines=True, overrides={"trim_blocks": True})


@pytest.fixture(scope="module")
def matrix() -> dict[str, dict[str, str]]:
    """Returns SUITE/CASE -> file name -> text, for every combination."""
    cases = {}
    for number, (build, system, servers, settings, loopback) in enumerate(
        itertools.product(BUILDS, SYSTEMS, SERVERS, SETTINGS, LOOPBACKS)
    ):
        version, openssl, http2, suite = build
        variables = variables_of(system, _nginx_version=version, _nginx_openssl=openssl, nginx_upstream_servers=servers)
        variables |= settings | {"nginx_upstream_spare": "172.16.239.9:5000"}
        variables["ansible_facts"] = SYSTEMS[system] | {"lo": loopback}
        names = ("nginx.conf", "upstream.conf", "rotation.conf")
        files = {name: render(f"{name}.j2", variables) for name in names}
        nginx, upstream, rotation = files.values()
        assert ("http2 on;" in nginx, " http2 default_server" in nginx) == (http2, not http2)
        assert ("TLSv1.3" in nginx) == (openssl != "1.0.2")
        assert ("[::]:443" in nginx) == ("ipv6" in loopback)
        # All servers together; and for each one the others and the spare, chosen while that one is out of rotation.
        assert upstream.count("max_fails") == len(servers) + len(servers) ** 2
        groups = set(re.findall(r"^upstream (\S+) {", upstream, re.MULTILINE))
        assert set(re.findall(r"set \$model_servers (\S+);", rotation)) == groups
        cases[f"{suite}/{number}"] = files
    return cases


@pytest.fixture(scope="module")
def said(matrix: dict[str, dict[str, str]]) -> str:
    """What the real nginx say of their builds and of each case, and of one that is broken on purpose."""
    cases = dict(matrix)
    for suite in ("bookworm", "trixie"):
        broken = dict(cases[next(case for case in cases if case.startswith(suite))])
        broken["nginx.conf"] = broken["nginx.conf"].replace("server_tokens off;", "server_tokenz off;")
        cases[f"{suite}/broken"] = broken
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for case, files in cases.items():
            for name, text in files.items():
                entry = tarfile.TarInfo(f"{case}/{name}")
                entry.size = len(text.encode())
                tar.addfile(entry, io.BytesIO(text.encode()))
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", IMAGE, ROOT / "tests/nginx"], check=True, capture_output=True
    )
    run = ["docker", "run", "--rm", "--interactive", "--network", "none", IMAGE]
    process = subprocess.run(run, input=archive.getvalue(), capture_output=True, check=False)
    assert process.returncode == 0, process.stderr.decode()
    return process.stdout.decode()


def test_real_nginx_accepts_every_combination(matrix: dict[str, dict[str, str]], said: str) -> None:
    results = re.findall(r"^case (\S+) (\d+)\n(.*)$", said, re.MULTILINE)
    assert len(results) == len(matrix) + 2
    refused = {case: message for case, code, message in results if code != "0"}
    broken = {case: refused.pop(case, "") for case in ("bookworm/broken", "trixie/broken")}
    assert refused == {}
    assert all('unknown directive "server_tokenz"' in message for message in broken.values())


@pytest.mark.parametrize(
    ("build", "version", "openssl"),
    [
        (
            "nginx version: nginx/1.20.1\nbuilt by gcc 4.8.5\nbuilt with OpenSSL 1.1.1k  FIPS 25 Mar 2021",
            "1.20.1",
            "1.1.1",
        ),
        ("nginx version: nginx/1.26.1\nbuilt with OpenSSL 1.0.2k-fips  26 Jan 2017", "1.26.1", "1.0.2"),
        (None, "1.22.1", "3.0"),
        (None, "1.26.3", "3.5"),
    ],
)
def test_versions_are_read_from_what_nginx_says(said: str, build: str | None, version: str, openssl: str) -> None:
    if build is None:
        build = next(part for part in said.split("version ") if f"nginx/{version}" in part)
    read = plugin("filter/nginx.py").nginx_build(build)
    assert read["nginx"] == version
    assert read["openssl"].startswith(openssl)


def test_unit_is_rendered_without_an_undefined_variable() -> None:
    unit = render("service.conf.j2", variables_of("Debian"))
    assert "Restart=on-failure" in unit
    assert unit.endswith("\n")
