"""What is asked of c-ares, through aiodns and pycares, and what they are made to do and to leave.

docs/decisions/0007 says why each of these is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

import aiodns
import msgspec
import pycares

from egress_proxy.config.model import Dns
from egress_proxy.core import reasons
from egress_proxy.core.reason import Reason
from egress_proxy.net import dns_negative

#: Seconds by which emptying c-ares' cache waits for company: it takes a thread each time.
_FORGET: Final = 0.25
#: Seconds that c-ares waits for the first answer of a server that it does not know: what a lost packet costs.
_FIRST_WAIT: Final = 1.0
#: Seconds that c-ares waits at least. It doubles them at most with each further try; half of that is chance.
_SHORTEST_WAIT: Final = 0.25

_REASONS: Final = {
    pycares.errno.ARES_ENODATA: reasons.DNS_NO_ADDRESS,
    pycares.errno.ARES_ENOTFOUND: reasons.DNS_NXDOMAIN,
    pycares.errno.ARES_EREFUSED: reasons.DNS_REFUSED,
    pycares.errno.ARES_ETIMEOUT: reasons.DNS_TIMEOUT,
}


class Reply(msgspec.Struct, frozen=True):
    """What the name servers said to one question, or why they said nothing."""

    failure: Reason | None
    records: Sequence[pycares.DNSRecord] = ()
    """The answer section; empty with a failure."""
    negative_seconds: int | None = None
    """How long the zone lets it be believed that there is nothing (RFC 2308 §5); None if it does not say."""


_FAILED: Final = Reply(reasons.DNS_FAILURE)


class Channel:
    """Asks name servers for records of exactly the name given."""

    def __init__(self, settings: Dns, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._closed = False
        self._forgetting: asyncio.TimerHandle | None = None
        dns_negative.install()
        servers = list(settings.servers)
        rounds = len(servers) or 1
        wait = min(settings.timeout / rounds / (2**settings.tries - 1), _FIRST_WAIT)

        def channel(tries: int) -> aiodns.DNSResolver:
            # Without servers c-ares reads the system's, and reads them again when they change.
            given: dict[str, Any] = {"servers": servers} if servers else {}
            return aiodns.DNSResolver(loop=loop, timeout=wait, tries=tries, **given)

        self._quick = channel(settings.tries)
        # Once c-ares has seen fast answers, it gives up soon after _SHORTEST_WAIT, however much time there is. This one
        # still waits then, and asks as seldom as a name server with too much to do would like.
        tries = 1 + math.ceil(math.log2(max(settings.timeout / _SHORTEST_WAIT, 1)))
        self._patient = channel(max(tries, settings.tries))

    async def ask(self, name: str, kind: int, end: float) -> Reply:
        """Ask for the records of a kind. After end, on the clock of time.monotonic, it is not asked again.

        The caller limits how long that takes.
        """
        reply = await self._send(self._quick, name, kind)
        if reply.failure is reasons.DNS_TIMEOUT and monotonic() < end:
            reply = await self._send(self._patient, name, kind)
        return reply

    async def close(self) -> None:
        """Give up what is being asked: it fails."""
        self._closed = True
        if self._forgetting is not None:
            self._forgetting.cancel()
        for resolver in (self._quick, self._patient):
            await resolver.close()

    def _send(self, resolver: aiodns.DNSResolver, name: str, kind: int) -> asyncio.Future[Reply]:
        future: asyncio.Future[Reply] = self._loop.create_future()

        def answered(result: pycares.DNSResult | None, status: int | None) -> None:
            # In a thread of c-ares' own, or before query() returns.
            reply = _reply(result, status)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._deliver, future, reply)

        try:
            # Not search(): that would try the search list. Not through aiodns: it knows no HTTPS records, and drops
            # what comes with an error.
            resolver._channel.query(name, kind, callback=answered)  # noqa: SLF001 - aiodns does not pass it on
        except (pycares.AresError, RuntimeError):  # no name for c-ares; the channel is closed
            self._deliver(future, _FAILED)
        return future

    def _deliver(self, future: asyncio.Future[Reply], reply: Reply) -> None:
        if not future.done():
            future.set_result(reply)
        self._forget_soon()

    def _forget_soon(self) -> None:
        """Empty c-ares' own cache soon.

        It would keep answers for up to an hour, whatever the configuration says, and without bounds; that there is
        nothing even where the zone forbids it. pycares has no way to turn it off, but to read c-ares' configuration
        again empties it.
        """
        if self._forgetting is None and not self._closed:
            self._forgetting = self._loop.call_later(_FORGET, self._forget)

    def _forget(self) -> None:
        self._forgetting = None
        try:
            for resolver in (self._quick, self._patient):
                resolver._channel.reinit()  # noqa: SLF001 - aiodns does not pass it on
        except pycares.AresError:
            self._forget_soon()  # there was no thread to be had
        except RuntimeError:
            pass  # the channel is closed


def _reply(result: pycares.DNSResult | None, status: int | None) -> Reply:
    if status is not None:
        return Reply(
            _REASONS.get(status, reasons.DNS_FAILURE), negative_seconds=dns_negative.noted()
        )
    return _FAILED if result is None else Reply(None, result.answer)
