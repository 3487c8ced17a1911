"""How a row of the table of reasons is made: what all rows of one kind have in common."""

from __future__ import annotations

from egress_proxy.core.reason import Code, Event, Reason

REASONS: dict[str, Reason] = {}

#: What to do about most refusals.
ASK = "Do not retry. Ask whoever runs this proxy to allow it; `egress-proxy explain` names the rule to add."


def row(
    name: str,
    event: Event,
    code: Code,
    status: int,
    proxy_status: str,
    message: str,
    advice: str,
    retry_after: int | None = None,
    rcode: str | None = None,
) -> Reason:
    """A row of the table. Raises ValueError for a name that stands there already."""
    if name in REASONS:
        raise ValueError(f"the reason {name} stands twice in the table")
    REASONS[name] = Reason(
        name, event, code, status, proxy_status, message, advice, retry_after, rcode
    )
    return REASONS[name]


def policy(
    name: str, message: str, advice: str, proxy_status: str = "http_request_denied"
) -> Reason:
    """The policy says no."""
    return row(name, Event.DENIED, Code.POLICY_BLOCKED, 403, proxy_status, message, advice)


def malformed(name: str, message: str, advice: str, status: int = 400) -> Reason:
    """The request is not what it must be."""
    return row(
        name,
        Event.DENIED,
        Code.SCHEMA_VALIDATION_FAILED,
        status,
        "http_request_error",
        message,
        advice,
    )


def unauthorized(name: str, message: str, advice: str) -> Reason:
    """Credentials are missing or wrong."""
    return row(name, Event.DENIED, Code.UNAUTHORIZED, 407, "http_request_denied", message, advice)


def failure(
    name: str,
    status: int,
    proxy_status: str,
    message: str,
    advice: str,
    retry_after: int = 5,
    rcode: str | None = None,
) -> Reason:
    """It is allowed, and was not possible."""
    return row(
        name,
        Event.FAILED,
        Code.RETRY_LATER,
        status,
        proxy_status,
        message,
        advice,
        retry_after,
        rcode,
    )


def closed(name: str, message: str, advice: str) -> Reason:
    """The proxy ended what was running."""
    return row(
        name, Event.CLOSED, Code.RETRY_LATER, 503, "connection_terminated", message, advice, 1
    )


def limited(name: str, code: Code, message: str, advice: str, retry_after: int) -> Reason:
    """A limit of a policy. The answer says more exactly when to come back than ``retry_after``."""
    return row(name, Event.DENIED, code, 429, "http_request_denied", message, advice, retry_after)
