from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pki import issue
from testinfra.host import Host

RunRoles = Callable[..., Any]

FOLDER = "/etc/slipway/tls"
SIGN = "certificate : Sign the certificate with the CA"


def fingerprints(host: Host) -> str:
    return host.check_output(f"cd {FOLDER} && stat -c '%n %a %U %Y' * && sha256sum *")


def openssl(host: Host, file: str, options: str) -> str:
    return host.check_output(f"openssl x509 -in {FOLDER}/{file} -noout {options}")


def test_certificate_verifies_against_the_ca_for_each_name(host: Host) -> None:
    for name in (
        "-verify_hostname localhost",
        "-verify_hostname slipway-certificate",
        "-verify_ip 127.0.0.1",
    ):
        verify = host.run(
            f"openssl verify -x509_strict -purpose sslserver -CAfile {FOLDER}/ca.pem {name} {FOLDER}/fullchain.pem"
        )
        assert verify.rc == 0, verify.stderr
    wrong = host.run(f"openssl verify -CAfile {FOLDER}/ca.pem -verify_hostname other {FOLDER}/fullchain.pem")
    assert wrong.rc != 0


@pytest.mark.parametrize("name", ["key.pem", "ca.key"])
def test_keys_are_readable_by_root_alone(host: Host, name: str) -> None:
    key = host.file(f"{FOLDER}/{name}")
    assert (key.mode, key.user, key.group) == (0o600, "root", "root")


def test_certificate_is_valid_as_long_as_it_says_and_the_ca_longer(host: Host) -> None:
    assert host.run(f"openssl x509 -in {FOLDER}/fullchain.pem -noout -checkend {819 * 86400}").rc == 0
    assert host.run(f"openssl x509 -in {FOLDER}/fullchain.pem -noout -checkend {821 * 86400}").rc == 1
    assert host.run(f"openssl x509 -in {FOLDER}/ca.pem -noout -checkend {3600 * 86400}").rc == 0


def test_check_reports_exactly_what_was_altered_by_hand(host: Host, run_roles: RunRoles) -> None:
    host.check_output(f"cp {FOLDER}/ca.pem {FOLDER}/fullchain.pem")
    assert run_roles("certificate", check=True).changed == [SIGN]
    host.check_output(f"echo nonsense > {FOLDER}/fullchain.pem && chmod 644 {FOLDER}/ca.key")
    before = fingerprints(host)
    assert run_roles("certificate", check=True).changed[0] == "certificate : Create the key of the CA"
    assert fingerprints(host) == before
    assert run_roles("certificate").changed == ["certificate : Create the key of the CA", SIGN]
    assert run_roles("certificate", check=True).changed == []
    test_certificate_verifies_against_the_ca_for_each_name(host)


def test_certificate_near_its_end_is_signed_anew_by_the_same_ca(host: Host, run_roles: RunRoles) -> None:
    ca, serial = openssl(host, "ca.pem", "-fingerprint"), openssl(host, "fullchain.pem", "-serial")
    assert run_roles("certificate", certificate_valid_days=900, certificate_renew_days=850).changed == [SIGN]
    assert openssl(host, "fullchain.pem", "-serial") != serial
    assert openssl(host, "ca.pem", "-fingerprint") == ca


def test_ca_near_its_end_is_renewed_with_its_key_so_that_clients_go_on_trusting_it(
    host: Host, run_roles: RunRoles
) -> None:
    host.check_output(f"cp {FOLDER}/ca.pem /root/old-ca.pem")
    changed = run_roles("certificate", certificate_valid_days=3700).changed
    assert "certificate : Sign the CA with its own key" in changed
    host.check_output(f"openssl verify -CAfile /root/old-ca.pem {FOLDER}/fullchain.pem")


def test_new_name_is_signed_for(host: Host, run_roles: RunRoles) -> None:
    assert run_roles("certificate", certificate_names=["models.example", "10.1.2.3"]).changed == [SIGN]
    assert openssl(host, "fullchain.pem", "-ext subjectAltName").split("\n")[1].split() == [
        *("IP", "Address:10.1.2.3,", "DNS:models.example")
    ]
    assert run_roles("certificate").changed == [SIGN]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"certificate_source": "acme"}, "must be one of: self_signed, provided, got: acme"),
        ({"certificate_names": ["https://models.example"]}, "without https:// and without a port"),
        ({"certificate_names": []}, "list the host names"),
        ({"certificate_renew_days": 820}, "must lie between 0 and certificate_valid_days"),
        (
            {"certificate_source": "provided", "certificate_provided_key": "x"},
            "certificate_provided_chain is empty",
        ),
    ],
)
def test_bad_settings_are_refused_before_anything_is_touched(
    host: Host, run_roles: RunRoles, variables: dict[str, Any], reason: str
) -> None:
    before = fingerprints(host)
    outcome = run_roles("certificate", **variables)
    assert reason in outcome.failure
    assert outcome.changed == []
    assert fingerprints(host) == before


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An operator's folder with a chain, its root, its key in Ansible Vault, and another key."""
    folder = tmp_path_factory.mktemp("pki")
    root = issue("Root")
    intermediate = issue("Intermediate", by=root)
    server = issue("server", by=intermediate, names=("models.example",))
    (folder / "chain.pem").write_text(server.pem + intermediate.pem)
    (folder / "root.pem").write_text(root.pem)
    (folder / "other.pem").write_text(root.key)
    (folder / "key.pem").write_text(server.key)
    (folder / "password").write_text("word")
    vault = [
        "ansible-vault",
        "encrypt",
        "--vault-password-file",
        str(folder / "password"),
        str(folder / "key.pem"),
    ]
    subprocess.run(vault, check=True, capture_output=True)
    return folder


@pytest.fixture
def provided(pki: Path) -> dict[str, Any]:
    return {
        "certificate_source": "provided",
        "certificate_names": ["models.example"],
        "certificate_provided_chain": str(pki / "chain.pem"),
        "certificate_provided_key": str(pki / "key.pem"),
        "certificate_provided_ca": str(pki / "root.pem"),
        "arguments": ("--vault-password-file", str(pki / "password")),
    }


def test_mismatched_pair_is_refused_before_anything_is_touched(
    host: Host, run_roles: RunRoles, pki: Path, provided: dict[str, Any]
) -> None:
    before = fingerprints(host)
    outcome = run_roles("certificate", **provided | {"certificate_provided_key": str(pki / "other.pem")})
    assert f"certificate_provided_key ({pki}/other.pem) does not belong to the first certificate" in outcome.failure
    assert "Remedy" in outcome.failure
    assert outcome.changed == []
    assert fingerprints(host) == before


def test_provided_pair_is_installed_with_its_key_out_of_ansible_vault(
    host: Host, run_roles: RunRoles, provided: dict[str, Any]
) -> None:
    assert len(run_roles("certificate", **provided).changed) == 3
    host.check_output(
        f"openssl verify -CAfile {FOLDER}/ca.pem -untrusted {FOLDER}/fullchain.pem {FOLDER}/fullchain.pem"
    )
    key = host.check_output(f"openssl pkey -in {FOLDER}/key.pem -pubout")
    assert key == openssl(host, "fullchain.pem", "-pubkey").strip()
    assert host.file(f"{FOLDER}/key.pem").mode == 0o600
    host.check_output(f"echo >> {FOLDER}/key.pem")
    assert run_roles("certificate", check=True, **provided).changed == ["certificate : Write the provided key"]
    assert len(run_roles("certificate", **provided).changed) == 1
    assert run_roles("certificate", check=True, **provided).changed == []
