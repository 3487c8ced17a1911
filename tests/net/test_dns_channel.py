"""What c-ares is made to do: exactly the question, the whole time, no second cache, the SOA record of what is not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pycares
import pytest

from egress_proxy.config.model import Dns
from egress_proxy.core import reasons
from egress_proxy.core.reason import Reason
from egress_proxy.net import dns_channel, dns_negative
from egress_proxy.net.dns_answer import AAAA, HTTPS, A, Found, addresses_in
from egress_proxy.net.dns_channel import Channel, Reply
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


class Asker:
    """A channel with the time that its owner has."""

    def __init__(self, settings: Dns) -> None:
        self.channel = Channel(settings, asyncio.get_running_loop())
        self._timeout = settings.timeout

    async def ask(self, name: str, kind: int = A) -> Reply:
        end = time.monotonic() + self._timeout
        async with asyncio.timeout(self._timeout):
            return await self.channel.ask(name, kind, end)

    async def addresses(self, name: str, kind: int = A) -> tuple[str, ...]:
        reply = await self.ask(name, kind)
        assert reply.failure is None, reply
        found = addresses_in(name, kind, reply.records)
        return found.addresses if isinstance(found, Found) else ()


@pytest.fixture
async def askers(name_server: NameServer) -> AsyncIterator[Any]:
    made: list[Asker] = []

    def make(**settings: Any) -> Asker:
        given = {"servers": (name_server.address,), "timeout": 0.8}
        made.append(Asker(Dns(**{**given, **settings})))
        return made[-1]

    yield make
    for asker in made:
        await asker.channel.close()


@pytest.fixture
async def asker(askers: Any) -> Asker:
    made: Asker = askers()
    return made


# What is asked ----------------------------------------------------------------------------------


async def test_each_kind_of_record(asker: Asker, name_server: NameServer) -> None:
    service = "a.test. 60 IN HTTPS 1 . alpn=h2"
    name_server.set("a.test", Answer(("192.0.2.1", "2001:db8::1"), records=(service,)))
    assert await asker.addresses("a.test") == ("192.0.2.1",)
    assert await asker.addresses("a.test", AAAA) == ("2001:db8::1",)
    reply = await asker.ask("a.test", HTTPS)
    assert [one.type for one in reply.records] == [HTTPS]
    assert {(query.name, query.kind) for query in name_server.queries} == {
        ("a.test", "A"),
        ("a.test", "AAAA"),
        ("a.test", "HTTPS"),
    }


@pytest.mark.parametrize("name", ["bare", "two.labels", "_under.score", "-a.test", "a" * 63])
async def test_exactly_that_name_is_asked_for(
    askers: Any, name_server: NameServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever the system says of other names to try: these variables stand for resolv.conf's search and ndots."""
    monkeypatch.setenv("LOCALDOMAIN", "corp.test evil.test")
    monkeypatch.setenv("RES_OPTIONS", "ndots:9")
    for found in ("corp.test", "evil.test"):
        name_server.set(f"{name}.{found}", FORGED)
    asker = askers()
    for kind in (A, AAAA, HTTPS):
        assert (await asker.ask(name, kind)).failure is reasons.DNS_NXDOMAIN
    assert {query.name for query in name_server.queries} == {name}


async def test_the_longest_name(asker: Asker, name_server: NameServer) -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(name) == 253
    name_server.set(name, "192.0.2.1")
    assert await asker.addresses(name) == ("192.0.2.1",)


@pytest.mark.parametrize("name", ["a..test", "a" * 64 + ".test", "a." * 200])
async def test_what_cannot_be_asked_for(asker: Asker, name_server: NameServer, name: str) -> None:
    assert (await asker.ask(name)).failure is reasons.DNS_FAILURE
    assert name_server.queries == []


