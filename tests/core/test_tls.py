"""ClientHellos by the table: what each says, and each attack on how it is read, with what becomes of it.

Real clients' are in ``test_tls_corpus.py``, random ones in ``test_tls_properties.py``.
"""

from __future__ import annotations

import ssl

import pytest
from msgspec.structs import replace

from egress_proxy.core import reasons
from egress_proxy.core.errors import HelloError
from egress_proxy.core.names import canonical_host
from egress_proxy.core.tls import (
    ACCESS_DENIED,
    DECODE_ERROR,
    MAX_RECORDS,
    UNRECOGNIZED_NAME,
    ClientHello,
    alert,
    ech_config_ids,
    parse_client_hello,
)
from tests.support.hellos import (
    ALPN,
    ENCRYPTED_CLIENT_HELLO,
    GREASE,
    SERVER_NAME,
    SUPPORTED_VERSIONS,
    TLS10,
    TLS11,
    TLS12,
    TLS13,
    Extension,
    alpn_extension,
    block,
    client_hello,
    ech_config,
    ech_config_list,
    ech_extension,
    message,
    numbers,
    record,
    records,
    server_name_extension,
    sized,
    typical,
    versions_extension,
)

LIMIT = 32 * 1024


def parse(data: bytes, limit: int = LIMIT) -> ClientHello:
    hello = parse_client_hello(data, limit)
    assert hello is not None
    return hello


def refused(data: bytes, limit: int = LIMIT) -> str:
    """The detail of a hello that is refused as malformed."""
    with pytest.raises(HelloError) as caught:
        parse_client_hello(data, limit)
    assert caught.value.reason is reasons.CLIENT_HELLO_MALFORMED
    assert str(caught.value) == caught.value.detail
    return caught.value.detail


def with_extensions(*extensions: Extension) -> bytes:
    return records(message(extensions))


# What a hello says -------------------------------------------------------------------------------


def test_all_that_anything_depends_on() -> None:
    hello = client_hello("origin.test", alpn=("h2", "http/1.1"), ech=7)
    assert parse(hello) == ClientHello(
        *("origin.test", "TLSv1.3", "h2,http/1.1", 7),
        size=len(hello),
    )


def test_nothing_of_it() -> None:
    hello = client_hello(None, versions=None)
    assert parse(hello) == ClientHello(
        server_name=None, tls_version="TLSv1.2", alpn=None, ech=None, size=len(hello)
    )


@pytest.mark.parametrize("extensions", [None, []], ids=["no block", "an empty block"])
def test_an_old_client_has_no_extensions(extensions: list[Extension] | None) -> None:
    hello = records(message(extensions, legacy_version=TLS10))
    assert parse(hello) == ClientHello(None, "TLSv1", None, None, len(hello))


def test_the_order_of_the_extensions_says_nothing() -> None:
    extensions = typical(alpn=["h2"], ech=1)
    assert parse(with_extensions(*extensions)) == parse(with_extensions(*reversed(extensions)))


def test_other_extensions_are_not_looked_into() -> None:
    odd = [(GREASE, b""), (0xFFFF, b"\0"), (35, b"\xff" * 300), (21, bytes(200))]
    hello, plain = client_hello(extra=odd), client_hello()
    assert parse(hello) == replace(parse(plain), size=len(hello))


def test_it_is_a_value() -> None:
    assert len({parse(client_hello()), parse(client_hello()), parse(client_hello("b.test"))}) == 2


# The server name ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("origin.test", "origin.test"),
        ("ORIGIN.Test", "origin.test"),
        ("origin.test.", "origin.test"),
        ("localhost", "localhost"),
        ("_service._tcp.origin.test", "_service._tcp.origin.test"),
        ("-a.b-.test", "-a.b-.test"),
        ("xn--mnchen-3ya.test", "xn--mnchen-3ya.test"),
        ("192.0.2.1", "192.0.2.1"),
        (".".join(["a" * 63] * 3 + ["a" * 61]), ".".join(["a" * 63] * 3 + ["a" * 61])),
    ],
)
def test_a_name_is_canonical(sent: str, name: str) -> None:
    assert parse(client_hello(sent)).server_name == name == canonical_host(sent).text


