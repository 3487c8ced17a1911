"""A second ClientHello may not name another server than the first, however it is wrapped and cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core.errors import HelloError
from egress_proxy.core.retry import HELLO_RETRY_REQUEST, MAX_SMALL_RECORDS, HelloRetry
from egress_proxy.core.tls import parse_client_hello
from tests.support.hellos import client_hello

LIMIT = 32 * 1024
FIRST = client_hello("origin.test")
SAME = client_hello("origin.test", alpn=("h2",))
OTHER = client_hello("other.test")
NAMELESS = client_hello(None)
CHANGE_CIPHER_SPEC = b"\x14\3\3\0\1\1"


def early_data(size: int) -> bytes:
    return b"\x17\3\3" + size.to_bytes(2) + bytes(size)


def server_hello(random: bytes) -> bytes:
    body = b"\2\0\0\x50\3\3" + random + bytes(46)
    return b"\x16\3\3" + len(body).to_bytes(2) + body


RETRY = server_hello(HELLO_RETRY_REQUEST)
ANSWER = server_hello(bytes(range(32)))


def retry(*, limit: int = LIMIT, may_change_ech: bool = True) -> HelloRetry:
    hello = parse_client_hello(FIRST, limit)
    assert hello is not None
    return HelloRetry(hello, limit, may_change_ech)


def test_a_server_that_asks_for_nothing() -> None:
    watching = retry()
    assert not watching.over
    watching.from_server(ANSWER)
    assert watching.over
    assert watching.release() == b""


@pytest.mark.parametrize("length", range(1, 43))
def test_an_answer_in_pieces(length: int) -> None:
    watching = retry()
    watching.from_server(ANSWER[:length])
    assert not watching.over
    watching.from_server(ANSWER[length:])
    assert watching.over


@pytest.mark.parametrize("length", range(1, 43))
def test_a_request_to_begin_again_in_pieces(length: int) -> None:
    watching = retry()
    watching.from_server(RETRY[:length])
    watching.from_server(RETRY[length:])
    watching.from_server(CHANGE_CIPHER_SPEC)
    assert not watching.over
    with pytest.raises(HelloError):
        watching.from_client(OTHER)


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400", b"\x16\3\3\0\x54\x0b" + bytes(83), b"\x17\3\3\0\1x"]
)
def test_an_answer_that_is_no_server_hello(said: bytes) -> None:
    """Something else altogether, another message."""
    watching = retry()
    watching.from_server(said)
    assert watching.over


@pytest.mark.parametrize("between", [b"", CHANGE_CIPHER_SPEC, early_data(5), early_data(1) * 3])
@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (SAME, None),
        (OTHER, "sni_mismatch"),
        (NAMELESS, "sni_missing"),
        (b"\x16\3\3\0\4\x0b\0\0\0", "client_hello_malformed"),
    ],
)
@pytest.mark.parametrize("asked", [True, False])
def test_the_second_hello(
    between: bytes, second: bytes, reason: str | None, *, asked: bool
) -> None:
    """Whether or not the server has asked already: a client may know beforehand that it will."""
    watching = retry()
    assert watching.from_client(between) == between
    if asked:
        watching.from_server(RETRY)
    if reason is None:
        assert watching.from_client(second + b"more") == second + b"more"
        assert watching.over
    else:
        with pytest.raises(HelloError) as caught:
            watching.from_client(second)
        assert caught.value.reason.name == reason
        assert watching.release() == second


def test_nothing_of_another_hello_goes_on() -> None:
    watching = retry()
    stream = CHANGE_CIPHER_SPEC + OTHER
    passed = b""
    for byte in stream[:-1]:
        passed += watching.from_client(bytes([byte]))
    with pytest.raises(HelloError):
        watching.from_client(stream[-1:])
    assert passed == CHANGE_CIPHER_SPEC


@given(st.lists(st.integers(1, 400), max_size=20), st.sampled_from([SAME, OTHER]))
def test_no_split_changes_anything(sizes: list[int], second: bytes) -> None:
    stream = early_data(300) + CHANGE_CIPHER_SPEC + second
    watching = retry()
    passed, position, refused = b"", 0, False
    for size in [*sizes, len(stream)]:
        try:
            passed += watching.from_client(stream[position : position + size])
        except HelloError:
            refused = True
            break
        position += size
        if watching.over:
            passed += stream[position:]
            break
    assert refused == (second is OTHER)
    assert stream.startswith(passed)
    assert len(passed) <= len(stream) - len(OTHER) if refused else passed == stream


@pytest.mark.parametrize("size", [0, 4, 37])
def test_an_answer_in_tiny_records_may_be_anything(size: int) -> None:
    watching = retry()
    watching.from_server(b"\x16\3\3\0" + bytes([size]) + RETRY[5 : 5 + size])
    watching.from_server(ANSWER)
    assert not watching.over
    with pytest.raises(HelloError):
        watching.from_client(OTHER)


def test_what_was_held_back_goes_on_when_it_is_over() -> None:
    watching = retry()
    assert watching.from_client(CHANGE_CIPHER_SPEC + b"\x17\3") == CHANGE_CIPHER_SPEC
    watching.from_server(ANSWER)
    assert watching.release() == b"\x17\3"


def test_a_hello_that_grows_beyond_the_limit() -> None:
    watching = retry(limit=len(FIRST))
    with pytest.raises(HelloError, match="longer"):
        watching.from_client(client_hello("origin.test", extra=[(21, bytes(500))]))


@pytest.mark.parametrize("may_change", [True, False])
@pytest.mark.parametrize("first", [None, 1])
@pytest.mark.parametrize("second", [None, 1, 77])
def test_encryption_cannot_be_changed(
    first: int | None, second: int | None, *, may_change: bool
) -> None:
    hello = parse_client_hello(client_hello("origin.test", ech=first), LIMIT)
    assert hello is not None
    watching = HelloRetry(hello, LIMIT, may_change)
    again = client_hello("origin.test", ech=second)
    if may_change or second in (None, first):
        assert watching.from_client(again) == again
    else:
        with pytest.raises(HelloError) as caught:
            watching.from_client(again)
        assert caught.value.reason.name == "ech_not_allowed"


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_warning_before_the_request_hides_nothing(cut: int) -> None:
    said = b"\x15\3\3\0\2\1\x70" + CHANGE_CIPHER_SPEC + RETRY
    watching = retry()
    watching.from_server(said[:cut])
    watching.from_server(said[cut:])
    assert not watching.over
    with pytest.raises(HelloError):
        watching.from_client(OTHER)


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_warning_before_an_answer(cut: int) -> None:
    """However it is cut: or a client of TLS 1.2 would be refused in the middle of its handshake."""
    said = b"\x15\3\3\0\2\1\x70" + CHANGE_CIPHER_SPEC + ANSWER
    watching = retry()
    watching.from_server(said[:cut])
    watching.from_server(said[cut:])
    assert watching.over


def test_warnings_without_end_are_passed_over_quickly() -> None:
    watching = retry()
    for _ in range(10):
        watching.from_server(b"\x15\3\3\0\2\1\x70" * 9000)
    assert not watching.over
    assert watching._answer == b""


@pytest.mark.parametrize(
    "record",
    [b"\x17\3\3\0\0", b"\x17\3\3\x41\1", b"\x18\3\3\0\1x", b"\x80\3\3\0\1x", b"GET / HTTP/1.1\r\n"],
)
def test_what_no_client_of_tls_sends(record: bytes) -> None:
    watching = retry()
    with pytest.raises(HelloError, match="no client"):
        watching.from_client(record)


def test_tiny_records_without_end_are_refused() -> None:
    """Each costs as much to look at as a large one."""
    watching = retry()
    watching.from_client(early_data(1) * MAX_SMALL_RECORDS + early_data(64) * 1000)
    with pytest.raises(HelloError, match="no client"):
        watching.from_client(early_data(1))
