"""Metrics: what is counted, under which names, with how many series."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from egress_proxy import __version__
from egress_proxy.core import reasons
from egress_proxy.core.reason import Event, Reason
from egress_proxy.core.record import Record
from egress_proxy.observe.metrics import CONTENT_TYPE, METHODS, Metrics, WorkersCount

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

#: Names and labels are an interface: dashboards and alerts are written against them.
LABELS = {
    "egress_proxy_requests_total": {"method", "decision", "reason"},
    "egress_proxy_denied_total": {"policy", "reason", "namespace"},
    "egress_proxy_contract_violations_total": {"policy", "reason"},
    "egress_proxy_tunnels_active": set(),
    "egress_proxy_origin_connections_idle": set(),
    "egress_proxy_connections_active": set(),
    "egress_proxy_bytes_total": {"direction"},
    "egress_proxy_connect_duration_seconds": set(),
    "egress_proxy_dns_duration_seconds": set(),
    "egress_proxy_dns_lookups_total": {"result"},
    "egress_proxy_dns_failures_total": {"kind"},
    "egress_proxy_tunnel_duration_seconds": set(),
    "egress_proxy_upstream_failures_total": {"reason"},
    "egress_proxy_limit_exceeded_total": {"kind", "policy"},
    "egress_proxy_limit_near_total": {"kind", "policy"},
    "egress_proxy_store_up": set(),
    "egress_proxy_store_failures_total": set(),
    "egress_proxy_policy_generation": set(),
    "egress_proxy_policy_hash_info": {"hash"},
    "egress_proxy_policy_rules": set(),
    "egress_proxy_reload_total": {"result"},
    "egress_proxy_last_reload_success_timestamp_seconds": set(),
    "egress_proxy_audit_lines_dropped_total": set(),
    "egress_proxy_event_loop_lag_seconds": set(),
    "egress_proxy_workers": set(),
    "egress_proxy_workers_serving": set(),
    "egress_proxy_worker_ends_total": set(),
    "egress_proxy_build_info": {"version", "python", "uvloop"},
}


def ended(
    event: Event, reason: Reason | None = None, method: str = "CONNECT", **fields: Any
) -> Record:
    record = Record(method=method, **fields)
    record.conclude(event, reason)
    return record


def scraped(metrics: Metrics) -> dict[str, float]:
    """Every sample of ours by its name and labels as they stand in the text, without the prefix."""
    return {
        f"{sample.name.removeprefix('egress_proxy_')}{labels(sample.labels)}": sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
        if sample.name.startswith("egress_proxy_")
    }


def labels(values: dict[str, str]) -> str:
    return (
        "{" + ",".join(f"{name}={value}" for name, value in sorted(values.items())) + "}"
        if values
        else ""
    )


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def busy(metrics: Metrics) -> Metrics:
    """With at least one sample in every family."""
    metrics.finished(ended(Event.DENIED, reasons.DENY_RULE, policy="everyone"))
    metrics.finished(
        ended(Event.FAILED, reasons.CONNECTION_REFUSED, dns="miss", dns_ms=1.0, connect_ms=2.0)
    )
    metrics.finished(
        ended(Event.ALLOWED, status=200, duration_ms=3.0, bytes_sent=1, bytes_received=2)
    )
    metrics.finished(ended(Event.ALLOWED, method="PUT", contract="tenant_id_missing"))
    metrics.dns_failed("nxdomain")
    metrics.limit_exceeded("request_rate", "everyone")
    metrics.limit_near("byte_budget", "everyone")
    metrics.shared_store = lambda: (True, 2)
    metrics.workers = WorkersCount(2)
    metrics.policy_loaded(1, "abc", 3, 1000.0)
    return metrics


def test_names_and_labels_are_those_of_the_interface(busy: Metrics) -> None:
    found: dict[str, set[str]] = {}
    for line in busy.exposition().decode().splitlines():
        if match := re.match(r"# TYPE (egress_proxy_\S+) ", line):
            found[match[1]] = set()
        elif match := re.match(r"(egress_proxy_\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? ", line):
            name = match[1] if match[1] in found else match[0].split("{")[0].split()[0]
            found[name] |= set(re.findall(r'(\w+)="', match[2] or "")) - {"le"}
    assert found == LABELS


def test_every_family_has_samples_that_a_scraper_reads(busy: Metrics) -> None:
    families = list(text_string_to_metric_families(busy.exposition().decode()))
    assert all(family.samples for family in families)
    assert all(family.documentation for family in families)
    assert {family.name for family in families} >= {
        "process_resident_memory_bytes",
        "python_gc_collections",
    }
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_the_page_explains_every_family() -> None:
    explained = re.findall(
        r"^\| `(egress_proxy_[a-z_]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert explained == list(LABELS)


def test_breaches_of_the_contract_that_went_on_are_counted_by_policy(metrics: Metrics) -> None:
    for policy in ("everyone", "everyone", None):
        metrics.finished(
            ended(Event.ALLOWED, method="POST", policy=policy, contract="idempotency_key_missing")
        )
    metrics.finished(ended(Event.DENIED, reasons.TENANT_ID_INVALID, "POST", policy="everyone"))
    found = scraped(metrics)
    assert {name: value for name, value in found.items() if name.startswith("contract")} == {
        "contract_violations_total{policy=everyone,reason=idempotency_key_missing}": 2,
        "contract_violations_total{policy=none,reason=idempotency_key_missing}": 1,
    }
    assert found["denied_total{namespace=,policy=everyone,reason=tenant_id_invalid}"] == 1


def test_limits_are_counted_by_kind_and_policy(metrics: Metrics) -> None:
    metrics.limit_exceeded("request_rate", "everyone")
    metrics.limit_exceeded("request_rate", "everyone")
    metrics.limit_exceeded("byte_budget", "batch")
    metrics.limit_near("byte_budget", "batch")
    assert {
        name: value for name, value in scraped(metrics).items() if name.startswith("limit_")
    } == {
        "limit_exceeded_total{kind=request_rate,policy=everyone}": 2,
        "limit_exceeded_total{kind=byte_budget,policy=batch}": 1,
        "limit_near_total{kind=byte_budget,policy=batch}": 1,
    }


def test_requests_are_counted_by_method_decision_and_reason(metrics: Metrics) -> None:
    metrics.finished(ended(Event.ALLOWED))
    metrics.finished(ended(Event.ALLOWED))
    metrics.finished(ended(Event.DENIED, reasons.HOST_NOT_ALLOWED, "GET"))
    metrics.finished(ended(Event.WOULD_DENY, reasons.DENY_RULE, "BREW"))
    metrics.finished(ended(Event.CLOSED, reasons.IDLE_TIMEOUT))
    malformed = Record()
    malformed.conclude(Event.DENIED, reasons.BARE_LF)
    metrics.finished(malformed)
    found = scraped(metrics)
    assert {name: value for name, value in found.items() if name.startswith("requests_total")} == {
        "requests_total{decision=allowed,method=CONNECT,reason=none}": 2,
        "requests_total{decision=denied,method=GET,reason=host_not_allowed}": 1,
        "requests_total{decision=would_deny,method=other,reason=deny_rule}": 1,
        "requests_total{decision=closed,method=CONNECT,reason=idle_timeout}": 1,
        "requests_total{decision=denied,method=other,reason=bare_lf}": 1,
    }


def test_denials_are_counted_by_policy_and_would_be_denials_are_not(metrics: Metrics) -> None:
    metrics.finished(ended(Event.DENIED, reasons.DENY_RULE, policy="agents"))
    metrics.finished(ended(Event.DENIED, reasons.HOST_NOT_ALLOWED))
    metrics.finished(ended(Event.WOULD_DENY, reasons.HOST_NOT_ALLOWED))
    found = scraped(metrics)
    assert {name: value for name, value in found.items() if name.startswith("denied_total")} == {
        "denied_total{namespace=,policy=agents,reason=deny_rule}": 1,
        "denied_total{namespace=,policy=none,reason=host_not_allowed}": 1,
    }


def test_only_failures_of_destinations_are_upstream_failures(metrics: Metrics) -> None:
    failures = [row for row in reasons.REASONS.values() if row.event is Event.FAILED]
    for row in failures:
        metrics.finished(ended(Event.FAILED, row))
    counted = {name for name in scraped(metrics) if name.startswith("upstream_failures_total")}
    assert "upstream_failures_total{reason=connection_refused}" in counted
    assert "upstream_failures_total{reason=dns_timeout}" in counted
    ours = {"client_aborted", "client_connections", "draining", "internal_error", "overloaded"}
    ours |= {"starting", "store_unavailable"}
    for name in ours:
        assert f"upstream_failures_total{{reason={name}}}" not in counted
    assert len(counted) == len(failures) - len(ours)


def test_bytes_and_durations_come_from_the_record(metrics: Metrics) -> None:
    metrics.finished(
        ended(
            Event.ALLOWED,
            dns_ms=2.5,
            connect_ms=30.0,
            status=200,
            duration_ms=900_000.0,
            bytes_sent=5,
            bytes_received=7,
        )
    )
    metrics.finished(
        ended(
            Event.ALLOWED,
            method="GET",
            status=200,
            duration_ms=1.0,
            bytes_sent=10,
            bytes_received=None,
        )
    )
    metrics.finished(ended(Event.DENIED, reasons.DENY_RULE, status=403, duration_ms=1.0))
    found = scraped(metrics)
    assert found["bytes_total{direction=sent}"] == 15
    assert found["bytes_total{direction=received}"] == 7
    # A bucket's bound belongs to it.
    assert found["dns_duration_seconds_bucket{le=0.001}"] == 0
    assert found["dns_duration_seconds_bucket{le=0.0025}"] == 1
    assert found["dns_duration_seconds_sum"] == 0.0025
    assert found["connect_duration_seconds_bucket{le=0.025}"] == 0
    assert found["connect_duration_seconds_bucket{le=0.05}"] == 1
    assert found["connect_duration_seconds_count"] == 1
    # Only tunnels that were opened have a life time.
    assert found["tunnel_duration_seconds_count"] == 1
    assert found["tunnel_duration_seconds_sum"] == 900


def test_what_is_beyond_the_last_bucket_is_counted(metrics: Metrics) -> None:
    metrics.finished(ended(Event.ALLOWED, connect_ms=1e9))
    found = scraped(metrics)
    assert found["connect_duration_seconds_bucket{le=10.0}"] == 0
    assert found["connect_duration_seconds_bucket{le=+Inf}"] == 1


def test_where_addresses_came_from(metrics: Metrics) -> None:
    for number, result in enumerate(("hit", "miss", "stale", "hosts"), 1):
        for _ in range(number):
            metrics.finished(ended(Event.ALLOWED, dns=result))
    metrics.finished(ended(Event.FAILED, reasons.DNS_NXDOMAIN, dns_ms=1.0))
    metrics.finished(ended(Event.DENIED, reasons.HOST_NOT_ALLOWED))
    assert {
        name: value
        for name, value in scraped(metrics).items()
        if name.startswith("dns_lookups_total")
    } == {
        "dns_lookups_total{result=hit}": 1,
        "dns_lookups_total{result=miss}": 2,
        "dns_lookups_total{result=stale}": 3,
        "dns_lookups_total{result=hosts}": 4,
    }


def test_the_policy_in_force_and_its_reloads(metrics: Metrics) -> None:
    assert not [name for name in scraped(metrics) if name.startswith("policy_hash_info")]
    metrics.policy_loaded(1, "abc", 3, 1000.0)
    assert scraped(metrics)["reload_total{result=success}"] == 0
    metrics.reload_failed()
    metrics.policy_loaded(2, "def", 4, 2000.0)
    found = scraped(metrics)
    assert found["policy_generation"] == 2
    assert found["policy_rules"] == 4
    assert found["last_reload_success_timestamp_seconds"] == 2000
    assert found["reload_total{result=success}"] == 1
    assert found["reload_total{result=failure}"] == 1
    assert [name for name in found if name.startswith("policy_hash_info")] == [
        "policy_hash_info{hash=def}"
    ]


def test_the_rest_is_told_as_it_is() -> None:
    metrics = Metrics(lambda: 42)
    metrics.connections_active += 2
    metrics.tunnels_active += 1
    metrics.loop_lagged(0.25, 100.0)
    metrics.dns_failed("timeout")
    metrics.dns_failed("timeout")
    found = scraped(metrics)
    assert found["connections_active"] == 2
    assert found["tunnels_active"] == 1
    assert found["event_loop_lag_seconds"] == 0.25
    assert found["audit_lines_dropped_total"] == 42
    assert found["dns_failures_total{kind=timeout}"] == 2
    (build,) = [name for name in found if name.startswith("build_info")]
    assert f"version={__version__}" in build


def test_the_lag_is_the_worst_of_the_last_minute(metrics: Metrics) -> None:
    def lag() -> float:
        return scraped(metrics)["event_loop_lag_seconds"]

    metrics.loop_lagged(0.3, 1000.0)
    metrics.loop_lagged(0.1, 1000.1)
    assert lag() == 0.3
    # However often it is scraped: two scrapers must not hide it from each other.
    assert lag() == 0.3
    metrics.loop_lagged(0.1, 1029.0)
    metrics.loop_lagged(0.05, 1031.0)
    assert lag() == 0.3
    metrics.loop_lagged(0.02, 1062.0)
    assert lag() == 0.05


def test_clients_cannot_make_series(metrics: Metrics) -> None:
    for number in range(10_000):
        method = f"M{number}"
        metrics.finished(
            ended(
                Event.DENIED,
                reasons.HOST_NOT_ALLOWED,
                method,
                host=f"{number}.example",
                path=f"/{number}",
            )
        )
    for method in METHODS:
        metrics.finished(ended(Event.DENIED, reasons.HOST_NOT_ALLOWED, method))
    found = [
        name for name in scraped(metrics) if name.startswith(("requests_total", "denied_total"))
    ]
    assert len(found) == len(METHODS) + 1 + 1
    assert "example" not in metrics.exposition().decode()


def test_a_scrape_in_another_thread_sees_requests_go_on(metrics: Metrics) -> None:
    failures: list[BaseException] = []

    def scrape() -> None:
        try:
            for _ in range(50):
                metrics.exposition()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test tells it
            failures.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    number = 0
    while thread.is_alive():
        number += 1
        metrics.finished(ended(Event.DENIED, reasons.DENY_RULE, policy=f"policy{number % 5000}"))
        metrics.dns_failed(f"kind{number % 1000}")
    thread.join()
    assert failures == []


def test_each_has_its_own_registry(busy: Metrics) -> None:
    assert "requests_total{decision=allowed,method=CONNECT,reason=none}" not in scraped(Metrics())
