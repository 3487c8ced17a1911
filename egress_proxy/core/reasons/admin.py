"""Reasons of the admin API alone."""

from __future__ import annotations

from egress_proxy.core.reason import Code, Event
from egress_proxy.core.reasons import rows

# The admin API says no.
CREDENTIALS_REQUIRED = rows.row(
    "credentials_required",
    Event.DENIED,
    Code.UNAUTHORIZED,
    401,
    "http_request_denied",
    "The admin API needs a bearer token.",
    "Send `Authorization: Bearer` with the token of admin_token_file.",
)
NO_SUCH_ENDPOINT = rows.malformed(
    "no_such_endpoint", "The admin API has no such path.", "See docs/reference/admin.md.", 404
)
ENDPOINT_METHOD_NOT_ALLOWED = rows.malformed(
    "endpoint_method_not_allowed",
    "The admin API's path does not know this method.",
    "See docs/reference/admin.md.",
    405,
)
FORBIDDEN_HOST = rows.row(
    "forbidden_host",
    Event.DENIED,
    Code.FORBIDDEN,
    403,
    "http_request_denied",
    "Without a token, the admin API answers programs on its own machine alone, and no browser.",
    "Ask for `localhost` or a loopback address without an Origin header, or set admin_token_file.",
)
BODY_TOO_LARGE = rows.malformed(
    "body_too_large",
    "The request's body is larger than the admin API takes.",
    "Send a smaller one.",
    413,
)
BAD_ADMIN_REQUEST = rows.malformed(
    "bad_admin_request", "The request's body is not what is wanted.", "Mend it as said."
)
IDEMPOTENCY_KEY_REUSED = rows.row(
    "idempotency_key_reused",
    Event.DENIED,
    Code.CONFLICT,
    409,
    "http_request_denied",
    "The Idempotency-Key was used for another request within the last 24 hours.",
    "Send a new UUID of version 4 for a new request; the same one is for the retries of one request alone.",
)
RELOAD_FAILED = rows.malformed(
    "reload_failed",
    "The configuration has errors; the old one stays in force.",
    "Mend the errors named.",
    422,
)
