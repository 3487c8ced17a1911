"""The one closed vocabulary of reasons: why a request was refused, failed or was cut short.

Each row is written once, here, and read everywhere: the audit field and metric label (``name``),
the HTTP status and error code of the answer, the ``Proxy-Status`` error type (RFC 9209 §2.3),
whether a retry can help, and what a person or an agent should do next.
``docs/reference/reasons.md`` is generated from this table.
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


REASONS: dict[str, Reason] = {}


def _row(
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
    if name in REASONS:
        raise ValueError(f"the reason {name} stands twice in the table")
    REASONS[name] = Reason(
        name, event, code, status, proxy_status, message, advice, retry_after, rcode
    )
    return REASONS[name]


def _policy(
    name: str, message: str, advice: str, proxy_status: str = "http_request_denied"
) -> Reason:
    return _row(name, Event.DENIED, Code.POLICY_BLOCKED, 403, proxy_status, message, advice)


def _malformed(name: str, message: str, advice: str, status: int = 400) -> Reason:
    return _row(
        name,
        Event.DENIED,
        Code.SCHEMA_VALIDATION_FAILED,
        status,
        "http_request_error",
        message,
        advice,
    )


def _unauthorized(name: str, message: str, advice: str) -> Reason:
    return _row(name, Event.DENIED, Code.UNAUTHORIZED, 407, "http_request_denied", message, advice)


def _failure(
    name: str,
    status: int,
    proxy_status: str,
    message: str,
    advice: str,
    retry_after: int = 5,
    rcode: str | None = None,
) -> Reason:
    return _row(
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


def _closed(name: str, message: str, advice: str) -> Reason:
    return _row(
        name, Event.CLOSED, Code.RETRY_LATER, 503, "connection_terminated", message, advice, 1
    )


def _limited(name: str, code: Code, message: str, advice: str, retry_after: int) -> Reason:
    """A limit of a policy. The answer says more exactly when to come back than ``retry_after``."""
    return _row(name, Event.DENIED, code, 429, "http_request_denied", message, advice, retry_after)


_ASK = "Do not retry. Ask whoever runs this proxy to allow it; `egress-proxy explain` names the rule to add."

# The policy says no.
HOST_NOT_ALLOWED = _policy("host_not_allowed", "No rule allows this host.", _ASK)
PORT_NOT_ALLOWED = _policy("port_not_allowed", "The host is allowed, but not on this port.", _ASK)
METHOD_NOT_ALLOWED = _policy(
    "method_not_allowed",
    "The host is allowed, but not with this method.",
    f"A method that its rule names may do. {_ASK}",
)
PATH_NOT_ALLOWED = _policy(
    "path_not_allowed",
    "The host is allowed, but not this path.",
    "Send the path in its plainest form: no `//`, `;` or backslash, and nothing percent-encoded that need not be. If "
    "that is how it was sent, do not retry: ask whoever runs this proxy to allow it; `egress-proxy explain` names the "
    "rule to add.",
)
CONNECT_NOT_ALLOWED = _policy(
    "connect_not_allowed",
    "The host is allowed for plain HTTP requests that the proxy can read, and not for tunnels.",
    "Do not retry with CONNECT. If the host answers plain HTTP, send the request as `METHOD http://host/path` to the "
    "proxy, as clients do for http:// URLs. If not, ask whoever runs this proxy to allow tunnels to it.",
)
DENY_RULE = _policy(
    "deny_rule",
    "A deny rule names this destination.",
    "Do not retry. No allow rule lifts it; `egress-proxy explain` names the deny rule, for whoever runs this proxy.",
)
APPROVAL_REQUIRED = _row(
    "approval_required",
    Event.DENIED,
    Code.HITL_REQUIRED,
    403,
    "http_request_denied",
    "An ask rule names this destination, and no human has approved it.",
    "Ask whoever runs this proxy to approve it, and go on with something else meanwhile.",
    60,
)
ADDRESS_NOT_ALLOWED = _policy(
    "address_not_allowed",
    "The destination is an IP address, and no cidr rule allows it.",
    "Use the host name instead of its address, or ask for a cidr rule.",
)
DESTINATION_IP_PROHIBITED = _policy(
    "destination_ip_prohibited",
    "The destination's address is in a private or special-use network, or in one that a deny rule names.",
    "Do not retry. Where the name is meant to be internal, its rule needs `allow_private` with that network; "
    "what a deny rule names stays closed.",
    "destination_ip_prohibited",
)
PROXY_LOOP = _policy(
    "proxy_loop",
    "The destination is this proxy itself, or the request has come through it before.",
    "Do not retry. Either the client sends to the proxy, through the proxy, what is for the proxy itself; or "
    "`upstream` leads back here, which whoever runs this proxy has to mend.",
    "proxy_loop_detected",
)

# The tunnel does not carry what was asked for. The client has its 200 by then, so it is told by a TLS alert alone.
_NOT_THAT = "Where the tunnel is meant to carry something else, its rule needs `tls: off`."
SNI_MISMATCH = _policy(
    "sni_mismatch",
    "The TLS handshake in the tunnel names another host than the CONNECT did.",
    f"Do not retry. Ask for the host that the handshake names. {_NOT_THAT}",
)
SNI_MISSING = _policy(
    "sni_missing",
    "The TLS handshake in the tunnel names no host (SNI).",
    f"Have the client send the host's name. {_NOT_THAT}",
)
TUNNEL_NOT_TLS = _policy("tunnel_not_tls", "The tunnel does not start with TLS.", _NOT_THAT)
CLIENT_HELLO_MALFORMED = _policy(
    "client_hello_malformed",
    "The TLS handshake in the tunnel cannot be understood, or is longer than `limits.client_hello_bytes`.",
    _NOT_THAT,
)
CLIENT_HELLO_TIMEOUT = _policy(
    "client_hello_timeout",
    "The TLS handshake in the tunnel did not begin, or was not complete, within `timeouts.client_hello`.",
    f"Send it at once. {_NOT_THAT}",
)
ECH_NOT_ALLOWED = _policy(
    "ech_not_allowed",
    "The TLS handshake in the tunnel hides the name that it is for (Encrypted ClientHello).",
    "Switch Encrypted ClientHello off in the client, or ask whoever runs this proxy about `tunnels.ech`.",
)

# The request cannot be understood.
MALFORMED_REQUEST_LINE = _malformed(
    "malformed_request_line",
    "The request line is malformed.",
    "Send METHOD SP target SP HTTP/1.1 CRLF (RFC 9112 §3).",
)
MALFORMED_HEADER = _malformed(
    "malformed_header",
    "A header line is malformed.",
    "Send NAME: VALUE CRLF without white space before the colon.",
)
BARE_LF = _malformed(
    "bare_lf", "A line of the head ends without CR.", "End each line with CRLF (RFC 9112 §2.2)."
)
OBS_FOLD = _malformed(
    "obs_fold", "A header is folded over lines.", "Write each header on one line (RFC 9112 §5.2)."
)
CONTROL_BYTE = _malformed(
    "control_byte", "The head holds a control byte.", "Remove it; percent-encode it in a URL."
)
HEAD_TOO_LARGE = _malformed(
    "head_too_large", "The request head is too large.", "Send fewer or smaller headers."
)
TOO_MANY_HEADERS = _malformed(
    "too_many_headers", "The request has too many headers.", "Send fewer headers."
)
MISSING_HOST = _malformed(
    "missing_host", "An HTTP/1.1 request needs a Host header.", "Send one (RFC 9112 §3.2)."
)
DUPLICATE_HOST = _malformed(
    "duplicate_host", "There is more than one Host header.", "Send one (RFC 9112 §3.2)."
)
HOST_MISMATCH = _malformed(
    "host_mismatch",
    "The Host header names another host than the target.",
    "Make the two agree (RFC 9112 §3.2.2).",
)
BAD_AUTHORITY = _malformed(
    "bad_authority",
    "The target's authority is not host:port.",
    "Send a host and a decimal port from 1 to 65535, without user information.",
)
BAD_HOST = _malformed(
    "bad_host",
    "The target's host is neither a DNS name nor an IP address.",
    "Send the host as A-labels, or [IPv6].",
)
SCHEME_NOT_SUPPORTED = _malformed(
    "scheme_not_supported",
    "Only http:// can be forwarded in clear.",
    "For https:// send CONNECT host:443.",
)
NOT_A_PROXY_REQUEST = _malformed(
    "not_a_proxy_request",
    "This is a forward proxy; the target is neither host:port with CONNECT nor an http:// URL.",
    "Set this address as HTTP_PROXY and HTTPS_PROXY instead of sending requests to it.",
)
VERSION_NOT_SUPPORTED = _malformed(
    "version_not_supported", "Only HTTP/1.0 and HTTP/1.1 are spoken.", "Use HTTP/1.1."
)
BAD_CONTENT_LENGTH = _malformed(
    "bad_content_length",
    "Content-Length is not one decimal number.",
    "Send it once, in digits (RFC 9110 §8.6).",
)
BAD_TRANSFER_ENCODING = _malformed(
    "bad_transfer_encoding",
    "Transfer-Encoding is not `chunked` alone, or stands beside Content-Length or in HTTP/1.0.",
    "Send either chunked or Content-Length (RFC 9112 §6.1).",
)
BAD_CHUNK = _malformed("bad_chunk", "The chunked body is malformed.", "Follow RFC 9112 §7.1.")
BAD_EXPECT = _malformed(
    "bad_expect", "Only `Expect: 100-continue` is known.", "Leave Expect out.", 417
)
INCOMPLETE_REQUEST = _malformed(
    "incomplete_request", "The connection ended inside the request.", "Send the whole request."
)
HEAD_TIMEOUT = _row(
    "head_timeout",
    Event.DENIED,
    Code.SCHEMA_VALIDATION_FAILED,
    408,
    "http_request_error",
    "The request head did not arrive in time.",
    "Send the whole head at once.",
    1,
)

# The contract headers are not what a request that changes something must carry (`contract_headers`, and the admin API).
_CONTRACT = (
    "Send both, once each: `Idempotency-Key: ` with a new UUID of version 4 for each deed and the same one for its "
    "retries, and `X-Tenant-ID: ` with your tenant's name, 1 to 64 of A-Z a-z 0-9 . _ -"
)
IDEMPOTENCY_KEY_MISSING = _malformed(
    "idempotency_key_missing",
    "A request with this method needs the header Idempotency-Key.",
    f"{_CONTRACT}.",
)
IDEMPOTENCY_KEY_INVALID = _malformed(
    "idempotency_key_invalid",
    "The header Idempotency-Key is not one UUID of version 4 (8-4-4-4-12 hexadecimal digits).",
    f"{_CONTRACT}.",
)
TENANT_ID_MISSING = _malformed(
    "tenant_id_missing",
    "A request with this method needs the header X-Tenant-ID.",
    f"{_CONTRACT}.",
)
TENANT_ID_INVALID = _malformed(
    "tenant_id_invalid",
    "The header X-Tenant-ID is not one name of 1 to 64 of A-Z a-z 0-9 . _ -.",
    f"{_CONTRACT}.",
)

# Who is asking is not known.
PROXY_CREDENTIALS_REQUIRED = _unauthorized(
    "proxy_credentials_required",
    "This needs credentials for the proxy, and the request has none.",
    "Ask whoever runs this proxy for a user, and name it in the proxy's URL: http://USER:PASSWORD@HOST:3128.",
)
PROXY_CREDENTIALS_WRONG = _unauthorized(
    "proxy_credentials_wrong",
    "The credentials for the proxy are wrong.",
    "Do not retry with the same ones. Look at user and password in the proxy's URL; percent-encode "
    "what is special in them.",
)
DUPLICATE_CREDENTIALS = _malformed(
    "duplicate_credentials",
    "There is more than one Proxy-Authorization header.",
    "Send one; a proxy in between may have added its own.",
)

# The destination is allowed and cannot be reached.
DNS_NXDOMAIN = _failure(
    "dns_nxdomain",
    502,
    "dns_error",
    "The host's name does not exist.",
    "Check the name.",
    30,
    "NXDOMAIN",
)
DNS_NO_ADDRESS = _failure(
    "dns_no_address",
    502,
    "dns_error",
    "The host's name has no address.",
    "Check the name.",
    30,
    "NOERROR",
)
DNS_FAILURE = _failure(
    "dns_failure", 502, "dns_error", "The name servers could not answer.", "Retry later."
)
DNS_REFUSED = _failure(
    "dns_refused",
    502,
    "dns_error",
    "The name servers refuse to answer.",
    "Tell whoever runs the proxy: its name servers do not serve it.",
    30,
    "REFUSED",
)
DNS_TIMEOUT = _failure(
    "dns_timeout", 504, "dns_timeout", "The name servers did not answer in time.", "Retry later."
)
CONNECTION_REFUSED = _failure(
    "connection_refused",
    502,
    "connection_refused",
    "The destination refused the connection.",
    "Retry later.",
)
CONNECTION_TIMEOUT = _failure(
    "connection_timeout",
    504,
    "connection_timeout",
    "The destination did not accept in time.",
    "Retry later.",
)
DESTINATION_UNREACHABLE = _failure(
    "destination_unreachable",
    502,
    "destination_ip_unroutable",
    "No route to the destination.",
    "Retry later.",
    30,
)
CONNECTION_FAILED = _failure(
    "connection_failed",
    502,
    "destination_unavailable",
    "The connection could not be made.",
    "Retry later.",
)
PARENT_REFUSED = _row(
    "parent_refused",
    Event.FAILED,
    Code.POLICY_BLOCKED,
    403,
    "http_request_denied",
    "This proxy allows it, and the parent proxy behind it refuses it.",
    "Do not retry. Ask whoever runs the parent proxy to allow it.",
)
PARENT_CREDENTIALS = _failure(
    "parent_credentials",
    502,
    "proxy_configuration_error",
    "The parent proxy does not take this proxy's credentials.",
    "Tell whoever runs this proxy: the credentials in `upstream` are wrong or missing.",
    60,
)
PARENT_FAILED = _failure(
    "parent_failed",
    502,
    "destination_unavailable",
    "The parent proxy could not reach the destination, or gave no answer that makes sense.",
    "Retry later.",
)
PARENT_UNREACHABLE = _failure(
    "parent_unreachable",
    502,
    "destination_unavailable",
    "The parent proxy cannot be reached.",
    "Retry later. If it stays so, tell whoever runs this proxy: it cannot reach the parent in its `upstream`.",
)
PARENT_TIMEOUT = _failure(
    "parent_timeout",
    504,
    "http_response_timeout",
    "The parent proxy, or the destination behind it, did not answer in time.",
    "Retry later.",
)
ORIGIN_TIMEOUT = _failure(
    "origin_timeout",
    504,
    "http_response_timeout",
    "The origin did not answer in time.",
    "Retry later.",
)
ORIGIN_CLOSED = _failure(
    "origin_closed",
    502,
    "connection_terminated",
    "The origin closed before it answered.",
    "Retry later.",
)
ORIGIN_MALFORMED = _failure(
    "origin_malformed",
    502,
    "http_protocol_error",
    "The origin's answer is malformed.",
    "Tell the origin's owner.",
    60,
)
ORIGIN_TRUNCATED = _failure(
    "origin_truncated",
    502,
    "http_response_incomplete",
    "The origin's answer ended too soon.",
    "Retry.",
)
ORIGIN_RESET = _failure(
    "origin_reset", 502, "connection_terminated", "The origin reset the connection.", "Retry."
)
CLIENT_ABORTED = _failure(
    "client_aborted",
    502,
    "connection_terminated",
    "The client went away before the answer was complete.",
    "Retry.",
)
DRAINING = _failure(
    "draining", 503, "proxy_internal_response", "The proxy is shutting down.", "Retry at once.", 1
)
STARTING = _failure(
    "starting",
    503,
    "proxy_internal_response",
    "The proxy does not take connections yet.",
    "Retry at once.",
    1,
)
OVERLOADED = _failure(
    "overloaded",
    503,
    "connection_limit_reached",
    "The proxy has as many connections or tunnels as it may.",
    "Retry later.",
    1,
)
CLIENT_CONNECTIONS = _failure(
    "client_connections",
    503,
    "connection_limit_reached",
    "This client has as many connections to the proxy as it may.",
    "Close connections that are not needed, or keep them for several requests; then retry.",
    1,
)
STORE_UNAVAILABLE = _failure(
    "store_unavailable",
    503,
    "proxy_internal_response",
    "The store that keeps the limits of all replicas cannot be reached.",
    "Retry later. Whoever runs the proxy finds why in the event `state_failed` on its stderr.",
    5,
)
CREDENTIALS_UNCHECKED = _failure(
    "credentials_unchecked",
    503,
    "proxy_internal_response",
    "Too many credentials wait to be checked.",
    "Retry later with the same ones.",
)

# The proxy ended what was allowed and was running.
IDLE_TIMEOUT = _closed(
    "idle_timeout", "No byte passed for the idle time.", "Open a new connection when needed."
)
LIFETIME_EXCEEDED = _closed(
    "lifetime_exceeded", "The connection reached its life time.", "Open a new connection."
)
DRAIN_TIMEOUT = _closed(
    "drain_timeout", "The proxy shut down before the connection ended.", "Open a new connection."
)

POLICY_REVOKED = _row(
    "policy_revoked",
    Event.CLOSED,
    Code.POLICY_BLOCKED,
    403,
    "http_request_denied",
    "A changed policy no longer allows this tunnel.",
    _ASK,
)

# The admin API says no.
CREDENTIALS_REQUIRED = _row(
    "credentials_required",
    Event.DENIED,
    Code.UNAUTHORIZED,
    401,
    "http_request_denied",
    "The admin API needs a bearer token.",
    "Send `Authorization: Bearer` with the token of admin_token_file.",
)
NO_SUCH_ENDPOINT = _malformed(
    "no_such_endpoint", "The admin API has no such path.", "See docs/reference/admin.md.", 404
)
ENDPOINT_METHOD_NOT_ALLOWED = _malformed(
    "endpoint_method_not_allowed",
    "The admin API's path does not know this method.",
    "See docs/reference/admin.md.",
    405,
)
FORBIDDEN_HOST = _row(
    "forbidden_host",
    Event.DENIED,
    Code.FORBIDDEN,
    403,
    "http_request_denied",
    "Without a token, the admin API answers programs on its own machine alone, and no browser.",
    "Ask for `localhost` or a loopback address without an Origin header, or set admin_token_file.",
)
BODY_TOO_LARGE = _malformed(
    "body_too_large",
    "The request's body is larger than the admin API takes.",
    "Send a smaller one.",
    413,
)
BAD_ADMIN_REQUEST = _malformed(
    "bad_admin_request", "The request's body is not what is wanted.", "Mend it as said."
)
IDEMPOTENCY_KEY_REUSED = _row(
    "idempotency_key_reused",
    Event.DENIED,
    Code.CONFLICT,
    409,
    "http_request_denied",
    "The Idempotency-Key was used for another request within the last 24 hours.",
    "Send a new UUID of version 4 for a new request; the same one is for the retries of one request alone.",
)
RELOAD_FAILED = _malformed(
    "reload_failed",
    "The configuration has errors; the old one stays in force.",
    "Mend the errors named.",
    422,
)

# The tenant has had what its policy grants. Most of these say exactly when there will be more.
_WAIT = "Wait for as long as `Retry-After` says: sooner it is refused again, and then it is not."
REQUEST_RATE = _limited(
    "request_rate",
    Code.RATE_LIMIT_EXCEEDED,
    "The tenant sends more requests a second than its policy allows.",
    f"{_WAIT} Send requests more evenly, or fewer at once.",
    1,
)
TUNNEL_LIMIT = _limited(
    "tunnel_limit",
    Code.RATE_LIMIT_EXCEEDED,
    "The tenant has as many tunnels open as its policy allows.",
    "Close tunnels that are not needed, and use one for several requests; then retry.",
    5,
)
NEW_HOSTS_LIMIT = _limited(
    "new_hosts_limit",
    Code.RATE_LIMIT_EXCEEDED,
    "The tenant has begun to talk to as many different hosts within an hour as its policy allows.",
    f"{_WAIT} Hosts that it has talked to within the hour stay open to it.",
    60,
)
REQUEST_BUDGET = _limited(
    "request_budget",
    Code.BUDGET_EXCEEDED,
    "The tenant has sent as many requests today as its policy allows.",
    f"{_WAIT} If it is urgent, ask whoever runs this proxy for a larger budget.",
    60,
)
BYTE_BUDGET = _limited(
    "byte_budget",
    Code.BUDGET_EXCEEDED,
    "The tenant has sent or received as many bytes today as its policy allows.",
    f"{_WAIT} If it is urgent, ask whoever runs this proxy for a larger budget.",
    60,
)
BYTE_BUDGET_SPENT = _row(
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
STORE_LOST = _row(
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
INTERNAL_ERROR = _row(
    "internal_error",
    Event.FAILED,
    Code.INVARIANT_VIOLATION,
    500,
    "proxy_internal_error",
    "The proxy met a defect of its own and let nothing through.",
    "Report it with the request id.",
)
