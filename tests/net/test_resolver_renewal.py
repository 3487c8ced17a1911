"""Names to addresses: asked again ahead of time, and old answers while name servers fail."""

from __future__ import annotations

import asyncio
import time

import pytest

from egress_proxy.core import reasons
from egress_proxy.core.reason import Reason
from egress_proxy.net import resolver as module
from egress_proxy.net.resolver import Lookup
from tests.net.conftest import MakeResolver
from tests.net.resolving import age, forgotten, known, lookup, settled
from tests.support.dns import (
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    SILENCE,
    Answer,
    NameServer,
)

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


# Asked again ahead of time ----------------------------------------------------------------------


async def test_a_name_in_use_is_asked_for_again_before_its_time_is_over(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    # c-ares keeps nothing of a TTL of 0, so that nothing but the server can answer twice.
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0), Answer(("192.0.2.2",), ttl=0))
    resolver = make_resolver(min_ttl=100.0)
    await resolver.ask("a.test")
    assert known(resolver, later=89).addresses == ("192.0.2.1",)
    assert not resolver._asking
    for _ in range(20):  # once is enough
        assert known(resolver, later=95) == Lookup(("192.0.2.1",), "hit")
    await settled(resolver)
    assert name_server.asked("a.test") == 2
    assert known(resolver) == Lookup(("192.0.2.2",), "hit")
    assert known(resolver, later=89) is not None
    assert name_server.asked("a.test") == 2


async def test_a_name_that_nobody_uses_is_not_asked_for_again(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0))
    resolver = make_resolver(min_ttl=100.0)
    await resolver.ask("a.test")
    age(resolver, 99.9)
    await asyncio.sleep(0.02)
    assert known(resolver, later=1.0) is None
    assert name_server.asked("a.test") == 1


@pytest.mark.parametrize("failure", [SERVFAIL, REFUSED, SILENCE])
async def test_a_failure_then_leaves_the_answer_its_time(
    make_resolver: MakeResolver, name_server: NameServer, failure: Answer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0), failure)
    resolver = make_resolver(min_ttl=100.0, negative_ttl=4.0, timeout=0.3, tries=1)
    await resolver.ask("a.test")
    age(resolver, 91)
    assert known(resolver).addresses == ("192.0.2.1",)
    await settled(resolver)
    asked = name_server.asked("a.test")
    assert asked >= 2
    for _ in range(5):
        assert known(resolver) == Lookup(("192.0.2.1",), "hit")
        await settled(resolver)
    assert name_server.asked("a.test") == asked  # not again so soon
    age(resolver, 4.1)
    assert known(resolver) == Lookup(("192.0.2.1",), "hit")
    await settled(resolver)
    assert name_server.asked("a.test") > asked
    age(resolver, 8)
    assert known(resolver) is None
    expected = reasons.DNS_REFUSED if failure is REFUSED else reasons.DNS_FAILURE
    expected = reasons.DNS_TIMEOUT if failure is SILENCE else expected
    assert await resolver.ask("a.test") is expected


async def test_half_an_answer_then_leaves_the_whole_one_its_time(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0), SERVFAIL, kind="A")
    name_server.set("a.test", Answer(("2001:db8::1",), ttl=0), kind="AAAA")
    resolver = make_resolver(min_ttl=100.0, tries=1)
    await resolver.ask("a.test")
    age(resolver, 91)
    whole = known(resolver)
    assert whole.addresses == ("192.0.2.1", "2001:db8::1")
    await settled(resolver)
    assert known(resolver) == whole
    age(resolver, 10)
    assert (await lookup(resolver)).addresses == ("2001:db8::1",)


@pytest.mark.parametrize("gone", [NXDOMAIN, Answer()])
async def test_a_name_that_has_gone_is_no_failure(
    make_resolver: MakeResolver, name_server: NameServer, gone: Answer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0), gone)
    resolver = make_resolver(min_ttl=100.0)
    await resolver.ask("a.test")
    age(resolver, 91)
    assert known(resolver).addresses == ("192.0.2.1",)
    await settled(resolver)
    assert isinstance(known(resolver), Reason)


async def test_failures_are_not_asked_for_again_ahead_of_time(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    resolver = make_resolver(negative_ttl=100.0, min_ttl=100.0)
    await resolver.ask("nowhere.test")
    assert known(resolver, "nowhere.test", later=99) is reasons.DNS_NXDOMAIN
    assert not resolver._asking
    assert name_server.asked("nowhere.test") == 1


async def test_c_ares_does_not_answer_the_second_question_itself(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    """It would with what it had kept, and the answer would only grow older."""
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=100), "192.0.2.2")
    resolver = make_resolver()
    await resolver.ask("a.test")
    await forgotten(resolver, name_server)
    age(resolver, 91)
    assert known(resolver).addresses == ("192.0.2.1",)
    await settled(resolver)
    assert known(resolver).addresses == ("192.0.2.2",)


# Old answers while servers fail -----------------------------------------------------------------


