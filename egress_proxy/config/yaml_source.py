"""YAML as plain nodes that know their place.

Only what a configuration needs is accepted: one document of mappings, lists and scalars. Anchors, aliases, merge keys
and tags are refused, because with them a reviewer reads something else than what is loaded; so are invisible
characters. The parser hands out events and the tree is built without recursion, so that neither deep nesting nor
references can blow up.
"""

from __future__ import annotations

import re
from sys import intern
from typing import Any, Final

import msgspec
import yaml

from egress_proxy.config.errors import Code, Report, quoted
from egress_proxy.config.ignores import find_ignores
from egress_proxy.config.yaml_syntax import explain_syntax_error, one_line
from egress_proxy.core.policy import Place

#: Levels of nesting. A rule's port list stands at level 7.
MAX_DEPTH: Final = 20


class Scalar(msgspec.Struct, gc=False):
    """One value as it is written."""

    text: str
    line: int
    column: int
    plain: bool
    """Without quotes, so that YAML gives some texts a type: ``no``, ``22:22``."""
    several_lines: bool


class Sequence(msgspec.Struct, gc=False):
    """A list."""

    items: list[Node]
    line: int
    column: int


class Mapping(msgspec.Struct, gc=False):
    """Keys and values in the order of the file, duplicates included."""

    entries: list[tuple[Scalar, Node]]
    line: int
    column: int


class Broken(msgspec.Struct, gc=False):
    """A node that was reported already and is to be passed over."""

    line: int
    column: int


Node = Scalar | Sequence | Mapping | Broken


def place_of(node: Node, report: Report) -> Place:
    return Place(report.file, node.line, node.column)


def parse_yaml(data: bytes, report: Report) -> Node | None:
    """The document's root node; None where the report says why there is none."""
    text = to_text(data, report)
    if text is None or holds_hidden_characters(text, report) or _holds_directive(text, report):
        return None
    find_ignores(text, report)
    try:
        return _Builder(report).build(text)
    except yaml.MarkedYAMLError as error:
        explain_syntax_error(error, text, report)
    except yaml.YAMLError as error:
        # A ReaderError: its position is a character's, and _holds_hidden_characters left next to none.
        report.error(
            Code.SYNTAX,
            Place(report.file, 1, 1),
            f"this is not YAML: {one_line(error)}",
            "write YAML",
        )
    return None


# Text ------------------------------------------------------------------------------------------------------------

