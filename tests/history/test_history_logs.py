"""What a log's lines say, ours and Squid's; and lines that say nothing, by mistake or on purpose."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core.record import Record
from egress_proxy.history import logs, tally
from egress_proxy.history.logs import (
    LogReader,
    LogSummary,
    PastRequest,
    open_log,
    read_lines,
)
from egress_proxy.history.tally import Distinct, Tally
from egress_proxy.observe.lines import encode
from tests.history.patching import allowed, line


def read(*lines: str) -> tuple[list[PastRequest], LogSummary]:
    reader = LogReader(lines)
    return list(reader), reader.summary()


def one(text: str) -> PastRequest:
    (found,), summary = read(text)
    assert summary == LogSummary(1, 1, {}, 0, ())
    return found


def told(found: PastRequest) -> tuple[str, ...]:
    address = found.address or "-"
    return (str(found.identity), str(found.destination), found.was, address, found.time)


# Our lines. -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            line("a.test"),
            ("10.20.0.7", "a.test:443", "DENIED (host_not_allowed)", "-", "2026-01-31T12:00:00Z"),
        ),
        (
            line(
                "a.test", event="WOULD_DENY", reason="destination_ip_prohibited", address="10.0.0.1"
            ),
            (
                *("10.20.0.7", "a.test:443", "WOULD_DENY (destination_ip_prohibited)"),
                *("10.0.0.1", "2026-01-31T12:00:00Z"),
            ),
        ),
        (
            allowed("2001:db8::1", 80, "fd00::7", user="batch", namespace="agents", timestamp="no"),
            ("fd00::7, user batch, namespace agents", "[2001:db8::1]:80", "ALLOWED", "-", ""),
        ),
        (
            line("127.1", client="::ffff:10.0.0.1", reason="address_not_allowed"),
            (
                "10.0.0.1",
                "127.0.0.1:443",
                "DENIED (address_not_allowed)",
                "-",
                "2026-01-31T12:00:00Z",
            ),
        ),
        (
            line("A.test.", event="CLOSED", reason="idle_timeout", timestamp="5"),
            ("10.20.0.7", "a.test:443", "ALLOWED", "-", ""),
        ),
        (
            line("a.test", event="FAILED", reason="dns_nxdomain"),
            ("10.20.0.7", "a.test:443", "ALLOWED", "-", "2026-01-31T12:00:00Z"),
        ),
        (
            # It was decided before the shutdown came.
            line("a.test", event="CLOSED", reason="drain_timeout", policy="p"),
            ("10.20.0.7", "a.test:443", "ALLOWED", "-", "2026-01-31T12:00:00Z"),
        ),
    ],
)
def test_our_lines(text: str, expected: tuple[str, ...]) -> None:
    assert told(one(text)) == expected
    assert told(one(f"{text}\r\n")) == expected


@pytest.mark.parametrize(
    "prefix",
    [
        "[pod/egress-proxy-7d9f6c5b8-x2x4q/proxy] ",
        "2026-01-31T12:00:00.123456789Z ",
        "2026-01-31T12:00:00.123456789+01:00 ",
        "[pod/a/b] 2026-01-31T12:00:00.123456789Z ",
        "2026-01-31T12:00:00.123456789Z stdout F ",
    ],
)
def test_what_kubernetes_puts_before_a_line(prefix: str) -> None:
    assert one(prefix + line("a.test")) == one(line("a.test"))
    assert one(prefix + squid("TCP_DENIED/403", "CONNECT", "a.test:443")).refused


def test_what_the_proxy_writes_is_read() -> None:
    record = Record(event="DENIED", client="10.0.0.1", host="a.test", port=443, path='/\x9b"')
    record.reason = "host_not_allowed"
    assert str(one(encode(record).decode()).destination) == "a.test:443"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"event":"listening","proxy":"127.0.0.1:3128"}', "other"),
        ('{"level":"info"}', "other"),
        ("", "other"),
        (" \t", "other"),
        (line("a.test", reason="bad_authority"), "malformed"),
        (line("a.test", reason="duplicate_credentials"), "malformed"),
        ('{"event":"DENIED","client":"10.0.0.1","reason":"bare_lf"}', "malformed"),
        (line("a.test", reason="proxy_credentials_required"), "credentials"),
        (line("a.test", event="WOULD_DENY", reason="proxy_credentials_wrong"), "credentials"),
        (line("a.test", reason="a_reason_of_tomorrow"), "undecided"),
        (line("a.test", reason="idempotency_key_missing"), "contract"),
        (line("a.test", reason="idempotency_key_invalid"), "contract"),
        (line("a.test", reason="tenant_id_missing"), "contract"),
        (line("a.test", event="WOULD_DENY", reason="tenant_id_invalid"), "contract"),
        (line("a.test", reason="request_rate"), "limits"),
        (line("a.test", event="WOULD_DENY", reason="tunnel_limit"), "limits"),
        (line("a.test", reason="new_hosts_limit"), "limits"),
        (line("a.test", reason="request_budget"), "limits"),
        (line("a.test", reason="byte_budget"), "limits"),
        (line("a.test", reason=None), "undecided"),
        (line("a.test", event="FAILED", reason="draining"), "undecided"),
        (line("a.test", event="CLOSED", reason="drain_timeout"), "undecided"),
        ('{"event":"CLOSED","client":"10.0.0.1","reason":"idle_timeout"}', "undecided"),
    ],
)
def test_lines_that_are_left_out(text: str, why: str) -> None:
    assert read(text) == ([], LogSummary(1, 0, {why: 1}, 0, ()))


# Squid's lines. ---------------------------------------------------------------------------------------------------


def squid(
    result: str,
    method: str,
    url: str,
    *,
    client: str = "10.20.0.7",
    user: str = "-",
    peer: str = "HIER_NONE/-",
    time: str = "1769860800.123",
) -> str:
    return f"{time}     12 {client} {result} 3900 {method} {url} {user} {peer} text/html"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            squid("TCP_DENIED/403", "CONNECT", "a.test:443"),
            ("10.20.0.7", "a.test:443", "TCP_DENIED/403", "-", "2026-01-31T12:00:00Z"),
        ),
        (
            squid("TCP_DENIED_REPLY/403", "GET", "http://A.test/x?y=z", user="batch"),
            (
                "10.20.0.7, user batch",
                "a.test:80",
                "TCP_DENIED_REPLY/403",
                "-",
                "2026-01-31T12:00:00Z",
            ),
        ),
        (
            squid(
                "TCP_TUNNEL/200", "CONNECT", "[2001:db8::1]:8443", peer="HIER_DIRECT/2001:db8::1"
            ),
            ("10.20.0.7", "[2001:db8::1]:8443", "ALLOWED", "2001:db8::1", "2026-01-31T12:00:00Z"),
        ),
        (
            squid("TCP_MISS/503", "GET", "http://a.test:8080/", peer="FIRSTUP_PARENT/10.0.0.1"),
            ("10.20.0.7", "a.test:8080", "ALLOWED", "-", "2026-01-31T12:00:00Z"),
        ),
        (
            # A user of a directory is nobody that our files could name.
            squid(
                "TCP_MISS/200", "GET", "https://a.test/", user="CORP\\bob", peer="HIER_DIRECT/a.b"
            ),
            ("10.20.0.7", "a.test:443", "ALLOWED", "-", "2026-01-31T12:00:00Z"),
        ),
        (
            squid("TCP_DENIED/302", "GET", "http://a.test/", time="99999999999.9"),
            ("10.20.0.7", "a.test:80", "TCP_DENIED/302", "-", "5138-11-16T09:46:39Z"),
        ),
    ],
)
def test_squids_lines(text: str, expected: tuple[str, ...]) -> None:
    found = one(text)
    assert told(found) == expected
    assert found.refused == ("DENIED" in expected[2])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (squid("TCP_DENIED/407", "CONNECT", "a.test:443"), "credentials"),
        (squid("NONE_NONE/400", "NONE", "error:invalid-request"), "malformed"),
        (squid("TAG_NONE/400", "GET", "http://a.test/"), "malformed"),
        (squid("NONE/000", "NONE", "error:transaction-end-before-headers"), "malformed"),
    ],
)
def test_squids_lines_that_are_left_out(text: str, why: str) -> None:
    assert read(text) == ([], LogSummary(1, 0, {why: 1}, 0, ()))


# Lines that are no lines. -----------------------------------------------------------------------------------------

HOSTILE = [
    "junk",
    "Traceback (most recent call last):",
    "{",
    "{}x",
    line("a.test") + line("b.test"),
    "[" * 100_000,
    '{"host":' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"event":' + "9" * 5000 + "}",
    '{"event":1e999,"host":"a.test"}',
    '{"event":5,"host":"a.test"}',
    '{"event":["DENIED"],"host":"a.test"}',
    '{"event":"\\ud800"}',
    '{"event":"\ud800"}',
    line("a.test") + "\0",
    line("a.test", client="host.test"),
    line("a.test", client="10.0.0.0/8"),
    line("a.test", client=None),  # type: ignore[arg-type]
    line("a.test", client=5),  # type: ignore[arg-type]
    line("a.test", client={"a": 1}),  # type: ignore[arg-type]
    line("a.test", "443"),  # type: ignore[arg-type]
    line("a.test", True),
    line("a.test", 443.0),  # type: ignore[arg-type]
    line("a.test", 0),
    line("a.test", -1),
    line("a.test", 65536),
    line("a.test", 10**30),
    line("a.test", None),  # type: ignore[arg-type]
    line(""),
    line("a.test:443"),
    line("a.test, b.test"),
    line("a.test}\n    - '*'"),
    line('a.test"'),
    line("a.test # x"),
    line("*"),
    line("*.test"),
    line("@set"),
    line("a@b.test"),
    line("[::1]"),
    line("::1%25eth0]"),
    line("::g"),
    line("1.2.3.4.5"),
    line("bücher.test"),
    line("a\u202etest"),
    line("a" * 300),
    line(["a.test"]),  # type: ignore[arg-type]
    line("a.test", user="a b"),
    line("a.test", user="a}, {user: b"),
    line("a.test", user=""),
    line("a.test", user=["a"]),
    line("a.test", namespace="A"),
    line("a.test", namespace="a\n- b"),
    line("a.test", address="a.test"),
    line("a.test", address=5),
    squid("TCP_DENIED/403", "CONNECT", "a.test"),
    squid("TCP_DENIED/403", "CONNECT", "http://a.test/"),
    squid("TCP_DENIED/403", "GET", "a.test:80"),
    squid("TCP_DENIED/403", "GET", "ftp://a.test/"),
    squid("TCP_DENIED/403", "GET", "http://user@a.test/"),
    squid("TCP_DENIED/403", "GET", "http://bücher.test/"),
    squid("TCP_DENIED/403", "GET", "://"),
    squid("TCP_DENIED/\x1b[31m", "GET", "http://a.test/"),
    squid("tcp_denied/403", "GET", "http://a.test/"),
    squid("TCP_DENIED/403", "GET", "http://a.test/", client="proxy.test"),
    squid("TCP_DENIED/403", "GET", "http://a.test/", time="1e9"),
    squid("TCP_DENIED/403", "GET", "http://a.test/", time="٣.٣"),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_cannot_be_understood_is_counted_and_never_quoted(text: str) -> None:
    found, summary = read(text)
    assert found == []
    assert (summary.lines, summary.not_understood, summary.skipped) == (1, 1, {})
    (complaint,) = summary.complaints
    assert complaint.startswith("line 1: ")
    assert complaint.isprintable()
    # What it says are words of ours.
    assert "\x1b" not in complaint
    assert "b.test" not in complaint


def test_the_first_are_named_and_all_are_counted() -> None:
    found, summary = read(
        line("a.test"), *["junk"] * 9, line("b.test"), line("c.test", reason="bare_lf")
    )
    assert len(found) == 2
    assert summary.messages() == [
        *(
            f"line {number}: this is neither an audit line nor a line of Squid's access.log"
            for number in range(2, 7)
        ),
        "9 lines could not be understood",
        "1 line left out: refused as malformed",
    ]
    assert read()[1].messages() == ["the log is empty"]


def test_a_line_without_end_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_LINE", 1000)
    long = line("b.test", path="x" * 10_000).encode()
    full = line("d.test", path="x" * (1000 - len(line("d.test", path="")))).encode()
    stream = io.BytesIO(b"\n".join([line("a.test").encode(), long, full, line("c.test").encode()]))
    reader = LogReader(read_lines(stream))
    # With its end, the line that is full is one too long.
    assert [str(found.destination) for found in reader] == ["a.test:443", "c.test:443"]
    assert reader.summary().complaints == (
        "line 2: the line is too long",
        "line 3: the line is too long",
    )
    assert max(map(len, read_lines(io.BytesIO(long)))) <= 1001


def test_bytes_that_are_no_text() -> None:
    stream = io.BytesIO(b"\xff\xfe\n" + line("a.test").encode() + b"\n\x80{\n")
    reader = LogReader(read_lines(stream))
    assert [str(found.destination) for found in reader] == ["a.test:443"]
    assert reader.summary().not_understood == 2


def test_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").write_text(line("a.test") + "\n")
    with open_log(str(tmp_path / "log")) as lines:
        assert len(list(LogReader(lines))) == 1
    for path in (None, "-"):
        stdin = io.TextIOWrapper(io.BytesIO(line("a.test").encode()))
        monkeypatch.setattr("sys.stdin", stdin)
        with open_log(path) as lines:
            assert len(list(LogReader(lines))) == 1
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(OSError, match=r"No such file|directory"), open_log(str(missing)):
            pass


@given(st.lists(st.one_of(st.text(), st.binary().map(lambda data: data.decode("latin-1")))))
def test_no_text_breaks_the_reader(lines: list[str]) -> None:
    reader = LogReader(lines)
    list(reader)
    assert reader.summary().lines == len(lines)


_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(list(json.loads(line("a", address="", user="", namespace="", policy="")))),
        _values,
    )
)
def test_no_value_breaks_the_reader(fields: dict[str, object]) -> None:
    text = json.dumps({**json.loads(line("a.test")), **fields})
    for found in LogReader([text]):
        for part in told(found):
            assert part.isascii()
            assert part.isprintable()


# Counts. ----------------------------------------------------------------------------------------------------------


def test_tallies() -> None:
    one, other = Tally(), Tally()
    for time in ("2026-01-02T00:00:00Z", "", "2026-01-01T00:00:00Z"):
        one.add(time)
    assert (one.requests, one.first[:10], one.last[:10]) == (3, "2026-01-01", "2026-01-02")
    other.include(one)
    other.include(Tally())
    assert (other.requests, other.first, other.last) == (3, one.first, one.last)


def test_different_things_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_DISTINCT", 2)
    found: Distinct[str] = Distinct()
    for key in "abcabc":
        found.add(key, "")
    assert {key: each.requests for key, each in found.items()} == {"a": 2, "b": 2}
    assert found.left_out == 2
