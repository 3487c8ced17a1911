"""Reasons to refuse a request whatever the rules say: it cannot be understood, or lacks what all must carry."""

from __future__ import annotations

from egress_proxy.core.reason import Code, Event
from egress_proxy.core.reasons import rows

# The request cannot be understood.
MALFORMED_REQUEST_LINE = rows.malformed(
    "malformed_request_line",
    "The request line is malformed.",
    "Send METHOD SP target SP HTTP/1.1 CRLF (RFC 9112 §3).",
)
MALFORMED_HEADER = rows.malformed(
    "malformed_header",
    "A header line is malformed.",
    "Send NAME: VALUE CRLF without white space before the colon.",
)
BARE_LF = rows.malformed(
    "bare_lf", "A line of the head ends without CR.", "End each line with CRLF (RFC 9112 §2.2)."
)
OBS_FOLD = rows.malformed(
    "obs_fold", "A header is folded over lines.", "Write each header on one line (RFC 9112 §5.2)."
)
CONTROL_BYTE = rows.malformed(
    "control_byte", "The head holds a control byte.", "Remove it; percent-encode it in a URL."
)
HEAD_TOO_LARGE = rows.malformed(
    "head_too_large", "The request head is too large.", "Send fewer or smaller headers."
)
TOO_MANY_HEADERS = rows.malformed(
    "too_many_headers", "The request has too many headers.", "Send fewer headers."
)
MISSING_HOST = rows.malformed(
    "missing_host", "An HTTP/1.1 request needs a Host header.", "Send one (RFC 9112 §3.2)."
)
DUPLICATE_HOST = rows.malformed(
    "duplicate_host", "There is more than one Host header.", "Send one (RFC 9112 §3.2)."
)
HOST_MISMATCH = rows.malformed(
    "host_mismatch",
    "The Host header names another host than the target.",
    "Make the two agree (RFC 9112 §3.2.2).",
)
BAD_AUTHORITY = rows.malformed(
    "bad_authority",
    "The target's authority is not host:port.",
    "Send a host and a decimal port from 1 to 65535, without user information.",
)
BAD_HOST = rows.malformed(
    "bad_host",
    "The target's host is neither a DNS name nor an IP address.",
    "Send the host as A-labels, or [IPv6].",
)
SCHEME_NOT_SUPPORTED = rows.malformed(
    "scheme_not_supported",
    "Only http:// can be forwarded in clear.",
    "For https:// send CONNECT host:443.",
)
NOT_A_PROXY_REQUEST = rows.malformed(
    "not_a_proxy_request",
    "This is a forward proxy; the target is neither host:port with CONNECT nor an http:// URL.",
    "Set this address as HTTP_PROXY and HTTPS_PROXY instead of sending requests to it.",
)
VERSION_NOT_SUPPORTED = rows.malformed(
    "version_not_supported", "Only HTTP/1.0 and HTTP/1.1 are spoken.", "Use HTTP/1.1."
)
BAD_CONTENT_LENGTH = rows.malformed(
    "bad_content_length",
    "Content-Length is not one decimal number.",
    "Send it once, in digits (RFC 9110 §8.6).",
)
BAD_TRANSFER_ENCODING = rows.malformed(
    "bad_transfer_encoding",
    "Transfer-Encoding is not `chunked` alone, or stands beside Content-Length or in HTTP/1.0.",
    "Send either chunked or Content-Length (RFC 9112 §6.1).",
)
BAD_CHUNK = rows.malformed("bad_chunk", "The chunked body is malformed.", "Follow RFC 9112 §7.1.")
BAD_EXPECT = rows.malformed(
    "bad_expect", "Only `Expect: 100-continue` is known.", "Leave Expect out.", 417
)
INCOMPLETE_REQUEST = rows.malformed(
    "incomplete_request", "The connection ended inside the request.", "Send the whole request."
)
HEAD_TIMEOUT = rows.row(
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
IDEMPOTENCY_KEY_MISSING = rows.malformed(
    "idempotency_key_missing",
    "A request with this method needs the header Idempotency-Key.",
    f"{_CONTRACT}.",
)
IDEMPOTENCY_KEY_INVALID = rows.malformed(
    "idempotency_key_invalid",
    "The header Idempotency-Key is not one UUID of version 4 (8-4-4-4-12 hexadecimal digits).",
    f"{_CONTRACT}.",
)
TENANT_ID_MISSING = rows.malformed(
    "tenant_id_missing",
    "A request with this method needs the header X-Tenant-ID.",
    f"{_CONTRACT}.",
)
TENANT_ID_INVALID = rows.malformed(
    "tenant_id_invalid",
    "The header X-Tenant-ID is not one name of 1 to 64 of A-Z a-z 0-9 . _ -.",
    f"{_CONTRACT}.",
)

# Who is asking is not known.
PROXY_CREDENTIALS_REQUIRED = rows.unauthorized(
    "proxy_credentials_required",
    "This needs credentials for the proxy, and the request has none.",
    "Ask whoever runs this proxy for a user, and name it in the proxy's URL: http://USER:PASSWORD@HOST:3128.",
)
PROXY_CREDENTIALS_WRONG = rows.unauthorized(
    "proxy_credentials_wrong",
    "The credentials for the proxy are wrong.",
    "Do not retry with the same ones. Look at user and password in the proxy's URL; percent-encode "
    "what is special in them.",
)
DUPLICATE_CREDENTIALS = rows.malformed(
    "duplicate_credentials",
    "There is more than one Proxy-Authorization header.",
    "Send one; a proxy in between may have added its own.",
)
