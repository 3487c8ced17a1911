"""Which records of an answer count, and what they say."""

from __future__ import annotations

from typing import Any

import pycares
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core import reasons
from egress_proxy.net.dns_answer import (
    AAAA,
    HTTPS,
    MAX_ADDRESSES,
    MAX_CHAIN,
    A,
    Found,
    Missing,
    Service,
    addresses_in,
    negative_seconds,
    seconds,
    service_in,
)
from tests.support.hellos import ech_config, ech_config_list

CNAME = pycares.QUERY_TYPE_CNAME
FAILURE = Missing(reasons.DNS_FAILURE)
NOTHING = Missing(reasons.DNS_NO_ADDRESS)


def record(name: Any, kind: int, data: Any, ttl: int = 60, record_class: int = 1) -> Any:
    return pycares.DNSRecord(name, kind, record_class, ttl, data)


def a(name: str, address: str, ttl: int = 60, **more: Any) -> Any:
    return record(name, A, pycares.ARecordData(address), ttl, **more)


def aaaa(name: str, address: str, ttl: int = 60) -> Any:
    return record(name, AAAA, pycares.AAAARecordData(address), ttl)


def cname(name: Any, target: Any, ttl: int = 60, **more: Any) -> Any:
    return record(name, CNAME, pycares.CNAMERecordData(target), ttl, **more)


def https(name: str, priority: int, target: str, *ech: bytes, ttl: int = 60) -> Any:
    params = [(1, b"\x02h2"), *((5, value) for value in ech)]
    return record(name, HTTPS, pycares.HTTPSRecordData(priority, target, params), ttl)


def soa(ttl: int, minimum: int) -> Any:
    data = pycares.SOARecordData("ns.test", "hostmaster.test", 1, 2, 3, 4, minimum)
    return record("test", pycares.QUERY_TYPE_SOA, data, ttl)


# Addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([], NOTHING),
        ([a("a.test", "192.0.2.1")], Found(("192.0.2.1",), 60, None)),
        ([a("A.Test", "192.0.2.1")], Found(("192.0.2.1",), 60, None)),
        ([a("a.test.", "192.0.2.1")], Found(("192.0.2.1",), 60, None)),
        (
            [a("a.test", "192.0.2.1", 9), a("a.test", "192.0.2.2", 7)],
            Found(("192.0.2.1", "192.0.2.2"), 7, None),
        ),
        (
            [a("a.test", "192.0.2.1"), a("a.test", "192.0.2.1")],
            Found(("192.0.2.1",), 60, None),
        ),
        ([aaaa("a.test", "2001:db8::1")], NOTHING),
        ([a("a.test", "192.0.2.1", record_class=3)], NOTHING),
        (
            [cname("a.test", "b.test", 5), a("b.test", "192.0.2.1", 9)],
            Found(("192.0.2.1",), 5, "b.test"),
        ),
        (
            [cname("a.test", "B.TEST"), cname("b.Test", "c.test", 3), a("C.test", "192.0.2.1", 9)],
            Found(("192.0.2.1",), 3, "c.test"),
        ),
        (
            [a("c.test", "192.0.2.1"), cname("b.test", "c.test"), cname("a.test", "b.test")],
            Found(("192.0.2.1",), 60, "c.test"),
        ),
        (
            [cname("a.test", "b.test"), cname("a.test", "b.test"), a("b.test", "192.0.2.1")],
            Found(("192.0.2.1",), 60, "b.test"),
        ),
        ([cname("a.test", "b.test")], NOTHING),
        (
            [cname("a.test", "b.test", record_class=3), a("a.test", "192.0.2.1")],
            Found(("192.0.2.1",), 60, None),
        ),
    ],
    ids=[
        "empty",
        "one",
        "other-case",
        "dot",
        "two",
        "twice-the-same",
        "the-other-family",
        "another-class",
        "alias",
        "chain",
        "chain-in-any-order",
        "alias-twice",
        "alias-to-nothing",
        "alias-of-another-class",
    ],
)
def test_addresses(answer: list[Any], expected: Found | Missing) -> None:
    assert addresses_in("a.test", A, answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        [a("evil.test", "192.0.2.66")],
        [a("sub.a.test", "192.0.2.66")],
        [a("test", "192.0.2.66")],
        [a("a.test.evil.test", "192.0.2.66")],
        # An alias has no records of its own (RFC 1034 §3.6.2), nor has anybody on the way.
        [cname("a.test", "b.test"), a("a.test", "192.0.2.66")],
        [
            cname("a.test", "b.test"),
            cname("b.test", "c.test"),
            a("b.test", "192.0.2.66"),
        ],
        [cname("x.test", "y.test"), a("y.test", "192.0.2.66")],
        [cname("a.test", "b.test"), cname("x.test", "y.test"), a("y.test", "192.0.2.66")],
    ],
)
def test_addresses_of_others_are_not_used(answer: list[Any]) -> None:
    assert addresses_in("a.test", A, answer) == NOTHING
    good = [*answer, a("b.test", "192.0.2.1"), a("c.test", "192.0.2.1"), a("a.test", "192.0.2.1")]
    found = addresses_in("a.test", A, good)
    assert isinstance(found, Found)
    assert "192.0.2.1" in found.addresses
    assert "192.0.2.66" not in found.addresses


