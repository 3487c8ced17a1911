"""The decision about one request: which rule lets it through, or why none does.

This is the one place where it is made; the server, ``explain`` and the admin API all ask here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from egress_proxy.core import reasons
from egress_proxy.core.addresses import Grant, Vetting, vet
from egress_proxy.core.conditions import Asked, Fit, Seen, see, to_forward
from egress_proxy.core.fields import OVERRIDING_FIELDS
from egress_proxy.core.http1 import ProxyRequest
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import MAX_NAME_LENGTH, Authority, Host, IPAddress
from egress_proxy.core.networks import IPNetwork, lies_within
from egress_proxy.core.paths import Unclear
from egress_proxy.core.policy import (
    Action,
    CompiledPolicy,
    Entry,
    HostPattern,
    HostSet,
    Match,
    Mode,
    Policy,
    Rule,
)
from egress_proxy.core.reason import Reason
from egress_proxy.core.sections import Section
from egress_proxy.core.special_use import Surroundings, special_use
from egress_proxy.core.upstream import Parent, preference

#: Decisions that are remembered. Clients choose the destinations, so there is a bound: about 4 MiB.
_MEMO_SIZE = 8192


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy says about a destination, before its addresses are known."""

    allowed: bool
    """Whether the request goes on: True in audit mode whatever the rules say."""
    denial: Reason | None
    """Why the rules refuse it; None where they allow it."""
    match: Match | None
    """The rule that decided; None where no rule named the destination."""
    grant: Grant
    """What the address gate may pass."""
    tls: bool = True
    """Whether a tunnel must be TLS to the host that was asked for; no rule that lets it through says otherwise."""
    parent: Parent | None = None
    """The parent proxy that it goes through; None where it is reached directly."""
    allowed_by: tuple[Policy, ...] = ()
    """Every policy with a rule that lets it through, in the order of the configuration: what they ask for besides, and
    their limits, hold together."""
    conditional: bool = False
    """Whether it may be another one for another method or path, so that the request must be sent as it was decided."""
    path: bytes | None = None
    """The origin-form to send instead of the request's own, because rules saw it so; None where that is the same."""
    detail: str | None = None
    """One clause that says more than the denial does."""
    routed_by: Rule | None = None
    """The rule whose ``upstream`` says how it is reached; None where the whole configuration's does, if any."""


def decide(
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    asked: Asked | None = None,
) -> Decision:
    """Decide about a request of a client; ``asked`` is None for CONNECT, in which nobody sees what is asked.

    Over all policies that apply to the client: deny beats ask, ask beats allow, and what nothing allows is denied.
    """
    memo: dict[tuple[frozenset[int], Authority], Decision] = policy.memo
    key = (policy.applicable(identity), destination)
    decision = memo.get(key)
    if decision is None:
        decision = _decide(policy, identity, destination)
        remember(policy, key, decision)
    if asked is None or not decision.conditional:
        return decision
    # Not remembered: paths are the clients' to choose, and no two need be alike.
    return _decide(policy, identity, destination, asked)


def remember(policy: CompiledPolicy, key: object, value: object) -> None:
    """Keep what was worked out for as long as the policy lives, or until there is too much of it."""
    if len(policy.memo) >= _MEMO_SIZE:
        policy.memo.clear()
    policy.memo[key] = value


def _decide(
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    asked: Asked | None = None,
) -> Decision:
    audit = policy.mode is Mode.AUDIT
    seen = see(asked)
    conditional = policy.closes_by_request
    by_path = policy.closes_by_path
    missed: tuple[Fit, Entry] | None = None
    doubtful: tuple[Fit, Entry] | None = None
    port = destination.port
    address = destination.host.address
    allowing: Entry | None = None
    asking: Entry | None = None
    denying: Entry | None = None
    other_port: Entry | None = None
    lifted: tuple[IPNetwork, ...] = ()
    tls = True
    routing: list[Rule] = []
    by: set[int] = set()
    for entry in policy.matches(identity, destination.host):
        rule = entry[1]
        if not rule.covers_port(port):
            if rule.action is not Action.DENY:
                other_port = other_port or entry
            continue
        if rule.conditions is not None:
            conditional = True
            by_path = by_path or bool(rule.conditions.paths)
            fit = rule.conditions.fit(seen)
            if fit is not Fit.FITS and not (rule.action is Action.DENY and fit.may_be_meant):
                in_doubt = rule.action is Action.ASK and fit.may_be_meant
                if in_doubt and (doubtful is None or fit < doubtful[0]):
                    doubtful = (fit, entry)
                if rule.action is not Action.DENY and (missed is None or fit < missed[0]):
                    missed = (fit, entry)
                continue
        if rule.action is Action.DENY:
            denying = entry
            break
        if rule.action is Action.ASK:
            asking = asking or entry
        else:
            allowing = allowing or entry
            by.add(entry[0])
        lifted += _lifted_by(rule, address, policy.surroundings)
        tls = tls and rule.tls
        if rule.upstream is not None:
            routing.append(rule)
    denial: Reason | None = None
    deciding = allowing
    if denying is not None:
        # Whatever other rules came before it, so that no order of rules can matter, in audit mode either.
        denial, deciding, lifted, tls, routing = reasons.DENY_RULE, denying, (), True, []
        conditional, by_path = asked is not None or policy.closes_by_request, False
        by.clear()
    elif asking is not None:
        denial, deciding = reasons.APPROVAL_REQUIRED, asking
    elif doubtful is not None:
        # It must not slip past a rule that asks; nor is it what a human would approve there.
        denial, deciding = _miss(doubtful[0]), doubtful[1]
    elif allowing is None:
        deciding = other_port if missed is None else missed[1]
        if missed is not None:
            denial = _miss(missed[0])
        elif other_port is not None:
            denial = reasons.PORT_NOT_ALLOWED
        elif address is not None:
            denial = reasons.ADDRESS_NOT_ALLOWED
        else:
            denial = reasons.HOST_NOT_ALLOWED
    match = None if deciding is None else Match(policy.policies[deciding[0]].name, deciding[1])
    routed_by = _routing(destination.host, routing) if routing else None
    closed = policy.closed_networks(identity, port, seen)
    return Decision(
        denial is None or audit,
        denial,
        match,
        policy.grant(lifted, closed),
        tls,
        _parent(policy, destination.host, routed_by),
        tuple(policy.policies[number] for number in sorted(by)),
        conditional,
        to_forward(asked, seen) if by_path and asked is not None and seen is not None else None,
        None if denial is None or deciding is None else _detail(deciding[1], seen),
        routed_by,
    )


