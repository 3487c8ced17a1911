"""Named sets of hosts, from the configuration itself or from a file beside it."""

from __future__ import annotations

import re
from typing import Final

from egress_proxy.config.destinations import host_pattern, host_pattern_of
from egress_proxy.config.errors import Code, ConfigError, Report, elsewhere, quoted, told
from egress_proxy.config.ignores import find_ignores
from egress_proxy.config.nodes import fields, items
from egress_proxy.config.sources import Sources
from egress_proxy.config.values import NAME, NAME_FORM, relative_path
from egress_proxy.config.yaml_source import (
    Mapping,
    Node,
    Sequence,
    holds_hidden_characters,
    parse_yaml,
    place_of,
    to_text,
)
from egress_proxy.core.policy import HostPattern, HostSet, Place

_EXAMPLE: Final = "a list of hosts, or {file: hosts.txt}"
#: Where the comment of a line of a plain text file begins.
_COMMENT: Final = re.compile(r"(?:^|\s)#")
#: Sets of a configuration. Rules are compared with each of them for the lint.
MAX_SETS: Final = 1000

#: The sets of a configuration by name.
Sets = dict[str, HostSet]


def read_sets(node: Node, report: Report, sources: Sources, found: Sets) -> None:
    """Add the sets that ``sets:`` of one file defines. What is broken is reported, and known as an empty set."""
    if not isinstance(node, Mapping):
        fields(node, "`sets`", report, (), {}, f"NAME: {_EXAMPLE}")
        return
    for key, value in node.entries:
        place = place_of(key, report)
        if not NAME.fullmatch(key.text):
            what = f"{quoted(key.text)} cannot be the name of a set"
            report.error(Code.BAD_VALUE, place, what, NAME_FORM)
        elif len(found) >= MAX_SETS and key.text not in found:
            what = f"there are more than {MAX_SETS:,} sets"
            report.error(Code.BAD_VALUE, place, what, "write fewer and larger ones")
            return
        elif key.text in found:
            first = elsewhere(found[key.text].place, place)
            what = f"the set {quoted(key.text)} is defined twice, first on {first}"
            report.error(Code.DUPLICATE_KEY, place, what, "give one of them another name")
        else:
            patterns = _patterns(value, f"the set {quoted(key.text)}", report, sources)
            found[key.text] = HostSet(key.text, place, patterns)


def _patterns(node: Node, name: str, report: Report, sources: Sources) -> dict[str, Place]:
    found: dict[str, Place] = {}
    if isinstance(node, Mapping):
        path = fields(node, name, report, ("file",), {}, _EXAMPLE).get("file")
        if path is not None:
            _read_file(path, report, sources, found)
        return found
    for item in items(node, name, report, _EXAMPLE) or ():
        _keep(
            host_pattern(item, f"an entry of {name}", report), place_of(item, report), report, found
        )
    return found


def _read_file(node: Node, report: Report, sources: Sources, found: dict[str, Place]) -> None:
    path = relative_path(node, "the `file` of a set", report)
    if path is None:
        return
    try:
        data = sources.read(path)
    except ConfigError as error:
        report.error(Code.UNREADABLE_FILE, place_of(node, report), *told(error))
        return
    inner = report.beside(path)
    if path.endswith((".yaml", ".yml")):
        root = parse_yaml(data, inner)
        if root is None:
            return
        if not isinstance(root, Sequence):
            what = "a file of hosts must be a list"
            inner.error(Code.WRONG_TYPE, place_of(root, inner), what, "write `- example.com` lines")
            return
        for item in items(root, "the list of hosts", inner, "a list of hosts") or ():
            pattern = host_pattern(item, "an entry of the list", inner)
            _keep(pattern, place_of(item, inner), inner, found)
        return
    decoded = to_text(data, inner)
    if decoded is None or holds_hidden_characters(decoded, inner):
        return
    find_ignores(decoded, inner)
    _read_lines(decoded, inner, found)
    if not found and not inner.failed:
        what = "the file holds no host"
        inner.error(Code.MISSING_KEY, Place(path, 1, 1), what, "write one host a line")


def _read_lines(text: str, report: Report, found: dict[str, Place]) -> None:
    file = report.file
    for number, line in enumerate(text.split("\n"), 1):
        comment = _COMMENT.search(line) if "#" in line else None
        said = line if comment is None else line[: comment.start()]
        if host := said.strip():
            place = Place(file, number, said.index(host) + 1)
            _keep(host_pattern_of(host, place, report), place, report, found)


def _keep(
    pattern: HostPattern | None, place: Place, report: Report, found: dict[str, Place]
) -> None:
    if pattern is None:
        return
    shown = str(pattern)
    first = found.setdefault(shown, place)
    if first is not place:
        what = f"`{shown}` stands twice, first on {elsewhere(first, place)}"
        report.warning(Code.DUPLICATE_RULE, place, what, "remove one of them")
