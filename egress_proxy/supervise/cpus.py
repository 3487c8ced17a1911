"""How many processors this process may use: ``--workers auto``."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_SELF: Final = Path("/proc/self/cgroup")


def usable_cpus(root: Path = _ROOT, membership: Path = _SELF, affinity: int | None = None) -> int:
    """The smallest CPU quota of our control group and of those above it, rounded up; at least 1.

    At most the processors that the process may run on (``affinity``; by default as the system says). ``root`` is where
    control groups of version 1 or 2 are mounted, ``membership`` what /proc/self/cgroup is (cgroups(7)).
    """
    most = len(os.sched_getaffinity(0)) if affinity is None else affinity
    quotas = [quota for directory in _directories(root, membership) for quota in _quotas(directory)]
    return max(1, min(most, *(math.ceil(quota) for quota in quotas)) if quotas else most)


def _directories(root: Path, membership: Path) -> Iterator[Path]:
    """Each group whose quota binds us, from our own to the root of its hierarchy."""
    try:
        lines = membership.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    for line in (*lines, "0::/"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / controllers, root / "cpu"]
        else:
            continue
        # In a container, its own group is often mounted as the root, and the path is the host's: what is not there
        # is passed over.
        own = PurePosixPath(path.lstrip("/"))
        if ".." in own.parts:
            own = PurePosixPath()
        for mount in mounts:
            yield from (mount / each for each in (own, *own.parents))


def _quotas(directory: Path) -> Iterator[float]:
    """The quota of one group in processors, where it has one."""
    # Version 2: "max 100000", or "150000 100000" (microseconds of each period).
    words = _words(directory / "cpu.max")
    # Version 1: -1 is none.
    words = words or [
        *_words(directory / "cpu.cfs_quota_us"),
        *_words(directory / "cpu.cfs_period_us"),
    ]
    if len(words) == 2 and all(word.isascii() and word.isdecimal() for word in words):
        quota, period = map(int, words)
        if quota > 0 and period > 0:
            yield quota / period


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []
