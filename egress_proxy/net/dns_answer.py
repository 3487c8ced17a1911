"""What the records of an answer say: only those at the end of the question's chain of aliases count.

Nothing here asks or waits. The records are pycares' own, plain values that a test can write down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import pycares

from egress_proxy.core import reasons
from egress_proxy.core.errors import HostError
from egress_proxy.core.names import canonical_host
from egress_proxy.core.reason import Reason
from egress_proxy.core.tls import ech_config_ids

A: Final = pycares.QUERY_TYPE_A
AAAA: Final = pycares.QUERY_TYPE_AAAA
HTTPS: Final = pycares.QUERY_TYPE_HTTPS

#: Aliases that one answer may lead through. Real names have one to four; name servers give up at about this number.
MAX_CHAIN: Final = 16
#: Addresses of each family that are kept. The dialler tries fewer.
MAX_ADDRESSES: Final = 64

_ECH_PARAMETER: Final = 5  # RFC 9848 §3


class Found(msgspec.Struct, frozen=True):
    """Addresses of one family."""

    addresses: tuple[str, ...]
    ttl: int
    """Seconds; the smallest of the chain and the addresses."""
    cname: str | None
    """The name at the end of the chain, if there was one, in canonical form."""


class Missing(msgspec.Struct, frozen=True):
    """Nothing of what was asked for, and why."""

    reason: Reason
    seconds: int | None = None
    """How long the zone lets this be believed (RFC 2308 §5); None if it does not say."""


class Service(msgspec.Struct, frozen=True):
    """What the HTTPS records of one name say (RFC 9460)."""

    config_ids: frozenset[int]
    aliases: tuple[str, ...]
    """Names whose HTTPS records count instead."""
    ttl: int


def addresses_in(name: str, kind: int, answer: Sequence[pycares.DNSRecord]) -> Found | Missing:
    """The addresses of a kind (A or AAAA) that an answer gives for a canonical name."""
    chain = _follow(name, answer)
    if isinstance(chain, Reason):
        return Missing(chain)
    end, ttl = chain
    addresses: dict[str, None] = {}
    for record in _of_internet(answer):
        if record.type == kind and _owner(record) == end:
            addresses[record.data.addr] = None  # type: ignore[union-attr]  # of these types
            ttl = min(ttl, seconds(record.ttl))
    if not addresses:
        return Missing(reasons.DNS_NO_ADDRESS)
    return Found(tuple(addresses)[:MAX_ADDRESSES], ttl, None if end == name else _canonical(end))


def service_in(name: str, answer: Sequence[pycares.DNSRecord]) -> Service | Missing:
    """What an answer to a question for HTTPS records says about a canonical name."""
    chain = _follow(name, answer)
    if isinstance(chain, Reason):
        return Missing(chain)
    end, ttl = chain
    config_ids: frozenset[int] = frozenset()
    aliases: list[str] = []
    there = False
    for record in _of_internet(answer):
        if record.type != HTTPS or _owner(record) != end:
            continue
        there = True
        ttl = min(ttl, seconds(record.ttl))
        data = record.data
        assert isinstance(data, pycares.HTTPSRecordData)  # noqa: S101 - of this type
        if data.priority == 0:
            target = data.target.lower().rstrip(".")
            # To the root: there is no such service (RFC 9460 §2.5.1).
            if target:
                alias = _canonical(target)
                if alias is None:
                    return Missing(reasons.DNS_FAILURE)
                aliases.append(alias)
            continue
        for key, value in data.params:
            if key == _ECH_PARAMETER:
                try:
                    config_ids |= ech_config_ids(value)
                except ValueError:
                    return Missing(reasons.DNS_FAILURE)
    if not there:
        return Missing(reasons.DNS_NO_ADDRESS)
    # An alias beside a service makes clients ignore the service (RFC 9460 §2.4.1); not all may know. Both count.
    return Service(config_ids, tuple(dict.fromkeys(aliases)), ttl)


def negative_seconds(authority: Sequence[pycares.DNSRecord]) -> int | None:
    """For how long the zone lets it be believed that something is not there (RFC 2308 §5)."""
    return min(
        (
            min(seconds(record.ttl), record.data.minimum)
            for record in authority
            if isinstance(record.data, pycares.SOARecordData)
        ),
        default=None,
    )


def seconds(ttl: int) -> int:
    """A TTL as it is meant: with the highest bit set it is none (RFC 2181 §8)."""
    return ttl if ttl < 2**31 else 0


def _follow(name: str, answer: Sequence[pycares.DNSRecord]) -> tuple[str, int] | Reason:
    """The name at the end of the chain that starts at name, and the smallest TTL on the way."""
    aliases: dict[str, tuple[str, int]] = {}
    for record in _of_internet(answer):
        if isinstance(record.data, pycares.CNAMERecordData):
            target = _text(record.data.cname)
            known = aliases.setdefault(_owner(record), (target, seconds(record.ttl)))
            if known[0] != target:
                return reasons.DNS_FAILURE  # an alias leads to one name (RFC 2181 §10.1)
    ttl = 2**31 - 1
    for _ in range(MAX_CHAIN + 1):
        step = aliases.get(name)
        if step is None:
            return name, ttl
        name, ttl = step[0], min(ttl, step[1])
    return reasons.DNS_FAILURE  # in a circle, or without an end worth waiting for


def _of_internet(answer: Sequence[pycares.DNSRecord]) -> Iterator[pycares.DNSRecord]:
    return (record for record in answer if record.record_class == pycares.QUERY_CLASS_IN)


def _owner(record: pycares.DNSRecord) -> str:
    return _text(record.name)


def _text(name: str | bytes) -> str:
    """A name as it is compared. pycares hands on as bytes what is not ASCII."""
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    return name.lower().removesuffix(".")


def _canonical(name: str) -> str | None:
    """The name, if it may stand in a log, and may be asked for; whatever a name server says, a name may hold."""
    try:
        host = canonical_host(name)
    except HostError:
        return None
    return name if host.address is None and host.text == name else None
