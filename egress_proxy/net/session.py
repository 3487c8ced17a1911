"""The story of a client connection: bytes → head → destination → decision → vetted address → dial → relay → record."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from egress_proxy.config.model import Config
from egress_proxy.core import reason as reasons
from egress_proxy.core.addresses import VettedAddress
from egress_proxy.core.answer import refusal
from egress_proxy.core.decide import Decision, decide, vet_addresses
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import END_OF_HEAD, Framing, HeadLimits, ProxyRequest, check_partial, parse_request
from egress_proxy.core.reason import Event, Reason
from egress_proxy.core.record import Record
from egress_proxy.net.dialer import dial
from egress_proxy.net.forward import Exchange
from egress_proxy.net.poller import READABLE, WRITABLE, Interrupted, Poller, Strand
from egress_proxy.net.relay import PipePool, Tunnel
from egress_proxy.net.resolver import Resolver
from egress_proxy.observe.audit import AuditLog
from egress_proxy.observe.events import log
from egress_proxy.observe.metrics import Metrics

_READ = 64 * 1024
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
#: Seconds and bytes for which a refused client may go on sending, so that a reset does not destroy its answer.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Worker:
    """What all connections of a process share."""

    poller: Poller
    resolver: Resolver
    pipes: PipePool
    audit: AuditLog
    metrics: Metrics
    config: Config
    generation: int = 1
    draining: bool = False
    request_id: Callable[[], str] = lambda: ""

    def __post_init__(self) -> None:
        prefix, counter = os.urandom(5).hex(), itertools.count(1)
        self.request_id = lambda: f"{prefix}{next(counter):06x}"


class _Client:
    """One client connection and what has been read from it and not used yet."""

    __slots__ = ("address", "buffer", "fd", "strand", "worker")

    def __init__(self, worker: Worker, strand: Strand, fd: int, address: str) -> None:
        self.worker = worker
        self.strand = strand
        self.fd = fd
        self.address = address
        self.buffer = b""


async def serve_client(worker: Worker, strand: Strand, fd: int, address: str) -> None:
    """Serve one client connection from accept to close."""
    client = _Client(worker, strand, fd, address)
    worker.metrics.connections_active += 1
    worker.poller.watch(fd, strand.wake)
    try:
        first = True
        while await _serve_request(client, first):
            first = False
    except (OSError, TimeoutError, Interrupted):
        pass
    finally:
        worker.metrics.connections_active -= 1
        worker.poller.close(fd)


async def _serve_request(client: _Client, first: bool) -> bool:
    """One request; True when another may follow."""
    worker, config = client.worker, client.worker.config
    limits = HeadLimits(config.limits.head_bytes, config.limits.head_fields)
    started = worker.poller.loop.time()
    record = Record(request_id=worker.request_id(), client=client.address)
    request: ProxyRequest | None = None
    try:
        head = await _read_head(client, limits, first)
        if head is None:
            return False
        config = worker.config
        started = worker.poller.now
        record.generation = worker.generation
        request = parse_request(head, limits)
        record.method = request.method
        record.host, record.port = request.destination.host.text, request.destination.port
        if not request.is_connect:
            record.path = request.path.partition(b"?")[0].decode("ascii")
        if worker.draining:
            return await _refuse(client, record, reasons.DRAINING, request)
        decision = decide(config.policy, client.address, request.destination)
        if decision.match is not None:
            record.policy, record.rule = decision.match.policy, str(decision.match.rule)
        if decision.denial is not None:
            record.conclude(Event.WOULD_DENY if decision.allowed else Event.DENIED, decision.denial)
        if not decision.allowed and decision.denial is not None:
            return await _refuse(client, record, decision.denial, request)
        vetted = await _vetted_addresses(client, config, request, decision, record)
        if isinstance(vetted, Reason):
            return await _refuse(client, record, vetted, request)
        before = worker.poller.loop.time()
        dialled = await dial(client.strand, vetted, config.timeouts)
        record.connect_ms = _ms(worker.poller.loop.time() - before)
        if isinstance(dialled, Reason):
            return await _refuse(client, record, dialled, request)
        origin, address = dialled
        record.address = address.ip
        try:
            if request.is_connect:
                return await _tunnel(client, origin, config, record)
            return await _forward(client, origin, config, request, record)
        finally:
            worker.poller.close(origin)
    except HeadError as error:
        record.conclude(Event.DENIED, error.reason)
        return await _refuse(client, record, error.reason, None, error.detail)
    except Interrupted as stop:
        record.conclude(Event.CLOSED, stop.reason)
        return False
    except ConnectionError:
        record.conclude(Event.FAILED, reasons.CLIENT_ABORTED)
        return False
    except Exception:
        log.error("defect", request_id=record.request_id, exc_info=True)
        record.conclude(Event.FAILED, reasons.INTERNAL_ERROR)
        return await _refuse(client, record, reasons.INTERNAL_ERROR, None)
    finally:
        if record.event:
            record.duration_ms = _ms(worker.poller.loop.time() - started)
            worker.audit.write(record)
            worker.metrics.finished(record)


async def _read_head(client: _Client, limits: HeadLimits, first: bool) -> bytes | None:
    """The next request head; None when the client has none. Raises HeadError."""
    worker, timeouts = client.worker, client.worker.config.timeouts
    now = worker.poller.loop.time()
    deadline = now + (timeouts.head if first else timeouts.keep_alive)
    strand = client.strand
    begun = bool(client.buffer)
    if begun:
        deadline = now + timeouts.head
    while (end := client.buffer.find(END_OF_HEAD)) < 0:
        check_partial(client.buffer, limits)
        try:
            data = os.read(client.fd, _READ)
        except BlockingIOError:
            strand.idle = not begun
            if strand.idle and worker.draining:
                return None
            try:
                await strand.until(READABLE, deadline)
            except TimeoutError:
                if begun or first:
                    raise HeadError(reasons.HEAD_TIMEOUT, "the head did not arrive in time") from None
                return None
            except Interrupted:
                return None
            finally:
                strand.idle = False
            continue
        except OSError:
            return None
        if not data:
            if begun:
                raise HeadError(reasons.INCOMPLETE_REQUEST, "the connection ended inside the head")
            return None
        if not begun:
            begun = True
            deadline = worker.poller.loop.time() + timeouts.head
        client.buffer += data
    head, client.buffer = client.buffer[: end + 4], client.buffer[end + 4 :]
    return head


async def _vetted_addresses(
    client: _Client, config: Config, request: ProxyRequest, decision: Decision, record: Record
) -> tuple[VettedAddress, ...] | Reason:
    """Resolve the destination and pass its addresses through the gate."""
    worker, host = client.worker, request.destination.host
    answer: tuple[str, ...] | Reason | None = (host.text,)
    if host.address is None:
        now = worker.poller.loop.time()
        answer = worker.resolver.cached(host.text, now)
        if answer is None:
            answer = await client.strand.result_of(worker.resolver.ask(host.text), now + config.dns.timeout + 1)
            record.dns_ms = _ms(worker.poller.loop.time() - now)
            if isinstance(answer, Reason):
                worker.metrics.dns_failed(answer.name.removeprefix("dns_"))
    if isinstance(answer, Reason):
        return answer
    vetting, prohibition = vet_addresses(decision, answer or (), request.destination.port)
    if prohibition is not None:
        if not vetting.passed:
            return prohibition
        if record.event != Event.WOULD_DENY:
            record.conclude(Event.WOULD_DENY, prohibition)
    return vetting.passed


async def _tunnel(client: _Client, origin: int, config: Config, record: Record) -> bool:
    worker, timeouts = client.worker, config.timeouts
    await _send(client, _ESTABLISHED, worker.poller.loop.time() + timeouts.idle)
    record.status = 200
    early, client.buffer = client.buffer, b""
    end = worker.poller.loop.time() + timeouts.lifetime
    tunnel = Tunnel(client.strand, worker.pipes, client.fd, origin, timeouts.idle, end)
    worker.metrics.tunnels_active += 1
    try:
        await tunnel.run(early)
        if tunnel.broken == origin:
            record.conclude(Event.FAILED, reasons.ORIGIN_RESET)
        else:
            record.conclude(Event.ALLOWED, None)
    except TimeoutError:
        ended = worker.poller.loop.time() >= end
        record.conclude(Event.CLOSED, reasons.LIFETIME_EXCEEDED if ended else reasons.IDLE_TIMEOUT)
    finally:
        worker.metrics.tunnels_active -= 1
        record.bytes_sent, record.bytes_received = tunnel.sent, tunnel.received
    return False


async def _forward(client: _Client, origin: int, config: Config, request: ProxyRequest, record: Record) -> bool:
    early, client.buffer = client.buffer, b""
    exchange = Exchange(client.strand, client.fd, origin, request, early)
    limits = HeadLimits(config.limits.head_bytes, config.limits.head_fields)
    try:
        keep_alive = request.keep_alive and not client.worker.draining
        failure = await exchange.run(limits, config.timeouts, keep_alive)
    except TimeoutError:
        if exchange.status is None:
            failure = reasons.ORIGIN_TIMEOUT
        else:
            record.conclude(Event.CLOSED, reasons.IDLE_TIMEOUT)
            failure = None
            exchange.keep_alive = False
    finally:
        record.status = exchange.status
        record.bytes_sent, record.bytes_received = exchange.sent, exchange.received
    if failure is not None:
        record.conclude(failure.event, failure)
        if exchange.status is None and failure is not reasons.CLIENT_ABORTED:
            client.buffer = b""
            return await _refuse(client, record, failure, request, close=True)
        return False
    client.buffer = exchange.rest
    if not record.event:
        record.conclude(Event.ALLOWED, None)
    if not exchange.keep_alive:
        await _linger(client)
    return exchange.keep_alive


async def _refuse(
    client: _Client,
    record: Record,
    reason: Reason,
    request: ProxyRequest | None,
    detail: str | None = None,
    *,
    close: bool = False,
) -> bool:
    """Answer with a refusal; True when the connection can go on."""
    worker = client.worker
    record.conclude(reason.event, reason)
    record.status = reason.status
    keep_alive = (
        not close
        and not worker.draining
        and request is not None
        and request.keep_alive
        and request.framing is Framing.NONE
    )
    answer = refusal(
        reason,
        detail=detail,
        host=record.host,
        port=record.port,
        request_id=record.request_id,
        keep_alive=keep_alive,
        method="GET" if request is None else request.method,
    )
    try:
        await _send(client, answer, worker.poller.loop.time() + worker.config.timeouts.head)
        if not keep_alive:
            await _linger(client)
    except (OSError, TimeoutError, Interrupted):
        return False
    return keep_alive


async def _send(client: _Client, data: bytes, deadline: float) -> None:
    """Write all of it. Raises OSError, TimeoutError."""
    while data:
        try:
            data = data[os.write(client.fd, data) :]
        except BlockingIOError:
            await client.strand.until(WRITABLE, deadline)


async def _linger(client: _Client) -> None:
    """End our side and read what the client still sends, for a bounded time, so that no reset destroys the answer."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, client.fd)
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return
    finally:
        sock.detach()
    deadline = client.worker.poller.loop.time() + _LINGER_SECONDS
    dropped = 0
    while dropped < _LINGER_BYTES:
        try:
            data = os.read(client.fd, _READ)
        except BlockingIOError:
            try:
                await client.strand.until(READABLE, deadline)
            except (TimeoutError, Interrupted):
                return
            continue
        except OSError:
            return
        if not data:
            return
        dropped += len(data)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
