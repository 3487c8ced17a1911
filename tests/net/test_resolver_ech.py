"""Which ECH configurations a name publishes: what tells the real thing from GREASE."""

from __future__ import annotations

import asyncio
import base64
import itertools
import struct
import time

import pytest

from egress_proxy.core import reasons
from egress_proxy.core.reason import Reason
from tests.net.conftest import MakeResolver
from tests.support.dns import NXDOMAIN, REFUSED, SERVFAIL, SILENCE, Answer, NameServer
from tests.support.hellos import ech_config, ech_config_list

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


def https(owner: str, *config_ids: int, priority: int = 1, target: str = ".", ttl: int = 60) -> str:
    """An HTTPS record, with an ``ech`` parameter if there are config ids."""
    ech = ""
    if config_ids:
        configs = ech_config_list(*(ech_config(one) for one in config_ids))
        ech = f" ech={base64.b64encode(configs).decode()}"
    rest = "" if priority == 0 else f" alpn=h2{ech}"
    return f"{owner}. {ttl} IN HTTPS {priority} {target}{rest}"


def broken(ech: bytes) -> str:
    """An HTTPS record with an ``ech`` parameter that no tool would write."""
    wire = b"\0\1\0" + struct.pack(">HH", 5, len(ech)) + ech
    return f"a.test. 60 IN HTTPS \\# {len(wire)} {wire.hex()}"


def alias(owner: str, target: str) -> str:
    return https(owner, priority=0, target=f"{target}.")


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ((https("a.test", 7),), {7}),
        ((https("a.test", 7, 8),), {7, 8}),
        ((https("a.test", 7), https("a.test", 255, priority=2)), {7, 255}),
        ((https("a.test", 0),), {0}),
        ((https("a.test"),), set()),
        ((https("other.test", 7),), set()),
        (("a.test. 60 IN CNAME b.test.", https("b.test", 7)), {7}),
        (("a.test. 60 IN CNAME b.test.", https("a.test", 7)), set()),
        ((https("a.test", priority=0, target="."),), set()),
        ((), set()),
    ],
)
async def test_what_a_name_publishes(
    make_resolver: MakeResolver,
    name_server: NameServer,
    records: tuple[str, ...],
    expected: set[int],
) -> None:
    name_server.set("a.test", Answer(("192.0.2.1",), records=records))
    assert await make_resolver().ech_config_ids("a.test") == frozenset(expected)


async def test_a_name_that_is_not_there(make_resolver: MakeResolver) -> None:
    assert await make_resolver().ech_config_ids("nowhere.test") == frozenset()


@pytest.mark.parametrize("length", [1, 2, 7])
async def test_an_alias_is_followed(
    make_resolver: MakeResolver, name_server: NameServer, length: int
) -> None:
    names = ["a.test", *(f"{number}.test" for number in range(length))]
    for one, two in itertools.pairwise(names):
        name_server.set(one, Answer(records=(alias(one, two),)))
    name_server.set(names[-1], Answer(records=(https(names[-1], 7),)))
    assert await make_resolver().ech_config_ids("a.test") == frozenset({7})


async def test_several_aliases_are_all_followed(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    """A client takes any of them; and one that ignores the rules may take the service beside them."""
    beside = https("a.test", 1)
    records = (alias("a.test", "b.test"), alias("a.test", "c.test"), beside)
    name_server.set("a.test", Answer(records=records))
    name_server.set("b.test", Answer(records=(https("b.test", 2),)))
    name_server.set("c.test", Answer(records=(https("c.test", 3),)))
    assert await make_resolver().ech_config_ids("a.test") == frozenset({1, 2, 3})


async def test_an_alias_without_a_service(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(records=(alias("a.test", "b.test"),)))
    name_server.set("b.test", "192.0.2.1")
    name_server.set("c.test", Answer(records=(alias("c.test", "nowhere.test"),)))
    resolver = make_resolver()
    assert await resolver.ech_config_ids("a.test") == frozenset()
    assert await resolver.ech_config_ids("c.test") == frozenset()


async def test_aliases_in_a_circle(make_resolver: MakeResolver, name_server: NameServer) -> None:
    name_server.set("a.test", Answer(records=(alias("a.test", "b.test"),)))
    name_server.set("b.test", Answer(records=(alias("b.test", "a.test"),)))
    name_server.set("c.test", Answer(records=(alias("c.test", "c.test"),)))
    resolver = make_resolver()
    assert await resolver.ech_config_ids("a.test") is reasons.DNS_FAILURE
    assert await resolver.ech_config_ids("c.test") is reasons.DNS_FAILURE
    assert len(name_server.queries) == 3


async def test_aliases_without_an_end(make_resolver: MakeResolver, name_server: NameServer) -> None:
    for number in range(20):
        records = (alias(f"{number}.test", f"{number + 1}.test"),)
        name_server.set(f"{number}.test", Answer(records=records))
    assert await make_resolver().ech_config_ids("0.test") is reasons.DNS_FAILURE
    assert len(name_server.queries) == 8


async def test_one_answer_does_not_make_a_thousand_questions(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    records = tuple(alias("a.test", f"{number}.test") for number in range(100))
    name_server.set("a.test", Answer(records=records))
    assert await make_resolver().ech_config_ids("a.test") is reasons.DNS_FAILURE
    assert len(name_server.queries) <= 10  # one of them over UDP and TCP


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (SERVFAIL, reasons.DNS_FAILURE),
        (REFUSED, reasons.DNS_REFUSED),
        (SILENCE, reasons.DNS_TIMEOUT),
        (Answer(records=(broken(b""),)), reasons.DNS_FAILURE),
        (Answer(records=(broken(b"\0\0"),)), reasons.DNS_FAILURE),
        (Answer(records=(broken(b"\xff\xff\xff\xff"),)), reasons.DNS_FAILURE),
        (Answer(records=(broken(ech_config_list(ech_config(7))[:-1]),)), reasons.DNS_FAILURE),
        (
            Answer(records=(https("a.test", 7), broken(b"\0"))),
            reasons.DNS_FAILURE,
        ),
        (Answer(records=(r"a.test. 60 IN HTTPS 0 b\032b.test.",)), reasons.DNS_FAILURE),
        (Answer(records=("a.test. 60 IN HTTPS 0 127.0.0.1.",)), reasons.DNS_FAILURE),
        (Answer(records=("a.test. 60 IN CNAME a.test.",)), reasons.DNS_FAILURE),
        (Answer(drop=True, forged=("garbage",)), reasons.DNS_FAILURE),
    ],
)
async def test_what_cannot_be_known_is_not_nothing(
    make_resolver: MakeResolver, name_server: NameServer, answer: Answer, expected: Reason
) -> None:
    name_server.set("a.test", answer)
    name_server.set("b.test", Answer(records=(https("b.test", 1), alias("b.test", "a.test"))))
    resolver = make_resolver(timeout=0.3)
    start = time.monotonic()
    assert await resolver.ech_config_ids("a.test") is expected
    assert await resolver.ech_config_ids("b.test") is expected
    assert time.monotonic() - start < 2 * 0.3 + 0.25


