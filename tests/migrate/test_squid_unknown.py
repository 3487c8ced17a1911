"""What cannot be known here: it is named, and never makes the result wider."""

from __future__ import annotations

import pytest

from tests.migrate.deciding import allows, policy_of
from tests.migrate.importing import causes, only_policy, policies, squid

# What cannot be known ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acl", "asked"),
    [
        ("time MTWHF 9:00-17:00", "the time of day"),
        (
            "proxy_auth REQUIRED",
            "who logs in (write `credentials` and `subjects: [{user: …}]` by hand)",
        ),
        ("browser Firefox", "the User-Agent"),
        ("maxconn 5", "the number of the client's connections (see `limits`)"),
        ("external helper", "a helper program"),
        ("srcdomain .example.com", "the reverse name of the client"),
    ],
)
def test_acls_that_ask_for_something_else(acl: str, asked: str) -> None:
    text = f"""\
        acl some {acl}
        acl site dstdomain a.example.com
        acl other dstdomain b.example.com
        http_access allow site some
        http_access allow other
        http_access deny all
        """
    imported = squid(text)
    assert causes(imported) == [
        (
            f"squid.conf:4: `http_access allow site some`: acl `some` (line 1) asks for {asked}, which no rule "
            "here does; "
            "only what surely matches is allowed"
        )
    ]
    (policy,) = policies(imported)
    assert policy["name"] == "other"

    denied = squid(text.replace("allow site some", "deny site some"))
    assert causes(denied) == [
        (
            f"squid.conf:4: `http_access deny site some`: acl `some` (line 1) asks for {asked}, which no rule "
            "here does; "
            "all that may match is denied"
        )
    ]


@pytest.mark.parametrize("negated", ["some", "!some"])
def test_a_deny_that_may_match_denies_everything_behind_it(negated: str) -> None:
    """It may wipe all out, and that is the one result that is never wider."""
    imported = squid(f"""\
        acl some time MTWHF
        acl first dstdomain a.example.com
        acl second dstdomain b.example.com
        http_access allow first
        http_access deny {negated}
        http_access allow second
        """)
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", "a.example.com", 443)
    assert not allows(policy, "10.0.0.1", "b.example.com", 443)


def test_an_allow_that_may_not_match_is_no_allow_by_its_negation_either() -> None:
    imported = squid(
        "acl some time MTWHF\nhttp_access allow some\nhttp_access allow !some\nhttp_access deny all\n"
    )
    assert not allows(policy_of(imported.yaml), "10.0.0.1", "a.example.com", 443)


def test_a_regular_expression_is_tried_on_the_names_that_rules_mention() -> None:
    imported = squid("""\
        acl words dstdom_regex -i casino
        acl sites dstdomain github.example.com casino.example.com .example.org
        http_access deny words
        http_access allow sites
        """)
    assert causes(imported) == [
        (
            "squid.conf:1: value `casino` of acl `words`: rules have no regular expressions; it is none that "
            "stands for a "
            "host or a domain"
        ),
        (
            "squid.conf:3: `http_access deny words`: acl `words` (line 1) is not known in full; all that may match "
            "is denied"
        ),
    ]
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", "github.example.com", 443)
    assert not allows(policy, "10.0.0.1", "casino.example.com", 443)
    assert allows(policy, "10.0.0.1", "example.org", 443)
    assert not allows(policy, "10.0.0.1", "www.example.org", 443)  # perhaps casino.example.org


def test_a_regular_expression_without_an_anchor_surely_matches_the_domain() -> None:
    imported = squid(r"""
        acl sites dstdom_regex example\.com$
        http_access allow sites
        """)
    policy = policy_of(imported.yaml)
    assert len(causes(imported)) == 2
    assert allows(policy, "10.0.0.1", "example.com", 443)
    assert allows(policy, "10.0.0.1", "www.example.com", 443)
    assert not allows(policy, "10.0.0.1", "notexample.com", 443)


@pytest.mark.parametrize("repeated", [r"([^.]+\.)?", r"([^.]*\.)?"])
def test_a_regular_expression_for_one_label_is_not_all_below(repeated: str) -> None:
    imported = squid(f"acl sites dstdom_regex ^{repeated}example\\.com$\nhttp_access allow sites\n")
    policy = policy_of(imported.yaml)
    assert not allows(policy, "10.0.0.1", "a.b.example.com", 443)
    assert not allows(policy, "10.0.0.1", "b.example.com", 443)
    assert len(causes(imported)) == 2


