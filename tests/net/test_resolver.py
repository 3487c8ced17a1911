"""Names to addresses: what is asked, what is kept for how long, and in which order it is handed out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from egress_proxy.core import reasons
from egress_proxy.core.reason import Reason
from egress_proxy.net.resolver import Lookup
from tests.net.conftest import MakeResolver
from tests.net.resolving import known, lookup, settled
from tests.support.dns import (
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    SILENCE,
    Answer,
    NameServer,
)

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


# A miss, and then hits --------------------------------------------------------------------------


async def test_a_miss_and_then_hits(make_resolver: MakeResolver, name_server: NameServer) -> None:
    name_server.set("a.test", Answer(("192.0.2.1", "2001:db8::1"), alias="b.test"))
    resolver = make_resolver()
    assert known(resolver) is None
    assert await lookup(resolver) == Lookup(("192.0.2.1", "2001:db8::1"), "miss", "b.test")
    for _ in range(3):
        assert known(resolver) == Lookup(("192.0.2.1", "2001:db8::1"), "hit", "b.test")
        assert await resolver.find("a.test") == known(resolver)
    assert name_server.asked("a.test") == name_server.asked("a.test", "AAAA") == 1


async def test_find_asks_when_it_must(make_resolver: MakeResolver, name_server: NameServer) -> None:
    name_server.set("a.test", "192.0.2.1")
    resolver = make_resolver()
    assert await resolver.find("a.test") == Lookup(("192.0.2.1",), "miss")
    assert await resolver.find("nowhere.test") is reasons.DNS_NXDOMAIN


async def test_both_families_are_asked_for_at_once(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), delay=0.2), kind="A")
    name_server.set("a.test", Answer(("2001:db8::1",), delay=0.2), kind="AAAA")
    start = time.monotonic()
    assert (await lookup(make_resolver())).addresses == ("192.0.2.1", "2001:db8::1")
    assert time.monotonic() - start < 0.38


async def test_one_question_for_all_who_ask(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), delay=0.1), "192.0.2.2")
    resolver = make_resolver()
    answers = await asyncio.gather(*(resolver.find("a.test") for _ in range(50)))
    assert set(answers) == {Lookup(("192.0.2.1",), "miss")}
    assert name_server.asked("a.test") == name_server.asked("a.test", "AAAA") == 1


async def test_one_who_gives_up_does_not_take_the_others_answer_away(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), delay=0.1))
    resolver = make_resolver()
    patient = asyncio.ensure_future(resolver.find("a.test"))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(resolver.find("a.test"), 0.02)
    assert await patient == Lookup(("192.0.2.1",), "miss")


async def test_names_do_not_wait_for_each_other(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", SILENCE)
    name_server.set("b.test", "192.0.2.1")
    resolver = make_resolver()
    silence = resolver.ask("a.test")
    assert (await lookup(resolver, "b.test")).source == "miss"
    assert not silence.done()
    assert await silence is reasons.DNS_TIMEOUT


# How long it is kept ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (Answer(("192.0.2.1",), ttl=60), 60),
        (Answer(("192.0.2.1",), ttl=0), 2),
        (Answer(("192.0.2.1",), ttl=1), 2),
        (Answer(("192.0.2.1",), ttl=2**31 - 1), 100),
        (Answer(("192.0.2.1",), ttl=2**31), 2),
        (Answer(("192.0.2.1",), ttl=2**32 - 1), 2),
        (
            Answer(records=("a.test. 20 IN CNAME b.test.", "b.test. 60 IN A 192.0.2.1")),
            20,
        ),
        (
            Answer(
                ("192.0.2.1", "2001:db8::1"), ttl=50, records=("a.test. 30 IN AAAA 2001:db8::2",)
            ),
            30,
        ),
        (NXDOMAIN, 5),
        (Answer(rcode="NXDOMAIN", soa=(3, 60)), 3),
        (Answer(rcode="NXDOMAIN", soa=(60, 3)), 3),
        (Answer(rcode="NXDOMAIN", soa=(3600, 3600)), 5),
        (Answer(rcode="NXDOMAIN", soa=(0, 0)), 2),
        (Answer(rcode="NXDOMAIN", soa=None), 5),
        (Answer(soa=(3, 60)), 3),
        (Answer(soa=None), 5),
        (SERVFAIL, 5),
        (REFUSED, 5),
        (SILENCE, 1),
    ],
)
async def test_how_long(
    make_resolver: MakeResolver, name_server: NameServer, answer: Answer, seconds: float
) -> None:
    name_server.set("a.test", answer)
    resolver = make_resolver(min_ttl=2.0, max_ttl=100.0, negative_ttl=5.0, timeout=0.4)
    await resolver.ask("a.test")
    assert known(resolver, later=seconds - 0.3) is not None
    assert known(resolver, later=seconds + 0.01) is None
    await settled(resolver)


async def test_the_soa_of_either_family_counts(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(soa=None), kind="A")
    name_server.set("a.test", Answer(soa=(3, 3)), kind="AAAA")
    resolver = make_resolver()
    assert await resolver.ask("a.test") is reasons.DNS_NO_ADDRESS
    assert known(resolver, later=2.5) is reasons.DNS_NO_ADDRESS
    assert known(resolver, later=3.1) is None


async def test_a_failure_is_kept_as_an_answer_is(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    resolver = make_resolver()
    assert await resolver.ask("nowhere.test") is reasons.DNS_NXDOMAIN
    for _ in range(5):
        assert await resolver.find("nowhere.test") is reasons.DNS_NXDOMAIN
    assert name_server.asked("nowhere.test") == 1


async def test_no_more_names_are_kept_than_configured(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    resolver = make_resolver(cache_entries=3)
    for number in range(20):
        assert await resolver.find(f"{number}.test") is reasons.DNS_NXDOMAIN
        assert await resolver.ech_config_ids(f"{number}.test") == frozenset()
    await settled(resolver)
    assert len(resolver._cache) == len(resolver._config_ids) == 3
    assert not resolver._asking
    assert not resolver._asking_config_ids
    assert not resolver._tasks


# The order of addresses -------------------------------------------------------------------------


async def test_each_use_begins_with_another_address(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    four = tuple(f"192.0.2.{number}" for number in range(3))
    six = tuple(f"2001:db8::{number}" for number in range(1, 3))
    name_server.set("a.test", Answer(four + six))
    resolver = make_resolver()
    uses = [await lookup(resolver), *(known(resolver) for _ in range(11))]
    for use in uses:
        assert set(use.addresses[:3]) == set(four)
        assert set(use.addresses[3:]) == set(six)
    assert Counter(use.addresses[0] for use in uses) == dict.fromkeys(four, 4)
    assert set(Counter(use.addresses[3] for use in uses)) == set(six)
    # The one who asked had the first: the next ones go on, and each order comes as often.
    assert uses[0].addresses == uses[3].addresses != uses[1].addresses
    assert len({use.addresses for use in uses}) == 3


@pytest.mark.parametrize("number", [1, 2, 7, 8, 9, 60])
async def test_few_orders_of_many_addresses(
    make_resolver: MakeResolver, name_server: NameServer, number: int
) -> None:
    """What is kept by the addresses further on must not grow with them."""
    addresses = [f"192.0.2.{one}" for one in range(number)]
    name_server.set("a.test", Answer(tuple(addresses)))
    resolver = make_resolver()
    await resolver.ask("a.test")
    uses = [known(resolver).addresses for _ in range(100)]
    assert all(sorted(use) == sorted(addresses) for use in uses)
    assert len(set(uses)) == len({use[0] for use in uses}) == min(number, 8)
    # The very same tuples, so that they are found again by what they are.
    assert len({id(use) for use in uses}) == min(number, 8)


async def test_more_addresses_than_anybody_needs(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    many = tuple(f"192.0.{number // 250}.{number % 250}" for number in range(300))
    name_server.set("a.test", Answer(many))
    assert len((await lookup(make_resolver())).addresses) == 64
    assert "tcp" in {query.transport for query in name_server.queries}


# The hosts file ---------------------------------------------------------------------------------


async def test_the_hosts_file_comes_first(
    make_resolver: MakeResolver, name_server: NameServer, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("2001:db8::7 a.test\n192.0.2.7 a.test\n")
    name_server.set("a.test", "192.0.2.1")
    resolver = make_resolver(hosts_file=str(hosts))
    for _ in range(3):
        assert known(resolver) == Lookup(("192.0.2.7", "2001:db8::7"), "hosts")
        assert await resolver.find("a.test") == known(resolver)
    assert name_server.queries == []
    hosts.write_text("# empty\n")
    resolver.look_at_hosts_file()
    assert known(resolver) is None
    assert (await lookup(resolver)).source == "miss"
    hosts.write_text("192.0.2.8 a.test\n")
    resolver.look_at_hosts_file()
    assert known(resolver) == Lookup(("192.0.2.8",), "hosts")
    hosts.unlink()
    resolver.look_at_hosts_file()
    assert known(resolver) == Lookup(("192.0.2.1",), "hit")


# The end ----------------------------------------------------------------------------------------


async def test_closing_gives_up_what_is_asked(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", SILENCE)
    resolver = make_resolver(timeout=5.0)
    questions: list[asyncio.Future[Any]] = [
        resolver.ask("a.test"),
        resolver.ech_config_ids("a.test"),
    ]
    await asyncio.sleep(0.02)
    await resolver.close()
    for question in questions:
        with pytest.raises(asyncio.CancelledError):
            await question
    assert not resolver._asking
    assert not resolver._asking_config_ids


@pytest.mark.parametrize("method", ["ask", "ech_config_ids"])
async def test_a_defect_is_told_to_who_asks_and_does_not_stay(
    make_resolver: MakeResolver,
    name_server: NameServer,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    name_server.set("a.test", "192.0.2.1")
    resolver = make_resolver()

    async def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(resolver, "_addresses", fail)
        patch.setattr(resolver, "_service", fail)
        with pytest.raises(ZeroDivisionError):
            await getattr(resolver, method)("a.test")
    assert not isinstance(await getattr(resolver, method)("a.test"), Reason)


# Speed ------------------------------------------------------------------------------------------


async def test_a_hit_costs_next_to_nothing(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    """A generous bound, against a walk or a copy that creeps in; the benchmark has the figure."""
    name_server.set("a.test", Answer(tuple(f"192.0.2.{number}" for number in range(60))))
    resolver = make_resolver()
    await resolver.ask("a.test")
    cached, now = resolver.cached, time.monotonic()
    start = time.process_time()
    for _ in range(20_000):
        cached("a.test", now)
    assert time.process_time() - start < 20_000 * 5e-6
