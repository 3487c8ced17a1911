"""Refusals: what every client gets, whatever it sent."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core import reasons
from egress_proxy.core.answer import refusal
from egress_proxy.core.reason import Code, Reason
from egress_proxy.core.reasons import REASONS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def read(data: bytes, method: str = "GET") -> tuple[h11.Response, dict[str, str], bytes]:
    """The response as an independent parser sees it; nothing may follow it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data[0] == b""
    return response, {name.decode(): value.decode() for name, value in response.headers}, body


def refused(reason: Reason = reasons.HOST_NOT_ALLOWED, **changes: Any) -> bytes:
    arguments: dict[str, Any] = {"request_id": "r1", "keep_alive": False, "method": "GET"}
    return refusal(reason, **(arguments | changes))


def test_a_denial_to_the_letter() -> None:
    data = refused(host="example.com", port=443, keep_alive=True, method="CONNECT")
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.decode().split("\r\n") == [
        "HTTP/1.1 403 Forbidden",
        "Content-Type: application/json",
        'Proxy-Status: egress-proxy; error=http_request_denied; details="host_not_allowed: No rule allows this host."',
        "X-Egress-Error: POLICY_BLOCKED",
        "Cache-Control: no-store",
        "Connection: keep-alive",
        f"Content-Length: {len(body)}",
    ]
    assert list(json.loads(body)) == ["error"]
    assert list(json.loads(body)["error"].items()) == [
        ("code", "POLICY_BLOCKED"),
        ("reason", "host_not_allowed"),
        ("message", "No rule allows this host."),
        ("host", "example.com"),
        ("port", 443),
        ("retry", False),
        ("request_id", "r1"),
        ("docs", "docs/reference/reasons.md#host_not_allowed"),
        ("advice", reasons.HOST_NOT_ALLOWED.advice),
    ]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (reasons.DNS_NXDOMAIN, 'error=dns_error; rcode="NXDOMAIN"; details="dns_nxdomain: '),
        (reasons.DNS_NO_ADDRESS, 'error=dns_error; rcode="NOERROR"; details="dns_no_address: '),
        (reasons.DNS_REFUSED, 'error=dns_error; rcode="REFUSED"; details="dns_refused: '),
        (reasons.DNS_FAILURE, 'error=dns_error; details="dns_failure: '),
        (reasons.DNS_TIMEOUT, 'error=dns_timeout; details="dns_timeout: '),
    ],
)
def test_what_the_name_servers_said(reason: Reason, said: str) -> None:
    """RFC 9209 §2.3.2, as far as it is known."""
    _, fields, _ = read(refused(reason))
    assert fields["proxy-status"].startswith(f"egress-proxy; {said}")
    # It is a parameter of that one error type.
    assert {row.proxy_status for row in REASONS.values() if row.rcode is not None} == {"dns_error"}


@pytest.mark.parametrize("reason", REASONS.values(), ids=REASONS.keys())
def test_every_reason_can_be_answered(reason: Reason) -> None:
    response, fields, body = read(refused(reason))
    error = json.loads(body)["error"]
    assert response.status_code == reason.status
    assert fields["content-type"] == "application/json"
    assert fields["x-egress-error"] == error["code"] == reason.code
    assert error["reason"] == reason.name
    assert error["retry"] == ("retry-after" in fields) == (reason.retry_after is not None)
    assert error["host"] is None
    assert error["port"] is None
    if reason.retry_after is not None:
        assert fields["retry-after"] == str(reason.retry_after)
    assert f"error={reason.proxy_status};" in fields["proxy-status"]


@pytest.mark.parametrize("reason", REASONS.values(), ids=REASONS.keys())
def test_every_reason_is_a_sentence(reason: Reason) -> None:
    """A detail goes before the message's full stop."""
    assert reason.message.endswith(".")
    assert reason.advice.endswith(".")


def test_a_detail_says_more() -> None:
    _, fields, body = read(refused(reasons.BAD_AUTHORITY, detail="the port is missing"))
    message = "The target's authority is not host:port: the port is missing."
    assert json.loads(body)["error"]["message"] == message
    assert fields["proxy-status"].endswith(f'details="bad_authority: {message}"')


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.0000000001, "1"), (1.1, "2"), (86_399.5, "86400")],
)
def test_when_to_come_back_is_said_in_whole_seconds_and_never_too_early(
    seconds: float, said: str
) -> None:
    response, fields, body = read(refused(reasons.REQUEST_BUDGET, retry_after=seconds))
    assert response.status_code == 429
    assert fields["retry-after"] == said
    assert json.loads(body)["error"]["retry"] is True
    # The same reason without it has its own.
    assert read(refused(reasons.REQUEST_BUDGET))[1]["retry-after"] == "60"


def test_there_is_one_time_to_come_back() -> None:
    head = refused(reasons.DRAINING, retry_after=7.5).partition(b"\r\n\r\n")[0]
    assert head.count(b"Retry-After:") == 1
    assert b"\r\nRetry-After: 8" in head


def test_the_answer_to_head_has_the_same_head_and_no_body() -> None:
    with_body, without = refused(method="GET"), refused(method="HEAD")
    assert without == with_body.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert read(without, "HEAD")[2] == b""


@pytest.mark.parametrize(("keep_alive", "said"), [(True, "keep-alive"), (False, "close")])
def test_the_connection_stays_or_closes(keep_alive: bool, said: str) -> None:
    assert read(refused(keep_alive=keep_alive))[1]["connection"] == said


def test_missing_credentials_come_with_a_challenge() -> None:
    assert read(refused(reasons.CREDENTIALS_REQUIRED))[1]["www-authenticate"].startswith("Bearer ")
    unauthorized = [row for row in REASONS.values() if row.code is Code.UNAUTHORIZED]
    for row in unauthorized:
        name = {401: "www-authenticate", 407: "proxy-authenticate"}[row.status]
        assert name in read(refused(row))[1]
    for row in set(REASONS.values()) - set(unauthorized):
        assert not {"www-authenticate", "proxy-authenticate"} & read(refused(row))[1].keys()


def test_further_fields_are_added() -> None:
    data = refused(reasons.ENDPOINT_METHOD_NOT_ALLOWED, fields=b"Allow: GET, HEAD\r\n")
    assert read(data)[1]["allow"] == "GET, HEAD"


@given(
    host=st.text(), request_id=st.text(), detail=st.none() | st.text(), port=st.integers(0, 65535)
)
def test_nothing_breaks_out_of_head_or_body(
    host: str, request_id: str, detail: str | None, port: int
) -> None:
    """They are canonical or our own words; were they ever not, the answer would still hold."""
    _, fields, body = read(refused(host=host, request_id=request_id, detail=detail, port=port))
    error = json.loads(body)["error"]
    assert (error["host"], error["request_id"], error["port"]) == (host, request_id, port)
    # sf-string (RFC 9651 §3.3.3)
    assert re.fullmatch(
        r'egress-proxy; error=[a-z_]+; details="(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"',
        fields["proxy-status"],
    )
    assert set(fields) == {
        *(
            "content-type",
            "proxy-status",
            "x-egress-error",
            "cache-control",
            "connection",
            "content-length",
        )
    }


def test_the_page_of_reasons_is_the_table() -> None:
    """After a change: `python docs/reference/generate.py`."""
    page = runpy.run_path(str(REFERENCE / "generate.py"))["reasons_page"]()
    assert (REFERENCE / "reasons.md").read_text(encoding="utf-8") == page
    for name in REASONS:
        assert f"\n### `{name}`\n" in page
