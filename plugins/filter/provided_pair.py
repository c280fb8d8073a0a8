"""Checks a certificate, its chain and its key on the operator's machine, before any host is touched."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificatePublicKeyTypes,
    PrivateKeyTypes,
    PublicKeyTypes,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

PEM_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class PairError(Exception):
    """One reason to reject the pair, with the file's name and the remedy."""


def provided_pair_problems(
    given: Mapping[str, str | None], names: Sequence[str], sources: Mapping[str, str]
) -> list[str]:
    """Return every reason to reject a provided certificate; none for a good one.

    given: PEM texts "chain" (certificate first, then intermediates in order), "key" and "ca";
        None or "" if a file cannot be read.
    sources: for the same three, what the operator set: a path or the PEM text itself; "" for the CA = a public one.
    names: host names and IP addresses the certificate has to cover.
    """
    labels = {
        part: f"certificate_provided_{part}" + (f" ({source})" if source and "-----BEGIN" not in source else "")
        for part, source in sources.items()
    }
    try:
        for part in ("chain", "key", *(["ca"] if sources["ca"] else [])):
            if not sources[part]:
                raise PairError(f"{labels[part]} is empty. Remedy: name the PEM file, or give its text.")
            if not given[part]:
                raise PairError(f"{labels[part]} cannot be read. Remedy: correct the path of the file on this machine.")
        chain = _certificates(given["chain"] or "", labels["chain"])
        authorities = _certificates(given["ca"] or "", labels["ca"]) if sources["ca"] else []
        key = _private_key((given["key"] or "").encode(), labels["key"])
    except PairError as error:
        return [str(error)]

    checks: list[Callable[[], None]] = [
        lambda: _check_key(key, chain[0], labels),
        lambda: _check_chain(chain, authorities, labels),
        lambda: _check_dates(chain, labels["chain"]),
        lambda: _check_names(chain[0], names, labels["chain"]),
    ]
    problems = []
    for check in checks:
        try:
            check()
        except PairError as error:
            problems.append(str(error))
    return problems


def _certificates(text: str, label: str) -> list[x509.Certificate]:
    try:
        certificates = [x509.load_pem_x509_certificate(pem.encode()) for pem in PEM_CERTIFICATE.findall(text)]
    except ValueError as error:
        raise PairError(f"{label} has a broken certificate: {error}. Remedy: obtain the file again.") from error
    if not certificates:
        raise PairError(
            f"{label} has no PEM certificate. Remedy: name the certificate's file, or convert it to PEM:"
            " openssl x509 -inform der -in FILE -out FILE.pem"
        )
    return certificates


def _private_key(pem: bytes, label: str) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise PairError(
            f"{label} is protected with a passphrase. Remedy: remove it (openssl pkey -in FILE -out PLAIN),"
            " and keep PLAIN in Ansible Vault."
        ) from error
    except Exception as error:
        raise PairError(
            f"{label} has no private key in PEM. Remedy: name the key's file, not the certificate's."
        ) from error


def _public_bytes(public_key: PublicKeyTypes | CertificatePublicKeyTypes) -> bytes:
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_key(key: PrivateKeyTypes, certificate: x509.Certificate, labels: Mapping[str, str]) -> None:
    if _public_bytes(key.public_key()) != _public_bytes(certificate.public_key()):
        raise PairError(
            f"{labels['key']} does not belong to the first certificate in {labels['chain']}"
            f" ({_name(certificate)}). Remedy: give the key that this certificate was requested with, and"
            " put the server's certificate first."
        )
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < 2048:
        raise PairError(f"{labels['key']} has {key.key_size} bits. Remedy: request a certificate with 2048 or more.")


def _check_chain(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], labels: Mapping[str, str]
) -> None:
    for position, (certificate, issuer) in enumerate(itertools.pairwise(chain), start=1):
        if not _issued_by(certificate, issuer):
            raise PairError(
                f"{labels['chain']}: certificate {position} ({_name(certificate)}) was not signed by the next one"
                f" ({_name(issuer)}). Remedy: order them from the server's certificate up, each followed by its issuer."
            )
    last = chain[-1]
    if authorities:
        if last not in authorities and not any(_issued_by(last, authority) for authority in authorities):
            raise PairError(
                f"{labels['chain']} does not lead to {labels['ca']}: its last certificate ({_name(last)}) was signed by"
                f" {last.issuer.rfc4514_string()}. Remedy: add the missing intermediate, or name the right CA."
            )
    elif len(chain) == 1 and not _issued_by(last, last):
        raise PairError(
            f"{labels['chain']} lacks the certificate of its issuer ({last.issuer.rfc4514_string()})."
            " Remedy: append the intermediate, or name your own CA in certificate_provided_ca."
        )


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_dates(chain: Sequence[x509.Certificate], label: str) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 - Python 3.10 has no datetime.UTC
    for certificate in chain:
        if certificate.not_valid_after_utc <= now:
            raise PairError(
                f"{label}: {_name(certificate)} expired on {certificate.not_valid_after_utc:%Y-%m-%d}."
                " Remedy: renew it, or replace the old intermediate."
            )
        if certificate.not_valid_before_utc > now:
            raise PairError(
                f"{label}: {_name(certificate)} is not valid before"
                f" {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC."
                " Remedy: wait, or correct this machine's clock."
            )


def _check_names(certificate: x509.Certificate, names: Sequence[str], label: str) -> None:
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        alternatives = x509.SubjectAlternativeName([])
    hosts = [host.lower() for host in alternatives.get_values_for_type(x509.DNSName)]
    addresses = alternatives.get_values_for_type(x509.IPAddress)
    missing = [name for name in names if not _covered(name.lower().rstrip("."), hosts, addresses)]
    if missing:
        covered = ", ".join([*hosts, *map(str, addresses)]) or "no name at all"
        raise PairError(
            f"{label} is for {covered}, not for {', '.join(missing)}."
            " Remedy: correct certificate_names, or get a certificate for these names."
        )


def _covered(name: str, hosts: Sequence[str], addresses: Sequence[object]) -> bool:
    try:
        return ipaddress.ip_address(name) in addresses
    except ValueError:
        return name in hosts or f"*.{name.partition('.')[2]}" in hosts


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"serial {certificate.serial_number:x}"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"provided_pair_problems": provided_pair_problems}
