"""Counters that many replicas share, in Redis or Valkey.

Requests are counted there, each with one script for all of its charges; tunnels as well, by replica, so that those of a
replica that died can be told from the others'; budgets of bytes are leased in slices, which tunnels then spend without
asking. What a replica has counted itself it tells again whenever the store may not know. So an outage, of the store or
of its memory, loses no more than what a replica that died meanwhile had counted.

Every key has the configured prefix in braces, which puts all of them into one slot of a cluster, because a request may
be charged to several tenants at once; and each of them expires.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final

from egress_proxy.config.model import OnStoreFailure, SharedState
from egress_proxy.core.limits import Kind, Limits
from egress_proxy.core.policy import Policy
from egress_proxy.core.tenant import Charge
from egress_proxy.limits import gcra
from egress_proxy.limits.leases import Asked, SharedAccount, digest
from egress_proxy.limits.link import Argument, Call, Change, Link, Script
from egress_proxy.limits.local import _LOOKS, HOUR, MAX_TENANTS, OVERFLOW, LocalStore
from egress_proxy.limits.store import Account, AccountState, Exceeded, Near

#: Seconds for which the keys of tunnels and of the living are kept. What still holds is told more often.
_LIFE: Final = 3600
_TOLD_AGAIN: Final = _LIFE / 4
#: Seconds that the end of a tunnel waits for company before it is told.
_TELL_AFTER: Final = 0.05
#: Accounts that are told of in one batch, before the requests that wait.
_TELLS: Final = 64
#: Beats within a lease at least: with two lost, a replica still lives.
_BEATS: Final = 3
#: Seconds between two beats at most: they also show that the store is there.
_BEAT_SECONDS: Final = 1.0
#: Seconds after which a request is told to come again when there is no store to count it.
_AWAY: Final = 5.0
#: Accounts about which people are told news; of more, what was last known.
_FRESH: Final = 1000

_ADMIT: Final = Script("common", "admit")
_TELL: Final = Script("common", "tell")
_BEAT: Final = Script("common", "beat")
_LEAVE: Final = Script("leave")

_KINDS: Final = {kind.value: kind for kind in Kind}

Answer = tuple[Account, ...] | Exceeded


class SharedStore(LocalStore):
    """Counters of all tenants of all replicas.

    ``on_store`` hears when the store is within reach no more, and again. It is to be started before it is asked.
    """

    def __init__(
        self,
        settings: SharedState,
        on_near: Callable[[Near], None],
        on_store: Callable[[Change], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(on_near, monotonic=monotonic, wall=wall)
        self._own_wall = wall
        self._ahead = 0.0
        """Seconds by which the store's clock is ahead of ours."""
        self.wall = self._store_time
        self.replica = secrets.token_hex(8)
        """This replica's name in the store: another one after each start."""
        self._settings = settings
        self._pace = min(settings.lease / _BEATS, _BEAT_SECONDS)
        self.closes = settings.on_store_failure is OnStoreFailure.CLOSED
        """Whether nothing may be counted without the store."""
        self._prefix = f"{{{settings.prefix}}}"
        self._living = f"{self._prefix}:replicas"
        self._on_store = on_store
        self._link: Link | None = None
        self._dirty: dict[SharedAccount, None] = {}
        self._holding: dict[SharedAccount, None] = {}
        """Accounts that hold slices."""
        self._doubtful: dict[SharedAccount, None] = {}
        """Accounts of which the store may still hear what a connection carried that is lost."""
        self._flush: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told_again_at = 0.0
        self._ending = False

    def start(self) -> None:
        """Begin to connect, and go on trying where that fails. Called in the event loop's thread, once."""
        self._link = Link(self._settings, self._connected, self._news, self._on_store)
        self._timer = self._link.loop.call_later(self._pace, self._beat)

    async def ready(self, seconds: float) -> None:
        """Wait until the first attempt to connect has come to its end, for so long at most."""
        if self._link is not None:
            await self._link.ready(seconds)

    def status(self) -> tuple[bool, int]:
        """Whether the store answers, and how often it was lost or not reached: for metrics."""
        return self.up, self.failures

    @property
    def up(self) -> bool:
        """Whether the store answers."""
        return self._link is not None and self._link.up

    @property
    def failures(self) -> int:
        """Times that it could not be reached, or was lost."""
        return 0 if self._link is None else self._link.failures

    # Requests ----------------------------------------------------------------------------------------------------

    def admit(  # type: ignore[override]  # who asks a store of either kind asks a Store
        self, charges: tuple[Charge, ...], host: str, *, tunnel: bool
    ) -> Answer | asyncio.Future[Answer]:
        """Count one request for all the charges, or for none: the first limit in their order refuses."""
        accounts = [self._account_of(*charge) for charge in charges]
        link = self._link
        if link is None or not link.up:
            return self._decide_alone(accounts, host, tunnel=tunnel, away=True)
        now, wall = self.monotonic(), self.wall()
        must_ask = False
        for account in accounts:
            refused = account.surely_refused(now, wall, tunnel=tunnel)
            if refused is not None:
                return refused
            must_ask = must_ask or account.must_ask(host, wall, tunnel=tunnel)
        if not must_ask:
            return self._decide_alone(accounts, host, tunnel=tunnel, away=False)

        keys = [self._living]
        arguments: list[Argument] = [self.replica, digest(host), int(tunnel)]
        epsilon = gcra._EPSILON  # noqa: SLF001 - the script is the same arithmetic
        arguments += [repr(epsilon), repr(HOUR), _LIFE, len(accounts)]
        asked: list[Asked] = []
        for account in accounts:
            keys += account.keys
            more, about = account.admit_arguments(now)
            arguments += more
            asked.append(about)
        future: asyncio.Future[Answer] = link.loop.create_future()

        def answered(reply: Any) -> None:
            for account, about in zip(accounts, asked, strict=True):
                if about.slices:
                    account.asking = False
            if future.cancelled():
                # Whoever asked is gone. What was counted is given back.
                if reply is not None:
                    answer = self._answer(accounts, asked, _words(reply), host, now, tunnel=tunnel)
                    if not isinstance(answer, Exceeded):
                        self.release(answer, tunnel=tunnel)
                return
            if reply is None:
                # It may have been counted, or not: what is told next says how many there are.
                for account in accounts:
                    self.tell_later(account)
                    self._doubtful[account] = None
                future.set_result(self._decide_alone(accounts, host, tunnel=tunnel, away=True))
            else:
                future.set_result(
                    self._answer(accounts, asked, _words(reply), host, now, tunnel=tunnel)
                )

        link.call(_ADMIT, keys, arguments, answered)
        return future

    def _answer(
        self,
        accounts: list[SharedAccount],
        asked: list[Asked],
        words: Iterator[str],
        host: str,
        now: float,
        *,
        tunnel: bool,
    ) -> Answer:
        """What the store says to a request."""
        if next(words) == "0":
            told_at, number = float(next(words)), int(next(words))
            kind, wait = _KINDS[next(words)], float(next(words))
            account = accounts[number - 1]
            if kind is Kind.REQUEST_BUDGET:
                # Others have used it up, which nobody gives back.
                account.requests = max(account.requests, account.limits.requests_per_day or 0)
            return account.exceeded(kind, wait, told_at)
        wall, _ = float(next(words)), next(words)
        for account, about in zip(accounts, asked, strict=True):
            account.count_asked(host, now, wall, words, tunnel=tunnel)
            account.leased(about, words)
            if about.slices:
                self._holding[account] = None
        return tuple(accounts)

    def _decide_alone(
        self, accounts: list[SharedAccount], host: str, *, tunnel: bool, away: bool
    ) -> Answer:
        """Count by what this replica knows: because that is enough, or because the store is away."""
        now, wall = self.monotonic(), self.wall()
        for account in accounts:
            if away and self.closes and account.is_shared:
                return account.exceeded(Kind.STORE_UNAVAILABLE, _AWAY, wall)
            refused = account.refusal(host, now, wall, tunnel=tunnel)
            if refused is not None:
                return refused
        for account in accounts:
            account.count(host, now, wall, tunnel=tunnel)
        return tuple(accounts)

    # Accounts ----------------------------------------------------------------------------------------------------

    def _account_of(self, policy: Policy, tenant: str) -> SharedAccount:
        accounts = self._shared.get(policy.name)
        found = accounts.get(tenant) if accounts is not None else None
        if found is not None:
            return found
        return self.account(
            policy.name, tenant, self._limits.get(policy.name) or policy.limits or Limits()
        )

    def account(self, policy: str, tenant: str, limits: Limits) -> SharedAccount:
        """The tenant's account, made if there is none; where there are too many, the one that the rest share.

        One that is let go loses nothing, for the store knows it. So there are too many only while that is away, or of
        tenants that have something open.
        """
        accounts = self._shared.setdefault(policy, OrderedDict())
        found = accounts.get(tenant)
        if found is not None:
            return found
        now, wall = self.monotonic(), self.wall()
        for _ in range(min(_LOOKS, len(accounts))):
            oldest, account = next(iter(accounts.items()))
            if account.is_new(now, wall):
                del accounts[oldest]
            else:
                accounts.move_to_end(oldest)
        if len(accounts) >= MAX_TENANTS and tenant != OVERFLOW:
            return self.account(policy, OVERFLOW, limits)
        account = accounts[tenant] = SharedAccount(self, policy, tenant, limits)
        return account

    @property
    def _shared(self) -> dict[str, OrderedDict[str, SharedAccount]]:
        return self._accounts  # type: ignore[return-value]  # account() puts no others there

    def keys_of(self, policy: str, tenant: str, day: int) -> tuple[str, ...]:
        """The names of an account's keys: neither a policy's nor a tenant's name has a colon."""
        prefix, of = self._prefix, f"{policy}:{tenant}"
        return (
            f"{prefix}:rate:{of}",
            f"{prefix}:tunnels:{of}",
            f"{prefix}:day:{of}:{day}",
            f"{prefix}:hosts:{of}",
        )

    async def states(self) -> list[AccountState]:
        """What each tenant that this replica knows has used at all of them, by policy and tenant."""
        known = [
            account
            for _, accounts in sorted(self._shared.items())
            for _, account in sorted(accounts.items())
            if account.held or account.has_counted()
        ]
        if self._link is not None and self._link.up:
            news = [self._link.loop.create_future() for _ in known[:_FRESH]]
            for account, future in zip(known, news, strict=False):
                account.waiting.append(future)
                self._mark(account)
            self._link.wake()
            if news:
                await asyncio.wait(news, timeout=2 * self._settings.timeout)
        wall = self.wall()
        return [account.state(wall) for account in known]

    # What is told later ------------------------------------------------------------------------------------------

    def tell_later(self, account: SharedAccount) -> None:
        """Tell the store what this account has counted, with others."""
        self._mark(account)
        if self._flush is None and self._link is not None and self._link.up:
            self._flush = self._link.loop.call_later(_TELL_AFTER, self._flush_now)

    def more_wanted(self, account: SharedAccount) -> None:
        """Ask for more of its budgets, at once."""
        self._mark(account)
        if self._link is not None:
            self._link.wake()

    def _mark(self, account: SharedAccount) -> None:
        account.dirty = True
        self._dirty[account] = None

    def _flush_now(self) -> None:
        self._flush = None
        if self._link is not None:
            self._link.wake()

    def _news(self) -> list[Call]:
        """What goes out before the requests that wait."""
        if not self._dirty or self._link is None:
            return []
        told: list[Call] = []
        for account in list(itertools.islice(self._dirty, _TELLS)):
            if account.asking:
                # Its answer first. The account goes to the end, so that it holds up no others.
                self._dirty[account] = self._dirty.pop(account)
            else:
                told.append(self._tell(account))
        return told

    def _tell(self, account: SharedAccount) -> Call:
        assert self._link is not None  # noqa: S101 - the link alone asks for it
        del self._dirty[account]
        account.dirty = False
        waiting, account.waiting = account.waiting, []
        now = self.monotonic()
        keep = account.active and not self._ending
        more, asked = account.tell_arguments(now, self.wall(), keep=keep)
        limited = account.limits.tunnels is not None
        arguments: list[Argument] = [
            self.replica,
            account.own_tunnels if limited else "-",
            _LIFE,
            *more,
        ]

        def answered(reply: Any) -> None:
            account.asking = False
            if reply is None:
                account.untold(asked)
                self._mark(account)
                self._doubtful[account] = None
            else:
                account.told(asked, now, list(_words(reply)))
                if any(each.held > each.spent for each in account.slices):
                    self._holding[account] = None
                else:
                    self._holding.pop(account, None)
            for future in waiting:
                if not future.done():
                    future.set_result(None)

        keys = [self._living, *account.keys]
        return self._link.prepare(_TELL, keys, arguments, answered)

    # The store's coming and going --------------------------------------------------------------------------------

    async def _connected(self) -> None:
        """Say that this replica lives, and tell what the store does not know, before any request is asked."""
        assert self._link is not None  # noqa: S101 - it calls
        await self._link.ask([self._beat_call()])
        while self._dirty:
            for account in itertools.islice(self._dirty, _TELLS):
                # The answer that it waited for will not come any more.
                account.asking = False
            await self._link.ask(self._news())

    def _beat(self) -> None:
        """Say that this replica lives, a few times within its lease, and give back what is not used."""
        link = self._link
        if link is None or self._ending:
            return
        self._timer = link.loop.call_later(self._pace, self._beat)
        if not link.up:
            return
        for account in list(self._holding):
            if account.rest():
                self.tell_later(account)
        for account in self._doubtful:
            self.tell_later(account)
        self._doubtful.clear()
        now = self.monotonic()
        if now - self._told_again_at > _TOLD_AGAIN:
            self._told_again_at = now
            for accounts in self._shared.values():
                for account in accounts.values():
                    if account.own_tunnels:
                        self.tell_later(account)
        link.call(*self._beat_call()[:4])

    def _beat_call(self) -> Call:
        assert self._link is not None  # noqa: S101 - both callers have one
        asked = self._own_wall()

        def answered(reply: Any) -> None:
            if reply is None:
                return
            known, _, now = _words(reply)
            self._ahead = float(now) - (asked + self._own_wall()) / 2
            if known == "0":
                # It has just begun, or the store has lost its memory, or took this replica for dead.
                for accounts in self._shared.values():
                    for account in accounts.values():
                        if account.has_counted():
                            account.untold_hosts = dict(account.hosts)
                            self._mark(account)

        arguments: list[Argument] = [self.replica, repr(self._settings.lease), _LIFE]
        return self._link.prepare(_BEAT, [self._living], arguments, answered)

    async def close(self) -> None:
        """Give back slices and tunnels, and disconnect."""
        self._ending = True
        for handle in (self._timer, self._flush):
            if handle is not None:
                handle.cancel()
        link = self._link
        if link is None:
            return
        if link.up:
            for account in self._holding:
                self._mark(account)
            link.call(_LEAVE, [self._living], [self.replica], _ignore)
        await link.close()
        self._link = None

    def _store_time(self) -> float:
        return self._own_wall() + self._ahead


def _words(reply: Any) -> Iterator[str]:
    """An answer's words. Raises TypeError, UnicodeDecodeError: the store is not ours, or a defect."""
    return iter(bytes(reply).decode("ascii").split())


def _ignore(_reply: Any) -> None:
    pass
