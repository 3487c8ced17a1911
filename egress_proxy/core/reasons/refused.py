"""Reasons to refuse: the policy says no, or a tunnel does not carry what was asked for."""

from __future__ import annotations

from egress_proxy.core.reason import Code, Event
from egress_proxy.core.reasons import rows

# The policy says no.
HOST_NOT_ALLOWED = rows.policy("host_not_allowed", "No rule allows this host.", rows.ASK)
PORT_NOT_ALLOWED = rows.policy(
    "port_not_allowed", "The host is allowed, but not on this port.", rows.ASK
)
METHOD_NOT_ALLOWED = rows.policy(
    "method_not_allowed",
    "The host is allowed, but not with this method.",
    f"A method that its rule names may do. {rows.ASK}",
)
PATH_NOT_ALLOWED = rows.policy(
    "path_not_allowed",
    "The host is allowed, but not this path.",
    "Do not retry: the path is not among those that are allowed here. Ask whoever runs this proxy to allow it; "
    "`egress-proxy explain` names the rule to add. If it should be among them, send it in its plainest form: no `//`, "
    "`;` or backslash, and nothing percent-encoded that need not be.",
)
CONNECT_NOT_ALLOWED = rows.policy(
    "connect_not_allowed",
    "The host is allowed for plain HTTP requests that the proxy can read, and not for tunnels.",
    "Do not retry with CONNECT. If the host answers plain HTTP, send the request as `METHOD http://host/path` to the "
    "proxy, as clients do for http:// URLs. If not, ask whoever runs this proxy to allow tunnels to it.",
)
DENY_RULE = rows.policy(
    "deny_rule",
    "A deny rule names this destination.",
    "Do not retry. No allow rule lifts it; `egress-proxy explain` names the deny rule, for whoever runs this proxy.",
)
APPROVAL_REQUIRED = rows.row(
    "approval_required",
    Event.DENIED,
    Code.HITL_REQUIRED,
    403,
    "http_request_denied",
    "An ask rule names this destination, and no human has approved it.",
    "Ask whoever runs this proxy to approve it, and go on with something else meanwhile.",
    60,
)
ADDRESS_NOT_ALLOWED = rows.policy(
    "address_not_allowed",
    "The destination is an IP address, and no cidr rule allows it.",
    "Use the host name instead of its address, or ask for a cidr rule.",
)
DESTINATION_IP_PROHIBITED = rows.policy(
    "destination_ip_prohibited",
    "The destination's address is in a private or special-use network, or in one that a deny rule names.",
    "Do not retry. Where the name is meant to be internal, its rule needs `allow_private` with that network; "
    "what a deny rule names stays closed.",
    "destination_ip_prohibited",
)
PROXY_LOOP = rows.policy(
    "proxy_loop",
    "The destination is this proxy itself, or the request has come through it before.",
    "Do not retry. Either the client sends to the proxy, through the proxy, what is for the proxy itself; or "
    "`upstream` leads back here, which whoever runs this proxy has to mend.",
    "proxy_loop_detected",
)

# The tunnel does not carry what was asked for. The client has its 200 by then, so it is told by a TLS alert alone.
_NOT_THAT = "Where the tunnel is meant to carry something else, its rule needs `tls: off`."
SNI_MISMATCH = rows.policy(
    "sni_mismatch",
    "The TLS handshake in the tunnel names another host than the CONNECT did.",
    f"Do not retry. Ask for the host that the handshake names. {_NOT_THAT}",
)
SNI_MISSING = rows.policy(
    "sni_missing",
    "The TLS handshake in the tunnel names no host (SNI).",
    f"Have the client send the host's name. {_NOT_THAT}",
)
TUNNEL_NOT_TLS = rows.policy("tunnel_not_tls", "The tunnel does not start with TLS.", _NOT_THAT)
CLIENT_HELLO_MALFORMED = rows.policy(
    "client_hello_malformed",
    "The TLS handshake in the tunnel cannot be understood, or is longer than `limits.client_hello_bytes`.",
    _NOT_THAT,
)
CLIENT_HELLO_TIMEOUT = rows.policy(
    "client_hello_timeout",
    "The TLS handshake in the tunnel did not begin, or was not complete, within `timeouts.client_hello`.",
    f"Send it at once. {_NOT_THAT}",
)
ECH_NOT_ALLOWED = rows.policy(
    "ech_not_allowed",
    "The TLS handshake in the tunnel hides the name that it is for (Encrypted ClientHello).",
    "Switch Encrypted ClientHello off in the client, or ask whoever runs this proxy about `tunnels.ech`.",
)
