"""The roles' modules and filters: what they compute, apart from Ansible."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from conftest import plugin

FOLDER = plugin("modules/model_image_folder.py")
SOURCES = plugin("modules/model_image_sources.py")
SUMS = plugin("modules/bundle_sums.py")
MODELS = plugin("filter/models.py")
SYSTEMS = plugin("filter/systems.py")
NAMES = plugin("filter/certificate_names.py")
NGINX = plugin("filter/nginx.py")


def test_nothing_in_the_folder_of_models_is_passed_over() -> None:
    files = ["cats/cats.keras", "cats/model.yaml", "dogs/model.yml", "stray.h5"]
    assert MODELS.passed_over(files, ["cats", "dogs", "empty"]) == [
        "cats/model.yaml is ignored: rename it to model.yml",
        "stray.h5 lies beside the model folders: move it into a folder of its own",
        "empty/ is empty: add a model or remove the folder",
    ]
    assert MODELS.passed_over(["cats/cats.keras", "cats/model.yml"], ["cats"]) == []


@pytest.mark.parametrize(("bounding", "may"), [("000001ffffffffff", True), ("00000000a80425fb", False)])
def test_a_container_without_the_capability_sets_no_clock(bounding: str, may: bool) -> None:
    assert SYSTEMS.may_set_clock(f"Name:\tsystemd\nCapEff:\t000001ffffffffff\nCapBnd:\t{bounding}\n") is may


def test_names_of_a_certificate_are_hosts_and_addresses() -> None:
    good = ["models.example.org", "*.example.org", "localhost", "10.1.2.3", "2001:db8::1"]
    assert NAMES.invalid_certificate_names(good) == []
    bad = ["https://models.example", "models.example:443", "a b", "", "1:2"]
    assert NAMES.invalid_certificate_names([*good, *bad]) == bad
    assert NAMES.subject_alt_names(["b.example", "2001:db8::1", "a.example", "10.1.2.3"]) == [
        *("IP:2001:db8::1", "IP:10.1.2.3", "DNS:b.example", "DNS:a.example")
    ]


def test_holders_of_nginx_ports_are_named() -> None:
    lines = [
        "State  Recv-Q Send-Q Local Address:Port Peer Address:PortProcess",
        'LISTEN 0      511          0.0.0.0:443       0.0.0.0:*    users:(("nginx",pid=11,fd=6),("nginx",pid=10,fd=6))',
        'LISTEN 0      5            0.0.0.0:80        0.0.0.0:*    users:(("python3",pid=123,fd=3))',
        "LISTEN 0      511             [::]:80           [::]:*",
    ]
    assert NGINX.foreign_listeners(lines, "nginx") == [
        *("0.0.0.0:80 is held by python3, pid 123", "[::]:80 is held by an unknown process")
    ]


def test_a_macos_engine_is_given_a_folder_that_its_machine_shares() -> None:
    assert FOLDER.folder_of_all("darwin", "/Users/operator", 501) == "/Users/operator/Library/Caches/slipway"
    assert FOLDER.folder_of_all("linux", "/home/operator", 1000) == "/var/tmp/slipway-1000"


def test_a_run_gets_a_folder_of_its_own_and_removes_what_is_a_day_old(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    now = time.time()
    first, second = (Path(FOLDER.make_for_run(str(parent), "build-XXXXXX", now)) for _ in range(2))
    assert first != second and first.name.startswith("build-")
    assert {path.stat().st_mode & 0o777 for path in (parent, first, second)} == {0o700}
    shipped = Path(FOLDER.make_for_run(str(parent), "ship-server", now))
    assert Path(FOLDER.make_for_run(str(parent), "ship-server", now)) == shipped
    assert FOLDER.building(str(parent), now) == sorted(map(str, (first, second)))

    (first / "full").mkdir()
    (parent / "link").symlink_to(second)
    for old in (first, parent / "link"):
        os.utime(old, (0, now - 25 * 3600), follow_symlinks=False)
    os.utime(second, (0, now - 2 * 3600))
    FOLDER.make_for_run(str(parent), "ship-server", now)
    assert sorted(path.name for path in parent.iterdir()) == sorted((second.name, "ship-server"))
    assert FOLDER.building(str(parent), now) == []
    assert FOLDER.building(str(tmp_path / "none"), now) == []


@pytest.mark.parametrize("planted", ["link", "file"])
def test_a_folder_that_somebody_else_planted_is_refused(tmp_path: Path, planted: str) -> None:
    parent = tmp_path / "runs"
    if planted == "link":
        parent.symlink_to(tmp_path)
    else:
        parent.touch()
    with pytest.raises(FOLDER.FolderError, match="not this user's own"):
        FOLDER.make_for_run(str(parent), "build-XXXXXX", time.time())


def test_sources_can_be_read_in_a_container_and_have_nobodys_name(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("xor/model.h5", "xor/train", "xor/__pycache__/x.pyc", "xor/.DS_Store", "left/out"):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_text(name)
        (models / name).chmod(0o600)
    (models / "xor/train").chmod(0o700)
    (models / "xor").chmod(0o700)
    sources = [
        {"to": "app/wheelhouse", "from": "", "what": []},
        {"to": "models", "from": str(models), "what": ["xor"]},
        {"to": "all", "from": str(models), "what": ["."]},
    ]
    SOURCES.pack(str(tmp_path / "sources.tar"), sources)
    with tarfile.open(tmp_path / "sources.tar") as archive:
        members = {member.name: (member.mode & 0o777, member.uid, member.uname) for member in archive}
    assert members["app/wheelhouse"] == members["models/xor"] == (0o755, 0, "")
    assert members["models/xor/model.h5"] == (0o644, 0, "")
    assert members["models/xor/train"] == (0o755, 0, "")
    assert "all/left/out" in members and "models/left/out" not in members
    assert not [name for name in members if "__pycache__" in name or ".DS_Store" in name]

    before = os.umask(0o077)
    try:
        SOURCES.unpack(str(tmp_path / "sources.tar"), str(tmp_path / "there"))
    finally:
        os.umask(before)
    assert (tmp_path / "there/models/xor/model.h5").read_text() == "xor/model.h5"
    assert (tmp_path / "there/models/xor/model.h5").stat().st_mode & 0o777 == 0o644


def test_sums_are_those_of_sha256sum_and_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    files = {"bundle.json": b"{}", "wheels/a b.whl": bytes(range(256)) * 9000}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert SUMS.write(tmp_path) == sum(map(len, files.values()))
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
    assert SUMS.damage(tmp_path) == []
    assert SUMS.write(tmp_path) and SUMS.damage(tmp_path) == []

    (tmp_path / "wheels/a b.whl").write_bytes(b"x")
    (tmp_path / "bundle.json").unlink()
    assert SUMS.damage(tmp_path) == ["./bundle.json: No such file or directory", "./wheels/a b.whl: FAILED"]


@pytest.mark.parametrize(
    ("sums", "said"),
    [(None, "No such file or directory"), (b"", "no sums in it"), (b"x  ./y\n", "line 1 is no sum"), (b"\xff", "")],
)
def test_a_bundle_without_sums_is_damaged(tmp_path: Path, sums: bytes | None, said: str) -> None:
    if sums is not None:
        (tmp_path / "SHA256SUMS").write_bytes(sums)
    (found,) = SUMS.damage(tmp_path)
    assert found.startswith("SHA256SUMS: ") and said in found
