"""Every request verifies TLS against the CA file and the host name, with the host's own curl."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from testinfra.host import Host

ORIGIN = "https://localhost"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)


Ask = Callable[..., Answer]
RunRoles = Callable[..., Any]


@pytest.fixture
def ask(host: Host) -> Ask:
    """Send a request with curl on the host: ask("/predict", "--data x"). A path is relative to ORIGIN."""

    def run(url: str, options: str = "") -> Answer:
        url = ORIGIN + url if url.startswith("/") else url
        command = host.run(f"curl -sS -i -H Expect: --cacert /etc/slipway/tls/ca.pem {options} '{url}'")
        assert command.rc == 0, command.stderr
        head, _, body = command.stdout.replace("\r\n", "\n").partition("\n\n")
        status, *lines = head.splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(status.split()[1]), headers, body)

    return run


@pytest.fixture
def upstream(host: Host) -> Iterator[None]:
    """Start both model servers again after a test that stopped one."""
    yield
    host.check_output("systemctl start echo@5001 echo@5002 && sleep 0.5")


def workers(host: Host) -> set[int]:
    """The pids of nginx's workers, which a reload replaces."""
    user = "www-data" if host.system_info.distribution == "debian" else "nginx"
    return {process.pid for process in host.process.filter(comm="nginx", user=user)}


def test_service_runs_now_and_at_every_boot(host: Host) -> None:
    assert host.service("nginx").is_running
    assert host.service("nginx").is_enabled


def test_answers_over_http2_and_tls13(host: Host, ask: Ask) -> None:
    assert ask("/").status == 200
    options = "--cacert /etc/slipway/tls/ca.pem -sS -o /dev/null"
    assert host.check_output(f"curl {options} -w '%{{http_version}}' {ORIGIN}/") == "2"
    assert host.run(f"curl {options} --tlsv1.3 {ORIGIN}/").rc == 0


def test_refuses_old_tls_and_other_names(host: Host) -> None:
    options = "--cacert /etc/slipway/tls/ca.pem -sS -o /dev/null"
    old = host.run(f"curl {options} --ciphers DEFAULT@SECLEVEL=0 --tls-max 1.1 {ORIGIN}/")
    assert old.rc == 35 and "protocol version" in old.stderr
    assert host.run(f"curl {options} --resolve other.example:443:127.0.0.1 https://other.example/").rc == 60


def test_plain_http_is_redirected_to_the_public_port(ask: Ask) -> None:
    answer = ask("http://localhost/predict?a=b%20c")
    assert (answer.status, answer.headers["location"]) == (301, "https://localhost:8443/predict?a=b%20c")


def test_plain_http_on_the_tls_port_is_redirected_too(ask: Ask) -> None:
    assert ask("http://localhost:443/x").headers["location"] == "https://localhost:8443/x"


def test_acme_challenge_is_served_without_redirect(host: Host, ask: Ask) -> None:
    host.check_output("echo proof > /var/www/acme/.well-known/acme-challenge/token")
    answer = ask("http://localhost/.well-known/acme-challenge/token")
    assert (answer.status, answer.body) == (200, "proof\n")


def test_headers_reach_the_model_server(ask: Ask) -> None:
    headers = ask("/x", "-H 'X-Forwarded-For: 10.9.8.7'").json["headers"]
    assert headers["host"] == "localhost"
    assert headers["x-real-ip"] == "127.0.0.1"
    assert headers["x-forwarded-for"] == "10.9.8.7, 127.0.0.1"
    assert headers["x-forwarded-proto"] == "https"
    assert "connection" not in headers


def test_request_id_is_made_or_kept_and_given_back(ask: Ask) -> None:
    made = ask("/")
    assert len(made.headers["x-request-id"]) == 32
    assert made.json["headers"]["x-request-id"] == made.headers["x-request-id"]
    assert ask("/", "-H 'X-Request-ID: from-client-1'").headers["x-request-id"] == "from-client-1"
    assert ask("/", "-H 'X-Request-ID: not one\"'").headers["x-request-id"] != 'not one"'


