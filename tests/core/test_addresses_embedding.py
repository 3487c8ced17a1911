"""IPv4 inside IPv6: which address a translator, a tunnel or the kernel would take a packet to."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.core.embedding import (
    NAT64_PREFIX_LENGTHS,
    embedded_ipv4,
    is_nat64_address,
    is_nat64_prefix,
)
from egress_proxy.core.special_use import special_use
from tests.core.address_forms import (
    PROHIBITED_IPV4,
    PUBLIC,
    embedded,
    grant,
    nat64,
    passes,
    surroundings,
)
from tests.support.calm import CALM

#: RFC 6052 §2.4, its table: 192.0.2.33 behind a prefix of each length.
RFC_6052 = {
    "2001:db8::/32": "2001:db8:c000:221::",
    "2001:db8:100::/40": "2001:db8:1c0:2:21::",
    "2001:db8:122::/48": "2001:db8:122:c000:2:2100::",
    "2001:db8:122:300::/56": "2001:db8:122:3c0:0:221::",
    "2001:db8:122:344::/64": "2001:db8:122:344:c0:2:2100::",
    "2001:db8:122:344::/96": "2001:db8:122:344::192.0.2.33",
}


@pytest.mark.parametrize(("prefix", "text"), RFC_6052.items())
def test_the_examples_of_rfc_6052(prefix: str, text: str) -> None:
    network, address = IPv6Network(prefix), IPv6Address(text)
    assert embedded_ipv4(address, [network]) == (IPv4Address("192.0.2.33"),)
    assert is_nat64_prefix(network)
    assert is_nat64_address(address, network)
    assert nat64(IPv4Address("192.0.2.33"), prefix) == address
    assert embedded_ipv4(address) == ()


def test_the_lengths_are_those_of_rfc_6052() -> None:
    assert len(RFC_6052) == len(NAT64_PREFIX_LENGTHS)
    lengths = {length for length in range(129) if is_nat64_prefix(IPv6Network((0, length)))}
    assert lengths == {IPv6Network(prefix).prefixlen for prefix in RFC_6052}
    assert not is_nat64_prefix(IPv6Network("2001:db8:1:2:100::/96"))
    assert is_nat64_prefix(IPv6Network("2001:db8:1:2:ff::/96"))


@settings(CALM, max_examples=300)
@given(
    st.ip_addresses(v=4).map(IPv4Address),
    st.ip_addresses(v=6, network="2001:db8::/32").map(IPv6Address),
    st.sampled_from(NAT64_PREFIX_LENGTHS),
)
def test_what_a_translator_writes_is_read(
    address: IPv4Address, somewhere: IPv6Address, length: int
) -> None:
    prefix = IPv6Network((int(somewhere) & ~(0xFF << 56), length), strict=False)
    written = nat64(address, str(prefix))
    assert written in prefix
    assert address in embedded_ipv4(written, [prefix])
    assert is_nat64_address(written, prefix)
    for bit in (56, 63):
        assert not is_nat64_address(IPv6Address(int(written) | 1 << bit), prefix)
    if length < 96:
        assert not is_nat64_address(IPv6Address(int(written) | 1), prefix)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("::ffff:1.2.3.4", ["1.2.3.4"]),
        ("::ffff:0.0.0.0", ["0.0.0.0"]),
        ("::ffff:0:1.2.3.4", ["1.2.3.4"]),
        ("::1.2.3.4", ["1.2.3.4"]),
        ("64:ff9b::1.2.3.4", ["1.2.3.4"]),
        ("64:ff9b::", ["0.0.0.0"]),
        ("2002:102:304:5:6:7:8:9", ["1.2.3.4"]),
        # The client first, whose bits are turned, then the server.
        ("2001:0:506:708:0:1:fefd:fcfb", ["1.2.3.4", "5.6.7.8"]),
        ("2001:0:102:304::fefd:fcfb", ["1.2.3.4"]),
        # Where nobody knows the prefix, each length is tried.
        ("64:ff9b:1::1.2.3.4", ["1.2.3.4"]),
        ("64:ff9b:1:102:3:400::", ["1.2.3.4", "2.3.4.0", "3.4.0.0"]),
        ("64:ff9b:1:1:2:304::", ["2.3.4.0", "1.2.3.4"]),
        ("64:ff9b:1:0:1:203:400::", ["1.2.3.4", "4.0.0.0"]),
        ("64:ff9b:1::1", []),
        # RFC 5214 §6.1.
        ("2606:4700:1:2:0:5efe:1.2.3.4", ["1.2.3.4"]),
        ("2606:4700:1:2:200:5efe:1.2.3.4", ["1.2.3.4"]),
        ("fe80::5efe:1.2.3.4", ["1.2.3.4"]),
        ("2606:4700:1:2:100:5efe:1.2.3.4", []),
        ("2606:4700:1:2:0:5eff:1.2.3.4", []),
        # In more than one form at once.
        ("2002:102:304:1:0:5efe:5.6.7.8", ["5.6.7.8", "1.2.3.4"]),
        # No IPv4 address, but small numbers.
        ("::1", []),
        ("::", []),
        ("::ffff", []),
        ("::0.255.255.255", []),
        ("::1.0.0.0", ["1.0.0.0"]),
        ("2606:4700::1.2.3.4", []),
        ("64:ff9b:2::1.2.3.4", []),
        ("64:ff9b::1:102:304", []),
        ("::fffe:1.2.3.4", []),
        ("2003:102:304::", []),
        ("2001:1:506:708:0:1:fefd:fcfb", []),
    ],
)
def test_what_is_inside(text: str, inside: list[str]) -> None:
    found = [str(address) for address in embedded_ipv4(ipaddress.ip_address(text))]
    assert sorted(found) == sorted(inside)


def test_an_ipv4_address_has_none_inside() -> None:
    assert embedded_ipv4(IPv4Address("1.2.3.4")) == ()


@settings(CALM, max_examples=300)
@given(PROHIBITED_IPV4)
def test_a_prohibited_address_is_found_in_every_form(address: IPv4Address) -> None:
    for name, form in embedded(address).items():
        # In these two, zeros in front are no address: `::1` is another one.
        if int(address) > 0xFFFFFF or not name.startswith(("compatible", "local")):
            assert address in embedded_ipv4(form), name
        assert not passes(str(form)), name


@pytest.mark.parametrize("name", ["mapped", "NAT64", "ISATAP", "ISATAP, global"])
def test_a_public_address_passes_in_forms_of_ordinary_hosts(name: str) -> None:
    assert passes(str(embedded(PUBLIC)[name]))


@pytest.mark.parametrize(
    "name", sorted({*embedded(PUBLIC)} - {"mapped", "NAT64", "ISATAP", "ISATAP, global"})
)
def test_the_other_forms_are_prohibited_by_themselves(name: str) -> None:
    """Relays of 6to4 and Teredo are anybody's; nobody needs the rest."""
    form = embedded(PUBLIC)[name]
    assert special_use(form) is not None
    assert not passes(str(form))
    assert passes(str(form), grant(str(form)))


