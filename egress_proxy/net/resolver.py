"""Names to addresses: the hosts file first, then the name servers, with a bounded cache that honours TTLs."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Any

import aiodns

from egress_proxy.config.model import Dns
from egress_proxy.core import reason as reasons
from egress_proxy.core.errors import HostError
from egress_proxy.core.names import canonical_host
from egress_proxy.core.reason import Reason

#: c-ares' codes: no data, server failure, not found, refused, timeout.
_NO_DATA, _NOT_FOUND, _TIMEOUT = 1, 4, 12

#: Seconds by which emptying c-ares' cache waits for company: it takes a thread each time.
_FORGET = 0.25

#: Seconds for which IPv6 addresses are waited for when IPv4 ones are there (RFC 8305 §3).
_SECOND_ANSWER = 0.05

Answer = tuple[str, ...] | Reason


class Resolver:
    """Resolves absolute names; the search list is never applied."""

    def __init__(self, settings: Dns, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._loop = loop
        options: dict[str, Any] = {"timeout": max(settings.timeout / 2, 0.05), "tries": 2}
        if settings.servers:
            options["servers"] = list(settings.servers)
        self._channel = aiodns.DNSResolver(loop=loop, **options)
        self._cache: dict[str, tuple[float, Answer]] = {}
        self._asking: dict[str, asyncio.Task[Answer]] = {}
        self._forgetting: asyncio.TimerHandle | None = None
        self._hosts: dict[str, tuple[str, ...]] = {}
        self._hosts_seen: tuple[int, int, int] | None = None
        self.look_at_hosts_file()

    def cached(self, name: str, now: float) -> Answer | None:
        """What is known without asking. now is on the clock of time.monotonic."""
        found = self._hosts.get(name)
        if found is not None:
            return found
        kept = self._cache.get(name)
        return kept[1] if kept is not None and now < kept[0] else None

    async def find(self, name: str) -> Answer:
        """What is known, or else what the servers say; for those who have time."""
        known = self.cached(name, monotonic())
        # Shielded, because others may have asked for the same.
        return await asyncio.shield(self.ask(name)) if known is None else known

    def ask(self, name: str) -> asyncio.Future[Answer]:
        """Ask the servers; all who ask for a name at the same time share one question."""
        task = self._asking.get(name)
        if task is None:
            task = self._loop.create_task(self._ask(name))
            self._asking[name] = task
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        return task

    def look_at_hosts_file(self) -> None:
        """Read the hosts file again if it has changed; none is an empty one."""
        path = Path(self._settings.hosts_file)
        try:
            status = path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._hosts_seen:
                return
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            self._hosts, self._hosts_seen = {}, None
            return
        except OSError:
            return  # what was known is better than nothing
        self._hosts_seen = seen
        hosts: dict[str, tuple[str, ...]] = {}
        for line in lines:
            words = line.partition("#")[0].split()
            for word in words[1:]:
                try:
                    address = str(ip_address(words[0]))
                    name = canonical_host(word).text
                except (ValueError, HostError):
                    continue
                hosts[name] = (*hosts.get(name, ()), address)
        self._hosts = hosts

    async def close(self) -> None:
        """Give up what is being asked."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()

    async def _ask(self, name: str) -> Answer:
        settings = self._settings
        end = monotonic() + settings.timeout
        four, six = (self._loop.create_task(self._query(name, kind)) for kind in ("A", "AAAA"))
        try:
            await asyncio.wait([four], timeout=settings.timeout)
            usable = four.done() and not isinstance(four.result()[0], Reason)
            # Name servers exist that never answer for AAAA.
            await asyncio.wait(
                [six], timeout=_SECOND_ANSWER if usable else max(end - monotonic(), 0)
            )
            answers = [
                task.result() if task.done() else (reasons.DNS_TIMEOUT, 0.0) for task in (four, six)
            ]
        finally:
            four.cancel()
            six.cancel()
        addresses: tuple[str, ...] = ()
        ttls: list[float] = []
        for found, seconds in answers:
            if not isinstance(found, Reason):
                addresses += found
                ttls.append(seconds)
        answer: Answer = addresses
        if not addresses:
            failures = [found for found, _ in answers if isinstance(found, Reason)]
            telling = [reason for reason in failures if reason is not reasons.DNS_NO_ADDRESS]
            answer = telling[0] if telling else reasons.DNS_NO_ADDRESS
            ttl = settings.negative_ttl
            self._forget()
        else:
            ttl = min(max(min(ttls), settings.min_ttl), settings.max_ttl)
            if max(ttls) > settings.max_ttl:
                self._forget()
        if len(self._cache) >= settings.cache_entries:
            self._cache.pop(next(iter(self._cache)))
        self._cache.pop(name, None)
        self._cache[name] = (monotonic() + ttl, answer)
        return answer

    def _forget(self) -> None:
        """Empty c-ares' own cache soon.

        It would keep failures for as long as their SOA record says, hours perhaps, and answers for
        up to an hour, whatever the configuration says; and it cannot be turned off from here.
        Reading its configuration again empties it.
        """
        if self._forgetting is None:
            self._forgetting = self._loop.call_later(_FORGET, self._reinit)

    def _reinit(self) -> None:
        self._forgetting = None
        self._channel._channel.reinit()  # noqa: SLF001 - aiodns does not pass it on

    async def _query(self, name: str, kind: str) -> tuple[Answer, float]:
        """The addresses of one kind and their TTL in seconds."""
        try:
            result = await self._channel.query_dns(name, kind)
        except aiodns.error.DNSError as error:
            code = error.args[0] if error.args else 0
            if code == _NOT_FOUND:
                return reasons.DNS_NXDOMAIN, 0.0
            if code == _NO_DATA:
                return reasons.DNS_NO_ADDRESS, 0.0
            return (reasons.DNS_TIMEOUT if code == _TIMEOUT else reasons.DNS_FAILURE), 0.0
        # c-ares keeps the chain of CNAMEs in the answer; only records that hold an address count.
        records = [
            (record.data.addr, record.ttl)
            for record in result.answer
            if hasattr(record.data, "addr")
        ]
        if not records:
            return reasons.DNS_NO_ADDRESS, 0.0
        return tuple(address for address, _ in records), float(min(ttl for _, ttl in records))
