"""A tunnel that has ended is gone at once: the server collects no garbage."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref

from egress_proxy.net.flow import Flow
from egress_proxy.net.pipes import PipePool
from egress_proxy.net.poller import Poller
from egress_proxy.net.relay import Tunnel


class Watched(Tunnel):
    """A tunnel that can be referred to weakly."""

    __slots__ = ("__weakref__",)


async def test_an_ended_tunnel_is_no_garbage() -> None:
    poller = Poller(asyncio.get_running_loop())
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(each, Flow) for each in gc.get_objects())
        client, near = socket.socketpair()
        origin = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM)
        poller.watch(origin.fileno(), lambda _mask: None)
        ended: list[Exception | None] = []
        tunnel = Watched(
            *(poller, PipePool(), near.fileno(), origin),
            idle_time=60,
            lifetime=60,
            on_end=lambda _tunnel, error: ended.append(error),
        )
        tunnel.start(b"", watched=False, client_readable=False, origin_readable=False)
        tunnel.interrupt(TimeoutError())
        assert len(ended) == 1
        gone = weakref.ref(tunnel)
        poller.close(near.detach())
        poller.close(origin.detach())
        client.close()
        del tunnel
        ended.clear()
        assert gone() is None
        assert sum(isinstance(each, Flow) for each in gc.get_objects()) == before
    finally:
        gc.enable()
        poller.shut()
