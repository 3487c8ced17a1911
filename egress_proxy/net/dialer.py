"""Connecting to vetted addresses, and to nothing else."""

from __future__ import annotations

import errno
import select
import socket
from typing import TYPE_CHECKING

from egress_proxy.core import reason as reasons

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
    errno.EADDRNOTAVAIL: reasons.CONNECTION_FAILED,
}


async def dial(
    strand: Strand, addresses: tuple[VettedAddress, ...], timeouts: Timeouts
) -> tuple[int, VettedAddress] | Reason:
    """Try the addresses in turn; the connected, non-blocking, watched descriptor and its address, or why there is none."""
    now = strand.poller.loop.time()
    end = now + timeouts.connect
    failure = reasons.CONNECTION_FAILED
    for address in addresses:
        now = strand.poller.loop.time()
        if now >= end:
            return reasons.CONNECTION_TIMEOUT
        outcome = await _attempt(strand, address, min(end, now + timeouts.connect_attempt))
        if isinstance(outcome, int):
            return outcome, address
        failure = outcome
    return failure


async def _attempt(strand: Strand, address: VettedAddress, deadline: float) -> int | Reason:
    family = socket.AF_INET6 if ":" in address.ip else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        return reasons.CONNECTION_FAILED
    fd = sock.fileno()
    watched = False
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex((address.ip, address.port))
        strand.poller.watch(fd, strand.wake)
        watched = True
        if code == errno.EINPROGRESS:
            await strand.until(select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP, deadline)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
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
