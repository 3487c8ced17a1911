"""The story of a client connection.

Bytes → head → who asks → destination → decision → vetted address → dial → relay → record.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from enum import Enum
from functools import partial
from time import monotonic
from typing import Final

from msgspec.structs import replace

from egress_proxy.config.model import Config, Credentials
from egress_proxy.core import reason as reasons
from egress_proxy.core.addresses import VettedAddress
from egress_proxy.core.answer import refusal
from egress_proxy.core.challenge import credentials_would_help
from egress_proxy.core.decide import Decision, decide, vet_addresses
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import Framing, ProxyRequest, parse_request
from egress_proxy.core.names import Host
from egress_proxy.core.policy import Mode
from egress_proxy.core.reason import Code, Event, Reason
from egress_proxy.core.record import Record
from egress_proxy.identity.credentials import MAX_WAIT, Refused
from egress_proxy.net.client import Client
from egress_proxy.net.dialer import dial
from egress_proxy.net.forward import Exchange
from egress_proxy.net.poller import READABLE, Interrupted, Strand
from egress_proxy.net.relay import Tunnel
from egress_proxy.net.resolver import Answer
from egress_proxy.net.revocation import Permit, reason_to_revoke
from egress_proxy.net.worker import Worker, milliseconds
from egress_proxy.observe.events import log

#: Requests of one client after which the others have their turn.
_FAIR_SHARE: Final = 16
_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


class _Next(Enum):
    """What becomes of the client's connection after a request."""

    REQUEST = "another request may come"
    CLOSE = "it is closed at once"
    LINGER = "it is closed when the client has had time to read its answer"
    NOTHING = "a tunnel has it now"


async def serve_client(worker: Worker, strand: Strand, fd: int, address: str) -> None:
    """Serve one client connection from accept to close, or until a tunnel takes it over."""
    worker.metrics.connections_active += 1
    client = Client(strand, fd, address)
    after = _Next.CLOSE
    try:
        for number in itertools.count(1):
            if number % _FAIR_SHARE == 0:
                await strand.turn()
            record = Record(
                request_id=worker.request_id(), client=address, generation=worker.generation
            )
            after = await _serve_request(worker, client, record)
            if after is _Next.NOTHING:
                return
            # A connection that ends without a request has nothing to tell.
            if record.event:
                worker.conclude(record, client.started)
            if after is not _Next.REQUEST:
                break
        if after is _Next.LINGER:
            await client.linger()
    except (OSError, TimeoutError, Interrupted):
        pass  # the client is gone, or has had its time
    finally:
        if after is not _Next.NOTHING:
            worker.close(client.fd)


async def _serve_request(worker: Worker, client: Client, record: Record) -> _Next:
    """One request: its head, the decision about it, and what follows from that."""
    try:
        head = await client.read_head(
            worker.head_limits, worker.config.timeouts, draining=worker.draining
        )
        if head is None:
            return _Next.CLOSE
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
            record.policy, record.rule = decision.match.policy, str(decision.match.rule)
        denial = decision.denial
        if denial is not None:
            if config.credentials is not None and credentials_would_help(
                config.policy, identity, destination, decision
            ):
                denial = reasons.PROXY_CREDENTIALS_REQUIRED
            if not decision.allowed:
                return await _refuse(worker, client, record, denial, request)
            record.conclude(Event.WOULD_DENY, denial)

        addresses = _known_addresses(worker, destination.host)
        if addresses is None:
            addresses = await _resolve(worker, client, config, destination.host, record)
        if isinstance(addresses, Reason):
            return await _refuse(worker, client, record, addresses, request)
        vetted = _vet(decision, addresses, destination.port, record)
        if isinstance(vetted, Reason):
            return await _refuse(worker, client, record, vetted, request)

        before = monotonic()
        dialled = await dial(client.strand, vetted, config.timeouts)
        record.connect_ms = milliseconds(monotonic() - before)
        if isinstance(dialled, Reason):
            return await _refuse(worker, client, record, dialled, request)
        origin, record.address = dialled[0], dialled[1].ip
        permit = Permit(identity, destination, record.address, stamp)
        revoked = reason_to_revoke(worker, config, permit)
        if revoked is not None:
            worker.poller.close(origin.detach())
            # What allowed it is no longer there; the reason and the generation are the new policy's.
            record.generation, record.policy, record.rule = worker.generation, None, None
            return await _refuse(worker, client, record, revoked, request)
        client.strand.permit = permit
        if request.is_connect:
            return await _tunnel(worker, client, origin, config, permit, record)
        return await _forward(worker, client, origin, config, request, record)
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
    return _Next.CLOSE


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


def _known_addresses(worker: Worker, host: Host) -> Answer | None:
    """The addresses behind a host as far as they are known without asking."""
    return (
        worker.resolver.cached(host.text, worker.poller.now)
        if host.address is None
        else (host.text,)
    )


