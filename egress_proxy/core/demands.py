"""What a request needs besides rules that let it through: its contract headers, and room within limits.

What the counters of the limits say is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from egress_proxy.core.conditions import Asked
from egress_proxy.core.contract import EXEMPT, ContractHeaders, strictest
from egress_proxy.core.decide import Decision
from egress_proxy.core.identity import Identity
from egress_proxy.core.limits import Limits
from egress_proxy.core.policy import Policy
from egress_proxy.core.tenant import tenant_of


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration says about this, beside its policies."""

    contract_headers: ContractHeaders = ContractHeaders.OFF
    tenants: Mapping[str, str] = field(default_factory=dict)
    """Of users."""


class Charged(msgspec.Struct, frozen=True):
    """A policy whose limits hold for a request."""

    policy: str
    tenant: str
    """Whom the request counts towards."""
    tenant_by_header: bool
    """Whether its ``X-Tenant-ID`` names another tenant, where it has one."""
    limits: dict[str, int | float | str]
    """As the configuration says them."""


class Needs(msgspec.Struct, frozen=True):
    """What may refuse a request that the rules let through."""

    contract_headers: ContractHeaders
    """What becomes of it without the headers."""
    headers: tuple[str, ...]
    """Those that it must carry, or is asked to."""
    charged: tuple[Charged, ...]


#: In the order in which they are looked for.
HEADERS: Final = ("Idempotency-Key", "X-Tenant-ID")


def needs(
    decision: Decision, identity: Identity, terms: Terms, asked: Asked | None
) -> Needs | None:
    """What a request needs that goes on by this decision; None where it needs nothing. A tunnel's ``asked`` is None."""
    wanted = ContractHeaders.OFF
    if asked is not None and asked.method not in EXEMPT:
        wanted = strictest(terms.contract_headers, decision.allowed_by)
    headers = () if wanted is ContractHeaders.OFF else HEADERS
    charged = tuple(
        _charged(policy, policy.limits, identity, terms, tunnel=asked is None)
        for policy in decision.allowed_by
        if policy.limits is not None
    )
    return Needs(wanted, headers, charged) if headers or charged else None


def _charged(
    policy: Policy, limits: Limits, identity: Identity, terms: Terms, *, tunnel: bool
) -> Charged:
    # With two different headers, the same tenant comes out unless the header has a say.
    named = {tenant_of(policy, identity, header, terms.tenants) for header in (b"a", b"b")}
    return Charged(
        policy.name,
        tenant_of(policy, identity, None, terms.tenants),
        len(named) > 1,
        dict(_said(limits, tunnel=tunnel)),
    )


_BYTES: Final = {
    "bytes_up_per_day": "bytes_per_day.up",
    "bytes_down_per_day": "bytes_per_day.down",
    "bytes_per_day": "bytes_per_day",
}


def _said(limits: Limits, *, tunnel: bool) -> Iterator[tuple[str, int | float | str]]:
    """The limits that hold for a tunnel or for a plain request, by their keys in the configuration."""
    if limits.requests_per_second is not None:
        yield "requests_per_second", limits.requests_per_second
        yield "burst", limits.burst_or_default
    if limits.tunnels is not None and tunnel:
        yield "tunnels", limits.tunnels
    if limits.requests_per_day is not None:
        yield "requests_per_day", limits.requests_per_day
    for attribute, key in _BYTES.items():
        size = getattr(limits, attribute)
        if size is not None:
            yield key, size
    if limits.has_window:
        yield "time_zone", limits.time_zone
    for key in ("bandwidth", "tunnel_bandwidth", "new_hosts_per_hour"):
        if (value := getattr(limits, key)) is not None:
            yield key, value


# For people -------------------------------------------------------------------------------------------------------

_WORDS: Final = {"Idempotency-Key": "Idempotency-Key (a UUID of version 4)"}
_SIZES: Final = (*_BYTES.values(), "bandwidth", "tunnel_bandwidth")


def as_lines(found: Needs) -> Iterator[str]:
    """What is needed, a line each."""
    if found.headers:
        listed = " and ".join(_WORDS.get(name, name) for name in found.headers)
        enforced = found.contract_headers is ContractHeaders.ENFORCE
        verb, told = ("needs:  ", "") if enforced else ("wants:  ", ", and is logged without them")
        yield f"{verb} {listed}{told}, by `contract_headers: {found.contract_headers}`"
    for each in found.charged:
        tenant = each.tenant
        if each.tenant_by_header:
            tenant = f"that X-Tenant-ID names, else {tenant}"
        listed = ", ".join(_shown(key, value) for key, value in each.limits.items())
        yield f"charged: to the tenant {tenant}, by policy {each.policy}: {listed}"


def _shown(key: str, value: float | str) -> str:
    if key in _SIZES:
        return f"{key} {size_text(int(value))}"
    if isinstance(value, str):
        return f"{key} {value}"
    return f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:g}"


def size_text(size: int) -> str:
    """Bytes as the configuration writes them: ``10GiB``, in the largest unit that holds them whole."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size and size % 1024 == 0 and len(units) > 1:
        size //= 1024
        units.pop(0)
    return f"{size}{units[0]}"
