"""Why a request would be let through or refused, and what to write so that it is not.

The answer comes from :mod:`egress_proxy.core.decide`, as the server's does; this module only tells what it saw there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec

from egress_proxy.core import reason as reasons
from egress_proxy.core.addresses import Grant, IPNetwork, special_use, vet
from egress_proxy.core.decide import Decision, decide, vet_addresses
from egress_proxy.core.errors import HostError
from egress_proxy.core.names import (
    Authority,
    Host,
    canonical_host,
    host_of_address,
    parse_authority,
    plain_address,
)
from egress_proxy.core.policy import (
    Action,
    CompiledPolicy,
    HostPattern,
    Place,
    Policy,
    PortRanges,
    Rule,
)
from egress_proxy.core.reason import Event, Reason

#: Rules that an explanation shows beside the one that decided.
MAX_OTHERS: Final = 50


class OtherRule(msgspec.Struct, frozen=True):
    """A rule that names the host, or nearly does, and did not decide."""

    policy: str
    rule: str
    place: str
    why: str
    """Why it did not decide."""


class AddressAnswer(msgspec.Struct, frozen=True):
    """What the address gate says about one address of the destination."""

    address: str
    passes: bool
    why: str


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What would happen to a request. Places are ``file:line:column``."""

    outcome: Event
    """``ALLOWED``, ``DENIED`` or ``WOULD_DENY``, as the audit line would say."""
    client: str
    destination: str
    reason: str | None = None
    """The denial's row of :mod:`egress_proxy.core.reason`."""
    message: str | None = None
    policy: str | None = None
    rule: str | None = None
    """The rule that decided, if one did."""
    place: str | None = None
    others: tuple[OtherRule, ...] = ()
    addresses: tuple[AddressAnswer, ...] = ()
    add: str | None = None
    """For a denial, the smallest addition to the configuration that would lift it, as YAML."""
    hint: str | None = None
    """For a denial that no addition lifts, what to do instead."""


def parse_target(text: str) -> Authority:
    """Parse what a person calls a destination: ``host``, ``host:port`` or an http or https URL.

    Without a port it is 443, or 80 for http. Raises HostError, whose message does not quote the text.
    """
    default_port = 443
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme.lower() not in ("http", "https"):
            raise HostError("the URL is neither http nor https")
        default_port = 80 if scheme.lower() == "http" else 443
        text = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not text.isascii():
        # A client sends A-labels; a person need not know them.
        name, colon, port = text.partition(":")
        text = canonical_host(name).text + colon + port
        if not text.isascii():
            raise HostError("the port is not a decimal number from 1 to 65535")
    return parse_authority(text.encode("ascii"), default_port)


def parse_address(text: str) -> str:
    """The canonical text of a client's or a destination's IP address. Raises HostError."""
    try:
        return host_of_address(ip_address(text)).text
    except ValueError:
        raise HostError("this is not an IP address") from None


def explain(
    policy: CompiledPolicy, client: str, destination: Authority, addresses: tuple[str, ...] = ()
) -> Explanation:
    """Explain the decision about a destination for a client's IP address.

    ``addresses`` are those that the destination's name resolves to, where they are known; an address as destination is
    its own. Client and addresses are as :func:`parse_address` gives them.
    """
    decision = decide(policy, client, destination)
    if destination.host.address is not None:
        addresses = (destination.host.text,)
    denial = decision.denial
    outcome = (
        Event.ALLOWED if denial is None else Event.WOULD_DENY if decision.allowed else Event.DENIED
    )
    if addresses:
        vetting, prohibition = vet_addresses(decision, addresses, destination.port)
        denial = denial or prohibition
        if not vetting.passed:
            outcome = Event.DENIED
        elif prohibition is not None and outcome is Event.ALLOWED:
            outcome = Event.WOULD_DENY
    match = decision.match
    add = None
    if denial is not None:
        add = _addition(policy, client, destination, addresses, decision)
    return Explanation(
        outcome=outcome,
        client=client,
        destination=str(destination),
        reason=None if denial is None else denial.name,
        message=None if denial is None else denial.message,
        policy=None if match is None else match.policy,
        rule=None if match is None else str(match.rule),
        place=None if match is None else str(match.rule.place),
        others=tuple(_others(policy, client, destination, decision)),
        addresses=tuple(_judge(policy, client, destination, text, decision) for text in addresses),
        add=add,
        hint=None if denial is None or add is not None else _hint(denial, decision, addresses),
    )