@pytest.mark.parametrize(
    "name",
    [
        b".",
        b"..",
        b".origin.test",
        b"origin..test",
        b"origin.test..",
        b"origin.test\0",
        b"origin.test\0.other.test",
        b"\0",
        b"origin.test\n",
        b"origin.test ",
        b" origin.test",
        b"origin test",
        b"origin.test/",
        b"origin.test:443",
        b"https://origin.test",
        b"user@origin.test",
        b"*.test",
        b"%6frigin.test",
        b"origin,test",
        "münchen.test".encode(),
        "münchen.test".encode("latin-1"),
        "ｏrigin.test".encode(),
        "origin。test".encode(),
        b"\xff\xfe",
        b"a" * 64 + b".test",
        b".".join([b"a" * 63] * 4),
        b"a" * 16000,
        b"::1",
        b"[::1]",
        b"::ffff:192.0.2.1",
        b"fe80::1%eth0",
        b"[fe80::1%25eth0]",
        b"192.0.2.1%eth0",
        b"192.0.2.1.",
        b"192.0.2.01",
        b"192.0.513",
        b"127.1",
        b"0x7f000001",
        b"0X7F.0.0.1",
        b"2130706433",
        b"192.0.2.256",
        b"1.2.3.4.5",
        b"origin.1",
    ],
    ids=repr,
)
def test_a_name_that_two_readers_could_take_for_two_is_refused(name: bytes) -> None:
    assert "server_name" in refused(client_hello(name))


def test_a_refusal_does_not_quote_what_was_sent() -> None:
    said = refused(client_hello(b"evil\r\nname.test"))
    assert said == "server_name is no host name: the host holds white space or a control character"


TWO = server_name_extension("origin.test", "other.test")[1]
ONE = server_name_extension("origin.test")[1]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(TWO, id="two names"),
        pytest.param(server_name_extension("origin.test", "origin.test")[1], id="the same twice"),
        pytest.param(
            server_name_extension((1, b"a.test"), "origin.test")[1], id="other type first"
        ),
        pytest.param(server_name_extension("origin.test", (1, b"a.test"))[1], id="other type last"),
        pytest.param(server_name_extension((1, b"origin.test"))[1], id="no host_name"),
        pytest.param(server_name_extension((255, b"origin.test"))[1], id="a GREASE type"),
        pytest.param(server_name_extension("")[1], id="an empty name"),
        pytest.param(server_name_extension("", "origin.test")[1], id="an empty name first"),
        pytest.param(server_name_extension()[1], id="an empty list"),
        pytest.param(b"", id="no list, as only a server may answer"),
        pytest.param(b"\0", id="half a length"),
        pytest.param(ONE + b"\0", id="a byte behind the list"),
        pytest.param(sized(2, ONE[2:] + b"\0"), id="a byte behind the name"),
        pytest.param(ONE[:-1], id="a list that ends too late"),
        pytest.param(sized(2, ONE[2:-1]), id="a name that ends too late"),
        pytest.param(b"\0\x0e" + TWO[2:], id="a second name behind the list"),
        pytest.param(b"\0\0" + ONE[2:], id="a list of no length"),
        pytest.param(ONE[:3] + b"\xff\xff" + ONE[5:], id="a name of 64 KiB"),
    ],
)
@pytest.mark.parametrize("behind", [(), ((SUPPORTED_VERSIONS, b"\2\3\4"), (ALPN, b"\0\3\2h2"))])
def test_exactly_one_host_name(data: bytes, behind: tuple[Extension, ...]) -> None:
    """RFC 6066 §3. Some servers take the first name, some the last, some the first of type host_name."""
    assert parse(with_extensions((SERVER_NAME, ONE), *behind)).server_name == "origin.test"
    refused(with_extensions((SERVER_NAME, data), *behind))


