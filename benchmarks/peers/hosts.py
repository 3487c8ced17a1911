"""A hosts file for a program that knows none but /etc/hosts.

It runs in a mount namespace of its own, in which the harness's file lies over that one. Nothing else on the machine
sees it, and it ends with the program.
"""

import os
import subprocess
from functools import cache

from benchmarks.peers.peer import Site


def with_hosts(site: Site, command: list[str]) -> list[str]:
    mount = 'mount --bind "$0" /etc/hosts && exec "$@"'
    return [*unshare(), "sh", "-c", mount, str(site.hosts_file), *command]


def unshare() -> list[str]:
    """Root may mount; anyone else first needs a user namespace, in which they are root."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *user, "--mount"]


@cache
def why_impossible() -> str:
    """Why there can be no such namespace here, or nothing."""
    probe = [*unshare(), "mount", "--bind", "/etc/hosts", "/etc/hosts"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no mount namespace: {error}"
    return f"no mount namespace: {done.stderr.strip()}" if done.returncode else ""
