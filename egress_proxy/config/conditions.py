"""``methods`` and ``paths`` of a rule: what it asks of requests that the proxy can read.

Each way of writing a path that other proxies know, and that means something else or nothing here, is named with the
form to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, TypeVar
from urllib.parse import quote

from egress_proxy.config import methods as methods_in_use
from egress_proxy.config.errors import Code, Report, elsewhere, quoted
from egress_proxy.config.nodes import text
from egress_proxy.config.values import ListOf
from egress_proxy.config.yaml_source import Node, Sequence, place_of
from egress_proxy.core.conditions import Conditions
from egress_proxy.core.paths import PathPattern, Unclear, normal_path, path_pattern
from egress_proxy.core.policy import Place

T = TypeVar("T")

#: Methods, and paths, of one rule. A request is compared with each.
MAX_CONDITIONS: Final = 100
#: Characters of a path.
MAX_PATH_LENGTH: Final = 2048

METHOD_FORM: Final = "write a method in upper case, such as GET"
PATH_FORM: Final = (
    'write a path such as "/v1/status", "/repos/*/pulls", or "/static/" for all below it'
)

#: token (RFC 9110 §5.6.2) without lower case, in which no method is.
METHOD: Final = re.compile(r"[!#\x24%&'*+\-.^_`|~0-9A-Z]{1,64}")
_ANY_CASE: Final = re.compile(r"[A-Za-z-]{1,64}")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*(/[^?#]*)?")
_TEMPLATE: Final = re.compile(r"\{[^{}/]*\}")


class _RefusedError(Exception):
    """Why a text is no path, and what to write instead."""

    def __init__(self, what: str, instead: str = PATH_FORM) -> None:
        super().__init__(what)
        self.what = what
        self.instead = instead


def method(node: Node, name: str, report: Report) -> str | None:
    """Read a method."""
    found = text(node, name, report, METHOD_FORM)
    if found is None:
        return None
    what, instead = f"{quoted(found)} is not a method", METHOD_FORM
    if found.upper() == "CONNECT":
        what = "CONNECT opens a tunnel, in which nobody sees methods and paths"
        instead = "leave it out, and allow tunnels in a rule without `methods` and `paths`"
    elif found == "*":
        what, instead = "every method is what a rule without `methods` means", "remove `methods`"
    elif METHOD.fullmatch(found):
        if not methods_in_use.is_known(found):
            what = f"{quoted(found)} is no registered method (RFC 9110 §16.1)"
            close = None if report.warned_enough else methods_in_use.nearest(found)
            instead = f"did you mean {close}?" if close else "see that servers know it"
            report.warning(Code.UNKNOWN_METHOD, place_of(node, report), what, instead)
        return found
    elif _ANY_CASE.fullmatch(found):
        what, instead = f"{quoted(found)} is not in upper case", f"write {found.upper()}"
    report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
    return None


def path(node: Node, name: str, report: Report) -> PathPattern | None:
    """Read a path."""
    found = text(node, name, report, PATH_FORM)
    if found is None:
        return None
    try:
        return _parse_path(found)
    except _RefusedError as refused:
        report.error(Code.BAD_PATH, place_of(node, report), refused.what, refused.instead)
        return None


def _parse_path(found: str) -> PathPattern:
    if len(found) > MAX_PATH_LENGTH:
        what = f"the path has {len(found):,} characters"
        raise _RefusedError(what, f"write at most {MAX_PATH_LENGTH:,}")
    if not found.startswith("/"):
        raise _no_path(found)
    if "?" in found:
        instead = "remove the `?` and what follows it"
        raise _RefusedError(f"{quoted(found)} has a query, which is not compared", instead)
    if "#" in found:
        instead = "remove the `#` and what follows it"
        raise _RefusedError(f"{quoted(found)} has a fragment, which no request has", instead)
    if "**" in found:
        before = found.partition("**")[0]
        what = f"{quoted(found)}: `**` is no pattern"
        raise _RefusedError(what, _write(before) if before.endswith("/") else PATH_FORM)
    for segment in found[1:].split("/"):
        if "*" in segment and segment != "*":
            # What is suggested must not be wider than what was meant.
            what = f"{quoted(found)}: a `*` stands for one whole segment"
            raise _RefusedError(what, "write the segment out, or `*` alone for any")
    return path_pattern(_in_normal_form(found))


def _in_normal_form(found: str) -> str:
    """The path, which must be in normal form: what is compared with it is."""
    if _TEMPLATE.search(found):
        written = "/".join("*" if _TEMPLATE.search(part) else part for part in found.split("/"))
        raise _RefusedError(f"{quoted(found)} is a template", _write(written))
    # What a person writes is what is meant, whatever of it a URL would have to encode.
    normal = normal_path(quote(found, safe="/%\\;!$&'()*+,=:@~").encode("ascii"))
    if isinstance(normal, Unclear):
        what = f"{quoted(found)} {normal}: no request with it is let through by `paths`"
        raise _RefusedError(what, _plainer(normal))
    written = normal.decode("ascii")
    if written != found:
        raise _RefusedError(f"{quoted(found)} is not in normal form", _write(written))
    return found


def _plainer(why: Unclear) -> str:
    if why is Unclear.EMPTY_SEGMENT:
        return "write one slash"
    if why is Unclear.ABOVE_ROOT:
        return "write it without `..`"
    return PATH_FORM


def _no_path(found: str) -> _RefusedError:
    url = _URL.match(found)
    if url is not None:
        instead = f"{_write(url[1] or '/')}, and the host as `host`"
        return _RefusedError(f"{quoted(found)} is a URL", instead)
    if found == "*":
        instead = 'write "/" for every path, or remove `paths`'
        return _RefusedError(f"{quoted(found)} is not a path", instead)
    if found.startswith(("^", "~", "(", ".*")):
        return _RefusedError(f"{quoted(found)} is a regular expression")
    what = f"{quoted(found)} does not start with a slash"
    return _RefusedError(what, _write(f"/{found}") if found else PATH_FORM)


def _write(written: str) -> str:
    """The form to write, if it is one."""
    try:
        return f'write "{_parse_path(written).text}"'
    except _RefusedError as refused:
        # Of what is wrong in several ways, one thing is mended after the other.
        return refused.instead


methods: Final = ListOf(method, MAX_CONDITIONS, "[GET, HEAD]")
paths: Final = ListOf(path, MAX_CONDITIONS, '["/v1/"]')


def read_conditions(found: dict[str, Node], report: Report) -> tuple[Conditions | None, bool]:
    """The conditions of a rule, None without any; and whether what there is of them could be read."""
    if "methods" not in found and "paths" not in found:
        return None, True
    named: tuple[str, ...] | None = ()
    patterns: tuple[PathPattern, ...] | None = ()
    if "methods" in found:
        named = methods(found["methods"], "`methods`", report)
    if "paths" in found:
        patterns = paths(found["paths"], "`paths`", report)
    if named is None or patterns is None:
        return None, False
    _warn_of_repeated(found.get("methods"), named, report)
    _warn_of_repeated(found.get("paths"), patterns, report)
    _warn_of_covered(found.get("paths"), patterns, report)
    # Each once, in the order of the file.
    return Conditions(tuple(dict.fromkeys(named)), tuple(dict.fromkeys(patterns))), True


# What is too much -------------------------------------------------------------------------------------------------

#: Paths with a `*` that the others are compared with, and segments by which those without are looked up: what people
#: write has fewer, and a file may have a hundred paths in each of its rules.
_MAX_COMPARED: Final = 20


def _placed(node: Node | None, values: tuple[T, ...], report: Report) -> Iterator[tuple[T, Place]]:
    """Each entry of a list that was read without an error, with its place."""
    if isinstance(node, Sequence):
        for item, value in zip(node.items, values, strict=False):
            yield value, place_of(item, report)


def _warn_of_repeated(
    node: Node | None, values: tuple[str, ...] | tuple[PathPattern, ...], report: Report
) -> None:
    if len({*values}) == len(values):
        return
    first: dict[object, Place] = {}
    for value, place in _placed(node, values, report):
        if value in first:
            there = first[value]
            where = "" if there.line == place.line else f", first on {elsewhere(there, place)}"
            what = f"{quoted(str(value))} stands twice in one rule{where}"
            report.warning(Code.WITHOUT_EFFECT, place, what, "remove one of them")
        first.setdefault(value, place)


def _warn_of_covered(node: Node | None, patterns: tuple[PathPattern, ...], report: Report) -> None:
    """Warn of paths that another one of the same rule stands for as well."""
    if len(patterns) < 2:
        return
    wild = [each for each in patterns if None in each.segments][:_MAX_COMPARED]
    prefixes = {each.segments: each for each in patterns if each.below}
    for pattern, place in _placed(node, patterns, report):
        near = [
            prefixes[start]
            for length in range(min(len(pattern.segments), _MAX_COMPARED) + 1)
            if (start := pattern.segments[:length]) in prefixes
        ]
        for other in (*near, *wild):
            if other != pattern and other.covers(pattern):
                what = (
                    f"{quoted(pattern.text)} adds nothing to {quoted(other.text)} of the same rule"
                )
                report.warning(Code.WITHOUT_EFFECT, place, what, "remove it")
                break