@pytest.mark.parametrize(
    "kind", [SERVER_NAME, ALPN, SUPPORTED_VERSIONS, ENCRYPTED_CLIENT_HELLO, 35, GREASE]
)
@pytest.mark.parametrize("apart", [False, True])
def test_no_extension_stands_twice(kind: int, apart: bool) -> None:
    """RFC 8446 §4.2. Of two server names, one server takes the first, another the second."""
    known = dict(typical(alpn=["h2"], ech=1))
    twice = (kind, known.pop(kind, b"\0"))
    others = list(known.items())
    assert parse(with_extensions(twice, *others)).tls_version
    extensions = [twice, *others, twice] if apart else [twice, twice, *others]
    assert refused(with_extensions(*extensions)) == "an extension stands twice"


def test_a_second_server_name_in_another_case() -> None:
    first, second = server_name_extension("origin.test"), server_name_extension("other.test")
    assert refused(with_extensions(first, *typical(None), second)) == "an extension stands twice"


def test_what_looks_like_a_name_elsewhere_is_none() -> None:
    """A reader that searches for bytes, or miscounts, would find it."""
    hidden = block([server_name_extension("other.test")])
    hello = records(
        message(
            [(21, hidden), *typical("origin.test"), (0xFFFF, hidden)],
            session_id=hidden[:32],
            random=hidden.ljust(32, b"\0")[:32],
        )
    )
    assert parse(hello).server_name == "origin.test"
    assert parse(with_extensions((21, hidden), *typical(None))).server_name is None


# Versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "name"),
    [
        ([TLS13], "TLSv1.3"),
        ([TLS13, TLS12], "TLSv1.3"),
        ([TLS12, TLS13], "TLSv1.3"),
        ([GREASE, TLS13, TLS12], "TLSv1.3"),
        ([GREASE, TLS12, TLS11, TLS10], "TLSv1.2"),
        ([TLS11, TLS10], "TLSv1.1"),
        ([TLS10], "TLSv1"),
        ([0x0300, TLS12], "TLSv1.2"),
        ([0x7F1C, TLS12], "TLSv1.2"),  # a draft of TLS 1.3
        ([0x0305, TLS13], "TLSv1.3"),
        ([0x0403, TLS12], "TLSv1.2"),
        ([TLS12, 0x0403], "TLSv1.2"),  # whose bytes hold 03 04, across the two
        ([TLS12] * 127, "TLSv1.2"),
    ],
)
def test_the_newest_version_offered(versions: list[int], name: str) -> None:
    assert parse(client_hello(versions=versions)).tls_version == name


@pytest.mark.parametrize(
    ("legacy_version", "name"), [(TLS10, "TLSv1"), (TLS11, "TLSv1.1"), (TLS12, "TLSv1.2")]
)
def test_the_version_of_an_older_client(legacy_version: int, name: str) -> None:
    hello = records(message(typical(versions=None), legacy_version=legacy_version))
    assert parse(hello).tls_version == name


@pytest.mark.parametrize("version", [0, 0x0002, 0x0200, 0x0300, 0x0304, 0x0403, 0xFEFD, 0xFFFF])
def test_a_version_that_no_client_of_tls_sends(version: int) -> None:
    """SSL 3.0 must not be used (RFC 7568), and 1.3 does not stand here (RFC 8446 §4.1.2)."""
    hello = records(message(typical(), legacy_version=version))
    assert refused(hello) == "legacy_version is none of TLS 1.0 to 1.2"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\1\3",
        b"\3\3\4\3",
        b"\2\3",
        b"\2\3\4\0",
        b"\0\3\4",
        b"\4\3\4",
        b"\xff\3\4",
        sized(1, numbers(GREASE)),
        sized(1, numbers(0x0300, 0x0305, 0x7F1C)),
    ],
    ids=bytes.hex,
)
@pytest.mark.parametrize("behind", [(), ((35, b"\3\4\3\4"),)])
def test_versions_that_are_no_list_or_name_none(data: bytes, behind: tuple[Extension, ...]) -> None:
    refused(with_extensions((SUPPORTED_VERSIONS, data), *behind))