_BYTE_ORDER_MARKS: Final = (
    (b"\xef\xbb\xbf", "UTF-8"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def to_text(data: bytes, report: Report) -> str | None:
    """The file as text, which must be plain UTF-8."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            what = f"the file starts with the byte order mark of {encoding}"
            report.error(
                Code.SYNTAX,
                Place(report.file, 1, 1),
                what,
                "save it as UTF-8 without a byte order mark",
            )
            return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        start = data.rfind(b"\n", 0, error.start) + 1
        column = len(data[start : error.start].decode("utf-8", "replace")) + 1
        what = f"the file is not UTF-8: byte {error.start + 1} is 0x{data[error.start]:02x}"
        report.error(Code.SYNTAX, Place(report.file, line, column), what, "save it as UTF-8 text")
        return None


#: Characters that are searched at a stretch, in about a millisecond.
_SLICE: Final = 65536

# Control characters, which YAML refuses too (YAML 1.1 §5.1). And what makes the file look different from what is
# loaded: the line ends that YAML knows and editors do not (a lone CR, NEL, LS, PS), with which a comment can hide a
# rule, and the marks that turn the direction of writing around.
_HIDDEN: Final = re.compile(
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]"
)


def holds_hidden_characters(text: str, report: Report) -> bool:
    """Whether the file would look different from what is loaded."""
    found = _first(_HIDDEN, text)
    if found is None:
        return False
    line = text.count("\n", 0, found.start()) + 1
    column = found.start() - text.rfind("\n", 0, found.start())
    what = f"the file holds the invisible character U+{ord(found[0]):04X}"
    report.error(Code.SYNTAX, Place(report.file, line, column), what, "remove it")
    return True


def _first(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The first match, looked for in slices: between two of them, other threads have their turn.

    A match is one character, and depends on those beside it at most.
    """
    for start in range(0, len(text), _SLICE):
        found = pattern.search(text, start, start + _SLICE + 1)
        if found is not None and found.start() < start + _SLICE:
            return found
    return None


# The parser compares each %TAG with all before it, for minutes if there are many, and nobody needs one.
_DIRECTIVE: Final = re.compile(r"^%", re.MULTILINE)


def _holds_directive(text: str, report: Report) -> bool:
    found = _first(_DIRECTIVE, text)
    if found is None:
        return False
    line = text.count("\n", 0, found.start()) + 1
    report.error(
        Code.SYNTAX,
        Place(report.file, line, 1),
        "a line starts with `%`, which is a directive to YAML",
        "remove it",
    )
    return True


# Tree ------------------------------------------------------------------------------------------------------------


class _Builder:
    """Makes the tree of the first document from the parser's events."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._root: Node | None = None
        #: The open collections, each with the key that waits for its value.
        self._open: list[tuple[Sequence | Mapping, list[Scalar | Broken]]] = []

    # The events' types say less than the parser promises: each has a start, and a scalar an end.
    def build(self, text: str) -> Node | None:
        documents = 0
        event: Any
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                if len(self._open) >= MAX_DEPTH:
                    self._error(
                        event,
                        f"there are more than {MAX_DEPTH} levels of nesting",
                        "write it flatter",
                    )
                    return None
                self._collection(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._open.pop()
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._error(event, "a second document starts here", "write one document a file")
                    break
        if documents == 0:
            place = Place(self._report.file, 1, 1)
            self._report.error(
                Code.SYNTAX,
                place,
                "the file is empty",
                "write a configuration, from `version: 1` on",
            )
        return self._root

    def _scalar(self, event: Any) -> None:
        self._refuse_decoration(event)
        start, end = event.start_mark, event.end_mark
        text = event.value
        self._add(
            Scalar(
                # Keys and ports stand there again and again.
                intern(text) if len(text) < 12 else text,
                start.line + 1,
                start.column + 1,
                not event.style,
                start.line != end.line,
            )
        )

    def _collection(self, event: Any) -> None:
        self._refuse_decoration(event)
        kind = Sequence if isinstance(event, yaml.SequenceStartEvent) else Mapping
        node = kind([], event.start_mark.line + 1, event.start_mark.column + 1)
        self._add(node)
        self._open.append((node, []))

    def _alias(self, event: Any) -> None:
        what = f"`*{event.anchor}` is an alias to YAML, and aliases are not supported"
        self._error(event, what, f'write "*{event.anchor}" in quotes, or the value itself')
        self._add(Broken(event.start_mark.line + 1, event.start_mark.column + 1))

    def _add(self, node: Node) -> None:
        if not self._open:
            self._root = node
            return
        collection, waiting = self._open[-1]
        if isinstance(collection, Sequence):
            collection.items.append(node)
        elif not waiting:
            if isinstance(node, Sequence | Mapping):
                self._report.error(
                    Code.SYNTAX,
                    place_of(node, self._report),
                    "a key is a list or a mapping",
                    "write a word before the colon",
                )
                node = Broken(node.line, node.column)
            waiting.append(node)
        else:
            key = waiting.pop()
            if isinstance(key, Scalar):
                collection.entries.append((key, node))

    def _refuse_decoration(self, event: Any) -> None:
        if event.anchor is not None:
            what = f"`&{event.anchor}` is an anchor, and anchors are not supported"
            self._error(event, what, "remove it and write the value wherever it is needed")
        if event.tag is not None:
            self._error(
                event,
                f"the tag {quoted(event.tag.replace('tag:yaml.org,2002:', '!!'))} is not supported",
                "remove it and write the plain value",
            )

    def _error(self, event: Any, what: str, instead: str) -> None:
        mark = event.start_mark
        self._report.error(
            Code.SYNTAX, Place(self._report.file, mark.line + 1, mark.column + 1), what, instead
        )
