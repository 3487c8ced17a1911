"""What to write so that a denial is lifted: the smallest rule, and the policy to put it in."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec

from egress_proxy.core import reasons
from egress_proxy.core.addresses import vet
from egress_proxy.core.conditions import Asked, Conditions, see
from egress_proxy.core.decide import Decision, decide
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority, plain_address
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.paths import PathPattern, Unclear, path_pattern
from egress_proxy.core.policy import (
    Action,
    CompiledPolicy,
    HostPattern,
    Place,
    Policy,
    Rule,
    Subject,
)
from egress_proxy.core.reason import Reason
from egress_proxy.core.special_use import Surroundings, special_around, special_use


def addition(
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    addresses: tuple[str, ...],
    decision: Decision,
    asked: Asked | None = None,
) -> tuple[str, str | None] | None:
    """The smallest policy that lifts the denial, and what to know about it; or None if no further rule can."""
    if decision.denial is reasons.DENY_RULE or decision.denial is reasons.APPROVAL_REQUIRED:
        return None
    if why_no_condition(decision, asked) is not None:
        return None
    if any(is_guarded(text, policy.surroundings) for text in addresses):
        # It can be opened, by who knows why: a name that leads here is more often an attack than a service.
        return None
    rule = smallest_rule(destination, addresses, decision, asked)
    if addresses and not opens(rule, policy, identity, destination, addresses, decision, asked):
        return None
    home = home_of(policy, identity, decision)
    if home is None:
        key, value = subject_for(identity)
        name = new_policy_name(key, value, {found.name for found in policy.policies})
        head = f"  - name: {yaml_text(name)}\n    subjects: [{{{key}: {yaml_text(value)}}}]"
    else:
        head = f"  - name: {yaml_text(home.name)}  # the policy at {home.place}"
    text = f"policies:\n{head}\n    allow:\n      - {yaml_rule(rule)}\n"
    notes = beside(decision, rule, asked, addresses_known=bool(addresses))
    return text, " ".join(notes) or None


def is_guarded(text: str, surroundings: Surroundings) -> bool:
    """Whether an address is one that no rule is suggested for: the machine's own, link-local, or metadata."""
    special = special_use(plain_address(ip_address(text)), surroundings)
    return special is not None and special.guarded


def opens(
    rule: Rule,
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    addresses: tuple[str, ...],
    decision: Decision,
    asked: Asked | None = None,
) -> bool:
    """Whether a rule, if it were added, would open an address. What deny rules close stays closed."""
    alone = CompiledPolicy(
        (Policy("", (rule,), None, rule.place),), surroundings=policy.surroundings
    )
    alone_decides = decide(alone, identity, destination, asked)
    grant = replace(alone_decides.grant, closed=decision.grant.closed)
    return bool(vet(addresses, destination.port, grant).passed)


#: Denials of a plain request that a rule with other conditions, or with the same ones on another port, lifts.
_BY_CONDITIONS: Final = (
    reasons.METHOD_NOT_ALLOWED,
    reasons.PATH_NOT_ALLOWED,
    reasons.PORT_NOT_ALLOWED,
)
#: Characters of a path that a configuration takes.
_MAX_PATH: Final = 2048


def why_no_condition(decision: Decision, asked: Asked | None) -> str | None:
    """Why no rule's ``methods`` and ``paths`` name what was asked, where they would have to; None where they do."""
    if decision.denial not in _BY_CONDITIONS or decision.match is None:
        return None
    seen, conditions = see(asked), decision.match.rule.conditions
    if seen is None or conditions is None:
        return None
    asks_here = (
        decision.denial is not reasons.PORT_NOT_ALLOWED and decision.match.rule.action is Action.ASK
    )
    if asks_here and conditions.fit(seen).may_be_meant:
        return "some servers would take it for what a rule asks a human about"
    if conditions.methods and seen.method != seen.folded_method:
        return "its method is not in upper case"
    if not conditions.paths:
        return None
    path = seen.path
    if isinstance(path, Unclear):
        return f"its path {path}"
    if path.endswith(b"/"):
        return "its path ends in a slash, which in `paths` stands for all that begins so"
    if b"*" in path:
        return "its path holds an asterisk, which in `paths` stands for any segment"
    return "its path is too long for `paths`" if len(path) > _MAX_PATH else None