# ALPN --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocols", "text"),
    [
        (["h2"], "h2"),
        (["h2", "http/1.1"], "h2,http/1.1"),
        (["http/1.1", "h2"], "http/1.1,h2"),
        (["a,b", "c"], "a%2Cb,c"),
        (["100%"], "100%25"),
        ([b"\n\n"], "%0A%0A"),
        (['"\\ \x7f'], "%22%5C%20%7F"),
        ([b"\xc3\xbc"], "%C3%BC"),
        (["x" * 64], "x" * 64),
        (["x" * 32, "y" * 31], "x" * 32 + "," + "y" * 31),
        (["x" * 65], "x" * 61 + "..."),
        (["x" * 32, "y" * 32], "x" * 32 + "," + "y" * 28 + "..."),
        (["x"] * 32, ",".join(["x"] * 32)),
        (["x"] * 33, "x," * 30 + "x..."),
        (["x"] * 5000, "x," * 30 + "x..."),
        ([b"\0" * 255] * 2, "%00" * 20 + "%..."),
    ],
)
def test_alpn_is_text_that_a_log_can_hold(protocols: list[str | bytes], text: str) -> None:
    assert parse(client_hello(alpn=protocols)).alpn == text
    assert len(text) <= 64
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0",
        b"\0\1\0",
        b"\0\3\2h",
        b"\0\4\2h2",
        b"\0\3\3h2",
        b"\0\3\2h2\0",
        b"\0\2\2h2",
        b"\0\4\2h2\0",
        b"\0\4\0\2h2",
        b"\0\5\1h\xff2!",
        b"\xff\xff\2h2",
        sized(2, sized(1, b"x" * 200) + b"\0"),
        sized(2, sized(1, b"x" * 200) + b"\7x"),
    ],
    ids=bytes.hex,
)
@pytest.mark.parametrize("behind", [(), ((35, b"\2h2\2h2"),)])
def test_alpn_that_is_no_list_of_names(data: bytes, behind: tuple[Extension, ...]) -> None:
    refused(with_extensions((ALPN, data), *behind))


# Encrypted ClientHello ---------------------------------------------------------------------------


@pytest.mark.parametrize("config_id", [0, 1, 255])
@pytest.mark.parametrize("behind", [(), ((35, b""),)])
def test_the_config_id_of_an_outer_hello(config_id: int, behind: tuple[Extension, ...]) -> None:
    extension = ech_extension(config_id)
    assert parse(with_extensions(extension, *behind)).ech == config_id
    assert parse(with_extensions(ech_extension(config_id, enc=b"", payload=b"x"))).ech == config_id


OUTER = ech_extension(9)[1]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\1", id="an inner one, which must never be seen"),
        pytest.param(b"\1" + OUTER[1:], id="an inner one that looks like an outer one"),
        pytest.param(b"\2" + OUTER[1:], id="an unknown type"),
        pytest.param(b"", id="empty"),
        pytest.param(OUTER[:6], id="cut before enc"),
        pytest.param(OUTER[:-1], id="cut"),
        pytest.param(OUTER + b"\0", id="a byte behind it"),
        pytest.param(ech_extension(9, payload=b"")[1], id="no payload"),
        pytest.param(OUTER[:6] + b"\xff\xff" + OUTER[8:], id="enc ends too late"),
        pytest.param(OUTER[:6] + b"\0\x1f" + OUTER[8:], id="enc and payload overlap"),
    ],
)
@pytest.mark.parametrize("behind", [(), ((35, bytes(16)),)])
def test_an_encrypted_hello_that_is_malformed(data: bytes, behind: tuple[Extension, ...]) -> None:
    refused(with_extensions((ENCRYPTED_CLIENT_HELLO, data), *behind))


# The message -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 32])
def test_a_session_id(length: int) -> None:
    hello = records(message(typical(), session_id=bytes(length)))
    assert parse(hello).server_name == "origin.test"


