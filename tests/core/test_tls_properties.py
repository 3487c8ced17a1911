"""Random ClientHellos, and real ones that were damaged: how they may be read, and that OpenSSL reads no other name.

A hello whose name two readers see differently would open a tunnel to a server that the policy never heard of.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from egress_proxy.core import reasons, tls
from egress_proxy.core.errors import HelloError
from egress_proxy.core.names import canonical_host
from egress_proxy.core.retry import HelloRetry
from egress_proxy.core.tls import (
    MAX_ALPN_LENGTH,
    MAX_RECORDS,
    ClientHello,
    ech_config_ids,
    parse_client_hello,
)
from tests.support.certificates import Authority
from tests.support.hellos import (
    ALPN,
    ENCRYPTED_CLIENT_HELLO,
    GREASE,
    SERVER_NAME,
    SUITES,
    SUPPORTED_VERSIONS,
    TLS10,
    TLS11,
    TLS12,
    TLS13,
    Extension,
    OpenSSL,
    alpn_extension,
    client_hello,
    ech_config,
    ech_config_list,
    ech_extension,
    handshake_of,
    message,
    record,
    records,
    server_name_extension,
    typical,
    versions_extension,
)

CORPUS = {
    path.stem: path.read_bytes()
    for path in sorted((Path(__file__).parent / "data" / "hellos").glob("*.bin"))
}
LIMIT = 32 * 1024
CALM = settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# A value, None, or the name of the reason of a refusal and its detail.
Outcome = ClientHello | tuple[str, str] | None


def _wherever(hello: ClientHello | None) -> ClientHello | None:
    """The hello apart from the records that it came in."""
    return None if hello is None else replace(hello, size=0)


def outcome(data: bytes, limit: int = LIMIT) -> Outcome:
    try:
        return _wherever(parse_client_hello(data, limit))
    except HelloError as error:
        return error.reason.name, error.detail


# What is tried -----------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real hello with a few bytes changed, put in, taken out or said twice, or with a length that is wrong."""
    data = bytearray(draw(st.sampled_from(list(CORPUS.values()))))
    if draw(st.booleans()):
        data = bytearray(records(handshake_of(bytes(data)), draw(sizes)))
    # Near the front are the lengths of everything; names and versions stand nearly anywhere.
    places = st.integers(0, len(data) - 1) | st.integers(0, 80)
    for _ in range(draw(st.integers(1, 3))):
        at = min(draw(places), len(data))
        match draw(st.integers(0, 5)):
            case 0:
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 2:
                data[at:at] = draw(st.binary(max_size=8))
            case 3:
                del data[at : at + draw(st.integers(1, 40))]
            case 4:
                data[at:at] = data[at : at + draw(st.integers(1, 60))]
            case _ if at + 2 <= len(data):
                value = int.from_bytes(data[at : at + 2]) + draw(st.integers(-40, 40))
                data[at : at + 2] = (value % 65536).to_bytes(2)
    return bytes(data)


sizes = st.lists(st.integers(1, 60), max_size=6)
hosts = st.sampled_from(
    ["origin.test", "other.test", "ORIGIN.test", "origin.test.", "origin.test..", "192.0.2.1", ""]
) | st.binary(max_size=20)
names = hosts | st.tuples(st.integers(0, 3), st.binary(max_size=20))


@st.composite
def odd_extension(draw: st.DrawFn, extension: Extension) -> Extension:
    """As it is, or with its end cut or prolonged."""
    kind, data = extension
    match draw(st.integers(0, 19)):
        case 0:
            return kind, data[: draw(st.integers(0, len(data)))]
        case 1:
            return kind, data + draw(st.binary(min_size=1, max_size=4))
        case 2 if data:
            at = draw(st.integers(0, min(8, len(data) - 1)))
            return kind, data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        case _:
            return extension


