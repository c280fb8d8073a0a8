"""The stand-in's nginx: EPEL's, then nginx.org's, both from the mirror and only with the right signature."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.only_on("el7-standin")

INSTALLED = "rpm --query nginx --queryformat '%{EPOCH}:%{NAME}'"


def test_nginx_comes_from_epel(host: Host) -> None:
    assert host.check_output(INSTALLED) == "0:nginx"
    assert not host.file("/etc/yum.repos.d/nginx.repo").exists
    assert host.process.filter(comm="nginx", user="nginx")


def test_nginx_of_a_mirror_is_installed_if_the_right_key_signed_it(host: Host, run_roles: Callable) -> None:
    """The last test, because it replaces the host's nginx."""
    host.check_output("rpm --erase nginx")
    refused = run_roles("nginx", nginx_source="upstream", nginx_repository_url="http://127.0.0.1:8999/forged")
    assert "GPG" in refused.failure
    assert host.run(INSTALLED).rc == 1
    assert run_roles("nginx", nginx_source="upstream").failure == ""
    assert host.check_output(INSTALLED) == "1:nginx"
    assert host.run("curl -sS --cacert /etc/slipway/tls/ca.pem https://localhost/").rc == 0
