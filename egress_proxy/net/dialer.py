"""Connecting to vetted addresses, and to nothing else."""

from __future__ import annotations

import errno
import select
import socket
from time import monotonic
from typing import TYPE_CHECKING

from egress_proxy.core import reason as reasons
from egress_proxy.net.poller import WRITABLE

if TYPE_CHECKING:
    from egress_proxy.config.model import Timeouts
    from egress_proxy.core.addresses import VettedAddress
    from egress_proxy.core.reason import Reason
    from egress_proxy.net.poller import Strand

_REASONS = {
    errno.ECONNREFUSED: reasons.CONNECTION_REFUSED,
    errno.ETIMEDOUT: reasons.CONNECTION_TIMEOUT,
    errno.ENETUNREACH: reasons.DESTINATION_UNREACHABLE,
    errno.EHOSTUNREACH: reasons.DESTINATION_UNREACHABLE,
}
_TROUBLE = select.EPOLLERR | select.EPOLLHUP


async def dial(
    strand: Strand, addresses: tuple[VettedAddress, ...], timeouts: Timeouts
) -> tuple[int, VettedAddress] | Reason:
    """Try the addresses in turn; the connected, non-blocking, watched descriptor and its address, or why there is none."""
    now = monotonic()
    end = now + timeouts.connect
    failure = reasons.CONNECTION_FAILED
    for address in addresses:
        outcome = await _attempt(strand, address, min(end, now + timeouts.connect_attempt))
        if isinstance(outcome, int):
            return outcome, address
        failure = outcome
        now = monotonic()
        if now >= end:
            return reasons.CONNECTION_TIMEOUT
    return failure


async def _attempt(strand: Strand, address: VettedAddress, deadline: float) -> int | Reason:
    family = socket.AF_INET6 if ":" in address.ip else socket.AF_INET
    try:
        # The bare type: the class around it costs 2 µs and gives nothing that is needed here.
        sock = socket.SocketType(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        return reasons.CONNECTION_FAILED
    fd = sock.fileno()
    watched = False
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex((address.ip, address.port))
        if code in {0, errno.EINPROGRESS}:
            strand.poller.watch(fd, strand.wake)
            watched = True
            if code and await strand.until(WRITABLE, deadline) & _TROUBLE:
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            else:
                sock.detach()
                watched = False
                return fd
        return _REASONS.get(code, reasons.CONNECTION_FAILED)
    except TimeoutError:
        return reasons.CONNECTION_TIMEOUT
    except OSError as error:
        return _REASONS.get(error.errno or 0, reasons.CONNECTION_FAILED)
    finally:
        if watched:
            strand.poller.close(sock.detach())
        elif sock.fileno() >= 0:
            sock.close()