# What is answered -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (NXDOMAIN, reasons.DNS_NXDOMAIN),
        (Answer(), reasons.DNS_NO_ADDRESS),
        (SERVFAIL, reasons.DNS_FAILURE),
        (Answer(rcode="NOTIMP"), reasons.DNS_FAILURE),
        (Answer(rcode="FORMERR"), reasons.DNS_FAILURE),
        (REFUSED, reasons.DNS_REFUSED),
        (Answer(forged=("garbage",), drop=True), reasons.DNS_FAILURE),
    ],
    ids=["nxdomain", "nodata", "servfail", "notimp", "formerr", "refused", "garbage"],
)
async def test_failures(
    asker: Asker, name_server: NameServer, answer: Answer, failure: Reason
) -> None:
    name_server.set("a.test", answer)
    for kind in (A, AAAA, HTTPS):
        reply = await asker.ask("a.test", kind)
        assert reply.failure is failure
        assert reply.records == ()


async def test_nobody_there(askers: Any) -> None:
    with NameServer() as gone:
        address = gone.address
    assert (await askers(servers=(address,)).ask("a.test")).failure is reasons.DNS_FAILURE


@pytest.mark.parametrize("tries", [1, 2, 3])
async def test_a_server_that_fails_is_asked_so_often(
    askers: Any, name_server: NameServer, tries: int
) -> None:
    name_server.set("a.test", SERVFAIL)
    assert (await askers(tries=tries).ask("a.test")).failure is reasons.DNS_FAILURE
    assert name_server.asked("a.test") == tries


async def test_the_next_server_is_asked(askers: Any, name_server: NameServer) -> None:
    with NameServer() as failing, NameServer() as refusing:
        failing.set("a.test", SERVFAIL)
        refusing.set("a.test", REFUSED)
        name_server.set("a.test", "192.0.2.1")
        asker = askers(servers=(failing.address, refusing.address, name_server.address))
        assert await asker.addresses("a.test") == ("192.0.2.1",)


async def test_what_does_not_fit_comes_over_tcp(asker: Asker, name_server: NameServer) -> None:
    addresses = tuple(f"192.0.2.{number}" for number in range(60))
    name_server.set("a.test", Answer(addresses, truncate=True))
    assert set(await asker.addresses("a.test")) == set(addresses)
    assert [query.transport for query in name_server.queries] == ["udp", "tcp"]


async def test_sixty_addresses(asker: Asker, name_server: NameServer) -> None:
    six = tuple(f"2001:db8::{number:x}" for number in range(1, 61))
    name_server.set("a.test", Answer(six))
    assert set(await asker.addresses("a.test", AAAA)) == set(six)
    assert name_server.queries[-1].transport == "tcp"


@pytest.mark.parametrize("how", ["id", "question", "port"])
async def test_what_somebody_else_says_is_not_believed(
    asker: Asker, name_server: NameServer, how: str
) -> None:
    """It is there first, and the true answer comes later."""
    name_server.set("a.test", Answer(("192.0.2.1",), forged=(how,), delay=0.05))
    assert await asker.addresses("a.test") == ("192.0.2.1",)


@pytest.mark.parametrize("ttl", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
async def test_a_ttl_comes_as_it_was_sent(asker: Asker, name_server: NameServer, ttl: int) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=ttl))
    assert [one.ttl for one in (await asker.ask("a.test")).records] == [ttl]


async def test_what_somebody_else_says_arrives(asker: Asker, name_server: NameServer) -> None:
    """With the right id, port and question it would be believed; the tests above would notice."""
    name_server.set("a.test", Answer(("192.0.2.1",), forged=("perfect",), delay=0.05))
    assert await asker.addresses("a.test") == (FORGED,)


# Time -------------------------------------------------------------------------------------------


async def test_a_lost_question_is_asked_again(asker: Asker, name_server: NameServer) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), lose=1))
    assert await asker.addresses("a.test") == ("192.0.2.1",)
    assert name_server.asked("a.test") == 2


async def test_silence_takes_the_whole_time(askers: Any, name_server: NameServer) -> None:
    """And not so many questions that a server with too much to do has more to do."""
    name_server.set("a.test", SILENCE)
    asker = askers(timeout=0.9)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        await asker.ask("a.test")
    assert time.monotonic() - start > 0.85
    assert 2 <= name_server.asked("a.test") <= 4


