"""What ``tls: verify`` adds to a tunnel: one proxy, two hosts, and it looks at the ClientHello for one of them.

``python -m benchmarks.tunnel_check``. Loads of both take turns, and the figure is the median of the differences between
neighbours: machines drift by more than what is looked for.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median, quantiles

from benchmarks.machine import BenchmarkError
from benchmarks.peers import ORIGIN_HOST
from benchmarks.peers.ours import CONFIG, Ours
from benchmarks.rig import WARM_UP, Rig, bench, rig

#: Not looked at. As long a name, so that only the check differs.
OTHER_HOST = ORIGIN_HOST.replace("origin", "others")
RULE = "      - {{host: OTHER, ports: [{origin_port}], allow_private: [127.0.0.0/8], tls: off}}\n"
AT_ONCE = 64
TUNNELS = 600  # of one load


class BothHosts(Ours):
    """egress-proxy with a second host, whose tunnels it does not look at."""

    config = CONFIG + RULE.replace("OTHER", OTHER_HOST)


def cost(made: Rig, host: str) -> float:
    """Microseconds of CPU time for a tunnel to the host."""
    before = made.tree.cpu_seconds()
    made.load("tunnel", TUNNELS, at_once=AT_ONCE, host=host)
    return (made.tree.cpu_seconds() - before) / TUNNELS * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    hosts = [ORIGIN_HOST, OTHER_HOST]
    figures: dict[str, list[float]] = {host: [] for host in hosts}
    try:
        with bench(hosts) as made, rig(made, BothHosts()) as proxy:
            for host in hosts:
                proxy.load("tunnel", WARM_UP, at_once=AT_ONCE, host=host)
            for turn in range(rounds):
                for host in hosts if turn % 2 else reversed(hosts):
                    figures[host].append(cost(proxy, host))
    except BenchmarkError as error:
        sys.exit(f"benchmarks: {error}")
    checked, other = (figures[host] for host in hosts)
    differences = [one - two for one, two in zip(checked, other, strict=True)]
    low, _, high = quantiles(differences, n=4)
    print(f"checked {median(checked):.0f} µs, not checked {median(other):.0f} µs, ", end="")
    print(f"the check {median(differences):.1f} µs (quartiles {low:.1f}-{high:.1f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
