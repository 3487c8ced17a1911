"""Connecting to vetted addresses, and to nothing else: several at once where one alone is too slow (RFC 8305)."""

from __future__ import annotations

import errno
import itertools
import select
import socket
import struct
from asyncio import TimerHandle
from functools import lru_cache
from time import monotonic
from typing import Final

import msgspec

from egress_proxy.config.model import Dial, Family, Timeouts
from egress_proxy.core import reasons
from egress_proxy.core.addresses import VettedAddress
from egress_proxy.core.reason import Reason
from egress_proxy.net.poller import Poller, Strand
from egress_proxy.observe.events import log

_REASONS: Final = {
    errno.ECONNREFUSED: reasons.CONNECTION_REFUSED,
    errno.ETIMEDOUT: reasons.CONNECTION_TIMEOUT,
    errno.ENETUNREACH: reasons.DESTINATION_UNREACHABLE,
    errno.EHOSTUNREACH: reasons.DESTINATION_UNREACHABLE,
    errno.ENETDOWN: reasons.DESTINATION_UNREACHABLE,
    errno.EAFNOSUPPORT: reasons.DESTINATION_UNREACHABLE,
}
#: Errors that say something about this machine and nothing about the address: no descriptors, memory, ports or source.
_OURS: Final = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC),
        *(errno.EADDRNOTAVAIL, errno.EAGAIN),
    }
)
_UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS})
# Plain numbers: combining members of an Enum is a Python call.
_IPV4, _IPV6 = int(socket.AF_INET), int(socket.AF_INET6)
_STREAM = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_TROUBLE = select.EPOLLERR | select.EPOLLHUP
#: linux/in.h: with a source address, leave the choice of the port to connect(), which can use one for many peers.
_BIND_ADDRESS_NO_PORT: Final = 24
#: Ports from which the system may choose the source of a connection, too: a connection to itself is one of those.
_NOT_PRIVILEGED: Final = 1024
#: Addresses that are remembered as dead or slow. Clients choose destinations, so there is a bound.
_MEMORY_SIZE: Final = 4096
#: Attempts beside a first one, of all clients together: each takes a descriptor for which no client was counted. So
#: they have a part of all descriptors, and no more.
MAX_BESIDE: Final = 512
#: Failed attempts that a record tells of.
_TOLD: Final = 8
# linux/netlink.h and linux/rtnetlink.h.
_NLM_F_REQUEST, _RTM_NEWROUTE, _RTM_GETROUTE, _RTA_DST, _RTN_LOCAL = 1, 24, 26, 1, 2


class Dialled(msgspec.Struct, gc=False):
    """What became of dialling one destination."""

    reason: Reason | None
    """Why there is no connection; None where there is one."""
    socket: socket.SocketType | None = None
    """Connected, non-blocking, watched."""
    ip: str | None = None
    """The address that it leads to, or that the reason is about."""
    attempts: int = 1
    """Addresses that were tried."""
    failed: tuple[str, ...] = ()
    """Those that could not be reached, as ``address reason``: the first few."""


_Failure = tuple[str, Reason]
"""An address, and why it could not be reached."""


class _Attempt:
    """A connection under way."""

    __slots__ = ("address", "deadline", "edges", "late", "socket", "strand")

    def __init__(
        self, strand: Strand, address: VettedAddress, sock: socket.SocketType, deadline: float
    ) -> None:
        self.strand = strand
        self.address = address
        self.socket = sock
        self.deadline = deadline
        self.edges = 0
        self.late = False
        """Whether its time alone is over, so that another one is tried beside it."""

    def on_edge(self, mask: int) -> None:
        self.edges = mask
        self.strand.go_on(mask)