@pytest.mark.parametrize(
    "values",
    [
        r"-x ^foo\.com$",
        r"-in ^foo\.com$",
        r"+x ^foo\.com$",
        r"-n -x ^foo\.com$",
        "-i -- -n",
        "-n foo -n",
        "+foo",
    ],
)
def test_options_that_are_not_known_are_no_patterns(values: str) -> None:
    text = f"""\
        acl odd dstdom_regex {values}
        acl sites dstdomain bar.com www-n.com foo.com
        http_access allow odd
        http_access deny all
        """
    policy = policy_of(squid(text).yaml)
    assert not allows(policy, "10.0.0.1", "www-n.com", 443)
    assert not allows(policy, "10.0.0.1", "bar.com", 443)

    denied = squid(text.replace("allow odd", "deny odd").replace("deny all", "allow sites"))
    assert len(causes(denied)) >= 2
    assert not allows(policy_of(denied.yaml), "10.0.0.1", "bar.com", 443)


@pytest.mark.parametrize(
    "acl", ["dstdomain -i a.example.com", "dst -n -x 10.0.0.1", 'dstdom_regex "list"']
)
def test_options_of_other_types_and_files_are_not_known(acl: str) -> None:
    imported = squid(
        f"acl odd {acl}\nacl site dstdomain b.example.com\nhttp_access deny odd\nhttp_access allow site\n",
        {"list": "-n\n"},
    )
    assert not allows(policy_of(imported.yaml), "10.0.0.1", "b.example.com", 443)
    assert len(causes(imported)) == 2


@pytest.mark.parametrize(
    ("acl", "note"),
    [
        (
            "src 10.0.0.5/24",
            "value `10.0.0.5/24` of acl `odd`: it has bits set behind its prefix; write 10.0.0.0/24",
        ),
        (
            "src client.example.com",
            (
                "value `client.example.com` of acl `odd`: it is no address, network or range in its usual form; "
                "names are not "
                "looked up"
            ),
        ),
        (
            "src 10.0.0.0/255.0.255.0",
            (
                "value `10.0.0.0/255.0.255.0` of acl `odd`: it is no address, network or range in its usual "
                "form; names are "
                "not looked up"
            ),
        ),
        (
            "src 10.0.0.9-10.0.0.1",
            "value `10.0.0.9-10.0.0.1` of acl `odd`: the range ends before it starts",
        ),
        ("port https", "value `https` of acl `odd`: it is no port or range of ports"),
        (
            "dstdomain ${name}",
            "value `${name}` of acl `odd`: what it means depends on the running Squid",
        ),
        (
            'dstdomain "missing"',
            '`acl odd dstdomain "missing"`: the file missing cannot be read: No such file or directory',
        ),
        (
            "frobnicate 7",
            "`acl odd frobnicate 7`: acls of the type `frobnicate` are not known here",
        ),
    ],
)
def test_values_that_are_not_known(acl: str, note: str) -> None:
    imported = squid(
        f"acl odd {acl}\nacl site dstdomain a.example.com\nhttp_access deny odd\nhttp_access allow site\n"
    )
    assert causes(imported) == [
        f"squid.conf:1: {note}",
        "squid.conf:3: `http_access deny odd`: acl `odd` (line 1) is not known in full; all that may match is denied",
    ]
    assert not allows(policy_of(imported.yaml), "10.0.0.7", "a.example.com", 443)


@pytest.mark.parametrize(
    "value",
    ["*.example.com", "example.com.", "example.com:443", "http://example.com", "bücher.example"],
)
def test_values_that_no_host_is_spelled_like(value: str) -> None:
    imported = squid(
        f"acl odd dstdomain {value}\nacl site dstdomain .example.com\nhttp_access deny odd\nhttp_access allow site\n"
    )
    assert causes(imported) == [
        (
            f"squid.conf:1: value `{value}` of acl `odd`: no host name is spelled so, and Squid takes it "
            "literally: it matches "
            "nothing"
        )
    ]
    assert allows(policy_of(imported.yaml), "10.0.0.1", "example.com", 443)


def test_many_values_of_one_kind_get_few_causes() -> None:
    imported = squid(
        'acl odd dstdomain "list"\nhttp_access allow odd\n',
        {"list": "\n".join(f"*.a{n}.org" for n in range(2000))},
    )
    assert len(causes(imported)) == 6
    assert causes(imported)[5] == (
        "squid.conf:1: 1,995 more values of acl `odd`: they are left out or unknown for the same reasons"
    )