versions = st.lists(
    st.sampled_from([TLS10, TLS11, TLS12, TLS13, GREASE, 0x0300, 0x0305, 0x0403]), max_size=4
)
extensions = st.one_of(
    st.lists(names, min_size=1, max_size=1).map(lambda some: server_name_extension(*some)),
    st.lists(names, max_size=3).map(lambda some: server_name_extension(*some)),
    versions.map(lambda some: versions_extension(*some)),
    st.lists(st.binary(max_size=6), max_size=4).map(lambda some: alpn_extension(*some)),
    st.integers(0, 255).map(ech_extension),
    st.tuples(
        st.sampled_from([SERVER_NAME, ALPN, SUPPORTED_VERSIONS, ENCRYPTED_CLIENT_HELLO, 21, 35]),
        st.binary(max_size=20),
    ),
).flatmap(odd_extension)


@st.composite
def made(draw: st.DrawFn) -> bytes:
    """A hello whose outer lengths fit, so that what is odd is inside."""
    kinds: dict[int, Extension] = {}
    chosen = draw(st.lists(extensions, max_size=4))
    if draw(st.integers(0, 3)):  # else duplicates remain
        kinds = {extension[0]: extension for extension in chosen}
        chosen = list(kinds.values())
    usual = [extension for extension in typical(None) if extension[0] not in kinds]
    handshake = message(
        draw(st.permutations(usual + chosen)) if draw(st.booleans()) else usual + chosen,
        legacy_version=draw(st.sampled_from([TLS12] * 9 + [TLS10, TLS11, 0x0300, TLS13])),
        session_id=bytes(draw(st.sampled_from([0] * 9 + [32] * 9 + [33]))),
        suites=draw(st.sampled_from([SUITES] * 15 + [(), (0x1301,), (0x00FF, 0xC02F)])),
        compression=draw(st.sampled_from([b"\0"] * 15 + [b"\0\1", b"\1", b""])),
        after=draw(st.sampled_from([b""] * 15 + [b"\0"])),
    )
    wire = records(handshake, draw(sizes))
    if draw(st.booleans()):
        wire += draw(
            st.sampled_from([record(b"\1", kind=20), client_hello("other.test"), b"\x16\3\1\0\0"])
        )
    return wire


tried = damaged() | made() | st.binary(max_size=60)


# What must hold ----------------------------------------------------------------------------------


