"""The stand-in's certificate, made by modules under Python 2.7 and its cryptography, as on CentOS 7."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.only_on("el7-standin")


def test_library_comes_as_a_package(host: Host) -> None:
    file = host.check_output("python2.7 -c 'import cryptography; print(cryptography.__file__)'").removesuffix("c")
    assert host.check_output("rpm --query --file %s", file).startswith("python2-cryptography-2.0.3-1.el7.")


def test_python27_signs_anew(host: Host, run_roles: Callable, python27: tuple[str, ...]) -> None:
    outcome = run_roles("certificate", certificate_names=["python27.example"], arguments=python27)
    assert outcome.changed[0] == "certificate : Sign the certificate with the CA"
    host.check_output(
        "cd /etc/slipway/tls && openssl verify -CAfile ca.pem -verify_hostname python27.example fullchain.pem"
    )
    assert run_roles("certificate", arguments=python27).changed == outcome.changed, "the names that it had"
