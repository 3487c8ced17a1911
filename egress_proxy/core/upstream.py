"""Parent proxies: through which one a request goes, if any.

What their credentials are is no part of a decision: a parent names the file that holds them, and the configuration
keeps what it says.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from egress_proxy.core.names import Authority, Host
from egress_proxy.core.networks import IPNetwork


class Parent(msgspec.Struct, frozen=True):
    """A parent proxy."""

    authority: Authority
    credentials_file: str = ""
    """Where ``user:password`` stands; empty where it asks for none."""

    def __str__(self) -> str:
        """``host:port``, for people and the log."""
        return str(self.authority)


class Direct(Enum):
    """No parent proxy."""

    DIRECT = "direct"


DIRECT = Direct.DIRECT

#: What a rule can say about its destinations.
Route = Parent | Direct


def preference(route: Route) -> tuple[bool, str, str]:
    """Sorts what equally specific rules say, whatever their order: a parent before none, then by text."""
    if isinstance(route, Direct):
        return (True, "", "")
    return (False, str(route), route.credentials_file)


class Upstream(msgspec.Struct, frozen=True):
    """``upstream:`` of the whole configuration: the parent of every destination about which no rule says otherwise."""

    parent: Parent
    names: frozenset[str] = frozenset()
    """Hosts that are reached directly."""
    suffixes: tuple[str, ...] = ()
    """What the names of further such hosts end with: ``.example.com``; the empty text is every name."""
    networks: tuple[IPNetwork, ...] = ()
    """Networks that are reached directly, for destinations that are written as an address."""

    def parent_of(self, host: Host) -> Parent | None:
        """The parent for a host; None where it is reached directly."""
        address = host.address
        if address is None:
            direct = host.text in self.names or host.text.endswith(self.suffixes)
        else:
            direct = any(
                address.version == network.version and address in network
                for network in self.networks
            )
        return None if direct else self.parent

    def exception(self, host: Host) -> str | None:
        """The entry of ``no_proxy`` because of which a host is reached directly; None where none is."""
        address = host.address
        if address is not None:
            return next(
                (
                    str(network)
                    for network in self.networks
                    if address.version == network.version and address in network
                ),
                None,
            )
        if host.text in self.names:
            return host.text
        # The one that says most.
        ends = [suffix for suffix in self.suffixes if host.text.endswith(suffix)]
        return f"*{max(ends, key=len)}" if ends else None
