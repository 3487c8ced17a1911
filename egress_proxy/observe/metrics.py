"""Metrics: plain numbers while requests run, turned into Prometheus' families on a scrape.

No prometheus-client object is touched per request: one of its counters takes a lock, a call and a
look-up of its labels for each increment, and a request's metrics would cost more than its decision.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from egress_proxy import __version__
from egress_proxy.core import reasons
from egress_proxy.core.reason import Event
from egress_proxy.core.record import Record

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

#: Methods that are label values (RFC 9110 §9, RFC 5789); clients may invent others.
METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)

#: Failures that say nothing about destinations.
_OUR_OWN_FAILURES: Final = frozenset(
    reason.name
    for reason in (
        reasons.CLIENT_ABORTED,
        reasons.STARTING,
        reasons.DRAINING,
        reasons.OVERLOADED,
        reasons.STORE_UNAVAILABLE,
        reasons.CLIENT_CONNECTIONS,
        reasons.STORE_UNAVAILABLE,
        reasons.INTERNAL_ERROR,
    )
)

# Upper bounds in milliseconds. Within a data centre, across the world, and the timeouts' defaults.
_CONNECT_BOUNDS: Final = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000)
_DNS_BOUNDS: Final = (0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000)
# From one small request to the longest tunnel that the default life time lets stand.
_TUNNEL_BOUNDS: Final = (
    *(100, 500, 1_000, 5_000, 15_000, 60_000),
    *(300_000, 900_000, 3_600_000, 14_400_000, 86_400_000),
)

#: Seconds of each half of the time whose worst lag is told: two scrapes at the usual interval.
_HALF: Final = 30.0

# Plain strings: looking a member up in its Enum is a Python call in 3.11.
_DENIED: Final = Event.DENIED.value
_FAILED: Final = Event.FAILED.value


class Metrics(Collector):
    """Everything that is counted. One per process.

    ``audit_dropped`` is asked on each scrape for the number of audit lines dropped so far.
    """

    def __init__(self, audit_dropped: Callable[[], int] = lambda: 0) -> None:
        self.connections_active = 0
        """Client connections that are open."""
        self.tunnels_active = 0
        """CONNECT tunnels that are open."""
        self.origins_idle = 0
        """Connections to origins that wait for another request."""
        self._lag = _Worst()
        self._audit_dropped = audit_dropped
        self.shared_store: Callable[[], tuple[bool, int]] | None = None
        """Says on a scrape whether the store that replicas share answers, and how often it was lost or not reached."""
        self.workers: WorkersCount | None = None
        """The workers, where this process is the one that looks after them."""
        # Keys are values of a record (method, event, reason; policy, reason), made labels on a
        # scrape. All of them come from closed sets or from the configuration.
        self._requests: dict[tuple[str, str, str | None], int] = {}
        self._denied: dict[tuple[str | None, str | None], int] = {}
        self._contract: dict[tuple[str | None, str], int] = {}
        # By kind and policy: no tenant is a label, for clients may name theirs.
        self._limits_exceeded: Counter[tuple[str, str]] = Counter()
        self._limits_near: Counter[tuple[str, str]] = Counter()
        self._bytes_sent = 0
        self._bytes_received = 0
        self._connect = _Histogram(_CONNECT_BOUNDS)
        self._dns = _Histogram(_DNS_BOUNDS)
        self._tunnel = _Histogram(_TUNNEL_BOUNDS)
        self._dns_failures: Counter[str] = Counter()
        self._dns_lookups: Counter[str] = Counter()
        self._generation = 0
        self._digest: str | None = None
        self._rules = 0
        self._loaded_at = 0.0
        self._reloads = 0
        self._failed_reloads = 0
        self.registry = CollectorRegistry()
        """All of this process, what it uses of the system included. May be collected in another thread."""
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def finished(self, record: Record) -> None:
        """Count a request by the record with which it ended."""
        method, event = record.method, record.event
        key = (method if method in METHODS else "other", event, record.reason)
        self._requests[key] = self._requests.get(key, 0) + 1
        if event == _DENIED:
            denial = (record.policy, record.reason)
            self._denied[denial] = self._denied.get(denial, 0) + 1
        if record.contract is not None:
            breach = (record.policy, record.contract)
            self._contract[breach] = self._contract.get(breach, 0) + 1
        if record.dns is not None:
            self._dns_lookups[record.dns] += 1
        if record.dns_ms is not None:
            self._dns.observe(record.dns_ms)
        if record.connect_ms is not None:
            self._connect.observe(record.connect_ms)
        if record.bytes_sent:
            self._bytes_sent += record.bytes_sent
        if record.bytes_received:
            self._bytes_received += record.bytes_received
        if method == "CONNECT" and record.status == 200 and record.duration_ms is not None:
            self._tunnel.observe(record.duration_ms)

    def dns_failed(self, kind: str) -> None:
        """Count a name that was not resolved; kind is one of the resolver's few words for why."""
        self._dns_failures[kind] += 1

    def limit_exceeded(self, kind: str, policy: str) -> None:
        """Count a request that was refused, or a tunnel that was cut, because of a policy's limit."""
        self._limits_exceeded[kind, policy] += 1

    def limit_near(self, kind: str, policy: str) -> None:
        """Count a tenant that has used most of what a policy's limit grants it for a while."""
        self._limits_near[kind, policy] += 1

    def loop_lagged(self, seconds: float, now: float) -> None:
        """Note how late the event loop has run a timer (now: seconds on a monotonic clock)."""
        self._lag.note(seconds, now)

    def policy_loaded(self, generation: int, digest: str, rules: int, now: float) -> None:
        """Note the policy now in force (now: seconds since the epoch). The first is no reload."""
        self._reloads += self._digest is not None
        self._generation = generation
        self._digest = digest
        self._rules = rules
        self._loaded_at = now

    def reload_failed(self) -> None:
        """Count a configuration that was refused."""
        self._failed_reloads += 1

    def exposition(self) -> bytes:
        """All families in the text format, of the type CONTENT_TYPE.

        Another thread may call it while requests run. With 10,000 tunnels it takes tens of
        milliseconds, nearly all of them in the kernel, where open descriptors are counted.
        """
        return generate_latest(self.registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: it is asked for at registration, when there is no use for it."""
        return ()

    def collect(self) -> Iterator[Metric]:
        # Copies, each made in one step, because the event loop's thread goes on counting.
        requests = list(self._requests.items())
        yield _counter(
            "requests_total",
            "Requests that ended.",
            ("method", "decision", "reason"),
            (
                ((method, event.lower(), reason or "none"), number)
                for (method, event, reason), number in requests
            ),
        )
        yield _counter(
            "denied_total",
            "Requests that were denied, by the policy whose rule decided.",
            # The namespace is known once clients have an identity.
            ("policy", "reason", "namespace"),
            (
                ((policy or "none", reason or "none", ""), number)
                for (policy, reason), number in list(self._denied.items())
            ),
        )
        yield _counter(
            "contract_violations_total",
            "Requests that went on although their contract headers were missing or invalid.",
            ("policy", "reason"),
            (
                ((policy or "none", reason), number)
                for (policy, reason), number in list(self._contract.items())
            ),
        )
        yield _gauge("tunnels_active", "Tunnels that are open.", self.tunnels_active)
        yield _gauge(
            "origin_connections_idle",
            "Connections to origins that wait for another request.",
            self.origins_idle,
        )
        yield _gauge(
            "connections_active", "Client connections that are open.", self.connections_active
        )
        yield _counter(
            "bytes_total",
            "Bytes relayed: sent to origins and received from them.",
            ("direction",),
            ((("sent",), self._bytes_sent), (("received",), self._bytes_received)),
        )
        yield self._connect.family("connect_duration_seconds", "Time to connect to a destination.")
        yield self._dns.family("dns_duration_seconds", "Time to resolve a destination's name.")
        yield _counter(
            "dns_lookups_total",
            "Requests whose destination's name was resolved, by where its addresses came from.",
            ("result",),
            (((result,), number) for result, number in list(self._dns_lookups.items())),
        )
        yield _counter(
            "dns_failures_total",
            "Names that were not resolved.",
            ("kind",),
            (((kind,), number) for kind, number in list(self._dns_failures.items())),
        )
        yield self._tunnel.family("tunnel_duration_seconds", "Life time of tunnels that ended.")
        failures: Counter[str] = Counter()
        for (_, event, reason), number in requests:
            if event == _FAILED and reason not in _OUR_OWN_FAILURES:
                failures[reason or "none"] += number
        yield _counter(
            "upstream_failures_total",
            "Allowed requests whose destination could not be reached or answered badly.",
            ("reason",),
            (((reason,), number) for reason, number in failures.items()),
        )
        yield _counter(
            "limit_exceeded_total",
            "Requests refused and tunnels cut because a tenant had used what its policy grants.",
            ("kind", "policy"),
            list(self._limits_exceeded.items()),
        )
        if self.shared_store is not None:
            up, lost = self.shared_store()
            yield _gauge("store_up", "Whether the store that replicas share answers.", int(up))
            yield _counter(
                "store_failures_total",
                "Times that the store that replicas share was lost, or could not be reached.",
                (),
                (((), lost),),
            )
        yield _counter(
            "limit_near_total",
            "Times that a tenant had used four fifths of what its policy grants for a day or an hour.",
            ("kind", "policy"),
            list(self._limits_near.items()),
        )
        yield _gauge("policy_generation", "Number of the policy in force.", self._generation)
        yield InfoMetricFamily(
            "egress_proxy_policy_hash",
            "SHA-256 of the configuration in force.",
            value=None if self._digest is None else {"hash": self._digest},
        )
        yield _gauge("policy_rules", "Rules of the policy in force.", self._rules)
        yield _counter(
            "reload_total",
            "Reloads of the configuration.",
            ("result",),
            ((("success",), self._reloads), (("failure",), self._failed_reloads)),
        )
        yield _gauge(
            "last_reload_success_timestamp_seconds",
            "When the policy in force was loaded, since the epoch.",
            self._loaded_at,
        )
        yield _counter(
            "audit_lines_dropped_total",
            "Audit lines that were lost because stdout was not read, or failed.",
            (),
            (((), self._audit_dropped()),),
        )
        yield _gauge(
            "event_loop_lag_seconds",
            "How late the event loop ran a timer, at worst in the last minute.",
            self._lag.worst,
        )
        if self.workers is not None:
            yield _gauge("workers", "Worker processes as configured.", self.workers.wanted)
            yield _gauge(
                "workers_serving", "Worker processes that take connections.", self.workers.serving
            )
            yield _counter(
                "worker_ends_total",
                "Times that a worker process ended without having been asked to.",
                (),
                (((), self.workers.ended),),
            )
        yield InfoMetricFamily(
            "egress_proxy_build",
            "What is running.",
            value={
                "version": __version__,
                "python": platform.python_version(),
                "uvloop": version("uvloop"),
            },
        )


class WorkersCount:
    """How many worker processes there should be, how many take connections, and how often one has ended unasked."""

    __slots__ = ("ended", "serving", "wanted")

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.serving = 0
        self.ended = 0


class _Worst:
    """The largest of what was noted in the last minute, and at least in its latter half.

    The last value alone would tell nobody anything: a scrape sees one in a hundred of them.
    """

    __slots__ = ("_before", "_latest", "_until")

    def __init__(self) -> None:
        self._until = 0.0
        self._before = 0.0
        self._latest = 0.0

    @property
    def worst(self) -> float:
        return max(self._before, self._latest)

    def note(self, value: float, now: float) -> None:
        if now >= self._until:
            self._before, self._latest = self._latest, 0.0
            self._until = now + _HALF
        self._latest = max(self._latest, value)


class _Histogram:
    """Durations in milliseconds, counted in fixed buckets; told in seconds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, milliseconds: float) -> None:
        self._counts[bisect_left(self._bounds, milliseconds)] += 1
        self._sum += milliseconds

    def family(self, name: str, help_text: str) -> Metric:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, None), list(self._counts), strict=True):
            total += count
            buckets.append(("+Inf" if bound is None else str(bound / 1000), total))
        family = HistogramMetricFamily(f"egress_proxy_{name}", help_text)
        family.add_metric((), buckets, self._sum / 1000)
        return family


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"egress_proxy_{name}", help_text, value)


def _counter(
    name: str,
    help_text: str,
    labels: Sequence[str],
    values: Iterable[tuple[Sequence[str], int]],
) -> Metric:
    family = CounterMetricFamily(f"egress_proxy_{name}", help_text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family
