"""No access rule ends without effect and without a note that says where it stands, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from egress_proxy.migrate.squid_decisions import LITERALS_WHY
from egress_proxy.migrate.squid_losses import USELESS_WHY
from tests.migrate.deciding import allows, policy_of
from tests.migrate.importing import notes, policies, squid

LOST = (
    "not carried over, because the deny on line {}, which is not known in full, may match all of it"
)
LESS = "not carried over in full, because the deny on line {}, which is not known in full, may match some of it"

BLOCKLIST = """\
    acl wl dstdomain .example.org
    acl bl url_regex -i porn
    acl s src 10.20.0.0/16
    http_access deny bl
    http_access allow s wl
    http_access deny all
    """


def test_an_allow_behind_a_deny_that_may_match_all_of_it() -> None:
    imported = squid(BLOCKLIST)
    assert notes(imported)[2:] == [
        f"squid.conf:5: `http_access allow s wl`: {LOST.format(4)}",
        "squid.conf: NOTHING IS ALLOWED: the cause is the deny on line 4, which is not known in full",
    ]
    policy = policy_of(imported.yaml)
    assert not allows(policy, "10.20.0.1", "www.example.org", 443)
    # The regular expression may match the host of a tunnel, which is its URL.
    assert not allows(policy, "10.20.0.1", "porn.example.org", 443)


def test_what_allows_nothing_takes_an_allow_that_is_added() -> None:
    document = yaml.safe_load(squid(BLOCKLIST).yaml)
    document["policies"].append({"name": "mine", "allow": ["www.example.org"]})
    policy = policy_of(yaml.safe_dump(document))
    assert allows(policy, "10.20.0.1", "www.example.org", 443)
    assert not allows(policy, "10.20.0.1", "other.example.org", 443)


def test_an_allow_of_which_some_is_lost() -> None:
    imported = squid(r"""
        acl exe urlpath_regex \.exe$
        acl a dstdomain a.example.org
        acl b dstdomain b.example.org
        http_access allow a
        http_access deny exe
        http_access allow b
        """)
    assert notes(imported)[2:] == [f"squid.conf:7: `http_access allow b`: {LESS.format(6)}"]
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", "a.example.org", 80, method="GET")
    assert allows(policy, "10.0.0.1", "b.example.org", 443)
    assert not allows(policy, "10.0.0.1", "b.example.org", 80, method="GET")


def test_the_first_allow_of_what_is_lost_is_the_one_that_loses_it() -> None:
    imported = squid("""\
        acl odd time MTWHF
        acl first dstdomain .example.org
        acl second dstdomain a.example.org
        http_access deny odd
        http_access allow first
        http_access allow second
        http_access deny all
        """)
    assert notes(imported)[1:3] == [
        f"squid.conf:5: `http_access allow first`: {LOST.format(4)}",
        f"squid.conf:6: `http_access allow second`: {USELESS_WHY}",
    ]


def test_what_a_line_between_surely_denies_is_not_lost() -> None:
    imported = squid("""\
        acl odd time MTWHF
        acl bad dstdomain .example.org
        acl site dstdomain a.example.org
        http_access deny odd
        http_access deny bad
        http_access allow site
        http_access deny all
        """)
    assert notes(imported)[1:] == [
        f"squid.conf:6: `http_access allow site`: {USELESS_WHY}",
        "squid.conf: NOTHING IS ALLOWED: no line surely allows something; the notes above say why",
    ]


def test_several_denies_that_may_match_are_all_named() -> None:
    imported = squid(
        """\
        acl odd time MTWHF
        acl web port 443
        acl site dstdomain a.example.org
        include more.conf
        http_access deny odd
        http_access allow site
        http_access deny all
        """,
        {"more.conf": "http_access deny odd web\n"},
    )
    (note,) = (note for note in imported.notes if note.line == 6)
    assert note.why == (
        "not carried over, because the denies on more.conf:1 and line 5, which are not known in full, "
        "may match all of it"
    )


def test_the_default_is_lost_as_well() -> None:
    imported = squid("acl odd time MTWHF\nhttp_access deny odd\n")
    assert notes(imported)[1:] == [
        f"squid.conf:2: what no line decides, which Squid allows: {LOST.format(2)}",
        "squid.conf: NOTHING IS ALLOWED: the cause is the deny on line 2, which is not known in full",
    ]


@pytest.mark.parametrize("gate", ["adapted_http_access", "miss_access", "http_access2"])
def test_a_further_list_that_may_deny(gate: str) -> None:
    imported = squid(f"""\
        acl odd time MTWHF
        acl site dstdomain a.example.org
        http_access allow site
        http_access deny all
        {gate} deny odd
        {gate} allow all
        """)
    told = notes(imported)
    assert f"squid.conf:3: `http_access allow site`: {LOST.format(5)}" in told
    assert f"squid.conf:6: `{gate} allow all`: {LOST.format(5)}" in told
    assert told[-1].startswith("squid.conf: NOTHING IS ALLOWED: the cause is the deny on line 5")


@pytest.mark.parametrize(
    "lines",
    [
        "acl ftp proto FTP\nhttp_access allow ftp",
        "acl never dstdomain a.example.com\nhttp_access allow never",
    ],
)
def test_an_allow_that_never_did_anything_here_is_named(lines: str) -> None:
    imported = squid(f"acl site dstdomain .example.com\nhttp_access allow site\n{lines}\n")
    assert notes(imported) == [f"squid.conf:4: `{lines.partition(chr(10))[2]}`: {USELESS_WHY}"]


def test_bare_addresses_that_a_later_deny_closes_are_named() -> None:
    imported = squid("""\
        acl host dst 8.8.8.8
        acl net dst 8.0.0.0/8
        acl site dstdomain a.example.org
        http_access allow host
        http_access deny net
        http_access allow site
        """)
    assert not allows(policy_of(imported.yaml), "10.0.0.1", "8.8.8.8", 443)
    why = "`bare IP addresses` cannot stay allowed: a deny beats every allow here, and line 5 denies all around it"
    assert f"squid.conf:4: `http_access allow host`: {why}" in notes(imported)


def test_what_is_known_in_full_gets_no_such_note() -> None:
    imported = squid("""\
        acl bad dstdomain -n bad.example.org
        acl s src 10.20.0.0/16
        acl site dstdomain .example.org
        http_access deny bad
        http_access allow s site
        http_access deny all
        """)
    assert notes(imported) == []
    assert [policy["name"] for policy in policies(imported)] == ["bad", "s-site"]


def test_bare_addresses_alone_that_are_lost_to_doubt_have_the_usual_note() -> None:
    imported = squid(
        "acl bad dstdomain bad.example.org\nhttp_access deny bad\nhttp_access allow all\n"
    )
    assert LITERALS_WHY in [note.why for note in imported.notes]
    assert notes(imported) == []


def test_a_deny_of_plain_requests_beside_connect_is_explained() -> None:
    imported = squid("acl web port 443\nhttp_access allow CONNECT web\nhttp_access deny all\n")
    assert (
        "    # The deny with `paths: [/]` is for plain requests, and never for tunnels: Squid allows CONNECT alone.\n"
    ) in imported.yaml
    several = squid("""\
        acl web port 443
        acl sites dstdomain .example.org .example.com
        http_access allow CONNECT web sites
        http_access deny all
        """)
    (denying,) = (policy for policy in policies(several) if policy["name"] == "all")
    assert "allow" not in denying
    assert "never for tunnels: CONNECT stays as it is." in several.yaml
    assert "paths: [/]" not in squid("http_access allow all\n").yaml


def test_the_address_that_connections_come_from() -> None:
    imported = squid("tcp_outgoing_address 10.0.0.9\nhttp_access allow all\n")
    assert notes(imported) == [
        (
            "squid.conf:1: `tcp_outgoing_address 10.0.0.9`: "
            "write the address as `dial.source_addresses`, which is for all clients"
        )
    ]


def test_the_guide_says_what_to_do_where_nothing_is_allowed() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "migration.md").read_text(encoding="utf-8")
    assert "`nothing-allowed`" in guide
    assert "NOTHING IS ALLOWED" in guide
