"""The story of a client connection.

Bytes → head → who asks → destination → decision → vetted address → dial → relay → record.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from time import monotonic
from typing import Final

from msgspec.structs import replace

from egress_proxy.config.model import Config, Credentials
from egress_proxy.core import reason as reasons
from egress_proxy.core.answer import refusal
from egress_proxy.core.challenge import credentials_would_help
from egress_proxy.core.decide import decide
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import (
    Framing,
    ProxyRequest,
    has_passed,
    parse_request,
)
from egress_proxy.core.policy import Mode
from egress_proxy.core.reason import Code, Event, Reason
from egress_proxy.core.record import Record
from egress_proxy.identity.credentials import MAX_WAIT, Refused
from egress_proxy.net.client import Client, Next
from egress_proxy.net.connect import serve_connect
from egress_proxy.net.forward import Exchange
from egress_proxy.net.parent import Unreached
from egress_proxy.net.poller import Interrupted, Strand
from egress_proxy.net.reach import reach, request_head
from egress_proxy.net.revocation import Permit, reason_to_revoke
from egress_proxy.net.worker import Worker
from egress_proxy.observe.events import log

#: Requests of one client after which the others have their turn.
_FAIR_SHARE: Final = 16


async def serve_client(worker: Worker, strand: Strand, fd: int, address: str) -> None:
    """Serve one client connection from accept to close, or until a tunnel takes it over."""
    worker.metrics.connections_active += 1
    client = Client(strand, fd, address)
    after = Next.CLOSE
    try:
        for number in itertools.count(1):
            if number % _FAIR_SHARE == 0:
                await strand.turn()
            record = Record(
                request_id=worker.request_id(), client=address, generation=worker.generation
            )
            after = await _serve_request(worker, client, record)
            if after is Next.NOTHING:
                return
            # A connection that ends without a request has nothing to tell.
            if record.event:
                worker.conclude(record, client.started)
            if after is not Next.REQUEST:
                break
        if after is Next.LINGER:
            await client.linger()
    except (OSError, TimeoutError, Interrupted):
        pass  # the client is gone, or has had its time
    finally:
        if after is not Next.NOTHING:
            worker.close(client.fd)


async def _serve_request(worker: Worker, client: Client, record: Record) -> Next:
    """One request: its head, the decision about it, and what follows from that."""
    try:
        head = await client.read_head(
            worker.head_limits, worker.config.timeouts, draining=worker.draining
        )
        if head is None:
            return Next.CLOSE
        # From here on one configuration holds, whatever is loaded meanwhile.
        config, record.generation = worker.config, worker.generation
        request = parse_request(head, worker.head_limits)
        destination = request.destination
        record.method, record.host, record.port = (
            request.method,
            destination.host.text,
            destination.port,
        )
        if not request.is_connect:
            record.path = request.path.partition(b"?")[0].decode("ascii")
        if worker.draining:
            return await _refuse(worker, client, record, reasons.DRAINING, request)
        # Looked for in the whole head first, which costs next to nothing.
        if worker.pseudonym in head and has_passed(request, worker.pseudonym):
            return await _refuse(worker, client, record, reasons.PROXY_LOOP, request)

        identity, stamp = client.identity, None
        if config.credentials is not None:
            user, why, detail = await _who_asks(worker, client, config.credentials, request)
            if user is not None:
                identity, record.user = replace(identity, user=user), user
                stamp = worker.credentials.stamp(user)
            elif why is not None:
                if config.policy.mode is not Mode.AUDIT or why.code is not Code.UNAUTHORIZED:
                    return await _refuse(worker, client, record, why, request, detail)
                record.conclude(Event.WOULD_DENY, why)

        decision = decide(config.policy, identity, destination)
        if decision.match is not None:
            record.policy, record.rule = decision.match.policy, decision.match.text
        denial = decision.denial
        if denial is not None:
            if config.credentials is not None and credentials_would_help(
                config.policy, identity, destination, decision
            ):
                denial = reasons.PROXY_CREDENTIALS_REQUIRED
            if not decision.allowed:
                return await _refuse(worker, client, record, denial, request)
            record.conclude(Event.WOULD_DENY, denial)

        origin = await reach(worker, client.strand, config, decision, request, record)
        if isinstance(origin, Unreached):
            return await _refuse(worker, client, record, origin.reason, request, origin.detail)
        verify = decision.tls and request.is_connect
        permit = Permit(
            *(identity, destination, record.address if decision.parent is None else None),
            verified=verify or not request.is_connect,
            stamp=stamp,
        )
        revoked = reason_to_revoke(worker, config, permit)
        if revoked is not None:
            worker.poller.close(origin.detach())
            # What allowed it is no longer there; the reason and the generation are the new policy's.
            record.generation, record.policy, record.rule = worker.generation, None, None
            return await _refuse(worker, client, record, revoked, request)
        client.strand.permit = permit
        if request.is_connect:
            return await serve_connect(
                worker, client, origin, config, permit, record, verify=verify
            )
        head = request_head(worker, config, decision.parent, request)
        return await _forward(worker, client, origin, config, request, head, record)
    except HeadError as error:
        return await _refuse(worker, client, record, error.reason, None, error.detail)
    except Interrupted as stop:
        if record.status is None:
            _tell(client, record, stop.reason)
        else:
            client.break_off()
        record.conclude(Event.CLOSED, stop.reason)
    except (ConnectionError, TimeoutError):
        record.conclude(Event.FAILED, reasons.CLIENT_ABORTED)
    except Exception:  # noqa: BLE001 - whatever it is, nothing goes through, and the client is told
        log.error("defect", request_id=record.request_id, exc_info=True)
        if record.status is None:
            return await _refuse(worker, client, record, reasons.INTERNAL_ERROR, None)
        record.conclude(Event.FAILED, reasons.INTERNAL_ERROR)
    return Next.CLOSE


async def _who_asks(
    worker: Worker, client: Client, settings: Credentials, request: ProxyRequest
) -> tuple[str | None, Reason | None, str | None]:
    """The user whose credentials a request shows; or why there is none, with a detail; or nothing, for anybody may ask.

    Raises HeadError.
    """
    shown = [value for lower, _, value in request.fields if lower == b"proxy-authorization"]
    if not shown:
        return None, reasons.PROXY_CREDENTIALS_REQUIRED if settings.required else None, None
    if len(shown) > 1:
        # As with two Host fields. Not 407: other credentials beside these would not help.
        raise HeadError(reasons.DUPLICATE_CREDENTIALS, "one is needed")
    (value,) = shown
    verdict = worker.credentials.known(value, worker.poller.now)
    if verdict is None:
        check = worker.credentials.check(value, client.identity.client)
        try:
            # It keeps to its time by itself; the deadline is there in case it should not.
            verdict = await client.strand.result_of(check, monotonic() + MAX_WAIT + 5)
        except TimeoutError:
            verdict = Refused.OVERLOADED
        # Between a verdict and this strand's turn, another table may have come.
        if isinstance(verdict, str) and worker.credentials.known(value, monotonic()) != verdict:
            verdict = Refused.WRONG
    if isinstance(verdict, str):
        return verdict, None, None
    if verdict is Refused.OVERLOADED:
        return None, reasons.CREDENTIALS_UNCHECKED, None
    detail = verdict.value if verdict is Refused.MALFORMED else None
    return None, reasons.PROXY_CREDENTIALS_WRONG, detail


async def _forward(
    worker: Worker,
    client: Client,
    origin: socket.SocketType,
    config: Config,
    request: ProxyRequest,
    head: bytes,
    record: Record,
) -> Next:
    """Send the request on and its answer back."""
    client.watch_output()
    early, client.buffer = client.buffer, b""
    to_parent = record.parent is not None
    exchange = Exchange(
        *(client.strand, client.fd, origin.fileno(), request, head, early), to_parent=to_parent
    )
    try:
        failure = await exchange.run(
            worker.head_limits,
            config.timeouts,
            keep_alive=request.keep_alive and not worker.draining,
        )
    finally:
        client.strand.permit = None
        worker.poller.close(origin.detach())
        record.status = exchange.status
        record.bytes_sent, record.bytes_received = exchange.sent, exchange.received
    if failure is None:
        client.buffer = exchange.rest
        record.conclude(Event.ALLOWED, None)
        return Next.REQUEST if exchange.keep_alive else Next.LINGER
    if exchange.status is None and failure is not reasons.CLIENT_ABORTED:
        return await _refuse(worker, client, record, failure, None)
    record.conclude(failure.event, failure)
    client.break_off()
    return Next.CLOSE


def _tell(client: Client, record: Record, reason: Reason) -> None:
    """Answer with a refusal as far as that needs no waiting."""
    record.status = reason.status
    with contextlib.suppress(ConnectionError):
        client.write(_refusal(record, reason))


async def _refuse(
    worker: Worker,
    client: Client,
    record: Record,
    reason: Reason,
    request: ProxyRequest | None,
    detail: str | None = None,
) -> Next:
    """Answer with a refusal. Without a request the connection cannot go on."""
    record.conclude(reason.event, reason)
    record.status = reason.status
    # A body that nobody reads would be taken for the next request.
    keep_alive = (
        request is not None
        and request.keep_alive
        and request.framing is Framing.NONE
        and not worker.draining
    )
    answer = _refusal(record, reason, detail, keep_alive=keep_alive)
    try:
        await client.send(answer, worker.config.timeouts.head)
    except (ConnectionError, TimeoutError, Interrupted):
        return Next.CLOSE
    if keep_alive:
        return Next.REQUEST
    # Who has sent a whole request and nothing behind it waits for the answer.
    waits = request is not None and request.framing is Framing.NONE and not client.buffer
    return Next.CLOSE if waits else Next.LINGER


def _refusal(
    record: Record, reason: Reason, detail: str | None = None, *, keep_alive: bool = False
) -> bytes:
    return refusal(
        reason,
        detail=detail,
        host=record.host,
        port=record.port,
        request_id=record.request_id,
        keep_alive=keep_alive,
        method=record.method or "",
    )
