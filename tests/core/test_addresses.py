"""The address gate: what rules and audit mode lift, and what deny rules close."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.core.addresses import Grant, lifts, vet
from egress_proxy.core.networks import lies_within
from egress_proxy.core.special_use import SPECIAL_USE, SpecialUse, special_use
from tests.core.address_forms import (
    METADATA,
    PROHIBITED_IPV4,
    PROHIBITED_IPV6,
    IPAddress,
    embedded,
    grant,
    passes,
)
from tests.support.calm import CALM

# What a rule may lift.


@pytest.mark.parametrize(
    "row", [row for row in SPECIAL_USE if row.guarded], ids=lambda row: str(row.network)
)
def test_no_wider_network_lifts_a_guarded_one(row: SpecialUse) -> None:
    for address in {row.network[0], row.network[-1], row.network[row.network.num_addresses // 2]}:
        if special_use(address) != row:
            continue  # A narrower guarded row holds it.
        for length in range(row.network.prefixlen):
            wide = row.network.supernet(new_prefix=length)
            assert not lifts(wide, address, row)
            assert not passes(str(address), Grant((wide,)))
        assert lifts(row.network, address, row)
        assert passes(str(address), Grant((row.network,)))
        assert passes(str(address), Grant((ipaddress.ip_network(address),)))


@pytest.mark.parametrize(
    "row", [row for row in SPECIAL_USE if not row.guarded], ids=lambda row: str(row.network)
)
def test_any_network_that_holds_it_lifts_another(row: SpecialUse) -> None:
    for address in {row.network[0], row.network[-1]}:
        if special_use(address) != row:
            continue
        for length in range(row.network.prefixlen + 1):
            assert passes(str(address), Grant((row.network.supernet(new_prefix=length),)))
        assert passes(str(address), Grant((ipaddress.ip_network(address),)))


@settings(CALM, max_examples=200)
@given(PROHIBITED_IPV4 | PROHIBITED_IPV6, st.integers(0, 128), st.booleans())
def test_a_network_lifts_nothing_that_it_does_not_hold(
    address: IPAddress, length: int, audit: bool
) -> None:
    length = min(length, address.max_prefixlen)
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    if length:
        sibling = type(address)(int(network[0]) ^ (1 << (network.max_prefixlen - length)))
        assert not passes(str(address), Grant((ipaddress.ip_network(f"{sibling}/{length}"),)))
    special = special_use(address)
    assert special is not None
    if special.guarded and not lies_within(network, special.network):
        assert not passes(str(address), Grant((network,), audit=audit))


@pytest.mark.parametrize("address", METADATA, ids=str)
@pytest.mark.parametrize("audit", [False, True])
def test_metadata_is_reached_by_its_own_name_alone(address: IPAddress, audit: bool) -> None:
    own = ipaddress.ip_network(address)
    assert passes(str(address), Grant((own,), audit=audit))
    special = special_use(address)
    assert special is not None
    assert special.kind == "metadata"
    wide = [own.supernet(new_prefix=length) for length in range(own.prefixlen)]
    assert not passes(str(address), Grant(tuple(wide), audit=audit))


def test_metadata_stays_closed_where_link_local_is_open() -> None:
    opened = grant("169.254.0.0/16", "127.0.0.0/8")
    assert passes("169.254.1.1", opened)
    assert passes("127.0.0.1", opened)
    assert not passes("169.254.169.254", opened)
    assert not passes("169.254.170.2", opened)
    assert passes("169.254.169.254", grant("169.254.169.254/32"))


@settings(CALM, max_examples=200)
@given(
    st.sampled_from(["127.0.0.1", "169.254.169.254", "169.254.1.1", "168.63.129.16"]),
    st.integers(0, 128),
)
def test_no_embedding_of_a_guarded_address_is_ever_lifted(text: str, length: int) -> None:
    """Their own IPv6 form is no range of theirs: who wants them writes the IPv4 network."""
    for name, form in embedded(IPv4Address(text)).items():
        if name != "mapped":
            for audit in (False, True):
                assert not passes(
                    str(form), Grant((IPv6Network((int(form), length), strict=False),), audit=audit)
                ), name


def test_a_mapped_address_is_lifted_as_ipv4() -> None:
    assert passes("::ffff:10.0.0.1", grant("10.0.0.0/8"))
    assert not passes("::ffff:10.0.0.1", grant("::/0"))


def test_an_ipv4_network_does_not_lift_its_embeddings() -> None:
    for name, form in embedded(IPv4Address("10.0.0.1")).items():
        assert passes(str(form), grant("10.0.0.0/8")) is (name == "mapped")


def test_nothing_is_lifted_in_space_that_is_not_allocated() -> None:
    """`::/0` means the internet, which is 2000::/3."""
    for text in ("1::1", "100::1", "4000::1", "5f00::1", "8000::1", "fe00::1", "::ffff:0:8.8.8.8"):
        assert not passes(text, grant("::/0"))
        assert not passes(text, grant("::/0", audit=True))


# What a deny rule closes.


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("8.8.8.8", "8.8.8.0/24"),
        ("8.8.8.8", "0.0.0.0/0"),
        ("::ffff:8.8.8.8", "8.8.8.8/32"),
        ("64:ff9b::8.8.8.8", "8.8.8.8/32"),
        ("64:ff9b::8.8.8.8", "64:ff9b::/96"),
        ("2606:4700::1", "2606:4700::/32"),
        ("2606:4700::1", "::/0"),
    ],
)
def test_a_denied_network_is_closed(text: str, network: str) -> None:
    assert passes(text)
    assert not passes(text, grant(deny=(network,)))
    assert not passes(text, grant("0.0.0.0/0", "::/0", deny=(network,)))
    assert not passes(text, grant(network, deny=(network,)))
    audited = vet([text], 443, grant(deny=(network,), audit=True))
    assert len(audited.passed) == 1
    assert audited.would_prohibit


@pytest.mark.parametrize("name", sorted({*embedded(IPv4Address(0))} - {"mapped"}))
def test_a_denied_ipv4_network_is_closed_in_every_embedding(name: str) -> None:
    form = embedded(IPv4Address("9.9.9.9"))[name]
    own = str(ipaddress.ip_network(form))
    assert passes(str(form), grant(own))
    assert not passes(str(form), grant(own, deny=("9.9.9.0/24",)))
    assert passes(str(form), grant(own, deny=("9.9.8.0/24",)))


def test_a_denied_network_closes_nothing_else() -> None:
    assert passes("8.8.4.4", grant(deny=("8.8.8.0/24",)))
    assert passes("2606:4700::1", grant(deny=("0.0.0.0/0",)))
    assert passes("8.8.8.8", grant(deny=("::/0",)))
    assert passes("10.0.0.1", grant("10.0.0.0/8", deny=("10.1.0.0/16",)))


# Audit mode.


def test_audit_lets_through_and_says_so() -> None:
    for text in ("10.0.0.1", "100.64.0.1", "192.0.2.1", "fd00::1", "2002:808:808::1", "224.0.0.1"):
        vetting = vet([text], 443, grant(audit=True))
        assert [vetted.ip for vetted in vetting.passed] == [text]
        assert vetting.would_prohibit
    assert not vet(["8.8.8.8"], 443, grant(audit=True)).would_prohibit
    assert not vet(["10.0.0.1"], 443, grant("10.0.0.0/8", audit=True)).would_prohibit


def test_audit_dials_what_would_be_dialled_without_it() -> None:
    for texts in (["8.8.8.8", "10.0.0.1", "127.0.0.1"], ["127.0.0.1", "10.0.0.1", "8.8.8.8"]):
        vetting = vet(texts, 443, grant(audit=True))
        assert [vetted.ip for vetted in vetting.passed] == ["8.8.8.8"]
        assert set(vetting.prohibited) == {"10.0.0.1", "127.0.0.1"}
        assert not vetting.would_prohibit
    vetting = vet(["10.0.0.1", "127.0.0.1"], 443, grant(audit=True))
    assert [vetted.ip for vetted in vetting.passed] == ["10.0.0.1"]
    assert vetting.prohibited == ("127.0.0.1",)
    assert vetting.would_prohibit


@settings(CALM, max_examples=300)
@given(PROHIBITED_IPV4 | PROHIBITED_IPV6)
def test_audit_never_lets_a_guarded_address_through(address: IPAddress) -> None:
    special = special_use(address)
    assert special is not None
    assert passes(str(address), grant(audit=True)) is not special.guarded
    if isinstance(address, IPv4Address) and special.guarded:
        for form in embedded(address).values():
            assert not passes(str(form), grant(audit=True))
            assert not passes(str(form), grant("0.0.0.0/0", "::/0", audit=True))


def test_audit_does_not_undo_a_deny_of_a_guarded_address() -> None:
    assert passes("127.0.0.1", grant("127.0.0.0/8", audit=True))
    assert not passes("127.0.0.1", grant("127.0.0.0/8", deny=("127.0.0.0/8",), audit=True))


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "0.0.0.0",
        "::",
        "fe80::1",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
    ],
)
def test_audit_guards(text: str) -> None:
    assert not passes(text, grant(audit=True))


# Networks.


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8", True),
        ("10.1.0.0/16", "10.0.0.0/8", True),
        ("10.0.0.0/7", "10.0.0.0/8", False),
        ("0.0.0.0/0", "10.0.0.0/8", False),
        ("11.0.0.0/8", "10.0.0.0/8", False),
        ("::/0", "0.0.0.0/0", False),
        ("0.0.0.0/0", "::/0", False),
        ("fd00::/8", "fc00::/7", True),
        ("fc00::/6", "fc00::/7", False),
    ],
)
def test_lies_within(inner: str, outer: str, expected: bool) -> None:
    assert lies_within(ipaddress.ip_network(inner), ipaddress.ip_network(outer)) is expected
