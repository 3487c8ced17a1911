"""Checked ways into YAML nodes: a text, the entries of a list, the known keys of a mapping.

What a node is not, it is reported for: with what stands there, in words, and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Final

from yaml import SafeLoader

from egress_proxy.config.errors import Code, Report, quoted
from egress_proxy.config.yaml_source import Broken, Mapping, Node, Scalar, Sequence, place_of

# What a plain scalar means ----------------------------------------------------------------------------------------

_NULLS: Final = frozenset(("", "~", "null", "Null", "NULL"))
_TYPES: Final = {
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:timestamp": "a date",
    "tag:yaml.org,2002:merge": "a merge key",
    "tag:yaml.org,2002:value": "a default key",
}
#: What other readers of YAML (1.1's own `y`, the core schema of 1.2 §10.3.2) take for something else than text.
_OTHER_TYPES: Final = (
    (re.compile(r"[yYnN]"), "true or false"),
    (re.compile(r"0o[0-7]+|[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"), "a number"),
)


def is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.plain and node.text in _NULLS


def type_in_yaml(text: str) -> str | None:
    """What a YAML reader may take the unquoted text for, other than text; None where all agree that it is text."""
    for tag, pattern in SafeLoader.yaml_implicit_resolvers.get(text[:1], ()):
        if pattern.match(text):
            return _TYPES.get(tag)
    for pattern, kind in _OTHER_TYPES:
        if pattern.fullmatch(text):
            return kind
    return None


def kind_of(node: Node) -> str:
    """What the node is, for a message."""
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Mapping):
        return "a mapping"
    if is_null(node):
        return "nothing"
    if isinstance(node, Scalar) and node.plain:
        return type_in_yaml(node.text) or "a text"
    return "a text"


def value_of(node: Node | None, key: str) -> Node | None:
    """A mapping's value for a key; None where it has none."""
    if isinstance(node, Mapping):
        return next((value for found, value in node.entries if found.text == key), None)
    return None


# Nodes ------------------------------------------------------------------------------------------------------------


def wrong_kind(node: Node, name: str, report: Report, wanted: str, instead: str) -> None:
    """Report a node of the wrong kind, unless it was reported already."""
    if isinstance(node, Broken):
        return
    if is_null(node):
        report.error(Code.WRONG_TYPE, place_of(node, report), f"{name} has no value", instead)
        return
    report.error(
        Code.WRONG_TYPE,
        place_of(node, report),
        f"{name} must be {wanted}, not {kind_of(node)}",
        instead,
    )


def scalar(node: Node, name: str, report: Report, instead: str) -> Scalar | None:
    """A single value on a single line."""
    if not isinstance(node, Scalar) or is_null(node):
        wrong_kind(node, name, report, "a single value", instead)
        return None
    if node.several_lines:
        what = f"{name} goes over several lines"
        report.error(
            Code.WRONG_TYPE,
            place_of(node, report),
            what,
            "write it on one line; in a list, each entry starts with `- `",
        )
        return None
    return node


def text(
    node: Node, name: str, report: Report, instead: str, advise: Callable[[str], str] | None = None
) -> str | None:
    """A text that every reader of YAML takes for a text.

    ``advise`` says what to write instead of a text such as ``no``, from which YAML makes something else.
    """
    found = scalar(node, name, report, instead)
    if found is None:
        return None
    if found.plain and (kind := type_in_yaml(found.text)) is not None:
        what = f"{name} is a text, and YAML reads {quoted(found.text)} as {kind}"
        report.error(
            Code.WRONG_TYPE, place_of(node, report), what, advise(found.text) if advise else instead
        )
        return None
    return found.text


def in_quotes(value: str) -> str:
    return f'write "{value}" in quotes'


def items(node: Node, name: str, report: Report, example: str) -> list[Node] | None:
    """The entries of a list that has some."""
    if not isinstance(node, Sequence):
        wrong_kind(node, name, report, "a list", f"write {example}")
        return None
    if not node.items:
        report.error(
            Code.WRONG_TYPE,
            place_of(node, report),
            f"{name} is an empty list",
            f"write {example}, or remove the key",
        )
        return None
    kept: list[Node] = []
    for item in node.items:
        if is_null(item):
            report.error(
                Code.WRONG_TYPE,
                place_of(item, report),
                f"{name} has an empty entry",
                "write a value or remove the dash",
            )
        else:
            kept.append(item)
    return kept


def fields(
    node: Node,
    name: str,
    report: Report,
    known: tuple[str, ...],
    not_yet: dict[str, str],
    example: str,
    advise: Callable[[str, Node], str | None] | None = None,
) -> dict[str, Node]:
    """The entries of a mapping: known keys alone, each once, each with a value.

    ``advise`` knows what to write instead of some keys that there are not, with their values.
    ``not_yet`` names keys that the format has and this version does not, with what to write instead. To accept and
    ignore them would open what they were meant to close.
    """
    found: dict[str, Node] = {}
    if not isinstance(node, Mapping):
        wrong_kind(node, name, report, "a mapping", f"write {example}")
        return found
    if not node.entries:
        report.error(
            Code.WRONG_TYPE,
            place_of(node, report),
            f"{name} is an empty mapping",
            f"write {example}",
        )
        return found
    first: dict[str, Scalar] = {}
    for key, value in node.entries:
        place = place_of(key, report)
        if key.text in first:
            what = f"the key {quoted(key.text)} stands twice in {name}, first on line {first[key.text].line}"
            report.error(Code.DUPLICATE_KEY, place, what, "remove one of them")
            continue
        first[key.text] = key
        if key.text == "<<":
            report.error(
                Code.SYNTAX,
                place,
                "merge keys (`<<`) are not supported",
                "write the merged keys out",
            )
        elif key.text in not_yet:
            report.error(
                Code.UNSUPPORTED_KEY,
                place,
                f"{quoted(key.text)} is not supported by this version",
                not_yet[key.text],
            )
        elif key.text not in known:
            instead = ""
            if not report.full:
                instead = (advise and advise(key.text, value)) or _suggest(key.text, known)
            report.error(
                Code.UNKNOWN_KEY, place, f"{quoted(key.text)} is not a key of {name}", instead
            )
        elif is_null(value):
            report.error(
                Code.WRONG_TYPE,
                place_of(value, report),
                f"{quoted(key.text)} has no value",
                "write one or remove the key",
            )
        else:
            found[key.text] = value
    return found


def _suggest(wrong: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(wrong[:40].lower().replace("-", "_"), known, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return ("write one of " if len(known) > 1 else "write ") + ", ".join(
        f"`{key}`" for key in known
    )
