"""What a replica tells the store of its own accord: that it lives, what it has counted, and what it gives back.

What is to be told waits for a moment, and goes out with others, before the requests that wait. With each new connection
all of it is told, before any request is asked: the store may have lost what it knew, or have a successor that missed
the last of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

from egress_proxy.limits import answers
from egress_proxy.limits.hosts import HOUR
from egress_proxy.limits.link import Argument, Call, Link, Script
from egress_proxy.limits.shared_account import HOSTS_AT_ONCE, SharedAccount

#: Seconds for which the keys of tunnels and of the living are kept. What still holds is told more often.
LIFE: Final = 3600
_TOLD_AGAIN: Final = LIFE / 4
#: Seconds that the end of a tunnel waits for company before it is told.
_TELL_AFTER: Final = 0.05
#: Accounts that are told of in one batch, before the requests that wait.
_TELLS: Final = 64
#: Beats within a lease at least: with two lost, a replica still lives.
_BEATS: Final = 3
#: Seconds between two beats at most: they also show that the store is there.
_BEAT_SECONDS: Final = 1.0

_TELL: Final = Script("common", "tell")
_BEAT: Final = Script("common", "beat")
_LEAVE: Final = Script("leave")


class Teller:
    """Tells the store about this replica's accounts."""

    def __init__(
        self,
        replica: str,
        living: str,
        lease: float,
        accounts: Callable[[], Iterable[SharedAccount]],
        *,
        monotonic: Callable[[], float],
        own_wall: Callable[[], float],
    ) -> None:
        self.ahead = 0.0
        """Seconds by which the store's clock is ahead of ours."""
        self._replica = replica
        self._living = living
        self._lease = lease
        self._pace = min(lease / _BEATS, _BEAT_SECONDS)
        self._accounts = accounts
        self._monotonic = monotonic
        self._own_wall = own_wall
        self._link: Link | None = None
        self._dirty: dict[SharedAccount, None] = {}
        """Accounts that have something to tell."""
        self._holding: dict[SharedAccount, None] = {}
        """Accounts that hold slices."""
        self._doubtful: dict[SharedAccount, None] = {}
        """Accounts of which the store may still hear what a connection carried that is lost."""
        self._flush: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told_again_at = 0.0
        self._ending = False

    def start(self, link: Link) -> None:
        """Say from now on, a few times within each lease, that this replica lives."""
        self._link = link
        self._timer = link.loop.call_later(self._pace, self._beat)

    def wall(self) -> float:
        """The store's clock: seconds since the epoch."""
        return self._own_wall() + self.ahead

    # What is told ------------------------------------------------------------------------------------------------

    def later(self, account: SharedAccount) -> None:
        """Tell what this account has counted, with others."""
        self._mark(account)
        if self._flush is None and self._link is not None and self._link.up:
            self._flush = self._link.loop.call_later(_TELL_AFTER, self._flush_now)

    def at_once(self, accounts: Iterable[SharedAccount]) -> None:
        """Tell it with the next batch."""
        for account in accounts:
            self._mark(account)
        if self._link is not None:
            self._link.wake()

    def in_doubt(self, account: SharedAccount) -> None:
        """The store may have counted a request or not, or still do so: tell it what is true, now and once more."""
        self.later(account)
        self._doubtful[account] = None

    def holds(self, account: SharedAccount) -> None:
        """It has got slices, which are given back when nobody spends anything of them."""
        self._holding[account] = None

    def _mark(self, account: SharedAccount) -> None:
        account.dirty = True
        self._dirty[account] = None

    def _flush_now(self) -> None:
        self._flush = None
        if self._link is not None:
            self._link.wake()

    def news(self) -> list[Call]:
        """What goes out before the requests that wait."""
        told: list[Call] = []
        hosts = 0
        if not self._dirty:
            return told
        for account in list(islice(self._dirty, _TELLS)):
            if account.asking:
                # Its answer first. The account goes to the end, so that it holds up no others.
                self._dirty[account] = self._dirty.pop(account)
                continue
            hosts += min(len(account.untold_hosts), HOSTS_AT_ONCE)
            told.append(self._tell(account))
            if hosts >= HOSTS_AT_ONCE:
                break
        return told

    def _tell(self, account: SharedAccount) -> Call:
        assert self._link is not None  # noqa: S101 - the link alone asks for it
        del self._dirty[account]
        account.dirty = False
        waiting, account.waiting = account.waiting, []
        now = self._monotonic()
        keep = account.active and not self._ending
        more, asked = account.tell_arguments(now, self.wall(), keep=keep)

        def answered(reply: Any) -> None:
            account.asking = False
            if reply is None:
                account.untold(asked)
                self._mark(account)
                self._doubtful[account] = None
            else:
                if account.told(asked, now, answers.told(reply, asked.budgets)):
                    self._mark(account)
                if account.holds:
                    self._holding[account] = None
                else:
                    self._holding.pop(account, None)
            for future in waiting:
                if not future.done():
                    future.set_result(None)

        keys = [self._living, *account.keys]
        arguments: list[Argument] = [self._replica, LIFE, repr(HOUR), *more]
        return self._link.prepare(_TELL, keys, arguments, answered)

    # The store's coming and going --------------------------------------------------------------------------------

    async def connected(self) -> None:
        """Say that this replica lives, and tell what the store may not know, before any request is asked."""
        assert self._link is not None  # noqa: S101 - it calls
        await self._link.ask([self._beat_call()])
        self._tell_all()
        while self._dirty:
            for account in islice(self._dirty, _TELLS):
                # The answer that it waited for will not come any more.
                account.asking = False
            await self._link.ask(self.news())

    def _tell_all(self) -> None:
        for account in self._accounts():
            if account.has_counted():
                account.tell_all()
                self._mark(account)

    def _beat(self) -> None:
        """Say that this replica lives, a few times within its lease, and give back what is not used."""
        link = self._link
        if link is None or self._ending:
            return
        self._timer = link.loop.call_later(self._pace, self._beat)
        if not link.up:
            return
        for account in list(self._holding):
            if not account.holds:
                del self._holding[account]
            elif account.rest():
                self.later(account)
        for account in self._doubtful:
            self.later(account)
        self._doubtful.clear()
        now = self._monotonic()
        if now - self._told_again_at > _TOLD_AGAIN:
            self._told_again_at = now
            for account in self._accounts():
                if account.own_tunnels:
                    self.later(account)
        link.call(*self._beat_call()[:4])

    def _beat_call(self) -> Call:
        assert self._link is not None  # noqa: S101 - both callers have one
        asked = self._own_wall()

        def answered(reply: Any) -> None:
            if reply is None:
                return
            known, wall = answers.beaten(reply)
            self.ahead = wall - (asked + self._own_wall()) / 2
            if not known:
                # The store has lost its memory, or took this replica for dead.
                self._tell_all()

        arguments: list[Argument] = [self._replica, repr(self._lease), LIFE]
        return self._link.prepare(_BEAT, [self._living], arguments, answered)

    def end(self) -> None:
        """Give back slices and tunnels with the last batches."""
        self._ending = True
        for handle in (self._timer, self._flush):
            if handle is not None:
                handle.cancel()
        link, self._link = self._link, None
        if link is not None and link.up:
            for account in self._holding:
                self._mark(account)
            self._link = link
            link.call(_LEAVE, [self._living], [self._replica], _ignore)


def _ignore(_reply: Any) -> None:
    pass
