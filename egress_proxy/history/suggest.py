"""The smallest policy that would have let the refused requests of a log through, as a diff to review.

Requests are decided anew by the configuration as it is, so that what it allows by now is left out. The edited text is
loaded again before it is shown: it must mean what the old one meant, and the new rules, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from egress_proxy.config.lint.suffixes import Suffixes
from egress_proxy.config.load import load
from egress_proxy.core import reasons
from egress_proxy.core.advice import beside, still_closed, yaml_rule
from egress_proxy.core.conditions import Asked
from egress_proxy.core.decide import Decision
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority
from egress_proxy.core.policy import CompiledPolicy, Match, Rule
from egress_proxy.history.draft import Draft, Snapshot, as_yaml, draft
from egress_proxy.history.edit import flow
from egress_proxy.history.logs import LogReader, PastRequest
from egress_proxy.history.needs import (
    Home,
    Hopeless,
    Needs,
    Wish,
    asked_that_matters,
    lift,
    refusal,
    that_matter,
    unseen_subjects,
)
from egress_proxy.history.siblings import common_domains
from egress_proxy.history.suggestion import (
    AddedRule,
    Addition,
    AlsoAllowed,
    NotLifted,
    Suggestion,
    Wildcard,
    as_text,
)
from egress_proxy.history.tally import Distinct, Tally, left_out_message

__all__ = ["Suggestion", "as_text", "suggest"]

#: Clients of a rule that JSON names.
_MAX_CLIENTS: Final = 10


def suggest(
    config_path: str,
    lines: Iterable[str],
    addresses: Mapping[str, tuple[str, ...]] | None = None,
) -> Suggestion:
    """Read a log and find what to add to the configuration.

    ``addresses`` are those behind names, where they are known: the line of a refused request has none. Keys are
    canonical hosts, values as :func:`~egress_proxy.core.explain.parse_address` gives them. Raises ConfigError.
    """
    sources = Snapshot()
    loaded = load(config_path, sources)
    policy = loaded.config.policy
    reader = LogReader(lines)
    refused = _Refused(policy, addresses or {})
    for request in reader:
        refused.read(request)
    needs = Needs(policy)
    lifted: list[Wish] = []
    perhaps_closed = 0
    hopeless: dict[_Refusal, Tally] = {}
    # Each once, in the order of the log.
    besides: dict[str, None] = {}
    for wish, tally, decision, answer in _answers(policy, needs, refused.wishes):
        if isinstance(answer, Hopeless):
            match = decision.match if answer.reason in _BY_RULE else None
            why = _Refusal(wish.identity, wish.destination, answer.reason, answer.why, match)
            hopeless.setdefault(why, Tally()).include(tally)
        else:
            needs.add(wish.identity, decision, answer, tally)
            lifted.append(wish)
            known = bool(wish.addresses) or wish.reachable
            for note in beside(decision, answer, wish.asked, addresses_known=known):
                besides[note] = None
            if not known and still_closed(decision) is not None:
                perhaps_closed += tally.requests
    homes = needs.homes()
    outcome = Draft()
    if homes:
        outcome = draft(config_path, loaded, sources, homes, lifted)
    after = outcome.policy
    # Of one destination, some may have asked for another path or address.
    also: dict[tuple[str, str], int] = {}
    for (identity, destination, addresses_then, asked), tally in refused.others.items():
        about = (identity, destination, addresses_then, asked)
        if after is not None and refusal(after, *about)[1] is None:
            key = str(identity), str(destination)
            also[key] = also.get(key, 0) + tally.requests
    log = reader.summary()
    notes = unseen_subjects(policy, reader.named) if log.requests else []
    left_out = refused.wishes.left_out + refused.others.left_out
    if left_out:
        notes.append(left_out_message(left_out))
    return Suggestion(
        config=config_path,
        refused=refused.count,
        already_allowed=refused.already_allowed,
        lifted=sum(rule.tally.requests for home in homes for rule in home.rules) - perhaps_closed,
        perhaps_closed=perhaps_closed,
        additions=tuple(map(_addition, homes)),
        diff=outcome.diff,
        apply_in=outcome.apply_in,
        unverified=outcome.unverified,
        yaml=as_yaml(homes) if homes else "",
        warnings=outcome.warnings,
        wildcards=tuple(_wildcards(homes)),
        besides=tuple(besides),
        not_lifted=tuple(sorted(map(_not_lifted, hopeless.items()), key=_by_requests)),
        also_allowed=tuple(
            sorted((AlsoAllowed(*key, number) for key, number in also.items()), key=_by_requests)
        ),
        notes=tuple(notes),
        log=log,
    )


def _answers(
    policy: CompiledPolicy, needs: Needs, wishes: Distinct[Wish]
) -> Iterator[tuple[Wish, Tally, Decision, Rule | Hopeless]]:
    """What each wish needs, in the order of the log; the caller adds a rule before it asks for the next.

    Last come tunnels to hosts that rules are for some requests of. A rule for one is for every plain request as well:
    where narrower ones are suggested, such requests are sent, and the wide one would make the others say nothing.
    """
    tunnels: list[tuple[Wish, Tally, Decision, Rule]] = []
    for wish, tally in wishes.items():
        decision, answer = lift(policy, wish)
        near = None if decision.match is None else decision.match.rule.conditions
        # Another client of the same policy may be the one whose requests are told apart.
        may_be_wide = wish.asked is None and (decision.conditional or near is not None)
        if may_be_wide and not isinstance(answer, Hopeless):
            tunnels.append((wish, tally, decision, answer))
        else:
            yield wish, tally, decision, answer
    for wish, tally, decision, rule in tunnels:
        wide = needs.has_narrower(wish.identity, decision, rule)
        yield wish, tally, decision, _too_wide(decision, rule) if wide else rule


def _too_wide(decision: Decision, rule: Rule) -> Hopeless:
    denial = decision.denial or reasons.DESTINATION_IP_PROHIBITED
    why = (
        f"no rule is for tunnels alone, and `{yaml_rule(rule)}` would let plain HTTP requests of every method and path "
        "through as well, so that the rules for some of them would say nothing: add it by hand where that is meant"
    )
    closed = still_closed(decision)
    return Hopeless(denial.name, why if closed is None else f"{why}; {closed.removesuffix('.')}")


class _Refusal(NamedTuple):
    """What is told of a request that no rule is suggested for. Several differ in their paths or addresses alone."""

    identity: Identity
    destination: Authority
    reason: str
    why: str
    match: Match | None


def _not_lifted(found: tuple[_Refusal, Tally]) -> NotLifted:
    refused, tally = found
    match = refused.match
    return NotLifted(
        client=str(refused.identity),
        destination=str(refused.destination),
        requests=tally.requests,
        last=tally.last,
        reason=refused.reason,
        why=refused.why,
        policy=None if match is None else match.policy,
        rule=None if match is None else str(match.rule),
        place=None if match is None else str(match.rule.place),
    )


#: Denials that a rule makes.
_BY_RULE: Final = (reasons.DENY_RULE.name, reasons.APPROVAL_REQUIRED.name)


def _by_requests(found: NotLifted | AlsoAllowed) -> tuple[int, str, str]:
    return -found.requests, found.destination, found.client


# Reading ----------------------------------------------------------------------------------------------------------


class _Refused:
    """The requests that matter: those that were refused and still are, and those that are by now."""

    def __init__(self, policy: CompiledPolicy, addresses: Mapping[str, tuple[str, ...]]) -> None:
        self._policy = policy
        self._addresses = addresses
        self.count = 0
        self.already_allowed = 0
        self.wishes: Distinct[Wish] = Distinct()
        self.others: Distinct[tuple[Identity, Authority, tuple[str, ...], Asked | None]] = (
            Distinct()
        )

    def read(self, request: PastRequest) -> None:
        identity, destination, asked = request.identity, request.destination, request.asked
        known = self._addresses.get(destination.host.text, ())
        if not known and request.address is not None:
            known = (request.address,)
        decision, denial = refusal(self._policy, identity, destination, known, asked)
        if request.refused:
            self.count += 1
            prohibited = request.reason == reasons.DESTINATION_IP_PROHIBITED.name
            unknown = prohibited and not known and destination.host.address is None
            unknown = unknown and decision.parent is None
            if denial is None and not unknown:
                self.already_allowed += 1
                return
        elif denial is None:
            return
        matter = that_matter(self._policy, identity, destination, known, asked)
        asked = asked_that_matters(self._policy, identity, destination, asked)
        if request.refused:
            # Of a host that no rule allows, the rule is suggested first: its addresses are looked at after that.
            reachable = bool(known) and not matter
            wish = Wish(identity, destination, matter, denial is None, asked, reachable)
            self.wishes.add(wish, request.time)
        else:
            self.others.add((identity, destination, matter, asked), request.time)


# Telling ----------------------------------------------------------------------------------------------------------


def _addition(home: Home) -> Addition:
    return Addition(
        policy=home.name,
        place=None if home.policy is None else str(home.policy.place),
        subject=None if home.subject is None else flow(home.subject.yaml),
        rules=tuple(
            AddedRule(
                rule=[flow(value) for value in wanted.values],
                requests=wanted.tally.requests,
                client_count=len(wanted.clients),
                clients=tuple(
                    str(client) for client, _ in wanted.clients.most_common(_MAX_CLIENTS)
                ),
                first=wanted.tally.first,
                last=wanted.tally.last,
            )
            for wanted in home.rules
        ),
    )


def _wildcards(homes: list[Home]) -> Iterable[Wildcard]:
    suffixes = Suffixes()
    for home in homes:
        hosts = {rule.target for rule in home.rules if not rule.is_cidr}
        for domain, number in common_domains(hosts, suffixes).items():
            yield Wildcard(home.name, f"*.{domain}", number)