# Other rules ------------------------------------------------------------------------------------------------------


def _others(
    policy: CompiledPolicy, client: str, destination: Authority, decision: Decision
) -> Iterator[OtherRule]:
    found = _named_by_others(policy, client, destination, decision)
    for _, (rule, name, why) in zip(range(MAX_OTHERS), found, strict=False):
        yield OtherRule(name, str(rule), str(rule.place), why)


def _named_by_others(
    policy: CompiledPolicy, client: str, destination: Authority, decision: Decision
) -> Iterator[tuple[Rule, str, str]]:
    decided = None if decision.match is None else decision.match.rule
    applicable = policy.applicable(client)
    for number, rule in policy.naming(destination.host):
        if rule is decided:
            continue
        name = policy.policies[number].name
        if number not in applicable:
            why = f"its policy is not for the client {client}"
        elif not rule.covers_port(destination.port):
            why = f"it is for port {ports_text(rule.ports)}"
        elif decided is not None and decided.action is Action.DENY:
            why = "deny beats allow" if rule.action is Action.ALLOW else "it denies as well"
        else:
            why = "it allows as well"
        yield rule, name, why
    if decision.denial is reasons.HOST_NOT_ALLOWED:
        yield from _near_misses(policy, destination.host)


def _near_misses(policy: CompiledPolicy, host: Host) -> Iterator[tuple[Rule, str, str]]:
    """Allow rules of a neighbouring name, which people expect to cover this one."""
    for number, rule in policy.naming(Host(f"x.{host.text}")):
        if rule.action is Action.ALLOW and rule.target == HostPattern(host.text, wildcard=True):
            yield (
                rule,
                policy.policies[number].name,
                f"it covers the names below {host}, not {host} itself",
            )
    parent = host.text.partition(".")[2]
    while parent:
        for number, rule in policy.naming(Host(parent)):
            if rule.action is Action.ALLOW and rule.target == HostPattern(parent, wildcard=False):
                yield (
                    rule,
                    policy.policies[number].name,
                    f"it covers {parent} alone, not the names below",
                )
        parent = parent.partition(".")[2]


def ports_text(ports: PortRanges) -> str:
    """Ports as people write them: ``80, 443, 8000-8010``."""
    if ports == ((1, 65535),):
        return "any"
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ports)


# Addresses --------------------------------------------------------------------------------------------------------


def _judge(
    policy: CompiledPolicy, client: str, destination: Authority, text: str, decision: Decision
) -> AddressAnswer:
    vetting = vet((text,), destination.port, decision.grant)
    passes = bool(vetting.passed) and not vetting.would_prohibit
    address = plain_address(ip_address(text))
    special = special_use(address)
    kind = "public" if special is None else f"{special.kind} ({special.network})"
    if passes:
        return AddressAnswer(
            text, passes, kind if special is None else f"{kind}, opened by the rule"
        )
    if vet((text,), destination.port, Grant(decision.grant.allow)).passed:
        # What remains is that a deny rule names its network.
        for number, rule in policy.matches(client, host_of_address(address)):
            if rule.action is Action.DENY and rule.covers_port(destination.port):
                name = policy.policies[number].name
                return AddressAnswer(text, passes, f"closed by `{rule}` of {name} ({rule.place})")
        return AddressAnswer(text, passes, "closed by a deny rule for a network")
    return AddressAnswer(text, passes, kind)


# What to write ----------------------------------------------------------------------------------------------------


