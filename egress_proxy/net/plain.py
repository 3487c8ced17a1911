"""Absolute-form HTTP: a request to its origin, its answer to the client, and what becomes of both connections."""

from __future__ import annotations

import socket

from egress_proxy.config.model import Config
from egress_proxy.core import reasons
from egress_proxy.core.decide import Decision
from egress_proxy.core.http1 import Framing, ProxyRequest
from egress_proxy.core.identity import Identity
from egress_proxy.core.reason import Event
from egress_proxy.core.record import Record
from egress_proxy.net.client import Client, Next
from egress_proxy.net.connect import begin_tunnel
from egress_proxy.net.forward import Exchange
from egress_proxy.net.poller import Interrupted
from egress_proxy.net.pool import Key
from egress_proxy.net.reach import request_head
from egress_proxy.net.refuse import refuse
from egress_proxy.net.revocation import Permit, reason_to_revoke
from egress_proxy.net.worker import Worker

#: Ends of a kept connection that an origin may bring about at any time (RFC 9112 §9.3.1).
_STALE = frozenset({reasons.ORIGIN_CLOSED, reasons.ORIGIN_RESET})
# Plain names: looking a member up in its Enum is a Python call in 3.11.
_NO_BODY, _ALLOWED, _REQUEST = Framing.NONE, Event.ALLOWED, Next.REQUEST
#: Schemes that log in a connection, not a request.
_BY_CONNECTION = (b"ntlm", b"negotiate")


def pool_key(
    worker: Worker, config: Config, decision: Decision, request: ProxyRequest, identity: Identity
) -> Key | None:
    """Among which connections that of a request belongs; None where none is kept.

    Those of other policies and users are others', and so are a parent proxy's. Nor is one kept that has carried a body,
    or a wish to switch: an origin that passes over either would take what follows for the next request. And NTLM and
    Negotiate log a connection in, not a request (RFC 4559 §6).
    """
    if (
        request.framing is not _NO_BODY
        or request.upgrade is not None
        or decision.parent is not None
        or not worker.pool.keeps
        or worker.draining
    ):
        return None
    for value in request.section.known.get(b"authorization", ()):
        if value[:9].lower().startswith(_BY_CONNECTION):
            return None
    destination = request.destination
    return (
        config.policy.applicable(identity),
        identity.user,
        destination.host.text,
        destination.port,
    )


async def serve_plain(
    worker: Worker,
    client: Client,
    origin: socket.SocketType,
    config: Config,
    decision: Decision,
    request: ProxyRequest,
    permit: Permit,
    record: Record,
    key: Key | None,
    *,
    kept: bool,
) -> Next | None:
    """Send the request on and its answer back; None where a kept connection had come to its end, and nothing was said.

    ``key`` says among which connections the origin's may wait for another request; ``kept``, that it has done so
    before.
    Raises ConnectionError, TimeoutError, Interrupted.
    """
    client.watch()
    early, client.buffer = client.buffer, b""
    parent = decision.parent
    head = request_head(worker, config, parent, request, record.client, keep_alive=key is not None)
    exchange = Exchange(
        client,
        origin.fileno(),
        request,
        head,
        early,
        permit.admission,
        to_parent=parent is not None,
        # The pool has looked. Of one that was dialled just now, the edge that told so may have told more.
        silent=kept,
    )
    taken_over = False
    try:
        failure = await exchange.run(
            worker.head_limits,
            config.timeouts,
            keep_alive=request.keep_alive and not worker.draining,
        )
        if failure is None and exchange.switching is not None:
            # From here on the tunnel closes the origin's connection.
            taken_over = True
            return await _switch(worker, client, origin, config, permit, record, exchange)
        # What is for another policy, or nobody, is not kept.
        if (
            exchange.reusable
            and key is not None
            and worker.config is config
            and not worker.draining
        ):
            taken_over = True
            worker.pool.give(key, origin, permit.address or "")
    finally:
        client.strand.permit = None
        if not taken_over:
            worker.poller.close(origin.detach())
        # A tunnel's line says what the tunnel saw, and may have been written by now.
        if exchange.switching is None:
            record.status = exchange.status
            record.bytes_sent, record.bytes_received = exchange.sent, exchange.received
    if failure is None:
        client.buffer = exchange.rest
        record.conclude(_ALLOWED, None)
        return _REQUEST if exchange.keep_alive else Next.LINGER
    if kept and exchange.unheard and failure in _STALE:
        client.buffer = early
        return None
    if exchange.status is None and failure is not reasons.CLIENT_ABORTED:
        return await refuse(worker, client, record, failure, None)
    record.conclude(failure.event, failure)
    client.break_off()
    return Next.CLOSE


async def _switch(
    worker: Worker,
    client: Client,
    origin: socket.SocketType,
    config: Config,
    permit: Permit,
    record: Record,
    exchange: Exchange,
) -> Next:
    """Hand on the origin's 101, and leave both connections to a tunnel (RFC 9110 §7.8)."""
    assert exchange.switching is not None  # noqa: S101 - or there is nothing to switch to
    record.status = 101
    client.buffer = exchange.rest
    begun = False
    try:
        await client.send(exchange.switching, config.timeouts.idle)
        # Whoever looks for permissions to take back may have begun before there was a tunnel, and so never see it.
        if reason_to_revoke(worker, config, permit) is not None:
            raise Interrupted(reasons.POLICY_REVOKED)
        begin_tunnel(
            *(worker, client, origin, config, permit, record),
            client_readable=True,
            origin_readable=True,
            received=exchange.received,
        )
        begun = True
    finally:
        if not begun:
            worker.poller.close(origin.detach())
    return Next.NOTHING
