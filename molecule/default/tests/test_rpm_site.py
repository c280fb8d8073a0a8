"""The whole site on the stand-in for CentOS 7, once more with every module under Python 2.7."""

from __future__ import annotations

import pytest
from test_site import site_changes
from testinfra.host import Host

pytestmark = pytest.mark.only_on("el7-standin")


def test_what_serves_comes_from_packages(host: Host) -> None:
    owners = host.check_output("rpm --query --queryformat '%{NAME} ' --file /usr/sbin/nginx /usr/sbin/dockerd")
    assert owners.split() == ["nginx", "docker-ce"]


def test_python27_finds_nothing_to_change(python27: tuple[str, ...]) -> None:
    changes = site_changes(*python27)
    # The image is built on this machine, whose older images other checks may have left.
    assert [name for name in changes if not name.startswith("model_image : Remove older images")] == []
