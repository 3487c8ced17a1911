"""`--workers auto`, from files as kernels and container runtimes leave them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from egress_proxy.supervise.cpus import usable_cpus

V1_IN_DOCKER = """\
12:cpuset:/docker/3f1c
5:cpu,cpuacct:/docker/3f1c
1:name=systemd:/docker/3f1c
0::/system.slice/containerd.service
"""


def cpus(
    tmp_path: Path, files: Mapping[str, str], membership: str | None, affinity: int = 64
) -> int:
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    mine = tmp_path / "membership"
    if membership is not None:
        mine.write_text(membership)
    return usable_cpus(root, mine, affinity)


@pytest.mark.parametrize(
    ("files", "membership", "wanted"),
    [
        # Version 2, in a container: its own group is the root of what it sees.
        ({"cpu.max": "max 100000\n"}, "0::/\n", 64),
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "250000 100000\n"}, "0::/\n", 3),
        ({"cpu.max": "10000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "50000\n"}, "0::/\n", 64),
        # On the host: the group's own, and those above it; the smallest counts.
        ({"a.slice/b.service/cpu.max": "400000 100000\n"}, "0::/a.slice/b.service\n", 4),
        (
            {"a.slice/b.service/cpu.max": "max 100000\n", "a.slice/cpu.max": "300000 100000\n"},
            "0::/a.slice/b.service\n",
            3,
        ),
        ({"other/cpu.max": "100000 100000\n"}, "0::/a.slice\n", 64),
        # The host's path, while the container's own group is mounted as the root.
        ({"cpu.max": "200000 100000\n"}, "0::/kubepods.slice/pod1\n", 2),
        ({"cpu.max": "200000 100000\n"}, "0::/../../pod1\n", 2),
        # Version 1.
        (
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            V1_IN_DOCKER,
            2,
        ),
        (
            {
                "cpu/docker/3f1c/cpu.cfs_quota_us": "300000\n",
                "cpu/docker/3f1c/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            V1_IN_DOCKER,
            3,
        ),
        (
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            V1_IN_DOCKER,
            64,
        ),
        # Nothing to be read, or nothing that can be.
        ({}, None, 64),
        ({"cpu.max": ""}, "0::/\n", 64),
        ({"cpu.max": "many 0\n"}, "0::/\n", 64),
        ({"cpu.max": "100000 0\n"}, "0::/\n", 64),
        ({"cpu.max": "200000 100000\n"}, "no colon\n", 2),
    ],
)
def test_the_quota(
    tmp_path: Path, files: dict[str, str], membership: str | None, wanted: int
) -> None:
    assert cpus(tmp_path, files, membership) == wanted


def test_never_more_than_it_may_run_on(tmp_path: Path) -> None:
    assert cpus(tmp_path, {"cpu.max": "800000 100000\n"}, "0::/\n", affinity=2) == 2


def test_this_machine() -> None:
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))
