"""Adds rules and policies to the text of a configuration, and touches nothing else of it.

The YAML parser says where lists and policies stand, and the new text goes there: a line of its own in a list with
dashes, and into the brackets of a list in brackets. Whether the outcome means what it should is for the caller to
check.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from egress_proxy.core.advice import yaml_text
from egress_proxy.core.errors import EgressProxyError
from egress_proxy.core.policy import Place

#: A rule or a subject: a host alone, or keys with texts, numbers and lists of them.
Value = str | dict[str, "str | list[int | str]"]


@dataclass(frozen=True, slots=True)
class NewRule:
    """A rule to add under ``allow``."""

    value: Value
    comment: str
    """Printable ASCII on one line, for people; a file that is JSON has none."""


@dataclass(frozen=True, slots=True)
class NewPolicy:
    """A policy to append."""

    name: str
    subject: Value
    rules: tuple[NewRule, ...]


class EditError(EgressProxyError):
    """The place to edit could not be found in the text."""


@dataclass(slots=True)
class Change:
    """What becomes of one line."""

    before: list[str] = field(default_factory=list)
    """New lines above it."""
    text: str | None = None
    """Its new text; None where it stays."""
    after: list[str] = field(default_factory=list)
    """New lines below it."""


@dataclass(frozen=True, slots=True)
class Edited:
    """A text before and after."""

    lines: list[str]
    """The old lines with their ends."""
    changes: dict[int, Change]
    """By number of the old line, from 0."""

    def text(self) -> str:
        """The new text."""
        parts: list[str] = []
        done = 0
        for number, change in sorted(self.changes.items()):
            parts += self.lines[done:number]
            parts += change.before
            parts.append(self.lines[number] if change.text is None else change.text)
            parts += change.after
            done = number + 1
        return "".join(parts + self.lines[done:])


def edit(
    text: str, additions: Sequence[tuple[Place, tuple[NewRule, ...]]], new: Sequence[NewPolicy]
) -> Edited:
    """Add rules to the policies at these places, and append new policies. Raises EditError."""
    editor = _Editor(text)
    for place, rules in additions:
        policy = editor.outline.policies.get((place.line - 1, place.column - 1))
        if policy is None:
            raise EditError(f"no policy stands at {place}")
        editor.add_rules(policy, rules)
    if new:
        editor.add_policies(new)
    return editor.finish()


# YAML -------------------------------------------------------------------------------------------------------------


def flow(value: Any, *, as_json: bool = False) -> str:
    """A value on one line, as YAML or as JSON, which YAML reads as well."""
    if as_json:
        return json.dumps(value, separators=(", ", ": "))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return yaml_text(value) if isinstance(value, str) else str(value)


def block(policy: NewPolicy) -> list[str]:
    """A policy as lines without indentation, the first with its dash."""
    return [
        f"- name: {flow(policy.name)}",
        f"  subjects: [{flow(policy.subject)}]",
        "  allow:",
        *(f"    - {_with_comment(rule)}" for rule in policy.rules),
    ]


def _with_comment(rule: NewRule) -> str:
    return f"{flow(rule.value)}  # {rule.comment}"


# Where things stand -----------------------------------------------------------------------------------------------

#: Line and column, both from 0.
Spot = tuple[int, int]


@dataclass(slots=True)
class _Span:
    """Where a list or a mapping stands."""

    brackets: bool
    start: Spot
    """Of the bracket, or of the first dash or key."""
    last_start: Spot = (0, 0)
    """Where the last thing in it starts."""
    last_end: Spot = (0, 0)
    """Where the last thing in it ends."""


@dataclass(slots=True)
class _Policy:
    span: _Span
    allow: _Span | None = None


@dataclass(slots=True)
class _Outline:
    """What can be added to."""

    policies: dict[Spot, _Policy] = field(default_factory=dict)
    all: _Span | None = None


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come yet."""

    span: _Span
    mapping: bool
    #: Of the list of policies, a policy and its allow list: which of them it is.
    part: str = ""
    key: str | None = None
    policy: _Policy | None = None


# From events, as the loader does it: PyYAML's nodes of a million rules need gigabytes.
def _outline(text: str, lines: list[str]) -> _Outline:
    found = _Outline()
    stack: list[_Open] = []
    event: Any
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            start = _spot(event.start_mark)
            # Of the mapping in `[host: example.com]` the parser says that it has brackets.
            brackets = bool(event.flow_style) and lines[start[0]][start[1]] in "[{"
            opened = _Open(_Span(brackets, start), isinstance(event, yaml.MappingStartEvent))
            _begin(stack, start)
            _take_part(opened, stack, found)
            stack.append(opened)
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = stack.pop().span
            # The parser ends what has no brackets where the next thing starts, behind all comments.
            end = _spot(event.end_mark) if closed.brackets else closed.last_end
            _end(stack, end, None)
        elif isinstance(event, yaml.ScalarEvent):
            _begin(stack, _spot(event.start_mark))
            _end(stack, _spot(event.end_mark), event.value)
    return found


def _spot(mark: Any) -> Spot:
    """A mark's place. To the types it may be missing; the parser promises that it is not."""
    return mark.line, mark.column


def _begin(stack: list[_Open], start: Spot) -> None:
    if stack:
        stack[-1].span.last_start = start


def _end(stack: list[_Open], end: Spot, scalar: str | None) -> None:
    if not stack:
        return
    above = stack[-1]
    above.span.last_end = end
    if above.mapping:
        # A key waits for its value, and after that the next one is a key.
        above.key = scalar if above.key is None else None