def test_log_is_json_with_request_id_and_upstream(host: Host, ask: Ask) -> None:
    ask("/logged", "-H 'X-Request-ID: find-me-in-log'")
    line = json.loads(host.check_output("grep find-me-in-log /var/log/nginx/access.log | tail -n 1"))
    assert (line["uri"], line["status"], line["upstream_status"]) == ("/logged", 200, "200")
    assert float(line["upstream_seconds"]) >= 0


def test_connections_to_the_model_servers_are_kept(ask: Ask) -> None:
    connections = {(answer["server"], answer["client_port"]) for answer in (ask("/").json for _ in range(12))}
    assert len(connections) <= 2 * 2, "at most one a worker and server"


def test_says_no_version_and_sends_security_headers(ask: Ask) -> None:
    headers = ask("/").headers
    assert headers["server"] == "nginx"
    assert headers["x-content-type-options"] == "nosniff"
    assert "strict-transport-security" not in headers


def test_upload_below_the_limit_arrives_and_never_touches_the_disk(host: Host, ask: Ask) -> None:
    host.check_output("head -c 15000000 /dev/urandom > /tmp/upload")
    answer = ask("/predict", "--data-binary @/tmp/upload")
    assert answer.json["sha256"] == host.check_output("sha256sum /tmp/upload").split()[0]
    assert "buffered to a temporary file" not in host.file("/var/log/nginx/error.log").content_string


def test_body_above_the_limit_is_413_in_json(host: Host, ask: Ask) -> None:
    host.check_output("head -c 16000000 /dev/zero > /tmp/large")
    for protocol in ("--http1.1", "--http2"):
        answer = ask("/predict", f"{protocol} --data-binary @/tmp/large")
        assert answer.status == 413
        assert "15 MB" in answer.json["error"]
        assert answer.headers["x-request-id"]


def test_malformed_requests_are_answered_in_json(ask: Ask) -> None:
    assert ask("/" + 9000 * "a", "--http1.1").status == 414
    assert ask("/" + 9000 * "a", "--http1.1").json["error"]
    assert ask("/", f"--http1.1 -H 'X-Large: {9000 * 'a'}'").json["error"] == "the headers are too large"
    assert ask("/", "--http1.1 -H Host:").json["error"] == "this is not a valid HTTP request"


def test_slow_answer_is_504_in_json(ask: Ask) -> None:
    answer = ask("/slow")
    assert (answer.status, "in time" in answer.json["error"]) == (504, True)
    assert ask("/").status == 200, "one slow answer closed the server to everyone"


def test_errors_of_the_model_server_pass_through(ask: Ask) -> None:
    for status in (400, 404, 500):
        answer = ask(f"/status/{status}")
        assert (answer.status, "server" in answer.json) == (status, True)


def test_one_of_two_killed_costs_no_request(host: Host, upstream: None) -> None:
    host.check_output(": > /var/log/nginx/access.log")
    ask = (
        "curl -sS --cacert /etc/slipway/tls/ca.pem -H Expect: --data x -o /dev/null -w '%{http_code}\\n' "
        f"'{ORIGIN}/[1-200]'"
    )
    command = (
        "rm -f /tmp/killed; (sleep 0.3; systemctl kill --signal KILL echo@5001; touch /tmp/killed) & "
        f"{{ until test -e /tmp/killed; do {ask}; done; {ask}; }} | sort | uniq -c"
    )
    _, *statuses = host.check_output(command).split()
    assert statuses == ["200"]
    assert not host.service("echo@5001").is_running
    log = host.check_output("cat /var/log/nginx/access.log")
    first = [json.loads(line)["upstream"].split(",")[0] for line in log.splitlines()]
    assert first.count("127.0.0.1:5001") > 10, "it was killed before it had answered"
    assert "127.0.0.1:5001, 127.0.0.1:5002" in log, "no request was ever repeated"


def test_both_gone_is_502_in_json(host: Host, ask: Ask, upstream: None) -> None:
    host.check_output("systemctl stop echo@5001 echo@5002")
    answer = ask("/predict", "--data x")
    assert (answer.status, "no model server" in answer.json["error"]) == (502, True)