def as_decided(request: ProxyRequest, decision: Decision) -> ProxyRequest:
    """The request as it must be sent on, so that what was decided is what is asked for."""
    if not decision.conditional or request.is_connect:
        return request
    # To CGI and what came after it, `_` in a field's name is `-`.
    fields = [
        field for field in request.fields if field[0].replace(b"_", b"-") not in OVERRIDING_FIELDS
    ]
    path = request.path if decision.path is None else decision.path
    # What the proxy obeys is none of these.
    section = Section(fields, request.section.known)
    return msgspec.structs.replace(request, path=path, section=section)


def _miss(fit: Fit) -> Reason:
    """Why a rule does not let a request through that it does not fit."""
    if fit is Fit.TUNNEL:
        return reasons.CONNECT_NOT_ALLOWED
    if fit in {Fit.OTHER_METHOD, Fit.NEAR_METHOD}:
        return reasons.METHOD_NOT_ALLOWED
    return reasons.PATH_NOT_ALLOWED


def _detail(rule: Rule, seen: Seen | None) -> str | None:
    """What about the request kept a rule with conditions from letting it through, or had it denied."""
    conditions = rule.conditions
    if conditions is None or seen is None:
        return None
    if conditions.paths and isinstance(seen.path, Unclear):
        return f"the path {seen.path}"
    fit = conditions.fit(seen)
    if fit is Fit.NEAR_PATH:
        return "some servers would take the path for one that the rule names"
    return "methods are written in upper case" if fit is Fit.NEAR_METHOD else None


def _lifted_by(
    rule: Rule, address: IPAddress | None, surroundings: Surroundings
) -> tuple[IPNetwork, ...]:
    """The networks that a rule opens although they are special-use.

    A cidr rule opens the special-use network that it lies in, and nothing else: `0.0.0.0/0` means the internet.
    """
    if isinstance(rule.target, HostPattern | HostSet):
        return rule.allow_private
    special = None if address is None else special_use(address, surroundings)
    return (
        (rule.target,) if special is not None and lies_within(rule.target, special.network) else ()
    )


def _parent(policy: CompiledPolicy, host: Host, routed_by: Rule | None) -> Parent | None:
    """The parent proxy of a host, as the rule says that says anything about it, or the whole configuration."""
    if routed_by is None:
        return None if policy.upstream is None else policy.upstream.parent_of(host)
    route = routed_by.upstream
    return route if isinstance(route, Parent) else None


def _routing(host: Host, routing: list[Rule]) -> Rule:
    """The most specific of the rules that say how a host is reached, whatever their order."""
    ranks = [_specificity(rule, host) for rule in routing]
    routes = [
        (preference(rule.upstream), number, rule)
        for number, (rule, rank) in enumerate(zip(routing, ranks, strict=True))
        if rule.upstream is not None and rank == max(ranks)
    ]
    return min(routes)[2]


def _specificity(rule: Rule, host: Host) -> int:
    """The higher, the fewer hosts a rule's pattern or network stands for, of those that name this host."""
    target = rule.target
    if not isinstance(target, HostPattern | HostSet):
        return target.prefixlen
    text = str(target)
    if isinstance(target, HostSet):
        # A rule is asked about a host that its set names.
        text = next(pattern for pattern, _ in target.naming(host))
    # Of the wildcards above one host, the longest is the nearest.
    return len(text) if text.startswith("*") else MAX_NAME_LENGTH + 1


#: RFC 6761 §6.3: whoever resolves these names, they are the machine's own.
_LOCALHOST: Final = ("127.0.0.1", "::1")


def known_addresses(destination: Authority) -> tuple[str, ...]:
    """The addresses of a destination that need not be asked for: its own where it is one, and the machine's."""
    host = destination.host
    if host.address is not None:
        return (host.text,)
    if host.text == "localhost" or host.text.endswith(".localhost"):
        return _LOCALHOST
    return ()


def judged_addresses(
    decision: Decision, destination: Authority, addresses: tuple[str, ...]
) -> tuple[str, ...]:
    """The addresses of a destination that the gate sees: where a parent resolves the name, not those behind it."""
    if destination.host.address is None and decision.parent is None:
        return addresses
    return known_addresses(destination)


def vet_addresses(
    decision: Decision, addresses: tuple[str, ...], port: int
) -> tuple[Vetting, Reason | None]:
    """Pass the destination's addresses through the gate.

    Returns the vetting and the reason to refuse: None where an address may be dialled. A destination that is refused
    although ``vetting.passed`` holds addresses is an audit's would-be denial.
    """
    vetting = vet(addresses, port, decision.grant)
    if not vetting.passed or vetting.would_prohibit:
        return vetting, reasons.DESTINATION_IP_PROHIBITED
    return vetting, None
