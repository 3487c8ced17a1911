"""What an explanation says a request needs, beside rules that let it through."""

from __future__ import annotations

from pathlib import Path

import pytest

from egress_proxy.cli import main
from egress_proxy.config.load import parse
from egress_proxy.core.demands import Charged, Needs, as_lines, size_text
from egress_proxy.core.explain import Explanation, explain, parse_question
from egress_proxy.core.identity import Identity
from egress_proxy.core.limits import Kind

POLICY = """\
version: 1
contract_headers: warn
policies:
  - name: everyone
    allow: [free.test, both.test, {host: read.test, methods: [GET]}]
  - name: strict
    contract_headers: enforce
    tenant: data-team
    allow: [strict.test, both.test]
    limits:
      requests_per_second: 0.5
      tunnels: 3
      requests_per_day: 100000
      bytes_per_day: {up: 1GiB, both: 1500MiB}
      time_zone: Europe/Berlin
      bandwidth: 10MiB
      new_hosts_per_hour: 30
  - name: by-header
    trust_tenant_header: true
    contract_headers: "off"
    allow: [header.test, both.test]
    limits: {requests_per_second: 50, burst: 100}
    deny: [bad.test]
"""


def explained(target: str, method: str | None = None, text: str = POLICY) -> Explanation:
    destination, asked = parse_question(target, method)
    config = parse(text.encode(), "f.yaml").config
    return explain(
        config.policy, Identity("10.0.0.1"), destination, asked=asked, terms=config.terms
    )


def lines(target: str, method: str | None = None, text: str = POLICY) -> list[str]:
    found = explained(target, method, text).needs
    return [] if found is None else list(as_lines(found))


WANTED = (
    "wants:   Idempotency-Key (a UUID of version 4) and X-Tenant-ID, and is logged without them, by "
    "`contract_headers: warn`"
)
NEEDED = (
    "needs:   Idempotency-Key (a UUID of version 4) and X-Tenant-ID, by `contract_headers: enforce`"
)
STRICT = "charged: to the tenant data-team, by policy strict: requests_per_second 0.5, burst 1, "
STRICT_REST = (
    "requests_per_day 100,000, bytes_per_day.up 1GiB, bytes_per_day 1500MiB, time_zone Europe/Berlin, "
    "bandwidth 10MiB, new_hosts_per_hour 30"
)
BY_HEADER = (
    "charged: to the tenant that X-Tenant-ID names, else by-header, by policy by-header: requests_per_second 50, "
    "burst 100"
)


@pytest.mark.parametrize(
    ("target", "method", "told"),
    [
        ("free.test", None, []),
        ("http://free.test/", "GET", []),
        ("http://free.test/", "HEAD", []),
        ("http://free.test/", "POST", [WANTED]),
        # Names of methods are case-sensitive.
        ("http://free.test/", "get", [WANTED]),
        ("http://strict.test/", "POST", [NEEDED, f"{STRICT}{STRICT_REST}"]),
        ("strict.test", None, [f"{STRICT}tunnels 3, {STRICT_REST}"]),
        ("http://header.test/", "PUT", [BY_HEADER]),
        # Of all policies that let it through the strictest holds, and all limits.
        ("http://both.test/", "DELETE", [NEEDED, f"{STRICT}{STRICT_REST}", BY_HEADER]),
        # What is refused needs something else first.
        ("http://read.test/", "POST", []),
        ("http://bad.test/", "POST", []),
    ],
)
def test_what_a_request_needs(target: str, method: str | None, told: list[str]) -> None:
    assert lines(target, method) == told


def test_what_audit_mode_lets_through_needs_what_all_do() -> None:
    assert lines("http://none.test/", "POST", f"mode: audit\n{POLICY}") == [WANTED]


def test_as_values() -> None:
    assert explained("http://header.test/", "PUT").needs == Needs(
        contract_headers="off",  # type: ignore[arg-type]
        headers=(),
        charged=(
            Charged("by-header", "by-header", True, {"requests_per_second": 50.0, "burst": 100}),
        ),
    )


def test_the_tenant_of_a_user() -> None:
    policy = "version: 1\npolicies: [{name: p, trust_tenant_header: true, allow: [a.test], limits: {tunnels: 1}}]\n"
    config = parse(policy.encode(), "f.yaml").config
    terms = type(config.terms)(tenants={"batch": "data-team"})
    destination, asked = parse_question("a.test")
    for user, tenant, by_header in (("batch", "data-team", False), ("other", "p", True)):
        who = Identity("10.0.0.1", user=user)
        found = explain(config.policy, who, destination, asked=asked, terms=terms).needs
        assert found is not None
        (charged,) = found.charged
        assert (charged.tenant, charged.tenant_by_header) == (tenant, by_header)


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (1536, "1536B"), (2**30, "1GiB"), (2**53, "8192TiB")],
)  # fmt: skip
def test_sizes_stand_as_they_are_written(size: int, told: str) -> None:
    assert size_text(size) == told


def test_every_limit_is_named() -> None:
    everything = "\n".join(lines("strict.test"))
    for key in ("requests_per_second", "tunnels", "requests_per_day", "bytes_per_day", "new_hosts"):
        assert key in everything
    # Should there be another kind, it is to be named there, too.
    assert len(Kind) == 6


def test_the_verb_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(POLICY)
    assert main(["explain", "--config", str(path), "--method", "PUT", "http://both.test/"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"  {NEEDED}" in said
    assert f"  {BY_HEADER}" in said
    assert main(["explain", "--config", str(path), "free.test"]) == 0
    assert "needs:" not in capsys.readouterr().out