def _addition(
    policy: CompiledPolicy,
    client: str,
    destination: Authority,
    addresses: tuple[str, ...],
    decision: Decision,
) -> str | None:
    """The smallest policy that lifts the denial, or None if no further rule can."""
    if decision.denial is reasons.DENY_RULE:
        return None
    if any(_is_guarded(text) for text in addresses):
        # It can be opened, by who knows why: a name that leads here is more often an attack than a service.
        return None
    rule = _smallest_rule(destination, addresses, decision)
    # Tried before it is advised. What deny rules close stays closed.
    trial = decide(CompiledPolicy((Policy("", (rule,), None, rule.place),)), client, destination)
    grant = Grant(trial.grant.allow, decision.grant.deny)
    if addresses and not vet(addresses, destination.port, grant).passed:
        return None
    home = _home(policy, client, decision)
    if home is None:
        name = _yaml_text("client-" + client.replace(":", "-"))
        head = f"  - name: {name}\n    subjects: [{{cidr: {_yaml_text(client)}}}]"
    else:
        head = f"  - name: {_yaml_text(home.name)}  # the policy at {home.place}"
    return f"policies:\n{head}\n    allow:\n      - {_yaml_rule(rule)}\n"


def _is_guarded(text: str) -> bool:
    special = special_use(plain_address(ip_address(text)))
    return special is not None and special.guarded


def _smallest_rule(destination: Authority, addresses: tuple[str, ...], decision: Decision) -> Rule:
    """This host or address alone, on this port alone, with no private address but its own."""
    port = destination.port
    place = Place("", 0, 0)
    if destination.host.address is not None:
        network = ip_network(destination.host.address)
        return Rule(Action.ALLOW, network, place, ((port, port),))
    networks: tuple[IPNetwork, ...] = ()
    # One address that can be dialled is enough.
    if not vet(addresses, port, Grant(decision.grant.allow)).passed:
        networks = tuple(ip_network(plain_address(ip_address(text))) for text in addresses)
    pattern = HostPattern(destination.host.text, wildcard=False)
    return Rule(Action.ALLOW, pattern, place, ((port, port),), networks)


def _home(policy: CompiledPolicy, client: str, decision: Decision) -> Policy | None:
    """The policy to add to: that of the rule which nearly allowed it, or else the one closest to the client."""
    applicable = [policy.policies[number] for number in sorted(policy.applicable(client))]
    if decision.match is not None:
        return next(found for found in applicable if found.name == decision.match.policy)
    address = ip_address(client)

    def closeness(candidate: Policy) -> int:
        holding = [
            network.prefixlen
            for network in candidate.subjects or ()
            if network.version == address.version and address in network
        ]
        return max(holding, default=-1)

    return max(applicable, key=closeness, default=None)


def _yaml_rule(rule: Rule) -> str:
    key = "host" if isinstance(rule.target, HostPattern) else "cidr"
    fields = [f"{key}: {_yaml_text(str(rule.target))}", f"ports: [{rule.ports[0][0]}]"]
    if rule.allow_private:
        networks = ", ".join(_yaml_text(str(network)) for network in rule.allow_private)
        fields.append(f"allow_private: [{networks}]")
    return "{" + ", ".join(fields) + "}"


_PLAIN: Final = re.compile(r"[a-z][a-z0-9_-]*(?:\.[a-z0-9_-]+)*")
_YAML_WORDS: Final = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))


def _yaml_text(text: str) -> str:
    """The text as a YAML scalar that is read back as a text."""
    return text if _PLAIN.fullmatch(text) and text not in _YAML_WORDS else f'"{text}"'


def _hint(denial: Reason, decision: Decision, addresses: tuple[str, ...]) -> str:
    if denial is reasons.DENY_RULE and decision.match is not None:
        rule = decision.match.rule
        return f"No rule can be added, because deny beats allow: remove or narrow `{rule}` at {rule.place}."
    if any(_is_guarded(text) for text in addresses):
        return (
            "No rule is suggested, because an address is the machine's own, link-local or a cloud's metadata service. "
            "Where that is meant, a rule that names exactly that address opens it."
        )
    return "No rule opens this address: a deny rule names its network, or it hides an IPv4 address."