async def _resolve(
    worker: Worker, client: Client, config: Config, host: Host, record: Record
) -> Answer:
    """Ask for the addresses behind a name."""
    before = monotonic()
    question = worker.resolver.ask(host.text)
    try:
        # The resolver keeps to its time by itself; the deadline is there in case it should not.
        answer = await client.strand.result_of(question, before + config.dns.timeout + 1)
    except TimeoutError:
        answer = reasons.DNS_TIMEOUT
    record.dns_ms = milliseconds(monotonic() - before)
    if isinstance(answer, Reason):
        worker.metrics.dns_failed(answer.name.removeprefix("dns_"))
    return answer


def _vet(
    decision: Decision, addresses: tuple[str, ...], port: int, record: Record
) -> tuple[VettedAddress, ...] | Reason:
    """Pass the addresses through the gate."""
    vetting, prohibition = vet_addresses(decision, addresses, port)
    if prohibition is not None:
        if not vetting.passed:
            # Not dialled, but whoever reads the line wants to know where the name led.
            record.address = next(iter(vetting.prohibited), None)
            return prohibition
        # A rule's denial says more.
        if not record.event:
            record.conclude(Event.WOULD_DENY, prohibition)
    return vetting.passed


async def _tunnel(
    worker: Worker,
    client: Client,
    origin: socket.SocketType,
    config: Config,
    permit: Permit,
    record: Record,
) -> _Next:
    """Answer 200 and leave both connections to a tunnel."""
    timeouts = config.timeouts
    # An origin that speaks first may have spoken.
    readable = bool(client.strand.edges & READABLE)
    try:
        if rest := client.write(_ESTABLISHED):
            readable = True
            await client.send(rest, timeouts.idle)
            # Whoever looked for permissions to take back meanwhile may have passed this one by.
            if reason_to_revoke(worker, config, permit) is not None:
                raise Interrupted(reasons.POLICY_REVOKED)
    except Interrupted as stop:
        # Half of a 200 may be on its way: nothing else can be said after it.
        worker.poller.close(origin.detach())
        client.break_off()
        record.conclude(Event.CLOSED, stop.reason)
        return _Next.CLOSE
    except BaseException:
        worker.poller.close(origin.detach())
        raise
    record.status = 200
    worker.metrics.tunnels_active += 1
    tunnel = Tunnel(
        worker.poller,
        worker.pipes,
        client.fd,
        origin,
        idle_time=timeouts.idle,
        lifetime=timeouts.lifetime,
        on_end=partial(_end_tunnel, worker, client, origin, record),
        permit=permit,
    )
    early, client.buffer = client.buffer, b""
    try:
        tunnel.start(early, watched=client.watched, readable=readable)
    except OSError:
        # The system has no room to watch one more. The tunnel has not begun, so it does not end by itself.
        worker.metrics.tunnels_active -= 1
        worker.poller.close(origin.detach())
        raise
    return _Next.NOTHING


def _end_tunnel(
    worker: Worker,
    client: Client,
    origin: socket.SocketType,
    record: Record,
    tunnel: Tunnel,
    error: Exception | None,
) -> None:
    """Record how a tunnel ended and close its connections."""
    worker.metrics.tunnels_active -= 1
    record.bytes_sent, record.bytes_received = tunnel.sent, tunnel.received
    if isinstance(error, Interrupted):
        record.conclude(Event.CLOSED, error.reason)
    elif error is not None:
        over = tunnel.end <= worker.poller.now
        record.conclude(Event.CLOSED, reasons.LIFETIME_EXCEEDED if over else reasons.IDLE_TIMEOUT)
    elif tunnel.broken == origin.fileno():
        record.conclude(Event.FAILED, reasons.ORIGIN_RESET)
    else:
        record.conclude(Event.ALLOWED, None)
    worker.conclude(record, client.started)
    worker.poller.close(origin.detach())
    worker.close(client.fd)


async def _forward(
    worker: Worker,
    client: Client,
    origin: socket.SocketType,
    config: Config,
    request: ProxyRequest,
    record: Record,
) -> _Next:
    """Send the request on and its answer back."""
    client.watch_output()
    early, client.buffer = client.buffer, b""
    exchange = Exchange(client.strand, client.fd, origin.fileno(), request, early)
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
        return _Next.REQUEST if exchange.keep_alive else _Next.LINGER
    if exchange.status is None and failure is not reasons.CLIENT_ABORTED:
        return await _refuse(worker, client, record, failure, None)
    record.conclude(failure.event, failure)
    client.break_off()
    return _Next.CLOSE


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
) -> _Next:
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
        return _Next.CLOSE
    if keep_alive:
        return _Next.REQUEST
    # Who has sent a whole request and nothing behind it waits for the answer.
    waits = request is not None and request.framing is Framing.NONE and not client.buffer
    return _Next.CLOSE if waits else _Next.LINGER


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
