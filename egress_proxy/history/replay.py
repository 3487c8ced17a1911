"""What a policy would have decided about the requests of a log, and where that is not what was decided then."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from egress_proxy.core import reasons
from egress_proxy.core.conditions import Asked
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority
from egress_proxy.core.policy import CompiledPolicy
from egress_proxy.core.reason import Event, Reason
from egress_proxy.history.logs import NOT_BY_RULES, LogReader, LogSummary, PastRequest
from egress_proxy.history.needs import asked_that_matters, refusal, that_matter, unseen_subjects
from egress_proxy.history.tally import Distinct, Tally, count, left_out_message, one_line


class Kind(StrEnum):
    """How a decision changes, the worst first."""

    NEWLY_ALLOWED = "newly_allowed"
    NEWLY_DENIED = "newly_denied"
    OTHERWISE_DENIED = "otherwise_denied"
    """It was denied and waits for a human's approval now, or the other way around."""


class Change(msgspec.Struct, frozen=True):
    """A request that the policy decides otherwise than it was decided."""

    kind: Kind
    client: str
    destination: str
    method: str | None
    path: str | None
    """Of a plain request, where the decision is about them."""
    address: str | None
    """The address that was dialled, where the decision is about it."""
    before: str
    after: str
    """``ALLOWED``, or ``DENIED`` with the reason."""
    policy: str | None
    rule: str | None
    place: str | None
    """The rule that decides now, if one does; of a refused port or address, the rule that nearly allowed it."""
    requests: int
    first: str
    last: str
    """In RFC 3339; empty where unknown."""


class Replay(msgspec.Struct, frozen=True):
    """The outcome for a whole log."""

    requests: int
    """Requests that were decided anew."""
    same: int
    """Those of them whose decision stays."""
    not_replayed: int
    """Requests that were refused for an address which the log does not name, and which rules would allow now."""
    changes: tuple[Change, ...]
    """The worst first, and of those the most frequent."""
    notes: tuple[str, ...]
    """What else limits the outcome."""
    log: LogSummary

    @property
    def changed(self) -> bool:
        """Whether any decision changes."""
        return self.same < self.requests


class _Key(NamedTuple):
    identity: Identity
    destination: Authority
    addresses: tuple[str, ...]
    before: str
    kind: Kind
    asked: Asked | None


def replay(policy: CompiledPolicy, lines: Iterable[str]) -> Replay:
    """Decide the requests of a log anew.

    What counts is what the rules say: audit mode's ``WOULD_DENY`` is a denial, in the log as in the policy.
    """
    reader = LogReader(lines)
    changes: Distinct[_Key] = Distinct()
    same = not_replayed = 0
    for request in reader:
        who, destination, asked = request.identity, request.destination, request.asked
        known = () if request.address is None else (request.address,)
        decision, denial = refusal(policy, who, destination, known, asked)
        if denial is None and decision.parent is None and _hidden_address(request):
            not_replayed += 1
            continue
        kind = _kind(request, denial)
        if kind is None:
            same += 1
            continue
        matter = that_matter(policy, who, destination, known, asked)
        asked = asked_that_matters(policy, who, destination, asked)
        changes.add(_Key(who, destination, matter, request.was, kind, asked), request.time)
    log = reader.summary()
    notes = unseen_subjects(policy, reader.named) if log.requests else []
    if changes.left_out:
        notes.append(left_out_message(changes.left_out))
    return Replay(
        requests=log.requests - not_replayed,
        same=same,
        not_replayed=not_replayed,
        changes=_told(policy, changes),
        notes=tuple(notes),
        log=log,
    )


def _hidden_address(request: PastRequest) -> bool:
    """Whether it was refused for an address that nobody knows."""
    return (
        request.reason == reasons.DESTINATION_IP_PROHIBITED.name
        and request.address is None
        and request.destination.host.address is None
    )


def _kind(request: PastRequest, denial: Reason | None) -> Kind | None:
    if request.refused != (denial is not None):
        return Kind.NEWLY_DENIED if denial is not None else Kind.NEWLY_ALLOWED
    if request.reason is None or denial is None:
        return None
    asked = request.reason == reasons.APPROVAL_REQUIRED.name
    return Kind.OTHERWISE_DENIED if asked != (denial is reasons.APPROVAL_REQUIRED) else None


_ORDER: Final = {kind: number for number, kind in enumerate(Kind)}


def _told(policy: CompiledPolicy, changes: Distinct[_Key]) -> tuple[Change, ...]:
    found = [_change(policy, key, tally) for key, tally in changes.items()]
    found.sort(
        key=lambda each: (
            _ORDER[each.kind],
            -each.requests,
            each.destination,
            each.client,
            each.before,
            each.address or "",
            (each.method or "", each.path or ""),
        )
    )
    return tuple(found)


def _change(policy: CompiledPolicy, key: _Key, tally: Tally) -> Change:
    decision, denial = refusal(policy, key.identity, key.destination, key.addresses, key.asked)
    match = decision.match
    return Change(
        kind=key.kind,
        client=str(key.identity),
        destination=str(key.destination),
        method=None if key.asked is None else key.asked.method,
        path=None if key.asked is None else key.asked.path.partition(b"?")[0].decode("ascii"),
        address=key.addresses[0] if key.addresses else None,
        before=key.before,
        after=Event.ALLOWED.value if denial is None else f"{Event.DENIED} ({denial.name})",
        policy=None if match is None else match.policy,
        rule=None if match is None else str(match.rule),
        place=None if match is None else str(match.rule.place),
        requests=tally.requests,
        first=tally.first,
        last=tally.last,
    )


# Telling ----------------------------------------------------------------------------------------------------------

_HEADINGS: Final = {
    Kind.NEWLY_ALLOWED: "NEWLY ALLOWED",
    Kind.NEWLY_DENIED: "NEWLY DENIED",
    Kind.OTHERWISE_DENIED: "OTHERWISE DENIED",
}


def as_text(found: Replay) -> str:
    """For a person: a line for each change, and a summary."""
    lines = [_line(change) for change in found.changes]
    lines += [f"note: {note}" for note in found.notes]
    lines.append(_summary(found))
    return "".join(f"{one_line(line)}\n" for line in lines)


def _line(change: Change) -> str:
    asked = "" if change.method is None else f"{change.method} {change.path} of "
    text = f"{_HEADINGS[change.kind]}: {asked}{change.destination} for {change.client}"
    if change.address is not None:
        text += f" at {change.address}"
    text += f": {change.before} -> {change.after}"
    if change.rule is not None:
        text += f", `{change.rule}` of {change.policy} at {change.place}"
    text += f"; {count(change.requests, 'request')}"
    return f"{text}, last {change.last}" if change.last else text


def _summary(found: Replay) -> str:
    parts = [f"{count(found.requests, 'request')} replayed"]
    changed = found.requests - found.same
    if not changed:
        parts.append("no decision changes")
    else:
        numbers = {
            kind: sum(change.requests for change in found.changes if change.kind is kind)
            for kind in Kind
        }
        each = ", ".join(
            f"{number:,} {kind.replace('_', ' ')}" for kind, number in numbers.items() if number
        )
        parts.append(f"{changed:,} decided otherwise ({each})")
    if found.not_replayed:
        parts.append(
            f"{found.not_replayed:,} more could not be replayed: they were refused for addresses that the log "
            "does not name"
        )
    left = sum(found.log.skipped.get(why, 0) for why in NOT_BY_RULES)
    if left:
        parts.append(
            f"{left:,} more had been refused for contract headers or limits, which is not decided by rules"
        )
    return "; ".join(parts)