@pytest.mark.parametrize("failure", [SERVFAIL, REFUSED, SILENCE, Answer(rcode="NOTIMP")])
async def test_an_old_answer_serves_while_the_servers_fail(
    make_resolver: MakeResolver, name_server: NameServer, failure: Answer
) -> None:
    old = Answer(("192.0.2.1",), ttl=0, alias="b.test")
    name_server.set("a.test", old, failure)
    resolver = make_resolver(stale_if_error=60.0, negative_ttl=5.0, timeout=0.3, tries=1)
    await resolver.ask("a.test")
    age(resolver, 30)
    assert known(resolver) is None  # the servers are asked first
    assert await resolver.ask("a.test") == Lookup(("192.0.2.1",), "stale", "b.test")
    asked = name_server.asked("a.test")
    assert asked >= 2
    for _ in range(10):  # not again for a while, and nobody waits
        assert known(resolver) is None
        assert resolver.ask("a.test").done()
        assert (await lookup(resolver)).source == "stale"
    assert name_server.asked("a.test") == asked
    age(resolver, 5.1)
    assert (await lookup(resolver)).source == "stale"
    assert name_server.asked("a.test") > asked
    # It has an end.
    age(resolver, 30)
    assert isinstance(await resolver.ask("a.test"), Reason)


async def test_servers_that_have_recovered_are_believed(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    recovered = Answer(("192.0.2.2",), ttl=0)
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0), SERVFAIL, recovered)
    resolver = make_resolver(stale_if_error=60.0, tries=1)
    await resolver.ask("a.test")
    age(resolver, 2)
    assert await resolver.ask("a.test") == Lookup(("192.0.2.1",), "stale")
    age(resolver, 6)
    assert await resolver.ask("a.test") == Lookup(("192.0.2.2",), "miss")
    assert known(resolver) == Lookup(("192.0.2.2",), "hit")


async def test_half_an_answer_is_better_than_an_old_one(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0), SERVFAIL, kind="A")
    name_server.set("a.test", Answer(("2001:db8::1",), ttl=0), kind="AAAA")
    resolver = make_resolver(stale_if_error=60.0, tries=1)
    await resolver.ask("a.test")
    age(resolver, 2)
    assert await resolver.ask("a.test") == Lookup(("2001:db8::1",), "miss")


@pytest.mark.parametrize("gone", [NXDOMAIN, Answer()])
async def test_an_old_answer_does_not_serve_for_a_name_that_has_gone(
    make_resolver: MakeResolver,
    name_server: NameServer,
    gone: Answer,
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0), gone)
    resolver = make_resolver(stale_if_error=60.0)
    await resolver.ask("a.test")
    age(resolver, 2)
    answer = await resolver.ask("a.test")
    assert isinstance(answer, Reason)
    name_server.set("a.test", SERVFAIL)
    await forgotten(resolver, name_server)
    age(resolver, 10)
    assert await resolver.ask("a.test") is reasons.DNS_FAILURE


async def test_old_answers_do_not_serve_unless_asked_for(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0), SERVFAIL)
    resolver = make_resolver(tries=1)
    await resolver.ask("a.test")
    age(resolver, 1.1)
    assert await resolver.ask("a.test") is reasons.DNS_FAILURE


async def test_nobody_waits_long_for_silence_when_there_is_an_old_answer(
    make_resolver: MakeResolver, name_server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0), Answer(("192.0.2.2",), delay=0.4))
    resolver = make_resolver(stale_if_error=60.0, timeout=2.0, tries=1)
    await resolver.ask("a.test")
    age(resolver, 2)
    start = time.monotonic()
    assert await resolver.ask("a.test") == Lookup(("192.0.2.1",), "stale")
    assert time.monotonic() - start < 0.3
    assert resolver.ask("a.test").done()  # nor does the next one
    # The question goes on, and its answer counts.
    await settled(resolver)
    assert known(resolver) == Lookup(("192.0.2.2",), "hit")


@pytest.mark.parametrize("stale_if_error", [0.0, 60.0])
async def test_an_old_answer_is_not_called_stale_while_it_is_good(
    make_resolver: MakeResolver,
    name_server: NameServer,
    monkeypatch: pytest.MonkeyPatch,
    stale_if_error: float,
) -> None:
    """The question is asked ahead of time, into silence; whoever then asks in earnest gets no more than is allowed."""
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    name_server.set("a.test", Answer(("192.0.2.1",), ttl=0), SILENCE)
    resolver = make_resolver(min_ttl=100.0, timeout=0.8, tries=1, stale_if_error=stale_if_error)
    await resolver.ask("a.test")
    age(resolver, 99.8)
    start = time.monotonic()
    assert known(resolver) == Lookup(("192.0.2.1",), "hit")
    question = resolver.ask("a.test")
    await asyncio.sleep(0.1)
    assert not question.done()
    answer = await question
    if stale_if_error:
        assert answer == Lookup(("192.0.2.1",), "stale")
        assert time.monotonic() - start < 0.6
        await settled(resolver)
    else:
        assert answer is reasons.DNS_TIMEOUT
    assert known(resolver) is (None if stale_if_error else reasons.DNS_TIMEOUT)
