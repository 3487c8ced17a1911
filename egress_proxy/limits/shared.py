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
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final

from egress_proxy.config.model import OnStoreFailure, SharedState
from egress_proxy.core.limits import Kind, Limits
from egress_proxy.core.policy import Policy
from egress_proxy.core.tenant import Charge
from egress_proxy.limits import answers, gcra, hosts
from egress_proxy.limits.link import Argument, Change, Link, Script
from egress_proxy.limits.local import LocalStore
from egress_proxy.limits.shared_account import Asked, SharedAccount, digest
from egress_proxy.limits.store import Account, AccountState, Exceeded, Near
from egress_proxy.limits.telling import LIFE, Teller

#: Seconds after which a request is told to come again when there is no store to count it.
_AWAY: Final = 5.0
#: Accounts about which people are told news; of more, what was last known.
_FRESH: Final = 1000

_ADMIT: Final = Script("common", "admit")

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
        self.replica = secrets.token_hex(8)
        """This replica's name in the store: another one after each start."""
        self.closes = settings.on_store_failure is OnStoreFailure.CLOSED
        """Whether nothing may be counted without the store."""
        self._settings = settings
        self._prefix = f"{{{settings.prefix}}}"
        self._living = f"{self._prefix}:replicas"
        self._on_store = on_store
        self._link: Link | None = None
        self.teller = Teller(
            *(self.replica, self._living, settings.lease, self._known),
            monotonic=monotonic,
            own_wall=wall,
        )
        self.wall = self.teller.wall

    def start(self) -> None:
        """Begin to connect, and go on trying where that fails. Called in the event loop's thread, once."""
        teller = self.teller
        self._link = Link(self._settings, teller.connected, teller.news, self._on_store)
        teller.start(self._link)

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
        return self._ask(link, accounts, host, now, tunnel=tunnel)

    def _ask(
        self, link: Link, accounts: list[SharedAccount], host: str, now: float, *, tunnel: bool
    ) -> asyncio.Future[Answer]:
        """What the store says to a request, or what this replica does where no answer comes."""
        keys = [self._living]
        arguments: list[Argument] = [self.replica, digest(host), int(tunnel)]
        epsilon = gcra._EPSILON  # noqa: SLF001 - the script is the same arithmetic
        arguments += [repr(epsilon), repr(hosts.HOUR), hosts.MAX_HOSTS, LIFE, len(accounts)]
        asked: list[Asked] = []
        for account in accounts:
            keys += account.keys
            more, about = account.admit_arguments(now)
            account.asked += 1
            arguments += more
            asked.append(about)
        future: asyncio.Future[Answer] = link.loop.create_future()
        budgets = tuple(about.budgets for about in asked)
        waits = True

        def answered(reply: Any) -> None:
            nonlocal waits
            found = None if reply is None else answers.admitted(reply, budgets)
            if waits:
                waits = False
                for account, about in zip(accounts, asked, strict=True):
                    account.asked -= 1
                    if about.slices:
                        account.asking = False
            if found is not None:
                answer = self._answer(accounts, asked, found, host, now, tunnel=tunnel)
                if not future.cancelled():
                    future.set_result(answer)
                elif not isinstance(answer, Exceeded):
                    # Whoever asked is gone. What was counted is given back.
                    self.release(answer, tunnel=tunnel)
                return
            # It may have been counted, or not: what is told next says how many there are.
            for account in accounts:
                self.teller.in_doubt(account)
            if not future.cancelled():
                future.set_result(self._decide_alone(accounts, host, tunnel=tunnel, away=True))

        link.call(_ADMIT, keys, arguments, answered)
        return future

    def _answer(
        self,
        accounts: list[SharedAccount],
        asked: list[Asked],
        found: answers.Admitted | answers.Refused,
        host: str,
        now: float,
        *,
        tunnel: bool,
    ) -> Answer:
        """What the store says to a request."""
        if isinstance(found, answers.Refused):
            account = accounts[found.charge]
            if asked[found.charge].day == account.start:
                account.refused(now, found)
            return account.exceeded(found.kind, found.wait, found.wall, all_hosts=found.all_hosts)
        for account, counted, about in zip(accounts, found.charges, asked, strict=True):
            account.count_asked(host, now, found.wall, counted, about, tunnel=tunnel)
            if about.slices:
                self.teller.holds(account)
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
            account.count_alone(host, now, wall, tunnel=tunnel)
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
        found = super().account(policy, tenant, limits)
        assert isinstance(found, SharedAccount)  # noqa: S101 - as it is made below
        return found

    def _new_account(self, policy: str, tenant: str, limits: Limits) -> SharedAccount:
        return SharedAccount(self, policy, tenant, limits)

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
            f"{prefix}:started:{policy}",
        )

    def _known(self) -> Iterator[SharedAccount]:
        for accounts in self._shared.values():
            yield from accounts.values()

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
            self.teller.at_once(known[:_FRESH])
            if news:
                await asyncio.wait(news, timeout=2 * self._settings.timeout)
        wall = self.wall()
        return [account.state(wall) for account in known]

    async def close(self) -> None:
        """Give back slices and tunnels, and disconnect."""
        self.teller.end()
        link, self._link = self._link, None
        if link is not None:
            await link.close()
