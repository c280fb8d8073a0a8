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
ARCHIVE = plugin("modules/model_image_archive.py")


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


@pytest.mark.parametrize(
    ("said", "looked"),
    [
        ({"image ls --quiet app:1": "sha256:a\n"}, {"found": True, "images": []}),
        ({"info": "[[driver-type io.containerd.snapshotter.v1]]"}, {"found": False, "images": []}),
        (
            {"image inspect": '[{"RootFS": {"Layers": ["a", "b"]}}, {"RootFS": {}}]'},
            {"found": False, "images": [["a", "b"]]},
        ),
        ({"image ls --quiet --no-trunc": ""}, {"found": False, "images": []}),
    ],
    ids=["there", "containerd", "layers", "no images"],
)
def test_a_server_is_asked_for_the_image_and_else_for_its_layers(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str], looked: dict[str, object]
) -> None:
    answers = said | {"info": said.get("info", "[[Backing Filesystem extfs]]")}
    answers.setdefault("image ls --quiet --no-trunc", "sha256:a\nsha256:b\n")

    def docker(*command: str) -> str:
        return next((answer for start, answer in answers.items() if " ".join(command[1:]).startswith(start)), "")

    monkeypatch.setattr(ARCHIVE, "run", docker)
    assert ARCHIVE.look_for("app:1") == looked


def test_sources_can_be_read_in_a_container_and_have_nobodys_name(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("xor/model.h5", "xor/train", "xor/__pycache__/x.pyc", "xor/.DS_Store", "left/out"):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_text(name)
        (models / name).chmod(0o600)
    (models / "xor/train").chmod(0o700)
    (models / "xor").chmod(0o700)
    authorities = tmp_path / "authorities"
    authorities.write_text("CA")
    authorities.chmod(0o600)
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
        SOURCES.unpack(str(tmp_path / "sources.tar"), str(tmp_path / "there"), ["/nowhere", str(authorities)])
    finally:
        os.umask(before)
    assert (tmp_path / "there/models/xor/model.h5").read_text() == "xor/model.h5"
    assert (tmp_path / "there/app/ca-certificates.crt").read_text() == "CA"
    for name in "models/xor/model.h5", "app/ca-certificates.crt":
        assert (tmp_path / "there" / name).stat().st_mode & 0o777 == 0o644
    with pytest.raises(SOURCES.SourcesError, match="No CA file is at /nowhere"):
        SOURCES.unpack(str(tmp_path / "sources.tar"), str(tmp_path / "there"), ["/nowhere"])


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