def _conditions(decision: Decision, asked: Asked | None) -> Conditions | None:
    """What the smallest rule asks for: the same kinds of things as the rule that nearly let it through."""
    seen = see(asked)
    near = None if decision.match is None else decision.match.rule.conditions
    if seen is None or near is None:
        return None
    paths: tuple[PathPattern, ...] = ()
    if near.paths and decision.denial is None and seen.segments is not None:
        # Its address alone is in the way, so that one of the paths there is its own.
        segments = seen.segments
        paths = tuple(found for found in near.paths if found.matches(segments))[:1]
    elif near.paths and not isinstance(seen.path, Unclear):
        paths = (path_pattern(seen.path.decode("ascii")),)
    return Conditions((seen.method,) if near.methods else (), paths)


def smallest_rule(
    destination: Authority,
    addresses: tuple[str, ...],
    decision: Decision,
    asked: Asked | None = None,
    *,
    reachable: bool = False,
) -> Rule:
    """This host or address alone, on this port alone, with no private address but its own.

    Where its addresses are not known, it opens what the rule that nearly let it through opens, for the host lives
    there: not so where it is known to be ``reachable`` without, and never what is guarded.
    What was asked is one that :func:`why_no_condition` has nothing to say about.
    """
    port = destination.port
    place = Place("", 0, 0)
    conditions = _conditions(decision, asked)
    near = None if decision.match is None else decision.match.rule
    if destination.host.address is not None:
        network = ip_network(destination.host.address)
        return Rule(Action.ALLOW, network, place, ((port, port),), conditions=conditions)
    networks: tuple[IPNetwork, ...] = ()
    if not addresses:
        if near is not None and decision.parent is None and not reachable:
            networks = tuple(
                network
                for network in near.allow_private
                if not _guards(network, decision.grant.surroundings)
            )
    # One address that can be dialled is enough.
    elif not vet(addresses, port, replace(decision.grant, closed=None, audit=False)).passed:
        networks = tuple(ip_network(plain_address(ip_address(text))) for text in addresses)
    pattern = HostPattern(destination.host.text, wildcard=False)
    return Rule(Action.ALLOW, pattern, place, ((port, port),), networks, conditions=conditions)


def _guards(network: IPNetwork, surroundings: Surroundings) -> bool:
    """Whether a network lies within one of those that no rule is suggested for."""
    special = special_around(network, surroundings)
    return special is not None and special.guarded


def beside(
    decision: Decision, rule: Rule, asked: Asked | None = None, *, addresses_known: bool = False
) -> tuple[str, ...]:
    """All that a person must know about a suggested rule whose neighbour says more than it."""
    closed = None if addresses_known else still_closed(decision)
    return tuple(filter(None, (_wider(decision, rule, asked), closed)))


def _wider(decision: Decision, rule: Rule, asked: Asked | None) -> str | None:
    """What a rule lets through that its neighbour does not; None where that is no more than what was asked."""
    near = None if decision.match is None else decision.match.rule
    if near is None or near.conditions is None or rule.conditions is not None or asked is not None:
        return None
    return (
        f"No rule is for tunnels alone: the one to add lets plain HTTP requests of every method and path through "
        f"as well, to `{rule.target}` on port {rule.ports[0][0]}, where `{near}` at {near.place} names some."
    )


def still_closed(decision: Decision) -> str | None:
    """What its neighbour opens and no suggested rule does, for a host whose addresses are not known; None of no such.

    If the host lives there, the request is refused for its address until the rule opens that as well.
    """
    near = None if decision.match is None else decision.match.rule
    if near is None or decision.parent is not None:
        return None
    guarded = [each for each in near.allow_private if _guards(each, decision.grant.surroundings)]
    if not guarded:
        return None
    return (
        f"`{near}` at {near.place} opens {', '.join(map(str, guarded))}, which no suggestion does: add it to the "
        "`allow_private` of the rule where that is meant."
    )


