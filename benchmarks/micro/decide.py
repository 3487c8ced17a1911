"""What a decision costs, remembered and not, and that a million rules cost it little more than ten.

``.venv/bin/python benchmarks/micro/decide.py`` (``--fast`` for a quick look). CPU time, so that
other work on the machine disturbs little. Each figure is the mean over destinations that are spread over all rules.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial

import pyperf

from egress_proxy.core.decide import Decision, _decide, decide
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority, Host
from egress_proxy.core.policy import (
    Action,
    CompiledPolicy,
    HostPattern,
    HostSet,
    Place,
    Policy,
    Rule,
)

SIZES = (10, 10_000, 1_000_000)
#: The aim: no decision costs more than so many times what it costs with ten rules.
AIM = 2.0
#: Destinations of one figure. They differ, as those of a cluster do, and all of them fit into what is remembered.
DESTINATIONS = 1000
CLIENT = Identity("192.0.2.10")
HERE = Place("policy.yaml", 1, 1)

WAYS: dict[str, Callable[[CompiledPolicy, Identity, Authority], Decision]] = {
    "remembered": decide,
    "decided": _decide,
}
#: The host that is asked for where the rule of that number is to match, and what the decision must be.
KINDS: dict[str, tuple[str, bool]] = {
    "exact host of a set": ("h{}.set.example", True),
    "wildcard, three labels down": ("a.b.c.w{}.example", True),
    "no rule": ("a.b.c.m{}.example", False),
}


@cache
def policy_of(size: int) -> CompiledPolicy:
    """Half of the rules are hosts of one set, a quarter each are wildcards and single hosts."""
    quarter = size // 4
    hosts = HostSet(
        "set", HERE, {f"h{number}.set.example": HERE for number in range(size - 2 * quarter)}
    )
    rules = [Rule(Action.ALLOW, hosts, HERE)]
    rules += [
        Rule(Action.ALLOW, HostPattern(f"w{number}.example", True), HERE)
        for number in range(quarter)
    ]
    rules += [
        Rule(Action.ALLOW, HostPattern(f"s{number}.example", False), HERE)
        for number in range(quarter)
    ]
    policy = CompiledPolicy([Policy("everyone", tuple(rules), None, HERE)])
    assert policy.rule_count == size
    return policy


@cache
def destinations_of(size: int, kind: str) -> tuple[Authority, ...]:
    form, allowed = KINDS[kind]
    # Spread over all the rules there are; what no rule names is always another name.
    step = size // 4 / DESTINATIONS if allowed else 1
    hosts = [form.format(int(number * step)) for number in range(DESTINATIONS)]
    # The few that ten rules can name are one value each, as the server's own cache of authorities would have it.
    values = {host: Authority(Host(host), 443) for host in hosts}
    assert all(decide(policy_of(size), CLIENT, each).allowed is allowed for each in values.values())
    return tuple(values[host] for host in hosts)


def cpu_seconds(way: str, size: int, kind: str, loops: int) -> float:
    """The CPU time of so many rounds of all destinations."""
    function, policy, destinations = WAYS[way], policy_of(size), destinations_of(size, kind)
    started = time.process_time()
    for _ in range(loops):
        for destination in destinations:
            function(policy, CLIENT, destination)
    return time.process_time() - started


def main() -> None:
    # To build a million rules takes each process seconds, so there are fewer processes than pyperf would start.
    runner = pyperf.Runner(processes=4, values=5, metadata={"clock": "process_time"})
    found: dict[tuple[str, str, int], float] = {}
    for way in WAYS:
        for kind in KINDS:
            for size in SIZES:
                measured = runner.bench_time_func(
                    f"{way}, {kind}, {size:,} rules",
                    partial(cpu_seconds, way, size, kind),
                    inner_loops=DESTINATIONS,
                )
                if measured is not None and not runner.args.worker:
                    found[way, kind, size] = measured.median()
    if not runner.args.worker:
        print_ratios(found)


def print_ratios(found: dict[tuple[str, str, int], float]) -> None:
    print(f"\n| | {' | '.join(f'{size:,} rules' for size in SIZES)} | ratio to {SIZES[0]} |")
    print("|---|" + "---:|" * (len(SIZES) + 1))
    for way, kind in dict.fromkeys((way, kind) for way, kind, _ in found):
        costs = [found.get((way, kind, size)) for size in SIZES]
        if None in costs:
            continue
        ratios = [cost / costs[0] for cost in costs if cost and costs[0]]
        shown = " | ".join(f"{cost * 1e9:,.0f} ns" for cost in costs if cost)
        verdict = "" if max(ratios) <= AIM else f", above the aim of {AIM:g}"
        print(
            f"| {way}, {kind} | {shown} | {' / '.join(f'{ratio:.2f}' for ratio in ratios[1:])}{verdict} |"
        )


if __name__ == "__main__":
    main()
