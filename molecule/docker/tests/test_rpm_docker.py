"""The stand-in for CentOS 7 has an engine from its mirror of Docker's repository."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.only_on("el7-standin")


def test_repository_is_the_mirrors_and_verified(host):
    lines = host.file("/etc/yum.repos.d/docker-ce.repo").content_string.replace(" ", "").splitlines()
    assert "baseurl=http://127.0.0.1:8999/docker/7/$basearch/stable" in lines
    assert {"gpgcheck=1", "gpgkey=http://127.0.0.1:8999/key.asc"} <= set(lines)


def test_engine_is_of_these_packages(host):
    owners = host.check_output("rpm --query --file /usr/sbin/dockerd /usr/bin/docker /usr/bin/containerd").splitlines()
    assert [owner.rpartition(".")[0] for owner in owners] == [
        *("docker-ce-20.10.24-1.el7", "docker-ce-cli-20.10.24-1.el7", "containerd.io-1.6.33-1.el7")
    ]
    host.check_output("rpm --query nftables python-ipaddress")


@pytest.mark.parametrize(
    ("module", "package"),
    [("requests", "python-requests"), ("backports.ssl_match_hostname", "python-backports-ssl_match_hostname")],
)
def test_modules_for_docker_find_what_they_need_under_python27(host, module, package):
    code = f"import importlib; print(importlib.import_module('{module}').__file__)"
    file = host.check_output("python2.7 -c %s", code).removesuffix("c")
    assert host.check_output("rpm --query --queryformat '%%{NAME}' --file %s", file) == package


def test_engine_in_the_way_is_refused(host, run_roles):
    host.check_output("dnf --assumeyes --quiet install podman")
    outcome = run_roles("docker")
    assert outcome.changed == []
    assert "podman" in outcome.failure and "docker_remove_conflicting" in outcome.failure
    assert run_roles("docker", docker_remove_conflicting=True).changed == [
        "docker : Remove packages that conflict with the engine"
    ]
    assert not host.package("podman").is_installed
