"""CONNECT, methods and paths: what rules of ours say of them, and what they cannot."""

from __future__ import annotations

import re
from typing import Any

import pytest

from egress_proxy.config.load import parse
from egress_proxy.migrate.squid_decisions import PLAIN_WHY
from egress_proxy.migrate.ways import USUAL_METHODS
from tests.migrate.deciding import allows, policy_of
from tests.migrate.importing import notes, policies, squid

HOST = "a.example.com"
USUAL = list(USUAL_METHODS)


def rules(text: str, key: str = "allow") -> list[Any]:
    """The rules of all policies that come of these lines, which are about one host."""
    imported = squid(f"acl site dstdomain -n {HOST}\nacl web port 80 443\n{text}")
    return [rule for policy in policies(imported) for rule in policy.get(key, ())]


def said(text: str) -> list[str]:
    return notes(squid(f"acl site dstdomain -n {HOST}\nacl web port 80 443\n{text}"))


# CONNECT ----------------------------------------------------------------------------------------------------------


def test_plain_requests_stay_open_on_ports_where_connect_is_denied() -> None:
    imported = squid("""\
        acl SSL_ports port 443
        acl Safe_ports port 80 443 8000-8010
        acl CONNECT method CONNECT
        acl site dstdomain -n a.example.com
        http_access deny !Safe_ports
        http_access deny CONNECT !SSL_ports
        http_access allow site
        """)
    assert notes(imported) == [f"squid.conf:6: `http_access deny CONNECT !SSL_ports`: {PLAIN_WHY}"]
    (policy,) = policies(imported)
    assert policy["allow"] == [
        {"host": HOST, "ports": [80, "8000-8010"], "methods": USUAL},
        {"host": HOST, "ports": [443]},
    ]


def test_hosts_that_need_several_rules_become_a_set() -> None:
    imported = squid("""\
        acl tls port 443
        acl web port 80 443
        acl sites dstdomain -n .a.example.com b.example.com
        acl others dstdomain -n .a.example.com b.example.com c.example.com d.example.com
        acl lan src 10.0.0.0/8
        http_access deny CONNECT !tls
        http_access allow lan others web
        http_access allow sites web
        """)
    assert (
        'sites-web:\n    - a.example.com\n    - "*.a.example.com"\n    - b.example' in imported.yaml
    )
    first, second = policies(imported)
    for policy, name in ((first, "@lan-others-web"), (second, "@sites-web")):
        assert policy["allow"] == [
            {"host": name, "ports": [80], "methods": USUAL},
            {"host": name, "ports": [443]},
        ]
    for host in ("a.example.com", "x.a.example.com", "b.example.com"):
        assert allows(policy_of(imported.yaml), "192.0.2.1", host, 80, method="GET")
        assert not allows(policy_of(imported.yaml), "192.0.2.1", host, 80)


def test_connect_alone_needs_a_deny_beside_it() -> None:
    text = "http_access allow CONNECT site web\n"
    assert said(text) == []
    assert rules(text) == [HOST]
    assert rules(text, "deny") == [{"host": HOST, "paths": ["/"]}]


def test_one_deny_closes_plain_requests_to_several_hosts() -> None:
    imported = squid("""\
        acl sites dstdomain -n a.example.com b.example.com
        http_access deny !CONNECT
        http_access allow sites
        """)
    denying, allowing = policies(imported)
    assert denying == {"name": "not-connect", "deny": [{"host": "*", "paths": ["/"]}]}
    assert [rule["host"] for rule in allowing["allow"]] == ["a.example.com", "b.example.com"]
    assert "paths: [/]}  # check: ignore=tunnel-open" in imported.yaml


def test_bare_addresses_for_connect_alone() -> None:
    imported = squid("""\
        acl tls port 443
        acl nets dst -n 8.8.8.0/24
        acl site dstdomain -n a.example.com
        acl http port 80
        http_access allow CONNECT nets tls
        http_access allow site http
        """)
    assert notes(imported) == []
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", "8.8.8.8", 443)
    assert not allows(policy, "10.0.0.1", "8.8.8.8", 443, method="GET")
    # The deny that this takes is about what names lead to as well.
    assert allows(policy, "10.0.0.1", HOST, 80, method="GET", addresses=("8.8.8.8",))
    assert "# check: ignore=without-effect" in imported.yaml


