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
GATE = plugin("modules/readiness_gate.py")
LEASE = plugin("modules/deploy_lease.py")
ANSWERS = plugin("modules/service_answers.py")
NETWORKS = plugin("filter/networks.py")
STATE = plugin("modules/server_state.py")
SYSTEMS = plugin("filter/systems.py")
NAMES = plugin("filter/certificate_names.py")
NGINX = plugin("filter/nginx.py")


@pytest.mark.parametrize(("bounding", "may"), [("000001ffffffffff", True), ("00000000a80425fb", False)])
def test_a_container_without_the_capability_sets_no_clock(bounding: str, may: bool) -> None:
    assert SYSTEMS.may_set_clock(f"Name:\tsystemd\nCapEff:\t000001ffffffffff\nCapBnd:\t{bounding}\n") is may


def test_names_of_a_certificate_are_hosts_and_addresses() -> None:
    good = ["models.example.org", "*.example.org", "localhost", "10.1.2.3", "2001:db8::1"]
    assert NAMES.invalid_certificate_names(good) == []
    bad = ["https://models.example", "models.example:443", "a b", "", "1:2", "10.1.2.300", "10.01.2.3", "fe80::1%eth0"]
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


UPSTREAM = """upstream model_servers {
    zone model_servers 64k;
    server 172.16.239.10:5000 max_fails=0;
    server 172.16.239.11:5000 max_fails=0;
}
upstream model_servers_without_1 {
    server 172.16.239.9:5000 max_fails=0;
}
"""


def test_the_state_has_what_nginx_serves_and_what_is_out_of_rotation(tmp_path: Path) -> None:
    assert STATE.serving(UPSTREAM) == ["172.16.239.10", "172.16.239.11"]
    assert STATE.serving("") == STATE.serving("upstream model_servers {\n    server 127.0.0.1:9 down;\n}\n") == []
    rotation = f"if (-f {tmp_path}/172.16.239.10:5000) {{\n}}\n"
    assert STATE.drain_folder(rotation) == str(tmp_path) and STATE.drain_folder("") == ""
    assert STATE.out("") == STATE.out(str(tmp_path)) == []
    for stale in "172.16.239.10:5000", "172.16.239.15:5000":
        (tmp_path / stale).touch()
    assert STATE.out(str(tmp_path)) == ["172.16.239.10", "172.16.239.15"]


def test_a_line_that_is_cut_off_leaves_the_rest_of_the_history() -> None:
    assert STATE.history('{"release": "a"}\n{"rel') == [{"release": "a"}]


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"id": "a", "image": "slipway/model-server:a"}')
    assert list(STATE.releases(str(tmp_path))) == ["a"]
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(STATE.StateError, match=r"b\.json is not a release's record. Remedy"):
        STATE.releases(str(tmp_path))


def test_the_engine_says_what_it_cannot_limit() -> None:
    assert STATE.unenforced_limits({"MemoryLimit": True, "SwapLimit": False, "PidsLimit": True}) == ["swap"]


def test_a_release_is_read_from_its_image_and_containers() -> None:
    image = {"Config": {"Labels": {"slipway.models": "digits-0a1b xor-2c3d xor.10-4e5f digits_even-ff"}}}
    assert STATE.models(image) == {"digits": "0a1b", "xor": "2c3d", "xor.10": "4e5f", "digits_even": "ff"}
    assert STATE.models({"Config": {"Labels": None}}) == {}


@pytest.mark.parametrize(
    ("line", "gone", "verdict"),
    [
        ("", "", "free"),
        ("not a lease", "", "free"),
        ("100 50 me here 1 2", "", "ours"),
        ("100 50 other there 3 4", "", "held"),
        ("100 50 other there 3 4", "other there 3 4", "gone"),
        ("100 50 other there 3 4", "other there 3 5", "held"),
        ("99 50 other there 3 4", "", "expired"),
    ],
)
def test_a_lease_is_taken_only_from_nobody(line: str, gone: str, verdict: str) -> None:
    assert LEASE.judge(LEASE.parse(line), "me here 1 2", gone, 99) == verdict


def gate(answers: list[tuple[int, str]], restarts: list[int], seconds: int = 3) -> str:
    clock = iter(range(100))
    counts = iter(restarts)
    last = answers[-1]
    replies = iter(answers)
    why: str = GATE.wait(
        "url",
        seconds,
        lambda _: next(replies, last),
        lambda: next(counts, restarts[-1]),
        lambda: next(clock),
        lambda _: None,
    )
    return why


