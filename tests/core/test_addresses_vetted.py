"""A vetted address is made by the gate alone: of what a client asked for, or of what the configuration says."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.core.addresses import (
    PUBLIC_ONLY,
    VettedAddress,
    Vetting,
    vet,
    vet_configured,
)
from egress_proxy.core.special_use import ANYWHERE, SPECIAL_USE
from tests.core.address_forms import IPAddress
from tests.support.calm import CALM

# Of what a client asked for.


@pytest.fixture
def vetted() -> VettedAddress:
    return vet(["8.8.8.8"], 443).passed[0]


def test_it_cannot_be_made_directly() -> None:
    make: Any = VettedAddress
    with pytest.raises(TypeError):
        make("127.0.0.1", 443)
    for gate in (None, object(), True, "gate"):
        with pytest.raises(TypeError, match=r"made by the address gate alone"):
            make("127.0.0.1", 443, gate=gate)


def test_it_cannot_be_changed(vetted: VettedAddress) -> None:
    changed: Any = vetted
    with pytest.raises(AttributeError):
        changed.ip = "127.0.0.1"
    with pytest.raises(AttributeError):
        changed.port = 22
    with pytest.raises(AttributeError):
        changed.other = 1
    with pytest.raises(AttributeError):
        del changed.ip
    with pytest.raises(AttributeError):
        changed.__class__ = object
    assert (vetted.ip, vetted.port) == ("8.8.8.8", 443)
    assert repr(vetted) == "VettedAddress('8.8.8.8', 443)"
    assert not hasattr(vetted, "__dict__")


@pytest.mark.parametrize(
    "replicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda call: call.__name__
)
def test_it_cannot_be_copied(vetted: VettedAddress, replicate: Any) -> None:
    with pytest.raises(TypeError, match=r"made by the address gate alone"):
        replicate(vetted)


def test_it_cannot_be_subclassed() -> None:
    with pytest.raises(TypeError):
        type("Forged", (VettedAddress,), {})


def test_one_that_skips_its_constructor_is_empty() -> None:
    """`object.__new__` and `object.__setattr__` are stronger than any class; without the latter it holds no address."""
    forged = object.__new__(VettedAddress)
    with pytest.raises(AttributeError):
        _ = forged.ip
    with pytest.raises(AttributeError):
        forged.ip = "127.0.0.1"


def test_values_are_values(vetted: VettedAddress) -> None:
    for value, name in [
        (PUBLIC_ONLY, "audit"),
        (Vetting((vetted,), ()), "passed"),
        (SPECIAL_USE[0], "guarded"),
        (ANYWHERE, "internal"),
    ]:
        changeable: Any = value
        with pytest.raises(AttributeError):
            setattr(changeable, name, True)
    assert (PUBLIC_ONLY.allow, PUBLIC_ONLY.closed, PUBLIC_ONLY.audit) == ((), None, False)
    assert PUBLIC_ONLY.surroundings is ANYWHERE


# Of the configuration.


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("8.8.8.8", "8.8.8.8"),
        ("10.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("169.254.1.1", "169.254.1.1"),
        ("100.64.0.1", "100.64.0.1"),
        ("::1", "::1"),
        ("fd00::1", "fd00::1"),
        ("FE80:0::1", "fe80::1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("64:ff9b::10.0.0.1", "64:ff9b::a00:1"),
    ],
)
def test_configuration_may_name_any_address(text: str, canonical: str) -> None:
    """A parent proxy lives in a private network, or on this machine."""
    vetted = vet_configured(text, 3128)
    assert (vetted.ip, vetted.port) == (canonical, 3128)


@pytest.mark.parametrize(
    "text",
    [
        *("", "proxy.test", "127.1", "0x7f000001", "2130706433", "127.0.0.1:3128", "[::1]"),
        *("127.0.0.1 ", " 127.0.0.1", "127.0.0.1\n", "127.0.0.01", "127.0.0.1/32", "*", "::1%"),
        *("0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0", "64:ff9b::0.0.0.0", "::ffff:0:0.0.0.0"),
        *("224.0.0.1", "239.255.255.255", "ff02::1", "::ffff:224.0.0.1", "64:ff9b::224.0.0.1"),
        *("255.255.255.255", "::ffff:255.255.255.255"),
    ],
)
def test_nobody_can_connect_to_these(text: str) -> None:
    with pytest.raises(ValueError, match=r"not appear|nobody can|not permitted|Invalid"):
        vet_configured(text, 3128)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port(port: int) -> None:
    with pytest.raises(ValueError, match="is not a port"):
        vet_configured("127.0.0.1", port)


@settings(CALM, max_examples=200)
@given(st.ip_addresses(), st.integers(1, 65535))
def test_it_says_what_it_was_given(address: IPAddress, port: int) -> None:
    try:
        vetted = vet_configured(str(address), port)
    except ValueError:
        assert vet([str(address)], port).prohibited == (str(address),)
    else:
        assert (vetted.ip, vetted.port) == (
            str(getattr(address, "ipv4_mapped", None) or address),
            port,
        )


def test_it_opens_nothing_to_clients() -> None:
    """One address is vetted twice, and the two answers have nothing to do with each other."""
    assert vet_configured("127.0.0.1", 3128).ip == "127.0.0.1"
    assert vet(["127.0.0.1"], 3128) == Vetting((), ("127.0.0.1",))
