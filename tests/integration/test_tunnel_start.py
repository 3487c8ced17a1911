"""A tunnel that the system has no room for: its request fails, nothing flows, and nothing is left open."""

from __future__ import annotations

import errno
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.core.record import Record
from egress_proxy.net.connect import serve_connect
from egress_proxy.net.pipes import PipePool
from egress_proxy.net.revocation import Permit


class FullPoller:
    """A poller whose system watches no further descriptor (epoll_ctl(2): ENOSPC)."""

    def __init__(self) -> None:
        self.now = 0.0
        self.connections: set[object] = set()

    def hand_over(self, fd: int, handler: object) -> None:
        pass

    def watch(self, fd: int, handler: object, *, output: bool = True) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self, fd: int) -> None:
        os.close(fd)


async def test_a_tunnel_that_cannot_be_watched_leaves_nothing_behind() -> None:
    poller = FullPoller()
    config: Any = SimpleNamespace(timeouts=SimpleNamespace(idle=60.0, lifetime=60.0))
    worker: Any = SimpleNamespace(
        poller=poller,
        pipes=PipePool(),
        config=config,
        metrics=SimpleNamespace(tunnels_active=0),
    )
    client: Any = SimpleNamespace(
        fd=-1,
        key="10.0.0.1",
        started=0.0,
        buffer=b"early",
        watched=False,
        strand=SimpleNamespace(edges=0),
        write=lambda _data: b"",
    )
    origin = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM)
    descriptor = origin.fileno()
    destination = parse_authority(b"a.test:443", None)
    permit = Permit(Identity("10.0.0.1"), destination, "192.0.2.1", verified=False, stamp=None)
    with pytest.raises(OSError, match="No space left"):
        await serve_connect(worker, client, origin, config, permit, Record(), verify=False)
    assert worker.metrics.tunnels_active == 0
    assert poller.connections == set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