@CALM
@given(tried)
def test_a_hello_is_a_value_or_refused_or_awaited(data: bytes) -> None:
    hello = outcome(data)
    event(type(hello).__name__)
    if isinstance(hello, tuple):
        assert hello[0] in {reasons.TUNNEL_NOT_TLS.name, reasons.CLIENT_HELLO_MALFORMED.name}
        assert hello[1].isprintable()
    if not isinstance(hello, ClientHello):
        return
    if hello.server_name is not None:
        assert canonical_host(hello.server_name).text == hello.server_name
    assert hello.tls_version in {"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}
    if hello.alpn is not None:
        assert 1 <= len(hello.alpn) <= MAX_ALPN_LENGTH
        assert hello.alpn.isascii()
        assert hello.alpn.isprintable()
        assert not set(hello.alpn) & set(" \"'\\<>")
    assert hello.ech is None or 0 <= hello.ech <= 255


@CALM
@given(tried, st.data())
def test_nothing_behind_the_limit_is_looked_at(data: bytes, choose: st.DataObject) -> None:
    limit = choose.draw(st.integers(0, len(data) + 5))
    said = outcome(data, limit)
    assert outcome(data[:limit], limit) == said
    if len(data) >= limit:
        assert outcome(data[:limit] + b"\xff" * 9, limit) == said
        # And nobody waits for more bytes than are allowed.
        assert said is not None
    # A limit only ever refuses.
    if isinstance(said, ClientHello):
        assert said == outcome(data)


@CALM
@given(tried, st.data())
def test_more_bytes_change_no_answer(data: bytes, choose: st.DataObject) -> None:
    """However the bytes arrive, the answer is the same, and a refusal does not wait for what cannot mend it."""
    early = outcome(data[: choose.draw(st.integers(0, len(data)))])
    if early is not None:
        assert outcome(data) == early
        assert outcome(data + b"\x16\3\1") == early


@CALM
@given(damaged() | made(), st.data())
def test_the_short_way_is_the_long_way(data: bytes, choose: st.DataObject) -> None:
    """One record is read at a glance; it must be what the reader of many would find."""
    limit = choose.draw(st.just(LIMIT) | st.integers(0, len(data) + 5))
    found: Outcome
    try:
        gathered = tls._gather(data, limit)
        found = None if gathered is None else _wherever(tls._parse_body(*gathered))
    except HelloError as error:
        found = error.reason.name, error.detail
    assert outcome(data, limit) == found


@CALM
@given(st.sampled_from(sorted(CORPUS)), st.lists(st.integers(1, 300), max_size=MAX_RECORDS - 2))
def test_records_of_any_size(name: str, some: list[int]) -> None:
    hello = CORPUS[name]
    wire = records(handshake_of(hello), some)
    assert outcome(wire) == outcome(hello)
    assert outcome(wire + b"\x17\3\3") == outcome(hello)


@pytest.fixture(scope="module")
def openssl(authority: Authority) -> OpenSSL:
    return OpenSSL(authority.server_context())


def check_against(openssl: OpenSSL, data: bytes) -> None:
    ours, seen = outcome(data), openssl.sees(data)
    if isinstance(ours, ClientHello):
        event("accepted by both" if seen.answered else "accepted here")
        # It may refuse what we take; if it takes it, then under the same name.
        for name in seen.names[:1]:
            assert (name and name.lower().removesuffix(".")) == ours.server_name
    elif ours is None:
        event("awaited")
        # What is not complete here must not have been enough there.
        assert seen.names == []
        assert not seen.answered
    else:
        event("refused")


@CALM
@given(made())
@example(client_hello("ORIGIN.TEST."))
@example(client_hello(None))
def test_openssl_reads_no_other_name_in_what_was_made(openssl: OpenSSL, data: bytes) -> None:
    check_against(openssl, data)


@CALM
@given(damaged())
def test_openssl_reads_no_other_name_in_what_was_damaged(openssl: OpenSSL, data: bytes) -> None:
    check_against(openssl, data)


@CALM
@given(st.sampled_from(sorted(CORPUS)), st.data())
def test_openssl_waits_as_long(openssl: OpenSSL, name: str, choose: st.DataObject) -> None:
    hello = records(handshake_of(CORPUS[name]), choose.draw(sizes))
    check_against(openssl, hello[: choose.draw(st.integers(0, len(hello)))])


def test_a_second_hello_that_openssl_would_believe(openssl: OpenSSL) -> None:
    """After a HelloRetryRequest the second hello may name another server: RFC 8446 §4.1.2 forbids that to clients, and
    OpenSSL does not compare. So the second one is looked at, too.
    """
    no_share = [e for e in typical("origin.test", versions=[TLS13]) if e[0] != 51] + [(51, b"\0\0")]
    first = records(message(no_share))
    second = client_hello("other.test", versions=[TLS13])
    assert openssl.sees(first + second).names == ["origin.test", "other.test"]
    hello = parse_client_hello(first + second, LIMIT)
    assert hello == ClientHello("origin.test", "TLSv1.3", None, None, len(first))
    with pytest.raises(HelloError, match="another host"):
        HelloRetry(hello, LIMIT, may_change_ech=True).from_client(second)


# Lists of configurations -------------------------------------------------------------------------


@CALM
@given(
    st.binary(max_size=80)
    | st.lists(st.integers(0, 255).map(ech_config) | st.binary(max_size=9), max_size=3).map(
        lambda configs: ech_config_list(*configs)
    )
)
def test_a_list_of_configurations_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(0 <= config_id <= 255 for config_id in ech_config_ids(data))


@CALM
@given(st.lists(st.integers(0, 255), min_size=1, max_size=4), st.data())
def test_a_damaged_list_never_hides_a_configuration(ids: list[int], choose: st.DataObject) -> None:
    """Cut anywhere, it is refused: none of it is left out in silence."""
    data = ech_config_list(*map(ech_config, ids))
    assert ech_config_ids(data) == set(ids)
    with pytest.raises(ValueError):
        ech_config_ids(data[: choose.draw(st.integers(0, len(data) - 1))])
