"""Why a request would be let through or refused, and what to write so that it is not.

The answer comes from :mod:`egress_proxy.core.decide`, as the server's does; this module only tells what it saw there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

import msgspec

from egress_proxy.core import reasons
from egress_proxy.core.addresses import vet
from egress_proxy.core.advice import addition, hint
from egress_proxy.core.challenge import Asks, challenge
from egress_proxy.core.conditions import Asked, Conditions, Fit, Seen, see
from egress_proxy.core.decide import Decision, decide, judged_addresses, vet_addresses
from egress_proxy.core.demands import Needs, Terms, needs
from egress_proxy.core.errors import HostError
from egress_proxy.core.identity import Identity
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
    HostSet,
    Mode,
    PortRanges,
    Rule,
    parents,
)
from egress_proxy.core.reason import Event
from egress_proxy.core.special_use import special_use
from egress_proxy.core.upstream import DIRECT

NO_TERMS: Final = Terms()
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
    """Who asks, as :class:`Identity` spells it."""
    destination: str
    method: str | None = None
    path: str | None = None
    """Of a plain HTTP request, as the origin gets it, without its query. Both are None for a tunnel."""
    reason: str | None = None
    """The denial's row of :mod:`egress_proxy.core.reason`."""
    message: str | None = None
    policy: str | None = None
    rule: str | None = None
    """The rule that decided, if one did."""
    place: str | None = None
    conditions: str | None = None
    """The methods and paths that the rule is for, if it names any."""
    set_entry: str | None = None
    """Where the rule names a set: the host pattern of the set that matched, and its place."""
    tls: bool = True
    """Whether a tunnel must be TLS to the host that was asked for."""
    parent: str | None = None
    """The parent proxy that it goes through, as ``host:port``. That one resolves the name."""
    route: str | None = None
    """Why it goes through that one, or directly; None where the configuration says nothing about it."""
    addresses_ignored: bool = False
    """Whether addresses were given, or asked for, that are not judged here because a parent proxy resolves the name."""
    needs: Needs | None = None
    """Of a request that goes on: the contract headers that it needs, and the limits that it is charged to."""
    others: tuple[OtherRule, ...] = ()
    addresses: tuple[AddressAnswer, ...] = ()
    dns: str | None = None
    """Where the name was looked up in vain: why, as a row of :mod:`egress_proxy.core.reason`."""
    add: str | None = None
    """For a denial, the smallest addition to the configuration that would lift it, as YAML."""
    hint: str | None = None
    """For a denial that no addition lifts, what to do instead; for another, what to know about the addition."""


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
    elif re.search(r"[/?#]", text):
        raise HostError("a path needs http:// or https:// before the host")
    if "@" in text:
        raise HostError("user information (`user:password@`) is no part of it: leave it out")
    if text.startswith("*"):
        raise HostError("a pattern stands for many hosts: name one of them")
    if not text.isascii():
        # A client sends A-labels; a person need not know them.
        name, colon, port = text.partition(":")
        text = canonical_host(name).text + colon + port
        if not text.isascii():
            raise HostError("the port is not a decimal number from 1 to 65535")
    return parse_authority(text.encode("ascii"), default_port)


_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
_NOT_IN_A_URL: Final = re.compile(r"[\x00-\x20\x7f]")


def parse_question(text: str, method: str | None = None) -> tuple[Authority, Asked | None]:
    """Parse what a person calls a request: a destination as :func:`parse_target` takes it, and perhaps a method.

    An ``http://`` URL is a plain request, by default a GET; all else is a tunnel. Raises HostError, whose message
    quotes neither.
    """
    destination = parse_target(text)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() != "http":
        if method not in (None, "CONNECT"):
            raise HostError("a method needs an http:// URL; what is asked in a tunnel nobody sees")
        return destination, None
    method = method or "GET"
    if not _METHOD.fullmatch(method):
        raise HostError("this is not a method")
    if method == "CONNECT":
        raise HostError("CONNECT has no URL: leave out http:// and the path")
    found = re.search(r"[/?]", rest.partition("#")[0])
    path = rest.partition("#")[0][found.start() :] if found else ""
    if _NOT_IN_A_URL.search(path):
        raise HostError("the URL holds a space or a control character")
    # As a client sends it: letters beyond ASCII are encoded.
    encoded = "".join(
        each if each.isascii() else "".join(f"%{byte:02X}" for byte in each.encode())
        for each in path
    )
    if not encoded.startswith("/"):
        encoded = "*" if method == "OPTIONS" and not encoded else f"/{encoded}"
    return destination, Asked(method, encoded.encode("ascii"))


