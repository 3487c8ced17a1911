"""Explanations of plain HTTP requests, and of the way to a destination."""

from __future__ import annotations

import re

import pytest

from egress_proxy.config.load import parse
from egress_proxy.core.errors import HostError
from egress_proxy.core.explain import Explanation, explain, parse_question
from egress_proxy.core.identity import Identity
from egress_proxy.core.reason import Event

POLICY = """\
version: 1
policies:
  - name: everyone
    allow:
      - {host: read.test, methods: [GET, HEAD]}
      - {host: api.test, paths: [/v1/, "/repos/*/pulls"]}
      - {host: both.test, methods: [GET], paths: [/a]}
      - {host: both.test, ports: [443]}
      - shop.test
      - asks.test
    ask:
      - {host: asks.test, paths: [/admin/]}
    deny:
      - {host: shop.test, paths: [/admin/]}
"""


def explained(target: str, method: str | None = None, text: str = POLICY) -> Explanation:
    destination, asked = parse_question(target, method)
    policy = parse(text.encode(), "f.yaml").config.policy
    return explain(policy, Identity("10.0.0.1"), destination, asked=asked)


def test_what_is_asked_is_told() -> None:
    told = explained("http://api.test/x/../v1/a?secret")
    assert (told.outcome, told.method, told.path) == (Event.ALLOWED, "GET", "/v1/a")
    assert (told.conditions, told.reason) == ("/v1/, /repos/*/pulls", None)
    tunnel = explained("api.test")
    assert (tunnel.method, tunnel.path, tunnel.reason) == (None, None, "connect_not_allowed")


@pytest.mark.parametrize(
    ("target", "method", "reason", "added"),
    [
        ("http://read.test/x", "POST", "method_not_allowed", '{host: read.test, ports: [80], methods: ["POST"]}'),
        ("http://api.test/v2", None, "path_not_allowed", '{host: api.test, ports: [80], paths: ["/v2"]}'),
        ("http://api.test/%76%32/../ä", "PUT", "path_not_allowed",
         '{host: api.test, ports: [80], paths: ["/%C3%A4"]}'),
        ("http://both.test/b", "PUT", "method_not_allowed",
         '{host: both.test, ports: [80], methods: ["PUT"], paths: ["/b"]}'),
        ("http://both.test/b", "GET", "path_not_allowed",
         '{host: both.test, ports: [80], methods: ["GET"], paths: ["/b"]}'),
        ("api.test", None, "connect_not_allowed", "{host: api.test, ports: [443]}"),
        ("http://none.test/a", "POST", "host_not_allowed", "{host: none.test, ports: [80]}"),
        ("http://read.test:22/a", None, "port_not_allowed",
         '{host: read.test, ports: [22], methods: ["GET"]}'),
    ],
)  # fmt: skip
def test_what_to_add(target: str, method: str | None, reason: str, added: str) -> None:
    told = explained(target, method)
    assert (told.outcome, told.reason) == (Event.DENIED, reason)
    assert told.add is not None
    assert told.add.splitlines()[-1] == f"      - {added}"
    # And with it, it is allowed, and what is beside it is not.
    mended = POLICY.replace("    allow:\n", f"    allow:\n      - {added}\n", 1)
    assert explained(target, method, mended).outcome == Event.ALLOWED
    if method is not None and told.reason == "method_not_allowed":
        assert explained(target, "DELETE", mended).outcome == Event.DENIED


@pytest.mark.parametrize(
    ("target", "method", "reason", "said"),
    [
        ("http://read.test/", "get", "method_not_allowed", "its method is not in upper case"),
        ("http://api.test/v1%2fa", None, "path_not_allowed", "its path holds an encoded slash or backslash"),
        ("http://api.test/", None, "path_not_allowed", "its path ends in a slash"),
        ("http://api.test/a*b", None, "path_not_allowed", "its path holds an asterisk"),
        ("http://asks.test/ADMIN/", None, "path_not_allowed", "what a rule asks a human about"),
        ("http://asks.test//", None, "path_not_allowed", "what a rule asks a human about"),
        ("http://asks.test/admin/", None, "approval_required", "A human must approve it"),
        ("http://shop.test/a//b", None, "deny_rule", "deny beats allow"),
        (f"http://api.test/{'a' * 3000}", None, "path_not_allowed", "its path is too long"),
    ],
)  # fmt: skip
def test_what_nothing_can_be_added_for(
    target: str, method: str | None, reason: str, said: str
) -> None:
    told = explained(target, method)
    assert (told.outcome, told.reason, told.add) == (Event.DENIED, reason, None)
    assert told.hint is not None
    assert said in told.hint


def test_the_message_says_what_is_unclear() -> None:
    told = explained("http://shop.test/a%252fb")
    assert told.message == (
        "A deny rule names this destination: the path holds an encoded percent sign, which may be decoded twice."
    )
    told = explained("http://asks.test/ADMIN/")
    assert told.message == (
        "The host is allowed, but not this path: some servers would take the path for one that the rule names."
    )


def test_why_other_rules_did_not_decide() -> None:
    told = explained("http://both.test/b")
    assert [(other.rule, other.why) for other in told.others] == [
        ("allow both.test", "it is for port 443")
    ]
    told = explained("both.test:443")
    assert [(other.rule, other.why) for other in told.others] == [
        ("allow both.test (GET, /a)", "it is for plain HTTP requests, not for tunnels")
    ]
    told = explained("http://shop.test/a")
    assert [(other.rule, other.why) for other in told.others] == [
        ("deny shop.test (/admin/)", "it is for /admin/")
    ]
    several = "version: 1\npolicies:\n  - name: a\n    allow:\n" + "".join(
        f"      - {{host: a.test, methods: [{method}]}}\n" for method in ("GET", "PUT")
    )
    told = explained("http://a.test/", "POST", several)
    assert [(other.rule, other.why) for other in told.others] == [
        ("allow a.test (PUT)", "it is for PUT")
    ]


