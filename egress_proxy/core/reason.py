"""The one closed vocabulary of reasons: why a request was refused, failed or was cut short.

This is what a reason consists of: the audit field and metric label (``name``), the HTTP status and error code of the
answer, the ``Proxy-Status`` error type (RFC 9209 §2.3), whether a retry can help, and what a person or an agent should
do next. The table of all of them is :mod:`egress_proxy.core.reasons`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Event(StrEnum):
    """What an audit line says happened. The text ``DENIED`` stands in no line of another event."""

    ALLOWED = "ALLOWED"
    DENIED = "DENIED"
    WOULD_DENY = "WOULD_DENY"
    CLOSED = "CLOSED"
    FAILED = "FAILED"


class Code(StrEnum):
    """The error codes that a client meets in ``X-Egress-Error`` and in the body."""

    POLICY_BLOCKED = "POLICY_BLOCKED"
    FORBIDDEN = "FORBIDDEN"
    UNAUTHORIZED = "UNAUTHORIZED"
    SCHEMA_VALIDATION_FAILED = "SCHEMA_VALIDATION_FAILED"
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    HITL_REQUIRED = "HITL_REQUIRED"
    CONFLICT = "CONFLICT"
    RETRY_LATER = "RETRY_LATER"
    INVARIANT_VIOLATION = "INVARIANT_VIOLATION"


#: What each code says to a program that knows no more than the code.
MEANINGS: Final = {
    Code.POLICY_BLOCKED: "The policy refuses it, and will refuse it again. Do something else, or ask for a rule.",
    Code.FORBIDDEN: "Whoever asks may not use this endpoint, whatever is asked for.",
    Code.UNAUTHORIZED: "Credentials are needed, and missing or wrong.",
    Code.SCHEMA_VALIDATION_FAILED: "The request is not what it must be. Mend it as the message says.",
    Code.RATE_LIMIT_EXCEEDED: "Too many requests, tunnels or new hosts at the moment. Wait for `Retry-After`.",
    Code.BUDGET_EXCEEDED: "The budget of bytes or requests is used up. `Retry-After` is the end of its window.",
    Code.HITL_REQUIRED: "A human must approve it first. Go on with something else meanwhile.",
    Code.CONFLICT: "It contradicts what was asked or decided before.",
    Code.RETRY_LATER: "Allowed, and not possible at the moment. Send the same again after `Retry-After`.",
    Code.INVARIANT_VIOLATION: "A defect of the proxy. Nothing was let through; report it with the request id.",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """One row of the table."""

    name: str
    """Audit value and metric label."""
    event: Event
    code: Code
    status: int
    """HTTP status of the answer, where one can still be given."""
    proxy_status: str
    """Error type of the ``Proxy-Status`` field."""
    message: str
    """What happened, for the body."""
    advice: str
    """What to do next."""
    retry_after: int | None = None
    """Seconds after which the same request may succeed; None where a retry cannot help."""
    rcode: str | None = None
    """What the name servers said, for ``dns_error`` (RFC 9209 §2.3.2); None where that is not known."""
