"""What is suggested, as values for JSON and as text for a person."""

from __future__ import annotations

from typing import Final

import msgspec

from egress_proxy.history.logs import LogSummary
from egress_proxy.history.tally import count, one_line

#: Lines of one kind that the text shows below the diff.
_MAX_NOTES: Final = 50


class AddedRule(msgspec.Struct, frozen=True):
    """A rule to add."""

    rule: list[str]
    """As YAML; more than one only where it has more ports or networks than one rule may."""
    requests: int
    client_count: int
    clients: tuple[str, ...]
    """The busiest of them."""
    first: str
    last: str
    """When it was asked for, in RFC 3339; empty where that is unknown."""


class Addition(msgspec.Struct, frozen=True):
    """What is added to one policy."""

    policy: str
    place: str | None
    """Where the policy stands; None for a new one."""
    subject: str | None
    """Whom a new policy is for, as YAML."""
    rules: tuple[AddedRule, ...]


class NotLifted(msgspec.Struct, frozen=True):
    """A refused request for which no rule is suggested."""

    client: str
    destination: str
    requests: int
    last: str
    reason: str
    why: str
    policy: str | None
    rule: str | None
    place: str | None
    """The rule that refuses it, if one does."""


class AlsoAllowed(msgspec.Struct, frozen=True):
    """A request that the log shows as allowed, the configuration refuses and a suggested rule lets through."""

    client: str
    destination: str
    requests: int


class Wildcard(msgspec.Struct, frozen=True):
    """A pattern that could stand for many of the suggested hosts."""

    policy: str
    pattern: str
    hosts: int


class Suggestion(msgspec.Struct, frozen=True):
    """What to change, and all that was found on the way."""

    config: str
    refused: int
    """Requests that the log shows as refused."""
    already_allowed: int
    """Those of them that the configuration allows by now."""
    lifted: int
    """Those that the additions let through."""
    perhaps_closed: int
    """Those that they let through only if the host's address needs nothing that no suggestion opens."""
    additions: tuple[Addition, ...]
    diff: str
    """Unified diff; empty where there is nothing to add or the edit could not be verified."""
    apply_in: str
    """The directory in which to apply the diff."""
    unverified: str | None
    """Why there is no diff although there is something to add: add :attr:`yaml` by hand then."""
    yaml: str
    """The additions as policies with their rules."""
    warnings: tuple[str, ...]
    """What ``check`` says about the new rules."""
    besides: tuple[str, ...]
    """What to know about rules that say less, or more, than their neighbours."""
    wildcards: tuple[Wildcard, ...]
    not_lifted: tuple[NotLifted, ...]
    also_allowed: tuple[AlsoAllowed, ...]
    notes: tuple[str, ...]
    log: LogSummary


def as_text(found: Suggestion) -> str:
    """For a person: the diff, and below it notes, which ``patch`` and ``git apply`` pass over."""
    notes = [_summary(found)]
    parts: list[str] = []
    if found.diff:
        parts.append(found.diff)
        inside = "" if found.apply_in != "/" else " -d /"
        notes.append(f"To apply it: patch -p0{inside} < FILE")
    elif found.yaml:
        parts.append(found.yaml)
        notes.append(f"There is no diff: {found.unverified}. Add the rules above by hand.")
    notes += found.notes
    notes += _some([f"In the edited text: {text}" for text in found.warnings], "warnings")
    notes += _some(list(found.besides), "notes of this kind")
    notes += [_wildcard_note(wildcard) for wildcard in found.wildcards]
    notes += _some([_not_lifted_note(each) for each in found.not_lifted], "refused destinations")
    notes += _some([_also_note(each) for each in found.also_allowed], "destinations")
    return "".join(parts) + "".join(f"# {one_line(note)}\n" for note in notes)


def _summary(found: Suggestion) -> str:
    text = f"{count(found.refused, 'refused request')} in the log"
    if found.already_allowed:
        text += f", {found.already_allowed:,} of which this configuration allows already"
    rules = sum(len(rule.rule) for addition in found.additions for rule in addition.rules)
    if not rules:
        return f"{text}. There is nothing to add."
    text += f". {count(rules, 'rule')} would let {found.lifted or found.perhaps_closed:,} of them through"
    if found.perhaps_closed:
        more = f" and {found.perhaps_closed:,} more" if found.lifted else ""
        text += f"{more}, unless the host's address is one that no suggestion opens"
    return f"{text}."


def _some(lines: list[str], noun: str) -> list[str]:
    if len(lines) <= _MAX_NOTES:
        return lines
    return [*lines[:_MAX_NOTES], f"{len(lines) - _MAX_NOTES:,} more {noun} are in the JSON output"]


def _wildcard_note(wildcard: Wildcard) -> str:
    return (
        f'Policy {wildcard.policy}: "{wildcard.pattern}" would stand for {wildcard.hosts} of these hosts, '
        "and allow every other name there as well"
    )


def _not_lifted_note(found: NotLifted) -> str:
    text = f"Not lifted: {found.destination} for {found.client}, {count(found.requests, 'request')}"
    rule = f" (`{found.rule}` of {found.policy} at {found.place})" if found.rule else ""
    return f"{text}: {found.reason}: {found.why}{rule}"


def _also_note(found: AlsoAllowed) -> str:
    return (
        f"Also let through: {found.destination} for {found.client}, which the log shows as allowed and this "
        f"configuration refuses ({count(found.requests, 'request')})"
    )
