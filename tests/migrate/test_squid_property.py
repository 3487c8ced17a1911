"""Whatever the rules are, the imported policy allows nothing that Squid's ordered rules would not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.migrate.squid import MIXED_WHY, SPECIAL_USE_WHY, import_squid
from egress_proxy.migrate.squid_decisions import LITERALS_WHY, PLAIN_WHY
from tests.migrate.deciding import allows, policy_of
from tests.migrate.squid_model import Model, ModelAcl, ModelRule, Request

CLIENTS = ("10.1.0.7", "10.1.9.9", "10.2.0.1", "192.0.2.9", "2001:db8::1")
SOURCES = (
    *("10.0.0.0/8", "10.1.0.0/16", "10.1.0.7", "10.1.0.0-10.1.0.200", "192.0.2.0/24"),
    *("2001:db8::/32", "10.2.0.1"),
)
DOMAINS = (
    *(".a.com", "a.com", "b.a.com", ".b.a.com", ".c.b.a.com", "c.b.a.com", "d.org", ".org", ".com"),
    *("8.8.8.8", "A.com"),
)
HOSTS = {
    "a.com": "8.8.8.8",
    "b.a.com": "93.184.216.34",
    "c.b.a.com": "8.8.4.4",
    "x.c.b.a.com": "93.184.216.9",
    "x.a.com": "8.8.8.8",
    "nota.com": "93.184.216.34",
    "d.org": "8.8.8.9",
    "x.d.org": "93.184.216.34",
    "org": "93.184.216.34",
    "else.net": "8.8.8.8",
}
LITERALS = ("8.8.8.8", "8.8.4.4", "93.184.216.34", "[2606:4700::1]")
NETWORKS = (
    "8.8.8.0/24",
    "8.8.8.8",
    "93.184.0.0/16",
    "2606:4700::/32",
    "8.8.4.0-8.8.8.8",
    "10.0.0.0/8",
)
PORTS = (80, 443, 8080, 22, 1)
PORT_VALUES = ("443", "80", "80-443", "1-1024", "8080", "1025-65535", "22", "0-21")

VALUES = {
    "src": SOURCES,
    "dstdomain": DOMAINS,
    "dst": NETWORKS,
    "port": PORT_VALUES,
    "method": ("CONNECT", "GET", "POST", "PROPFIND"),
    "urlpath_regex": ("^/v1/", "^/v1/x/", "^/w/", "^/", "w$"),
    "url_regex": ("^http://a\\.com/v1/", "^http://b\\.a\\.com/", "^http://x", "8080$"),
    "time": ("MTWHF",),
}
#: Notes that say how a decision can differ although every rule was understood.
GENERAL = (SPECIAL_USE_WHY, LITERALS_WHY, MIXED_WHY, PLAIN_WHY)


@st.composite
def models(draw: st.DrawFn, kinds: tuple[str, ...]) -> Model:
    acls: list[ModelAcl] = []
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=7)):
        values = draw(st.lists(st.sampled_from(VALUES[kind]), min_size=1, max_size=3, unique=True))
        number = draw(st.integers(1, 2))  # so that some acls have several lines
        acls.append(ModelAcl(f"{kind}{number}", kind, tuple(values)))
    names = [*sorted({acl.name for acl in acls}), "all"]
    literal = st.tuples(st.sampled_from((False, False, True)), st.sampled_from(names))
    rule = st.builds(ModelRule, st.booleans(), st.lists(literal, min_size=1, max_size=3).map(tuple))
    return Model(tuple(acls), tuple(draw(st.lists(rule, max_size=7))))


def requests(asked: Iterable[tuple[str, str]]) -> list[Request]:
    return [
        Request(
            client,
            method,
            host,
            port,
            addresses=() if host in LITERALS else (HOSTS[host],),
            reverse=reverse,
            path=path,
        )
        for client in CLIENTS
        for method, path in asked
        for host in (*HOSTS, *LITERALS)
        for port in PORTS
        for reverse in (("none", "b.a.com") if host in LITERALS else ("none",))
    ]


REQUESTS = requests((("CONNECT", "/"), ("GET", "/")))
#: With what else may be asked for, of which each example tries a part.
DETAILED = requests(
    (
        *(("CONNECT", "/"), ("GET", "/"), ("GET", "/v1/"), ("GET", "/v1/x/?y=w"), ("GET", "/w/")),
        *(
            ("POST", "/"),
            ("POST", "/v1/x/"),
            ("POST", "/other"),
            ("PROPFIND", "/"),
            ("PROPFIND", "/v1/"),
        ),
    )
)
#: Methods that no imported rule lists by itself.
UNUSUAL = ("PROPFIND",)


def check(model: Model, asked: list[Request] = REQUESTS) -> None:
    imported = import_squid("squid.conf", model.text(), _no_file)
    policy = policy_of(imported.yaml)
    faithful = all(note.why in GENERAL for note in imported.notes)
    for request in asked:
        ours = allows(
            policy,
            request.client,
            request.host,
            request.port,
            addresses=request.addresses or None,
            method=request.method,
            path=request.path,
        )
        if not ours and (not faithful or request.literal or request.method in UNUSUAL):
            continue
        every = [
            model.allows(request, dict(zip(model.unknown(), answers, strict=True)))
            for answers in itertools.product((False, True), repeat=len(model.unknown()))
        ]
        if ours:
            assert all(every), f"wider for {request}\n{model.text()}\n{imported.yaml}"
        else:
            assert not every[0], f"narrower for {request}\n{model.text()}\n{imported.yaml}"


def _no_file(path: str) -> str:
    raise FileNotFoundError(path)


@st.composite
def plain_lists(draw: st.DrawFn, kinds: tuple[str, ...]) -> Model:
    """Rules of one value each, so that exceptions from exceptions are likely."""
    rules = draw(
        st.lists(
            st.sampled_from(kinds).flatmap(
                lambda kind: st.tuples(st.just(kind), st.sampled_from(VALUES[kind]), st.booleans())
            ),
            min_size=2,
            max_size=6,
        )
    )
    acls = tuple(ModelAcl(f"acl{at}", kind, (value,)) for at, (kind, value, _) in enumerate(rules))
    ordered = tuple(
        ModelRule(allow, ((False, f"acl{at}"),)) for at, (_, _, allow) in enumerate(rules)
    )
    return Model(acls, (*ordered, ModelRule(draw(st.booleans()), ((False, "all"),))))


@settings(max_examples=50, deadline=None)
@given(plain_lists(("dstdomain",)))
def test_exceptions_from_exceptions(model: Model) -> None:
    check(model)


@settings(max_examples=50, deadline=None)
@given(plain_lists(("dst", "dstdomain", "src", "port")))
def test_networks_between_names(model: Model) -> None:
    check(model)


@settings(max_examples=50, deadline=None)
@given(models(("src", "dstdomain", "port", "dstdomain")))
def test_names_clients_and_ports(model: Model) -> None:
    check(model)


@settings(max_examples=50, deadline=None)
@given(models(("src", "dstdomain", "dst", "port", "method")))
def test_addresses_and_methods(model: Model) -> None:
    check(model)


REQUEST_KINDS = ("dstdomain", "port", "method", "urlpath_regex", "url_regex", "src")


@settings(max_examples=50, deadline=None)
@given(models(REQUEST_KINDS), st.integers(0, 7))
def test_methods_and_paths(model: Model, part: int) -> None:
    check(model, DETAILED[part::8])


@settings(max_examples=50, deadline=None)
@given(plain_lists((*REQUEST_KINDS, "dst")), st.integers(0, 7))
def test_methods_and_paths_one_by_one(model: Model, part: int) -> None:
    check(model, DETAILED[part::8])


@settings(max_examples=50, deadline=None)
@given(models(tuple(VALUES)))
def test_what_cannot_be_known(model: Model) -> None:
    check(model)