SHORT = message(typical())


def lengthened(handshake: bytes, by: int) -> bytes:
    """The handshake header says more, or less, than there is."""
    return handshake[:1] + (len(handshake) - 4 + by).to_bytes(3) + handshake[4:]


@pytest.mark.parametrize(
    ("handshake", "detail"),
    [
        (message(typical(), session_id=bytes(33)), "legacy_session_id is longer than 32 bytes"),
        (message(typical(), suites=b""), "cipher_suites is empty or has an odd length"),
        (message(typical(), suites=b"\x13"), "cipher_suites is empty or has an odd length"),
        (message(typical(), suites=b"\x13\1\x13"), "cipher_suites is empty or has an odd length"),
        (message(typical(), compression=b""), "the compression methods lack null"),
        (message(typical(), compression=b"\1"), "the compression methods lack null"),
        (message(typical(), after=b"\0"), "the length of the extensions does not fit"),
        (message(None, after=b"\0"), "a field ends too late"),
        (message(None, after=b"\0\1"), "the length of the extensions does not fit"),
        (message(None, after=b"\0\0\0"), "the length of the extensions does not fit"),
        (message(b"\0"), "a field ends too late"),
        (message(b"\0\x23\0"), "a field ends too late"),
        (message(b"\0\x23\0\1"), "an extension ends too late"),
        (message(b"\0\x23\xff\xff\0"), "an extension ends too late"),
        (message(b"\0\x23\0\0\0"), "a field ends too late"),
        (message(typical(), kind=2), "the first handshake message is no ClientHello"),
        (message(typical(), kind=0), "the first handshake message is no ClientHello"),
        (b"\1\0\0\x28" + bytes(40), "the ClientHello is too short"),
        (b"\1\0\0\0", "the ClientHello is too short"),
        (lengthened(SHORT, -1), "something follows the ClientHello in the same record"),
        (SHORT + b"\0", "something follows the ClientHello in the same record"),
        (SHORT + SHORT, "something follows the ClientHello in the same record"),
    ],
)
def test_a_message_that_is_malformed(handshake: bytes, detail: str) -> None:
    assert refused(records(handshake)) == detail
    assert refused(records(handshake, [1, 2, 3])) == detail


def test_every_length_of_the_message_counts() -> None:
    """Whatever else a length says, the hello is refused, or names nobody."""
    hello = message([server_name_extension("origin.test"), versions_extension(TLS13)])
    # legacy_session_id, cipher_suites, compression, the block; server_name, its list, the name; versions, their list.
    lengths = [38, 39, 40, 59, 61, 62, 65, 66, 67, 68, 70, 71, 85, 86, 87]
    assert parse(records(hello)).server_name == "origin.test"
    nobody = []
    for position in lengths:
        for value in set(range(256)) - {hello[position]}:
            changed = records(hello[:position] + bytes([value]) + hello[position + 1 :])
            try:
                assert parse(changed).server_name is None
            except HelloError:
                continue
            nobody.append((position, value))
    # All that is left of the message as compression methods, null among them.
    assert nobody == [(59, len(hello) - 60)]


def test_lengths_that_agree_with_one_another_and_not_with_the_message() -> None:
    """Extensions that reach over the end of the block into what follows, and back."""
    inside = block([server_name_extension("origin.test")])
    outside = block([server_name_extension("other.test")])
    refused(records(message(inside, after=outside)))
    refused(records(message(inside + outside)))
    refused(records(message(inside[:2] + sized(2, inside[4:] + outside))))


@pytest.mark.parametrize("compression", [b"\0", b"\1\0", b"\0\1", bytes(255)])
def test_compression_that_old_clients_offer(compression: bytes) -> None:
    hello = records(message(typical(versions=None), compression=compression))
    assert parse(hello).server_name == "origin.test"


# Records -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS10, TLS11, TLS12, TLS13])
def test_the_version_of_a_record(version: int) -> None:
    assert parse(records(SHORT, version=version)).server_name == "origin.test"


