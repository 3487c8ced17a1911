"""Names as a client, the log and the dashboards see them: how they fail, where addresses came from, what is refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import Response
from tests.support.dns import (
    FORGED,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    SILENCE,
    Answer,
    NameServer,
)
from tests.support.origin import Origin
from tests.support.proxy import Proxy, configuration, rule, wait_out
from tests.support.serving import echo
from tests.support.tools import wait_until

METHODS = pytest.mark.parametrize("method", ["CONNECT", "GET"])


def ask(proxy: Proxy, method: str, authority: str) -> Response:
    with proxy.client() as client:
        if method == "CONNECT":
            return client.connect(authority)
        return client.get(f"http://{authority}/")


def lines_of(proxy: Proxy, number: int, **fields: Any) -> list[dict[str, Any]]:
    """In the order of the requests; tunnels end as they like."""
    lines = proxy.wait_for_lines(number, **fields)
    return sorted(lines, key=lambda line: str(line["request_id"]))


def lookups(proxy: Proxy) -> dict[str, float]:
    """How many requests got their addresses from where."""
    return {
        name.partition('result="')[2].partition('"')[0]: value
        for name, value in proxy.metrics().items()
        if name.startswith("egress_proxy_dns_lookups_total{")
    }


# Failures ---------------------------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize(
    ("answer", "status", "reason", "said", "retry_after"),
    [
        (NXDOMAIN, 502, "dns_nxdomain", 'dns_error; rcode="NXDOMAIN"', "30"),
        (Answer(), 502, "dns_no_address", 'dns_error; rcode="NOERROR"', "30"),
        (SERVFAIL, 502, "dns_failure", "dns_error", "5"),
        (Answer(rcode="NOTIMP"), 502, "dns_failure", "dns_error", "5"),
        (Answer(records=("a.test. 1 IN CNAME a.test.",)), 502, "dns_failure", "dns_error", "5"),
        (REFUSED, 502, "dns_refused", 'dns_error; rcode="REFUSED"', "30"),
        (SILENCE, 504, "dns_timeout", "dns_timeout", "5"),
        (
            Answer(drop=True, forged=("id", "port", "question")),
            504,
            "dns_timeout",
            "dns_timeout",
            "5",
        ),
    ],
    ids=["nxdomain", "no-address", "servfail", "notimp", "circle", "refused", "silence", "forged"],
)
def test_each_failure(
    start_proxy: StartProxy,
    name_server: NameServer,
    method: str,
    answer: Answer,
    status: int,
    reason: str,
    said: str,
    retry_after: str,
) -> None:
    proxy = start_proxy(allow=[rule("a.test")], dns={"timeout": "400ms", "negative_ttl": "5m"})
    name_server.set("a.test", answer)
    start = time.monotonic()
    response = ask(proxy, method, "a.test:443")
    assert time.monotonic() - start < 1
    assert response.status == status
    assert response["x-egress-error"] == response.error["code"] == "RETRY_LATER"
    assert response["proxy-status"].startswith(f'egress-proxy; error={said}; details="{reason}: ')
    assert response["retry-after"] == retry_after
    assert (response.error["reason"], response.error["host"]) == (reason, "a.test")
    (line,) = lines_of(proxy, 1, host="a.test")
    assert (line["event"], line["reason"], line["status"]) == ("FAILED", reason, status)
    assert line["dns_ms"] > 0
    assert "dns" not in line
    assert "address" not in line
    kind = reason.removeprefix("dns_")
    assert proxy.metrics()[f'egress_proxy_dns_failures_total{{kind="{kind}"}}'] == 1
    assert lookups(proxy) == {}


def test_a_failure_that_is_remembered_is_no_further_question(
    start_proxy: StartProxy, name_server: NameServer
) -> None:
    proxy = start_proxy(allow=[rule("nowhere.test")], dns={"negative_ttl": "5m"})
    for _ in range(3):
        assert ask(proxy, "GET", "nowhere.test").error["reason"] == "dns_nxdomain"
    first, *others = lines_of(proxy, 3, host="nowhere.test")
    assert first["dns_ms"] > 0
    assert not [line for line in others if "dns_ms" in line]
    assert name_server.asked("nowhere.test") == 1


# Where addresses come from ----------------------------------------------------------------------


@METHODS
def test_a_miss_and_then_hits(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, method: str
) -> None:
    name_server.set("a.test", Answer(("127.0.0.1",), alias="Cdn.Example.Test"))
    proxy = start_proxy(allow=[rule("a.test")])
    for _ in range(3):
        assert ask(proxy, method, f"a.test:{origin.http}").status == 200
    first, *others = lines_of(proxy, 3, host="a.test")
    assert (first["dns"], first["cname"]) == ("miss", "cdn.example.test")
    assert first["dns_ms"] > 0
    for line in others:
        assert (line["dns"], line["cname"]) == ("hit", "cdn.example.test")
        assert "dns_ms" not in line
    assert lookups(proxy) == {"miss": 1, "hit": 2}


def test_the_hosts_file(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 a.test\n")
    proxy = start_proxy(allow=[rule("a.test")], dns={"hosts_file": str(hosts)})
    assert ask(proxy, "GET", f"a.test:{origin.http}").status == 200
    (line,) = lines_of(proxy, 1, host="a.test")
    assert line["dns"] == "hosts"
    assert "dns_ms" not in line
    assert name_server.queries == []
    assert lookups(proxy) == {"hosts": 1}


def test_an_address_needs_no_name_server(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    proxy = start_proxy(allow=[{"cidr": "127.0.0.0/8", "ports": ["1-65535"]}])
    assert ask(proxy, "GET", f"127.0.0.1:{origin.http}").status == 200
    (line,) = lines_of(proxy, 1, host="127.0.0.1")
    assert "dns" not in line
    assert name_server.queries == []
    assert lookups(proxy) == {}


@METHODS
def test_an_old_answer_while_the_name_servers_fail(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, method: str
) -> None:
    name_server.set("a.test", Answer(("127.0.0.1",), ttl=0), SERVFAIL)
    dns = {"min_ttl": "0s", "stale_if_error": "1h", "negative_ttl": "5m"}
    proxy = start_proxy(allow=[rule("a.test")], dns=dns)
    for _ in range(4):
        assert ask(proxy, method, f"a.test:{origin.http}").status == 200
    lines = lines_of(proxy, 4, host="a.test")
    assert [line["dns"] for line in lines] == ["miss", "stale", "stale", "stale"]
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    assert lookups(proxy) == {"miss": 1, "stale": 3}
    assert name_server.asked("a.test") == 1 + 2  # one question that failed, with two tries


def test_without_being_asked_for_it_no_old_answer_serves(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(("127.0.0.1",), ttl=0), SERVFAIL)
    proxy = start_proxy(allow=[rule("a.test")], dns={"min_ttl": "0s"})
    assert ask(proxy, "GET", f"a.test:{origin.http}").status == 200
    assert ask(proxy, "GET", f"a.test:{origin.http}").error["reason"] == "dns_failure"


def test_a_name_in_use_is_not_waited_for_again(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    """Its second answer is there before the first one's time is over, though it takes a while."""
    name_server.set("a.test", Answer(("127.0.0.1",), ttl=0), Answer(("127.0.0.1",), delay=0.05))
    proxy = start_proxy(allow=[rule("a.test")], dns={"min_ttl": "1s"})

    statuses: list[int] = []

    def ask_again() -> bool:
        statuses.append(ask(proxy, "GET", f"a.test:{origin.http}").status)
        return name_server.asked("a.test") >= 2

    wait_until(ask_again, seconds=5, look=0.02, what="a second question")
    ask_again()
    assert set(statuses) == {200}
    assert lookups(proxy) == {"miss": 1, "hit": len(statuses) - 1}