def test_an_acl_that_is_defined_nowhere() -> None:
    imported = squid("http_access allow nobody\nhttp_access deny all\n")
    assert causes(imported) == [
        "squid.conf:1: `http_access allow nobody`: acl `nobody` is defined nowhere; only what surely matches is allowed"
    ]


def test_the_cache_manager_is_passed_over() -> None:
    imported = squid("""\
        acl manager proto cache_object
        acl site dstdomain a.example.com
        http_access allow localhost manager
        http_access deny manager
        http_access allow site
        """)
    why = "the cache manager is Squid's own, and nothing here is denied or allowed for it"
    assert causes(imported) == [
        f"squid.conf:3: `http_access allow localhost manager`: {why}",
        f"squid.conf:4: `http_access deny manager`: {why}",
    ]
    assert [policy["name"] for policy in policies(imported)] == ["site"]


def test_acls_that_nothing_uses_need_no_note() -> None:
    policy = only_policy(
        "acl odd time MTWHF\nacl site dstdomain a.example.com\nhttp_access allow site\n"
    )
    assert policy["name"] == "site"


def test_acls_of_acls() -> None:
    imported = squid("""\
        acl a dstdomain a.example.com
        acl b dstdomain b.example.com
        acl web port 443
        acl either any-of a b
        acl both all-of either web
        http_access allow both
        """)
    assert causes(imported) == []
    (policy,) = policies(imported)
    assert policy["allow"] == [
        {"host": "a.example.com", "ports": [443]},
        {"host": "b.example.com", "ports": [443]},
    ]


def test_an_acl_that_contains_itself_is_not_known() -> None:
    imported = squid(
        "acl loop any-of loop\nacl web port 443\nhttp_access deny loop\nhttp_access allow web\n"
    )
    assert not allows(policy_of(imported.yaml), "10.0.0.1", "a.example.com", 443)


NESTED_WHY = "it is an acl of itself, or of acls nested deeper than 16; it is not known"


def test_an_acl_that_contains_itself_several_times_takes_no_time() -> None:
    imported = squid(
        "acl a any-of a a a a\nacl web port 443\nhttp_access deny a\nhttp_access allow web\n"
    )
    assert causes(imported) == [
        f"squid.conf:1: acl `a`: {NESTED_WHY}",
        "squid.conf:3: `http_access deny a`: acl `a` (line 1) is not known in full; all that may match is denied",
    ]
    assert not allows(policy_of(imported.yaml), "10.0.0.1", "a.example.com", 443)


@pytest.mark.parametrize(("depth", "known"), [(16, True), (17, False)])
def test_acls_nested_in_acls_take_no_time(depth: int, known: bool) -> None:
    """Each is five times the one before: 5 to the power of 16 ways to look at the innermost."""
    lines = [
        f"acl g{number} any-of {' '.join([f'g{number - 1}'] * 5)}" for number in range(1, depth + 1)
    ]
    imported = squid(
        "\n".join(("acl g0 dstdomain a.example.com", *lines, f"http_access allow g{depth}"))
    )
    assert allows(policy_of(imported.yaml), "10.0.0.1", "a.example.com", 443) == known
    assert (
        f"squid.conf:{depth + 1}: acl `g{depth}`: {NESTED_WHY}" in causes(imported)
    ) is not known


@pytest.mark.parametrize("group", ["any-of odd", "all-of site odd"])
def test_what_is_not_known_inside_of_an_acl_is_named(group: str) -> None:
    imported = squid(
        f"acl odd time MTWHF\nacl site dstdomain a.example.com\nacl group {group}\nhttp_access allow group\n"
    )
    assert causes(imported) == [
        (
            "squid.conf:4: `http_access allow group`: acl `odd` (line 1) asks for the time of day, which no rule here "
            "does; only what surely matches is allowed"
        )
    ]


def test_addresses_of_names_inside_of_an_acl_deny_all_names() -> None:
    imported = squid(
        "acl net dst 8.8.8.0/24\nacl group any-of net\nacl site dstdomain a.example.com\n"
        "http_access deny group\nhttp_access allow site\n"
    )
    assert causes(imported) == [
        (
            "squid.conf:4: `http_access deny group`: acl `net` asks for the addresses of names, which no rule here "
            "does; all names that it may match are denied by it"
        )
    ]
    assert not allows(policy_of(imported.yaml), "10.0.0.1", "a.example.com", 443)
