"""Names to addresses: whatever a name server says, and two families that do not agree."""

from __future__ import annotations

import itertools
import time

import pytest

from egress_proxy.core import reasons
from egress_proxy.core.reason import Reason
from egress_proxy.net.dns_answer import MAX_CHAIN
from egress_proxy.net.resolver import Lookup
from tests.net.conftest import MakeResolver
from tests.net.resolving import forgotten, known, lookup, settled
from tests.support.dns import (
    FORGED,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    SILENCE,
    Answer,
    NameServer,
)

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


# Aliases ----------------------------------------------------------------------------------------


def chain(length: int, owner: str = "a.test") -> tuple[str, ...]:
    names = [owner, *(f"{number}.chain.test" for number in range(length))]
    links = [f"{one}. 60 IN CNAME {two}." for one, two in itertools.pairwise(names)]
    return (*links, f"{names[-1]}. 60 IN A 192.0.2.1")


@pytest.mark.parametrize("length", [1, 2, MAX_CHAIN])
async def test_a_chain_of_aliases(
    make_resolver: MakeResolver, name_server: NameServer, length: int
) -> None:
    name_server.set("a.test", Answer(records=chain(length)))
    answer = await lookup(make_resolver())
    assert answer == Lookup(("192.0.2.1",), "miss", f"{length - 1}.chain.test")


@pytest.mark.parametrize(
    "records",
    [
        chain(MAX_CHAIN + 1),
        ("a.test. 60 IN CNAME a.test.",),
        (
            "a.test. 60 IN CNAME b.test.",
            "b.test. 60 IN CNAME a.test.",
            "a.test. 60 IN A 192.0.2.66",
        ),
        (
            "a.test. 60 IN CNAME b.test.",
            "a.test. 60 IN CNAME c.test.",
            "b.test. 60 IN A 192.0.2.66",
        ),
    ],
    ids=["too-long", "itself", "a-circle", "two-names-for-one"],
)
async def test_a_chain_without_an_end(
    make_resolver: MakeResolver, name_server: NameServer, records: tuple[str, ...]
) -> None:
    name_server.set("a.test", Answer(records=records))
    start = time.monotonic()
    assert await make_resolver().ask("a.test") is reasons.DNS_FAILURE
    assert time.monotonic() - start < 0.4


@pytest.mark.parametrize(
    "records",
    [
        ("evil.test. 60 IN A 192.0.2.66",),
        ("a.test. 60 IN CNAME b.test.", "c.test. 60 IN A 192.0.2.66"),
        ("a.test. 60 IN CNAME b.test.", "a.test. 60 IN A 192.0.2.66"),
        ("x.test. 60 IN CNAME y.test.", "y.test. 60 IN A 192.0.2.66"),
        ("a.test. 60 IN CNAME b.test.",),
    ],
)
async def test_somebody_else_s_addresses_are_not_used(
    make_resolver: MakeResolver, name_server: NameServer, records: tuple[str, ...]
) -> None:
    name_server.set("a.test", Answer(records=records))
    assert await make_resolver().ask("a.test") is reasons.DNS_NO_ADDRESS


@pytest.mark.parametrize("target", [r"a\032b.test.", r"\000.test.", r"a\".test.", "127.0.0.1."])
async def test_an_alias_that_may_not_stand_in_a_log(
    make_resolver: MakeResolver, name_server: NameServer, target: str
) -> None:
    records = (f"a.test. 60 IN CNAME {target}", f"{target} 60 IN A 192.0.2.1")
    name_server.set("a.test", Answer(records=records))
    assert await lookup(make_resolver()) == Lookup(("192.0.2.1",), "miss", None)


@pytest.mark.parametrize("how", ["id", "question", "port"])
async def test_a_forged_answer_is_not_used(
    make_resolver: MakeResolver, name_server: NameServer, how: str
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), forged=(how,) * 5, delay=0.05))
    name_server.set("b.test", Answer(forged=(how,) * 5, drop=True))
    resolver = make_resolver()
    assert (await lookup(resolver)).addresses == ("192.0.2.1",)
    assert await resolver.ask("b.test") is reasons.DNS_TIMEOUT
    assert FORGED not in str(resolver.cached("a.test", time.monotonic()))


# Failures, and two families that do not agree ---------------------------------------------------

FOUR = Answer(("192.0.2.1",))
SIX = Answer(("2001:db8::1",))
NODATA = Answer()


