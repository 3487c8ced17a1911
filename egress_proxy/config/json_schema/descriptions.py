"""What an editor shows of each key."""

from __future__ import annotations

from typing import Final

from egress_proxy.config.json_schema.parts import Schema

#: What an editor shows of a key, by its path in ``every_key()``. The other keys' texts are their docstrings in
#: :mod:`.model`.
DESCRIPTIONS: Final = {
    "version": "The version of this format.",
    "include": "Further files of policies and sets, or directories of `*.yaml` and `*.yml` files.",
    "sets": 'Named sets of hosts, which rules use as "@NAME".',
    "sets.NAME.file": "The hosts in a file: a YAML list, or plain text with one host a line and `#` comments.",
    "policies": "Who may reach what. The order does not matter: of all policies that apply to a client, deny beats "
    "ask, ask beats allow, and what nothing allows is denied.",
    "listen": "Where to listen.",
    "listen.proxy": "Where clients connect.",
    "listen.admin": "Health, metrics and the API. `/healthz`, `/readyz` and `/metrics` are open to whoever reaches it.",
    "mode": "`enforce` refuses what no rule allows. `audit` lets it through and logs WOULD_DENY; addresses of this "
    "machine and of metadata services stay refused.",
    "on_revoke": "What becomes of open tunnels that a reloaded policy no longer allows: `close` or `keep`.",
    "contract_headers": "Whether a plain HTTP request that changes something must carry `Idempotency-Key` and "
    "`X-Tenant-ID`: `enforce` refuses it with 400, `warn` records it, `off` does not look. Tunnels are exempt.",
    "forwarded_for": "What origins are told about who asks, in plain HTTP: `remove` is nothing, `keep` what the client "
    "says (`Forwarded`, `X-Forwarded-*`, `X-Real-IP` and the like), `add` that and the client's address.",
    "credentials": "User names and passwords. Without it nobody is asked for any.",
    "dns": "How names become addresses.",
    "dns.servers": "The servers to ask, in this order. Default: the system's, from `/etc/resolv.conf`.",
    "networks": "What is special about the networks that the proxy is among.",
    "networks.internal": "Networks of your own that use public addresses. They are refused like private ones: only "
    "`allow_private`, or a rule with `cidr`, opens them.",
    "networks.nat64": "Prefixes of your translators from IPv6 to IPv4 (RFC 6052), beside 64:ff9b::/96. The IPv4 "
    "address inside decides.",
    "dial": "How the addresses of a destination are tried. For requests that begin after a change.",
    "dial.prefer": "Which family is tried first, `ipv6` or `ipv4`; the two then take turns.",
    "dial.stagger": "How long one address has before the next is tried beside it (RFC 8305 §5).",
    "dial.failure_memory": "How long an address that could not be reached, or that another has overtaken, is tried "
    "after the others. `0s` is never.",
    "dial.source_addresses": "Where connections come from: an address of this machine, or one of each family. Default: "
    "the system's choice.",
    "tunnels": "What a CONNECT tunnel may carry. For tunnels that begin after a change.",
    "tunnels.ech": "What becomes of a tunnel whose TLS handshake carries Encrypted ClientHello. `allow`: its "
    "outer name is compared. `grease`: refused where the host publishes the configuration that it is encrypted with. "
    "`refuse`: refused, GREASE or not.",
    "upstream": "The parent proxy of every destination about which no rule says otherwise. For requests that begin "
    "after a change.",
    "timeouts": "How long anything may take. For requests and tunnels that begin after a change.",
    "limits": "How much of anything there may be in the whole proxy.",
    "audit": "The log of decisions, on standard output.",
    "policies[].name": "Stands in log lines and metrics; unique. 1 to 64 letters, digits, dots, hyphens, underscores.",
    "policies[].subjects": "The clients that the policy is for: whom any one of the entries describes. Without it, "
    "every client.",
    "policies[].allow": "What they may reach.",
    "policies[].ask": "What they may reach once a human has approved. Until then it is denied.",
    "policies[].deny": "What they may not reach, whatever else allows it.",
    "policies[].contract_headers": "The same as at the top level, for what this policy lets through. Of several "
    "policies that let a request through, the strictest holds.",
    "policies[].limits": "What each of its tenants may do at most. Of several policies that let a request through, the "
    "limits of all hold.",
    "policies[].limits.requests_per_second": "Requests per second on average, each CONNECT counted as one.",
    "policies[].limits.burst": "Requests that may come at once after a rest. Default: what one second allows.",
    "policies[].limits.tunnels": "CONNECT tunnels that are open at once.",
    "policies[].limits.requests_per_day": "Requests of a calendar day, each CONNECT counted as one.",
    "policies[].limits.bytes_per_day": "Bytes of a calendar day, to origins and from them together; or a mapping.",
    "policies[].limits.bytes_per_day.up": "Bytes to origins.",
    "policies[].limits.bytes_per_day.down": "Bytes from origins.",
    "policies[].limits.bytes_per_day.both": "Bytes in both directions together.",
    "policies[].limits.time_zone": "The time zone in which a day begins at midnight.",
    "policies[].limits.bandwidth": "Bytes per second in each direction, of all that a tenant has open.",
    "policies[].limits.tunnel_bandwidth": "Bytes per second in each direction, of each tunnel or request.",
    "policies[].limits.new_hosts_per_hour": "Different hosts that a tenant may start to talk to within any hour.",
    "policies[].tenant": "Whom its requests are charged to. Default: the user's tenant (`credentials.tenants`), else "
    "what `trust_tenant_header` says, else the policy's name.",
    "policies[].trust_tenant_header": "Whether clients may name their tenant themselves, in `X-Tenant-ID`.",
    "state.url": "The store that all replicas share, Redis or Valkey: `redis://[USER@]HOST[:PORT][/DATABASE]`, or "
    "`rediss://` with TLS.",
    "state.password_file": "A file with one line, the store's password.",
    "state.ca_file": "Certificates of the authorities that the store's is checked against, as PEM. Default: "
    "the system's.",
    "state.on_store_failure": "What becomes of requests with limits while the store is away: `local` lets each replica "
    "go on by what it knows, `closed` refuses them with 503.",
    "state.timeout": "How long a request waits for the store at most.",
    "state.prefix": "What all keys in the store begin with, in braces. Another one for another group of replicas.",
    "state.lease": "Time of silence after which a replica counts as dead, and its tunnels as closed.",
    "policies[].subjects[].cidr": "Clients with an address in this network, as the proxy sees it.",
    "policies[].subjects[].user": "The client that has shown this user's password.",
    "policies[].subjects[].namespace": "Clients in this Kubernetes namespace.",
    "policies[].subjects[].pod_labels": "Clients in pods that carry all of these labels.",
    "policies[].allow[].host": "The host or hosts. Never matches a destination that is written as an address.",
    "policies[].allow[].cidr": "Destinations that clients write as an address. In a deny rule, also what allowed names "
    "lead to.",
    "policies[].allow[].ports": 'Ports, and ranges such as "8000-8010".',
    "policies[].allow[].methods": "Methods of plain HTTP requests; a rule with them is for no tunnel.",
    "policies[].allow[].paths": "Paths of plain HTTP requests: `/a/b`, `/a/*/b` (`*` is one whole segment), `/a/` for "
    "all that begins so. A rule with them is for no tunnel.",
    "policies[].allow[].allow_private": "The networks in which the host's addresses may lie although they are private "
    "or special.",
    "policies[].allow[].tls": "`verify`: a tunnel must be TLS to the host that was asked for. `off` lifts that.",
    "policies[].allow[].upstream": "How these destinations are reached: `direct`, or through a parent proxy of their "
    "own. The most specific rule that says it decides.",
    "policies[].allow[].upstream.proxy": "The parent proxy, as `http://HOST:PORT`.",
    "policies[].allow[].upstream.credentials_file": "A file with one line `user:password`, which this parent is shown.",
}  # fmt: skip


def described(path: str, *more: str) -> Schema:
    return {"description": " ".join([DESCRIPTIONS[path], *more])}