def parse_address(text: str) -> str:
    """The canonical text of a client's or a destination's IP address. Raises HostError."""
    try:
        return host_of_address(ip_address(text)).text
    except ValueError:
        raise HostError("this is not an IP address") from None


def explain(
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    addresses: tuple[str, ...] = (),
    asks: Asks = Asks.NOBODY,
    asked: Asked | None = None,
    terms: Terms = NO_TERMS,
) -> Explanation:
    """Explain the decision about a request of a client, which is ``asked``; None is a tunnel.

    ``terms`` are what the configuration asks of it besides; ``asks`` says whom it asks for credentials. ``addresses``
    are those that the destination's name resolves to, where they are known; an address as destination is its own.
    The client's address and these are as :func:`parse_address` gives them.
    """
    decision = decide(policy, identity, destination, asked)
    given = addresses
    addresses = judged_addresses(decision, destination, addresses)
    challenged = challenge(asks, policy, identity, destination, decision, asked)
    denial = challenged or decision.denial
    outcome = (
        Event.ALLOWED
        if denial is None
        else Event.WOULD_DENY
        if policy.mode is Mode.AUDIT
        else Event.DENIED
    )
    if addresses:
        vetting, prohibition = vet_addresses(decision, addresses, destination.port)
        # In audit mode the rules alone refuse nothing, so it is the gate's refusal that counts.
        refused_by_gate = policy.mode is Mode.AUDIT and not vetting.passed
        denial = prohibition if refused_by_gate else denial or prohibition
        if not vetting.passed:
            outcome = Event.DENIED
        elif prohibition is not None and outcome is Event.ALLOWED:
            outcome = Event.WOULD_DENY
    match = decision.match
    add = advice = None
    if denial is not None:
        if challenged is None:
            found = addition(policy, identity, destination, addresses, decision, asked)
            add, advice = found or (None, None)
        if add is None:
            advice = hint(denial, decision, addresses, asked)
    message = None if denial is None else denial.message
    if message is not None and decision.detail is not None and denial is decision.denial:
        message = f"{message[:-1]}: {decision.detail}."
    sent = None if asked is None else (decision.path or asked.path).partition(b"?")[0]
    return Explanation(
        outcome=outcome,
        client=str(identity),
        destination=str(destination),
        method=None if asked is None else asked.method,
        path=None if sent is None else sent.decode("ascii"),
        reason=None if denial is None else denial.name,
        message=message,
        policy=None if match is None else match.policy,
        rule=None if match is None else str(match.rule),
        place=None if match is None else str(match.rule.place),
        conditions=None if match is None else conditions_text(match.rule.conditions),
        set_entry=None if match is None else _set_entry(match.rule, destination.host),
        tls=decision.tls,
        parent=None if decision.parent is None else str(decision.parent),
        route=_route(policy, destination.host, decision),
        needs=None if outcome is Event.DENIED else needs(decision, identity, terms, asked),
        addresses_ignored=decision.parent is not None and not {*given} <= {*addresses},
        others=tuple(_others(policy, identity, destination, decision, see(asked))),
        addresses=tuple(
            _judge(policy, identity, destination, text, decision, see(asked)) for text in addresses
        ),
        add=add,
        hint=advice,
    )


def _route(policy: CompiledPolicy, host: Host, decision: Decision) -> str | None:
    """Why a host is reached as it is."""
    rule = decision.routed_by
    if rule is not None:
        says = "`upstream: direct`" if rule.upstream is DIRECT else "`upstream`"
        return f"{says} of `{rule}` at {rule.place}"
    if policy.upstream is None:
        return None
    if decision.parent is not None:
        return "`upstream` of the configuration"
    return f"the entry `{policy.upstream.exception(host)}` of `no_proxy`"


# Other rules ------------------------------------------------------------------------------------------------------


def _others(
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    decision: Decision,
    seen: Seen | None,
) -> Iterator[OtherRule]:
    found = _named_by_others(policy, identity, destination, decision, seen)
    for _, (rule, name, why) in zip(range(MAX_OTHERS), found, strict=False):
        yield OtherRule(name, str(rule), str(rule.place), why)