@pytest.mark.parametrize(
    "answer",
    [
        [cname("a.test", "a.test")],
        [cname("a.test", "b.test"), cname("b.test", "a.test")],
        [cname("a.test", "b.test"), cname("b.test", "c.test"), cname("c.test", "b.test")],
        [cname("a.test", "b.test"), cname("a.test", "c.test"), a("b.test", "192.0.2.1")],
    ],
    ids=["itself", "two", "a-circle-later", "two-names-for-one"],
)
def test_aliases_that_lead_nowhere(answer: list[Any]) -> None:
    for kind in (A, AAAA):
        assert addresses_in("a.test", kind, [*answer, a("a.test", "192.0.2.66")]) == FAILURE
    assert service_in("a.test", answer) == FAILURE


def test_a_chain_has_a_longest_length() -> None:
    def chain(length: int) -> list[Any]:
        links = [cname(f"{number}.test", f"{number + 1}.test") for number in range(length)]
        return [*links, a(f"{length}.test", "192.0.2.1")]

    assert isinstance(addresses_in("0.test", A, chain(MAX_CHAIN)), Found)
    assert addresses_in("0.test", A, chain(MAX_CHAIN + 1)) == FAILURE
    assert addresses_in("0.test", A, chain(5000)) == FAILURE


@pytest.mark.parametrize(
    "target",
    [
        "with space.test",
        "line\nbreak.test",
        "back\\\\slash.test",
        "\\000.test",
        "sl/ash.test",
        "127.0.0.1",
        "0x7f.1",
        "a" * 64 + ".test",
        "",
        b"\xff\xfe.test",
    ],
)
def test_a_name_that_is_none_is_followed_and_not_told(target: Any) -> None:
    found = addresses_in("a.test", A, [cname("a.test", target), record(target, A, _DATA)])
    assert found == Found(("192.0.2.1",), 60, None)


_DATA = pycares.ARecordData("192.0.2.1")


def test_there_is_a_largest_number_of_addresses() -> None:
    answer = [a("a.test", f"192.0.{number // 250}.{number % 250}") for number in range(2000)]
    found = addresses_in("a.test", A, answer)
    assert isinstance(found, Found)
    assert found.addresses == tuple(one.data.addr for one in answer[:MAX_ADDRESSES])


