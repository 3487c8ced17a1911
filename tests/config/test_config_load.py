"""What a good configuration becomes."""

from __future__ import annotations

import hashlib
from ipaddress import ip_network
from pathlib import Path

import pytest

from egress_proxy.config.load import Loaded, load, parse
from egress_proxy.config.model import (
    Audit,
    Dns,
    Ech,
    Limits,
    Listen,
    SocketAddress,
    Timeouts,
    Tunnels,
)
from egress_proxy.core.policy import DEFAULT_PORTS, EVERY_PORT, Action, HostPattern, Mode, Rule

ROOT = Path(__file__).parents[2]
HEAD = "version: 1\npolicies:\n  - name: everyone\n    allow:\n"


def loaded(text: str) -> Loaded:
    return parse(text.encode(), "f.yaml")


def rule(entry: str, action: str = "allow") -> Rule:
    """The rule that one entry of a list becomes."""
    text = f"version: 1\npolicies:\n  - name: everyone\n    {action}:\n      - {entry}\n"
    (found,) = loaded(text).config.policy.policies[0].rules
    return found


def test_the_smallest_configuration_has_the_defaults() -> None:
    config = loaded(f"{HEAD}      - example.com\n").config
    assert config.listen == Listen()
    assert config.dns == Dns()
    assert config.timeouts == Timeouts()
    assert config.limits == Limits()
    assert config.audit == Audit()
    assert config.policy.mode is Mode.ENFORCE
    assert config.drain_timeout == 20
    assert config.admin_token_file is None
    assert config.listen.proxy.is_loopback
    assert config.listen.admin.is_loopback


def test_every_key_is_read() -> None:
    config = loaded(
        """
        version: 1
        listen: {proxy: "0.0.0.0:0", admin: "[::1]:9091"}
        mode: audit
        policies: [{name: a, allow: [example.com]}]
        dns:
          servers: ["10.96.0.10:53", "[2001:db8::53]:5353"]
          hosts_file: /dev/null
          timeout: 1500ms
          tries: 3
          min_ttl: 0s
          max_ttl: 1h
          stale_if_error: 1d
          negative_ttl: 2s
          cache_entries: 7
        timeouts:
          {head: 1s, keep_alive: 2s, connect: 3s, connect_attempt: 100ms, client_hello: 5s, response: 4s,
          origin_keep_alive: 6s, idle: 5m, lifetime: 30d}
        tunnels: {ech: refuse}
        limits:
          {head_bytes: 1MiB, head_fields: 8, client_hello_bytes: 1KiB, connections: 1, connections_per_client: 2,
          tunnels: 3, heads: 4, idle_origins: 0, idle_per_origin: 5}
        audit: {queue_lines: 5, flush_interval: 1ms}
        drain_timeout: 0s
        admin_token_file: /etc/token
        """
    ).config
    assert config.listen == Listen(SocketAddress("0.0.0.0", 0), SocketAddress("::1", 9091))
    assert config.policy.mode is Mode.AUDIT
    assert config.dns == Dns(
        ("10.96.0.10:53", "[2001:db8::53]:5353"), "/dev/null", 1.5, 3, 0, 3600, 2, 86_400, 7
    )
    assert config.timeouts == Timeouts(1, 2, 3, 0.1, 5, 4, 6, 300, 2_592_000)
    assert config.limits == Limits(2**20, 8, 1024, 1, 2, 3, 4, 0, 5)
    assert config.tunnels == Tunnels(Ech.REFUSE)
    assert config.audit == Audit(5, 0.001)
    assert config.drain_timeout == 0
    assert config.admin_token_file == "/etc/token"


@pytest.mark.parametrize("path", ["config/egress-proxy.yaml", "egress_proxy/default.yaml"])
def test_a_shipped_configuration_is_without_a_doubt(path: str) -> None:
    found = load(str(ROOT / path))
    assert found.warnings == ()
    assert found.config.source == str(ROOT / path)
    assert found.config.digest == hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def test_the_packaged_configuration_is_for_loopback_and_says_so_first() -> None:
    path = ROOT / "egress_proxy" / "default.yaml"
    listen = load(str(path)).config.listen
    assert listen.proxy.is_loopback
    assert listen.admin.is_loopback
    assert "loopback only" in path.read_text(encoding="utf-8").splitlines()[0]


