"""Reasons of tenants who have had what their policies grant; and our own defects."""

from __future__ import annotations

from egress_proxy.core.reason import Code, Event
from egress_proxy.core.reasons import rows

# The tenant has had what its policy grants. Most of these say exactly when there will be more.
_WAIT = "Wait for as long as `Retry-After` says: sooner it is refused again, and then it is not."
REQUEST_RATE = rows.limited(
    "request_rate",
    Code.RATE_LIMIT_EXCEEDED,
    "The tenant sends more requests a second than its policy allows.",
    f"{_WAIT} Send requests more evenly, or fewer at once.",
    1,
)
TUNNEL_LIMIT = rows.limited(
    "tunnel_limit",
    Code.RATE_LIMIT_EXCEEDED,
    "The tenant has as many tunnels open as its policy allows.",
    "Close tunnels that are not needed, and use one for several requests; then retry.",
    5,
)
NEW_HOSTS_LIMIT = rows.limited(
    "new_hosts_limit",
    Code.RATE_LIMIT_EXCEEDED,
    "The tenant has begun to talk to as many different hosts within an hour as its policy allows.",
    f"{_WAIT} Hosts that it has talked to within the hour stay open to it.",
    60,
)
REQUEST_BUDGET = rows.limited(
    "request_budget",
    Code.BUDGET_EXCEEDED,
    "The tenant has sent as many requests today as its policy allows.",
    f"{_WAIT} If it is urgent, ask whoever runs this proxy for a larger budget.",
    60,
)
BYTE_BUDGET = rows.limited(
    "byte_budget",
    Code.BUDGET_EXCEEDED,
    "The tenant has sent or received as many bytes today as its policy allows.",
    f"{_WAIT} If it is urgent, ask whoever runs this proxy for a larger budget.",
    60,
)
BYTE_BUDGET_SPENT = rows.row(
    "byte_budget_spent",
    Event.CLOSED,
    Code.BUDGET_EXCEEDED,
    429,
    "connection_terminated",
    "The tenant's bytes of the day were used up while the connection was open.",
    "Ask again to learn from `Retry-After` when the next day begins. If it is urgent, ask whoever runs this proxy for "
    "a larger budget.",
    60,
)
STORE_LOST = rows.row(
    "store_lost",
    Event.CLOSED,
    Code.RETRY_LATER,
    503,
    "connection_terminated",
    "The store that keeps the tenant's budget of bytes went away while the connection was open.",
    "Retry later.",
    5,
)

# A defect of ours.
INTERNAL_ERROR = rows.row(
    "internal_error",
    Event.FAILED,
    Code.INVARIANT_VIOLATION,
    500,
    "proxy_internal_error",
    "The proxy met a defect of its own and let nothing through.",
    "Report it with the request id.",
)
