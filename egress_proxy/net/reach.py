"""The way to a destination: its addresses, the gate, and a connection to one that passed; or a parent proxy."""

from __future__ import annotations

import contextlib
import socket
from time import monotonic

from egress_proxy.config.model import Config
from egress_proxy.core import reasons
from egress_proxy.core.addresses import VettedAddress, vet_configured
from egress_proxy.core.decide import Decision, known_addresses, vet_addresses
from egress_proxy.core.http1 import ProxyRequest, origin_request, parent_request
from egress_proxy.core.reason import Event, Reason
from egress_proxy.core.record import Record
from egress_proxy.core.upstream import Parent
from egress_proxy.net.dialer import is_local
from egress_proxy.net.parent import Unreached, open_tunnel, unreachable
from egress_proxy.net.poller import Strand
from egress_proxy.net.pool import Key
from egress_proxy.net.resolver import Answer
from egress_proxy.net.worker import Worker, milliseconds

_EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound


async def reach(
    worker: Worker,
    strand: Strand,
    config: Config,
    decision: Decision,
    request: ProxyRequest,
    record: Record,
    kept: Key | None = None,
) -> socket.SocketType | Unreached:
    """Connect to a destination that the rules allow; the socket, watched, or why there is none.

    With ``kept``, a connection of these that waits will do, to an address that has passed the gate just now. Where the
    way leads through a parent proxy, the socket is the parent's, and a tunnel through it stands. The record
    is told what happened on the way. Raises Interrupted.
    """
    parent, to = decision.parent, request.destination
    if parent is not None:
        refused = _refuse_unresolved(worker, decision, request, record)
        if refused is not None:
            return Unreached(refused)
        to, record.parent = parent.authority, str(parent)
    host, port = to.host, to.port
    if host.address is not None:
        addresses: tuple[str, ...] = (host.text,)
    else:
        # Most names are known, and a coroutine of its own would cost more than to look.
        answer = worker.resolver.cached(host.text, worker.poller.now)
        if answer is None:
            answer = await _ask(worker, strand, config, host.text, record)
        if isinstance(answer, Reason):
            return Unreached(answer) if parent is None else unreachable(answer)
        record.dns, record.cname = answer.source, answer.cname
        addresses = answer.addresses
    if parent is not None:
        return await _reach_through(worker, strand, config, parent, addresses, request, record)
    vetted = _vet(worker, decision, addresses, port, record)
    if isinstance(vetted, Reason):
        return Unreached(vetted)
    waiting = None if kept is None else worker.pool.take(kept, vetted)
    if waiting is not None:
        idle, record.address = waiting
        worker.poller.hand_over(idle.fileno(), strand.wake)
        return idle
    reached = await _dial(worker, strand, config, vetted, record)
    return Unreached(reached) if isinstance(reached, Reason) else reached


def _refuse_unresolved(
    worker: Worker, decision: Decision, request: ProxyRequest, record: Record
) -> Reason | None:
    """What the gate says about a destination whose name the parent resolves: about an address, and this machine."""
    addresses = known_addresses(request.destination)
    if not addresses:
        return None
    judged = _vet(worker, decision, addresses, request.destination.port, record)
    return judged if isinstance(judged, Reason) else None


async def _reach_through(
    worker: Worker,
    strand: Strand,
    config: Config,
    parent: Parent,
    addresses: tuple[str, ...],
    request: ProxyRequest,
    record: Record,
) -> socket.SocketType | Unreached:
    """Connect to a parent, and open the tunnel if one is asked for. Never directly instead."""
    deadline = monotonic() + config.timeouts.connect
    port = parent.authority.port
    passed = _configured(addresses, port)
    if not passed:
        return unreachable(reasons.DNS_NO_ADDRESS)
    vetted = _without_ourselves(worker, passed, record) if port in worker.own_ports else passed
    if isinstance(vetted, Reason):
        return Unreached(vetted)
    reached = await _dial(worker, strand, config, vetted, record)
    if isinstance(reached, Reason):
        return unreachable(reached)
    if not request.is_connect:
        return reached
    head = request_head(worker, config, parent, request, record.client)
    opened = False
    try:
        refused = await open_tunnel(strand, reached, head, worker.head_limits, deadline)
        opened = refused is None
    finally:
        if not opened:
            worker.poller.close(reached.detach())
    return reached if refused is None else refused


