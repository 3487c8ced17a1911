"""Several workers that serve as one proxy: real processes, their supervisor, and their ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient
from tests.support.dns import NameServer
from tests.support.origin import Origin
from tests.support.proxy import COMMAND, Proxy, clean_environment, configuration, rule, write
from tests.support.serving import echo
from tests.support.tools import wait_until

WORKERS = {"command": (*COMMAND, "--workers", "2")}
#: Connections after which chance has left no worker without one.
MANY = 40


def ask(proxy: Proxy, url: str = "http://denied.test/") -> int:
    with proxy.client() as client:
        return client.get(url).status


def pids(proxy: Proxy) -> list[int]:
    return [worker["pid"] for worker in proxy.policy()["workers"]]


def total(proxy: Proxy) -> float:
    """Requests that were counted so far."""
    found = proxy.metrics()
    return sum(count for name, count in found.items() if name.startswith("egress_proxy_requests"))


def worker_of(line: dict[str, Any]) -> str:
    """Each process counts its requests behind a beginning of its own."""
    return str(line["request_id"][:10])


def post(proxy: Proxy, path: str, question: Any = None) -> Any:
    body = b"" if question is None else json.dumps(question).encode()
    return proxy.ask_admin(path, method="POST", body=body)


def test_two_workers_are_one_proxy(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    policy = {"name": "limited", "allow": [rule("origin.test")], "limits": {"requests_per_day": 90}}
    proxy = start_proxy(options=WORKERS, policies=[policy])
    url = f"http://origin.test:{origin.http}/"
    assert [ask(proxy, url) for _ in range(MANY)] == [200] * MANY
    assert ask(proxy) == 403
    proxy.wait_for_lines(MANY, event="ALLOWED")
    assert len({worker_of(line) for line in proxy.lines}) == 2

    # One admin port, which speaks for both.
    assert proxy.ask_admin("/readyz").status == 200
    found = proxy.metrics()
    allowed = 'egress_proxy_requests_total{decision="allowed",method="GET",reason="none"}'
    assert found[allowed] == MANY
    assert found["egress_proxy_connect_duration_seconds_count"] > 0
    assert found["egress_proxy_workers_serving"] == found["egress_proxy_workers"] == 2
    assert found["egress_proxy_policy_generation"] == 1
    (tenant,) = json.loads(proxy.ask_admin("/v1/limits").body)["tenants"]
    (limit,) = tenant["limits"]
    assert (limit["used"], limit["of"]) == (MANY, 90)
    explained = post(proxy, "/v1/explain", {"target": url, "client": "127.0.0.1", "resolve": True})
    assert explained.status == 200, explained
    assert json.loads(explained.body)["addresses"][0]["address"] == "127.0.0.1"

    # Each lets through its part of what one tenant may do, 45 of 90.
    answers = [ask(proxy, url) for _ in range(150 - MANY)]
    assert answers.count(200) + MANY == 90
    assert set(answers) == {200, 429}

    # One that is told to end tells what it has counted since the last scrape, and is missed.
    os.kill(pids(proxy)[0], signal.SIGTERM)
    assert proxy.wait_for_event("worker_ended")["how"] == "exit status 0"
    assert total(proxy) == 151

    # They do not outlive their supervisor: nobody could tell them of a new policy any more.
    workers = pids(proxy)
    proxy.process.kill()
    proxy.wait()
    wait_until(lambda: not any(map(_runs, workers)), seconds=10, what="the end of the workers")
    assert proxy.wait_for_event("supervisor_gone")["level"] == "error"
    with pytest.raises(ConnectionRefusedError):
        proxy.client()


def test_workers_decide_by_one_policy_and_lose_only_their_own(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    proxy = start_proxy(options=WORKERS)
    target = f"origin.test:{serve(echo).port}"
    with contextlib.ExitStack() as stack:
        tunnels = [stack.enter_context(proxy.client()) for _ in range(MANY)]
        for tunnel in tunnels:
            assert tunnel.connect(target).status == 200

        # A reload reaches all, and is one event.
        more = configuration(
            name_server=name_server.address, allow=[rule("origin.test"), rule("more.test")]
        )
        proxy.reload(more)
        assert proxy.wait_for_event("policy_reloaded", seconds=15)["generation"] == 2
        found = proxy.policy()
        assert found["generation"] == 2
        assert [(each["generation"], each["hash"]) for each in found["workers"]] == [
            (2, found["hash"])
        ] * 2
        assert proxy.metrics()['egress_proxy_reload_total{result="success"}'] == 1

        # One that is broken changes nothing, not even for a worker that is started again meanwhile.
        write(proxy.config, "version: 1\npolicies: nonsense\n")
        refused = post(proxy, "/v1/reload")
        assert refused.error["reason"] == "reload_failed"

        statuses = [ask(proxy) for _ in range(MANY)]
        assert statuses == [403] * MANY
        wait_until(lambda: total(proxy) == MANY, what="all requests to be counted")
        before = proxy.metrics()
        first, second = pids(proxy)
        os.kill(first, signal.SIGKILL)
        ended = proxy.wait_for_event("worker_ended")
        assert (ended["worker"], ended["how"]) == (1, "SIGKILL")
        # The other one goes on, with its tunnels; new connections are answered at any time.
        assert ask(proxy) == 403
        after = proxy.metrics()
        for name, value in before.items():
            if "_total" in name or "_count" in name or "_bucket" in name:
                assert after[name] >= value, name
        assert after["egress_proxy_worker_ends_total"] == 1
        alive = sum(_still_there(tunnel) for tunnel in tunnels)
        assert 0 < alive < MANY
        assert after["egress_proxy_tunnels_active"] == alive

        proxy.wait_for_event("worker_started", seconds=15)
        found = proxy.policy()
        assert found["generation"] == 2
        assert {each["hash"] for each in found["workers"]} == {found["hash"]}
        assert {each["generation"] for each in found["workers"]} == {2}
        assert second in pids(proxy)
        assert first not in pids(proxy)
    assert len([event for event in proxy.events() if event["event"] == "reload_failed"]) == 1
    assert len([event for event in proxy.events() if event["event"] == "policy_reloaded"]) == 1
    proxy.stop()
    assert len([line for line in proxy.lines if line["event"] == "DENIED"]) == MANY + 1


def _still_there(tunnel: RawClient) -> bool:
    try:
        tunnel.send(b"still there?")
        return tunnel.some() == b"still there?"
    except OSError:
        return False


def test_a_worker_that_hangs_is_replaced(start_proxy: StartProxy) -> None:
    """The system goes on to deal connections to it, and nobody would answer them."""
    hasty = (
        "import sys; from egress_proxy.supervise import member; member.PING = 0.4; "
        "from egress_proxy.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = (sys.executable, "-c", hasty, "serve", "--workers", "2")
    proxy = start_proxy(options={"command": command})
    hung = pids(proxy)[0]
    os.kill(hung, signal.SIGSTOP)
    silent = proxy.wait_for_event("worker_silent", seconds=15)
    assert (silent["worker"], silent["pid"]) == (1, hung)
    assert proxy.wait_for_event("worker_ended")["how"] == "SIGKILL"
    proxy.wait_for_event("worker_started", seconds=15)
    assert hung not in pids(proxy)
    assert [ask(proxy) for _ in range(MANY)] == [403] * MANY


def test_draining_workers(start_proxy: StartProxy, serve: Serve, name_server: NameServer) -> None:
    """Every tunnel is let come to its end, on whichever worker, and nobody is let in."""
    proxy = start_proxy(options=WORKERS, drain_timeout="20s")
    target = f"origin.test:{serve(echo).port}"
    workers = pids(proxy)
    with contextlib.ExitStack() as stack:
        tunnels = [stack.enter_context(proxy.client()) for _ in range(MANY)]
        for tunnel in tunnels:
            assert tunnel.connect(target).status == 200
        proxy.signal(signal.SIGTERM)
        assert proxy.wait_for_event("draining")["connections"] == MANY
        assert proxy.ask_admin("/readyz").status == 503
        with pytest.raises(ConnectionRefusedError):
            proxy.client()
        for tunnel in tunnels:
            assert _still_there(tunnel)
            tunnel.eof()
            assert tunnel.is_closed()
    assert proxy.wait() == 0
    closed = [line for line in proxy.lines if line["method"] == "CONNECT"]
    assert {line["event"] for line in closed} == {"ALLOWED"}
    assert len(closed) == MANY
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    happened = [event["event"] for event in proxy.events() if event["level"] == "info"]
    assert happened == ["listening", "draining", "stopped"]


def test_a_second_signal_ends_all_at_once(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    proxy = start_proxy(options=WORKERS, drain_timeout="60s")
    target = f"origin.test:{serve(echo).port}"
    with contextlib.ExitStack() as stack:
        for _ in range(MANY):
            assert stack.enter_context(proxy.client()).connect(target).status == 200
        proxy.signal(signal.SIGTERM)
        proxy.wait_for_event("draining")
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    reasons = [line["reason"] for line in proxy.lines if line["event"] == "CLOSED"]
    assert reasons == ["drain_timeout"] * MANY


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# What is in the way of a start. -----------------------------------------------------------------------------------


def failing_start(tmp_path: Path, config: dict[str, Any] | str, *options: str) -> str:
    """What `serve` says on stderr when it cannot start."""
    path = tmp_path / "policy.yaml"
    write(path, config)
    ended = subprocess.run(
        [*COMMAND, "--workers", "2", *options, "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        env=clean_environment(),
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    return ended.stderr


def _config(**keys: Any) -> dict[str, Any]:
    return configuration(name_server="127.0.0.1:53", allow=["example.com"], **keys)


def test_a_broken_configuration_is_told_once(tmp_path: Path) -> None:
    said = failing_start(tmp_path, "version: 1\npolicies: [{name: a, allow: [.example.com]}]\n")
    assert said.count("starts with a dot") == 1
    assert "Traceback" not in said


def test_what_only_a_worker_finds_is_told_once(tmp_path: Path) -> None:
    said = failing_start(tmp_path, _config(state=f"sqlite://{tmp_path}/missing/state.db"))
    (line,) = said.splitlines()
    assert line.startswith("egress-proxy: ")
    assert "state" in line


def test_a_port_in_use(tmp_path: Path) -> None:
    """By another program, or by another proxy whose workers would share it."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = failing_start(tmp_path, _config(listen={"proxy": address, "admin": "127.0.0.1:0"}))
    assert (
        said == f"egress-proxy: cannot listen on {address}: the port is in use by another process\n"
    )


def test_a_port_whose_owner_does_not_share(tmp_path: Path) -> None:
    """Whoever wants to replace a proxy is told what the old one lacks, by one worker and by several."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for proxy, admin in ((address, "127.0.0.1:0"), ("127.0.0.1:0", address)):
            for workers in ("1", "2"):
                config = _config(listen={"proxy": proxy, "admin": admin})
                said = failing_start(tmp_path, config, "--workers", workers, "--reuse-port")
                assert said.startswith(f"egress-proxy: cannot listen on {address}: the port is in")
                assert "must have been started with --reuse-port itself" in said


def test_a_file_of_counters_cannot_be_handed_over(tmp_path: Path) -> None:
    config = _config(state=f"sqlite://{tmp_path}/state.db")
    said = failing_start(tmp_path, config, "--reuse-port")
    assert said.startswith("egress-proxy: --reuse-port cannot be used with `state: sqlite://")