@pytest.mark.parametrize(
    ("four", "six", "expected"),
    [
        (NXDOMAIN, NXDOMAIN, reasons.DNS_NXDOMAIN),
        (NODATA, NODATA, reasons.DNS_NO_ADDRESS),
        (NODATA, NXDOMAIN, reasons.DNS_NO_ADDRESS),
        (NXDOMAIN, NODATA, reasons.DNS_NO_ADDRESS),
        (SERVFAIL, SERVFAIL, reasons.DNS_FAILURE),
        (SERVFAIL, NODATA, reasons.DNS_FAILURE),
        (NODATA, SERVFAIL, reasons.DNS_FAILURE),
        (NXDOMAIN, SERVFAIL, reasons.DNS_NXDOMAIN),
        (REFUSED, REFUSED, reasons.DNS_REFUSED),
        (REFUSED, NODATA, reasons.DNS_REFUSED),
        (Answer(rcode="NOTIMP"), Answer(rcode="FORMERR"), reasons.DNS_FAILURE),
        (SILENCE, SILENCE, reasons.DNS_TIMEOUT),
        (SILENCE, NODATA, reasons.DNS_TIMEOUT),
        (NODATA, SILENCE, reasons.DNS_TIMEOUT),
        (NXDOMAIN, SILENCE, reasons.DNS_NXDOMAIN),
        (FOUR, SERVFAIL, ("192.0.2.1",)),
        (FOUR, NXDOMAIN, ("192.0.2.1",)),
        (FOUR, SILENCE, ("192.0.2.1",)),
        (SERVFAIL, SIX, ("2001:db8::1",)),
        (REFUSED, SIX, ("2001:db8::1",)),
        (NXDOMAIN, SIX, ("2001:db8::1",)),
        (SILENCE, SIX, ("2001:db8::1",)),
        (NODATA, SIX, ("2001:db8::1",)),
        (FOUR, SIX, ("192.0.2.1", "2001:db8::1")),
    ],
)
async def test_two_families(
    make_resolver: MakeResolver,
    name_server: NameServer,
    four: Answer,
    six: Answer,
    expected: Reason | tuple[str, ...],
) -> None:
    name_server.set("a.test", four, kind="A")
    name_server.set("a.test", six, kind="AAAA")
    resolver = make_resolver(timeout=0.3)
    start = time.monotonic()
    answer = await resolver.ask("a.test")
    assert (answer.addresses if isinstance(answer, Lookup) else answer) == expected
    assert time.monotonic() - start < 0.3 + 0.25
    await settled(resolver)


@pytest.mark.parametrize("first", [FOUR, NXDOMAIN])
async def test_ipv6_is_not_waited_for(
    make_resolver: MakeResolver, name_server: NameServer, first: Answer
) -> None:
    """RFC 8305 §3; and where there is no name, there is no IPv6 address (RFC 8020)."""
    name_server.set("a.test", first, kind="A")
    name_server.set("a.test", SILENCE, kind="AAAA")
    resolver = make_resolver(timeout=5.0)
    start = time.monotonic()
    await resolver.ask("a.test")
    assert time.monotonic() - start < 0.3


async def test_ipv6_that_comes_later_joins(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=200), kind="A")
    name_server.set("a.test", Answer(("2001:db8::1",), ttl=200, delay=0.2), kind="AAAA")
    resolver = make_resolver(timeout=2.0)
    assert (await lookup(resolver)).addresses == ("192.0.2.1",)
    assert known(resolver).addresses == ("192.0.2.1",)
    # Until it is known whether there is more, it is not kept for long.
    assert known(resolver, later=5.1) is None
    await settled(resolver)
    assert known(resolver).addresses == ("192.0.2.1", "2001:db8::1")
    assert known(resolver, later=170).addresses == ("192.0.2.1", "2001:db8::1")
    assert known(resolver, later=200) is None


async def test_that_there_is_no_ipv6_may_be_known_later(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=200), kind="A")
    name_server.set("a.test", Answer(delay=0.2), kind="AAAA")
    resolver = make_resolver(timeout=2.0)
    assert (await lookup(resolver)).addresses == ("192.0.2.1",)
    await settled(resolver)
    assert known(resolver, later=170).addresses == ("192.0.2.1",)


async def test_what_comes_late_does_not_undo_what_came_after(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", "192.0.2.1", kind="A")
    name_server.set("a.test", Answer(("2001:db8::66",), delay=0.2), kind="AAAA")
    resolver = make_resolver(timeout=2.0)
    await resolver.ask("a.test")
    name_server.set("a.test", "192.0.2.2", kind="A")
    name_server.set("a.test", Answer(), kind="AAAA")
    await forgotten(resolver, name_server)
    assert (await lookup(resolver)).addresses == ("192.0.2.2",)
    await settled(resolver)
    assert known(resolver).addresses == ("192.0.2.2",)


async def test_half_an_answer_is_completed_soon(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", SERVFAIL, kind="A")
    name_server.set("a.test", Answer(("2001:db8::1",), ttl=250), kind="AAAA")
    resolver = make_resolver(negative_ttl=3.0)
    assert (await lookup(resolver)).addresses == ("2001:db8::1",)
    assert known(resolver, later=2.5) is not None
    assert known(resolver, later=3.1) is None


async def test_the_servers_in_their_order(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    with NameServer() as second:
        name_server.set("a.test", "192.0.2.1")
        second.set("a.test", "192.0.2.2")
        servers = (name_server.address, second.address)
        assert (await lookup(make_resolver(servers=servers))).addresses == ("192.0.2.1",)
        assert second.queries == []
        name_server.set("b.test", SILENCE)
        second.set("b.test", "192.0.2.2")
        slow = make_resolver(servers=servers, timeout=2.0)
        assert (await lookup(slow, "b.test")).addresses == ("192.0.2.2",)
