"""Names to addresses: the hosts file first, then what is known, then the name servers.

Each part has a file of its own: what holds for how long (``dns_cache``), what an answer says (``dns_answer``), how it
is asked for (``dns_channel``), and the hosts file (``hosts_file``). Here they come together: one question for all who
ask at the same time, another before an answer's time is over if it is in use, and old answers while name servers fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final, TypeVar

import msgspec

from egress_proxy.config.model import Dns
from egress_proxy.core import reasons
from egress_proxy.core.reason import Reason
from egress_proxy.net.dns_answer import (
    AAAA,
    HTTPS,
    A,
    Found,
    Missing,
    Service,
    addresses_in,
    service_in,
)
from egress_proxy.net.dns_cache import (
    SERVER_FAILURES,
    Cache,
    Kept,
    failure_lifetime,
    lifetime,
)
from egress_proxy.net.dns_channel import Channel
from egress_proxy.net.hosts_file import HostsFile

T = TypeVar("T")

#: Seconds for which IPv6 addresses are waited for when IPv4 ones are there (RFC 8305 §3).
_SECOND_ANSWER: Final = 0.05
#: Seconds for which those that come later still join the others.
_LATE_ANSWER: Final = 1.0
#: Seconds after which an old answer is better than none yet (RFC 8767 §5).
_PATIENCE: Final = 1.8
#: Orders in which the addresses of one name are handed out. Each is kept, and each is vetted once.
_MAX_ORDERS: Final = 8
#: HTTPS records asked for to find one name's, which may be under an alias of an alias.
_MAX_SERVICE_QUESTIONS: Final = 8


class Lookup(msgspec.Struct, frozen=True, gc=False):
    """The addresses behind a name."""

    addresses: tuple[str, ...]
    """As text, in the order in which they are to be tried, IPv4 before IPv6; not vetted."""
    source: str
    """How they came to be known: ``hit``, ``miss``, ``stale`` or ``hosts``."""
    cname: str | None = None
    """The name that the name is an alias of, at the end of the chain."""


Answer = Lookup | Reason
ConfigIds = frozenset[int] | Reason


class Resolver:
    """Resolves canonical names, which are absolute: the search list is never applied."""

    def __init__(self, settings: Dns, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._loop = loop
        self._channel = Channel(settings, loop)
        self._cache: Cache[Answer] = Cache(settings.cache_entries)
        self._config_ids: Cache[ConfigIds] = Cache(settings.cache_entries)
        self._asking: dict[str, asyncio.Future[Answer]] = {}
        self._asking_config_ids: dict[str, asyncio.Future[ConfigIds]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._hosts: dict[str, Lookup] = {}
        self._hosts_file = HostsFile(settings.hosts_file)
        self.look_at_hosts_file()

    def cached(self, name: str, now: float) -> Answer | None:
        """What is known without asking. now is on the clock of time.monotonic."""
        found = self._hosts.get(name)
        if found is not None:
            return found
        kept = self._cache.get(name)
        if kept is None:
            return None
        if now < kept.refresh_at:
            return kept.next()
        if now >= kept.expires:
            return None
        # It is in use, and its time is nearly over: the next one is there when it ends.
        if now >= kept.quiet_until and name not in self._asking:
            self._begin(name)
        return kept.next()

    async def find(self, name: str) -> Answer:
        """What is known, or else what the servers say; for those who have time."""
        known = self.cached(name, monotonic())
        # Shielded, because others may have asked for the same.
        return await asyncio.shield(self.ask(name)) if known is None else known

    def ask(self, name: str) -> asyncio.Future[Answer]:
        """Ask the servers; all who ask for a name at the same time share one question.

        They have the answer within ``dns.timeout``. While the servers fail it may be an old one.
        """
        asking = self._asking.get(name)
        if asking is not None:
            return asking
        now = monotonic()
        kept = self._cache.get(name)
        if kept is not None and kept.expires <= now < min(kept.stale_until, kept.quiet_until):
            return self._at_once(_stale(kept))
        self._begin(name)
        return self._asking[name]

    def ech_config_ids(self, name: str) -> asyncio.Future[ConfigIds]:
        """The config ids of the ECH configurations that a name's HTTPS records publish (RFC 9848); often none.

        A Reason where the servers fail, or what they say makes no sense.
        """
        asking = self._asking_config_ids.get(name)
        if asking is not None:
            return asking
        kept = self._config_ids.get(name)
        if kept is not None and monotonic() < kept.expires:
            return self._at_once(kept.next())
        future: asyncio.Future[ConfigIds] = self._loop.create_future()
        self._asking_config_ids[name] = future
        self._start(self._ask_config_ids(name, future), self._asking_config_ids, name, future)
        return future

    def look_at_hosts_file(self) -> None:
        """Read the hosts file again if it has changed; none is an empty one."""
        found = self._hosts_file.look()
        if found is not None:
            self._hosts = {name: Lookup(addresses, "hosts") for name, addresses in found.items()}

    async def close(self) -> None:
        """Give up what is being asked."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()

    # Questions ----------------------------------------------------------------------------------

    def _begin(self, name: str) -> None:
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._asking[name] = future
        self._start(self._ask(name, future), self._asking, name, future)

    def _start(
        self,
        coroutine: Coroutine[Any, Any, None],
        asking: dict[str, asyncio.Future[T]],
        name: str,
        future: asyncio.Future[T],
    ) -> None:
        """Run what answers a future, which is answered one way or another when that ends."""

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if asking.get(name) is future:
                del asking[name]
            if future.done():
                return
            error = None if task.cancelled() else task.exception()
            if error is None:
                future.cancel()
            else:
                future.set_exception(error)

        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(end)

    def _at_once(self, answer: T) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        future.set_result(answer)
        return future

    async def _ask(self, name: str, future: asyncio.Future[Answer]) -> None:
        """Ask for both families at once, answer the future, and remember."""
        timeout = self._settings.timeout
        end = monotonic() + timeout
        four, six = (self._loop.create_task(self._addresses(name, kind, end)) for kind in (A, AAAA))
        kept = self._cache.get(name)
        patience = max(_PATIENCE, 0.0 if kept is None else kept.expires - monotonic() + 0.01)
        impatience = self._loop.call_later(patience, self._answer_stale, name, future)
        try:
            await asyncio.wait([four], timeout=timeout)
            # Name servers exist that never answer for AAAA. They need not, where no name is (RFC 8020).
            said = _result(four)
            enough = isinstance(said, Found) or said.reason is reasons.DNS_NXDOMAIN
            wait = _SECOND_ANSWER if enough else max(end - monotonic(), 0)
            await asyncio.wait([six], timeout=wait)
            now = monotonic()
            answer = self._remember(name, _result(four), _result(six), now)
            del self._asking[name]
            if not future.done():
                future.set_result(answer)
            if enough and not six.done():
                kept = self._cache.get(name)
                await asyncio.wait([six], timeout=_LATE_ANSWER)
                late = _result(six)
                if not _is_failure(late) and self._cache.get(name) is kept:
                    self._remember(name, _result(four), late, now)
        finally:
            impatience.cancel()
            four.cancel()
            six.cancel()

    def _answer_stale(self, name: str, future: asyncio.Future[Answer]) -> None:
        """Let nobody wait any longer, if there is an old answer."""
        kept = self._cache.get(name)
        if kept is None or future.done():
            return
        if kept.expires <= monotonic() < kept.stale_until:
            future.set_result(_stale(kept))

    async def _addresses(self, name: str, kind: int, end: float) -> Found | Missing:
        """Ask for the addresses of one family."""
        reply = await self._channel.ask(name, kind, end)
        if reply.failure is not None:
            return Missing(reply.failure, reply.negative_seconds)
        return addresses_in(name, kind, reply.records)

    def _remember(
        self, name: str, four: Found | Missing, six: Found | Missing, now: float
    ) -> Answer:
        """Keep what was said about a name at now; the answer to those who asked."""
        settings = self._settings
        old = self._cache.get(name)
        found = [outcome for outcome in (four, six) if isinstance(outcome, Found)]
        failed = _is_failure(four) or _is_failure(six)
        if old is not None and failed and now < (old.expires if found else old.stale_until):
            # What is known is better.
            old.quiet_until = now + settings.negative_ttl
            return old.next() if now < old.expires else _stale(old)
        if found:
            orders = _orders(found)
            life = lifetime(settings, min(one.ttl for one in found), incomplete=failed)
            # Who asked takes the first order.
            kept: Kept[Answer] = Kept((*orders[1:], orders[0]), now, life)
            kept.renew(now, life, settings.stale_if_error)
            self._cache.put(name, kept)
            return msgspec.structs.replace(orders[0], source="miss")
        assert isinstance(four, Missing)  # noqa: S101 - nothing was found
        assert isinstance(six, Missing)  # noqa: S101
        reason, seconds = _why(four, six)
        self._cache.put(name, Kept((reason,), now, failure_lifetime(settings, reason, seconds)))
        return reason

    async def _ask_config_ids(self, name: str, future: asyncio.Future[ConfigIds]) -> None:
        """Ask for HTTPS records, answer the future, and remember."""
        try:
            async with asyncio.timeout(self._settings.timeout):
                answer, life = await self._published(name)
        except TimeoutError:
            answer = reasons.DNS_TIMEOUT
            life = failure_lifetime(self._settings, answer, None)
        self._config_ids.put(name, Kept((answer,), monotonic(), life))
        if not future.done():
            future.set_result(answer)

    async def _published(self, name: str) -> tuple[ConfigIds, float]:
        """The config ids that a name publishes itself and by its aliases, and for how long that is kept."""
        settings = self._settings
        end = monotonic() + settings.timeout
        config_ids: frozenset[int] = frozenset()
        life = settings.max_ttl
        asked: set[str] = set()
        pending = [name]
        while pending:
            target = pending.pop()
            if target in asked or len(asked) >= _MAX_SERVICE_QUESTIONS:
                return reasons.DNS_FAILURE, settings.negative_ttl  # in a circle, or too far
            asked.add(target)
            said = await self._service(target, end)
            if isinstance(said, Service):
                config_ids |= said.config_ids
                pending += said.aliases
                life = min(life, lifetime(settings, said.ttl))
                continue
            seconds = failure_lifetime(settings, said.reason, said.seconds)
            if said.reason in SERVER_FAILURES:
                return said.reason, seconds
            life = min(life, seconds)
        return config_ids, life

    async def _service(self, name: str, end: float) -> Service | Missing:
        """Ask for the HTTPS records of one name."""
        reply = await self._channel.ask(name, HTTPS, end)
        if reply.failure is not None:
            return Missing(reply.failure, reply.negative_seconds)
        return service_in(name, reply.records)


