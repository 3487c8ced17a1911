"""What happens with X? The table in ``data/decisions.md``, row by row, the way that the server goes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from egress_proxy.config.load import parse
from egress_proxy.config.model import Config
from egress_proxy.core.conditions import Asked
from egress_proxy.core.decide import decide, vet_addresses
from egress_proxy.core.errors import HeadError
from egress_proxy.core.explain import explain
from egress_proxy.core.http1 import END_OF_HEAD, HeadLimits, ProxyRequest, parse_request
from egress_proxy.core.identity import parse_identity
from egress_proxy.core.reason import Event
from egress_proxy.core.record import Record

TABLE = Path(__file__).parent / "data" / "decisions.md"
ANYBODY = "client=192.0.2.10"

#: What is asked about, at least five times each.
SECTIONS = [
    "Plain requests",
    "Suffixes and neighbours",
    "Wildcards in rules",
    "Asterisks in the target",
    "Trailing dots and case",
    "Percent-encoding",
    "Control bytes and white space",
    "Unicode look-alikes",
    "International names",
    "Lengths",
    "Labels",
    "Spellings of the port",
    "Ports of rules",
    "Spellings of IPv4 addresses",
    "Spellings of IPv6 addresses",
    "IPv4 inside IPv6",
    "Special-use networks by address",
    "Brackets",
    "User information",
    "Backslashes, paths and schemes",
    "Host header",
    "Sets",
    "Deny beats ask beats allow",
    "Subjects",
    "Methods",
    "Paths",
    "Spellings of paths",
    "TLS inside the tunnel",
    "Addresses behind names",
    "Denied networks behind names",
    "Audit mode",
]

#: Texts without which the table would have lost a trap that some proxy fell into.
TRAPS = {
    "suffix confusion": ["evilgithub.com", "github.com.evil.test", "github.com-evil.test", "github.comevil.test"],
    "trailing dots": ["github.com.:443", "github.com..:443"],
    "upper case": ["GITHUB.com", "XN--", "GET HTTP://"],
    "percent-encoding": ["%67ithub.com", "github.com%00.evil.test"],
    "NUL": [r"github.com\x00.evil.test", r"evil.test\x00.github.com"],
    "CR and LF": [r"github.com\r:443", r"github.com\n:443", r"\r\nHost: evil.test"],
    "spaces and tabs": ["github.com :443", "443 `", r"github.com\t:443", ": 443"],
    "Unicode dots": ["\u3002", "\uff0e", "\uff61"],
    "full-width letters": ["\uff47\uff49\uff54\uff48\uff55\uff42.com"],
    "IDN": ["xn--bcher-kva.example", "b\u00fccher.example", "xn--999999999"],
    "label and name lengths": ["a{63}.test", "a{64}.test", "d{61}:443", "d{62}:443"],
    "odd labels": ["_dmarc.", " -a.", " a-.", "github..com", " .github.com"],
    "ports": [":0`", ":65535`", ":65536`", ":+443`", ":0443`", "github.com:`", "github.com`", ":https`", ":443a`"],
    "IPv4": [" 127.1:", "2130706433", "017700000001", "0x7f000001", "0177.0x0.1", "4294967296", "256.0.0.1"],
    "IPv6": ["[::1]:", " ::1:443", "%25eth0]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::", "[2002:"],
    "brackets": ["[github.com]", "[[::1]]"],
    "user information": ["github.com@evil.test", "user:pass@github.com"],
    "path spellings": ["/../admin", "/%2e%2e/", "/%61dmin", "%2fadmin", "%252f", "//admin", r"\\admin"],
    "more of them": ["admin;x=1", "admin%00", "%c0%afadmin", "test/ADMIN"],
    "backslashes, paths, schemes": [r"github.com\\", "github.com:443/", "CONNECT http://", "https://"],
    "asterisks": ["*.githubusercontent.com:443` | 400", "`CONNECT *:443` | 400"],
    "who asks": ["client=", "user=", "namespace=", "pod_labels."],
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    line: int
    section: str
    policy: str
    request: str
    outcome: str
    because: str
    host: str | None = None
    who: str = ANYBODY
    addresses: tuple[str, ...] = ()
    tls: str | None = None

    def __str__(self) -> str:
        """The row as the name of a test: short, and unlike every other."""
        request = self.request if len(self.request) <= 80 else f"{self.request[:77]}..."
        parts = [self.section, self.policy, request]
        parts += [f"Host {self.host}"] if self.host is not None else []
        parts += [f"as {self.who}"] if self.who != ANYBODY else []
        parts += [f"to {' '.join(self.addresses)}"] if self.addresses else []
        return ", ".join(parts)


# Reading the table ------------------------------------------------------------------------------------------------

_POLICY = re.compile(r"^`([a-z-]+)`: [^`]*?\n\n```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OF_SECTION = re.compile(r"Policy `([a-z-]+)`\.")


def read_policies(text: str) -> dict[str, Config]:
    return {
        name: parse(yaml.encode(), f"{name}.yaml").config for name, yaml in _POLICY.findall(text)
    }


def read_rows(text: str) -> Iterator[Row]:
    section, policy = "", ""
    columns: list[str] = []
    for line, content in enumerate(text.splitlines(), 1):
        if content.startswith("## "):
            section, policy, columns = content[3:], "", []
        elif named := _OF_SECTION.match(content):
            policy = named[1]
        elif content.startswith("|"):
            cells = [_cell(cell) for cell in content.strip("|").split("|")]
            if not columns:
                columns = cells
            elif not content.startswith("|-"):
                assert len(cells) == len(columns), f"line {line} has not the columns of its table"
                yield _row(line, section, policy, dict(zip(columns, cells, strict=True)))


def _cell(text: str) -> str:
    """What stands in a cell, white space within the back-quotes kept."""
    text = text.strip()
    return text[1:-1] if text[:1] == text[-1:] == "`" else text


def _row(line: int, section: str, policy: str, cells: dict[str, str]) -> Row:
    row = Row(
        line,
        section,
        cells.pop("Policy", policy),
        cells.pop("Request"),
        cells.pop("Outcome"),
        cells.pop("Because"),
        cells.pop("Host", None),
        cells.pop("As", "") or ANYBODY,
        tuple(cells.pop("Addresses", "").split()),
        cells.pop("TLS", None),
    )
    assert not cells, f"line {line} has columns that nobody reads: {', '.join(cells)}"
    return row


_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|([rnt\\]))")
_REPEATED = re.compile(rb"(.)\{([0-9]+)\}")


def to_bytes(text: str) -> bytes:
    """What the table writes as ``\\x00``, ``\\r``, ``\\n``, ``\\t``, ``\\\\`` and ``a{63}``, as bytes."""
    data = _REPEATED.sub(lambda found: found[1] * int(found[2]), text.encode())
    named = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}
    return _ESCAPE.sub(
        lambda found: named[found[2]] if found[2] else bytes.fromhex(found[1].decode()), data
    )


TEXT = TABLE.read_text(encoding="utf-8")
ROWS = list(read_rows(TEXT))


@cache
def policies() -> dict[str, Config]:
    return read_policies(TEXT)


# The way of a request ---------------------------------------------------------------------------------------------


def head_of(row: Row) -> bytes:
    """The head as a client sends it, up to the first empty line, where the server would cut it."""
    method, _, target = to_bytes(row.request).partition(b" ")
    if row.host is not None:
        host = to_bytes(row.host)
    else:
        host = re.split(rb"[/?]", target.partition(b"://")[2], maxsplit=1)[0] or target
    data = b"%s %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (method, target, host)
    return data[: data.index(END_OF_HEAD) + len(END_OF_HEAD)]


def asked(request: ProxyRequest) -> Asked | None:
    return None if request.is_connect else Asked(request.method, request.path)


def because(reason: str | None, rule: object | None) -> str:
    return ": ".join(str(part) for part in (reason, rule) if part is not None)


def what_happens(row: Row) -> tuple[str, str, bool | None]:
    """The event, or the status of what cannot be read; the reason and the rule; whether the tunnel must be TLS."""
    config = policies()[row.policy]
    limits = HeadLimits(config.limits.head_bytes, config.limits.head_fields)
    try:
        request = parse_request(head_of(row), limits)
    except HeadError as error:
        return str(error.reason.status), error.reason.name, None
    identity, destination = parse_identity(row.who), request.destination
    record = Record()
    decision = decide(config.policy, identity, destination, asked(request))
    if decision.denial is not None:
        record.conclude(Event.WOULD_DENY if decision.allowed else Event.DENIED, decision.denial)
    addresses = (destination.host.text,) if destination.host.address is not None else row.addresses
    if decision.allowed and addresses:
        vetting, prohibition = vet_addresses(decision, addresses, destination.port)
        if prohibition is not None and not vetting.passed:
            record.conclude(Event.DENIED, prohibition)
        elif prohibition is not None and not record.event:
            record.conclude(Event.WOULD_DENY, prohibition)
    if not record.event:
        record.conclude(Event.ALLOWED, None)
    rule = None if decision.match is None else decision.match.rule
    return record.event, because(record.reason, rule), decision.tls


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_decision(row: Row) -> None:
    event, why, tls = what_happens(row)
    assert (event, why) == (row.outcome, row.because)
    if row.tls is not None:
        assert tls is {"verify": True, "off": False}[row.tls]


@pytest.mark.parametrize("row", [row for row in ROWS if not row.outcome.isdigit()], ids=str)
def test_explain_agrees(row: Row) -> None:
    config = policies()[row.policy]
    limits = HeadLimits(config.limits.head_bytes, config.limits.head_fields)
    request = parse_request(head_of(row), limits)
    said = explain(
        *(config.policy, parse_identity(row.who), request.destination, row.addresses),
        asked=asked(request),
    )
    assert (said.outcome, because(said.reason, said.rule)) == (row.outcome, row.because)
    assert row.tls is None or said.tls is (row.tls == "verify")


# The table itself -------------------------------------------------------------------------------------------------


def test_the_table_is_large_and_says_each_thing_once() -> None:
    assert len(ROWS) >= 180
    assert [name for name, count in Counter(map(str, ROWS)).items() if count > 1] == []


def test_every_section_has_its_rows() -> None:
    found = Counter(row.section for row in ROWS)
    assert list(found) == SECTIONS
    assert [name for name, count in found.items() if count < 5] == []


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_is_there(trap: str) -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert [text for text in TRAPS[trap] if not any(text in line for line in lines)] == []


def test_every_outcome_and_both_forms_are_there() -> None:
    assert {row.outcome for row in ROWS} == {"ALLOWED", "DENIED", "WOULD_DENY", "400"}
    assert {"CONNECT", "GET"} <= {row.request.partition(" ")[0] for row in ROWS}
    assert {row.policy for row in ROWS} == set(policies())


def test_how_the_table_is_read() -> None:
    assert to_bytes(r"a\x00\r\n\t\\b{3}") == b"a\x00\r\n\t\\bbb"
    assert to_bytes("ü") == b"\xc3\xbc"
    assert _cell(" `a ` ") == "a "
    assert _cell(" x ") == "x"
