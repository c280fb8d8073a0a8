"""The host without firewall and updates, on a company's network: mirror, proxy, time server, authority."""

from __future__ import annotations

import pytest

testinfra_hosts = ["ansible://slipway-base-open"]


def test_no_firewall_is_installed(host):
    assert not host.package("firewalld").is_installed


@pytest.mark.only_on("debian")
def test_packages_come_from_the_mirror_alone(host):
    uris = host.check_output("apt-get indextargets --format '$(SITE)' 'Created-By: Packages'").splitlines()
    assert set(uris) == {"http://deb.debian.org/debian", "http://deb.debian.org/debian-security"}


@pytest.mark.only_on("debian")
def test_mirror_is_verified_by_the_archive_key(host):
    lines = host.file("/etc/apt/sources.list").content_string.splitlines()
    sources = [line for line in lines if line.startswith("deb ")]
    assert len(sources) == 3
    assert all("[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" in line for line in sources)


def test_time_comes_from_the_named_servers_alone(host):
    file = "/etc/chrony/chrony.conf" if host.system_info.distribution == "debian" else "/etc/chrony.conf"
    config = host.check_output(f"chronyd -p -f {file}")
    assert [line.split()[1] for line in config.splitlines() if line.startswith(("server", "pool"))] == [
        "ntp.example.org"
    ]


@pytest.mark.only_on("debian")
def test_packages_come_through_the_proxy(host):
    assert "GET http://deb.debian.org/debian/pool/main/c/chrony" in host.check_output("journalctl --unit tinyproxy")


# The stand-in has no update-ca-trust.
@pytest.mark.only_on("debian")
def test_the_companys_authority_is_trusted(host):
    authority = "/usr/local/share/ca-certificates/slipway.crt"
    assert host.run(f"openssl verify -CAfile /etc/ssl/certs/ca-certificates.crt {authority}").rc == 0