async def test_a_slow_answer_is_waited_for_after_fast_ones(
    askers: Any, name_server: NameServer
) -> None:
    """c-ares alone gives up a quarter of a second after its last try, once a server was fast three times."""
    asker = askers(tries=1, timeout=0.95)
    for number in range(5):
        name_server.set(f"{number}.test", "192.0.2.1")
        assert await asker.addresses(f"{number}.test") == ("192.0.2.1",)
    name_server.set("a.test", Answer(("192.0.2.1",), delay=0.4))
    assert await asker.addresses("a.test") == ("192.0.2.1",)


async def test_a_slow_answer_is_waited_for_even_then(askers: Any, name_server: NameServer) -> None:
    """When what was asked again has been answered fast, too."""
    asker = askers(tries=1, timeout=1.9)
    for number in range(5):
        name_server.set(f"{number}.test", "192.0.2.1")
        await asker.addresses(f"{number}.test")
    lost = [f"lost{number}.test" for number in range(4)]
    for name in lost:
        name_server.set(name, Answer(("192.0.2.1",), lose=1))
    await asyncio.gather(*(asker.addresses(name) for name in lost))
    name_server.set("a.test", Answer(("192.0.2.1",), delay=0.3))
    assert await asker.addresses("a.test") == ("192.0.2.1",)


# Nothing is kept below us -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        Answer(("192.0.2.1",), ttl=3600),
        Answer(rcode="NXDOMAIN", soa=(3600, 3600)),
        Answer(soa=(3600, 3600)),
        Answer(soa=None),
    ],
    ids=["addresses", "nxdomain", "nodata", "nodata-without-soa"],
)
async def test_c_ares_forgets_what_it_was_told(
    asker: Asker, name_server: NameServer, first: Answer
) -> None:
    name_server.set("a.test", first, "192.0.2.2")
    await asker.ask("a.test")
    deadline = time.monotonic() + 5
    while name_server.asked("a.test") == 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
        await asker.ask("a.test")
    assert await asker.addresses("a.test") == ("192.0.2.2",)


async def test_it_forgets_later_when_there_is_no_thread(
    asker: Asker, name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_channel, "_FORGET", 0.01)
    calls: list[int] = []
    reinit = pycares.Channel.reinit

    def fail_twice(channel: pycares.Channel) -> None:
        calls.append(len(calls))
        if len(calls) <= 2:
            raise pycares.AresError(15, "no memory")
        reinit(channel)

    monkeypatch.setattr(pycares.Channel, "reinit", fail_twice)
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=3600), "192.0.2.2")
    deadline = time.monotonic() + 5
    while await asker.addresses("a.test") == ("192.0.2.1",):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert len(calls) >= 4


# The end ----------------------------------------------------------------------------------------


async def test_what_is_asked_fails_when_it_is_closed(askers: Any, name_server: NameServer) -> None:
    name_server.set("a.test", SILENCE)
    asker = askers(timeout=5.0)
    question = asyncio.ensure_future(asker.ask("a.test"))
    await asyncio.sleep(0.02)
    await asker.channel.close()
    assert (await question).failure is reasons.DNS_FAILURE
    assert (await asker.ask("a.test")).failure is reasons.DNS_FAILURE
    await asker.channel.close()


async def test_an_answer_for_somebody_who_has_gone(askers: Any, name_server: NameServer) -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    name_server.set("a.test", Answer(("192.0.2.1",), delay=0.1))
    asker = askers()
    question = asyncio.ensure_future(asker.ask("a.test"))
    await asyncio.sleep(0.02)
    question.cancel()
    name_server.set("b.test", Answer(("192.0.2.1",), delay=0.2))
    assert await asker.addresses("b.test") == ("192.0.2.1",)
    assert question.cancelled()
    assert errors == []