def _take_part(opened: _Open, stack: list[_Open], found: _Outline) -> None:
    """Note the collection if it can be added to."""
    if not stack:
        opened.part = "root"
        return
    above = stack[-1]
    if above.part == "root" and above.key == "policies" and not opened.mapping:
        opened.part, found.all = "policies", opened.span
    elif above.part == "policies" and opened.mapping:
        opened.part, opened.policy = "policy", _Policy(opened.span)
        found.policies[opened.span.start] = opened.policy
    elif above.policy is not None and above.key == "allow" and not opened.mapping:
        above.policy.allow = opened.span


# Editing ----------------------------------------------------------------------------------------------------------


class _Editor:
    """Collects what is to be inserted where."""

    def __init__(self, text: str) -> None:
        # YAML's other line ends are refused by the loader.
        self.lines = re.findall(r"[^\n]*\n|[^\n]+", text)
        self.outline = _outline(text, self.lines)
        self._json = _is_json(text)
        self._end = "\r\n" if self.lines and self.lines[0].endswith("\r\n") else "\n"
        self._changes: dict[int, Change] = {}
        self._inside: dict[int, list[tuple[int, str]]] = {}

    def add_rules(self, policy: _Policy, rules: tuple[NewRule, ...]) -> None:
        values = [flow(rule.value, as_json=self._json) for rule in rules]
        if policy.allow is not None:
            lines = [f"- {_with_comment(rule)}" for rule in rules]
            self._add(policy.allow, lines, values, [rule.comment for rule in rules])
        elif policy.span.brackets:
            key = flow("allow", as_json=self._json)
            self._insert(policy.span.last_end, f", {key}: [{', '.join(values)}]")
            self._explain(policy.span.last_end[0], rules, values)
        else:
            lines = ["allow:", *(f"  - {_with_comment(rule)}" for rule in rules)]
            self._append(policy.span, lines)

    def add_policies(self, new: Sequence[NewPolicy]) -> None:
        policies = self.outline.all
        if policies is None:
            raise EditError("the file has no list of policies")
        if not policies.brackets:
            self._append(policies, [line for policy in new for line in block(policy)])
            return
        for policy in new:
            value = {
                "name": policy.name,
                "subjects": [policy.subject],
                "allow": [rule.value for rule in policy.rules],
            }
            values = [flow(rule.value, as_json=self._json) for rule in policy.rules]
            self._insert(policies.last_end, ", " + flow(value, as_json=self._json))
            self._explain(policies.last_end[0], policy.rules, values)

    def _add(self, span: _Span, lines: list[str], values: list[str], comments: list[str]) -> None:
        """Add entries to a list."""
        if not span.brackets:
            self._append(span, lines)
        elif self._json or (comma := self._comma_on_line(span)) is None:
            self._insert(span.last_end, "".join(f", {value}" for value in values))
            self._explain_values(span.last_end[0], values, comments)
        else:
            # Each entry has a line of its own; so do the new ones.
            number, column = span.last_start
            indent = self.lines[number][:column]
            if not comma:
                self._insert(span.last_end, ",")
            for position, (value, comment) in enumerate(zip(values, comments, strict=True), 1):
                separator = "," if comma or position < len(values) else ""
                self._line_after(span.last_end[0], f"{indent}{value}{separator}  # {comment}")

    def _comma_on_line(self, span: _Span) -> bool | None:
        """For a list in brackets with an entry a line: whether a comma follows the last one. None for other lists."""
        if self.lines[span.last_start[0]][: span.last_start[1]].strip():
            return None
        number, column = span.last_end
        rest = _END_OF_ENTRY.fullmatch(self.lines[number][column:])
        if rest is None:
            return None
        if not rest[1]:
            # The comma may stand on a line of its own.
            for line in self.lines[number + 1 :]:
                following = line.lstrip()
                if following and not following.startswith("#"):
                    return None if following.startswith(",") else False
        return bool(rest[1])

    def _append(self, span: _Span, lines: list[str]) -> None:
        """Add lines below what a list or a mapping without brackets holds."""
        indent = " " * span.start[1]
        for line in lines:
            self._line_after(span.last_end[0], indent + line)

    def _explain(self, number: int, rules: tuple[NewRule, ...], values: list[str]) -> None:
        self._explain_values(number, values, [rule.comment for rule in rules])

    def _explain_values(self, number: int, values: list[str], comments: list[str]) -> None:
        """Say above a line what was inserted into it: behind it there may be a comment already."""
        line = self.lines[number]
        indent = line[: len(line) - len(line.lstrip())]
        for value, comment in zip(values, comments, strict=True):
            if not self._json:
                self._change(number).before.append(f"{indent}# {value}: {comment}{self._end}")

    def _insert(self, spot: Spot, text: str) -> None:
        self._inside.setdefault(spot[0], []).append((spot[1], text))

    def _line_after(self, number: int, text: str) -> None:
        self._change(number).after.append(text + self._end)

    def _change(self, number: int) -> Change:
        return self._changes.setdefault(number, Change())

    def finish(self) -> Edited:
        for number, insertions in self._inside.items():
            line, done, parts = self.lines[number], 0, []
            # Sorted by column alone: what goes to one place stays in its order.
            for column, text in sorted(insertions, key=lambda insertion: insertion[0]):
                parts += [line[done:column], text]
                done = column
            self._change(number).text = "".join([*parts, line[done:]])
        last = len(self.lines) - 1
        change = self._changes.get(last)
        if change is not None and change.after and not self.lines[last].endswith("\n"):
            line = self.lines[last] if change.text is None else change.text
            change.text = line + self._end
        return Edited(self.lines, self._changes)


#: What may follow the last entry of a list on its line, where the bracket is on another one.
_END_OF_ENTRY: Final = re.compile(r"[ \t]*(,?)[ \t]*(?:#[^\n]*)?\r?\n?")


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