@pytest.mark.parametrize("version", [0x0300, 0x0305, 0x03FF])
def test_a_version_of_a_record_that_no_client_sends(version: int) -> None:
    assert refused(records(SHORT, version=version)) == "the version of a record is none of TLS"


@pytest.mark.parametrize(
    "sizes", [[1], [1, 1, 1], [1, 1, 1, 1], [2, 2], [3], [4], [5, 30, 4, 1], [40] * 4, [1] * 60]
)
def test_a_message_in_pieces(sizes: list[int]) -> None:
    hello = client_hello("origin.test", ech=3, sizes=sizes)
    assert parse(hello) == replace(parse(client_hello("origin.test", ech=3)), size=len(hello))
    for length in range(len(hello)):
        assert parse_client_hello(hello[:length], LIMIT) is None


def test_a_message_that_needs_several_records() -> None:
    hello = client_hello(extra=[(21, bytes(40_000))])
    assert parse(hello, 65536).server_name == "origin.test"
    assert parse(client_hello(extra=[(21, bytes(2**14 - 200))])).server_name == "origin.test"


HEAD, TAIL = SHORT[:50], SHORT[50:]


@pytest.mark.parametrize(
    ("wire", "detail"),
    [
        (record(b"") + record(SHORT), "a handshake record is empty or longer than 16384 bytes"),
        (
            record(HEAD) + record(b"") + record(TAIL),
            "a handshake record is empty or longer than 16384 bytes",
        ),
        (
            record(message([(21, bytes(2**14))])),
            "a handshake record is empty or longer than 16384 bytes",
        ),
        (
            record(HEAD) + record(b"\1\0", kind=21) + record(TAIL),
            "another record stands in between those of the ClientHello",
        ),
        (
            record(HEAD) + record(b"\1", kind=20) + record(TAIL),
            "another record stands in between those of the ClientHello",
        ),
        (
            record(HEAD) + record(TAIL, kind=23),
            "another record stands in between those of the ClientHello",
        ),
        (record(HEAD) + record(TAIL, version=0x0200), "the version of a record is none of TLS"),
        (
            record(HEAD) + record(TAIL + b"\0"),
            "something follows the ClientHello in the same record",
        ),
        (
            record(HEAD) + record(TAIL + SHORT),
            "something follows the ClientHello in the same record",
        ),
    ],
)
def test_records_that_are_refused(wire: bytes, detail: str) -> None:
    assert parse(record(HEAD) + record(TAIL)).server_name == "origin.test"
    assert refused(wire) == detail


def test_further_records_are_not_looked_at() -> None:
    """ChangeCipherSpec and early data follow a ClientHello of TLS 1.3. What else follows is the server's business."""
    hello = client_hello()
    for behind in (
        record(b"\1", kind=20),
        record(bytes(300), kind=23),
        b"\x17",
        b"GET / HTTP/1.1\r\n",
        client_hello("other.test"),  # as after a HelloRetryRequest
    ):
        assert parse(hello + behind) == parse(hello)
        assert parse(hello + behind, len(hello)) == parse(hello)


def test_a_hello_in_too_many_records_is_refused_and_not_read_over_and_over() -> None:
    assert parse(records(SHORT, [1] * (MAX_RECORDS - 1))).server_name == "origin.test"
    many = records(SHORT, [1] * len(SHORT))
    allowed = 6 * MAX_RECORDS
    assert parse_client_hello(many[: allowed - 1], LIMIT) is None
    assert refused(many[:allowed]) == "the ClientHello comes in more than 64 records"


# What is no TLS ----------------------------------------------------------------------------------

