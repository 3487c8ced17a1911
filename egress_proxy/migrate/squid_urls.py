"""``urlpath_regex`` and ``url_regex``: the beginnings of paths among them, which rules of ours can say.

Squid compares the path, with its query, as the client has spelled it, but for percent-encoding, which it decodes. Ours
are compared, and sent on, in one normal form.
"""

from __future__ import annotations

import re
from typing import Final

from egress_proxy.core.errors import HostError
from egress_proxy.core.names import canonical_host
from egress_proxy.migrate.squid_acls import MAYBE, NO, Acl

#: Segments that no regular expression and no normal form makes something else of.
_PATH: Final = r"(?P<path>(?:/(?:[A-Za-z0-9_~-]|\\\.)+)*)"
#: With nothing behind the last segment, it is the beginning of other segments as well.
_END: Final = r"(?P<slash>/)?(?:\.\*\$?)?"
_PATH_FORM: Final = re.compile(rf"\^{_PATH}{_END}")
_URL_FORM: Final = re.compile(rf"\^http://(?P<name>[a-z0-9_-]+(?:\\\.[a-z0-9_-]+)*){_PATH}{_END}")
#: Regular expressions that Python reads as POSIX does.
_SIMPLE: Final = re.compile(
    r"(?:\^?(?:[A-Za-z0-9_/=&~-]|\\[.?+/]|\.[*+]?)*\$?)(?:\|(?:\^?(?:[A-Za-z0-9_/=&~-]|\\[.?+/])*\$?))*"
)
_NO_AUTHORITY: Final = re.compile(r"\^[a-z]+://[^|]*")

_WHY: Final = "rules have no regular expressions; it is none that stands for the beginning of a path, such as `^/v1/`"
_OPEN_WHY: Final = (
    "without a slash at its end it stands for longer words too; what lies below it alone is known"
)
_CASE_WHY: Final = "paths are compared with case: in allow rules it stands for lower case alone"


def read_path(acl: Acl, value: str, *, ignoring_case: bool) -> str | None:
    """Read a value of a ``urlpath_regex``; returns what a note says of it, if anything."""
    match = _PATH_FORM.fullmatch(value)
    path = None if match is None else _path(match, ignoring_case=ignoring_case)
    if match is None or path is None:
        acl.plain = max(acl.plain, MAYBE)
        # What CONNECT asks for has no path, which versions of Squid show as nothing or as a slash.
        simple = _SIMPLE.fullmatch(value) is not None
        if not simple or any(re.search(value, text) for text in ("", "/")):
            acl.connect = max(acl.connect, MAYBE)
        return _WHY
    if path == "/":
        acl.connect = max(acl.connect, MAYBE)
    return _add(acl, acl.paths, match, path, ignoring_case=ignoring_case)


def read_url(acl: Acl, value: str, *, ignoring_case: bool) -> str | None:
    """Read a value of a ``url_regex``; returns what a note says of it, if anything."""
    # Scheme and host are in lower case already.
    match = _URL_FORM.fullmatch(value.lower() if ignoring_case else value)
    path = None if match is None else _path(match, ignoring_case=ignoring_case)
    name = None if match is None else match["name"].replace("\\.", ".")
    if match is None or path is None or name is None or not _is_name(name):
        acl.plain = max(acl.plain, MAYBE)
        # What CONNECT asks for is a host and a port.
        acl.connect = max(acl.connect, NO if _NO_AUTHORITY.fullmatch(value) else MAYBE)
        return _WHY
    return _add(acl, acl.urls.setdefault(name, {}), match, path, ignoring_case=ignoring_case)


def _path(match: re.Match[str], *, ignoring_case: bool) -> str | None:
    """The beginning that a regular expression stands for; None where that is no normal form."""
    path = match["path"].replace("\\.", ".") + "/"
    if {".", ".."} & {*path.split("/")}:
        return None
    return path.lower() if ignoring_case else path


def _add(
    acl: Acl, found: dict[str, bool], match: re.Match[str], path: str, *, ignoring_case: bool
) -> str | None:
    # `^/` is every path; `^http://name` is also that of a longer name.
    whole = match["slash"] is not None
    if not whole:
        acl.plain = max(acl.plain, MAYBE)
    found[path] = found.get(path, True) and ignoring_case
    if not whole:
        return _OPEN_WHY
    return _CASE_WHY if ignoring_case and path != "/" else None


def _is_name(name: str) -> bool:
    try:
        return canonical_host(name).address is None
    except HostError:
        return False