NAMES = st.sampled_from(["a.test", "b.test", "c.test", "d.test"])
RECORDS = st.lists(
    st.one_of(
        st.builds(cname, NAMES, NAMES, st.integers(0, 2**32 - 1)),
        st.builds(a, NAMES, st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3"]), st.just(7)),
    ),
    max_size=12,
)


@given(RECORDS)
def test_whatever_is_in_an_answer(answer: list[Any]) -> None:
    """It ends, and each address belongs to a name without an alias, which the chain from the question leads to."""
    found = addresses_in("a.test", A, answer)
    if isinstance(found, Missing):
        return
    aliases = {one.name: one.data.cname for one in answer if one.type == CNAME}
    end = found.cname or "a.test"
    assert end not in aliases
    owned = {one.data.addr for one in answer if one.type == A and one.name == end}
    assert set(found.addresses) == owned
    assert 0 <= found.ttl <= 7
    name = "a.test"
    while name in aliases:
        name = aliases[name]
    assert name == end


# TTLs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "meant"), [(0, 0), (1, 1), (2**31 - 1, 2**31 - 1), (2**31, 0), (2**32 - 1, 0)]
)
def test_a_ttl_with_its_highest_bit_set_is_none(ttl: int, meant: int) -> None:
    assert seconds(ttl) == meant
    assert addresses_in("a.test", A, [a("a.test", "192.0.2.1", ttl)]) == Found(
        ("192.0.2.1",), meant, None
    )
    chain = [cname("a.test", "b.test", ttl), a("b.test", "192.0.2.1", 2**31 - 1)]
    assert addresses_in("a.test", A, chain) == Found(("192.0.2.1",), meant, "b.test")


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        ([], None),
        ([a("test", "192.0.2.1")], None),
        ([soa(10, 20)], 10),
        ([soa(20, 10)], 10),
        ([soa(0, 20)], 0),
        ([soa(20, 0)], 0),
        ([soa(2**31, 20)], 0),
        ([soa(20, 2**32 - 1)], 20),
        ([soa(20, 20), soa(5, 7)], 5),
    ],
)
def test_for_how_long_something_is_not_there(authority: list[Any], expected: int | None) -> None:
    assert negative_seconds(authority) == expected


# HTTPS records ----------------------------------------------------------------------------------

_ECH = ech_config_list(ech_config(7))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([], NOTHING),
        ([a("a.test", "192.0.2.1")], NOTHING),
        ([https("other.test", 1, ".", _ECH)], NOTHING),
        ([https("a.test", 1, ".")], Service(frozenset(), (), 60)),
        ([https("A.test", 1, "", _ECH)], Service(frozenset({7}), (), 60)),
        (
            [
                https("a.test", 1, ".", _ECH, ttl=9),
                https("a.test", 2, "b.test", ech_config_list(ech_config(8), ech_config(9))),
            ],
            Service(frozenset({7, 8, 9}), (), 9),
        ),
        (
            [cname("a.test", "b.test", 5), https("b.test", 1, ".", _ECH)],
            Service(frozenset({7}), (), 5),
        ),
        ([https("a.test", 0, "B.test.")], Service(frozenset(), ("b.test",), 60)),
        ([https("a.test", 0, ".")], Service(frozenset(), (), 60)),
        ([https("a.test", 0, "")], Service(frozenset(), (), 60)),
        (
            [https("a.test", 0, "b.test"), https("a.test", 1, ".", _ECH)],
            Service(frozenset({7}), ("b.test",), 60),
        ),
        ([https("a.test", 0, "b.test")] * 2, Service(frozenset(), ("b.test",), 60)),
    ],
)
def test_services(answer: list[Any], expected: Service | Missing) -> None:
    assert service_in("a.test", answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        [https("a.test", 1, ".", b"")],
        [https("a.test", 1, ".", _ECH[:-1])],
        [https("a.test", 1, ".", _ECH + b"\0")],
        [https("a.test", 1, ".", _ECH), https("a.test", 2, ".", b"\xff")],
        [https("a.test", 0, "127.0.0.1")],
        [https("a.test", 0, "b b.test")],
        [https("a.test", 0, "a..test")],
    ],
)
def test_a_service_that_makes_no_sense(answer: list[Any]) -> None:
    assert service_in("a.test", answer) == FAILURE