SSLV2_HELLO = bytes.fromhex("802e0103010015000000100100800300800600400400800700c0") + bytes(22)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"EHLO client.test\r\n",
        b"\0",
        b"\n",
        b"\x15\3\1\0\2\1\0",  # an alert
        b"\x14\3\1\0\1\1",  # ChangeCipherSpec
        b"\x17\3\3\0\1\0",  # application data
        b"\x16\xfe\xfd\0\0\0\0\0\0\0\0\0\x10",  # DTLS 1.2
        b"\x16\2\0\0\5",
        b"\x16\x16",
        b"\x04\x01\x01\xbb\xc0\x00\x02\x01\0",  # SOCKS4
        b"\x05\1\0",  # SOCKS5
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",  # PostgreSQL's SSLRequest
        SSLV2_HELLO,
    ],
    ids=repr,
)
def test_what_is_no_tls_is_refused_at_its_first_bytes(data: bytes) -> None:
    enough = 2 if data.startswith(b"\x16") else 1
    for shown in (data, data[:enough]):
        with pytest.raises(HelloError) as caught:
            parse_client_hello(shown, LIMIT)
        assert caught.value.reason is reasons.TUNNEL_NOT_TLS


@pytest.mark.parametrize("kind", [0, 20, 21, 23, 24, 0x80, 0x96])
def test_a_whole_hello_in_a_record_of_another_type_is_no_tls(kind: int) -> None:
    with pytest.raises(HelloError) as caught:
        parse_client_hello(record(SHORT, kind=kind), LIMIT)
    assert caught.value.reason is reasons.TUNNEL_NOT_TLS


@pytest.mark.parametrize(
    "data",
    [
        "16 03 00",
        "16 03 05",
        "16 03 01 00 00",
        "16 03 01 40 01",
        "16 03 01 00 50 02",
        "16 03 01 00 50 01 00 00 28",
        "16 03 01 00 50 01 00 00 4b",
        "16 03 01 00 50 01 01 00 00",
        "16 03 01 00 01 01 17",
        "16 03 01 00 01 01 16 02",
        "16 03 01 00 01 01 16 03 05",
        "16 03 01 00 01 01 16 03 01 00 00",
        "16 03 01 00 01 01 16 03 01 00 03 00 00 28",
        "16 03 01 00 03 01 00 00 16 03 01 00 50 4e",
    ],
)
def test_a_hello_is_refused_as_soon_as_it_cannot_become_one(data: str) -> None:
    hello = bytes.fromhex(data)
    refused(hello)
    assert parse_client_hello(hello[:-1], LIMIT) is None
    assert parse_client_hello(b"", LIMIT) is None


# The limit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[], [1], [3, 3], [100]])
def test_the_limit_counts_every_byte(sizes: list[int]) -> None:
    hello = client_hello(sizes=sizes)
    assert parse(hello, len(hello)).server_name == "origin.test"
    for length in range(5, len(hello) + 1):
        assert refused_or_none(hello[:length], len(hello) - 1)
    assert refused(hello, len(hello) - 1) == "the ClientHello is longer than is allowed"
    assert refused(hello + bytes(100), len(hello) - 1)


def refused_or_none(data: bytes, limit: int) -> bool:
    try:
        return parse_client_hello(data, limit) is None
    except HelloError:
        return True


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        ("16 03 01 04 00", 1028),  # the record alone
        ("16 03 01 00 04 01 00 04 00", 1037),  # the message and the two headers that it needs
        ("16 03 01 00 01 01 16 03 01 00 03 00 04 00", 1042),
    ],
)
def test_a_hello_that_says_it_is_too_long_is_refused_at_once(data: str, limit: int) -> None:
    hello = bytes.fromhex(data)
    assert parse_client_hello(hello, limit + 1) is None
    assert refused(hello, limit) == "the ClientHello is longer than is allowed"


@pytest.mark.parametrize("limit", range(12))
def test_a_tiny_limit_ends_the_waiting(limit: int) -> None:
    hello = client_hello(sizes=[1, 1, 1, 1])
    assert refused(hello, limit)
    assert refused(hello[:limit], limit)
    if limit <= 5:  # which no record fits into
        assert refused(hello[:1], limit)


def test_the_largest_limit_allows_what_tls_allows() -> None:
    hello = client_hello(extra=[(21, bytes(65535 - 300))])
    assert parse(hello, 2**20).server_name == "origin.test"