# Rules. -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "pattern"),
    [
        ("example.com", HostPattern("example.com", wildcard=False)),
        ("Example.COM.", HostPattern("example.com", wildcard=False)),
        ('"*.example.com"', HostPattern("example.com", wildcard=True)),
        ("'*.Example.com.'", HostPattern("example.com", wildcard=True)),
        ('"*"', HostPattern("", wildcard=True)),
        ("bücher.example", HostPattern("xn--bcher-kva.example", wildcard=False)),
        ('"*.BÜCHER.example"', HostPattern("xn--bcher-kva.example", wildcard=True)),
        ("_acme-challenge.example.com", HostPattern("_acme-challenge.example.com", wildcard=False)),
        ("localhost", HostPattern("localhost", wildcard=False)),
        ('"no"', HostPattern("no", wildcard=False)),
        ("{host: example.com}", HostPattern("example.com", wildcard=False)),
    ],
)
def test_host_patterns(entry: str, pattern: HostPattern) -> None:
    assert rule(entry).target == pattern


@pytest.mark.parametrize(
    ("entry", "network"),
    [
        ("{cidr: 192.0.2.0/24}", "192.0.2.0/24"),
        ("{cidr: 192.0.2.1}", "192.0.2.1/32"),
        ('{cidr: "2001:DB8::/32"}', "2001:db8::/32"),
        ('{cidr: "::1"}', "::1/128"),
        ("{cidr: 0.0.0.0/0}", "0.0.0.0/0"),
    ],
)
def test_networks(entry: str, network: str) -> None:
    assert rule(entry).target == ip_network(network)


def test_default_ports_open_little_and_close_much() -> None:
    for entry in ("example.com", "{host: example.com}", "{cidr: 192.0.2.0/24}"):
        assert rule(entry).ports == DEFAULT_PORTS
        assert rule(entry, "deny").ports == EVERY_PORT


@pytest.mark.parametrize(
    ("ports", "ranges"),
    [
        ("[443]", ((443, 443),)),
        ("[8443, 443]", ((443, 443), (8443, 8443))),
        ("[443, 443, 444]", ((443, 444),)),
        ('["8000-8010", 8005, 8011]', ((8000, 8011),)),
        ("[8000-8010]", ((8000, 8010),)),
        ('["1-65535"]', EVERY_PORT),
    ],
)
def test_ports(ports: str, ranges: tuple[tuple[int, int], ...]) -> None:
    assert rule(f"{{host: example.com, ports: {ports}}}").ports == ranges


def test_private_networks() -> None:
    found = rule('{host: example.com, allow_private: [10.0.0.0/8, "fd00::/8", 169.254.169.254]}')
    assert [str(network) for network in found.allow_private] == [
        "10.0.0.0/8",
        "fd00::/8",
        "169.254.169.254/32",
    ]


def test_subjects_and_places() -> None:
    config = loaded(
        "version: 1\n"
        "policies:\n"
        "- name: a\n"
        "  subjects: [{cidr: 10.0.0.0/8}, {cidr: 192.0.2.1}]\n"
        "  deny: [example.com]\n"
        "  allow:\n"
        '  - "*.example.com"\n'
        "  -   {host: example.org}\n"
        "- name: b\n"
        "  allow: [example.net]\n"
    ).config
    first, second = config.policy.policies
    assert first.subjects is not None
    assert [(subject.network, str(subject.place)) for subject in first.subjects] == [
        (ip_network("10.0.0.0/8"), "f.yaml:4:14"),
        (ip_network("192.0.2.1/32"), "f.yaml:4:34"),
    ]
    assert second.subjects is None
    assert [(str(found), str(found.place)) for found in first.rules] == [
        ("allow *.example.com", "f.yaml:7:5"),
        ("allow example.org", "f.yaml:8:7"),
        ("deny example.com", "f.yaml:5:10"),
    ]
    assert str(second.place) == "f.yaml:9:3"
    assert first.rules[2].action is Action.DENY


def test_the_column_counts_characters() -> None:
    text = "version: 1\npolicies: [{name: a, allow: [bücher.example, example.com]}]\n"
    assert [found.place.column for found in loaded(text).config.policy.policies[0].rules] == [
        30,
        46,
    ]


def test_a_large_file_is_checked_in_seconds() -> None:
    allow = "".join(f"      - h{number}.example.com\n" for number in range(20_000))
    deny = "".join(f"      - {{cidr: 10.{n >> 8}.{n & 255}.0/24}}\n" for n in range(20_000))
    found = loaded(f"{HEAD}{allow}    deny:\n{deny}")
    assert found.config.policy.rule_count == 40_000
    assert found.warnings == ()
