"""What all connections of a process share."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Callable
from time import monotonic
from typing import Final

from egress_proxy.config.model import Config, SocketAddress
from egress_proxy.core import addresses, reasons
from egress_proxy.core.http1 import HeadLimits
from egress_proxy.core.reason import Reason
from egress_proxy.core.record import Record
from egress_proxy.identity.credentials import Credentials
from egress_proxy.limits.limiter import Limiter
from egress_proxy.net.client import Heads
from egress_proxy.net.client_key import client_key
from egress_proxy.net.dialer import MAX_BESIDE, Dialer
from egress_proxy.net.pipes import MAX_PIPES, PipePool
from egress_proxy.net.poller import Poller
from egress_proxy.net.pool import OriginPool
from egress_proxy.net.resolver import Resolver
from egress_proxy.observe.audit import AuditLog
from egress_proxy.observe.metrics import Metrics

#: Pipes, files, the admin port's connections, the name servers' sockets.
_OTHER_DESCRIPTORS: Final = 2 * MAX_PIPES + 64 + 48
#: The part of all descriptors that connections to origins may have while they wait for another request.
_IDLE_SHARE: Final = 8
#: The part of them that attempts to connect may have, beside the first one of each client.
_BESIDE_SHARE: Final = 16


class Worker:
    """What all connections of a process share."""

    def __init__(
        self,
        poller: Poller,
        resolver: Resolver,
        audit: AuditLog,
        metrics: Metrics,
        limiter: Limiter,
        config: Config,
    ) -> None:
        self.poller = poller
        self.resolver = resolver
        self.audit = audit
        self.metrics = metrics
        self.limiter = limiter
        self.dialer = Dialer(poller)
        self.pipes = PipePool()
        self.pool = OriginPool(poller, metrics)
        self.listening: tuple[SocketAddress, ...] = ()
        """Where the proxy and its admin port listen."""
        self.own_ports: frozenset[int] = frozenset()
        """Their ports."""
        self.credentials = Credentials({}, poller.loop)
        self.heads = Heads()
        self._clients: dict[str, int] = {}
        """Connections by client."""
        self.tunnels_opening = 0
        """Requests for a tunnel that is not open yet."""
        self.draining = False
        # Unique among processes, and cheap: random once, then counted.
        prefix, counter = os.urandom(5).hex(), itertools.count(1)
        self.pseudonym = b"egress-proxy-" + prefix[:8].encode()
        """Its name in Via (RFC 9110 §7.6.3), by which it knows a request that comes back."""
        self.request_id: Callable[[], str] = lambda: f"{prefix}{next(counter):06x}"
        self.adopt(config, 1)

    def adopt(self, config: Config, generation: int) -> None:
        """Decide by this configuration from the next request head on."""
        # First what may fail: half a change would be worse than none.
        self.limiter.adopt(config.policy)
        self.config = config
        self.generation = generation
        addresses.forget()
        self.credentials.adopt(config.credentials.users if config.credentials else {})
        self.heads.most = config.limits.heads
        self.head_limits = HeadLimits(config.limits.head_bytes, config.limits.head_fields)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # What waits for another request must not keep new clients out.
        idle = min(config.limits.idle_origins, limit // _IDLE_SHARE)
        self.pool.adopt(config, idle)
        self.dialer.most_beside = beside = min(MAX_BESIDE, limit // _BESIDE_SHARE)
        #: Of clients, at once: as configured, or what the limit of descriptors carries.
        self.max_connections = min(
            config.limits.connections, max((limit - idle - beside - _OTHER_DESCRIPTORS) // 2, 1)
        )
        self.max_per_client = config.limits.connections_per_client
        if self.max_connections < config.limits.connections:
            # Of what there is instead, one client has no more than half.
            self.max_per_client = min(self.max_per_client, max(self.max_connections // 2, 1))

    def listens_on(self, *addresses: SocketAddress) -> None:
        """Nobody is connected to these: the way would lead through the proxy to the proxy."""
        self.listening = addresses
        self.own_ports = frozenset(address.port for address in addresses)

    def conclude(self, record: Record, started: float) -> None:
        """Log and count a request that has ended."""
        record.duration_ms = milliseconds(monotonic() - started)
        self.audit.write(record)
        self.metrics.finished(record)

    def admits(self, address: str) -> Reason | None:
        """Why one more connection of this client must be turned away; None if it need not."""
        if self.metrics.connections_active >= self.max_connections:
            return reasons.OVERLOADED
        if self._clients.get(client_key(address), 0) >= self.max_per_client:
            return reasons.CLIENT_CONNECTIONS
        return None

    def open(self, client: str) -> None:
        """Count a connection of a client's, which is named by its key."""
        self.metrics.connections_active += 1
        self._clients[client] = self._clients.get(client, 0) + 1

    def close(self, fd: int, client: str) -> None:
        """Close a connection of a client's."""
        self.metrics.connections_active -= 1
        left = self._clients[client] - 1
        if left:
            self._clients[client] = left
        else:
            del self._clients[client]
        self.poller.close(fd)


def milliseconds(seconds: float) -> float:
    """As durations stand in the log: to the microsecond."""
    # Five times as fast as round().
    return int(seconds * 1_000_000 + 0.5) / 1000
