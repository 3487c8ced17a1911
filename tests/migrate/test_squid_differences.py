"""Addresses and private destinations, which Squid and rules of ours see differently: what the notes say."""

from __future__ import annotations

import pytest

from egress_proxy.migrate.squid import MIXED_WHY, SPECIAL_USE_WHY
from egress_proxy.migrate.squid_decisions import LITERALS_WHY
from tests.migrate.deciding import allows, policy_of
from tests.migrate.importing import causes, notes, only_policy, policies, squid

# Addresses --------------------------------------------------------------------------------------------------------


def test_literal_addresses_that_are_allowed() -> None:
    imported = squid("acl nets dst 192.0.2.0/24\nacl web port 80 443\nhttp_access allow nets web\n")
    assert notes(imported) == [
        (
            "squid.conf:3: `http_access allow nets web`: acl `nets` asks for the addresses of names, which no "
            "rule here does; "
            "bare IP addresses alone are allowed by it"
        )
    ]
    (policy,) = policies(imported)
    assert policy["allow"] == [{"cidr": "192.0.2.0/24"}]


def test_denied_networks_are_closed_behind_names_too() -> None:
    imported = squid("""\
        acl site dstdomain a.example.com
        acl nets dst 93.184.216.0/24
        http_access deny nets
        http_access allow site
        """)
    assert notes(imported) == [f"squid.conf:3: `http_access deny nets`: {MIXED_WHY}"]
    assert policies(imported)[0] == {"name": "nets", "deny": [{"cidr": "93.184.216.0/24"}]}
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", "a.example.com", 443, addresses=("8.8.8.8",))
    assert not allows(policy, "10.0.0.1", "a.example.com", 443, addresses=("93.184.216.34",))


def test_networks_that_are_denied_to_some_clients_are_open_to_the_others() -> None:
    imported = squid("""\
        acl guests src 10.9.0.0/16
        acl nets dst 93.184.216.0/24
        acl site dstdomain -n a.example.com
        http_access deny guests nets
        http_access allow site
        """)
    policy = policy_of(imported.yaml)
    address = ("93.184.216.34",)
    assert not allows(policy, "10.9.1.1", "a.example.com", 443, addresses=address)
    assert allows(policy, "10.8.1.1", "a.example.com", 443, addresses=address)


def test_a_network_that_is_denied_behind_some_names_only_is_closed_to_all() -> None:
    imported = squid("""\
        acl first dstdomain a.example.com
        acl second dstdomain b.example.com
        acl nets dst 93.184.216.0/24
        http_access allow first
        http_access deny nets
        http_access allow second
        """)
    assert notes(imported) == [
        f"squid.conf:5: `http_access deny nets`: {MIXED_WHY}",
        (
            "squid.conf:5: `http_access deny nets`: rules here have no order, so it closes these addresses to "
            "all names on "
            "these ports, those that earlier lines allow too"
        ),
    ]
    assert not allows(
        policy_of(imported.yaml), "10.0.0.1", "a.example.com", 443, addresses=("93.184.216.34",)
    )


def test_names_that_must_resolve_elsewhere_cannot_be_asked_for() -> None:
    imported = squid("acl ours dst 8.8.8.0/24\nhttp_access deny !ours\nhttp_access allow all\n")
    assert causes(imported) == [
        (
            "squid.conf:2: `http_access deny !ours`: acl `ours` asks for the addresses of names, which no rule "
            "here does; "
            "all names that it may match are denied by it"
        )
    ]
    policy = policy_of(imported.yaml)
    assert not allows(policy, "10.0.0.1", "example.com", 443)
    assert allows(policy, "10.0.0.1", "8.8.8.8", 443)
    assert not allows(policy, "10.0.0.1", "8.8.4.4", 443)


def test_dst_without_look_up_is_about_literal_addresses_alone() -> None:
    imported = squid("acl nets dst -n 8.8.8.0/24\nhttp_access deny nets\nhttp_access allow all\n")
    assert notes(imported) == []
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", "example.com", 443, addresses=("8.8.8.8",))
    assert not allows(policy, "10.0.0.1", "8.8.8.8", 443)
    assert allows(policy, "10.0.0.1", "8.8.9.8", 443)


def test_bare_addresses_whose_reverse_name_matters_are_denied() -> None:
    imported = squid(
        "acl bad dstdomain .bad.example.com\nhttp_access deny bad\nhttp_access allow all\n"
    )
    assert str(imported.notes[0]) == f"squid.conf:2: `http_access deny bad`: {LITERALS_WHY}"
    assert not allows(policy_of(imported.yaml), "10.0.0.1", "8.8.8.8", 443)


def test_an_address_among_the_names() -> None:
    policy = only_policy(
        "acl site dstdomain -n 203.0.113.7\nacl web port 80 443\nhttp_access allow site web\n"
    )
    assert policy["allow"] == [{"cidr": "203.0.113.7/32"}]


@pytest.mark.parametrize(
    ("acl", "said"),
    [
        ("all", True),
        ("intern", True),
        ("local", True),
        ("public", False),
    ],
)
def test_private_destinations_are_mentioned_where_they_are_likely(acl: str, said: bool) -> None:
    imported = squid(f"""\
        acl intern dstdomain -n intern
        acl local dstdomain -n .corp.local
        acl public dstdomain -n example.com
        http_access allow {acl}
        """)
    assert [note.why for note in imported.notes] == [SPECIAL_USE_WHY] * said
