"""The audit record: what one line of the log says about one request.

The fields stand in the order in which the line shows them and are left out while they are None. A record is filled in
while the request goes through the story of :mod:`egress_proxy.net.session`, and written once, at its end.
"""

from __future__ import annotations

import msgspec

from egress_proxy.core.reason import Event, Reason
from egress_proxy.core.reasons import POLICY_REVOKED


class Record(msgspec.Struct, omit_defaults=True):
    """One request. Never holds credentials, a query string or a body."""

    timestamp: str = ""
    level: str = ""
    event: str = ""
    request_id: str = ""
    client: str = ""
    tenant: str | None = None
    """Whom the request is charged to, by the policy that decided."""
    user: str | None = None
    """Whose credentials were right. A name that was not verified may be anything, a password too."""
    method: str | None = None
    host: str | None = None
    port: int | None = None
    path: str | None = None
    status: int | None = None
    code: str | None = None
    reason: str | None = None
    contract: str | None = None
    """What was wrong with the contract headers of a request that went on all the same, as a reason's name."""
    policy: str | None = None
    rule: str | None = None
    generation: int | None = None
    sni: str | None = None
    """The host that the tunnel's TLS handshake names."""
    tls_version: str | None = None
    """The newest version that the handshake offers."""
    alpn: str | None = None
    """The protocols that the handshake offers, separated by commas."""
    address: str | None = None
    """Dialled; of a refused destination, the one that it was refused for."""
    parent: str | None = None
    """The parent proxy that the request went to, as ``host:port``."""
    cname: str | None = None
    """The name that the host is an alias of, at the end of the chain."""
    dns: str | None = None
    """Where the addresses came from: ``hit``, ``miss``, ``stale`` or ``hosts``."""
    dns_ms: float | None = None
    connect_ms: float | None = None
    attempts: int | None = None
    """Addresses that were dialled, where it was more than one."""
    failed: tuple[str, ...] | None = None
    """Which of them could not be reached, and why, as ``address reason``: the first few."""
    duration_ms: float | None = None
    bytes_sent: int | None = None
    bytes_received: int | None = None

    def conclude(self, event: Event, reason: Reason | None) -> None:
        """Set how the request ended.

        ``WOULD_DENY`` is kept, for in audit mode that is what the line is for, unless it was refused or revoked.
        """
        if (
            self.event
            and self.event == Event.WOULD_DENY
            and not (event is Event.DENIED or reason is POLICY_REVOKED)
        ):
            return
        self.event = event
        if reason is not None:
            self.reason = reason.name
            self.code = reason.code