def test_requests_take_turns_at_the_addresses(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    ports = serve(echo, host="127.0.0.2")
    serve(echo, host="127.0.0.3", port=ports.port)
    name_server.set("a.test", Answer(("127.0.0.2", "127.0.0.3")))
    proxy = start_proxy(allow=[rule("a.test")])
    for _ in range(8):
        assert ask(proxy, "CONNECT", f"a.test:{ports.port}").status == 200
    addresses = [line["address"] for line in lines_of(proxy, 8, host="a.test")]
    assert addresses.count("127.0.0.2") == addresses.count("127.0.0.3") == 4


# What a name server may not do ------------------------------------------------------------------


def _prohibited(proxy: Proxy, response: Response, address: str) -> dict[str, Any]:
    assert response.status == 403
    assert response.error["reason"] == "destination_ip_prohibited"
    line = proxy.wait_for_line(request_id=response.error["request_id"])
    assert (line["event"], line["address"]) == ("DENIED", address)
    return line


@METHODS
@pytest.mark.parametrize(
    "inside", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1", "::ffff:10.0.0.1"]
)
def test_rebinding(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer, method: str, inside: str
) -> None:
    """The name led to an allowed address before; now it leads inside."""
    server = serve(echo, host="127.0.0.2")
    name_server.set("a.test", Answer(("127.0.0.2",), ttl=0), Answer((inside,), ttl=0))
    proxy = start_proxy(
        allow=[rule("a.test", allow_private=["127.0.0.2/32"])], dns={"min_ttl": "0s"}
    )
    assert ask(proxy, "CONNECT", f"a.test:{server.port}").status == 200
    name_server.set("a.test", Answer((inside,), ttl=0))
    if ":" in inside:
        wait_out(0.4)  # c-ares knows for a moment that there was no such address
    line = _prohibited(proxy, ask(proxy, method, f"a.test:{server.port}"), inside)
    assert line["dns"] == "miss"
    assert server.accepted == 1


def test_rebinding_in_the_background(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    """What is asked for ahead of time passes the gate as anything else does."""
    server = serve(echo, host="127.0.0.2")
    name_server.set("a.test", Answer(("127.0.0.2",), ttl=0), Answer(("127.0.0.1",), ttl=0))
    proxy = start_proxy(
        allow=[rule("a.test", allow_private=["127.0.0.2/32"])], dns={"min_ttl": "1s"}
    )
    seen: list[Response] = []

    def refused() -> bool:
        seen.append(ask(proxy, "CONNECT", f"a.test:{server.port}"))
        return seen[-1].status == 403

    wait_until(refused, seconds=5, look=0.02, what="refused")
    assert _prohibited(proxy, seen[-1], "127.0.0.1")["dns"] == "hit"
    assert server.accepted == len(seen) - 1


def test_an_old_answer_passes_the_gate_again(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    server = serve(echo, host="127.0.0.2")
    name_server.set("a.test", Answer(("127.0.0.2",), ttl=0), SERVFAIL)
    dns = {"min_ttl": "0s", "stale_if_error": "1h", "negative_ttl": "5m"}
    allow = [rule("a.test", allow_private=["127.0.0.2/32"])]
    proxy = start_proxy(allow=allow, dns=dns)
    for _ in range(2):
        assert ask(proxy, "CONNECT", f"a.test:{server.port}").status == 200
    stricter = configuration(
        name_server=name_server.address,
        allow=[rule("a.test", allow_private=[])],
        dns=dns,
        drain_timeout="1s",
    )
    proxy.reload(stricter)
    wait_until(lambda: proxy.policy()["generation"] == 2, what="reloaded")
    line = _prohibited(proxy, ask(proxy, "CONNECT", f"a.test:{server.port}"), "127.0.0.2")
    assert line["dns"] == "stale"
    assert server.accepted == 2


@pytest.mark.parametrize(
    "records",
    [
        ("evil.test. 60 IN A 127.0.0.1",),
        ("a.test. 60 IN CNAME b.test.", "a.test. 60 IN A 127.0.0.1"),
        ("a.test. 60 IN CNAME b.test.", "c.test. 60 IN A 127.0.0.1"),
    ],
)
def test_addresses_of_another_name(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, records: tuple[str, ...]
) -> None:
    name_server.set("a.test", Answer(records=records))
    proxy = start_proxy(allow=[rule("a.test")])
    response = ask(proxy, "GET", f"a.test:{origin.http}")
    assert (response.status, response.error["reason"]) == (502, "dns_no_address")


@pytest.mark.parametrize(
    "alias",
    [r"a\010event\034:\034DENIED.test.", r"\027[31m.test.", "127.0.0.1.", r"\255\254.test."],
)
def test_an_alias_does_not_write_into_the_log(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, alias: str
) -> None:
    records = (f"a.test. 60 IN CNAME {alias}", f"{alias} 60 IN A 127.0.0.1")
    name_server.set("a.test", Answer(records=records))
    proxy = start_proxy(allow=[rule("a.test")])
    assert ask(proxy, "GET", f"a.test:{origin.http}").status == 200
    (line,) = lines_of(proxy, 1, host="a.test")
    assert "cname" not in line
    assert "DENIED" not in proxy.stdout


@pytest.mark.parametrize("how", ["id", "question", "port"])
def test_a_forged_answer_is_not_dialled(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, how: str
) -> None:
    name_server.set("a.test", Answer(("127.0.0.1",), forged=(how,) * 3, delay=0.05))
    proxy = start_proxy(allow=[rule("a.test")])
    assert ask(proxy, "GET", f"a.test:{origin.http}").status == 200
    (line,) = lines_of(proxy, 1, host="a.test")
    assert line["address"] == "127.0.0.1"
    assert FORGED not in proxy.stdout


def test_sixty_addresses_do_not_make_sixty_connections(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(tuple(f"127.0.1.{one}" for one in range(1, 61))))
    proxy = start_proxy(allow=[rule("a.test")])
    response = ask(proxy, "GET", f"a.test:{origin.http}")
    # The origin listens on 127.0.0.1 alone.
    assert (response.status, response.error["reason"]) == (502, "connection_refused")
    (line,) = lines_of(proxy, 1, host="a.test")
    assert line["attempts"] <= 16