def _named_by_others(
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    decision: Decision,
    seen: Seen | None,
) -> Iterator[tuple[Rule, str, str]]:
    decided = None if decision.match is None else decision.match.rule
    applicable = policy.applicable(identity)
    for number, rule in policy.naming(destination.host):
        if rule is decided:
            continue
        name = policy.policies[number].name
        if number not in applicable:
            why = f"its policy is not for the client {identity}"
        elif not rule.covers_port(destination.port):
            why = f"it is for port {ports_text(rule.ports)}"
        elif (other := _other_request(rule, seen)) is not None:
            why = other
        elif decided is None or decided.action is rule.action:
            why = _AS_WELL[rule.action]
        else:
            why = f"{decided.action.value} beats {rule.action.value}"
        yield rule, name, why
    if decision.denial is reasons.HOST_NOT_ALLOWED:
        yield from _near_misses(policy, destination.host)


def _other_request(rule: Rule, seen: Seen | None) -> str | None:
    """Why a rule for this host and port is not for this request; None where it is."""
    conditions = rule.conditions
    if conditions is None or (rule.action is Action.DENY and rule.denies(seen)):
        return None
    fit = conditions.fit(seen)
    if fit is Fit.FITS:
        return None
    if fit is Fit.TUNNEL:
        return "it is for plain HTTP requests, not for tunnels"
    if fit in {Fit.OTHER_METHOD, Fit.NEAR_METHOD}:
        return f"it is for {_methods(conditions)}"
    return f"it is for {_paths(conditions)}"


def conditions_text(conditions: Conditions | None) -> str | None:
    """What a rule asks of a request, for people: ``GET, HEAD; /v1/, /static/``; None where it asks nothing."""
    if conditions is None:
        return None
    return "; ".join(filter(None, (_methods(conditions), _paths(conditions))))


def _methods(conditions: Conditions) -> str:
    return ", ".join(conditions.methods)


def _paths(conditions: Conditions) -> str:
    return ", ".join(pattern.text for pattern in conditions.paths)


_AS_WELL: Final = {
    Action.ALLOW: "it allows as well",
    Action.ASK: "it asks as well",
    Action.DENY: "it denies as well",
}


def _set_entry(rule: Rule, host: Host) -> str | None:
    """The pattern by which a rule's set names the host."""
    if not isinstance(rule.target, HostSet):
        return None
    return next((f"{text} at {place}" for text, place in rule.target.naming(host)), None)


def _near_misses(policy: CompiledPolicy, host: Host) -> Iterator[tuple[Rule, str, str]]:
    """Allow rules of a neighbouring name, which people expect to cover this one."""
    for number, rule in policy.naming(Host(f"x.{host.text}")):
        if rule.action is Action.ALLOW and _has_pattern(rule, f"*.{host.text}"):
            yield (
                rule,
                policy.policies[number].name,
                f"it covers the names below {host}, not {host} itself",
            )
    for parent in parents(host.text):
        for number, rule in policy.naming(Host(parent)):
            if rule.action is Action.ALLOW and _has_pattern(rule, parent):
                yield (
                    rule,
                    policy.policies[number].name,
                    f"it covers {parent} alone, not the names below",
                )


def _has_pattern(rule: Rule, pattern: str) -> bool:
    target = rule.target
    return pattern in target.patterns if isinstance(target, HostSet) else str(target) == pattern


def ports_text(ports: PortRanges) -> str:
    """Ports as people write them: ``80, 443, 8000-8010``."""
    if ports == ((1, 65535),):
        return "any"
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ports)


# Addresses --------------------------------------------------------------------------------------------------------


def _judge(
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    text: str,
    decision: Decision,
    seen: Seen | None,
) -> AddressAnswer:
    vetting = vet((text,), destination.port, decision.grant)
    passes = bool(vetting.passed) and not vetting.would_prohibit
    address = plain_address(ip_address(text))
    special = special_use(address, decision.grant.surroundings)
    kind = "public" if special is None else f"{special.kind} ({special.network})"
    if passes:
        return AddressAnswer(
            text, passes, kind if special is None else f"{kind}, opened by the rule"
        )
    if vet((text,), destination.port, replace(decision.grant, closed=None, audit=False)).passed:
        # What remains is that a deny rule names its network.
        for number, rule in policy.matches(identity, host_of_address(address)):
            names_it = rule.action is Action.DENY and rule.covers_port(destination.port)
            if names_it and rule.denies(seen):
                name = policy.policies[number].name
                return AddressAnswer(text, passes, f"closed by `{rule}` of {name} ({rule.place})")
        return AddressAnswer(text, passes, "closed by a deny rule for a network")
    return AddressAnswer(text, passes, kind)
