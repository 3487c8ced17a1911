"""The YAML parser's complaints in the words of who wrote the file."""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

import yaml

from egress_proxy.config.errors import Code, Report, quoted
from egress_proxy.core.policy import Place

_ALIAS_CONTEXT: Final = "while scanning an alias"
#: A value that starts with `*` where a rule stands: after a dash, a key, a bracket or a comma.
_BARE_STAR: Final = re.compile(
    r"^[ ]*(?:- +)*(?:[a-z_]+: +)?[\[{]?(?:[a-z_]+: +)?(\*)", re.MULTILINE
)
_VALUE: Final = re.compile(r"[^\s,\]}]*")

#: Problems that the parser notices long after the place that must be mended.
_SHOWN_AT_START: Final = (
    "did not find expected ','",
    "found unexpected end of stream",
    "could not find expected ':'",
)
#: What the parser says, by its beginning; what it means; what to do.
_SYNTAX: Final = (
    (
        "did not find expected key",
        "this line does not fit the lines above",
        "indent it like its neighbours",
    ),
    (
        "did not find expected '-'",
        "this line does not belong to the list above",
        "start it with `- `, or indent it less",
    ),
    (
        "mapping values are not allowed",
        "a `: ` stands where no key can be",
        "write one key a line, indented like its neighbours, and put values that hold `: ` in quotes",
    ),
    (
        "block sequence entries are not allowed",
        "a list starts where none can be",
        "start it on a line of its own, or write it as [a, b]",
    ),
    (
        "could not find expected ':'",
        "a line is neither `key: value` nor `- value`",
        "write `key: value`",
    ),
    (
        "did not find expected ',' or ']'",
        "a list in brackets is not closed",
        "write `]`, or a comma between its entries",
    ),
    (
        "did not find expected ',' or '}'",
        "a mapping in braces is not closed",
        "write `}`, or a comma between its entries",
    ),
    ("found unexpected end of stream", "a quote is not closed", "close it"),
    (
        "found unknown escape character",
        "a backslash in double quotes starts no known escape",
        "use single quotes",
    ),
    ("found a tab character", "a tab stands where YAML wants spaces", "indent with spaces"),
)


def explain_syntax_error(error: yaml.MarkedYAMLError, text: str, report: Report) -> None:
    problem = error.problem or "unknown"
    # What was left open is shown where it was opened, and a host's name where it starts.
    opened = problem.startswith(_SHOWN_AT_START)
    aliased = error.context == _ALIAS_CONTEXT
    mark = error.context_mark if opened or aliased else error.problem_mark
    place = (
        Place(report.file, 1, 1)
        if mark is None
        else Place(report.file, mark.line + 1, mark.column + 1)
    )
    if aliased:
        _explain_bare_stars(text, report, place)
        return
    character = _character_at(text, place)
    if character == "\t":
        what, instead = "a tab stands where YAML wants spaces", "indent with spaces"
    elif problem.startswith("found character that cannot start any token"):
        what, instead = f"a value cannot start with {quoted(character)}", "put it in quotes"
    else:
        for beginning, *explained in _SYNTAX:
            if problem.startswith(beginning):
                what, instead = explained
                break
        else:
            what = f"this is not YAML: {one_line(problem)}"
            instead = "look at the indentation and the quotes of this line and the one before"
    report.error(Code.SYNTAX, place, what, instead)


def _explain_bare_stars(text: str, report: Report, first: Place) -> None:
    """YAML stops at the first unquoted `*`; who wrote one wrote several, so show the first hundred."""
    lines = text.split("\n")
    stars = {(first.line, first.column): _VALUE.match(lines[first.line - 1], first.column - 1)}
    for found in islice(_BARE_STAR.finditer(text), 100):
        line = text.count("\n", 0, found.start(1)) + 1
        column = found.start(1) - text.rfind("\n", 0, found.start(1))
        stars[line, column] = _VALUE.match(lines[line - 1], column - 1)
    for (line, column), value in stars.items():
        star = value[0][:80] if value else "*"
        what = f"{quoted(star)} is not in quotes, and to YAML a leading `*` means an alias"
        report.error(Code.SYNTAX, Place(report.file, line, column), what, f'write "{star}"')


def _character_at(text: str, place: Place) -> str:
    lines = text.split("\n", place.line)
    if place.line > len(lines):
        return ""
    return lines[place.line - 1][place.column - 1 : place.column]


def one_line(error: object) -> str:
    return " ".join(str(error).split())
