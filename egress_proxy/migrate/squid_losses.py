"""What of a squid.conf's access rules is lost, in words: no rule ends without effect and without a note."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from egress_proxy.migrate.ordered import Draft, Kept, Loss
from egress_proxy.migrate.squid_decisions import GATES, NO_RULE, Decisions
from egress_proxy.migrate.writing import Note, shown

#: Patterns, or lines, that one note names.
_MAX_NAMED: Final = 5

USELESS_WHY: Final = (
    "without effect: lines before it decide all that it matches, or nothing that it matches can be asked "
    "for here"
)

_KEPT_WHY: Final = {
    Kept.PLAIN: (
        "{}: not all of CONNECT can stay allowed: it cannot be allowed without plain requests, and to deny those would "
        "deny others that are allowed"
    ),
    Kept.CONNECT: (
        "{}: not all plain requests can stay allowed: what must be denied of CONNECT, or of other methods and paths, "
        "cannot be denied without them"
    ),
}


def loss_notes(decisions: Decisions, losses: Iterable[Loss]) -> Iterable[Note]:
    """What rules without an order cannot say."""
    lost: dict[tuple[int, int | None, Kept], list[str]] = {}
    for loss in losses:
        by = loss.by if loss.kept is Kept.NOTHING else None
        lost.setdefault((loss.rule, by, loss.kept), []).append(loss.what)
    for (number, by, kept), patterns in lost.items():
        line = decisions.line(number)
        if number == by:
            yield line.note(
                "rules here have no order, so it closes these addresses to all names on these ports, "
                "those that earlier lines allow too"
            )
            continue
        named = ", ".join(f"`{shown(pattern)}`" for pattern in patterns[:_MAX_NAMED])
        if len(patterns) > _MAX_NAMED:
            named += f" and {len(patterns) - _MAX_NAMED:,} more"
        if kept is not Kept.NOTHING:
            yield line.note(_KEPT_WHY[kept].format(named))
            continue
        if by is None or by >= len(decisions.rules):
            denier = "what no line allows"
        else:
            denier = f"line {decisions.line(by).line}"
        yield line.note(
            f"{named} cannot stay allowed: a deny beats every allow here, and {denier} denies all around it"
        )


def doubt_notes(decisions: Decisions) -> Iterable[Note]:
    """What is allowed no longer because a deny before it, which is not known in full, may match it."""
    for number in sorted({*decisions.doubts}):
        causes = decisions.doubts[number]
        whole = number not in decisions.effective
        by = sorted(rule for rule, named in causes.items() if whole or named)
        if not by:
            continue  # bare addresses alone, which have a note of their own
        line = decisions.line(number)
        denies = _denies(decisions, by, line.file)
        if whole:
            why = f"not carried over, because {denies}, may match all of it"
        else:
            why = f"not carried over in full, because {denies}, may match some of it"
        if number == NO_RULE:
            yield line.note(why, "what no line decides, which Squid allows")
        else:
            yield line.note(why)


def useless_notes(decisions: Decisions, noted: Collection[tuple[str, int]]) -> Iterable[Note]:
    """Each allow that does nothing, but for the places that have a note which says more."""
    for number, rule in enumerate(decisions.rules):
        place = (rule.line.file, rule.line.line)
        if (
            rule.gate == GATES[0]
            and rule.allow
            and number not in decisions.effective
            and place not in noted
        ):
            yield rule.line.note(USELESS_WHY)


def nothing_note(path: str, decisions: Decisions, drafts: Iterable[Draft]) -> Note | None:
    """The last word, where all is lost that was allowed."""
    if any(draft.allow for draft in drafts):
        return None
    causes = {rule for found in decisions.doubts.values() for rule in found}
    if causes:
        why = f"the cause is {_denies(decisions, sorted(causes), path)}"
    elif any(rule.allow for rule in decisions.rules):
        why = "no line surely allows something; the notes above say why"
    else:
        return None  # nor does Squid allow anything
    return Note(path, 0, "NOTHING IS ALLOWED", why)


def _denies(decisions: Decisions, rules: Iterable[int], file: str) -> str:
    """``the deny on line 4, which is not known in full``, with the file where it is another one."""
    lines = [decisions.line(rule) for rule in rules]
    places = [
        f"line {line.line}" if line.file == file else f"{line.file}:{line.line}"
        for line in lines[:_MAX_NAMED]
    ]
    if len(lines) > _MAX_NAMED:
        places.append(f"{len(lines) - _MAX_NAMED:,} more")
    if len(lines) == 1:
        return f"the deny on {places[0]}, which is not known in full"
    return f"the denies on {', '.join(places[:-1])} and {places[-1]}, which are not known in full"
