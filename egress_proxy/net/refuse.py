"""Answering with a refusal."""

from __future__ import annotations

import contextlib

from egress_proxy.core.answer import refusal
from egress_proxy.core.http1 import Framing, ProxyRequest
from egress_proxy.core.reason import Reason
from egress_proxy.core.record import Record
from egress_proxy.net.client import Client, Next
from egress_proxy.net.poller import Interrupted
from egress_proxy.net.worker import Worker


def tell(client: Client, record: Record, reason: Reason) -> None:
    """Answer with a refusal as far as that needs no waiting."""
    record.status = reason.status
    with contextlib.suppress(ConnectionError):
        client.write(_refusal(record, reason))


async def refuse(
    worker: Worker,
    client: Client,
    record: Record,
    reason: Reason,
    request: ProxyRequest | None,
    detail: str | None = None,
    *,
    retry_after: float | None = None,
) -> Next:
    """Answer with a refusal. Without a request the connection cannot go on.

    ``retry_after`` is when a retry will succeed, in seconds, where that is known better than the reason knows it.
    """
    record.conclude(reason.event, reason)
    record.status = reason.status
    # A body that nobody reads would be taken for the next request.
    keep_alive = (
        request is not None
        and request.keep_alive
        and request.framing is Framing.NONE
        and not worker.draining
    )
    answer = _refusal(record, reason, detail, keep_alive=keep_alive, retry_after=retry_after)
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
    record: Record,
    reason: Reason,
    detail: str | None = None,
    *,
    keep_alive: bool = False,
    retry_after: float | None = None,
) -> bytes:
    return refusal(
        reason,
        detail=detail,
        host=record.host,
        port=record.port,
        request_id=record.request_id,
        keep_alive=keep_alive,
        method=record.method or "",
        retry_after=retry_after,
    )
