"""The process: how it starts, how it refuses to start, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.dns import Answer, NameServer
from tests.support.origin import Origin
from tests.support.proxy import COMMAND, SWEEP, Proxy, clean_environment, configuration, rule, write
from tests.support.serving import echo
from tests.support.tools import wait_until


def _serve(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """A start that is expected to fail."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=clean_environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
        check=False,
    )


def _refused(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for text in says:
        assert text in done.stderr, done.stderr


# Start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["proxy", "admin"])
def test_a_port_in_use(tmp_path: Path, port: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        listen = {"proxy": "127.0.0.1:0", "admin": "127.0.0.1:0"} | {port: address}
        write(
            tmp_path / "policy.yaml",
            configuration(name_server="127.0.0.1:53", allow=["origin.test"], listen=listen),
        )
        done = _serve("--config", str(tmp_path / "policy.yaml"))
    _refused(done, address, "in use")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up the right to low ports")
def test_a_port_that_is_not_permitted(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    config = configuration(
        name_server="127.0.0.1:53",
        allow=["origin.test"],
        listen={"proxy": "127.0.0.1:81", "admin": "127.0.0.1:0"},
    )
    write(tmp_path / "policy.yaml", config)
    unprivileged = (
        "setpriv",
        "--bounding-set",
        "-net_bind_service",
        "--inh-caps",
        "-net_bind_service",
    )
    done = subprocess.run(
        [*unprivileged, *COMMAND, "--config", str(tmp_path / "policy.yaml")],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    _refused(done, "127.0.0.1:81", "ermission")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_configuration(tmp_path: Path) -> None:
    done = _serve("--config", str(tmp_path / "nowhere.yaml"))
    _refused(done, "nowhere.yaml")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_broken_configuration(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "version: 1\npolicies:\n  - name: a\n    allow: [a*.com]\n"
    )
    _refused(_serve("--config", str(tmp_path / "policy.yaml")), "policy.yaml:4:13:")


def test_an_address_that_is_not_this_machines(tmp_path: Path) -> None:
    listen = {"proxy": "192.0.2.1:3128", "admin": "127.0.0.1:0"}
    write(
        tmp_path / "policy.yaml",
        configuration(name_server="127.0.0.1:53", allow=["origin.test"], listen=listen),
    )
    _refused(_serve("--config", str(tmp_path / "policy.yaml")), "192.0.2.1:3128")


def test_health_readiness_and_policy(proxy: Proxy) -> None:
    assert proxy.ask_admin("/healthz").status == 200
    assert proxy.ask_admin("/readyz").status == 200
    policy = proxy.policy()
    assert (policy["generation"], policy["rules"]) == (1, 1)
    assert proxy.metrics()["egress_proxy_policy_rules"] == 1


# The end ----------------------------------------------------------------------------------------


def test_an_idle_proxy_ends_at_once(proxy: Proxy) -> None:
    start = time.monotonic()
    assert proxy.stop() == []
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_open_tunnel_is_finished(
    start_proxy: StartProxy, serve: Serve, number: signal.Signals
) -> None:
    proxy = start_proxy(drain_timeout="20s")
    server = serve(echo)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        proxy.signal(number)
        wait_until(lambda: proxy.ask_admin("/readyz").status == 503, what="readyz 503")
        assert proxy.ask_admin("/healthz").status == 200
        client.send(b"still here")
        assert client.exactly(10) == b"still here"
        with pytest.raises(ConnectionError):
            _use_new_connection(proxy)
    start = time.monotonic()
    assert proxy.wait() == 0
    assert time.monotonic() - start < 3
    (line,) = (line for line in proxy.lines if line["event"] == "ALLOWED")
    assert (line["bytes_sent"], line["bytes_received"]) == (10, 10)


def _use_new_connection(proxy: Proxy) -> None:
    with proxy.client() as client:
        client.send("GET http://origin.test/ HTTP/1.1\r\nHost: origin.test\r\n\r\n")
        if not client.socket.recv(100):
            raise ConnectionResetError


def test_no_tunnel_outlives_the_drain_timeout(start_proxy: StartProxy, serve: Serve) -> None:
    proxy = start_proxy(drain_timeout="500ms")
    server = serve(echo)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        client.send(b"x")
        client.exactly(1)
        start = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert client.is_closed(seconds=0.5 + SWEEP)
        assert time.monotonic() - start > 0.4
    assert proxy.wait() == 0
    (line,) = proxy.lines
    assert (line["event"], line["reason"]) == ("CLOSED", "drain_timeout")
    assert (line["bytes_sent"], line["bytes_received"]) == (1, 1)


def test_a_response_under_way_is_finished(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(drain_timeout="20s")
    base = f"http://origin.test:{origin.http}"
    with proxy.client() as client:
        client.send(f"GET {base}/drip/20 HTTP/1.1\r\nHost: {base[7:]}\r\n\r\n")
        client.until(b"\r\n\r\n")
        proxy.signal(signal.SIGTERM)
        assert client.exactly(20) == b"." * 20
        assert client.is_closed()  # no further request on this connection
    assert proxy.wait() == 0
    assert [line["event"] for line in proxy.lines] == ["ALLOWED"]


def test_a_kept_idle_connection_does_not_hold_up_the_end(
    start_proxy: StartProxy, origin: Origin
) -> None:
    proxy = start_proxy(drain_timeout="20s")
    with proxy.client() as client, proxy.client() as silent:
        assert client.get(f"http://origin.test:{origin.http}/").status == 200
        # The system shows a connection without data to the proxy after a second (TCP_DEFER_ACCEPT).
        wait_until(lambda: proxy.metrics()["egress_proxy_connections_active"] == 2)
        start = time.monotonic()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert time.monotonic() - start < 5
        assert silent.is_closed()


def test_a_connect_under_way_when_the_end_comes(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    """It is either served or told so; never cut without a word or a line."""
    proxy = start_proxy(drain_timeout="5s")
    server = serve(echo)
    name_server.set("origin.test", Answer(("127.0.0.1",), delay=0.4))
    with proxy.client() as client:
        target = f"origin.test:{server.port}"
        client.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
        time.sleep(0.1)
        proxy.signal(signal.SIGTERM)
        assert client.response("CONNECT").status in {200, 503}
    assert proxy.wait() == 0
    assert len(proxy.lines) == 1


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    start_proxy: StartProxy, serve: Serve, second: signal.Signals
) -> None:
    proxy = start_proxy(drain_timeout="60s")
    server = serve(echo)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        proxy.signal(signal.SIGTERM)
        wait_until(lambda: proxy.ask_admin("/readyz").status == 503, what="readyz 503")
        start = time.monotonic()
        proxy.signal(second)
        proxy.wait()
        assert time.monotonic() - start < 2
    assert "Traceback" not in proxy.stderr
    (line,) = proxy.lines
    assert line["event"] == "CLOSED"


def test_all_lines_are_written_before_the_end(start_proxy: StartProxy) -> None:
    proxy = start_proxy(audit={"flush_interval": "5s"})
    with proxy.client() as client:
        for _ in range(200):
            assert client.get("http://denied.test/").status == 403
    assert len(proxy.stop()) == 200


# stdout -----------------------------------------------------------------------------------------


def test_a_stalled_stdout_stops_no_traffic(start_proxy: StartProxy, origin: Origin) -> None:
    """64 KiB fit into the pipe; then lines wait, and then they are dropped and counted."""
    proxy = start_proxy(options={"read_stdout": False}, audit={"queue_lines": 500})
    with proxy.client() as client:
        for _ in range(1500):
            assert client.get("http://denied.test/").status == 403
        assert client.get(f"http://origin.test:{origin.http}/").status == 200
    wait_until(
        lambda: proxy.metrics()["egress_proxy_audit_lines_dropped_total"] > 0,
        what=lambda: f"dropped lines in {proxy.metrics()}",
    )
    start = time.monotonic()
    proxy.signal(signal.SIGTERM)
    assert proxy.process.wait(20) == 0
    assert time.monotonic() - start < 15


def test_a_closed_stdout_stops_no_traffic(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(options={"read_stdout": False})
    assert proxy.process.stdout is not None
    proxy.process.stdout.close()
    with proxy.client() as client:
        for _ in range(50):
            assert client.get("http://denied.test/").status == 403
        assert client.get(f"http://origin.test:{origin.http}/").status == 200
    assert proxy.process.poll() is None
    assert "Traceback" not in proxy.stderr


def test_the_lines_are_what_the_contract_says(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(allow=[rule("origin.test")])
    with proxy.client() as client:
        assert (
            client.get(
                f"http://origin.test:{origin.http}/?secret", head="Cookie: secret\r\n"
            ).status
            == 200
        )
        assert client.get("http://denied.test/?secret", head="Cookie: secret\r\n").status == 403
    allowed, denied = proxy.stop()
    order = [
        "timestamp",
        "level",
        "event",
        "request_id",
        "client",
        "method",
        "host",
        "port",
        "path",
    ]
    order += [
        "status",
        "code",
        "reason",
        "policy",
        "rule",
        "generation",
        "address",
        "dns",
        "dns_ms",
    ]
    order += ["connect_ms", "duration_ms", "bytes_sent", "bytes_received"]
    for line in (allowed, denied):
        assert list(line) == [name for name in order if name in line]
        assert line["timestamp"].endswith("Z")
        assert len(line["timestamp"]) == len("2026-01-01T00:00:00.000Z")
    assert set(order) - set(allowed) == {"code", "reason"}
    assert "address" not in denied
    assert (denied["code"], denied["reason"]) == ("POLICY_BLOCKED", "host_not_allowed")
    assert "secret" not in proxy.stdout + proxy.stderr
