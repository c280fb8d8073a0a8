"""The check of a provided pair, which runs on the operator's machine."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from pki import issue

PLUGIN = Path(__file__).resolve().parents[3] / "plugins/filter/provided_pair.py"
provided_pair_problems = runpy.run_path(str(PLUGIN))["provided_pair_problems"]

NAME = "models.example"
ROOT = issue("Root")
INTERMEDIATE = issue("Intermediate", by=ROOT)
SERVER = issue("server", by=INTERMEDIATE, names=(NAME,))
CHAIN = SERVER.pem + INTERMEDIATE.pem


def problems(
    chain: str | None = CHAIN, key: str | None = SERVER.key, ca: str = "", names: tuple[str, ...] = (NAME,)
) -> str:
    given = {"chain": chain, "key": key, "ca": ca}
    sources = {"chain": "/certs/chain.pem", "key": "/certs/key.pem", "ca": "/certs/ca.pem" if ca else ""}
    return "\n".join(provided_pair_problems(given, names, sources))


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"ca": ROOT.pem},
        {"ca": ROOT.pem + issue("Another root").pem},
        {"chain": CHAIN + ROOT.pem, "ca": ROOT.pem},
        {"names": ("MODELS.example",)},
    ],
)
def test_good_pair_has_no_problems(good: dict[str, Any]) -> None:
    assert problems(**good) == ""


def test_certificate_that_signed_itself_is_a_chain() -> None:
    alone = issue("alone", names=("*.example",))
    assert problems(alone.pem, alone.key) == ""


WILDCARD = issue("wildcard", by=INTERMEDIATE, names=("*.example",))
EXPIRED = issue("server", by=INTERMEDIATE, names=(NAME,), days=(-90, -1))
EARLY = issue("server", by=INTERMEDIATE, names=(NAME,), days=(1, 90))
ENCRYPTED = SERVER.private_key.private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
).decode()
NAMESAKE = issue("Intermediate", by=ROOT)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"chain": None}, "certificate_provided_chain (/certs/chain.pem) cannot be read"),
        ({"chain": SERVER.key}, "certificate_provided_chain (/certs/chain.pem) has no PEM certificate"),
        ({"chain": CHAIN.replace("MI", "XX", 1)}, "has a broken certificate"),
        ({"key": SERVER.pem}, "certificate_provided_key (/certs/key.pem) has no private key"),
        ({"key": ENCRYPTED}, "is protected with a passphrase"),
        (
            {"key": INTERMEDIATE.key},
            "(/certs/key.pem) does not belong to the first certificate in certificate_provided_chain",
        ),
        ({"chain": INTERMEDIATE.pem + SERVER.pem}, "does not belong to the first certificate"),
        (
            {"chain": CHAIN + INTERMEDIATE.pem},
            "certificate 2 (CN=Intermediate) was not signed by the next one",
        ),
        ({"chain": SERVER.pem + NAMESAKE.pem}, "certificate 1 (CN=server) was not signed by the next one"),
        ({"chain": SERVER.pem}, "lacks the certificate of its issuer (CN=Intermediate)"),
        ({"chain": SERVER.pem, "ca": ROOT.pem}, "does not lead to certificate_provided_ca (/certs/ca.pem)"),
        ({"ca": issue("Root").pem}, "does not lead to certificate_provided_ca"),
        ({"chain": EXPIRED.pem + INTERMEDIATE.pem, "key": EXPIRED.key}, "CN=server expired on 20"),
        ({"chain": EARLY.pem + INTERMEDIATE.pem, "key": EARLY.key}, "CN=server is not valid before 20"),
        (
            {"names": (NAME, "other.example", "10.0.0.1")},
            "is for models.example, not for other.example, 10.0.0.1",
        ),
        (
            {
                "chain": WILDCARD.pem + INTERMEDIATE.pem,
                "key": WILDCARD.key,
                "names": ("a.b.example", "example"),
            },
            "not for a.b.example, example",
        ),
    ],
)
def test_bad_pair_is_named_with_its_remedy(bad: dict[str, Any], reason: str) -> None:
    told = problems(**bad)
    assert reason in told
    assert "Remedy: " in told


def test_key_given_as_text_is_never_repeated() -> None:
    given = {"chain": CHAIN, "key": INTERMEDIATE.key, "ca": ""}
    told = provided_pair_problems(given, [NAME], given)
    assert told
    assert "PRIVATE" not in "".join(told)
