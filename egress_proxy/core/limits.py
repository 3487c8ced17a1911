"""What a policy lets each of its tenants do at most: numbers alone, no counters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Which limit was reached: the value of the metric's label ``kind``, and the reason's name in the log."""

    REQUEST_RATE = "request_rate"
    TUNNELS = "tunnel_limit"
    NEW_HOSTS = "new_hosts_limit"
    REQUEST_BUDGET = "request_budget"
    BYTE_BUDGET = "byte_budget"
    STORE_UNAVAILABLE = "store_unavailable"
    """No limit: the store that counts is away."""


class Direction(StrEnum):
    """Which way bytes go."""

    UP = "up"
    """To the origin."""
    DOWN = "down"
    """To the client."""
    BOTH = "both"
    """The two together."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``policies[].limits``: each tenant of the policy has all of it to itself. None is no limit."""

    requests_per_second: float | None = None
    """Requests, CONNECT among them, on average."""
    burst: int | None = None
    """Requests that may come at once after a rest; by default what one second allows, rounded up."""
    tunnels: int | None = None
    """CONNECT tunnels that are open at once."""
    requests_per_day: int | None = None
    bytes_up_per_day: int | None = None
    bytes_down_per_day: int | None = None
    bytes_per_day: int | None = None
    """In both directions together."""
    time_zone: str = "UTC"
    """In which a day begins at midnight: a name of the IANA database, which the reader has found there."""
    bandwidth: int | None = None
    """Bytes per second, in each direction, of all that a tenant has open."""
    tunnel_bandwidth: int | None = None
    """Bytes per second, in each direction, of each tunnel or request."""
    new_hosts_per_hour: int | None = None
    """Different hosts that a tenant may start to talk to within any hour."""

    @property
    def burst_or_default(self) -> int:
        """The burst that holds where a rate does."""
        return self.burst if self.burst is not None else math.ceil(self.requests_per_second or 0)

    @property
    def counts_bytes(self) -> bool:
        """Whether a byte budget holds, so that bytes have to be told."""
        return not (
            self.bytes_per_day is None
            and self.bytes_up_per_day is None
            and self.bytes_down_per_day is None
        )

    @property
    def has_window(self) -> bool:
        """Whether anything is counted by the day."""
        return self.requests_per_day is not None or self.counts_bytes

    @property
    def paces(self) -> bool:
        return self.bandwidth is not None or self.tunnel_bandwidth is not None