# Local NAT64, of which nobody has said where the IPv4 address stands.


@pytest.mark.parametrize("text", ["64:ff9b:1:808:8:800::", "64:ff9b:1::8.8.8.8"])
def test_a_local_translator_is_reached_by_its_own_network(text: str) -> None:
    assert not passes(text, grant("::/0", audit=True))
    assert passes(text, grant("64:ff9b:1::/48"))


@pytest.mark.parametrize("name", [name for name in embedded(PUBLIC) if name.startswith("local")])
@pytest.mark.parametrize("text", ["127.0.0.1", "169.254.169.254", "168.63.129.16"])
def test_a_local_translator_does_not_lead_to_guarded_addresses(name: str, text: str) -> None:
    """Whoever opens the translator's network has not opened the metadata service behind it."""
    form = str(embedded(IPv4Address(text))[name])
    assert not passes(form, grant("64:ff9b:1::/48"))
    assert not passes(form, grant(form, audit=True))


def test_a_local_translator_that_is_named_is_read_by_its_prefix_alone() -> None:
    # By 48 bits it is 127.8.8.8.
    form = "64:ff9b:1:7f08:8:808::"
    known = surroundings(nat64=("64:ff9b:1:7f00::/56",))
    assert nat64(IPv4Address("8.8.8.8"), "64:ff9b:1:7f00::/56") == IPv6Address(form)
    assert not passes(form, grant("64:ff9b:1::/48"))
    assert passes(form, grant(around=known))
