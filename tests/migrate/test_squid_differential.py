"""The same rules in a real Squid and imported: each request gets the same answer, but for what is named here."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest

from egress_proxy.migrate.squid import import_squid
from tests.migrate.deciding import allows, policy_of
from tests.migrate.real_squid import need_squid, running_squid

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

DATA = Path(__file__).parent / "data"

#: Names of each configuration; each is asked for with others that look like it.
NAMES = {
    "company": (
        *("code.test", "pages.test", "exact.pages.test", "vendor.test", "metrics.vendor.test"),
        *("tool.test", "upper.test", "registry.test"),
    ),
    "blocking": (
        *("bad.test", "safe.bad.test", "worse.test", "star.test", "dot.test", "free.test"),
        *("inner.test",),
    ),
    "spellings": (
        *("below.test", "both.test", "two.test", "exact.test", "one.exact.test", "loose.test"),
        *("over.test", "a.over.test", "b.over.test", "c.b.over.test"),
    ),
    "methods": ("tunnel.test", "plain.test", "any.test"),
    "requests": (
        *("read.test", "paths.test", "open.test", "worded.test", "frozen.test", "url.test"),
        *("else.test",),
    ),
}
CLIENTS = {
    "company": ("127.0.0.1", "127.0.0.8", "127.0.0.11", "127.0.0.12", "127.0.0.16", "127.0.0.70"),
    "blocking": ("127.0.0.1", "127.0.0.9"),
    "spellings": ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.36", "127.0.0.37", "127.0.0.40"),
    "methods": ("127.0.0.1",),
    "requests": ("127.0.0.1",),
}
PORTS = {
    "company": (80, 443, 8443, 22),
    "blocking": (80, 443, 25, 1),
    "spellings": (443, 8080),
    "methods": (80, 443, 8443),
    "requests": (80, 443, 8080, 25),
}
#: What each is asked, besides CONNECT.
ASKED = {
    "methods": (("GET", "/"), ("POST", "/")),
    "requests": (
        *(("GET", "/"), ("GET", "/v1/"), ("GET", "/v1/x?y=/admin/"), ("GET", "/v1/admin/x")),
        *(("GET", "/admin/"), ("GET", "/x?/v1/"), ("GET", "/v1%2Fx"), ("GET", "/V1/ADMIN/")),
        *(("POST", "/"), ("POST", "/v1/x"), ("HEAD", "/%76%31/x")),
    ),
}
#: Paths whose reading differs between servers: a deny rule takes them for what it names.
DOUBTFUL = ("/v1%2Fx", "/V1/ADMIN/")
#: Addresses in the rules, and one that no rule names. All are on loopback, where nobody listens.
LITERALS = ("127.0.3.7", "127.0.2.7")

#: What order-free rules cannot keep, or what differs between versions of Squid. Each has its note.
LOST = {
    "blocking": lambda client, host, port, path: host.lower().rstrip(".") == "safe.bad.test",
    "spellings": lambda client, host, port, path: (
        # A network with bits behind its prefix: some versions of Squid match it, some do not.
        client in ("127.0.0.36", "127.0.0.37")
        # `loose\.test$` without an anchor; rules say what lies below a name, not what ends like it.
        or host.lower().rstrip(".").endswith("loose.test")
    ),
    "requests": lambda client, host, port, path: (
        path in DOUBTFUL
        # `v1` anywhere in the path: no plain request there surely passes.
        or (path is not None and host.lower().rstrip(".").endswith("worded.test"))
    ),
}


def spellings(name: str) -> Iterable[str]:
    """The name, names that only look like it, and other spellings of it."""
    yield from (name, f"www.{name}", f"a.b.{name}", f"not{name}", f"{name}.other.test", f"-{name}")
    yield from (name.upper(), f"{name}.", f"wWw.{name}.", name.partition(".")[2])


def asked(conf: str) -> list[str]:
    found = (host for name in NAMES[conf] for host in spellings(name))
    if conf == "requests":
        # What is asked of each host matters here, and not how it is spelled.
        found = (host for name in NAMES[conf] for host in (name, f"www.{name}", f"{name.upper()}."))
    return list(dict.fromkeys(found))


def address_of(host: str) -> str:
    return "127.0.3.9" if "inner.test" in host else "127.0.2.9"


@pytest.mark.parametrize("conf", NAMES)
def test_a_real_squid_agrees(conf: str, tmp_path: Path) -> None:
    need_squid()
    for file in DATA.glob(f"{conf}*"):
        (tmp_path / file.name).write_text(file.read_text())
    text = (tmp_path / f"{conf}.conf").read_text()
    imported = import_squid(
        str(tmp_path / f"{conf}.conf"), text, lambda path: Path(path).read_text()
    )
    policy = policy_of(imported.yaml)
    hosts = asked(conf)
    addresses = {host.lower().rstrip("."): address_of(host) for host in hosts}
    known = [*addresses.items(), *((f"literal{at}.test", text) for at, text in enumerate(LITERALS))]
    lost = LOST.get(conf, lambda client, host, port, path: False)
    asked_for: list[tuple[str, str | None]] = [("CONNECT", None), *ASKED.get(conf, (("GET", "/"),))]
    answers: list[bool] = []
    with running_squid(tmp_path, text, known) as squid:
        for client, host, port, (method, path) in itertools.product(
            CLIENTS[conf], (*hosts, *LITERALS), PORTS[conf], asked_for
        ):
            literal = host in LITERALS
            address = host if literal else addresses[host.lower().rstrip(".")]
            here = allows(
                policy,
                client,
                host,
                port,
                addresses=(address,),
                # All hosts are on loopback, which is special-use and denied here without a word in the rules.
                lifted="127.0.0.0/8",
                method=method,
                path=path or "/",
            )
            there = squid.allows(client, method, host, port, path or "/")
            answers.append(here)
            case = f"{client} {method} {host}:{port} {path}: here {here}, Squid {there}\n{imported.yaml}"
            assert there or not here, f"wider for {case}"
            # Squid compares the reverse name of a bare address, and we never do.
            if not literal and not lost(client, host, port, path):
                assert here == there, f"differs for {case}"
    assert {*answers} == {True, False}
    assert len(answers) >= 100
