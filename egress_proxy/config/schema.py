"""Every key of the configuration, its type and its bounds. Defaults stand in :mod:`.model` alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from egress_proxy.config import rules
from egress_proxy.config.documents import INCLUDED_KEYS
from egress_proxy.config.errors import Report
from egress_proxy.config.limits import BYTES_KEYS, LIMIT_KEYS, user_tenants
from egress_proxy.config.model import (
    Audit,
    Credentials,
    Dial,
    Dns,
    Ech,
    Family,
    Limits,
    Listen,
    OnRevoke,
    Timeouts,
    Tunnels,
    Upstream,
)
from egress_proxy.config.networks import internal_network, nat64_prefix
from egress_proxy.config.nodes import fields
from egress_proxy.config.shared_state import STORE_KEYS
from egress_proxy.config.state import state_place
from egress_proxy.config.subjects import SUBJECT_KEYS
from egress_proxy.config.upstream import MAX_NO_PROXY, PARENT_KEYS, no_proxy_entry, proxy_url
from egress_proxy.config.values import (
    Choice,
    Duration,
    Integer,
    ListOf,
    Reader,
    Size,
    boolean,
    file_path,
    name_server,
    relative_path,
    socket_address,
    source_address,
)
from egress_proxy.config.yaml_source import Node
from egress_proxy.core.hops import ForwardedFor
from egress_proxy.core.policy import Mode
from egress_proxy.core.special_use import Surroundings


@dataclass(frozen=True, slots=True)
class Section:
    """A mapping of plain values, read into a class of :mod:`.model` with fields of the same names."""

    model: Any
    keys: dict[str, Reader]
    example: str

    def __call__(self, node: Node, name: str, report: Report) -> Any:
        values: dict[str, Any] = {}
        for key, value in fields(node, name, report, tuple(self.keys), {}, self.example).items():
            values[key] = self.keys[key](value, f"`{key}`", report)
        # What was reported falls back to its default, and the configuration is refused in the end.
        return self.model(**{key: value for key, value in values.items() if value is not None})


LISTEN: Final = Section(
    Listen,
    {"proxy": socket_address, "admin": socket_address},
    'proxy: "0.0.0.0:3128" on a line below',
)
DNS: Final = Section(
    Dns,
    {
        "servers": ListOf(name_server, 8, '["10.96.0.10:53"]'),
        "hosts_file": file_path,
        "timeout": Duration("100ms", "60s"),
        "tries": Integer(1, 10),
        "min_ttl": Duration("0s", "1h"),
        "max_ttl": Duration("1s", "1d"),
        "negative_ttl": Duration("0s", "5m"),
        "stale_if_error": Duration("0s", "1d"),
        "cache_entries": Integer(1, 1_000_000),
    },
    "timeout: 5s on a line below",
)
DIAL: Final = Section(
    Dial,
    {
        "prefer": Choice(Family),
        "stagger": Duration("10ms", "10s"),
        "max_attempts": Integer(1, 100),
        "failure_memory": Duration("0s", "10m"),
        "source_addresses": ListOf(source_address, 2, '["192.0.2.10"]'),
    },
    "prefer: ipv4 on a line below",
)
NETWORKS: Final = Section(
    Surroundings,
    {
        "internal": ListOf(internal_network, 1000, "[203.0.113.0/24]"),
        "nat64": ListOf(nat64_prefix, 16, '["2001:db8:64::/96"]'),
    },
    "internal: [203.0.113.0/24] on a line below",
)
TUNNELS: Final = Section(Tunnels, {"ech": Choice(Ech)}, "ech: refuse on a line below")
TIMEOUTS: Final = Section(
    Timeouts,
    {
        "head": Duration("100ms", "5m"),
        "keep_alive": Duration("100ms", "1h"),
        "connect": Duration("100ms", "5m"),
        "connect_attempt": Duration("100ms", "5m"),
        "client_hello": Duration("100ms", "5m"),
        "response": Duration("100ms", "1h"),
        "origin_keep_alive": Duration("100ms", "1h"),
        "idle": Duration("100ms", "1d"),
        "lifetime": Duration("1s", "30d"),
    },
    "connect: 10s on a line below",
)
LIMITS: Final = Section(
    Limits,
    {
        "head_bytes": Size("1KiB", "1MiB"),
        "head_fields": Integer(8, 10_000),
        "client_hello_bytes": Size("1KiB", "256KiB"),
        "connections": Integer(1, 1_000_000),
        "connections_per_client": Integer(1, 1_000_000),
        "tunnels": Integer(1, 1_000_000),
        "heads": Integer(1, 1_000_000),
        "idle_origins": Integer(0, 100_000),
        "idle_per_origin": Integer(0, 10_000),
    },
    "connections: 10000 on a line below",
)
AUDIT: Final = Section(
    Audit,
    {
        "queue_lines": Integer(1, 10_000_000),
        "flush_interval": Duration("1ms", "10s"),
    },
    "queue_lines: 100000 on a line below",
)

CREDENTIALS: Final = Section(
    Credentials,
    {"users_file": relative_path, "required": boolean, "tenants": user_tenants},
    "users_file: users on a line below",
)

UPSTREAM: Final = Section(
    Upstream,
    {
        "proxy": proxy_url,
        "no_proxy": ListOf(no_proxy_entry, MAX_NO_PROXY, '["*.internal.example", 10.0.0.0/8]'),
        "credentials_file": relative_path,
    },
    "proxy: http://proxy.example.com:3128 on a line below",
)

#: The top-level keys that say something by themselves. ``include``, ``sets`` and ``policies`` belong together.
SECTIONS: Final[dict[str, Reader]] = {
    "listen": LISTEN,
    "mode": Choice(Mode),
    "on_revoke": Choice(OnRevoke),
    "contract_headers": rules.contract_headers,
    "forwarded_for": Choice(ForwardedFor),
    "credentials": CREDENTIALS,
    "dns": DNS,
    "networks": NETWORKS,
    "dial": DIAL,
    "upstream": UPSTREAM,
    "tunnels": TUNNELS,
    "timeouts": TIMEOUTS,
    "limits": LIMITS,
    "audit": AUDIT,
    "state": state_place,
    "drain_timeout": Duration("0s", "1h"),
    "admin_token_file": file_path,
}
#: Every top-level key but ``version``.
KEYS: Final = (*INCLUDED_KEYS, *SECTIONS)
#: Top-level keys that version 1 of the format has and this version of the program does not.
NOT_YET: Final[dict[str, str]] = {}


def every_key() -> Iterator[str]:
    """Each key's path, such as ``dns.timeout`` or ``policies[].allow[].ports``."""
    yield "version"
    yield from INCLUDED_KEYS
    yield "sets.NAME.file"
    for key, reader in SECTIONS.items():
        yield key
        if isinstance(reader, Section):
            yield from (f"{key}.{name}" for name in reader.keys)
    yield from (f"state.{name}" for name in STORE_KEYS)
    yield from (f"policies[].{name}" for name in rules.POLICY_KEYS)
    yield from (f"policies[].limits.{name}" for name in LIMIT_KEYS)
    yield from (f"policies[].limits.bytes_per_day.{name}" for name in BYTES_KEYS)
    yield from (f"policies[].subjects[].{name}" for name in SUBJECT_KEYS)
    yield from (f"policies[].allow[].{name}" for name in rules.RULE_KEYS)
    yield from (f"policies[].allow[].upstream.{name}" for name in PARENT_KEYS)
