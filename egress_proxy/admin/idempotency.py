"""First answers, kept for whoever asks the same thing again with the same Idempotency-Key.

A client that got no answer cannot know whether its request was carried out. It sends it again with the same key, and
gets the first answer: the deed is done once.

Kept in the memory of one process, and bounded: a restart forgets all keys, and a full store the oldest. A key that was
forgotten is a new one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from http import HTTPStatus
from typing import Final, NamedTuple

from egress_proxy.admin.http import Refusal, Request, Response
from egress_proxy.core import reasons
from egress_proxy.core.contract import IDEMPOTENCY_KEY, TENANT_ID

#: Seconds that an answer is kept: longer than any client goes on trying.
LIFETIME: Final = 86_400.0
#: Answers that are kept. Changes are made by people and their tools, by the dozen.
MAX_ANSWERS: Final = 4096
#: Bytes of all of them together.
MAX_BYTES: Final = 8 * 2**20

# What an answer costs beside its own bytes.
_OVERHEAD: Final = 1024
_REPLAYED: Final = b"Idempotency-Replayed: true\r\n"

Answer = Response | Refusal


class Scope(NamedTuple):
    """Whose key it is: what another principal or tenant does with the same key is another matter."""

    principal: bytes
    """Who was admitted, as :func:`egress_proxy.admin.access.principal` tells."""
    tenant: bytes
    key: bytes


def scope_of(request: Request, principal: bytes) -> Scope:
    """The scope of a request whose contract headers were found right."""
    (tenant,) = request.head.values(TENANT_ID)
    (key,) = request.head.values(IDEMPOTENCY_KEY)
    # RFC 9562 §4: a UUID is the same in either case.
    return Scope(principal, tenant, key.lower())


def payload_of(request: Request) -> bytes:
    """A digest of what is asked for: method, target and body."""
    head = request.head
    # Neither method nor target holds a space.
    return sha256(b"%b %b %b" % (head.method.encode("ascii"), head.target, request.body)).digest()


@dataclass(frozen=True, slots=True)
class _Kept:
    payload: bytes
    answer: Answer
    size: int
    until: float


@dataclass(frozen=True, slots=True)
class _Running:
    payload: bytes
    ended: asyncio.Event


class Answers:
    """The answers that were given, by the scope of their keys."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        max_answers: int = MAX_ANSWERS,
        max_bytes: int = MAX_BYTES,
        lifetime: float = LIFETIME,
    ) -> None:
        """``clock`` tells the time in seconds, and never goes back."""
        self._clock = clock
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._lifetime = lifetime
        # The oldest first: all live equally long.
        self._kept: OrderedDict[Scope, _Kept] = OrderedDict()
        self._running: dict[Scope, _Running] = {}
        self.bytes = 0
        """Of all answers that are kept."""

    def __len__(self) -> int:
        return len(self._kept)

    async def once(
        self, scope: Scope, payload: bytes, act: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """Act, unless that was done: then the first answer, marked as such, or a refusal where the payload is another.

        Whoever comes while the first still runs waits for its answer.
        """
        while True:
            self._forget_old()
            known = self._kept.get(scope) or self._running.get(scope)
            if known is None:
                break
            if known.payload != payload:
                return Refusal(reasons.IDEMPOTENCY_KEY_REUSED)
            if isinstance(known, _Kept):
                return replace(known.answer, fields=known.answer.fields + _REPLAYED)
            # If what it comes to is not kept, this one acts by itself.
            await known.ended.wait()
        running = self._running[scope] = _Running(payload, asyncio.Event())
        try:
            answer = await act()
            if _is_final(answer):
                self._keep(scope, payload, answer)
        finally:
            del self._running[scope]
            running.ended.set()
        return answer

    def _keep(self, scope: Scope, payload: bytes, answer: Answer) -> None:
        size = _OVERHEAD + _size(answer)
        if size > self._max_bytes:
            return
        self._kept[scope] = _Kept(payload, answer, size, self._clock() + self._lifetime)
        self.bytes += size
        while self.bytes > self._max_bytes or len(self._kept) > self._max_answers:
            self._forget_oldest()

    def _forget_old(self) -> None:
        now = self._clock()
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, gone = self._kept.popitem(last=False)
        self.bytes -= gone.size


def _is_final(answer: Answer) -> bool:
    """Whether it stays the answer: not what tells the client to try again, and no failure of ours."""
    if isinstance(answer, Refusal):
        return answer.reason.retry_after is None and answer.reason.status < 500
    return answer.status < HTTPStatus.INTERNAL_SERVER_ERROR


def _size(answer: Answer) -> int:
    if isinstance(answer, Refusal):
        return len((answer.detail or "").encode()) + len(answer.fields)
    return len(answer.body) + len(answer.fields)