def test_the_gate_waits_for_an_answer_and_takes_the_verdict_at_once() -> None:
    assert gate([(0, ""), (0, ""), (200, "ready")], [0]) == ""
    assert gate([(0, ""), (503, "digit should be 4")], [0]) == "digit should be 4"
    assert gate([(0, "")], [0]) == "it gives no answer in 3 s"
    assert gate([(0, "")], [2, 2, 5], 60) == "it ends as soon as it starts"


def test_the_replicas_take_the_addresses_from_the_tenth_on() -> None:
    network = NETWORKS.replica_network("172.16.239.0/24", "2")
    assert network == {
        "gateway": "172.16.239.1",
        "spare": "172.16.239.9",
        "replicas": ["172.16.239.10", "172.16.239.11"],
        "dynamic": "172.16.239.128/25",
    }


@pytest.mark.parametrize(
    ("subnet", "replicas", "fault"),
    [
        ("172.16.239.0/24", 118, ""),
        ("172.16.239.0/24", 119, "room for 118"),
        ("172.16.239.0/24", 0, "at least one"),
        ("172.16.239.7/24", 2, "host bits"),
        ("172.16.239.0", 2, "no prefix"),
        ("172.16.239.0/29", 1, "room for 0"),
        ("anything", 2, "Expected 4 octets"),
        ("fd00::/64", 2, "Expected 4 octets"),
    ],
)
def test_a_subnet_that_does_not_fit_is_refused(subnet: str, replicas: int, fault: str) -> None:
    said = NETWORKS.network_fault(subnet, replicas)
    assert fault in said and bool(fault) == bool(said)


def test_a_route_to_the_subnet_is_found_unless_it_leads_to_the_bridge() -> None:
    routes = [
        "default via 10.0.0.1 dev eth0",
        "10.0.0.0/24 dev eth0 proto kernel",
        "172.16.0.0/12 via 10.0.0.2 dev eth0",
        "172.16.239.0/24 dev slipway0 proto kernel",
        "172.16.239.77 dev tun0",
        "blackhole 172.16.239.128/25",
    ]
    assert NETWORKS.colliding_routes(routes, "172.16.239.0/24", "slipway0") == [routes[2], routes[4], routes[5]]


def test_a_container_has_the_address_of_its_network() -> None:
    networks = {"slipway": {"IPAddress": "172.16.239.10"}, "bridge": {"IPAddress": "172.17.0.2"}, "none": {}}
    found = {
        "Config": {"Labels": {"slipway.release": "r1"}},
        "State": {"Status": "running"},
        "NetworkSettings": {"Networks": networks},
    }
    assert STATE.container(found) == {"release": "r1", "address": "172.16.239.10", "status": "running"}
    stopped = found | {"NetworkSettings": {"Networks": {"slipway": {"IPAddress": ""}}}}
    assert STATE.container(stopped)["address"] == ""


def test_the_days_of_a_certificate_are_counted_in_any_locale() -> None:
    assert STATE.days_until("notAfter=Jan  2 00:00:00 1970 GMT\n", 0) == 1
    assert STATE.days_until("notAfter=Dec 31 23:59:59 1969 GMT", 0) == -1


def test_only_a_lease_that_has_not_expired_is_a_deploy_under_way() -> None:
    line = "100 50 operator there 3 4"
    assert STATE.lease(line, 99)["user"] == "operator"
    assert STATE.lease(line, 100) == STATE.lease("100 50", 1) == STATE.lease("", 1) == {}


def test_a_summary_asks_the_models_that_are_new_or_the_first_with_an_example() -> None:
    models = [{"name": "a", "examples": []}, {"name": "b", "examples": [1]}, {"name": "c", "examples": [1]}]
    assert [model["name"] for model in ANSWERS.chosen(models, ["a", "c"])] == ["c"]
    assert [model["name"] for model in ANSWERS.chosen(models, [])] == ["b"]
    assert ANSWERS.chosen(models[:1], ["a"]) == []
    assert ANSWERS.plain({"label": "3", "values": [0.1]}) == "3"
    assert ANSWERS.plain({"values": [0.1]}) == [0.1]