def request_head(
    worker: Worker,
    config: Config,
    parent: Parent | None,
    request: ProxyRequest,
    client: str,
    *,
    keep_alive: bool = False,
) -> bytes:
    """The request's head as it is sent on: to its origin, or to a parent with what that asks for.

    ``client`` is the client's address, which is told if the configuration says so. With ``keep_alive`` the origin is
    told that more may come.
    """
    if parent is None:
        return origin_request(
            request,
            worker.pseudonym,
            keep_alive=keep_alive,
            upgrade=request.upgrade,
            forwarded_for=config.forwarded_for,
            client=client,
        )
    credentials = None
    if parent.credentials_file:
        # Read with the configuration that named it, so it is there.
        credentials = config.parent_credentials[parent.credentials_file]
    return parent_request(
        *(request, worker.pseudonym, credentials),
        upgrade=request.upgrade,
        forwarded_for=config.forwarded_for,
        client=client,
    )


def _configured(addresses: tuple[str, ...], port: int) -> tuple[VettedAddress, ...]:
    """Those of a parent's addresses that anybody can connect to."""
    found: list[VettedAddress] = []
    for address in addresses:
        with contextlib.suppress(ValueError):
            found.append(vet_configured(address, port))
    return tuple(found)


async def _ask(worker: Worker, strand: Strand, config: Config, name: str, record: Record) -> Answer:
    """Ask for the addresses behind a name."""
    before = monotonic()
    question = worker.resolver.ask(name)
    answer: Answer
    try:
        # The resolver keeps to its time by itself; the deadline is there in case it should not.
        answer = await strand.result_of(question, before + config.dns.timeout + 1)
    except TimeoutError:
        answer = reasons.DNS_TIMEOUT
    record.dns_ms = milliseconds(monotonic() - before)
    if isinstance(answer, Reason):
        worker.metrics.dns_failed(answer.name.removeprefix("dns_"))
    return answer


def _vet(
    worker: Worker, decision: Decision, addresses: tuple[str, ...], port: int, record: Record
) -> tuple[VettedAddress, ...] | Reason:
    """Pass the addresses through the gate."""
    vetting, prohibition = vet_addresses(decision, addresses, port)
    passed = vetting.passed
    if prohibition is not None:
        if not passed:
            # Not dialled, but whoever reads the line wants to know where the name led.
            record.address = next(iter(vetting.prohibited), None)
            return prohibition
        # A rule's denial says more.
        if not record.event:
            record.conclude(Event.WOULD_DENY, prohibition)
    if port in worker.own_ports:
        return _without_ourselves(worker, passed, record)
    return passed


def _without_ourselves(
    worker: Worker, addresses: tuple[VettedAddress, ...], record: Record
) -> tuple[VettedAddress, ...] | Reason:
    """The addresses at which somebody else answers, of some with a port that is one of ours."""
    record.address = addresses[0].ip
    others = tuple(address for address in addresses if not _is_ours(worker, address))
    return others or reasons.PROXY_LOOP


def _is_ours(worker: Worker, address: VettedAddress) -> bool:
    """Whether the proxy itself, or its admin port, would answer there."""
    return any(
        own.port == address.port
        and (
            own.host == address.ip
            or (own.host in _EVERY_ADDRESS and is_local(address.ip))
            # Connecting to no address at all leads to loopback.
            or (address.ip in _EVERY_ADDRESS and own.is_loopback)
        )
        for own in worker.listening
    )


async def _dial(
    worker: Worker,
    strand: Strand,
    config: Config,
    addresses: tuple[VettedAddress, ...],
    record: Record,
) -> socket.SocketType | Reason:
    """Connect to one of the addresses."""
    before = monotonic()
    dialled = await worker.dialer.dial(strand, addresses, config.dial, config.timeouts)
    record.connect_ms = milliseconds(monotonic() - before)
    record.address = dialled.ip
    if dialled.attempts > 1:
        record.attempts = dialled.attempts
    if dialled.failed:
        record.failed = dialled.failed
    if dialled.reason is not None:
        return dialled.reason
    assert dialled.socket is not None  # noqa: S101 - there is one, or a reason
    return dialled.socket
