"""What one feature adds to a tunnel or a plain GET: one proxy, two hosts, and it is on for one of them.

``python -m benchmarks.feature tls`` (or ``limits``, ``limits --mode get``). Loads of both take turns, and the figure is
the median of the differences between neighbours: machines drift by more than what is looked for.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median, quantiles

from benchmarks.bench import bench
from benchmarks.machine import BenchmarkError
from benchmarks.peers import ORIGIN_HOST
from benchmarks.peers.ours import CONFIG, Ours
from benchmarks.rig import WARM_UP, Rig, rig

#: As long a name, so that only the feature differs.
OTHER_HOST = ORIGIN_HOST.replace("origin", "others")
#: The second host, whose tunnels nobody looks at.
WITHOUT_TLS = (
    "      - {{host: OTHER, ports: [{origin_port}], allow_private: [127.0.0.0/8], tls: off}}\n"
)
#: A second policy for the second host, with every limit that costs something by request; none of them is reached.
WITH_LIMITS = """\
  - name: limited
    trust_tenant_header: true
    allow:
      - {{host: OTHER, ports: [{origin_port}], allow_private: [127.0.0.0/8]}}
    limits: {{requests_per_second: 1000000, tunnels: 1000000, requests_per_day: 1000000000, bytes_per_day: 1000TiB,
      new_hosts_per_hour: 1000}}
"""
#: By feature: what is added to the configuration, and which host has it.
FEATURES = {"tls": (WITHOUT_TLS, ORIGIN_HOST), "limits": (WITH_LIMITS, OTHER_HOST)}
AT_ONCE = 64
OPERATIONS = 600  # of one load


class TwoHosts(Ours):
    """egress-proxy with a second host."""

    def __init__(self, further: str) -> None:
        self.config = CONFIG + further.replace("OTHER", OTHER_HOST)


def cost(made: Rig, mode: str, host: str) -> float:
    """Microseconds of CPU time for one operation with the host."""
    before = made.tree.cpu_seconds()
    made.load(mode, OPERATIONS, at_once=AT_ONCE, host=host)
    return (made.tree.cpu_seconds() - before) / OPERATIONS * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("feature", choices=FEATURES)
    parser.add_argument("--mode", choices=("tunnel", "get"), default="tunnel")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    further, with_it = FEATURES[options.feature]
    hosts = [ORIGIN_HOST, OTHER_HOST]
    figures: dict[str, list[float]] = {host: [] for host in hosts}
    try:
        with bench(hosts) as made, rig(made, TwoHosts(further)) as proxy:
            for host in hosts:
                proxy.load(options.mode, WARM_UP, at_once=AT_ONCE, host=host)
            for turn in range(options.rounds):
                for host in hosts if turn % 2 else reversed(hosts):
                    figures[host].append(cost(proxy, options.mode, host))
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    on, off = figures.pop(with_it), next(iter(figures.values()))
    differences = [one - two for one, two in zip(on, off, strict=True)]
    low, _, high = quantiles(differences, n=4)
    print(f"with {median(on):.0f} µs, without {median(off):.0f} µs, ", end="")
    print(f"{options.feature} {median(differences):.1f} µs (quartiles {low:.1f}-{high:.1f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
