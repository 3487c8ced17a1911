"""The metrics of several processes as those of one proxy.

Each process counts in plain numbers (:mod:`egress_proxy.observe.metrics`) and hands them over when it is asked, as
values that can be sent. So counting costs what it costs in one process, which shared memory would not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

#: What a sample is about: its name and labels.
Series = tuple[str, tuple[tuple[str, str], ...]]


class Family(msgspec.Struct, frozen=True):
    """All samples of one metric."""

    name: str
    kind: str
    help: str
    samples: tuple[tuple[Series, float], ...]


Families = tuple[Family, ...]

#: What only grows, and must not fall when a process ends.
_GROWING: Final = frozenset({"counter", "histogram"})

#: What is true of the proxy as a whole. Whoever merges knows it best.
_OF_THE_WHOLE: Final = frozenset(
    {
        "egress_proxy_policy_hash",
        "egress_proxy_policy_rules",
        "egress_proxy_reload",
        "egress_proxy_last_reload_success_timestamp_seconds",
        "egress_proxy_build",
    }
)

#: How gauges are taken together that are no parts of a sum.
_TOGETHER: Final[dict[str, Callable[[Iterable[float]], float]]] = {
    # One process that is late, behind, or without its store is what somebody wants to know of.
    "egress_proxy_event_loop_lag_seconds": max,
    "egress_proxy_policy_generation": min,
    "egress_proxy_store_up": min,
    "process_start_time_seconds": min,
}


def families(registry: CollectorRegistry) -> Families:
    """What a registry holds now."""
    return tuple(
        Family(
            family.name,
            family.type,
            family.documentation,
            tuple(
                ((sample.name, tuple(sample.labels.items())), float(sample.value))
                for sample in family.samples
            ),
        )
        for family in registry.collect()
    )


def merged(whole: Families, parts: Iterable[Families]) -> Families:
    """The metrics of the process that speaks for all (``whole``) and of the others together."""
    found: dict[str, list[Family]] = {}
    for family in whole:
        found[family.name] = [family]
    for part in parts:
        for family in part:
            if family.name not in _OF_THE_WHOLE:
                found.setdefault(family.name, []).append(family)
    return tuple(map(_together, found.values()))


def what_stays(past: Families, ended: Families) -> Families:
    """What ended processes have counted, with one more of them."""
    growing = tuple(family for family in ended if family.kind in _GROWING)
    return merged(past, (growing,))


def exposition(merged_families: Families) -> bytes:
    """In the text format."""
    return generate_latest(_Registry(merged_families))


def _together(same: list[Family]) -> Family:
    if len(same) == 1:
        return same[0]
    values: dict[Series, list[float]] = {}
    for family in same:
        for series, value in family.samples:
            values.setdefault(series, []).append(value)
    first = same[0]
    how = max if first.kind == "info" else _TOGETHER.get(first.name, sum)
    samples = tuple((series, float(how(each))) for series, each in values.items())
    return Family(first.name, first.kind, first.help, samples)


class _Registry(CollectorRegistry):
    """Families that were collected already."""

    def __init__(self, found: Families) -> None:
        super().__init__()
        self.register(_Collected(found))


class _Collected(Collector):
    def __init__(self, found: Families) -> None:
        self._found = found

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for family in self._found:
            metric = Metric(family.name, family.help, family.kind)
            for (name, labels), value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric
