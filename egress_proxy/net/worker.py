"""What all connections of a process share."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Callable
from time import monotonic
from typing import Final

from egress_proxy.config.model import Config, SocketAddress
from egress_proxy.core import addresses
from egress_proxy.core.http1 import HeadLimits
from egress_proxy.core.record import Record
from egress_proxy.identity.credentials import Credentials
from egress_proxy.net.dialer import Dialer
from egress_proxy.net.poller import Poller
from egress_proxy.net.relay import MAX_PIPES, PipePool
from egress_proxy.net.resolver import Resolver
from egress_proxy.observe.audit import AuditLog
from egress_proxy.observe.metrics import Metrics

#: Pipes, files, the admin port's connections, the name servers' sockets.
_OTHER_DESCRIPTORS: Final = 2 * MAX_PIPES + 64 + 48


class Worker:
    """What all connections of a process share."""

    def __init__(
        self, poller: Poller, resolver: Resolver, audit: AuditLog, metrics: Metrics, config: Config
    ) -> None:
        self.poller = poller
        self.resolver = resolver
        self.audit = audit
        self.metrics = metrics
        self.dialer = Dialer(poller)
        self.pipes = PipePool()
        self.listening: tuple[SocketAddress, ...] = ()
        """Where the proxy and its admin port listen."""
        self.own_ports: frozenset[int] = frozenset()
        """Their ports."""
        self.credentials = Credentials({}, poller.loop)
        self.draining = False
        # Unique among processes, and cheap: random once, then counted.
        prefix, counter = os.urandom(5).hex(), itertools.count(1)
        self.pseudonym = b"egress-proxy-" + prefix[:8].encode()
        """Its name in Via (RFC 9110 §7.6.3), by which it knows a request that comes back."""
        self.request_id: Callable[[], str] = lambda: f"{prefix}{next(counter):06x}"
        self.adopt(config, 1)

    def adopt(self, config: Config, generation: int) -> None:
        """Decide by this configuration from the next request head on."""
        self.config = config
        self.generation = generation
        addresses.forget()
        self.credentials.adopt(config.credentials.users if config.credentials else {})
        self.head_limits = HeadLimits(config.limits.head_bytes, config.limits.head_fields)
        #: Of clients, at once: as configured, or what the limit of descriptors carries.
        self.max_connections = min(config.limits.connections, _connections_for_descriptors())

    def listens_on(self, *addresses: SocketAddress) -> None:
        """Nobody is connected to these: the way would lead through the proxy to the proxy."""
        self.listening = addresses
        self.own_ports = frozenset(address.port for address in addresses)

    def conclude(self, record: Record, started: float) -> None:
        """Log and count a request that has ended."""
        record.duration_ms = milliseconds(monotonic() - started)
        self.audit.write(record)
        self.metrics.finished(record)

    def close(self, fd: int) -> None:
        """Close a client's connection."""
        self.metrics.connections_active -= 1
        self.poller.close(fd)


def milliseconds(seconds: float) -> float:
    """As durations stand in the log: to the microsecond."""
    return round(seconds * 1000, 3)


def _connections_for_descriptors() -> int:
    """How many client connections the limit of descriptors carries, each with one to its origin."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max((limit - _OTHER_DESCRIPTORS) // 2, 1)