# Alerts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "said"),
    [
        (UNRECOGNIZED_NAME, "unrecognized name"),
        (DECODE_ERROR, "decode error"),
        (ACCESS_DENIED, "access denied"),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_understands_an_alert(
    description: int, said: str, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="origin.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    assert parse(outgoing.read()).server_name == "origin.test"
    incoming.write(alert(description))
    with pytest.raises(ssl.SSLError, match=said):
        client.do_handshake()


def test_an_alert_is_fatal() -> None:
    assert alert(UNRECOGNIZED_NAME) == bytes.fromhex("15 0303 0002 02 70")


# What a name publishes ---------------------------------------------------------------------------


def test_the_ids_of_a_list() -> None:
    configs = [ech_config(7), ech_config(0, public_name=b"x"), ech_config(255), ech_config(7)]
    assert ech_config_ids(ech_config_list(*configs)) == {0, 7, 255}


def test_a_list_byte_by_byte() -> None:
    """Without the builder, by RFC 9849 §4."""
    published = bytes.fromhex(
        "003e fe0d 003a"  # the list, one configuration
        "59 0020"  # config_id, X25519
        "0020"
        + "09".ljust(64, "0")  # public_key
        + "0004 0001 0001"  # HKDF-SHA256, AES-128-GCM
        "00 0b 7075626c69632e74657374"  # maximum_name_length, public.test
        "0000"  # extensions
    )
    assert ech_config_ids(published) == {0x59}
    assert published == ech_config_list(ech_config(0x59, public_key=b"\t" + bytes(31)))


def test_configurations_of_another_version_are_skipped() -> None:
    other = ech_config(1, version=0xFE0C), ech_config(2, version=0xFF03)
    assert ech_config_ids(ech_config_list(*other)) == set()
    assert ech_config_ids(ech_config_list(other[0], ech_config(3), other[1])) == {3}
    assert ech_config_ids(ech_config_list(b"\xff\xff\0\0")) == set()


def test_a_configuration_with_extensions_counts_whatever_they_are() -> None:
    config = ech_config(5, extensions=[(0xFFFF, b"mandatory and unknown")])
    assert ech_config_ids(ech_config_list(config)) == {5}


CONFIG = ech_config(5)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0",
        b"\0\4",
        b"\0\3\xfe\x0d\0",
        ech_config_list(CONFIG)[:-1],
        ech_config_list(CONFIG) + b"\0",
        ech_config_list(CONFIG + b"\0"),
        ech_config_list(CONFIG + CONFIG[:-1]),
        ech_config_list(CONFIG[:-1]),
        ech_config_list(b"\xfe\x0d\0\0"),
        ech_config_list(b"\xff\xff\0\1"),
        ech_config_list(ech_config(5, after=b"\0")),
        ech_config_list(ech_config(5, public_key=b"")),
        ech_config_list(ech_config(5, public_name=b"")),
        *(ech_config_list(b"\xfe\x0d" + sized(2, CONFIG[4:cut])) for cut in range(5, len(CONFIG))),
        ech_config_list(ech_config(5, suites=b"")),
        ech_config_list(ech_config(5, suites=b"\0\1\0\1\0\1")),
        ech_config_list(CONFIG[:-1] + b"\1"),
        ech_config_list(CONFIG[:-1] + b"\1", CONFIG),
    ],
)
def test_a_list_that_is_malformed(data: bytes) -> None:
    with pytest.raises(ValueError):
        ech_config_ids(data)


def test_extensions_of_the_builder_are_what_they_say() -> None:
    """Else the tests above would pass for another reason."""
    assert server_name_extension("a.b") == (0, b"\0\6\0\0\3a.b")
    assert alpn_extension("h2") == (16, b"\0\3\2h2")
    assert versions_extension(TLS13) == (43, b"\2\3\4")
    assert records(b"\1\0\0\0", [1]) == b"\x16\3\1\0\1\1\x16\3\1\0\3\0\0\0"
