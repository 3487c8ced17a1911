"""The methods that are registered, and those that are in use without, so that a slip of the pen is noticed."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

#: IANA's registry "HTTP Method Registry" (RFC 9110 §16.1.1), without ``*`` and CONNECT, which a rule cannot name.
REGISTERED: Final = frozenset(
    (
        *(
            "ACL",
            "BASELINE-CONTROL",
            "BIND",
            "CHECKIN",
            "CHECKOUT",
            "COPY",
            "DELETE",
            "GET",
            "HEAD",
        ),
        *("LABEL", "LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MKREDIRECTREF"),
        *("MKWORKSPACE", "MOVE", "OPTIONS", "ORDERPATCH", "PATCH", "POST", "PRI", "PROPFIND"),
        *("PROPPATCH", "PUT", "REBIND", "REPORT", "SEARCH", "TRACE", "UNBIND", "UNCHECKOUT"),
        *("UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL"),
    )
)
#: Caches' and event protocols' own, and a search with a body.
_IN_USE: Final = frozenset(
    ("BAN", "M-SEARCH", "NOTIFY", "POLL", "PURGE", "QUERY", "SUBSCRIBE", "UNSUBSCRIBE")
)
#: What most rules name; of two methods that are as near, one of these was meant.
_USUAL: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def is_known(method: str) -> bool:
    return method in REGISTERED or method in _IN_USE


def nearest(method: str) -> str | None:
    """The method that another one was probably meant to be."""
    for among in (_USUAL, sorted(REGISTERED | _IN_USE)):
        close = get_close_matches(method, among, n=1)
        if close:
            return close[0]
    return None
