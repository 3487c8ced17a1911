"""What the proxies on a message's way say in it: about the client (RFC 7239), and about themselves (RFC 9209)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

from egress_proxy.core.fields import QUOTED, TOKEN, Field


class ForwardedFor(StrEnum):
    """What an origin is told about who asks."""

    REMOVE = "remove"
    """Nothing: neither by us, nor by the client or by what stands before it."""
    KEEP = "keep"
    """What the client says."""
    ADD = "add"
    """What the client says, and its address as we see it behind that."""


#: Fields by which clients, sidecars and proxies tell who asks; and how further ones begin.
ABOUT_CLIENTS = frozenset(
    (
        *(b"forwarded", b"x-real-ip", b"x-client-ip", b"client-ip", b"true-client-ip"),
        *(b"x-cluster-client-ip", b"x-original-forwarded-for", b"x-originating-ip", b"x-remote-ip"),
    )
)
ABOUT_CLIENTS_PREFIXES = (b"x-forwarded-", b"x-envoy-")

# Forwarded (RFC 7239 §4), empty elements aside.
_PAIR = TOKEN + rb"=(?:" + TOKEN + rb"|" + QUOTED + rb")"
_ELEMENT = _PAIR + rb"(?:[ \t]*+;[ \t]*+" + _PAIR + rb")*+"
_FORWARDED = re.compile(_ELEMENT + rb"(?:[ \t]*+,[ \t]*+" + _ELEMENT + rb")*+")

# A List of Tokens and Strings with Parameters (RFC 9651 §3.1, §3.3), which is what Proxy-Status is (RFC 9209 §2).
_SF_TOKEN = rb"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*+"
_SF_STRING = rb'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+"'
_SF_BARE = (
    rb"(?:"
    + rb"|".join(
        (
            *(_SF_TOKEN, _SF_STRING, rb"-?[0-9]{1,15}+(?:\.[0-9]{1,3}+)?+", rb"\?[01]"),
            *(rb":[A-Za-z0-9+/=]*+:", rb"@-?[0-9]{1,15}+", rb'%"[\x20\x21\x23-\x7e]*+"'),
        )
    )
    + rb")"
)
_SF_PARAMETERS = rb"(?:; *+[a-z*][a-z0-9_\-.*]*+(?:=" + _SF_BARE + rb")?+)*+"
_SF_MEMBER = rb"(?:" + _SF_TOKEN + rb"|" + _SF_STRING + rb")" + _SF_PARAMETERS
_PROXY_STATUS = re.compile(_SF_MEMBER + rb"(?:[ \t]*+,[ \t]*+" + _SF_MEMBER + rb")*+")


def without_open_ends(fields: Iterable[Field]) -> list[Field]:
    """The fields without malformed ``Forwarded``: behind a quotation mark that stays open, ours would not be seen."""
    return [
        field
        for field in fields
        if field[0] != b"forwarded" or _FORWARDED.fullmatch(field[2]) is not None
    ]


def forwarded_lines(client: str) -> bytes:
    """The header lines that tell a client's address (RFC 7239 §6; the older field has no RFC)."""
    address = client.partition("%")[0]
    node = f'"[{address}]"' if ":" in address else address
    return f"Forwarded: for={node}\r\nX-Forwarded-For: {address}\r\n".encode("ascii")


def proxy_status_lines(fields: Iterable[Field], status: int) -> bytes:
    """The ``Proxy-Status`` lines for an answer that was passed on: none, or those that it came with and ours behind.

    The last member is the one nearest to the client (RFC 9209 §2). So an origin that says what a proxy of this name
    would say is not believed, and one whose value has no end does not hide ours.
    """
    theirs = [
        b"%b: %b\r\n" % (name, value)
        for lower, name, value in fields
        if lower == b"proxy-status" and _PROXY_STATUS.fullmatch(value) is not None
    ]
    if not theirs:
        return b""
    return b"%bProxy-Status: egress-proxy; received-status=%d\r\n" % (b"".join(theirs), status)
