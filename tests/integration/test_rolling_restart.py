"""A proxy that takes another one's place on the same port, under load, loses no request."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from typing import Self

import pytest

from tests.conftest import StartProxy
from tests.support.client import RawClient
from tests.support.origin import Origin
from tests.support.proxy import COMMAND
from tests.support.tools import wait_until

#: Requests a second, each on a connection of its own.
RATE = 200
#: Seconds between a connection and its request: a way of some length. At any moment some are in between.
DISTANCE = 0.03
#: Requests that each of the two serves alone.
ALONE = 60


class Load:
    """Clients that ask at a steady rate, whatever becomes of their requests."""

    def __init__(self, address: str, url: str, threads: int = 10) -> None:
        self.outcomes: Counter[str] = Counter()
        self._address = address
        self._url = url
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(threads / RATE,)) for _ in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)

    @property
    def asked(self) -> int:
        return self.outcomes.total()

    def wait_for_more(self, count: int) -> None:
        wanted = self.asked + count
        wait_until(lambda: self.asked >= wanted, seconds=20, what=f"{count} more requests")

    def _run(self, interval: float) -> None:
        due = time.monotonic()
        while not self._over.is_set():
            outcome = self._once()
            with self._lock:
                self.outcomes[outcome] += 1
            due += interval
            time.sleep(max(0.0, due - time.monotonic()))

    def _once(self) -> str:
        try:
            with RawClient(self._address) as client:
                time.sleep(DISTANCE)
                return str(client.get(self._url, head="Connection: close\r\n").status)
        except (OSError, AssertionError) as error:
            return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_is_lost(start_proxy: StartProxy, origin: Origin, workers: int) -> None:
    options = {"command": (*COMMAND, "--reuse-port", "--workers", str(workers))}
    old = start_proxy(options=options)
    with Load(old.address, f"http://origin.test:{origin.http}/") as load:
        load.wait_for_more(ALONE)
        new = start_proxy(options=options, listen={"proxy": old.address, "admin": old.admin})
        assert (new.address, new.admin) == (old.address, old.admin)
        old.signal(signal.SIGTERM)
        assert old.wait(20) == 0
        load.wait_for_more(ALONE)
    assert load.outcomes == {"200": load.asked}
    wait_until(
        lambda: len(old.lines) + len(new.lines) == load.asked, what="a line for each request"
    )
    assert min(len(old.lines), len(new.lines)) >= ALONE