def home_of(policy: CompiledPolicy, identity: Identity, decision: Decision) -> Policy | None:
    """The policy to add to: that of the rule which nearly allowed it, or else the one closest to the client."""
    applicable = [policy.policies[number] for number in sorted(policy.applicable(identity))]
    if decision.match is not None:
        return next(found for found in applicable if found.name == decision.match.policy)
    address = plain_address(ip_address(identity.client))

    def closeness(candidate: Policy) -> tuple[int, ...]:
        subjects = candidate.subjects or ()
        return max(
            (_closeness(found) for found in subjects if found.describes(identity, address)),
            default=(-1,),
        )

    return max(applicable, key=closeness, default=None)


def _closeness(subject: Subject) -> tuple[int, ...]:
    """How few clients a subject describes, as far as can be told from its form."""
    prefix = -1 if subject.network is None else subject.network.prefixlen
    named = (subject.user is not None, len(subject.pod_labels), subject.namespace is not None)
    return (*map(int, named), prefix)


def subject_for(identity: Identity) -> tuple[str, str]:
    """Key and value of the subject of a policy that is made for this client."""
    if identity.user is not None:
        return "user", identity.user
    if identity.namespace is not None:
        return "namespace", identity.namespace
    return "cidr", identity.client


_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")
_MAX_NAME: Final = 64


def new_policy_name(key: str, value: str, taken: set[str]) -> str:
    """A name for a policy of such a subject, that a policy may have and none has yet."""
    prefix = "client" if key == "cidr" else key
    name = base = _NOT_IN_A_NAME.sub("-", f"{prefix}-{value}")[:_MAX_NAME]
    number = 1
    while name in taken:
        number += 1
        suffix = f"-{number}"
        name = base[: _MAX_NAME - len(suffix)] + suffix
    return name


def yaml_rule(rule: Rule) -> str:
    """A rule for one host or network as configuration text, on one line."""
    key = "host" if isinstance(rule.target, HostPattern) else "cidr"
    fields = [f"{key}: {yaml_text(str(rule.target))}", f"ports: [{rule.ports[0][0]}]"]
    if rule.conditions is not None and rule.conditions.methods:
        fields.append(f"methods: [{', '.join(map(yaml_text, rule.conditions.methods))}]")
    if rule.conditions is not None and rule.conditions.paths:
        listed = ", ".join(yaml_text(pattern.text) for pattern in rule.conditions.paths)
        fields.append(f"paths: [{listed}]")
    if rule.allow_private:
        networks = ", ".join(yaml_text(str(network)) for network in rule.allow_private)
        fields.append(f"allow_private: [{networks}]")
    return "{" + ", ".join(fields) + "}"


_PLAIN: Final = re.compile(r"[a-z][a-z0-9_-]*(?:\.[a-z0-9_-]+)*")
_YAML_WORDS: Final = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))


def yaml_text(text: str) -> str:
    """The text as a YAML scalar that is read back as a text, whatever is in it."""
    if _PLAIN.fullmatch(text) and text not in _YAML_WORDS:
        return text
    # What JSON writes between double quotes, YAML reads between them (YAML 1.2 §1.3).
    return msgspec.json.encode(text).decode()


def hint(
    denial: Reason,
    decision: Decision,
    addresses: tuple[str, ...],
    asked: Asked | None = None,
) -> str:
    """What to do about a denial that no addition lifts."""
    if denial is reasons.PROXY_CREDENTIALS_REQUIRED:
        return "It depends on who asks: add `user=NAME` to the client."
    if denial is reasons.APPROVAL_REQUIRED and decision.match is not None:
        rule = decision.match.rule
        return (
            f"A human must approve it; no rule can be added, because ask beats allow. To let it through unasked, "
            f"move or narrow `{rule}` at {rule.place}."
        )
    if denial is reasons.DENY_RULE and decision.match is not None:
        rule = decision.match.rule
        return f"No rule can be added, because deny beats allow: remove or narrow `{rule}` at {rule.place}."
    why = why_no_condition(decision, asked)
    if why is not None:
        return f"No rule is suggested: {why}."
    if any(is_guarded(text, decision.grant.surroundings) for text in addresses):
        return (
            "No rule is suggested, because an address is the machine's own, link-local or a cloud's metadata service. "
            "Where that is meant, a rule that names exactly that address opens it."
        )
    return "No rule opens this address: a deny rule names its network, or it hides an IPv4 address."
