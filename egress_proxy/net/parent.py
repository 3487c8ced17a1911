"""Through a parent proxy: its tunnel, and what its refusals and failures mean to our client.

What the parent says in words is never passed on: its status number alone is told.
"""

from __future__ import annotations

import socket
from typing import Final

import msgspec

from egress_proxy.core import reasons
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import END_OF_HEAD, HeadLimits, ResponseHead, parse_response
from egress_proxy.core.reason import Reason
from egress_proxy.net.poller import READABLE, WRITABLE, Strand

#: Most answers fit.
_READ: Final = 16 * 1024
#: How every answer begins. What does not is no HTTP, and might never end its head.
_BEGINNING: Final = b"HTTP/1."

#: Statuses that say more than their class does (RFC 9110 §15).
_STATUSES: Final = {
    407: reasons.PARENT_CREDENTIALS,
    # It did not have our request in time, or has too many of them: no judgement of the destination.
    408: reasons.PARENT_FAILED,
    429: reasons.PARENT_FAILED,
    504: reasons.PARENT_TIMEOUT,
}
#: Before there is an answer, what befalls the origin's connection befalls the parent's.
_OF_PARENT: Final = {
    reasons.ORIGIN_TIMEOUT: reasons.PARENT_TIMEOUT,
    reasons.ORIGIN_CLOSED: reasons.PARENT_FAILED,
    reasons.ORIGIN_RESET: reasons.PARENT_FAILED,
    reasons.ORIGIN_MALFORMED: reasons.PARENT_FAILED,
}


class Unreached(msgspec.Struct, frozen=True, gc=False):
    """Why there is no way to a destination."""

    reason: Reason
    detail: str | None = None
    """A sentence of our own words."""


class _NoAnswerError(Exception):
    """The parent has ended, or broken, the connection."""


def unreachable(why: Reason) -> Unreached:
    """What to tell where a parent's name cannot be resolved, or its addresses not be connected to."""
    if why is reasons.CONNECTION_TIMEOUT:
        return Unreached(reasons.PARENT_TIMEOUT, "it did not accept the connection in time")
    return Unreached(reasons.PARENT_UNREACHABLE, why.name)


def of_parent(failure: Reason) -> Reason:
    """What a failed exchange is called that had no answer yet and went to a parent."""
    return _OF_PARENT.get(failure, failure)


async def open_tunnel(
    strand: Strand,
    parent: socket.SocketType,
    request: bytes,
    limits: HeadLimits,
    deadline: float,
) -> Unreached | None:
    """Send a CONNECT request to a parent, which is connected and watched, and read its answer; why there is no tunnel.

    What comes behind the answer stays in the socket: it is the tunnel's. Raises Interrupted.
    """
    try:
        await _send(strand, parent, request, deadline)
        while (answer := await _answer(strand, parent, limits, deadline)).status < 200:
            # RFC 9110 §15.2: any number of interim answers may come, and others wait for their turn.
            await strand.turn(deadline)
    except TimeoutError:
        return Unreached(reasons.PARENT_TIMEOUT, "it accepted the connection, and did not answer")
    except _NoAnswerError:
        return Unreached(reasons.PARENT_FAILED, "it closed the connection without an answer")
    except HeadError:
        return Unreached(reasons.PARENT_FAILED, "its answer is malformed")
    if answer.status >= 300:
        return Unreached(_judge(answer.status), f"it answered {answer.status}")
    # Nobody has read until there was no more, so what is there already is not told again.
    strand.edges |= READABLE
    return None


def _judge(status: int) -> Reason:
    """What a parent's refusal means. A redirection is one: to the page that tells people why."""
    by_class = reasons.PARENT_REFUSED if status < 500 else reasons.PARENT_FAILED
    return _STATUSES.get(status, by_class)


async def _send(strand: Strand, parent: socket.SocketType, data: bytes, deadline: float) -> None:
    """Raises TimeoutError, _NoAnswerError, Interrupted."""
    while data:
        try:
            data = data[parent.send(data) :]
        except BlockingIOError:
            await strand.until(WRITABLE, deadline)
        except OSError:
            raise _NoAnswerError from None


async def _answer(
    strand: Strand, parent: socket.SocketType, limits: HeadLimits, deadline: float
) -> ResponseHead:
    """The next response head, and not a byte more. Raises HeadError, TimeoutError, _NoAnswerError, Interrupted."""
    head = b""
    while True:
        try:
            seen = parent.recv(_READ, socket.MSG_PEEK)
            end = (head + seen).find(END_OF_HEAD)
            # All that was seen, or up to the end of the head.
            size = len(seen) if end < 0 else end + len(END_OF_HEAD) - len(head)
            head += parent.recv(size) if seen else b""
        except BlockingIOError:
            await strand.until(READABLE, deadline)
            continue
        except OSError:
            raise _NoAnswerError from None
        if end >= 0:
            return parse_response(head, "CONNECT", limits)
        if not seen:
            raise _NoAnswerError
        if len(head) > limits.size or not head.startswith(_BEGINNING[: len(head)]):
            raise HeadError(reasons.PARENT_FAILED, "the head is too large, or is none")