def test_the_text_of_a_rule_stays_short() -> None:
    paths = ", ".join(f"/p{number}" for number in range(100))
    text = f"version: 1\npolicies: [{{name: a, allow: [{{host: a.test, paths: [{paths}]}}]}}]\n"
    told = explained("http://a.test/p7", text=text)
    assert told.rule == "allow a.test (/p0, /p1, /p2, 97 more)"
    assert told.conditions == paths


# What a person calls a request. -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "method", "asked"),
    [
        *(("a.test", None, None), ("a.test:80", "CONNECT", None), ("https://a.test/x", None, None)),
        *(("http://a.test", None, "GET /"), ("HTTP://a.test/", "PUT", "PUT /")),
        *(("http://a.test?b", None, "GET /?b"), ("http://a.test/b?c#d", None, "GET /b?c")),
        *(("http://a.test#d/x", None, "GET /"), ("http://a.test:8080/ü", None, "GET /%C3%BC")),
        *(("http://a.test", "OPTIONS", "OPTIONS *"), ("http://a.test/", "OPTIONS", "OPTIONS /")),
        *(("http://a.test/a b".replace(" ", "%20"), "get", "get /a%20b"),),
    ],
)
def test_questions(text: str, method: str | None, asked: str | None) -> None:
    found = parse_question(text, method)[1]
    assert (None if found is None else f"{found.method} {found.path.decode()}") == asked


@pytest.mark.parametrize(
    ("text", "method"),
    [
        *(("a.test", "GET"), ("https://a.test/", "GET"), ("http://a.test/", "CONNECT")),
        *(("http://a.test/", "G ET"), ("http://a.test/", ""), ("http://a.test/", "G\nET")),
        *(("http://a.test/a b", None), ("http://a.test/\n", None), ("http://a.test/\0", None)),
        *(("http://a.test/", "A" * 65),),
    ],
)
def test_what_is_no_question(text: str, method: str | None) -> None:
    if method == "":
        assert parse_question(text, method)[1] is not None  # none was given
        return
    with pytest.raises(HostError) as caught:
        parse_question(text, method)
    assert "a.test" not in str(caught.value)


# The way to a destination. ----------------------------------------------------------------------------------------

ROUTES = """\
version: 1
upstream: {proxy: "http://top.test:3128", no_proxy: [plain.test, "*.inside.test", "*.deep.inside.test", 192.0.2.0/24]}
policies:
  - name: a
    allow:
      - "*"
      - {cidr: 0.0.0.0/0}
      - {host: direct.test, upstream: direct}
      - {host: own.test, upstream: {proxy: "http://own-parent.test:8080"}}
"""


@pytest.mark.parametrize(
    ("target", "parent", "route"),
    [
        ("a.test", "top.test:3128", "`upstream` of the configuration"),
        ("plain.test", None, "the entry `plain.test` of `no_proxy`"),
        ("a.inside.test", None, "the entry `*.inside.test` of `no_proxy`"),
        ("a.deep.inside.test", None, "the entry `*.deep.inside.test` of `no_proxy`"),
        ("inside.test", "top.test:3128", "`upstream` of the configuration"),
        ("192.0.2.1", None, "the entry `192.0.2.0/24` of `no_proxy`"),
        ("198.51.100.1", "top.test:3128", "`upstream` of the configuration"),
        ("direct.test", None, "`upstream: direct` of `allow direct.test` at f.yaml:8:9"),
        ("own.test", "own-parent.test:8080", "`upstream` of `allow own.test` at f.yaml:9:9"),
    ],
)
def test_why_it_goes_this_way(target: str, parent: str | None, route: str) -> None:
    told = explained(target, text=ROUTES)
    assert (told.parent, told.route) == (parent, route)


def test_without_upstream_there_is_nothing_to_say() -> None:
    assert explained("shop.test").route is None


@pytest.mark.parametrize(
    ("target", "addresses", "ignored"),
    [
        ("a.test", ("10.0.0.1",), True),
        ("a.test", (), False),
        ("plain.test", ("10.0.0.1",), False),
        ("198.51.100.1", (), False),
        ("198.51.100.1", ("198.51.100.1",), False),
        ("localhost", (), False),
    ],
)
def test_addresses_that_a_parent_finds_are_not_judged_here(
    target: str, addresses: tuple[str, ...], ignored: bool
) -> None:
    policy = parse(ROUTES.encode(), "f.yaml").config.policy
    told = explain(policy, Identity("10.0.0.1"), parse_question(target)[0], addresses)
    assert told.addresses_ignored is ignored


def test_no_text_of_a_client_is_told_unescaped() -> None:
    told = explained("http://api.test/\u202e")
    assert told.path == "/%E2%80%AE"
    assert re.fullmatch(r"[ -~]*", f"{told.message} {told.hint} {told.path}")


@pytest.mark.parametrize(
    ("target", "method", "said"),
    [
        ("http://user:secret@read.test/", None, "user information"),
        ("user@read.test", None, "user information"),
        ("*.read.test", None, "name one of them"),
        ("read.test/a", None, "a path needs http:// or https://"),
        ("read.test?a", None, "a path needs http:// or https://"),
        ("http://read.test/@*", "GET", None),
    ],
)
def test_what_people_write_for_a_destination(
    target: str, method: str | None, said: str | None
) -> None:
    if said is None:
        assert explained(target, method).outcome == Event.ALLOWED
        return
    with pytest.raises(HostError, match=re.escape(said)) as caught:
        parse_question(target, method)
    assert "secret" not in str(caught.value)
