"""Contract headers through a real proxy: what is refused, what goes on, and what the record says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from tests.conftest import StartProxy
from tests.support.client import Response
from tests.support.contract import contract
from tests.support.origin import Origin
from tests.support.proxy import Proxy, rule

SAFE = ("GET", "HEAD", "OPTIONS")
UNSAFE = ("POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "get")
MARK = "mark-that-nobody-quotes"

Ask = Callable[..., Response]


def asking(proxy: Proxy, base: str) -> Ask:
    def ask(
        method: str, head: str = "", *, path: str = "/head", url: str | None = None
    ) -> Response:
        with proxy.client() as client:
            return client.get(url or f"{base}{path}", method=method, head=head)

    return ask


def test_off_is_the_default(start_proxy: StartProxy, base: str) -> None:
    proxy = start_proxy()
    ask = asking(proxy, base)
    for method in (*SAFE, "POST", "DELETE"):
        assert ask(method).status == 200
    assert ask("POST", "Idempotency-Key: 1\r\n").status == 200
    assert all("contract" not in line for line in proxy.stop())


def test_enforce(start_proxy: StartProxy, base: str, origin: Origin) -> None:
    proxy = start_proxy(contract_headers="enforce")
    ask = asking(proxy, base)
    for method in SAFE:
        assert ask(method).status == 200
        assert ask(method, "Idempotency-Key: 1\r\n").status == 200
    reached = len(origin.heads)
    key = str(uuid4())
    broken = {
        "idempotency_key_missing": ["", "X-Tenant-ID: a\r\n"],
        "idempotency_key_invalid": [
            contract(MARK),
            contract(f"{key},{key}"),
            contract(key) + f"IDEMPOTENCY-KEY: {key}\r\n",
        ],
        "tenant_id_missing": [f"Idempotency-Key: {key}\r\n"],
        "tenant_id_invalid": [
            contract(key, f"{MARK} x"),
            contract(key, "a") + "x-tenant-id: a\r\n",
        ],
    }
    refused = 0
    for method in UNSAFE:
        for reason, heads in broken.items():
            for head in heads:
                answer = ask(method, head)
                error = answer.error
                assert (answer.status, error["reason"]) == (400, reason), (method, head)
                assert answer["x-egress-error"] == error["code"] == "SCHEMA_VALIDATION_FAILED"
                header = "Idempotency-Key" if "key" in reason else "X-Tenant-ID"
                assert header in error["message"]
                assert header in answer["proxy-status"]
                assert (error["host"], error["retry"]) == ("origin.test", False)
                assert "retry-after" not in answer
                refused += 1
    assert len(origin.heads) == reached
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = ask(method, contract(key.upper(), "team-a"))
        assert answer.status == 200
        # They are the destination's business too.
        assert f"Idempotency-Key: {key.upper()}\r\nX-Tenant-ID: team-a\r\n".encode() in answer.body
    lines = proxy.stop()
    denied = [line for line in lines if line["event"] == "DENIED"]
    assert len(denied) == refused
    assert all(line["rule"] == "allow origin.test" for line in denied)
    assert all(line["host"] == "origin.test" for line in denied)
    # Nothing was looked up or dialled for them.
    assert not any("address" in line or "dns" in line for line in denied)
    assert MARK not in proxy.stdout
    assert MARK not in proxy.stderr


def test_the_rules_come_first(start_proxy: StartProxy, base: str) -> None:
    """Who learns that headers are missing would send them, and be denied."""
    proxy = start_proxy(contract_headers="enforce")
    ask = asking(proxy, base)
    answer = ask("POST", url="http://denied.test/")
    assert (answer.status, answer.error["reason"]) == (403, "host_not_allowed")
    answer = ask("POST", url="http://127.0.0.1/")
    assert (answer.status, answer.error["reason"]) == (403, "address_not_allowed")
    # And they come before the destination is reached, which nobody could here.
    answer = ask("POST", url="http://origin.test:1/")
    assert (answer.status, answer.error["reason"]) == (400, "idempotency_key_missing")


def test_tunnels_are_exempt(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(contract_headers="enforce")
    with proxy.client() as client:
        authority = f"origin.test:{origin.http}"
        assert client.connect(authority).status == 200
        client.send(f"POST /upload HTTP/1.1\r\nHost: {authority}\r\nContent-Length: 2\r\n\r\nhi")
        assert client.response().status == 200


def test_the_body_of_a_refused_request_is_no_request(start_proxy: StartProxy, base: str) -> None:
    """And the connection ends, as with every refusal before a body; without one it stays."""
    proxy = start_proxy(contract_headers="enforce")
    inner = f"GET {base}/head HTTP/1.1\r\nHost: {base.removeprefix('http://')}\r\n\r\n".encode()
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    for head, body in (
        (f"Content-Length: {len(inner)}\r\n", inner),
        ("Transfer-Encoding: chunked\r\n", chunked),
    ):
        with proxy.client() as client:
            answer = client.get(f"{base}/upload", method="POST", head=head, body=body)
            assert (answer.status, answer["connection"]) == (400, "close")
            assert client.is_closed()
    with proxy.client() as client:
        # Nobody is told to go on with a body that nobody wants.
        head = "Content-Length: 5\r\nExpect: 100-continue\r\n"
        assert client.get(f"{base}/upload", method="PUT", head=head).status == 400
        client.eof()
        assert client.is_closed()
    with proxy.client() as client:
        for status, head in ((400, ""), (200, contract()), (400, contract("1")), (200, contract())):
            assert client.get(f"{base}/head", method="DELETE", head=head).status == status
    assert sum(line["event"] == "ALLOWED" for line in proxy.stop()) == 2


def test_warn_lets_it_through_and_says_so(start_proxy: StartProxy, base: str) -> None:
    proxy = start_proxy(contract_headers="warn")
    ask = asking(proxy, base)
    assert ask("POST").status == 200
    assert ask("PUT", contract(MARK)).status == 200
    assert ask("PUT", contract(tenant=f"{MARK} x")).status == 200
    assert ask("PUT", contract()).status == 200
    assert ask("GET").status == 200
    proxy.wait_for_lines(5, event="ALLOWED")
    counted = {
        name: value
        for name, value in proxy.metrics().items()
        if name.startswith("egress_proxy_contract_violations_total")
    }
    assert counted == {
        f'egress_proxy_contract_violations_total{{policy="test",reason="{reason}"}}': 1.0
        for reason in ("idempotency_key_missing", "idempotency_key_invalid", "tenant_id_invalid")
    }
    lines = proxy.stop()
    assert [line.get("contract") for line in lines] == [
        *("idempotency_key_missing", "idempotency_key_invalid", "tenant_id_invalid"),
        *(None, None),
    ]
    assert not any("reason" in line or "code" in line for line in lines)
    assert MARK not in proxy.stdout


def test_each_policy_has_its_word_and_the_strictest_holds(
    start_proxy: StartProxy, base: str, origin: Origin
) -> None:
    other = f"http://other.test:{origin.http}"
    both = {"name": "both", "allow": [rule("origin.test"), rule("other.test")]}
    lax = {"name": "lax", "contract_headers": "off", "allow": [rule("other.test")]}
    strict = {"name": "strict", "contract_headers": "enforce", "allow": [rule("origin.test")]}
    elsewhere = {
        "name": "elsewhere",
        "contract_headers": "enforce",
        "subjects": [{"cidr": "192.0.2.0/24"}],
        "allow": [rule("other.test")],
    }
    named = {
        "name": "named",
        "contract_headers": "enforce",
        "allow": ["github.com"],
        "deny": ["example.org"],
    }

    def statuses(*policies: dict[str, Any], general: str) -> tuple[int, int]:
        proxy = start_proxy(policies=list(policies), contract_headers=general)
        ask = asking(proxy, base)
        found = ask("POST").status, ask("POST", url=f"{other}/head").status
        assert ask("POST", contract()).status == 200
        return found

    assert statuses(both, strict, elsewhere, named, general="off") == (400, 200)
    assert statuses(named, strict, both, lax, general="warn") == (400, 200)
    # Who says nothing means what is said in general, and that is stricter than the other's off.
    assert statuses(lax, both, general="enforce") == (400, 400)


def test_in_audit_mode_it_would_be_denied(start_proxy: StartProxy, lan_origin: Origin) -> None:
    """What the rules would refuse is told rather."""
    base = f"http://origin.test:{lan_origin.http}"
    allowed = [rule("origin.test", allow_private=["0.0.0.0/0"])]
    proxy = start_proxy(mode="audit", contract_headers="enforce", allow=allowed)
    ask = asking(proxy, base)
    assert ask("POST").status == 200
    assert ask("POST", contract()).status == 200
    strangers = start_proxy(mode="audit", contract_headers="enforce", allow=["example.com"])
    assert asking(strangers, base)("POST").status == 200
    (would, fine), (stranger,) = proxy.stop(), strangers.stop()
    assert (would["event"], would["reason"]) == ("WOULD_DENY", "idempotency_key_missing")
    assert (would["code"], would["status"]) == ("SCHEMA_VALIDATION_FAILED", 200)
    assert fine["event"] == "ALLOWED"
    assert (stranger["event"], stranger["reason"]) == ("WOULD_DENY", "host_not_allowed")


def test_a_reload_changes_it_for_the_next_request(start_proxy: StartProxy, base: str) -> None:
    proxy = start_proxy()
    text = proxy.config.read_text()
    with proxy.client() as client:
        assert client.get(f"{base}/head", method="POST").status == 200
        for word, status in (("enforce", 400), ("off", 200), ("'off'", 200), ("warn", 200)):
            proxy.config.write_text(f"{text}contract_headers: {word}\n")
            assert proxy.ask_admin("/v1/reload", method="POST").status == 200
            assert client.get(f"{base}/head", method="DELETE").status == status
        proxy.config.write_text(f"{text}contract_headers: false\n")
        assert proxy.ask_admin("/v1/reload", method="POST").status == 422


def test_the_admin_port_asks_for_them_whatever_the_configuration_says(
    start_proxy: StartProxy,
) -> None:
    proxy = start_proxy(contract_headers="off")
    generation = proxy.policy()["generation"]
    refused = proxy.ask_admin("/v1/reload", method="POST", head=f"Idempotency-Key: {uuid4()}\r\n")
    assert (refused.status, refused.error["reason"]) == (400, "tenant_id_missing")
    key = contract()
    first = proxy.ask_admin("/v1/reload", method="POST", head=key)
    assert first.status == 200
    assert "idempotency-replayed" not in first
    # A reload that changes something comes between; the answer stays the first one.
    proxy.config.write_text(f"{proxy.config.read_text()}on_revoke: keep\n")
    assert proxy.ask_admin("/v1/reload", method="POST").status == 200
    assert proxy.policy()["generation"] == generation + 1
    again = proxy.ask_admin("/v1/reload", method="POST", head=key)
    assert (again.status, again.body) == (200, first.body)
    assert again["idempotency-replayed"] == "true"
    conflict = proxy.ask_admin("/v1/explain", method="POST", head=key, body=b"{}")
    assert (conflict.status, conflict.error["reason"]) == (409, "idempotency_key_reused")
