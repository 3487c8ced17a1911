"""The networks that the proxy is among: internal ones, and those of translators from IPv6 to IPv4."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import Final

from egress_proxy.config.destinations import network
from egress_proxy.config.errors import Code, Report
from egress_proxy.config.yaml_source import Node, place_of
from egress_proxy.core.embedding import (
    NAT64_PREFIX_LENGTHS,
    WELL_KNOWN_NAT64,
    is_nat64_prefix,
)
from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.special_use import has_room_for_nat64, special_around

#: Prefix lengths below which nobody has a network: more than a registry ever gives to one.
_WIDE: Final = {4: 8, 6: 16}
_LENGTHS: Final = ", ".join(map(str, NAT64_PREFIX_LENGTHS))


def internal_network(node: Node, name: str, report: Report) -> IPNetwork | None:
    """Read a network of one's own. It may be public: that is why it has to be named."""
    found = network(node, name, report)
    if found is not None and found.prefixlen < _WIDE[found.version]:
        what = f"`{found}` makes much of the internet internal, so names that lead there need `allow_private`"
        instead = "write your own networks alone"
        report.warning(Code.WIDE_RULE, place_of(node, report), what, instead)
        return found
    special = None if found is None else special_around(found)
    # Documentation's networks stand for others.
    if special is not None and special.kind != "documentation":
        what = f"`{found}` need not be internal, for `{special.network}` is special anyway"
        report.warning(Code.WITHOUT_EFFECT, place_of(node, report), what, "remove it")
    return found


def nat64_prefix(node: Node, name: str, report: Report) -> IPv6Network | None:
    """Read a translator's prefix (RFC 6052 §2.2), taken from networks where such prefixes are."""
    found = network(node, name, report)
    if found is None:
        return None
    instead = "write the translator's prefix, such as 2001:db8:64::/96"
    if not isinstance(found, IPv6Network):
        what = f"`{found}` is not an IPv6 network"
    elif found == WELL_KNOWN_NAT64:
        what, instead = f"`{found}` is known as NAT64 anyway", "remove it"
    elif found.prefixlen not in NAT64_PREFIX_LENGTHS:
        what = f"`{found}` has a length that no prefix of NAT64 has"
        instead += f"; such have {_LENGTHS} bits"
    elif not is_nat64_prefix(found):
        what = f"`{found}` is no prefix of NAT64, for its bits 64 to 71 are not zero"
    elif (special := special_around(found)) and not has_room_for_nat64(special, found):
        what = f"`{found}` cannot be a prefix of NAT64, for `{special.network}` is special"
    else:
        return found
    report.error(Code.BAD_NETWORK, place_of(node, report), what, instead)
    return None
