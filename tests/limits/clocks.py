"""Time as an argument, and policies with limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from egress_proxy.core.limits import Limits
from egress_proxy.core.policy import CompiledPolicy, Mode, Place, Policy
from egress_proxy.core.reason import Reason
from egress_proxy.core.tenant import Charge
from egress_proxy.limits.limiter import Admission, Limiter, Refusal
from egress_proxy.limits.local import LocalStore
from egress_proxy.limits.store import Near

#: 2026-11-23 12:00:00 UTC.
NOON = 1_795_435_200.0
HOUR = 3600
DAY = 24 * HOUR
HALF = DAY // 2


@dataclass
class Clock:
    """A monotonic clock and a wall clock, which go together until one of them is set."""

    now: float = 1000.0
    epoch: float = NOON

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.epoch

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.epoch += seconds


def policy(name: str = "everyone", limits: Limits | None = None, **more: Any) -> Policy:
    return Policy(name, (), None, Place("f", 1, 1), limits=limits, **more)


@dataclass
class Limited:
    """A limiter over a store of this process, with what it has told."""

    clock: Clock = field(default_factory=Clock)
    near: list[Near] = field(default_factory=list)
    exceeded: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        clock = self.clock
        self.store = LocalStore(self.near.append, monotonic=clock.monotonic, wall=clock.wall)
        self.limiter = Limiter(
            self.store,
            lambda kind, policy: self.exceeded.append((kind.value, policy)),
            monotonic=clock.monotonic,
        )

    def adopt(self, *policies: Policy, mode: Mode = Mode.ENFORCE) -> None:
        self.limiter.adopt(CompiledPolicy(policies, mode))

    def ask(
        self, *policies: Policy, tenant: str = "t", host: str = "a.test", tunnel: bool = False
    ) -> Admission | Refusal:
        charges = tuple(Charge(each, tenant) for each in policies)
        answer = self.limiter.admit(charges, host, tunnel=tunnel)
        assert isinstance(answer, Admission | Refusal)
        return answer

    def passes(self, *policies: Policy, tenant: str = "t", host: str = "a.test") -> bool:
        """Whether a request passes, which is over at once."""
        answer = self.ask(*policies, tenant=tenant, host=host)
        if isinstance(answer, Refusal):
            return False
        answer.release()
        return True

    def refused(self, *policies: Policy, tenant: str = "t", host: str = "a.test") -> Refusal:
        answer = self.ask(*policies, tenant=tenant, host=host)
        assert isinstance(answer, Refusal)
        return answer

    def admitted_at(self, policy: Policy, host: str, *, tunnel: bool) -> Admission:
        answer = self.ask(policy, host=host, tunnel=tunnel)
        assert isinstance(answer, Admission), answer
        return answer

    def admitted(self, *policies: Policy, tenant: str = "t", tunnel: bool = False) -> Admission:
        answer = self.ask(*policies, tenant=tenant, tunnel=tunnel)
        assert isinstance(answer, Admission), answer
        return answer


def limited(*policies: Policy, mode: Mode = Mode.ENFORCE) -> Limited:
    made = Limited()
    made.adopt(*policies, mode=mode)
    return made


def reason_of(answer: Admission | Refusal) -> Reason | None:
    return answer.reason if isinstance(answer, Refusal) else None
