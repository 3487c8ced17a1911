"""What Squid can say and rules of ours too: each construct, and what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.migrate.deciding import allows, policy_of
from tests.migrate.importing import notes, only_policy, policies, squid

# Hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acl", "hosts"),
    [
        ("dstdomain example.com", ["example.com"]),
        ("dstdomain .example.com", ["example.com", "*.example.com"]),
        ("dstdomain -n .example.com", ["example.com", "*.example.com"]),
        ("dstdomain Example.COM", ["example.com"]),
        ("dstdomain b.org a.org # comment", ["b.org", "a.org"]),
        ("dstdomain .a.org b.a.org", ["a.org", "*.a.org"]),
        (r"dstdom_regex ^example\.com$", ["example.com"]),
        (r"dstdom_regex (^|\.)example\.com$", ["example.com", "*.example.com"]),
        (r"dstdom_regex ^(.*\.)?example\.com$", ["example.com", "*.example.com"]),
        (r"dstdom_regex ^([^.]+\.)*example\.com$", ["example.com", "*.example.com"]),
        (r"dstdom_regex \.example\.com$", ["*.example.com"]),
        (r"dstdom_regex ^.*\.example\.com$", ["*.example.com"]),
        (r"dstdom_regex ^([^.]*\.)*example\.com$", ["example.com", "*.example.com"]),
        (r"dstdom_regex ^(.+\.)?example\.com$", ["example.com", "*.example.com"]),
        (r"dstdom_regex -i ^Example\.com$", ["example.com"]),
        (r"dstdom_regex -i -n ^Example\.com$", ["example.com"]),
        (r"dstdom_regex -n -i -- ^Example\.com$", ["example.com"]),
        (r"dstdom_regex +i -i ^a\.org$ +i ^b\.org$", ["a.org", "b.org"]),
    ],
)
def test_hosts(acl: str, hosts: list[str]) -> None:
    policy = only_policy(f"""\
        acl web port 80 443
        acl sites {acl}
        http_access allow sites web
        http_access deny all
        """)
    assert policy == {"name": "sites-web", "allow": hosts}


def test_hosts_from_a_file_and_from_several_lines() -> None:
    imported = squid(
        """\
        acl sites dstdomain "lists/allowed"
        acl sites dstdomain b.example.com
        http_access allow sites
        """,
        {"lists/allowed": "# ours\n\n .a.example.com  # since 2020\n\tc.example.com\n"},
    )
    assert notes(imported) == []
    (policy,) = policies(imported)
    assert [rule["host"] for rule in policy["allow"]] == [
        *("a.example.com", "*.a.example.com", "c.example.com", "b.example.com")
    ]


# Ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "ports"),
    [
        ("443", [443]),
        ("80 443", None),  # our default
        ("443 80 8000-8010 8011", [80, 443, "8000-8011"]),
        ("0-21", ["1-21"]),
        ("1-65535", ["1-65535"]),
    ],
)
def test_ports(values: str, ports: list[Any] | None) -> None:
    policy = only_policy(f"""\
        acl some port {values}
        acl site dstdomain a.example.com
        http_access allow site some
        """)
    assert policy["allow"] == [
        "a.example.com" if ports is None else {"host": "a.example.com", "ports": ports}
    ]


def test_more_ranges_of_ports_than_one_rule_takes() -> None:
    many = [*range(1001, 1401, 2), 80, 443]
    imported = squid(
        f"acl p port {' '.join(map(str, many))}\nacl s dstdomain a.example.com\nhttp_access allow s p\n"
    )
    policy = policy_of(imported.yaml)
    assert {
        port for port in range(1, 1500) if allows(policy, "10.0.0.1", "a.example.com", port)
    } == set(many)


# Clients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "subjects"),
    [
        ("10.0.0.0/8", ["10.0.0.0/8"]),
        ("10.0.0.0/255.0.0.0", ["10.0.0.0/8"]),
        ("10.1.2.3", ["10.1.2.3/32"]),
        ("10.0.0.0/9 10.128.0.0/9", ["10.0.0.0/8"]),
        ("10.0.0.1-10.0.0.6", ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]),
        ("fc00::/7 2001:db8::7", ["2001:db8::7/128", "fc00::/7"]),
        ("ipv4", ["0.0.0.0/0"]),
    ],
)
def test_clients(values: str, subjects: list[str]) -> None:
    policy = only_policy(f"""\
        acl some src {values}
        acl site dstdomain a.example.com
        http_access allow some site
        """)
    assert policy["subjects"] == [{"cidr": subject} for subject in subjects]


@pytest.mark.parametrize("everyone", ["all", "0.0.0.0/0", "0/0", "0.0.0.0/0.0.0.0"])
def test_all_clients_need_no_subjects(everyone: str) -> None:
    policy = only_policy(f"""\
        acl some src {everyone}
        acl site dstdomain a.example.com
        http_access allow some site
        """)
    assert "subjects" not in policy


def test_localhost_is_known() -> None:
    policy = only_policy("acl site dstdomain a.example.com\nhttp_access allow localhost site\n")
    assert policy["subjects"] == [{"cidr": "127.0.0.1/32"}, {"cidr": "::1/128"}]


def test_names_of_acls_are_compared_without_case() -> None:
    policy = only_policy("acl Site dstdomain a.example.com\nhttp_access allow SITE\n")
    assert policy["name"] == "site"


# Order ------------------------------------------------------------------------------------------------------------


def test_the_default_is_the_opposite_of_the_last_line() -> None:
    imported = squid("acl bad dstdomain .bad.example.com\nhttp_access deny bad\n")
    denying, default = policies(imported)
    assert denying == {"name": "bad", "deny": ["bad.example.com", "*.bad.example.com"]}
    assert default["allow"] == [{"host": "*", "ports": ["1-65535"]}]


@pytest.mark.parametrize("text", ["acl site dstdomain a.example.com\n", "http_access deny all\n"])
def test_what_allows_nothing_is_a_valid_configuration_too(text: str) -> None:
    imported = squid(text)
    (policy,) = policies(imported)
    assert policy == {"name": "nothing-allowed", "deny": ["nothing.invalid"]}
    assert notes(imported) == []
    assert "Remove this one when you add another" in imported.yaml
    assert not allows(policy_of(imported.yaml), "10.0.0.1", "a.example.com", 443)


def test_an_exception_stands_beside_what_it_is_an_exception_from() -> None:
    imported = squid("""\
        acl web port 80 443
        acl sites dstdomain .example.com
        acl but dstdomain .internal.example.com
        http_access allow sites web !but
        """)
    assert policies(imported) == [
        {
            "name": "sites-web-not-but",
            "allow": ["example.com", "*.example.com"],
            "deny": ["internal.example.com", "*.internal.example.com"],
        }
    ]


def test_a_deny_for_some_clients_is_for_them_alone() -> None:
    imported = squid("""\
        acl web port 80 443
        acl guests src 10.9.0.0/16
        acl sites dstdomain .example.com
        acl inner dstdomain inner.example.com
        http_access deny guests inner
        http_access allow sites web
        """)
    policy = policy_of(imported.yaml)
    assert notes(imported) == []
    assert not allows(policy, "10.9.1.1", "inner.example.com", 443)
    assert allows(policy, "10.8.1.1", "inner.example.com", 443)
    assert allows(policy, "10.9.1.1", "www.example.com", 443)


def test_clients_that_may_more_do_not_split_the_network_of_the_others() -> None:
    """The second line is not for "10.0.0.0/8 but 10.1.0.0/16", although Squid reaches it for those alone."""
    imported = squid("""\
        acl web port 80 443
        acl admins src 10.1.0.0/16
        acl localnet src 10.0.0.0/8
        acl sites dstdomain a.example.com
        acl more dstdomain a.example.com b.example.com
        http_access allow admins more web
        http_access allow localnet sites web
        """)
    admins, localnet = policies(imported)
    assert admins["subjects"] == [{"cidr": "10.1.0.0/16"}]
    assert localnet["subjects"] == [{"cidr": "10.0.0.0/8"}]


def test_what_no_rule_without_order_can_say() -> None:
    imported = squid("""\
        acl good dstdomain good.bad.example.com
        acl bad dstdomain .bad.example.com
        http_access allow good
        http_access deny bad
        http_access allow all
        """)
    assert notes(imported) == [
        (
            "squid.conf:3: `http_access allow good`: `good.bad.example.com` cannot stay allowed: a deny beats "
            "every allow "
            "here, and line 4 denies all around it"
        )
    ]
    policy = policy_of(imported.yaml)
    assert not allows(policy, "10.0.0.1", "good.bad.example.com", 443)
    assert allows(policy, "10.0.0.1", "example.com", 443)


def test_a_deny_for_some_ports_is_for_them_alone() -> None:
    imported = squid("""\
        acl mail port 25
        acl host dstdomain host.example.com
        http_access deny host mail
        http_access allow all
        """)
    policy = policy_of(imported.yaml)
    assert notes(imported) == []
    assert not allows(policy, "10.0.0.1", "host.example.com", 25)
    assert allows(policy, "10.0.0.1", "host.example.com", 443)
    assert allows(policy, "10.0.0.1", "example.com", 25)