def test_metrics_are_shown_to_networks_that_are_named_and_to_no_others(ask: Ask, run_roles: RunRoles) -> None:
    for path in ("/metrics", "/metrics/1", "/metrics/", "/x/../metrics/1", "/%6detrics", "//metrics"):
        assert (ask(path, "--path-as-is").status, path) == (404, path)
    assert ask("/metrics/1").json == {"error": "there is nothing here"}
    assert run_roles("nginx", nginx_metrics_networks=["192.0.2.0/24"]).changed
    assert ask("/metrics/1").status == 404
    assert run_roles("nginx", nginx_metrics_networks=["127.0.0.0/8", "::1"]).changed
    shown = [ask(f"/metrics/{number}").json for number in (1, 2)]
    assert [(one["server"], one["request"]) for one in shown] == [
        (5001, "GET /metrics HTTP/1.0"),
        (5002, "GET /metrics HTTP/1.0"),
    ]
    assert ask("/metrics/3").status == ask("/metrics").status == 404
    assert run_roles("nginx").changed


def test_no_release_is_503_in_json_until_one_is_there(ask: Ask, run_roles: RunRoles) -> None:
    assert run_roles("nginx/upstream", nginx_upstream_servers=[]).changed
    answer = ask("/predict", "--data x")
    assert (answer.status, "no release" in answer.json["error"]) == (503, True)
    assert run_roles("nginx/upstream").changed
    assert ask("/").status == 200


def test_a_model_server_leaves_rotation_by_a_file_and_without_a_reload(
    host: Host, ask: Ask, run_roles: RunRoles
) -> None:
    running = workers(host)
    answering = lambda: {ask("/").json["server"] for _ in range(12)}  # noqa: E731
    assert answering() == {5001, 5002}
    host.check_output("touch /etc/nginx/out/127.0.0.1:5001")
    try:
        assert answering() == {5002}
        assert run_roles("nginx").changed == [], "this is not a file that nginx loads"
    finally:
        host.check_output("rm /etc/nginx/out/127.0.0.1:5001")
    assert answering() == {5001, 5002}
    assert workers(host) == running


def test_maintenance_is_503_with_retry_after_and_needs_no_reload(host: Host, ask: Ask, run_roles: RunRoles) -> None:
    running = workers(host)
    assert len(run_roles("nginx/maintenance", nginx_maintenance=True).changed) == 1
    try:
        client, browser = ask("/predict", "--data x"), ask("/", "-H 'Accept: text/html,*/*;q=0.8'")
        assert run_roles("nginx/maintenance", nginx_maintenance=True).changed == []
        assert run_roles("nginx").changed == []
    finally:
        assert len(run_roles("nginx/maintenance", nginx_maintenance=False).changed) == 1
    assert (
        (client.status, client.headers["retry-after"])
        == (browser.status, browser.headers["retry-after"])
        == (503, "120")
    )
    assert "in maintenance" in client.json["error"]
    assert browser.headers["content-type"] == "text/html" and "in maintenance" in browser.body
    after = ask("/")
    assert after.status == 200 and "retry-after" not in after.headers
    assert workers(host) == running


def test_bad_address_is_refused_before_it_is_written(host: Host, run_roles: RunRoles) -> None:
    before = host.file("/etc/nginx/upstream.conf").content_string
    assert "Remedy" in run_roles("nginx/upstream", nginx_upstream_servers=["model.example"]).failure
    assert "invalid port" in run_roles("nginx/upstream", nginx_upstream_servers=["127.0.0.1:99999"]).failure
    assert host.file("/etc/nginx/upstream.conf").content_string == before


def test_configuration_that_nginx_refuses_is_never_put_in_place(host: Host, run_roles: RunRoles) -> None:
    before, running = host.file("/etc/nginx/nginx.conf").content_string, workers(host)
    assert "/nowhere.pem" in run_roles("nginx", nginx_certificate_path="/nowhere.pem").failure
    assert host.file("/etc/nginx/nginx.conf").content_string == before
    assert workers(host) == running


