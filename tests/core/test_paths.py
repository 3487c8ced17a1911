"""Paths of requests: one normal form, patterns, and no spelling that slips past a deny rule."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from random import Random
from time import monotonic
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from egress_proxy.core import reasons
from egress_proxy.core.conditions import Asked, Conditions, Fit, see, to_forward
from egress_proxy.core.decide import as_decided, decide, vet_addresses
from egress_proxy.core.explain import explain
from egress_proxy.core.http1 import HeadLimits, ProxyRequest, origin_request, parse_request
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.core.paths import (
    PathPattern,
    Unclear,
    normal_path,
    path_pattern,
    segments_of,
)
from egress_proxy.core.policy import (
    EVERY_PORT,
    Action,
    CompiledPolicy,
    HostPattern,
    Mode,
    Policy,
    Rule,
)
from egress_proxy.core.reason import Reason
from tests.core.targets import HERE, host_pattern
from tests.support.calm import CALM

ME = Identity("10.0.0.1")
HOST = parse_authority(b"a.test:80", None)


def rule(
    action: Action,
    *,
    methods: tuple[str, ...] = (),
    paths: tuple[str, ...] = (),
    host: str = "a.test",
) -> Rule:
    conditions = Conditions(methods, tuple(map(path_pattern, paths))) if methods or paths else None
    return Rule(action, host_pattern(host), HERE, EVERY_PORT, conditions=conditions)


def allow(*paths: str, methods: tuple[str, ...] = ()) -> Rule:
    return rule(Action.ALLOW, methods=methods, paths=paths)


def ask(*paths: str, methods: tuple[str, ...] = ()) -> Rule:
    return rule(Action.ASK, methods=methods, paths=paths)


def deny(*paths: str, methods: tuple[str, ...] = ()) -> Rule:
    return rule(Action.DENY, methods=methods, paths=paths)


def compiled(*rules: Rule, mode: Mode = Mode.ENFORCE) -> CompiledPolicy:
    return CompiledPolicy([Policy("p", rules, None, HERE)], mode)


def denial(path: str, *rules: Rule, method: str = "GET") -> Reason | None:
    found = {
        decide(compiled(*order), ME, HOST, Asked(method, path.encode("latin-1"))).denial
        for order in (rules, rules[::-1])
    }
    (said,) = found
    return said


# The normal form. -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        *(("/", "/"), ("/a", "/a"), ("/a/", "/a/"), ("/a/b.c/d-e_f~g", "/a/b.c/d-e_f~g")),
        ("/!$&'()*+,=:@", "/!$&'()*+,=:@"),
        # Dot segments (RFC 3986 §5.2.4).
        *(("/a/../admin", "/admin"), ("/a/./b", "/a/b"), ("/./a", "/a"), ("/a/b/../../c", "/c")),
        *(("/a/..", "/"), ("/a/.", "/a/"), ("/.", "/"), ("/a/b/..", "/a/"), ("/a/../", "/")),
        *(("/...", "/..."), ("/.a", "/.a"), ("/a..", "/a.."), ("/..a/.b.", "/..a/.b.")),
        ("/mid/content=5/../6", "/mid/6"),
        # What need not be encoded, and what must be (§6.2.2.2, §2.1).
        *(("/a/%2e%2e/admin", "/admin"), ("/a/.%2E/admin", "/admin"), ("/%2e/a", "/a")),
        *(("/%61dmin", "/admin"), ("/%41", "/A"), ("/%7euser", "/~user"), ("/%2D%5f", "/-_")),
        *(("/%c3%a4", "/%C3%A4"), ("/%C3%A4", "/%C3%A4"), ("/a%20b", "/a%20b"), ("/%2a", "/%2A")),
        *(("/%2b", "/%2B"), ("/a+b", "/a+b"), ("/%40", "/%40"), ("/%24", "/%24")),
        *(("/[a]", "/%5Ba%5D"), ('/"<>^`{|}', "/%22%3C%3E%5E%60%7B%7C%7D")),
        ("/%f0%9f%90%8d", "/%F0%9F%90%8D"),
    ],
)
def test_the_normal_form(path: str, normal: str) -> None:
    assert normal_path(path.encode("ascii")) == normal.encode("ascii")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        *(("", Unclear.NO_PATH), ("*", Unclear.NO_PATH), ("a/b", Unclear.NO_PATH)),
        *(("/a\\b", Unclear.BACKSLASH), ("\\a", Unclear.NO_PATH), ("/..\\a", Unclear.BACKSLASH)),
        *(("/a%2fb", Unclear.ENCODED_SLASH), ("/a%2Fb", Unclear.ENCODED_SLASH)),
        *(("/a%5cb", Unclear.ENCODED_SLASH), ("/%2e%2e%2fadmin", Unclear.ENCODED_SLASH)),
        *(("/a%252fb", Unclear.ENCODED_PERCENT), ("/%2561", Unclear.ENCODED_PERCENT)),
        *(("/a/%252e%252e/b", Unclear.ENCODED_PERCENT), ("/100%25", Unclear.ENCODED_PERCENT)),
        *(("//admin", Unclear.EMPTY_SEGMENT), ("/a//b", Unclear.EMPTY_SEGMENT)),
        *(("//", Unclear.EMPTY_SEGMENT), ("/a//", Unclear.EMPTY_SEGMENT)),
        *(("/.//a", Unclear.EMPTY_SEGMENT), ("/a//../b", Unclear.EMPTY_SEGMENT)),
        *(("/a;x=1", Unclear.PARAMETER), ("/a;/b", Unclear.PARAMETER), ("/;", Unclear.PARAMETER)),
        *(("/..;/admin", Unclear.PARAMETER), ("/a%3bx", Unclear.ENCODED_DELIMITER)),
        *(("/a%3fb", Unclear.ENCODED_DELIMITER), ("/a%23b", Unclear.ENCODED_DELIMITER)),
        *(("/%00", Unclear.ENCODED_CONTROL), ("/admin%00.png", Unclear.ENCODED_CONTROL)),
        *(("/%0d%0a", Unclear.ENCODED_CONTROL), ("/%09", Unclear.ENCODED_CONTROL)),
        *(("/%7f", Unclear.ENCODED_CONTROL), ("/\x7f", Unclear.BYTE), ("/a b", Unclear.BYTE)),
        *(("/\xe4", Unclear.BYTE), ("/\x00", Unclear.BYTE), ("/a?b", Unclear.BYTE)),
        *(("/a#b", Unclear.BYTE), ("/a\n", Unclear.BYTE)),
        # Overlong forms of `/`, `.` and `\`; a surrogate; Latin-1; half a letter.
        *(("/%c0%af", Unclear.NOT_UTF8), ("/%c0%ae%c0%ae/a", Unclear.NOT_UTF8)),
        *(("/%e0%80%af", Unclear.NOT_UTF8), ("/%c1%9c", Unclear.NOT_UTF8)),
        *(("/%ed%a0%80", Unclear.NOT_UTF8), ("/%e4", Unclear.NOT_UTF8), ("/%c3", Unclear.NOT_UTF8)),
        *(("/%c3/%a4", Unclear.NOT_UTF8), ("/%f4%90%80%80", Unclear.NOT_UTF8)),
        *(("/%", Unclear.BAD_ENCODING), ("/%2", Unclear.BAD_ENCODING), ("/%zz", Unclear.BAD_ENCODING)),
        *(("/%u002f", Unclear.BAD_ENCODING), ("/%%32%66", Unclear.BAD_ENCODING)),
        *(("/..", Unclear.ABOVE_ROOT), ("/../a", Unclear.ABOVE_ROOT), ("/a/../..", Unclear.ABOVE_ROOT)),
        *(("/%2e%2e/a", Unclear.ABOVE_ROOT), ("/a/../../a", Unclear.ABOVE_ROOT)),
    ],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_has_none(path: str, why: Unclear) -> None:
    assert normal_path(path.encode("latin-1")) is why


def test_no_message_quotes_the_path() -> None:
    assert all(re.fullmatch(r"[a-z][A-Za-z0-9 ,`.:-]*", why.value) for why in Unclear)


PIECES = (
    *("/", "//", "..", ".", "a", "b", "A", "admin", "%61", "%2e", "%2E", "%2f", "%25", "%5c", "\\"),
    *(";", "%3b", "%c3%a4", "%C3", "%c0%af", "%00", "%20", "[", "*", "%", "%zz", "+", "$", "%24", "?", "\xe4"),
)  # fmt: skip
PATHS = st.lists(st.sampled_from(PIECES), max_size=8).map(lambda found: f"/{''.join(found)}")


@settings(CALM)
@given(PATHS | st.text(max_size=20).map(lambda text: f"/{text}"))
def test_the_normal_form_of_a_normal_form_is_itself(path: str) -> None:
    data = path.encode("utf-8")
    normal = normal_path(data)
    if isinstance(normal, Unclear):
        return
    assert normal_path(normal) == normal
    assert normal.startswith(b"/")
    segments = normal.split(b"/")[1:]
    assert b"" not in segments[:-1]
    assert {b".", b".."}.isdisjoint(segments)
    decoded = unquote(normal.decode("ascii"), errors="strict")
    # However often an origin decodes it, it finds no other segments.
    assert unquote(decoded) == decoded
    assert decoded.count("/") == normal.count(b"/")
    assert not re.search(r"[\\;?#\x00-\x1f\x7f]", decoded)


@settings(CALM)
@given(PATHS)
def test_a_normal_form_decodes_to_what_the_path_decodes_to(path: str) -> None:
    """Against another reading: decode all, then walk along the segments."""
    normal = normal_path(path.encode("latin-1"))
    if isinstance(normal, Unclear):
        return
    found: list[str] = []
    segments = unquote(path, errors="strict").split("/")[1:]
    for segment in segments:
        if segment == "..":
            found.pop()
        elif segment != ".":
            found.append(segment)
    if segments[-1] in (".", ".."):
        found.append("")
    assert unquote(normal.decode("ascii")) == "/" + "/".join(found)


def test_a_long_path_takes_no_longer_for_its_length() -> None:
    for path in (
        b"/a" * 50_000,
        b"/a/.." * 50_000,
        b"/%2e%2e" * 50_000,
        b"/%61" * 50_000,
        b"/" * 100_000,
    ):
        before = monotonic()
        see(Asked("GET", path))
        assert monotonic() - before < 5


# Patterns. --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "matched", "not_matched"),
    [
        ("/", "/ /a /a/ /a/b", ""),
        ("/a", "/a", "/ /a/ /a/b /ab /b /A"),
        ("/a/", "/a/ /a/b /a/b/ /a/b/c", "/ /a /ab /b/a /A/b"),
        ("/a/*", "/a/b /a/bc", "/a /a/ /a/b/ /a/b/c /b/b"),
        ("/*", "/a /b", "/ /a/ /a/b"),
        ("/*/", "/a/ /a/b /a/b/c", "/ /a"),
        ("/repos/*/pulls", "/repos/x/pulls", "/repos/pulls /repos//pulls /repos/x/y/pulls /repos/x/pulls/"),
        ("/repos/*/*/", "/repos/x/y/ /repos/x/y/z", "/repos/x/ /repos/x/y /repos/x"),
        ("/%C3%A4", "/%C3%A4", "/%C3%84 /a"),
        ("/a%20b", "/a%20b", "/a+b /ab"),
        ("/%2A", "/%2A", "/* /a"),
    ],
)  # fmt: skip
def test_what_a_pattern_matches(pattern: str, matched: str, not_matched: str) -> None:
    found = path_pattern(pattern)
    assert str(found) == pattern
    for path in matched.split():
        assert found.matches(segments_of(path.encode("ascii"))), path
    for path in not_matched.split():
        assert not found.matches(segments_of(path.encode("ascii"))), path


@pytest.mark.parametrize(
    ("pattern", "meant", "not_meant"),
    [
        ("/admin", "/admin /admin/ /ADMIN /Admin/", "/admin/x /admins /"),
        ("/admin/", "/admin /admin/ /admin/x /ADMIN/X/y", "/ /admins /administration"),
        ("/admin/*", "/admin/x /Admin/X/", "/admin /admin/ /admin/x/y"),
        ("/a$b", "/a$b /a%24b /A%24B", "/ab"),
        ("/%C3%A4", "/%C3%A4 /%C3%84", "/a"),
        ("/", "/ /a", ""),
    ],
)
def test_what_some_server_may_take_for_it(pattern: str, meant: str, not_meant: str) -> None:
    found = path_pattern(pattern)
    for path in meant.split():
        assert found.may_match(segments_of(path.encode("ascii"))), path
    for path in not_meant.split():
        assert not found.may_match(segments_of(path.encode("ascii"))), path


PATTERNS = st.lists(st.sampled_from(["a", "b", "A", "*", "%24", "$"]), max_size=3).flatmap(
    lambda parts: st.sampled_from(["", "/"]).map(
        lambda end: "/" + "/".join(parts) + (end if parts else "")
    )
)
NORMAL = st.lists(st.sampled_from(["a", "b", "A", "%24", "$", "x"]), max_size=4).flatmap(
    lambda parts: st.sampled_from(["", "/"]).map(
        lambda end: "/" + "/".join(parts) + (end if parts else "")
    )
)


def means(pattern: str, path: str) -> bool:
    """The grammar once more, as a regular expression."""
    parts = ["[^/]+" if part == "*" else re.escape(part) for part in pattern.split("/")]
    return re.fullmatch("/".join(parts) + (".*" if pattern.endswith("/") else ""), path) is not None


@settings(CALM)
@given(PATTERNS, NORMAL)
def test_a_pattern_is_the_regular_expression_that_the_manual_describes(
    pattern: str, path: str
) -> None:
    found, segments = path_pattern(pattern), segments_of(path.encode("ascii"))
    assert found.matches(segments) is means(pattern, path)
    # A deny rule is never narrower than an allow rule of the same words.
    assert found.may_match(segments) or not found.matches(segments)


@settings(CALM)
@given(PATTERNS, PATTERNS, NORMAL)
@example("/a/", "/a", "/a")
@example("/*/", "/a/", "/a/")
def test_what_covers_a_pattern_matches_all_that_it_matches(one: str, other: str, path: str) -> None:
    wide, narrow, segments = (
        path_pattern(one),
        path_pattern(other),
        segments_of(path.encode("ascii")),
    )
    if wide.covers(narrow):
        assert wide.matches(segments) or not narrow.matches(segments)
        assert wide.may_match(segments) or not narrow.may_match(segments)


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        *(("/", "/a", True), ("/", "/", True), ("/a", "/a", True), ("/a/", "/a", False)),
        *(("/a/", "/a/b", True), ("/a/", "/a/b/", True), ("/a/", "/a/*", True), ("/a/*", "/a/b", True)),
        *(("/a/*", "/a/b/", False), ("/a/b", "/a/*", False), ("/*/", "/a/", True), ("/a/", "/*/", False)),
        *(("/*", "/", False), ("/*/b", "/a/b", True), ("/a/", "/b/", False)),
    ],
)  # fmt: skip
def test_which_pattern_covers_which(wide: str, narrow: str, covers: bool) -> None:
    assert path_pattern(wide).covers(path_pattern(narrow)) is covers


# No way past a deny rule. -----------------------------------------------------------------------------------------

#: Ways to write `/admin` that some server takes for it.
SPELLINGS = (Path(__file__).parent / "data" / "admin_spellings.txt").read_text("ascii").split()


@pytest.mark.parametrize("path", SPELLINGS)
@pytest.mark.parametrize("query", ["", "?", "?a=/b", "?/../public"])
def test_no_spelling_of_a_denied_path_passes(path: str, query: str) -> None:
    for pattern in ("/admin", "/admin/"):
        assert denial(path + query, deny(pattern), allow()) is reasons.DENY_RULE
        assert denial(path + query, deny(pattern, methods=("GET",)), allow()) is reasons.DENY_RULE


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_slips_past_a_rule_that_asks(path: str) -> None:
    for pattern in ("/admin", "/admin/"):
        said = denial(path, ask(pattern), allow())
        normal = normal_path(path.encode("ascii"))
        plain = not isinstance(normal, Unclear) and path_pattern(pattern).matches(
            segments_of(normal)
        )
        assert said is (reasons.APPROVAL_REQUIRED if plain else reasons.PATH_NOT_ALLOWED)


@pytest.mark.parametrize("path", SPELLINGS)
def test_what_is_unclear_is_never_allowed_by_its_path(path: str) -> None:
    normal = normal_path(path.encode("ascii"))
    said = denial(path, allow("/"))
    assert said is (reasons.PATH_NOT_ALLOWED if isinstance(normal, Unclear) else None)
    # Nor by a path beside the one that is meant.
    assert denial(path, allow("/public/", "/a/", "/a/*", "/x")) is reasons.PATH_NOT_ALLOWED


@pytest.mark.parametrize(
    "path", ["/public", "/", "/a/b", "/administration", "/x/admin", "/public?x=/admin"]
)
def test_a_deny_rule_denies_nothing_else(path: str) -> None:
    assert denial(path, deny("/admin/"), allow()) is None


@settings(CALM)
@given(PATHS, PATTERNS)
def test_whatever_reads_as_a_denied_path_is_denied(path: str, pattern: str) -> None:
    """An origin that decodes as often as it likes, takes backslashes for slashes, and minds neither case nor `//`.

    It never meets an encoded dot: what is sent on is the normal form.
    """
    text = re.sub("%2e", ".", path.partition("?")[0], flags=re.IGNORECASE)
    readings = set()
    for _ in range(3):
        for slashed in (text, text.replace("\\", "/"), re.sub(r";[^/]*", "", text)):
            found: list[str] = []
            for segment in slashed.casefold().split("/"):
                if segment == "..":
                    del found[-1:]
                elif segment not in ("", "."):
                    found.append(segment)
            readings.add("/" + "/".join(found))
        text = unquote(text)
    wanted = unquote(pattern).casefold()
    exact = "/" + wanted.strip("/")
    denied = any(
        means(exact, read) or (pattern.endswith("/") and means(wanted, f"{read.rstrip('/')}/"))
        for read in readings
    )
    if denied:
        assert denial(path, deny(pattern), allow()) is reasons.DENY_RULE


# Methods. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "rules", "expected"),
    [
        ("GET", [allow(methods=("GET", "HEAD"))], None),
        ("POST", [allow(methods=("GET", "HEAD"))], reasons.METHOD_NOT_ALLOWED),
        ("get", [allow(methods=("GET", "HEAD"))], reasons.METHOD_NOT_ALLOWED),
        ("POST", [allow(), deny(methods=("POST",))], reasons.DENY_RULE),
        ("post", [allow(), deny(methods=("POST",))], reasons.DENY_RULE),
        ("PoSt", [allow(), deny(methods=("POST",))], reasons.DENY_RULE),
        ("GET", [allow(), deny(methods=("POST",))], None),
        ("POST", [allow(), ask(methods=("POST",))], reasons.APPROVAL_REQUIRED),
        ("post", [allow(), ask(methods=("POST",))], reasons.METHOD_NOT_ALLOWED),
        ("GET", [allow(), ask(methods=("POST",))], None),
        ("GET", [ask(methods=("POST",))], reasons.METHOD_NOT_ALLOWED),
    ],
)
def test_methods(method: str, rules: list[Rule], expected: Reason | None) -> None:
    assert denial("/x", *rules, method=method) is expected


def test_both_conditions_must_hold() -> None:
    rules = [allow("/a/", methods=("GET",)), allow("/b/", methods=("POST",))]
    assert denial("/a/x", *rules) is None
    assert denial("/b/x", *rules, method="POST") is None
    # The nearest miss is told: the rule with this method is for another path.
    assert denial("/b/x", *rules) is reasons.PATH_NOT_ALLOWED
    assert denial("/a/x", *rules, method="POST") is reasons.PATH_NOT_ALLOWED
    assert denial("/a/x", *rules, method="PUT") is reasons.METHOD_NOT_ALLOWED


def test_a_port_is_a_farther_miss_than_a_method() -> None:
    other = Rule(Action.ALLOW, HostPattern("a.test", wildcard=False), HERE, ((443, 443),))
    assert denial("/x", other) is reasons.PORT_NOT_ALLOWED
    assert denial("/x", other, allow(methods=("POST",))) is reasons.METHOD_NOT_ALLOWED


# Tunnels. ---------------------------------------------------------------------------------------------------------


def test_no_condition_ever_fits_a_tunnel() -> None:
    for found in (Conditions(("GET",)), Conditions((), (path_pattern("/"),))):
        assert found.fit(see(None)) is Fit.TUNNEL
    assert decide(compiled(allow("/")), ME, HOST).denial is reasons.CONNECT_NOT_ALLOWED
    assert decide(compiled(ask("/")), ME, HOST).denial is reasons.CONNECT_NOT_ALLOWED
    assert decide(compiled(allow("/"), allow()), ME, HOST).denial is None
    assert decide(compiled(deny("/"), allow()), ME, HOST).denial is None
    assert decide(compiled(deny("/")), ME, HOST).denial is reasons.HOST_NOT_ALLOWED


# What is sent on. -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        *((b"/v1/x", None), (b"/v1/x?q=%2e%2e/", None), (b"/v1/../v1/x?a?b", b"/v1/x?a?b")),
        *((b"/%76%31/x?", b"/v1/x?"), (b"/v1/./x", b"/v1/x"), (b"/v1/%c3%a4?%c3", b"/v1/%C3%A4?%c3")),
    ],
)  # fmt: skip
def test_what_was_matched_is_what_is_forwarded(sent: bytes, forwarded: bytes | None) -> None:
    decision = decide(compiled(allow("/v1/")), ME, HOST, Asked("GET", sent))
    assert (decision.denial, decision.path) == (None, forwarded)
    # So it is when it is another rule that lets it through.
    decision = decide(compiled(deny("/x"), allow()), ME, HOST, Asked("GET", sent))
    assert (decision.denial, decision.path) == (None, forwarded)
    # Without such a rule it is none of the proxy's business.
    for rules in (
        [allow()],
        [allow(methods=("GET",))],
        [rule(Action.DENY, paths=("/x",), host="b.test"), allow()],
    ):
        decision = decide(compiled(*rules), ME, HOST, Asked("GET", sent))
        assert (decision.denial, decision.path) == (None, None)


def test_what_cannot_be_told_goes_on_as_it_is_where_no_path_matters() -> None:
    decision = decide(compiled(allow("/v1/"), allow()), ME, HOST, Asked("GET", b"/a%2fb"))
    assert (decision.denial, decision.path) == (None, None)


def request(head: bytes) -> ProxyRequest:
    return parse_request(head, HeadLimits(8192, 100))


OVERRIDES = b"""\
X-HTTP-Method-Override: DELETE\r
x_http_method_override: DELETE\r
X-HTTP-Method: DELETE\r
X-Method-Override: DELETE\r
X-Original-URL: /admin\r
X-Rewrite-Url: /admin\r
"""


def test_headers_that_would_say_otherwise_are_not_sent_on() -> None:
    """Some frameworks take the method, or the path, from a header."""
    asked = request(
        b"GET http://a.test/v1/../v1/x?y HTTP/1.1\r\nHost: a.test\r\nX-Kept: 1\r\n"
        + OVERRIDES
        + b"\r\n"
    )
    what = Asked(asked.method, asked.path)
    for rules, line, kept in (
        ([allow("/v1/")], b"GET /v1/x?y HTTP/1.1\r\n", False),
        ([allow(methods=("GET",))], b"GET /v1/../v1/x?y HTTP/1.1\r\n", False),
        ([allow()], b"GET /v1/../v1/x?y HTTP/1.1\r\n", True),
    ):
        decision = decide(compiled(*rules), ME, HOST, what)
        assert decision.allowed
        sent = origin_request(as_decided(asked, decision)).lower()
        assert sent.startswith(line.lower())
        assert b"x-kept: 1\r\n" in sent
        for field in OVERRIDES.lower().splitlines():
            assert (field in sent) is kept


def test_the_asterisk_form_is_no_path() -> None:
    assert to_forward(Asked("OPTIONS", b"*"), see(Asked("OPTIONS", b"*"))) is None  # type: ignore[arg-type]
    assert denial("*", allow("/"), method="OPTIONS") is reasons.PATH_NOT_ALLOWED
    assert denial("*", allow(methods=("OPTIONS",)), method="OPTIONS") is None


# What is remembered. ----------------------------------------------------------------------------------------------


def test_clients_cannot_fill_the_memory_with_paths() -> None:
    policy = compiled(allow("/v1/"))
    for number in range(1000):
        assert decide(policy, ME, HOST, Asked("GET", b"/v1/%d" % number)).allowed
    assert len(policy.memo) == 1


def test_a_host_without_conditions_costs_what_it_did() -> None:
    policy = compiled(allow("/v1/"), rule(Action.ALLOW, host="b.test"))
    other = parse_authority(b"b.test:80", None)
    tunnel = decide(policy, ME, other)
    assert decide(policy, ME, other, Asked("GET", b"/a")) is tunnel
    assert decide(policy, ME, other, Asked("POST", b"/a/%2f")) is tunnel
    assert not tunnel.conditional


def test_one_request_s_decision_is_no_other_s() -> None:
    policy = compiled(allow("/v1/", methods=("GET",)), deny("/v1/admin"))
    for _ in range(2):
        assert decide(policy, ME, HOST, Asked("GET", b"/v1/a")).denial is None
        assert decide(policy, ME, HOST, Asked("GET", b"/v1/admin")).denial is reasons.DENY_RULE
        assert decide(policy, ME, HOST, Asked("PUT", b"/v1/a")).denial is reasons.METHOD_NOT_ALLOWED
        assert decide(policy, ME, HOST).denial is reasons.CONNECT_NOT_ALLOWED


# The decision against a plain reading of the manual. --------------------------------------------------------------

METHODS = st.lists(st.sampled_from(["GET", "POST"]), max_size=2, unique=True).map(tuple)
RULES = st.builds(
    lambda action, methods, paths: rule(action, methods=methods, paths=paths),
    st.sampled_from(Action),
    METHODS,
    st.lists(PATTERNS, max_size=2).map(tuple),
)


def expected(rules: list[Rule], asked: Asked) -> Reason | None:
    """The denial; None where there is none."""
    normal = normal_path(asked.path.partition(b"?")[0])
    segments = None if isinstance(normal, Unclear) else segments_of(normal)

    def fits(conditions: Conditions | None, *, loosely: bool) -> bool:
        if conditions is None:
            return True
        method = asked.method.upper() if loosely else asked.method
        if conditions.methods and method not in conditions.methods:
            return False
        if not conditions.paths or segments is None:
            return not conditions.paths or loosely
        how = PathPattern.may_match if loosely else PathPattern.matches
        return any(
            how(pattern, segments) or pattern.matches(segments) for pattern in conditions.paths
        )

    of = {action: [one.conditions for one in rules if one.action is action] for action in Action}
    if any(fits(found, loosely=True) for found in of[Action.DENY]):
        return reasons.DENY_RULE
    if any(fits(found, loosely=False) for found in of[Action.ASK]):
        return reasons.APPROVAL_REQUIRED
    doubtful = any(fits(found, loosely=True) for found in of[Action.ASK])
    if not doubtful and any(fits(found, loosely=False) for found in of[Action.ALLOW]):
        return None
    others = of[Action.ASK] + of[Action.ALLOW]
    if not others:
        return reasons.HOST_NOT_ALLOWED
    if doubtful:
        # What it may mean is told, and that by its path first.
        near = [found for found in of[Action.ASK] if fits(found, loosely=True)]
        by_path = any(
            found is not None
            and found.paths
            and not fits(Conditions((), found.paths), loosely=False)
            for found in near
        )
    else:
        # What the request may mean comes before what it cannot, and its path before its method.
        named = [
            found
            for found in others
            if found is not None and (not found.methods or asked.method.upper() in found.methods)
        ]
        off_path = [
            Conditions((), found.paths)
            for found in named
            if found.paths and not fits(Conditions((), found.paths), loosely=False)
        ]
        near_path = any(fits(found, loosely=True) for found in off_path)
        near_method = any(
            asked.method not in found.methods
            and (not found.paths or fits(Conditions((), found.paths), loosely=False))
            for found in named
            if found.methods
        )
        by_path = near_path or (bool(off_path) and not near_method)
    return reasons.PATH_NOT_ALLOWED if by_path else reasons.METHOD_NOT_ALLOWED


@settings(CALM)
@given(
    st.lists(RULES, max_size=5),
    st.sampled_from(["GET", "POST", "get", "PUT"]),
    NORMAL | PATHS,
    st.sampled_from(["", "?x=/a"]),
    st.sampled_from(Mode),
    st.randoms(),
)
def test_the_decision_is_what_the_manual_says(
    rules: list[Rule], method: str, path: str, query: str, mode: Mode, random: Random
) -> None:
    asked = Asked(method, (path + query).encode("latin-1"))
    said = decide(compiled(*rules, mode=mode), ME, HOST, asked)
    assert said.denial is expected(rules, asked)
    assert said.allowed is (said.denial is None or mode is Mode.AUDIT)
    if said.denial in (reasons.PATH_NOT_ALLOWED, reasons.METHOD_NOT_ALLOWED):
        assert said.match is not None
        assert said.match.rule.conditions is not None
    again = decide(compiled(*random.sample(rules, len(rules)), mode=mode), ME, HOST, asked)
    assert (again.denial, again.path, again.conditional) == (
        said.denial,
        said.path,
        said.conditional,
    )
    assert len(again.allowed_by) == len(said.allowed_by)
    if said.path is not None:
        forwarded, _, rest = said.path.partition(b"?")
        assert normal_path(forwarded) == forwarded
        assert rest == query[1:].encode("latin-1")


# Networks that are denied for some requests. ----------------------------------------------------------------------


def test_a_network_that_is_denied_for_some_requests_is_closed_behind_names_for_them() -> None:
    network = ip_network("8.8.8.0/24")
    conditions = Conditions(("POST",), (path_pattern("/a/"),))
    closing = Rule(Action.DENY, network, HERE, EVERY_PORT, conditions=conditions)
    policy = compiled(allow(), closing)

    def reaches(asked: Asked | None) -> bool:
        decision = decide(policy, ME, HOST, asked)
        assert decision.denial is None
        vetting, refused = vet_addresses(decision, ("8.8.8.8",), 80)
        assert bool(vetting.passed) is (refused is None)
        return refused is None

    assert reaches(None)
    assert reaches(Asked("GET", b"/a/"))
    assert reaches(Asked("POST", b"/b"))
    assert not reaches(Asked("POST", b"/a/b"))
    assert not reaches(Asked("post", b"/%2e/A"))
    assert not reaches(Asked("POST", b"/b//c"))
    # As many kinds of requests as rules tell apart are remembered, and no more.
    grants = {
        id(decide(policy, ME, HOST, Asked("POST", b"/a/%d" % number)).grant) for number in range(50)
    }
    assert len(grants) == 1
    told = explain(policy, ME, HOST, ("8.8.8.8",), asked=Asked("POST", b"/a/b"))
    assert "closed by `deny 8.8.8.0/24 (POST, /a/)`" in told.addresses[0].why


def test_a_closed_network_with_paths_is_told_the_path_that_is_sent() -> None:
    """For every host: nobody knows yet which address is behind a name."""
    policy = CompiledPolicy(
        (
            Policy(
                "p",
                (
                    Rule(Action.ALLOW, HostPattern("h.example", False), HERE),
                    Rule(
                        Action.DENY,
                        ip_network("192.0.2.0/24"),
                        HERE,
                        EVERY_PORT,
                        conditions=Conditions(paths=(path_pattern("/admin/"),)),
                    ),
                ),
                None,
                HERE,
            ),
        )
    )
    asked = Asked("GET", b"/admin/%2e%2e/y?q")
    decision = decide(policy, Identity("10.0.0.1"), parse_authority(b"h.example:80", None), asked)
    assert decision.path == b"/y?q"
