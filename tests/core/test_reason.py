"""The table of reasons says nothing twice and nothing dishonest."""

from __future__ import annotations

import re

import pytest

from egress_proxy.core import reasons
from egress_proxy.core.reason import Code, Event, Reason
from egress_proxy.core.reasons import REASONS, rows

#: RFC 9209 §2.3.
PROXY_ERROR_TYPES = frozenset(
    [
        "dns_timeout",
        "dns_error",
        "destination_not_found",
        "destination_unavailable",
        "destination_ip_prohibited",
        "destination_ip_unroutable",
        "connection_refused",
        "connection_terminated",
        "connection_timeout",
        "connection_read_timeout",
        "connection_write_timeout",
        "connection_limit_reached",
        "tls_protocol_error",
        "tls_certificate_error",
        "tls_alert_received",
        "http_request_error",
        "http_request_denied",
        "http_response_incomplete",
        "http_response_header_section_size",
        "http_response_header_size",
        "http_response_body_size",
        "http_response_trailer_section_size",
        "http_response_trailer_size",
        "http_response_transfer_coding",
        "http_response_content_coding",
        "http_response_timeout",
        "http_upgrade_failed",
        "http_protocol_error",
        "proxy_internal_response",
        "proxy_internal_error",
        "proxy_configuration_error",
        "proxy_loop_detected",
    ]
)

#: Which statuses a code may come with.
STATUSES: dict[Code, set[int]] = {
    Code.POLICY_BLOCKED: {403},
    Code.FORBIDDEN: {403},
    Code.UNAUTHORIZED: {401, 407},
    Code.HITL_REQUIRED: {403},
    Code.CONFLICT: {409},
    Code.RATE_LIMIT_EXCEEDED: {429},
    Code.BUDGET_EXCEEDED: {429},
    # The client's mistake, but never one that clients mend by credentials or by waiting.
    Code.SCHEMA_VALIDATION_FAILED: set(range(400, 500)) - {401, 403, 407, 429},
    Code.RETRY_LATER: {502, 503, 504},
    Code.INVARIANT_VIOLATION: {500},
}

each = pytest.mark.parametrize("row", REASONS.values(), ids=lambda row: row.name)


def test_the_table_is_what_the_module_names() -> None:
    named = {name: value for name, value in vars(reasons).items() if isinstance(value, Reason)}
    assert {row.name.upper(): row for row in REASONS.values()} == named
    assert {name: row.name for name, row in REASONS.items()} == {name: name for name in REASONS}
    assert len(REASONS) > 40


def test_no_reason_stands_twice() -> None:
    before = dict(REASONS)
    with pytest.raises(ValueError, match="stands twice"):
        rows.row(
            "deny_rule", Event.DENIED, Code.POLICY_BLOCKED, 403, "http_request_denied", "x", "y"
        )
    assert before == REASONS


@each
def test_a_name_is_a_label(row: Reason) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", row.name)


@each
def test_a_status_suits_its_code(row: Reason) -> None:
    assert row.status in STATUSES[row.code]


@each
def test_a_proxy_status_is_a_registered_one(row: Reason) -> None:
    assert row.proxy_status in PROXY_ERROR_TYPES
    if row.code is Code.SCHEMA_VALIDATION_FAILED:
        assert row.proxy_status == "http_request_error"
    if row.code is Code.POLICY_BLOCKED:
        assert row.proxy_status in {
            "http_request_denied",
            "destination_ip_prohibited",
            "proxy_loop_detected",
        }


@each
def test_a_retry_is_promised_where_it_can_help(row: Reason) -> None:
    """An agent that is told to retry a denial does so for ever (sandbox-runtime #273)."""
    later = {Code.RETRY_LATER, Code.HITL_REQUIRED, Code.RATE_LIMIT_EXCEEDED, Code.BUDGET_EXCEEDED}
    if row.code in later or row.status == 408:
        assert row.retry_after is not None
        assert 0 < row.retry_after <= 60
    else:
        assert row.retry_after is None


@each
def test_an_event_suits_its_code(row: Reason) -> None:
    """A denial is ours or the client's doing; a failure is the destination's, the network's or a defect."""
    if row is reasons.POLICY_REVOKED:
        # What was allowed is closed, because it no longer is.
        assert row.event is Event.CLOSED
        return
    if row is reasons.BYTE_BUDGET_SPENT:
        # What was open is closed; the next request is denied.
        assert row.event is Event.CLOSED
        return
    if row is reasons.PARENT_REFUSED:
        # Somebody else's policy: to the client it is as final as ours, and to the log it is no denial of ours.
        assert row.event is Event.FAILED
        return
    expected = {
        Code.RETRY_LATER: {Event.FAILED, Event.CLOSED},
        Code.INVARIANT_VIOLATION: {Event.FAILED},
    }.get(row.code, {Event.DENIED})
    assert row.event in expected


@each
def test_a_person_can_read_it(row: Reason) -> None:
    for text in (row.message, row.advice):
        assert re.fullmatch(r"[A-Z`].*[.`]", text)
        # It stands in JSON, in a header and in a Markdown table.
        assert text.isprintable()
        assert not set(text) & set('"|\\')
    if row.code is Code.POLICY_BLOCKED:
        assert not re.search(r"retry (later|at once)", row.advice, re.IGNORECASE)


@each
def test_denied_stands_nowhere_but_in_the_event(row: Reason) -> None:
    """`grep DENIED` over the log must be exact."""
    for text in (row.name, row.code, row.message, row.advice, row.proxy_status):
        assert "DENIED" not in text


def test_denied_is_part_of_no_other_event() -> None:
    assert [event for event in Event if "DENIED" in event] == [Event.DENIED]
    assert [event.value for event in Event] == [
        "ALLOWED",
        "DENIED",
        "WOULD_DENY",
        "CLOSED",
        "FAILED",
    ]


def test_only_missing_credentials_ask_for_credentials() -> None:
    """407 for a denial makes clients retry their credentials (smokescreen)."""
    assert all(
        row.code is Code.UNAUTHORIZED for row in REASONS.values() if row.status in {401, 407}
    )


def test_a_row_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        reasons.DENY_RULE.status = 200  # type: ignore[misc]