def _result(task: asyncio.Task[Found | Missing]) -> Found | Missing:
    return task.result() if task.done() else Missing(reasons.DNS_TIMEOUT)


def _is_failure(outcome: Found | Missing) -> bool:
    return isinstance(outcome, Missing) and outcome.reason in SERVER_FAILURES


def _why(four: Missing, six: Missing) -> tuple[Reason, int | None]:
    """Why a name has no address, and how long the zone lets that be believed."""
    said = [one for one in (four, six) if one.reason not in SERVER_FAILURES]
    seconds = min((one.seconds for one in said if one.seconds is not None), default=None)
    kinds = {one.reason for one in said}
    if reasons.DNS_NXDOMAIN in kinds:
        # Said of one family alone it is wrong, but there is no address.
        reason = reasons.DNS_NXDOMAIN if len(kinds) == 1 else reasons.DNS_NO_ADDRESS
        return reason, seconds
    return (four.reason if four not in said else six.reason), seconds


def _orders(found: list[Found]) -> tuple[Lookup, ...]:
    """The addresses in several orders, each of which begins with others, so that clients spread over all."""
    count = min(max(len(one.addresses) for one in found), _MAX_ORDERS)
    cname = next((one.cname for one in found if one.cname is not None), None)
    return tuple(
        Lookup(
            tuple(address for one in found for address in _turned(one.addresses, number, count)),
            "hit",
            cname,
        )
        for number in range(count)
    )


def _turned(addresses: tuple[str, ...], number: int, count: int) -> tuple[str, ...]:
    """One of count turns, evenly spread."""
    size = len(addresses)
    first = number * max(size, count) // count % size
    return addresses[first:] + addresses[:first]


def _stale(kept: Kept[Answer]) -> Answer:
    answer = kept.next()
    return answer if isinstance(answer, Reason) else msgspec.structs.replace(answer, source="stale")