def test_bare_addresses_give_way_to_names() -> None:
    imported = squid("""\
        acl nets dst -n 8.8.8.0/24
        acl site dstdomain -n a.example.com
        http_access allow CONNECT nets
        http_access allow site
        """)
    assert [note.partition(":")[2] for note in notes(imported)] == [
        (
            "3: `http_access allow CONNECT nets`: `bare IP addresses`: not all of CONNECT can stay allowed: "
            "it cannot be allowed without plain requests, and to deny those would deny others that are allowed"
        )
    ]
    policy = policy_of(imported.yaml)
    assert not allows(policy, "10.0.0.1", "8.8.8.8", 443)
    assert allows(policy, "10.0.0.1", HOST, 80, method="GET", addresses=("8.8.8.8",))


def test_a_check_of_the_result_says_nothing_of_what_squid_has_just_so() -> None:
    imported = squid("""\
        acl tls port 443
        acl posts method POST
        acl sites dstdomain -n a.example.com b.example.com
        acl other dstdomain -n c.example.com
        acl http port 80
        http_access deny other posts
        http_access allow CONNECT sites tls
        http_access allow sites http
        http_access allow other
        """)
    written = imported.yaml
    assert {"tunnel-open", "without-effect"} <= set(re.findall("ignore=([a-z-]+)", written))
    for text, said in ((written, False), (re.sub("  # check.*", "", written), True)):
        warnings = parse(text.encode(), "imported.yaml").warnings
        codes = {str(warning.code) for warning in warnings}
        assert bool({"tunnel-open", "without-effect"} & codes) == said


# What no rule without order can say ---------------------------------------------------------------------------------


def test_connect_to_all_gives_way_to_plain_requests_to_some_but_for_443() -> None:
    imported = squid("""\
        acl site dstdomain -n a.example.com
        http_access allow CONNECT
        http_access allow site
        """)
    assert [note.partition(":")[2] for note in notes(imported)] == [
        (
            "2: `http_access allow CONNECT`: `*`, `bare IP addresses`: not all of CONNECT can stay allowed: "
            "it cannot be allowed without plain requests, and to deny those would deny others that are allowed"
        ),
        (
            "3: `http_access allow site`: `a.example.com`: not all plain requests can stay allowed: what "
            "must be denied of CONNECT, or of other methods and paths, cannot be denied without them"
        ),
    ]
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", "b.example.com", 443)
    assert not allows(policy, "10.0.0.1", "b.example.com", 80)
    assert not allows(policy, "10.0.0.1", "b.example.com", 443, method="GET")
    assert allows(policy, "10.0.0.1", HOST, 80)
    assert allows(policy, "10.0.0.1", HOST, 80, method="GET")
    assert not allows(policy, "10.0.0.1", HOST, 443, method="GET")


def test_a_host_whose_tunnels_alone_are_denied_below_a_wildcard() -> None:
    imported = squid("""\
        acl bad dstdomain -n bad.example.com
        http_access deny CONNECT bad
        http_access allow all
        """)
    assert "not all plain requests can stay allowed" in "".join(notes(imported))
    policy = policy_of(imported.yaml)
    for method in ("CONNECT", "GET"):
        assert not allows(policy, "10.0.0.1", "bad.example.com", 80, method=method)
        assert allows(policy, "10.0.0.1", "good.example.com", 80, method=method)


# Methods ----------------------------------------------------------------------------------------------------------


def test_methods_that_are_allowed() -> None:
    assert rules("acl reading method GET HEAD\nhttp_access allow site web reading\n") == [
        {"host": HOST, "methods": ["GET", "HEAD"]}
    ]


@pytest.mark.parametrize("method", ["POST", "PURGE", "PROPFIND"])
def test_methods_that_are_denied(method: str) -> None:
    text = f"acl some method {method}\nhttp_access deny some\nhttp_access allow site web\n"
    assert said(text) == []
    assert rules(text) == [HOST]
    assert rules(text, "deny") == [{"host": HOST, "methods": [method]}]


