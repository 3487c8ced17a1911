"""The decision about one request: which rule lets it through, or why none does.

This is the one place where it is made; the server, ``explain`` and the admin API all ask here.
"""

from __future__ import annotations

from dataclasses import dataclass

from egress_proxy.core import reason as reasons
from egress_proxy.core.addresses import (
    PUBLIC_ONLY,
    Grant,
    Vetting,
    special_use,
    vet,
)
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority, IPAddress
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
        lifted += _lifted_by(rule, address)
        tls = tls and rule.tls
    denial: Reason | None = None
    deciding = allowing
    if denying is not None:
        # Whatever other rules came before it, so that no order of rules can matter, in audit mode either.
        denial, deciding, lifted, tls = reasons.DENY_RULE, denying, (), True
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
    grant = Grant(lifted, closed, audit) if lifted or closed or audit else PUBLIC_ONLY
    return Decision(denial is None or audit, denial, match, grant, tls)


def _lifted_by(rule: Rule, address: IPAddress | None) -> tuple[IPNetwork, ...]:
    """The networks that a rule opens although they are special-use.

    A cidr rule opens the special-use network that it lies in, and nothing else: `0.0.0.0/0` means the internet.
    """
    if isinstance(rule.target, HostPattern | HostSet):
        return rule.allow_private
    special = None if address is None else special_use(address)
    return (
        (rule.target,) if special is not None and lies_within(rule.target, special.network) else ()
    )


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