async def test_all_questions_together_have_the_time_of_one(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    for number in range(8):
        records = (alias(f"{number}.test", f"{number + 1}.test"),)
        name_server.set(f"{number}.test", Answer(records=records, delay=0.15))
    start = time.monotonic()
    assert await make_resolver(timeout=0.5).ech_config_ids("0.test") is reasons.DNS_TIMEOUT
    assert time.monotonic() - start < 0.75


# What is kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (Answer(records=(https("a.test", 7, ttl=60),)), 60),
        (Answer(records=(https("a.test", 7, ttl=0),)), 2),
        (Answer(records=(https("a.test", 7, ttl=2**31),)), 2),
        (Answer(records=(https("a.test", 7, ttl=3600),)), 100),
        (Answer(records=("a.test. 20 IN CNAME b.test.", https("b.test", 7))), 20),
        (NXDOMAIN, 5),
        (Answer(soa=(3, 60)), 3),
        (Answer(soa=(3600, 3600)), 5),
        (SERVFAIL, 5),
        (SILENCE, 1),
    ],
)
async def test_how_long(
    make_resolver: MakeResolver, name_server: NameServer, answer: Answer, seconds: float
) -> None:
    name_server.set("a.test", answer)
    resolver = make_resolver(min_ttl=2.0, max_ttl=100.0, negative_ttl=5.0, timeout=0.3)
    before = time.monotonic()
    await resolver.ech_config_ids("a.test")
    after = time.monotonic()
    kept = resolver._config_ids.get("a.test")
    assert kept is not None
    assert before + seconds <= kept.expires <= after + seconds


async def test_the_shortest_of_all_steps_counts(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    to_b = "a.test. 90 IN HTTPS 0 b.test."
    name_server.set("a.test", Answer(records=(to_b, https("a.test", ttl=80))))
    name_server.set("b.test", Answer(soa=(30, 30)))
    resolver = make_resolver(negative_ttl=60.0)
    await resolver.ech_config_ids("a.test")
    kept = resolver._config_ids.get("a.test")
    assert kept is not None
    assert kept.expires - time.monotonic() == pytest.approx(30, abs=1)


async def test_it_is_kept_and_asked_for_once(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", Answer(records=(https("a.test", 7),), delay=0.05))
    resolver = make_resolver()
    answers = await asyncio.gather(*(resolver.ech_config_ids("a.test") for _ in range(20)))
    assert set(answers) == {frozenset({7})}
    again = resolver.ech_config_ids("a.test")
    assert again.done()
    assert await again == frozenset({7})
    assert name_server.asked("a.test", "HTTPS") == 1
    kept = resolver._config_ids.get("a.test")
    assert kept is not None
    kept.expires = 0.0
    assert not resolver.ech_config_ids("a.test").done()


async def test_it_has_nothing_to_do_with_addresses(
    make_resolver: MakeResolver, name_server: NameServer
) -> None:
    name_server.set("a.test", SERVFAIL)
    name_server.set("a.test", Answer(records=(https("a.test", 7),)), kind="HTTPS")
    resolver = make_resolver()
    assert await resolver.ask("a.test") is reasons.DNS_FAILURE
    assert await resolver.ech_config_ids("a.test") == frozenset({7})
    assert resolver.cached("a.test", time.monotonic()) is reasons.DNS_FAILURE
