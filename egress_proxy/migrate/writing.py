"""What both importers share: imported policies as values, notes about what is lost, and our commented YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Final

from egress_proxy.core.errors import EgressProxyError
from egress_proxy.core.policy import DEFAULT_PORTS, EVERY_PORT, PortRanges

#: Characters of a foreign file's text that a note or comment quotes.
_MAX_SHOWN: Final = 200
_COMMENT_WIDTH: Final = 110
#: What YAML reads as a text whatever its schema: two labels at least, each of which starts with a letter.
_PLAIN_HOST: Final = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)+")
_PLAIN_NETWORK: Final = re.compile(r"[0-9]+(\.[0-9]+){3}/[0-9]+")
#: Longer than every word that YAML takes for something else, such as `no` and `false`.
_PLAIN_WORD: Final = re.compile(r"[A-Za-z][A-Za-z_-]{5,}")
#: Methods, which no YAML takes for a truth value, and paths.
_PLAIN_REQUEST: Final = re.compile(r"GET|PUT|(?!NULL|TRUE|FALSE)[A-Z]{4,}|(/[A-Za-z0-9_.~-]*)+")
_MAX_NAME: Final = 64


class MigrationError(EgressProxyError):
    """A file that cannot be imported at all; its text is ``FILE: …`` or ``FILE:LINE: …``, and what to do."""


class UnreadableError(MigrationError):
    """A file that cannot be read."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{shown(path)}: the file cannot be read: {why}")
        self.why = why
        """For a message that names the file by itself."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something of a foreign file that means less here, or nothing."""

    file: str
    line: int
    """Counts from 1; 0 where the note is about the file as a whole."""
    what: str
    why: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.what}: {self.why}"


@dataclass(frozen=True, slots=True)
class Imported:
    """A foreign file's rules as ours."""

    yaml: str
    """The whole text of a valid configuration."""
    notes: tuple[Note, ...]
    """What was not carried over, in the order of the file."""


@dataclass(frozen=True, slots=True)
class WrittenRule:
    """One entry of a list of rules."""

    target: str
    """A host pattern or a network."""
    ports: PortRanges
    network: bool = False
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenPolicy:
    """One policy, ready to be written."""

    name: str
    comments: tuple[str, ...]
    subjects: tuple[str, ...] | None
    """Entries in YAML's flow style, such as ``{cidr: 10.0.0.0/8}``; None for every client."""
    allow: tuple[WrittenRule, ...] = ()
    deny: tuple[WrittenRule, ...] = ()


def nothing_allowed(why: str) -> WrittenPolicy:
    """What a configuration is made of that allows nothing.

    A policy must have a rule. A deny of all would beat each allow that is added, so it is one of a name that never
    exists (RFC 6761 section 6.4).
    """
    todo = "What no policy allows is denied. Remove this one when you add another: it is here because one must be."
    return WrittenPolicy(
        "nothing-allowed", (why, todo), None, deny=(WrittenRule("nothing.invalid", EVERY_PORT),)
    )


def shown(text: str) -> str:
    """A foreign text for a note or a comment: on one line, short, and without what a terminal or YAML obeys."""
    if len(text) > _MAX_SHOWN:
        text = text[: _MAX_SHOWN - 1] + "…"
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def policy_name(wanted: str, taken: set[str]) -> str:
    """A name that our grammar takes and that no other policy has; it is added to ``taken``."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-") or "policy"
    name = base[:_MAX_NAME]
    number = 1
    while name in taken:
        number += 1
        end = f"-{number}"
        name = base[: _MAX_NAME - len(end)] + end
    taken.add(name)
    return name


def ports_text(ranges: PortRanges) -> str:
    """``80, 443, 8000-8010``, for a person."""
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def write(
    policies: Iterable[WrittenPolicy],
    heading: Iterable[str],
    notes: Iterable[Note],
    ending: Iterable[str] = (),
    sets: Mapping[str, Iterable[str]] | None = None,
) -> str:
    """The configuration's text. What is left out stands above it as a comment, so that reviewers see it."""
    lines = [f"# {line}".rstrip() for line in heading]
    listed = [str(note) for note in notes]
    if listed:
        lines += ["#", "# Not carried over, or not in full:"]
        for note in listed:
            lines += _comment(note, "# - ", "#   ")
    lines.append("version: 1")
    if sets:
        lines.append("sets:")
        for name, hosts in sets.items():
            lines += [f"  {_scalar(name)}:", *(f"    - {_scalar(host)}" for host in hosts)]
    lines.append("policies:")
    for policy in policies:
        lines += _policy(policy)
    lines += [f"# {line}".rstrip() for line in ending]
    return "\n".join(lines) + "\n"


def _comment(text: str, first: str, other: str) -> list[str]:
    return wrap(
        shown_whole(text),
        _COMMENT_WIDTH,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )


def shown_whole(text: str) -> str:
    """Our own sentence, in which foreign texts were shortened already."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _policy(policy: WrittenPolicy) -> Iterable[str]:
    for number, comment in enumerate((f"- name: {_scalar(policy.name)}", *policy.comments)):
        if number == 0:
            yield f"  {comment}"
        else:
            yield from _comment(comment, "    # ", "    # ")
    if policy.subjects is not None:
        if len(policy.subjects) == 1:
            yield f"    subjects: [{policy.subjects[0]}]"
        else:
            yield "    subjects:"
            yield from (f"      - {subject}" for subject in policy.subjects)
    for action, rules in (("allow", policy.allow), ("deny", policy.deny)):
        if rules:
            yield f"    {action}:"
            default = DEFAULT_PORTS if action == "allow" else EVERY_PORT
            yield from (f"      - {_rule(rule, default)}{_meant(rule, action)}" for rule in rules)


def _rule(rule: WrittenRule, default: PortRanges) -> str:
    target = _scalar(rule.target)
    keys = [f"{'cidr' if rule.network else 'host'}: {target}"]
    if rule.ports != default:
        ports = (f'"{low}-{high}"' if low != high else str(low) for low, high in rule.ports)
        keys.append(f"ports: [{', '.join(ports)}]")
    for key, found in (("methods", rule.methods), ("paths", rule.paths)):
        if found:
            keys.append(f"{key}: [{', '.join(map(flow_text, found))}]")
    return target if len(keys) == 1 and not rule.network else f"{{{', '.join(keys)}}}"


def _meant(rule: WrittenRule, action: str) -> str:
    """A comment that switches off what `check` would say of a rule which the foreign file has just so."""
    if not rule.methods and not rule.paths:
        return ""
    if rule.ports == ((443, 443),):
        return "  # check: ignore=without-effect"
    return "  # check: ignore=tunnel-open" if action == "deny" else ""


def _scalar(text: str) -> str:
    return text if _PLAIN_HOST.fullmatch(text) else flow_text(text)


def flow_text(text: str) -> str:
    """A text inside YAML's flow style, in double quotes where it needs them."""
    if any(form.fullmatch(text) for form in (_PLAIN_WORD, _PLAIN_NETWORK, _PLAIN_REQUEST)):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
