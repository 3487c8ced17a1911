"""``dial``: what becomes of it, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from egress_proxy.config.errors import ConfigError
from egress_proxy.config.load import load, parse
from egress_proxy.config.model import Dial, Family

ROOT = Path(__file__).parents[2]
POLICIES = "policies: [{name: p, allow: [example.com]}]\n"


def dial(text: str) -> Dial:
    return parse(f"version: 1\n{POLICIES}dial: {text}\n".encode(), "f.yaml").config.dial


def refused(text: str) -> str:
    """The one problem, without its file."""
    with pytest.raises(ConfigError) as caught:
        dial(text)
    (problem,) = caught.value.problems
    return str(problem).removeprefix("f.yaml:")


def test_without_it_there_are_the_defaults() -> None:
    found = parse(f"version: 1\n{POLICIES}".encode(), "f.yaml").config.dial
    assert found == Dial(Family.IPV6, 0.25, 16, 10, ())


def test_every_key_is_read() -> None:
    found = dial(
        '{prefer: ipv4, stagger: 50ms, max_attempts: 3, failure_memory: 0s, source_addresses: ["::1"]}'
    )
    assert found == Dial(Family.IPV4, 0.05, 3, 0, ("::1",))


def test_the_example_shows_the_defaults() -> None:
    assert load(str(ROOT / "config" / "egress-proxy.yaml")).config.dial == Dial()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[192.0.2.10]", ("192.0.2.10",)),
        ('["2001:db8::10"]', ("2001:db8::10",)),
        ('["2001:DB8:0:0::10", 192.0.2.10]', ("2001:db8::10", "192.0.2.10")),
        ("[127.0.0.1]", ("127.0.0.1",)),
        ("[169.254.1.1]", ("169.254.1.1",)),
    ],
)
def test_source_addresses(written: str, read: tuple[str, ...]) -> None:
    assert dial(f"{{source_addresses: {written}}}").source_addresses == read


_ENTRY = "an entry of `source_addresses`"
_EXAMPLE = "write an IP address of this machine, such as 192.0.2.10 [bad-value]"


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("[eth0]", f"{_ENTRY} is not an IP address: `eth0`; {_EXAMPLE}"),
        ("[192.0.2.10:0]", f"{_ENTRY} is not an IP address: `192.0.2.10:0`; {_EXAMPLE}"),
        ("[192.0.2.0/24]", f"{_ENTRY} is not an IP address: `192.0.2.0/24`; {_EXAMPLE}"),
        ("[192.0.2.010]", f"{_ENTRY} is not an IP address: `192.0.2.010`; {_EXAMPLE}"),
        ("[0.0.0.0]", f"{_ENTRY} cannot be `0.0.0.0`; {_EXAMPLE}"),
        ('["::"]', f"{_ENTRY} cannot be `::`; {_EXAMPLE}"),
        ("[224.0.0.1]", f"{_ENTRY} cannot be `224.0.0.1`; {_EXAMPLE}"),
        ("[255.255.255.255]", f"{_ENTRY} cannot be `255.255.255.255`; {_EXAMPLE}"),
        ('["fe80::1"]', f"{_ENTRY} cannot be `fe80::1`; {_EXAMPLE}"),
        ('["fe80::1%eth0"]', f"{_ENTRY} cannot be `fe80::1%eth0`; {_EXAMPLE}"),
        (
            '["::ffff:192.0.2.10"]',
            f"{_ENTRY} is an IPv4 address inside IPv6; write 192.0.2.10 [bad-value]",
        ),
        (
            "[192.0.2.10, 192.0.2.11]",
            "`source_addresses` has two addresses of one family; write one of each at most [conflict]",
        ),
        (
            '["2001:db8::1", "2001:db8::2"]',
            "`source_addresses` has two addresses of one family; write one of each at most [conflict]",
        ),
    ],
)
def test_source_addresses_that_are_refused(written: str, problem: str) -> None:
    assert refused(f"{{source_addresses: {written}}}").partition(": ")[2] == problem


@pytest.mark.parametrize(
    "text",
    [
        *("{prefer: both}", "{prefer: 6}", "{stagger: 9ms}", "{stagger: 11s}", "{stagger: 250}"),
        *("{max_attempts: 0}", "{max_attempts: 101}", "{failure_memory: 11m}"),
        *("{failure_memory: -1s}", "{source_addresses: []}", "{source_addresses: 192.0.2.1}"),
        *('{source_addresses: [192.0.2.1, "::1", 192.0.2.2]}', "{preferr: ipv4}", "[]", "ipv4"),
    ],
)
def test_what_else_is_refused(text: str) -> None:
    assert refused(text)


@pytest.mark.parametrize(
    ("document", "valid"),
    [
        ({"prefer": "ipv4", "stagger": "50ms", "source_addresses": ["192.0.2.1", "::1"]}, True),
        ({"prefer": "both"}, False),
        ({"source_addresses": ["eth0"]}, False),
        ({"source_addresses": []}, False),
        ({"max_attempts": 0}, False),
    ],
)
def test_editors_are_told_the_same(document: dict[str, object], valid: bool) -> None:
    schema = json.loads((ROOT / "config" / "schema.json").read_text(encoding="utf-8"))
    whole = {
        "version": 1,
        "policies": [{"name": "p", "allow": ["example.com"]}],
        "dial": document,
    }
    assert jsonschema.Draft202012Validator(schema).is_valid(whole) is valid