class Dialer:
    """Connects, and remembers for a while what could not be reached, or took too long."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self.most_beside = MAX_BESIDE
        """Attempts beside a first one, of all clients together; those beyond it wait for the one before."""
        self._beside = 0
        #: Until when an address is tried after the others, the oldest first.
        self._deferred: dict[tuple[str, int], float] = {}

    async def dial(
        self,
        strand: Strand,
        addresses: tuple[VettedAddress, ...],
        settings: Dial,
        timeouts: Timeouts,
    ) -> Dialled:
        """Try the addresses, the families in turn; the first connection that stands is taken, the others are closed.

        The next address is tried when the one before has failed, or has not answered for ``settings.stagger`` seconds.
        Raises Interrupted.
        """
        now = monotonic()
        end = now + timeouts.connect
        waiting = self._order(addresses, settings, now)
        racing: list[_Attempt] = []
        """In the order in which they began, so that the first has the next deadline."""
        failures: list[_Failure] = []
        due = True
        timer: TimerHandle | None = None
        tried = beside = 0
        try:
            while True:
                while waiting and (due or not racing):
                    due = False
                    if timer is not None:
                        timer.cancel()
                        timer = None
                    if racing:
                        if self._beside >= self.most_beside:
                            break
                        beside += 1
                        self._beside += 1
                    address, waiting = waiting[0], waiting[1:]
                    tried += 1
                    deadline = min(end, monotonic() + timeouts.connect_attempt)
                    begun = self._begin(strand, address, settings, deadline)
                    if isinstance(begun, _Attempt):
                        racing.append(begun)
                    else:
                        failures.append(self._failed(address, begun, settings))
                        due = True
                if not racing:
                    return _failure(failures, tried)
                if waiting and timer is None:
                    timer = self._poller.loop.call_later(settings.stagger, strand.go_on, 0)
                try:
                    # Edges of the client must not be taken for one of these.
                    await strand.parked(racing[0].deadline)
                except TimeoutError:
                    now = monotonic()
                    for attempt in racing:
                        if attempt.deadline <= now:
                            attempt.edges = _TROUBLE
                if waiting and monotonic() >= end:
                    waiting = ()
                ended = [attempt for attempt in racing if attempt.edges]
                if not ended:
                    # It was the timer.
                    due = True
                    for attempt in racing:
                        attempt.late = True
                for attempt in ended:
                    code = _outcome(attempt)
                    if not code:
                        self._take(attempt, racing, settings)
                        told = _told(failures) if failures else ()
                        taken = Dialled(None, attempt.socket, attempt.address.ip, tried, told)
                        racing.remove(attempt)
                        return taken
                    racing.remove(attempt)
                    self._poller.close(attempt.socket.detach())
                    failures.append(self._failed(attempt.address, code, settings))
                    # RFC 8305 §5: a failure need not be waited out.
                    due = True
        finally:
            if timer is not None:
                timer.cancel()
            self._beside -= beside
            for attempt in racing:
                self._poller.close(attempt.socket.detach())

    def _begin(
        self, strand: Strand, address: VettedAddress, settings: Dial, deadline: float
    ) -> _Attempt | int:
        """Start to connect; the attempt, or the error that it ended with at once."""
        family = _IPV6 if ":" in address.ip else _IPV4
        try:
            # The bare type: the class around it costs 2 µs and gives nothing that is needed here.
            sock = socket.SocketType(family, _STREAM)
        except OSError as error:
            return error.errno or errno.EIO
        attempt = None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if settings.source_addresses:
                _bind(sock, family, settings.source_addresses)
            code = sock.connect_ex((address.ip, address.port))
            if code not in _UNDER_WAY:
                return code
            begun = _Attempt(strand, address, sock, deadline)
            self._poller.watch(sock.fileno(), begun.on_edge)
            attempt = begun
            return attempt
        except OSError as error:
            return error.errno or errno.EIO
        finally:
            if attempt is None:
                self._poller.close(sock.detach())

    def _take(self, attempt: _Attempt, racing: list[_Attempt], settings: Dial) -> None:
        """Leave a connection to the strand; remember what became of it, and which others it has overtaken."""
        address = attempt.address
        # Its edges are the strand's already: they are what ended the wait.
        self._poller.hand_over(attempt.socket.fileno(), attempt.strand.wake)
        for other in racing:
            if other.late and other is not attempt:
                self._defer(other.address, settings)
        if self._deferred:
            self._deferred.pop((address.ip, address.port), None)

    def _failed(self, address: VettedAddress, code: int, settings: Dial) -> _Failure:
        """Remember an address that could not be reached, and say why."""
        if code not in _OURS:
            self._defer(address, settings)
        return address.ip, _REASONS.get(code, reasons.CONNECTION_FAILED)

    def _defer(self, address: VettedAddress, settings: Dial) -> None:
        """Have an address tried after the others for a while."""
        if not settings.failure_memory:
            return
        key = address.ip, address.port
        self._deferred.pop(key, None)
        if len(self._deferred) >= _MEMORY_SIZE:
            del self._deferred[next(iter(self._deferred))]
        self._deferred[key] = monotonic() + settings.failure_memory

    def _order(
        self, addresses: tuple[VettedAddress, ...], settings: Dial, now: float
    ) -> tuple[VettedAddress, ...]:
        """The addresses in the order in which they are tried, those that failed of late at the end."""
        if len(addresses) == 1:
            return addresses
        addresses = _interleaved(addresses, settings.prefer)
        if self._deferred and settings.failure_memory:
            # sorted() keeps the order of what is equal.
            addresses = tuple(sorted(addresses, key=lambda each: self._is_deferred(each, now)))
        return addresses[: settings.max_attempts]

    def _is_deferred(self, address: VettedAddress, now: float) -> bool:
        key = address.ip, address.port
        until = self._deferred.get(key)
        if until is None:
            return False
        if until <= now:
            del self._deferred[key]
            return False
        return True


# A busy destination asks for it with each request; what comes in is kept by the gate's own cache.
@lru_cache(maxsize=8192)
def _interleaved(addresses: tuple[VettedAddress, ...], prefer: Family) -> tuple[VettedAddress, ...]:
    """The families in turn (RFC 8305 §4), each in its own order."""
    four = [address for address in addresses if ":" not in address.ip]
    six = [address for address in addresses if ":" in address.ip]
    first, second = (six, four) if prefer is Family.IPV6 else (four, six)
    return tuple(
        address
        for pair in itertools.zip_longest(first, second)
        for address in pair
        if address is not None
    )


def _bind(sock: socket.SocketType, family: int, sources: tuple[str, ...]) -> None:
    """Choose where the connection comes from, if that is said for its family. Raises OSError."""
    for source in sources:
        if (":" in source) == (family == _IPV6):
            sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))


def _outcome(attempt: _Attempt) -> int:
    """The error that an attempt ended with; 0 for a connection."""
    sock, port = attempt.socket, attempt.address.port
    if attempt.edges & _TROUBLE:
        # Without an error of its own its time was over.
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ETIMEDOUT
    if port >= _NOT_PRIVILEGED:
        # RFC 9293 §3.5 lets a connection be made with itself. Nobody else is there.
        own = sock.getsockname()
        if own[1] == port:
            try:
                other = sock.getpeername()
            except OSError as error:
                return error.errno or errno.EIO
            if own == other:
                return errno.ECONNREFUSED
    return 0


def _failure(failures: list[_Failure], tried: int) -> Dialled:
    """What the client is told: the last failure, but that there is no route only where there was none to any."""
    if not failures:
        return Dialled(reasons.CONNECTION_FAILED, attempts=0)
    ip, reason = next(
        (
            failure
            for failure in reversed(failures)
            if failure[1] is not reasons.DESTINATION_UNREACHABLE
        ),
        failures[-1],
    )
    # One address and its failure are told by the record's own fields.
    told = _told(failures) if len(failures) > 1 else ()
    return Dialled(reason, ip=ip, attempts=tried, failed=told)


def _told(failures: list[_Failure]) -> tuple[str, ...]:
    """As the record has them."""
    return tuple(f"{ip} {why.name}" for ip, why in failures[:_TOLD])


def is_local(ip: str) -> bool:
    """Whether this machine has the address, so that what is sent there stays here.

    The system's routes know (rtnetlink(7)). That a socket can be bound to an address proves nothing where
    ``ip_nonlocal_bind`` is set, as on machines that take over from each other.
    """
    if ip in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        # Connecting to these leads to loopback.
        return True
    family = _IPV6 if ":" in ip else _IPV4
    address = socket.inet_pton(family, ip)
    route = struct.pack("=BBBBBBBBI", family, len(address) * 8, 0, 0, 0, 0, 0, 0, 0)
    destination = struct.pack("=HH", 4 + len(address), _RTA_DST) + address
    size = 16 + len(route) + len(destination)
    header = struct.pack("=IHHII", size, _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.send(header + route + destination)
            answer = kernel.recv(4096)
    except OSError:
        # Not allowed here: then what can be bound to is taken for local.
        return _can_be_bound_to(family, ip)
    # An error is that there is no route. The type is the eighth field of `struct rtmsg`.
    (kind,) = struct.unpack_from("=H", answer, 4)
    return bool(kind == _RTM_NEWROUTE and answer[16 + 7] == _RTN_LOCAL)


def _can_be_bound_to(family: int, ip: str) -> bool:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def warn_of_missing_sources(settings: Dial) -> None:
    """Tell the operator which source addresses this machine lacks: no destination of their family can be reached."""
    for source in settings.source_addresses:
        if not is_local(source):
            log.warning(
                "source_address_missing",
                address=source,
                note="this machine has no such address: connections of its family fail",
            )
