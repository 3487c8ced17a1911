"""Destinations of rules as a configuration writes them, for tests that make rules without one."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Final

from egress_proxy.core.networks import IPNetwork
from egress_proxy.core.policy import HostPattern, Place

#: Where a rule stands, if it does not matter.
HERE: Final = Place("policy.yaml", 1, 1)


def host_pattern(text: str) -> HostPattern:
    """``example.com``, ``*.example.com`` or ``*``."""
    return HostPattern(text.removeprefix("*").removeprefix("."), text.startswith("*"))


def target_of(text: str) -> HostPattern | IPNetwork:
    """The same, or a network."""
    return ip_network(text) if "/" in text else host_pattern(text)
