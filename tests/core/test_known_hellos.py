"""ClientHellos like one before are answered as the parser answers them, whatever has changed in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core import known_hellos
from egress_proxy.core.errors import HelloError
from egress_proxy.core.known_hellos import MAX_KNOWN, MAX_MISSES, parse_known_hello
from egress_proxy.core.tls import ClientHello, parse_client_hello
from tests.support.hellos import client_hello

LIMIT = 32 * 1024
HOST = "origin.test"
CORPUS = {path.stem: path.read_bytes() for path in Path(__file__).parent.glob("data/hellos/*.bin")}
#: Those that are worth remembering.
PLAIN = sorted(
    name
    for name, data in CORPUS.items()
    if (hello := parse_client_hello(data, LIMIT))
    and hello.ech is None
    and int.from_bytes(data[3:5]) == len(data) - 5
)


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    known_hellos._known.clear()
    yield
    known_hellos._known.clear()


def outcome(data: bytes, limit: int = LIMIT) -> ClientHello | str | None:
    """What the parser says."""
    try:
        return parse_client_hello(data, limit)
    except HelloError as error:
        return str(error)


def known(data: bytes, limit: int = LIMIT, host: str = HOST) -> ClientHello | str | None:
    """What is said by way of what is known."""
    try:
        return parse_known_hello(data, limit, host)
    except HelloError as error:
        return str(error)


def test_most_clients_are_remembered() -> None:
    assert len(PLAIN) > 25


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_the_answer_is_the_same_whichever_byte_has_changed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_hellos, "MAX_MISSES", 1 << 30)
    data = CORPUS[name]
    assert known(data) == outcome(data)
    for position in range(len(data)):
        for change in (1, 0xFF):
            other = bytearray(data)
            other[position] ^= change
            assert known(bytes(other)) == outcome(bytes(other)), position


@pytest.mark.parametrize("name", PLAIN)
def test_another_random_and_other_keys_are_not_read_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = CORPUS[name]
    hello = known(data)

    def never(*_: object) -> None:
        pytest.fail("it is read again")

    monkeypatch.setattr(known_hellos, "parse_client_hello", never)
    assert known(data) is hello
    assert known(data[:11] + bytes(32) + data[43:]) is hello


@given(st.data())
def test_the_answer_is_the_same_however_it_is_cut_and_glued(choose: st.DataObject) -> None:
    learned = CORPUS[choose.draw(st.sampled_from(sorted(CORPUS)))]
    known(learned)
    end = st.integers(0, len(learned))
    other = choose.draw(st.sampled_from([learned, CORPUS[choose.draw(st.sampled_from(PLAIN))]]))
    start, stop = sorted((choose.draw(end), choose.draw(end)))
    glued = (
        learned[:start] + other[start:stop] + choose.draw(st.binary(max_size=3)) + learned[stop:]
    )
    glued = choose.draw(st.sampled_from([glued, glued[: len(learned)], glued + learned]))
    assert known(glued) == outcome(glued)
    assert known(learned) == outcome(learned)


@pytest.mark.parametrize("length", [0, 1, 5, 9, 11, 43, 44, 100])
def test_what_is_not_complete_is_waited_for(length: int) -> None:
    data = CORPUS["curl"]
    assert known(data[:length]) is None
    assert known(data) == outcome(data)
    assert known(data[:length]) is None


def test_what_follows_is_not_remembered() -> None:
    data = CORPUS["curl"]
    assert known(data + b"\x14\3\3\0\1\1") == outcome(data)
    assert not known_hellos._known


@pytest.mark.parametrize("name", sorted(CORPUS.keys() - set(PLAIN)))
def test_what_never_comes_again_is_not_remembered(name: str) -> None:
    assert known(CORPUS[name]) == outcome(CORPUS[name])
    assert not known_hellos._known


def test_a_limit_that_is_lowered_holds() -> None:
    data = CORPUS["curl"]
    assert known(data, len(data)) == outcome(data)
    with pytest.raises(HelloError, match="longer"):
        parse_known_hello(data, len(data) - 1, HOST)


def test_another_name_of_the_same_length() -> None:
    first, second = client_hello("allowed.test"), client_hello("blocked.test")
    assert len(first) == len(second)
    for data, name in ((first, "allowed.test"), (second, "blocked.test")):
        hello = parse_known_hello(data, LIMIT, "allowed.test")
        assert hello is not None
        assert hello.server_name == name


def test_one_that_comes_no_more_makes_room() -> None:
    first, second = client_hello("a.test", alpn=("h2",)), client_hello("a.test", alpn=("h3",))
    known(first)
    for _ in range(MAX_MISSES):
        assert known(second) == outcome(second)
    assert not known_hellos._known
    known(second)
    assert [each.hello for each in known_hellos._known.values()] == [outcome(second)]


def test_there_is_a_bound() -> None:
    data = CORPUS["curl"]
    for number in range(MAX_KNOWN + 3):
        known(data, host=f"host{number}.test")
    assert len(known_hellos._known) == 3