def test_what_squid_never_sends_on_is_allowed_by_no_list() -> None:
    text = "acl some method PURGE GET\nhttp_access allow site web some\n"
    assert rules(text) == [{"host": HOST, "methods": ["GET"]}]


def test_a_method_is_left_out_of_the_usual_ones() -> None:
    text = "acl post method POST\nhttp_access deny CONNECT\nhttp_access deny post\nhttp_access allow site web\n"
    assert rules(text) == [{"host": HOST, "methods": [one for one in USUAL if one != "POST"]}]


def test_all_but_some_methods_beside_connect() -> None:
    """No rule denies "every other method" without denying these too."""
    imported = squid(f"""\
        acl site dstdomain -n {HOST}
        acl web port 80 443
        acl some method GET HEAD CONNECT
        http_access deny !some
        http_access allow site web
        """)
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", HOST, 80, method="HEAD")
    assert not allows(policy, "10.0.0.1", HOST, 80)
    assert allows(policy, "10.0.0.1", HOST, 443)
    assert not allows(policy, "10.0.0.1", HOST, 443, method="HEAD")
    for port in (80, 443):
        for method in ("POST", "PROPFIND", "get"):
            assert not allows(policy, "10.0.0.1", HOST, port, method=method)
    assert len(notes(imported)) == 2


@pytest.mark.parametrize("value", ["post", "Post", "!!"])
def test_methods_in_other_spellings_may_match(value: str) -> None:
    text = f"acl some method {value}\nhttp_access {{}} site web some\nhttp_access deny all\n"
    assert rules(text.format("allow"), "deny") == ["nothing.invalid"]
    assert len(said(text.format("allow"))) == 2


def test_more_methods_than_are_told_apart() -> None:
    many = " ".join(f"M{chr(65 + number)}" for number in range(20))
    text = f"acl some method {many}\nhttp_access deny some\nhttp_access allow site web\n"
    assert said(text)[0] == "squid.conf:3: acl `some`: more than 16 methods are not told apart"
    assert rules(text) == [HOST]
    assert rules(text, "deny") == [{"host": HOST, "paths": ["/"]}]


# Paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acl", "paths"),
    [
        ("urlpath_regex ^/v1/", ["/v1/"]),
        (r"urlpath_regex ^/a-b/c_d/v1\.0/.*$ ^/w/.*", ["/a-b/c_d/v1.0/", "/w/"]),
        ("urlpath_regex ^/v1/ ^/v1/x/", ["/v1/"]),
        (r"url_regex ^http://a\.example\.com/v1/", ["/v1/"]),
        (r"url_regex ^http://b\.example\.com/v1/ ^http://a\.example\.com/w/.*", ["/w/"]),
    ],
)
def test_paths_that_are_allowed(acl: str, paths: list[str]) -> None:
    text = f"acl some {acl}\nhttp_access allow site web some\n"
    assert said(text) == []
    ports = {"ports": [80]} if acl.startswith("url_regex") else {}
    assert rules(text) == [{"host": HOST, **ports, "paths": paths}]


def test_paths_with_some_methods() -> None:
    text = "acl some urlpath_regex ^/v1/\nacl method method {}\nhttp_access allow site web some method\n"
    for methods in ("GET", "GET PURGE"):
        assert said(text.format(methods)) == []
        assert rules(text.format(methods)) == [
            {"host": HOST, "methods": ["GET"], "paths": ["/v1/"]}
        ]


def test_paths_that_are_denied() -> None:
    text = "acl some urlpath_regex ^/admin/\nhttp_access deny some\nhttp_access allow site web\n"
    assert said(text) == []
    assert rules(text) == [HOST]
    assert rules(text, "deny") == [{"host": HOST, "paths": ["/admin/"]}]


