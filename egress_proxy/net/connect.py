"""CONNECT: the 200, the check of what the client begins with, and the tunnel."""

from __future__ import annotations

import socket
from typing import Final

from egress_proxy.config.model import Config
from egress_proxy.core import reasons
from egress_proxy.core.reason import Event
from egress_proxy.core.record import Record
from egress_proxy.limits.limiter import Admission
from egress_proxy.net.client import Client, Next
from egress_proxy.net.hello import Opening
from egress_proxy.net.poller import READABLE, Interrupted
from egress_proxy.net.relay import Inspector, Tunnel
from egress_proxy.net.revocation import Permit, reason_to_revoke
from egress_proxy.net.worker import Worker

_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def serve_connect(
    worker: Worker,
    client: Client,
    origin: socket.SocketType,
    config: Config,
    permit: Permit,
    record: Record,
    *,
    verify: bool,
) -> Next:
    """Answer 200, see what the client begins with, and leave both connections to a tunnel.

    Raises ConnectionError, TimeoutError, Interrupted.
    """
    timeouts = config.timeouts
    # An origin that speaks first may have spoken. What a client said to which nobody has listened yet is told later.
    origin_readable = bool(client.strand.edges & READABLE)
    client_readable = client.watched
    inspector: Inspector | None = None
    taken_over = False
    try:
        rest = client.write(_ESTABLISHED)
        if rest or verify:
            try:
                if rest:
                    await client.send(rest, timeouts.idle)
                    origin_readable = client_readable = True
                record.status = 200
                if verify:
                    opening = Opening(worker, client, origin, config, permit, record)
                    after = await opening.verify()
                    if after is not Next.NOTHING:
                        return after
                    origin_readable = origin_readable or bool(opening.origin_edges)
                    client_readable = opening.client_readable
                    inspector = None if opening.over else opening
                # Whoever looked for permissions to take back meanwhile may have passed this one by.
                if reason_to_revoke(worker, config, permit) is not None:
                    raise Interrupted(reasons.POLICY_REVOKED)
            except Interrupted as stop:
                # The client has a 200, or a half: nothing else can be said after it.
                client.break_off()
                record.conclude(Event.CLOSED, stop.reason)
                return Next.CLOSE
        record.status = 200
        begin_tunnel(
            *(worker, client, origin, config, permit, record),
            client_readable=client_readable,
            origin_readable=origin_readable,
            inspector=inspector,
        )
        taken_over = True
        return Next.NOTHING
    finally:
        if not taken_over:
            worker.poller.close(origin.detach())


def begin_tunnel(
    worker: Worker,
    client: Client,
    origin: socket.SocketType,
    config: Config,
    permit: Permit,
    record: Record,
    *,
    client_readable: bool,
    origin_readable: bool,
    inspector: Inspector | None = None,
    received: int = 0,
) -> None:
    """Leave both connections to a tunnel, with what is in the client's buffer.

    ``received`` are bytes of the origin's that the client has had already.

    Raises OSError; the origin's connection then is still the caller's.
    """
    worker.metrics.tunnels_active += 1
    tunnel = Tunnel(
        worker.poller,
        worker.pipes,
        client.fd,
        origin,
        idle_time=config.timeouts.idle,
        lifetime=config.timeouts.lifetime,
        on_end=_Ending(worker, client, record, permit.admission, received),
        permit=permit,
        inspector=inspector,
        admission=permit.admission,
    )
    early, client.buffer = client.buffer, b""
    try:
        tunnel.start(
            early,
            watched=client.watched,
            client_readable=client_readable,
            origin_readable=origin_readable,
        )
    except OSError:
        # The system has no room to watch one more. The tunnel has not begun, so it does not end by itself.
        worker.metrics.tunnels_active -= 1
        raise


class _Ending:
    """Records how a tunnel ended, and closes its connections.

    It lives as long as the tunnel, so it holds what will be needed, and not the client's whole story.
    """

    __slots__ = ("_admission", "_client", "_fd", "_received", "_record", "_started", "_worker")

    def __init__(
        self,
        worker: Worker,
        client: Client,
        record: Record,
        admission: Admission | None,
        received: int,
    ) -> None:
        self._worker = worker
        self._fd, self._client, self._started = client.fd, client.key, client.started
        self._record = record
        self._admission = admission
        self._received = received

    def __call__(self, tunnel: Tunnel, error: Exception | None) -> None:
        worker, record, origin = self._worker, self._record, tunnel.origin
        worker.metrics.tunnels_active -= 1
        if self._admission is not None:
            self._admission.release()
        record.bytes_sent, record.bytes_received = tunnel.sent, tunnel.received + self._received
        if isinstance(error, Interrupted):
            record.conclude(error.reason.event, error.reason)
        elif error is not None:
            over = tunnel.end <= worker.poller.now
            why = reasons.LIFETIME_EXCEEDED if over else reasons.IDLE_TIMEOUT
            record.conclude(Event.CLOSED, why)
        elif tunnel.broken == origin.fileno():
            record.conclude(Event.FAILED, reasons.ORIGIN_RESET)
        else:
            record.conclude(Event.ALLOWED, None)
        worker.conclude(record, self._started)
        worker.poller.close(origin.detach())
        worker.close(self._fd, self._client)
