"""Warnings about the networks that rules name, and about those that ``allow_private`` opens."""

from __future__ import annotations

from typing import Final

from egress_proxy.config.errors import Code, Report
from egress_proxy.core.networks import lies_within
from egress_proxy.core.policy import Action, HostPattern, HostSet, Rule
from egress_proxy.core.special_use import SPECIAL_USE, Surroundings, special_around

#: What a rule opens with each kind of special-use network. Documentation's are not here: nobody lives in them.
_OPENS: Final = {
    "unspecified": "this machine itself",
    "loopback": "this machine itself",
    "link_local": "the neighbours on this machine's link",
    "metadata": "a cloud's metadata service, which hands out credentials",
    "private": "a private network",
    "shared": "a network that carriers and clouds use inside",
    "benchmarking": "a network for benchmarks",
    "multicast": "multicast groups",
    "anycast": "whichever machine is nearest",
    "reserved": "reserved addresses",
    "transition": "addresses that lead to other addresses",
    "internal": "a network that `networks.internal` names",
}
#: Prefix lengths below which a network is much of the internet: more than a registry ever gives to one.
_WIDE: Final = {4: 8, 6: 16}

#: Those that the writer of a wider network may have meant to open with it.
_INNER: Final = tuple(
    row for row in SPECIAL_USE if row.kind in ("loopback", "link_local", "private", "shared")
)


def lint_network(rule: Rule, report: Report, surroundings: Surroundings) -> None:
    """Warn of a rule with `cidr` that names very much, or what is not the internet."""
    network = rule.target
    if isinstance(network, HostPattern | HostSet):
        return
    if rule.action is Action.DENY:
        # With conditions it denies some requests, and no tunnel.
        if network.prefixlen == 0 and rule.conditions is None:
            what = f"`{network}` denies every address, those behind allowed names too"
            instead = "remove it: what no rule allows is denied anyway"
            report.warning(Code.WIDE_RULE, rule.place, what, instead)
        return
    verb = "allows" if rule.action is Action.ALLOW else "asks a human about"
    instead = "write the networks that are needed"
    if network.prefixlen == 0:
        what = f"`{network}` {verb} every public address"
        report.warning(Code.WIDE_RULE, rule.place, what, instead)
        return
    around = special_around(network, surroundings)
    if around is not None:
        if around.kind in _OPENS:
            part = "" if around.network == network else f" ({around.network})"
            what = f"`{network}` opens {_OPENS[around.kind]}{part}"
            instead = "remove it"
            if not around.guarded:
                instead += ", unless clients must come there through the proxy"
            report.warning(Code.SPECIAL_NETWORK, rule.place, what, instead)
        return
    if network.prefixlen < _WIDE[network.version]:
        what = f"`{network}` {verb} one of {2**network.prefixlen} addresses that exist"
        report.warning(Code.WIDE_RULE, rule.place, what, instead)
        return
    for inner in (*(row.network for row in _INNER), *surroundings.internal):
        if inner.prefixlen > network.prefixlen and lies_within(inner, network):
            kind = "internal" if inner in surroundings.internal else "special"
            what = f"`{network}` does not open `{inner}`, which is {kind} and a part of it"
            instead = f"write a rule for `{inner}` if it is meant, or the part that is needed"
            report.warning(Code.SPECIAL_NETWORK, rule.place, what, instead)
            return


def lint_allow_private(rule: Rule, report: Report, surroundings: Surroundings) -> None:
    """Warn of an `allow_private` that opens everything, nothing, or what is worst to open."""
    for network in rule.allow_private:
        shown = f"`allow_private: {network}`"
        around = special_around(network, surroundings)
        if network.prefixlen == 0:
            instead = "write the networks that the host lives in"
            what = f"{shown} opens every private network"
            report.warning(Code.WIDE_RULE, rule.place, what, instead)
        elif around is not None and around.kind == "metadata":
            what = f"{shown} opens {_OPENS['metadata']}"
            report.warning(Code.SPECIAL_NETWORK, rule.place, what, "remove it")
        elif around is None:
            if any(map(network.overlaps, surroundings.nat64)) or any(
                lies_within(internal, network) for internal in surroundings.internal
            ):
                continue
            within = [row for row in SPECIAL_USE if lies_within(row.network, network)]
            if not within:
                what = f"{shown} changes nothing, for the network is public"
                report.warning(Code.WITHOUT_EFFECT, rule.place, what, "remove it")
            elif all(row.guarded for row in within):
                what = f"{shown} changes nothing: `{within[0].network}` is opened from within alone"
                instead = f"write {within[0].network}, or remove it"
                report.warning(Code.WITHOUT_EFFECT, rule.place, what, instead)