def test_a_path_without_case_is_denied_in_every_case_and_allowed_in_lower_case() -> None:
    text = "acl some urlpath_regex -i ^/Admin/\nhttp_access {} some\nhttp_access {} site web\n"
    denied = squid(f"acl site dstdomain -n {HOST}\nacl web port 80\n{text.format('deny', 'allow')}")
    for path in ("/admin/", "/ADMIN/x", "/Admin/"):
        assert not allows(policy_of(denied.yaml), "10.0.0.1", HOST, 80, method="GET", path=path)
    assert allows(policy_of(denied.yaml), "10.0.0.1", HOST, 80, method="GET", path="/x")
    allowed = squid(
        f"acl some urlpath_regex -i ^/Admin/\nacl site dstdomain -n {HOST}\nhttp_access allow some site\n"
    )
    assert "in allow rules it stands for lower case alone" in notes(allowed)[0]
    for path, here in (("/admin/", True), ("/ADMIN/", False)):
        policy = policy_of(allowed.yaml)
        assert allows(policy, "10.0.0.1", HOST, 80, method="GET", path=path) == here


def test_paths_with_and_without_case_are_not_told_apart() -> None:
    """`/API/` belongs to the first acl, and not to the second one."""
    imported = squid("""\
        acl any urlpath_regex -i ^/api/
        acl lower urlpath_regex ^/api/
        http_access deny any !lower
        http_access allow all
        """)
    policy = policy_of(imported.yaml)
    assert not allows(policy, "10.0.0.1", HOST, 80, method="GET", path="/API/")
    assert notes(imported)[1].startswith(
        "squid.conf:1: acl `any`: paths without case (`-i`) beside others with it are not told apart"
    )


@pytest.mark.parametrize(
    ("value", "connect"),
    [
        (r"\.exe$", True),
        (r"\.exe$|\.msi$", True),
        ("^/v[12]/", False),  # no more is known of it than that it may match
        ("^/$", False),
        ("^/a/../b/", True),
        ("^/v1", True),
        (r"^/\.\./v1/", True),
        ("^/", False),
    ],
)
def test_other_regular_expressions_may_match(value: str, connect: bool) -> None:
    """Tunnels have no path: what none can match leaves them open."""
    imported = squid(
        f"acl some urlpath_regex {value}\nacl site dstdomain -n {HOST}\n"
        "http_access deny some\nhttp_access allow site\n"
    )
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", HOST, 443) == connect
    for path in ("/v1/", "/x", "/v1"):
        assert not allows(policy, "10.0.0.1", HOST, 80, method="GET", path=path)
    assert notes(imported)


@pytest.mark.parametrize(
    ("value", "connect"),
    [
        ("^http://b", True),
        ("^ftp://", True),
        ("^http:", False),
        ("^http://a|443", False),
        ("example", False),
        (r"^http://192\.0\.2\.1/", True),
    ],
)
def test_other_urls_may_match(value: str, connect: bool) -> None:
    """What CONNECT asks for is a host and a port, without a scheme."""
    imported = squid(
        f"acl some url_regex {value}\nacl site dstdomain -n {HOST}\n"
        "http_access deny some\nhttp_access allow site\n"
    )
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", HOST, 443) == connect
    assert not allows(policy, "10.0.0.1", HOST, 80, method="GET")
    assert notes(imported)


def test_a_beginning_without_a_slash_is_allowed_below_alone() -> None:
    text = "acl some urlpath_regex ^/v1\nhttp_access allow site web some\n"
    assert rules(text) == [{"host": HOST, "paths": ["/v1/"]}]
    assert said(text)[0].endswith(
        "without a slash at its end it stands for longer words too; what lies below it alone is known"
    )


def test_more_paths_than_are_told_apart() -> None:
    many = " ".join(f"^/{number}/" for number in range(20))
    text = f"acl some urlpath_regex {many}\nhttp_access allow site web some\n"
    assert said(text)[0] == "squid.conf:3: acl `some`: more than 16 paths are not told apart"
    (rule,) = rules(text)
    assert rule["paths"] == [f"/{number}/" for number in range(16)]


def test_an_allowed_path_below_a_denied_one_is_lost() -> None:
    imported = squid("""\
        acl inner urlpath_regex ^/v1/open/
        acl outer urlpath_regex ^/v1/
        acl site dstdomain -n a.example.com
        http_access allow inner site
        http_access deny outer
        http_access allow site
        """)
    assert [note.split("`: ")[1] for note in notes(imported)] == ["`a.example.com"]
    policy = policy_of(imported.yaml)
    for path, here in (("/x", True), ("/v1/x", False), ("/v1/open/x", False)):
        assert allows(policy, "10.0.0.1", HOST, 80, method="GET", path=path) == here
