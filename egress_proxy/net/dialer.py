"""Connecting to vetted addresses, and to nothing else."""

from __future__ import annotations

import errno
import select
import socket
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.core import reason as reasons
from egress_proxy.core.reason import Reason

if TYPE_CHECKING:
    from egress_proxy.config.model import Timeouts
    from egress_proxy.core.addresses import VettedAddress
    from egress_proxy.net.poller import Strand

_REASONS = {
    errno.ECONNREFUSED: reasons.CONNECTION_REFUSED,
    errno.ETIMEDOUT: reasons.CONNECTION_TIMEOUT,
    errno.ENETUNREACH: reasons.DESTINATION_UNREACHABLE,
    errno.EHOSTUNREACH: reasons.DESTINATION_UNREACHABLE,
}
_UNDER_WAY = frozenset({0, errno.EINPROGRESS})
# Plain numbers: combining members of an Enum is a Python call.
_IPV4, _IPV6 = int(socket.AF_INET), int(socket.AF_INET6)
_STREAM = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_TROUBLE = select.EPOLLERR | select.EPOLLHUP


async def dial(
    strand: Strand, addresses: tuple[VettedAddress, ...], timeouts: Timeouts
) -> tuple[socket.SocketType, VettedAddress] | Reason:
    """Try the addresses in turn; the connected, non-blocking, watched socket and its address, or why there is none."""
    now = monotonic()
    end = now + timeouts.connect
    failure = reasons.CONNECTION_FAILED
    for address in addresses:
        outcome = await _attempt(strand, address, min(end, now + timeouts.connect_attempt))
        if not isinstance(outcome, Reason):
            return outcome, address
        failure = outcome
        now = monotonic()
        if now >= end:
            return reasons.CONNECTION_TIMEOUT
    return failure


async def _attempt(
    strand: Strand, address: VettedAddress, deadline: float
) -> socket.SocketType | Reason:
    family = _IPV6 if ":" in address.ip else _IPV4
    try:
        # The bare type: the class around it costs 2 µs and gives nothing that is needed here.
        sock = socket.SocketType(family, _STREAM)
    except OSError:
        return reasons.CONNECTION_FAILED
    poller = strand.poller
    watched = connected = False
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex((address.ip, address.port))
        if code in _UNDER_WAY:
            # Edges of the client must not be taken for this one's.
            poller.watch(sock.fileno(), strand.go_on)
            watched = True
            await strand.parked(deadline)
            code = (
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if strand.edges & _TROUBLE
                else 0
            )
            poller.hand_over(sock.fileno(), strand.wake)
        if code:
            return _REASONS.get(code, reasons.CONNECTION_FAILED)
        connected = True
        return sock
    except TimeoutError:
        return reasons.CONNECTION_TIMEOUT
    except OSError as error:
        return _REASONS.get(error.errno or 0, reasons.CONNECTION_FAILED)
    finally:
        if not connected:
            if watched:
                poller.close(sock.detach())
            else:
                sock.close()
