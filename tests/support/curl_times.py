"""How long curl waits for the first byte: alone, with its own happy eyeballs, or through a proxy."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from tests.support.proxy import clean_environment


@dataclass(frozen=True, slots=True)
class Timed:
    """One request of curl's."""

    exit: int
    first_byte: float
    """Seconds from its start."""
    address: str
    """Of the peer: the origin, or the proxy."""
    status: int


def fetch(
    port: int, *, proxy: str = "", addresses: tuple[str, ...] = (), patience: int = 10
) -> Timed:
    """Fetch ``http://origin.test``, through a proxy or from these addresses.

    ``patience`` is curl's time for connecting, in seconds. An address has a part of it where more follow.
    """
    if proxy:
        way = ["--proxy", proxy]
    else:
        shown = ",".join(f"[{ip}]" if ":" in ip else ip for ip in addresses)
        way = ["--resolve", f"origin.test:{port}:{shown}"]
    done = subprocess.run(
        [
            *("curl", "-q", "-sS", "-o", "/dev/null", "-w", "%{json}"),
            *("--connect-timeout", str(patience), *way, f"http://origin.test:{port}/"),
        ],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    said = json.loads(done.stdout)
    return Timed(
        done.returncode, said["time_starttransfer"], said["remote_ip"], said["response_code"]
    )
