"""Who a request is charged to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core.identity import Identity
from egress_proxy.core.limits import Limits
from egress_proxy.core.policy import Place, Policy
from egress_proxy.core.tenant import Charge, charges, tenant_of

ANYBODY = Identity("10.0.0.1")
ALICE = Identity("10.0.0.1", user="alice")
BOB = Identity("10.0.0.1", user="bob")
TENANTS = {"alice": "team-a"}


def policy(name: str = "everyone", **more: Any) -> Policy:
    return Policy(name, (), None, Place("f", 1, 1), **more)


@pytest.mark.parametrize(
    ("more", "identity", "header", "tenant"),
    [
        ({}, ANYBODY, None, "everyone"),
        ({}, ALICE, None, "team-a"),
        ({}, BOB, None, "everyone"),
        # A header counts where it is trusted.
        ({}, ANYBODY, b"mine", "everyone"),
        ({"trust_tenant_header": True}, ANYBODY, b"mine", "mine"),
        ({"trust_tenant_header": True}, BOB, b"mine", "mine"),
        ({"trust_tenant_header": True}, ANYBODY, None, "everyone"),
        # What is known about who asks comes first: nobody charges somebody else by saying so.
        ({"trust_tenant_header": True}, ALICE, b"mine", "team-a"),
        ({"tenant": "fixed"}, ALICE, b"mine", "fixed"),
        ({"tenant": "fixed", "trust_tenant_header": True}, ANYBODY, b"mine", "fixed"),
    ],
)
def test_the_order(
    more: dict[str, Any], identity: Identity, header: bytes | None, tenant: str
) -> None:
    assert tenant_of(policy(**more), identity, header, TENANTS) == tenant


@pytest.mark.parametrize(
    "header",
    [
        *(
            b"",
            b" ",
            b"a b",
            b"a,b",
            b"*",
            b"a/b",
            b"a\n",
            b"a\r\nX: y",
            b"\xff",
            b"a\x00",
            b"a" * 65,
        ),
        *("müller".encode(), b"a;b", b'"a"', b"a\x1b[31m"),
    ],
)
def test_what_is_no_tenant_s_name_is_never_used(header: bytes) -> None:
    """A name goes to the log, and in the key of a store."""
    assert tenant_of(policy(trust_tenant_header=True), ANYBODY, header, {}) == "everyone"


@given(st.binary(max_size=80))
def test_whatever_comes_a_tenant_has_the_one_form(header: bytes) -> None:
    found = tenant_of(policy(trust_tenant_header=True), ANYBODY, header, {})
    assert 1 <= len(found) <= 64
    assert all(letter.isascii() and (letter.isalnum() or letter in "._-") for letter in found)
    assert found in ("everyone", header.decode("latin-1"))


def test_the_policies_with_limits_are_charged() -> None:
    plain, one, two = (
        policy("plain"),
        policy("one", limits=Limits(tunnels=1)),
        policy("two", limits=Limits(tunnels=1), tenant="fixed"),
    )
    assert charges((plain, one, two), ALICE, None, TENANTS) == (
        Charge(one, "team-a"),
        Charge(two, "fixed"),
    )
    assert charges((plain,), ALICE, None, TENANTS) == ()