async def test_an_answer_for_a_loop_that_has_ended(name_server: NameServer) -> None:
    """c-ares calls from a thread of its own, whenever it likes; that must not show."""
    name_server.set("a.test", Answer(("192.0.2.1",), delay=0.2))

    def ask_and_go() -> Channel:
        async def ask() -> Channel:
            settings = Dns(servers=(name_server.address,))
            channel = Channel(settings, asyncio.get_running_loop())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await channel.ask("a.test", A, time.monotonic() + 5)
            return channel

        return asyncio.run(ask())

    channel = await asyncio.to_thread(ask_and_go)
    await asyncio.sleep(0.3)
    channel._quick._channel.close()
    channel._patient._channel.close()


# What the zone says about what is not there -----------------------------------------------------


@pytest.fixture
def pycares_as_it_was() -> Iterator[None]:
    """Takes the companion of its callback away again, and gives it back in the end."""
    names: Any = pycares
    names._ffi.def_extern(name="_query_dnsrec_cb")(names._query_dnsrec_cb)
    yield
    names._ffi.def_extern(name="_query_dnsrec_cb")(names._query_dnsrec_cb)
    assert dns_negative.install()


@pytest.mark.parametrize("rcode", ["NXDOMAIN", "NOERROR"])
@pytest.mark.parametrize(
    ("soa", "expected"),
    [((60, 3), 3), ((3, 60), 3), ((0, 60), 0), ((2**31, 60), 0), (None, None)],
)
async def test_how_long_it_may_be_believed(
    asker: Asker,
    name_server: NameServer,
    rcode: str,
    soa: tuple[int, int] | None,
    expected: int | None,
) -> None:
    name_server.set("a.test", Answer(rcode=rcode, soa=soa))
    assert (await asker.ask("a.test")).negative_seconds == expected
    # And what is noted for one answer is not another's.
    name_server.set("b.test", "192.0.2.1")
    assert (await asker.ask("b.test")).negative_seconds is None
    name_server.set("c.test", SERVFAIL)
    assert (await asker.ask("c.test")).negative_seconds is None


async def test_many_at_once_do_not_mix(asker: Asker, name_server: NameServer) -> None:
    for number in range(60):
        name_server.set(f"{number}.test", Answer(soa=(number, 1000)))
    replies = await asyncio.gather(*(asker.ask(f"{number}.test") for number in range(60)))
    assert [reply.negative_seconds for reply in replies] == list(range(60))


@pytest.mark.parametrize("missing", ["_query_dnsrec_cb", "_ffi", "parse_dnsrec"])
async def test_a_pycares_without_these_names(
    askers: Any,
    name_server: NameServer,
    pycares_as_it_was: None,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(pycares, missing)
        assert not dns_negative.install()
    # This pycares itself cannot do without them all the time.
    monkeypatch.setattr(dns_negative, "install", lambda: False)
    asker = askers()
    name_server.set("a.test", "192.0.2.1")
    assert await asker.addresses("a.test") == ("192.0.2.1",)
    reply = await asker.ask("nowhere.test")
    assert (reply.failure, reply.negative_seconds) == (reasons.DNS_NXDOMAIN, None)


async def test_a_pycares_whose_callback_is_another(
    pycares_as_it_was: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_negative, "_CALLBACK", "install")
    monkeypatch.setattr(pycares, "install", print, raising=False)
    assert not dns_negative.install()


async def test_a_record_that_cannot_be_read_does_not_cost_the_answer(
    askers: Any,
    name_server: NameServer,
    pycares_as_it_was: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(record: Any) -> Any:
        raise TypeError("another pycares")

    with monkeypatch.context() as patch:
        patch.setattr(pycares, "parse_dnsrec", fail)
        assert dns_negative.install()
    with monkeypatch.context() as patch:
        patch.setattr(dns_negative, "install", lambda: True)
        asker = askers()
    reply = await asker.ask("nowhere.test")
    assert (reply.failure, reply.negative_seconds) == (reasons.DNS_NXDOMAIN, None)
