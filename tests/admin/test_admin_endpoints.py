"""What each path of the admin port answers."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from egress_proxy.admin.server import AdminServer, PolicyInForce
from egress_proxy.config.errors import Code, ConfigError, Problem
from egress_proxy.core import reasons
from egress_proxy.core.contract import ContractHeaders
from egress_proxy.core.explain import Explanation
from egress_proxy.core.names import parse_authority
from egress_proxy.core.policy import CompiledPolicy, Place
from egress_proxy.core.upstream import Parent, Upstream
from tests.admin.running import Admin, Host, State, configuration
from tests.support.contract import contract

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "admin.md"


def test_healthz(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        answer = await admin.ask("GET", "/healthz")
        assert (answer.status, answer.body) == (200, b"ok\n")
        assert answer.fields["content-type"].startswith("text/plain")

    host.run(conversation)


def test_readyz_says_no_before_the_start_and_while_draining(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        assert (await admin.ask("GET", "/readyz")).status == 200
        host.state.ready = False
        answer = await admin.ask("GET", "/readyz")
        assert (answer.status, answer.reason) == (503, "starting")
        host.state.ready, host.state.draining = True, True
        answer = await admin.ask("GET", "/readyz")
        assert (answer.status, answer.reason) == (503, "draining")
        assert answer.fields["retry-after"] == "1"
        assert (await admin.ask("GET", "/healthz")).status == 200

    host.run(conversation)


def test_metrics(host: Host) -> None:
    host.state.metrics.policy_loaded(3, "abc", 2, 0.0)

    async def conversation(admin: Admin) -> None:
        answer = await admin.ask("GET", "/metrics")
        assert answer.status == 200
        assert answer.fields["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = {
            family.name: family for family in text_string_to_metric_families(answer.body.decode())
        }
        assert families["egress_proxy_policy_generation"].samples[0].value == 3
        head = await admin.ask("HEAD", "/metrics")
        assert (head.status, head.body) == (200, b"")

    host.run(conversation)


def test_policy(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        answer = await admin.ask("GET", "/v1/policy")
        assert answer.status == 200
        policy = answer.json
        assert datetime.fromisoformat(policy.pop("loaded_at")).timestamp() == 1_700_000_000.125
        assert policy == {
            "generation": 3,
            "hash": "ab" * 32,
            "rules": 2,
            "source": "policy.yaml",
            "mode": "enforce",
        }

    host.run(conversation)


def test_explain(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        question = b'{"target": "https://Example.COM./path", "client": "::ffff:10.0.0.7"}'
        answer = await admin.ask("POST", "/v1/explain", body=question)
        assert answer.status == 200
        assert answer.json == {
            "outcome": "ALLOWED",
            "client": "10.0.0.7",
            "destination": "example.com:443",
            "policy": "everyone",
            "rule": "allow example.com",
            "place": "policy.yaml:3:5",
        }
        question = b'{"target": "example.org:8080", "client": "10.0.0.7"}'
        denied = (await admin.ask("POST", "/v1/explain", body=question)).json
        assert (denied["outcome"], denied["reason"]) == ("DENIED", "host_not_allowed")
        assert "example.org" in denied["add"]

    host.run(conversation)


def test_explain_says_what_else_may_refuse_it(host: Host) -> None:
    host.state.config = configuration(contract_headers=ContractHeaders.ENFORCE)

    async def conversation(admin: Admin) -> None:
        question = b'{"target": "http://example.com/", "method": "PUT", "client": "10.0.0.7"}'
        told = (await admin.ask("POST", "/v1/explain", body=question)).json
        assert told["needs"] == {
            "contract_headers": "enforce",
            "headers": ["Idempotency-Key", "X-Tenant-ID"],
            "charged": [],
        }

    host.run(conversation)


def test_explain_for_an_identity(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        question = (
            b'{"target": "example.com", "client": "10.0.0.7", "user": "batch",'
            b' "namespace": "agents", "pod_labels": {"b": "2", "a": "1"}}'
        )
        answer = await admin.ask("POST", "/v1/explain", body=question)
        assert answer.json["client"] == (
            "10.0.0.7, user batch, namespace agents, pod label a=1, pod label b=2"
        )

    host.run(conversation)


def test_explain_asks_the_name_servers_if_told_to(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        host.state.answers = {
            "example.com": ("192.168.0.1",),
            "www.example.com": reasons.DNS_TIMEOUT,
        }
        question = b'{"target": "%s", "client": "10.0.0.7", "resolve": true}'
        told = (await admin.ask("POST", "/v1/explain", body=question % b"example.com")).json
        assert (told["outcome"], told["reason"]) == ("DENIED", "destination_ip_prohibited")
        assert told["addresses"] == [
            {"address": "192.168.0.1", "passes": False, "why": "private (192.168.0.0/16)"}
        ]
        told = (await admin.ask("POST", "/v1/explain", body=question % b"www.example.com")).json
        assert (told["outcome"], told["dns"]) == ("DENIED", "dns_timeout")
        told = (await admin.ask("POST", "/v1/explain", body=question % b"8.8.8.8")).json
        assert [address["address"] for address in told["addresses"]] == ["8.8.8.8"]

    host.run(conversation)


def test_explain_asks_nobody_where_a_parent_resolves_the_name(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        policy = host.state.config.policy
        upstream = Upstream(Parent(parse_authority(b"proxy.test:3128", None)))
        host.state.config = configuration(policy=CompiledPolicy(policy.policies, upstream=upstream))
        question = b'{"target": "example.com", "client": "10.0.0.7", "resolve": true}'
        told = (await admin.ask("POST", "/v1/explain", body=question)).json
        assert (told["outcome"], told["parent"]) == ("ALLOWED", "proxy.test:3128")
        assert "addresses" not in told

    host.run(conversation)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "send {"),
        (b"{", "send {"),
        (b"[]", "send {"),
        (b'{"target": "example.com"}', "send {"),
        (b'{"target": "example.com", "client": 1}', "send {"),
        (b'{"target": "example.com", "client": "10.0.0.7", "x": 1}', "send {"),
        (b'{"target": "\xff", "client": "10.0.0.7"}', "send {"),
        (b'{"target": "\\ud800", "client": "10.0.0.7"}', "send {"),
        (b'{"target": "", "client": "10.0.0.7"}', "target: "),
        (b'{"target": "a b\\r\\nX: y", "client": "10.0.0.7"}', "target: "),
        (b'{"target": "\xc3\xa9.example:\xc3\xa9", "client": "10.0.0.7"}', "target: "),
        (b'{"target": "ftp://example.com", "client": "10.0.0.7"}', "target: "),
        (b'{"target": "example.com", "client": "host"}', "client: "),
        (b'{"target": "example.com", "client": ""}', "client: "),
    ],
)
def test_explain_says_what_is_wrong_with_the_question(host: Host, body: bytes, said: str) -> None:
    async def conversation(admin: Admin) -> None:
        answer = await admin.ask("POST", "/v1/explain", body=body)
        assert (answer.status, answer.reason) == (400, "bad_admin_request")
        assert f"wanted: {said}" in answer.json["error"]["message"]
        assert answer.fields["connection"] == "keep-alive"

    host.run(conversation)


def test_reload(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        answer = await admin.ask("POST", "/v1/reload")
        assert answer.status == 200
        assert answer.json["generation"] == 4
        assert host.state.reloads == 1

    host.run(conversation)


def test_reload_of_a_broken_file_names_what_is_wrong(host: Host) -> None:
    problems = tuple(
        Problem(Code.BAD_VALUE, Place("policy.yaml", line, 1), "`é` is wrong", "write `e`")
        for line in range(1, 30)
    )
    host.state.failure = ConfigError(problems)

    async def conversation(admin: Admin) -> None:
        answer = await admin.ask("POST", "/v1/reload")
        assert (answer.status, answer.reason) == (422, "reload_failed")
        message = answer.json["error"]["message"]
        assert "policy.yaml:1:1: `é` is wrong; write `e` [bad-value]; policy.yaml:2:1" in message
        assert "policy.yaml:10:1" in message
        assert "policy.yaml:11:1" not in message
        assert (await admin.ask("GET", "/v1/policy")).json["generation"] == 3

    host.run(conversation)


def test_a_defect_is_told_and_logged_and_closes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.state.failure = ZeroDivisionError("secret")
    logged: list[tuple[str, dict[str, object]]] = []

    class Log:
        def error(self, event: str, **fields: object) -> None:
            logged.append((event, fields))

    monkeypatch.setattr("egress_proxy.admin.server.log", Log())

    async def conversation(admin: Admin) -> None:
        client = await admin.client()
        reload = f"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\n{contract()}\r\n"
        await client.send(reload.encode())
        answer = await client.answer()
        assert (answer.status, answer.reason) == (500, "internal_error")
        assert b"secret" not in answer.body
        assert await client.ends()
        ((event, fields),) = logged
        assert event == "internal_error"
        assert fields["request_id"] == answer.json["error"]["request_id"]
        assert fields["exc_info"] is True

    host.run(conversation)


def test_unknown_paths_and_methods(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        for path in ("/", "/v1", "/v1/", "/v1/nothing", "/healthz/", "//healthz", "/HEALTHZ", "*"):
            answer = await admin.ask("GET", path)
            assert (answer.status, answer.reason) == (404, "no_such_endpoint"), path
        answer = await admin.ask("POST", "/healthz")
        assert (answer.status, answer.reason) == (405, "endpoint_method_not_allowed")
        assert answer.fields["allow"] == "GET, HEAD"
        answer = await admin.ask("GET", "/v1/reload")
        assert (answer.status, answer.fields["allow"]) == (405, "POST")
        assert host.state.reloads == 0
        # Somebody took it for the proxy.
        assert (await admin.ask("GET", "http://example.com/healthz")).status == 404
        assert (await admin.ask("CONNECT", "example.com:443")).status == 404

    host.run(conversation)


def test_a_query_is_ignored(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        assert (await admin.ask("GET", "/healthz?verbose=1")).status == 200

    host.run(conversation)


def fields_of(section: str) -> list[str]:
    """The fields that a section of the page explains."""
    text = PAGE.read_text(encoding="utf-8").partition(f"## `{section}`")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)


def test_the_page_explains_every_field() -> None:
    assert fields_of("GET /v1/policy") == list(PolicyInForce.__struct_fields__)
    assert fields_of("POST /v1/explain") == list(Explanation.__struct_fields__)


def test_the_page_explains_every_endpoint() -> None:
    explained = re.findall(
        r"^\| `([A-Z]+) (/[a-z0-9/]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    endpoints = AdminServer(State())._endpoints
    served = [
        (method, path)
        for path, methods in endpoints.items()
        for method in methods.keys() - {"HEAD"}
    ]
    assert explained == served