def test_file_broken_by_hand_is_named_and_not_loaded(host: Host, ask: Ask, run_roles: RunRoles) -> None:
    running = workers(host)
    host.check_output("cp -p /etc/nginx/upstream.conf /root/ && echo 'oops;' >> /etc/nginx/upstream.conf")
    try:
        failure = run_roles("nginx").failure
    finally:
        host.check_output("mv /root/upstream.conf /etc/nginx/upstream.conf")
    assert 'unknown directive "oops" in /etc/nginx/upstream.conf' in failure and "Remedy" in failure
    assert workers(host) == running
    assert ask("/").status == 200


def test_check_reports_exactly_what_was_altered_by_hand(host: Host, run_roles: RunRoles) -> None:
    host.check_output("sed -i 's/least_conn;//' /etc/nginx/upstream.conf")
    host.check_output("sed -i 's/server_tokens off/server_tokens on/' /etc/nginx/nginx.conf")
    host.check_output("echo '# mine' >> /etc/systemd/system/nginx.service.d/slipway.conf")
    altered = [
        "nginx : Let systemd restart nginx, and record when it loads its files",
        "nginx : Write the configuration if nginx accepts it",
        "nginx : Write the upstream files if nginx accepts them",
    ]
    assert [
        name for name in run_roles("nginx", "nginx/upstream", check=True).changed if "Reload" not in name
    ] == altered
    assert set(altered) < set(run_roles("nginx", "nginx/upstream").changed)
    assert run_roles("nginx", "nginx/upstream", check=True).changed == []


def test_play_killed_before_the_reload_is_finished_by_the_next(host: Host, run_roles: RunRoles) -> None:
    running = workers(host)
    host.check_output("touch /etc/nginx/nginx.conf")
    assert run_roles("nginx").changed == ["nginx : Reload nginx"]
    assert not workers(host) <= running


def test_renewed_certificate_is_served(host: Host, run_roles: RunRoles) -> None:
    serial = "openssl s_client -connect localhost:443 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    before = host.check_output(serial)
    changed = run_roles("certificate", "nginx", certificate_names=["localhost", f"{int(time.time())}.example"]).changed
    assert changed == ["certificate : Sign the certificate with the CA", "nginx : Reload nginx"]
    time.sleep(1)
    assert host.check_output(serial) != before


def test_port_held_by_another_process_stops_the_play_before_it_changes_anything(
    host: Host, run_roles: RunRoles
) -> None:
    host.check_output("systemctl stop nginx && systemd-run --unit squatter python3 -m http.server 80")
    try:
        time.sleep(1)
        outcome = run_roles("nginx")
    finally:
        host.check_output("systemctl stop squatter && systemctl start nginx")
    assert ":80 is held by python3, pid" in outcome.failure and "Remedy" in outcome.failure
    assert outcome.changed == []


def test_killed_nginx_comes_back_by_itself(host: Host, ask: Ask) -> None:
    host.check_output("systemctl kill --signal KILL nginx")
    deadline = time.monotonic() + 20
    while not host.socket("tcp://0.0.0.0:443").is_listening and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ask("/").status == 200


@pytest.mark.only_on("debian")
def test_nginx_of_a_mirror_is_installed_if_the_right_key_signed_it(host: Host, ask: Ask, run_roles: RunRoles) -> None:
    """The last test, because it replaces the host's nginx."""
    host.check_output("/opt/make-mirror && apt-get -qq purge -y nginx")
    mirror = {"nginx_source": "upstream", "nginx_repository_url": "file:///srv/packages"}
    refused = run_roles("nginx", **mirror, nginx_repository_key_url="file:///srv/packages/stranger.asc")
    assert "is not signed" in refused.failure
    assert not host.package("nginx").is_installed
    assert run_roles("nginx", **mirror, nginx_repository_key_url="file:///srv/packages/mirror.asc").failure == ""
    assert host.package("nginx").version.endswith("+mirror1")
    assert host.process.filter(comm="nginx", user="nginx")
    assert ask("/").status == 200
