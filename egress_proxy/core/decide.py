"""The decision about one request: which rule lets it through, or why none does.

This is the one place where it is made; the server, ``explain`` and the admin API all ask here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from egress_proxy.core import reason as reasons
from egress_proxy.core.addresses import Grant, Vetting, vet
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import MAX_NAME_LENGTH, Authority, Host, IPAddress
from egress_proxy.core.networks import IPNetwork, lies_within
from egress_proxy.core.policy import (
    Action,
    CompiledPolicy,
    Entry,
    HostPattern,
    HostSet,
    Match,
    Mode,
    Rule,
)
from egress_proxy.core.reason import Reason
from egress_proxy.core.special_use import Surroundings, special_use
from egress_proxy.core.upstream import Direct, Parent, preference

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


def decide(policy: CompiledPolicy, identity: Identity, destination: Authority) -> Decision:
    """Decide about a destination for a client.

    Over all policies that apply to the client: deny beats ask, ask beats allow, and what nothing allows is denied.
    """
    memo: dict[tuple[frozenset[int], Authority], Decision] = policy.memo
    key = (policy.applicable(identity), destination)
    decision = memo.get(key)
    if decision is None:
        decision = _decide(policy, identity, destination)
        remember(policy, key, decision)
    return decision


def remember(policy: CompiledPolicy, key: object, value: object) -> None:
    """Keep what was worked out for as long as the policy lives, or until there is too much of it."""
    if len(policy.memo) >= _MEMO_SIZE:
        policy.memo.clear()
    policy.memo[key] = value


def _decide(policy: CompiledPolicy, identity: Identity, destination: Authority) -> Decision:
    audit = policy.mode is Mode.AUDIT
    port = destination.port
    address = destination.host.address
    allowing: Entry | None = None
    asking: Entry | None = None
    denying: Entry | None = None
    other_port: Entry | None = None
    lifted: tuple[IPNetwork, ...] = ()
    tls = True
    routing: list[Rule] = []
    for entry in policy.matches(identity, destination.host):
        rule = entry[1]
        if not rule.covers_port(port):
            if rule.action is not Action.DENY:
                other_port = other_port or entry
            continue
        if rule.action is Action.DENY:
            denying = entry
            break
        if rule.action is Action.ASK:
            asking = asking or entry
        else:
            allowing = allowing or entry
        lifted += _lifted_by(rule, address, policy.surroundings)
        tls = tls and rule.tls
        if rule.upstream is not None:
            routing.append(rule)
    denial: Reason | None = None
    deciding = allowing
    if denying is not None:
        # Whatever other rules came before it, so that no order of rules can matter, in audit mode either.
        denial, deciding, lifted, tls, routing = reasons.DENY_RULE, denying, (), True, []
    elif asking is not None:
        denial, deciding = reasons.APPROVAL_REQUIRED, asking
    elif allowing is None:
        deciding = other_port
        if other_port is not None:
            denial = reasons.PORT_NOT_ALLOWED
        elif address is not None:
            denial = reasons.ADDRESS_NOT_ALLOWED
        else:
            denial = reasons.HOST_NOT_ALLOWED
    match = None if deciding is None else Match(policy.policies[deciding[0]].name, deciding[1])
    closed = policy.closed_networks(identity, port)
    return Decision(
        denial is None or audit,
        denial,
        match,
        policy.grant(lifted, closed),
        tls,
        _parent(policy, destination.host, routing),
    )


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


def _parent(policy: CompiledPolicy, host: Host, routing: list[Rule]) -> Parent | None:
    """The parent proxy of a host, as the most specific of the rules says that say anything about it."""
    if not routing:
        return None if policy.upstream is None else policy.upstream.parent_of(host)
    ranks = [_specificity(rule, host) for rule in routing]
    routes = [
        rule.upstream
        for rule, rank in zip(routing, ranks, strict=True)
        if rule.upstream is not None and rank == max(ranks)
    ]
    route = min(routes, key=preference)
    return None if isinstance(route, Direct) else route


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
