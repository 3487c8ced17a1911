"""Several processes' metrics as one proxy's."""

from __future__ import annotations

from egress_proxy.core.record import Record
from egress_proxy.observe.merge import Families, exposition, families, merged, what_stays
from egress_proxy.observe.metrics import Metrics, WorkersCount


def counted(requests: int, *, lag: float = 0.0, generation: int = 1) -> Metrics:
    metrics = Metrics()
    metrics.connections_active = requests
    metrics.loop_lagged(lag, 1.0)
    metrics.policy_loaded(generation, "abc", 7, 1000.0 + generation)
    for _ in range(requests):
        record = Record(request_id="1", client="192.0.2.1", generation=1)
        record.method, record.event, record.status = "CONNECT", "ALLOWED", 200
        record.connect_ms, record.duration_ms, record.bytes_sent = 3.0, 200.0, 10
        metrics.finished(record)
    return metrics


def told(found: Families) -> dict[str, float]:
    """Samples as they stand in the exposition."""
    lines = exposition(found).decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name.removeprefix("egress_proxy_"): float(value) for name, _, value in samples}


def parts(*all_counted: Metrics) -> list[Families]:
    return [families(each.registry) for each in all_counted]


REQUESTS = 'requests_total{decision="allowed",method="CONNECT",reason="none"}'


def test_one_process_reads_as_before() -> None:
    metrics = counted(3, lag=0.5)
    found = told(families(metrics.registry))
    plain = dict(
        line.rpartition(" ")[::2]
        for line in metrics.exposition().decode().splitlines()
        if line.startswith("egress_proxy_")
    )
    assert {name: float(value) for name, value in plain.items()} == {
        f"egress_proxy_{name}": value
        for name, value in found.items()
        if not name.startswith(("process_", "python_"))
    }


def test_counts_and_sizes_are_added() -> None:
    whole = Metrics()
    whole.workers = WorkersCount(2)
    whole.policy_loaded(2, "new", 9, 3000.0)
    found = told(merged(families(whole.registry), parts(counted(2), counted(3))))
    assert found[REQUESTS] == 5
    assert found["connections_active"] == 5
    assert found['bytes_total{direction="sent"}'] == 50
    assert found['connect_duration_seconds_bucket{le="0.0025"}'] == 0
    assert found['connect_duration_seconds_bucket{le="+Inf"}'] == 5
    assert found["connect_duration_seconds_count"] == 5
    assert found["workers"] == 2


def test_what_is_no_sum() -> None:
    whole = Metrics()
    whole.policy_loaded(2, "new", 9, 3000.0)
    late, behind = counted(1, lag=0.7, generation=2), counted(1, lag=0.2, generation=1)
    late.shared_store, behind.shared_store = lambda: (True, 1), lambda: (False, 2)
    found = told(merged(families(whole.registry), parts(late, behind)))
    assert found["event_loop_lag_seconds"] == 0.7
    # The worker that is behind is the one to know of.
    assert found["policy_generation"] == 1
    assert found["store_up"] == 0
    assert found["store_failures_total"] == 3
    # Told by the supervisor alone, which knows.
    assert found["policy_rules"] == 9
    assert found['policy_hash_info{hash="new"}'] == 1
    assert 'policy_hash_info{hash="abc"}' not in found
    assert found["last_reload_success_timestamp_seconds"] == 3000
    assert found['reload_total{result="success"}'] == 0


def test_counters_of_an_ended_process_stay_and_its_gauges_go() -> None:
    whole = families(Metrics().registry)
    past: Families = ()
    for requests in (2, 3):
        past = what_stays(past, *parts(counted(requests)))
    found = told(merged(whole, [past, *parts(counted(4))]))
    assert found[REQUESTS] == 9
    assert found["connect_duration_seconds_count"] == 9
    assert found["connections_active"] == 4
