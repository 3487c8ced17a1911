"""Reasons why what is allowed was not possible, or ended early."""

from __future__ import annotations

from egress_proxy.core.reason import Code, Event
from egress_proxy.core.reasons import rows

# The destination is allowed and cannot be reached.
DNS_NXDOMAIN = rows.failure(
    "dns_nxdomain",
    502,
    "dns_error",
    "The host's name does not exist.",
    "Check the name.",
    30,
    "NXDOMAIN",
)
DNS_NO_ADDRESS = rows.failure(
    "dns_no_address",
    502,
    "dns_error",
    "The host's name has no address.",
    "Check the name.",
    30,
    "NOERROR",
)
DNS_FAILURE = rows.failure(
    "dns_failure", 502, "dns_error", "The name servers could not answer.", "Retry later."
)
DNS_REFUSED = rows.failure(
    "dns_refused",
    502,
    "dns_error",
    "The name servers refuse to answer.",
    "Tell whoever runs the proxy: its name servers do not serve it.",
    30,
    "REFUSED",
)
DNS_TIMEOUT = rows.failure(
    "dns_timeout", 504, "dns_timeout", "The name servers did not answer in time.", "Retry later."
)
CONNECTION_REFUSED = rows.failure(
    "connection_refused",
    502,
    "connection_refused",
    "The destination refused the connection.",
    "Retry later.",
)
CONNECTION_TIMEOUT = rows.failure(
    "connection_timeout",
    504,
    "connection_timeout",
    "The destination did not accept in time.",
    "Retry later.",
)
DESTINATION_UNREACHABLE = rows.failure(
    "destination_unreachable",
    502,
    "destination_ip_unroutable",
    "No route to the destination.",
    "Retry later.",
    30,
)
CONNECTION_FAILED = rows.failure(
    "connection_failed",
    502,
    "destination_unavailable",
    "The connection could not be made.",
    "Retry later.",
)
PARENT_REFUSED = rows.row(
    "parent_refused",
    Event.FAILED,
    Code.POLICY_BLOCKED,
    403,
    "http_request_denied",
    "This proxy allows it, and the parent proxy behind it refuses it.",
    "Do not retry. Ask whoever runs the parent proxy to allow it.",
)
PARENT_CREDENTIALS = rows.failure(
    "parent_credentials",
    502,
    "proxy_configuration_error",
    "The parent proxy does not take this proxy's credentials.",
    "Tell whoever runs this proxy: the credentials in `upstream` are wrong or missing.",
    60,
)
PARENT_FAILED = rows.failure(
    "parent_failed",
    502,
    "destination_unavailable",
    "The parent proxy could not reach the destination, or gave no answer that makes sense.",
    "Retry later.",
)
PARENT_UNREACHABLE = rows.failure(
    "parent_unreachable",
    502,
    "destination_unavailable",
    "The parent proxy cannot be reached.",
    "Retry later. If it stays so, tell whoever runs this proxy: it cannot reach the parent in its `upstream`.",
)
PARENT_TIMEOUT = rows.failure(
    "parent_timeout",
    504,
    "http_response_timeout",
    "The parent proxy, or the destination behind it, did not answer in time.",
    "Retry later.",
)
ORIGIN_TIMEOUT = rows.failure(
    "origin_timeout",
    504,
    "http_response_timeout",
    "The origin did not answer in time.",
    "Retry later.",
)
ORIGIN_CLOSED = rows.failure(
    "origin_closed",
    502,
    "connection_terminated",
    "The origin closed before it answered.",
    "Retry later.",
)
ORIGIN_MALFORMED = rows.failure(
    "origin_malformed",
    502,
    "http_protocol_error",
    "The origin's answer is malformed.",
    "Tell the origin's owner.",
    60,
)
ORIGIN_TRUNCATED = rows.failure(
    "origin_truncated",
    502,
    "http_response_incomplete",
    "The origin's answer ended too soon.",
    "Retry.",
)
ORIGIN_RESET = rows.failure(
    "origin_reset", 502, "connection_terminated", "The origin reset the connection.", "Retry."
)
CLIENT_ABORTED = rows.failure(
    "client_aborted",
    502,
    "connection_terminated",
    "The client went away before the answer was complete.",
    "Retry.",
)
DRAINING = rows.failure(
    "draining", 503, "proxy_internal_response", "The proxy is shutting down.", "Retry at once.", 1
)
STARTING = rows.failure(
    "starting",
    503,
    "proxy_internal_response",
    "The proxy does not take connections yet.",
    "Retry at once.",
    1,
)
OVERLOADED = rows.failure(
    "overloaded",
    503,
    "connection_limit_reached",
    "The proxy has as many connections or tunnels as it may.",
    "Retry later.",
    1,
)
CLIENT_CONNECTIONS = rows.failure(
    "client_connections",
    503,
    "connection_limit_reached",
    "This client has as many connections to the proxy as it may.",
    "Close connections that are not needed, or keep them for several requests; then retry.",
    1,
)
STORE_UNAVAILABLE = rows.failure(
    "store_unavailable",
    503,
    "proxy_internal_response",
    "The store that keeps the limits of all replicas cannot be reached.",
    "Retry later. Whoever runs the proxy finds why in the event `state_failed` on its stderr.",
    5,
)
CREDENTIALS_UNCHECKED = rows.failure(
    "credentials_unchecked",
    503,
    "proxy_internal_response",
    "Too many credentials wait to be checked.",
    "Retry later with the same ones.",
)

# The proxy ended what was allowed and was running.
IDLE_TIMEOUT = rows.closed(
    "idle_timeout", "No byte passed for the idle time.", "Open a new connection when needed."
)
LIFETIME_EXCEEDED = rows.closed(
    "lifetime_exceeded", "The connection reached its life time.", "Open a new connection."
)
DRAIN_TIMEOUT = rows.closed(
    "drain_timeout", "The proxy shut down before the connection ended.", "Open a new connection."
)

POLICY_REVOKED = rows.row(
    "policy_revoked",
    Event.CLOSED,
    Code.POLICY_BLOCKED,
    403,
    "http_request_denied",
    "A changed policy no longer allows this tunnel.",
    rows.ASK,
)
