"""Wildcards that could stand for many hosts of one domain. They are only ever proposed: more than was asked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from egress_proxy.config.lint.suffixes import Suffixes
from egress_proxy.core.policy import parents

#: Hosts below one domain from which on a wildcard is proposed.
ENOUGH: Final = 5


def common_domains(hosts: Collection[str], suffixes: Suffixes) -> dict[str, int]:
    """Domains that hold many of the hosts, with how many: the nearest one, and never one in which anyone has names."""
    if len(hosts) < ENOUGH:
        return {}
    below: dict[str, list[str]] = {}
    for host in hosts:
        domain = _own_domain(host, suffixes)
        if domain is not None:
            below.setdefault(domain, []).append(host)
    found: dict[str, int] = {}
    for domain, names in sorted(below.items()):
        if len(names) >= ENOUGH:
            found[_nearest(domain, names)] = len(names)
    return found


def _own_domain(host: str, suffixes: Suffixes) -> str | None:
    """The widest domain above a host that is one owner's alone."""
    for parent in reversed(list(parents(host))):
        if not suffixes.is_public(parent) and suffixes.shared(parent) is None:
            return parent
    return None


def _nearest(domain: str, names: list[str]) -> str:
    """The longest name that all the names are below of."""
    for parent in parents(names[0]):
        if parent == domain or all(name.endswith(f".{parent}") for name in names):
            return parent
    return domain
