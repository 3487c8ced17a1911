"""A new configuration reaches every worker, and a worker that does not take it goes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from egress_proxy.config.load import load
from egress_proxy.config.model import Config, SocketAddress
from egress_proxy.engine import StartError
from egress_proxy.observe.turns import Turns
from egress_proxy.supervise import supervisor
from egress_proxy.supervise.channel import Adopt, Start, WorkerFailed, WorkerGone
from egress_proxy.supervise.snapshot import Recording
from egress_proxy.supervise.supervisor import Supervisor


class Worker:
    """What the supervisor knows of one, without a process."""

    def __init__(self, number: int, took: list[tuple[int, int]], *, broken: bool = False) -> None:
        self.number = number
        self.pid = 1000 + number
        self.generation = 1
        self.digest = ""
        self.killed = False
        self._took = took
        self._broken = broken
        self.meanwhile: Callable[[], None] = lambda: None

    async def adopt(self, order: Adopt, digest: str) -> None:
        await asyncio.sleep(0)
        self.meanwhile()
        if self._broken:
            raise WorkerFailed("a defect of the program: MemoryError")
        self._took.append((self.number, order.generation))
        self.generation, self.digest = order.generation, digest

    def kill(self) -> None:
        self.killed = True

    async def ended(self) -> str:
        assert self.killed
        return "SIGKILL"


def configuration(tmp_path: Path, host: str) -> Config:
    path = tmp_path / "policy.yaml"
    path.write_text(f"version: 1\npolicies: [{{name: one, allow: [{host}]}}]\n")
    return load(str(path), Recording()).config


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def __getattr__(self, _level: str) -> Callable[..., None]:
            return lambda event, **fields: events.append((event, fields))

    monkeypatch.setattr(supervisor, "log", Log())
    return events


def spread(tmp_path: Path, serving: dict[int, Worker], generation: int = 2) -> Supervisor:
    """Have a configuration of this generation in force, and wait until it has reached all."""

    async def main() -> Supervisor:
        made = Supervisor(configuration(tmp_path, "a.test"), len(serving), "asyncio", Turns(-1))
        made._serving = serving  # type: ignore[assignment]
        made._swap(configuration(tmp_path, "b.test"), generation)
        while made._tasks:
            await asyncio.gather(*made._tasks)
        return made

    return asyncio.run(main())


def test_one_after_the_other(tmp_path: Path, said: list[Any]) -> None:
    took: list[tuple[int, int]] = []
    made = spread(tmp_path, {number: Worker(number, took) for number in (1, 2, 3)})
    assert took == [(1, 2), (2, 2), (3, 2)]
    assert {each.hash for each in made.workers} == {made.config.digest}
    assert said == [("policy_reloaded", {"generation": 2, "rules": 1})]


def test_a_worker_that_does_not_take_it_goes(tmp_path: Path, said: list[Any]) -> None:
    """It would go on to let through what is not allowed any more."""
    took: list[tuple[int, int]] = []
    broken = Worker(1, took, broken=True)
    spread(tmp_path, {1: broken, 2: Worker(2, took)})
    assert broken.killed
    assert took == [(2, 2)]
    (failed, reloaded) = said
    assert failed == (
        "worker_reload_failed",
        {"worker": 1, "error": "a defect of the program: MemoryError"},
    )
    assert reloaded[0] == "policy_reloaded"


def test_another_one_comes_while_it_is_spread(tmp_path: Path, said: list[Any]) -> None:
    """All end up with the latest; who has not begun with the one before is spared it."""
    took: list[tuple[int, int]] = []
    first, second = Worker(1, took), Worker(2, took)

    async def main() -> None:
        made = Supervisor(configuration(tmp_path, "a.test"), 2, "asyncio", Turns(-1))
        made._serving = {1: first, 2: second}  # type: ignore[dict-item]
        newest = configuration(tmp_path, "c.test")

        def swap_again() -> None:
            first.meanwhile = lambda: None
            made._swap(newest, 3)

        first.meanwhile = swap_again
        made._swap(configuration(tmp_path, "b.test"), 2)
        while made._tasks:
            await asyncio.gather(*made._tasks)
        assert {each.hash for each in made.workers} == {newest.digest}

    asyncio.run(main())
    assert took == [(1, 2), (1, 3), (2, 3)]
    assert [event for event, _ in said] == ["policy_reloaded"]


def test_one_that_hangs_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[Any]
) -> None:
    """They would go on to let through what is not allowed any more, for as long as it hangs."""
    monkeypatch.setattr(supervisor, "PATIENCE", 0.01)
    took: list[tuple[int, int]] = []
    hung, other = Worker(1, took), Worker(2, took)
    found = asyncio.Event()

    async def adopt(_order: Adopt, _digest: str) -> None:
        await found.wait()
        raise WorkerGone("adopt")

    hung.adopt = adopt  # type: ignore[assignment, method-assign]
    # As the supervisor would find out by itself.
    other.meanwhile = found.set
    spread(tmp_path, {1: hung, 2: other})
    assert took == [(2, 2)]
    assert hung.killed
    assert [event for event, _ in said] == ["worker_reload_failed", "policy_reloaded"]


def test_a_defect_is_not_tried_for_ever(tmp_path: Path, said: list[Any]) -> None:
    async def adopt(_order: Adopt, _digest: str) -> None:
        raise RuntimeError("a defect")

    worker = Worker(1, [])
    worker.adopt = adopt  # type: ignore[assignment, method-assign]
    with pytest.raises(RuntimeError, match="a defect"):
        spread(tmp_path, {1: worker})
    assert said == []


@pytest.mark.parametrize("reuse_port", [False, True])
def test_draining_workers_do_not_serve(
    tmp_path: Path, said: list[Any], *, reuse_port: bool
) -> None:
    """`egress_proxy_workers_serving` is about those that take connections.

    To hand over takes a while, so that draining is told before.
    """

    class Admin:
        async def close(self) -> None:
            pass

    class Draining(Worker):
        async def connections(self) -> int:
            return 3

        async def hand_over(self) -> None:
            assert said

        async def stop_accepting(self) -> int:
            return 3

        async def drain(self, _timeout: float) -> None:
            assert made._workers_count.serving == 0

        async def end(self) -> None:
            pass

    async def main() -> None:
        made._serving = {1: Draining(1, []), 2: Draining(2, [])}  # type: ignore[dict-item]
        made._workers_count.serving = 2
        with socket.socket() as held:
            await made._end(Admin(), held)  # type: ignore[arg-type]

    config = configuration(tmp_path, "a.test")
    made = Supervisor(config, 2, "asyncio", Turns(-1), reuse_port=reuse_port)
    asyncio.run(main())
    assert said == [("draining", {"connections": 6})]
    assert made._workers_count.serving == 0


class Life:
    """One process of a worker, which ends at once or lives on."""

    def __init__(self, ending: BaseException | None, how: str = "SIGSEGV") -> None:
        self.number, self.pid, self.generation, self.digest = 1, 1, 0, ""
        self.counted = ()
        self.killed = False
        self._ending = ending
        self._how = how

    async def start(self, start: Start, digest: str) -> None:
        if self._ending is not None:
            raise self._ending
        self.generation, self.digest = start.generation, digest

    async def ended(self) -> str:
        if self._ending is None and not self.killed:
            await asyncio.Event().wait()
        return self._how

    async def silent(self) -> None:
        await asyncio.Event().wait()

    def kill(self) -> None:
        self.killed = True


def keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: list[Life]
) -> tuple[BaseException | None, Supervisor]:
    """Have a worker with these lives, until one begins or says that none will; then stop."""
    ahead = iter(lives)

    async def begin(*_: object) -> Life:
        return next(ahead)

    monkeypatch.setattr("egress_proxy.supervise.supervisor.Member.begin", begin)
    monkeypatch.setattr("egress_proxy.supervise.backoff.FIRST", 0.001)
    address = SocketAddress("127.0.0.1", 1)

    async def main() -> tuple[BaseException | None, Supervisor]:
        made = Supervisor(configuration(tmp_path, "a.test"), 1, "asyncio", Turns(-1))
        first = asyncio.get_running_loop().create_future()
        made._spawn(made._keep(1, address, address, first))
        await asyncio.wait([first], timeout=5)
        found = first.exception()
        await made._cancel()
        return found, made

    return asyncio.run(main())


def test_a_worker_that_crashes_while_it_begins_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[Any]
) -> None:
    lives = [Life(WorkerGone("start")), Life(WorkerGone("start")), Life(None)]
    found, made = keep(tmp_path, monkeypatch, lives)
    assert found is None
    assert [(event, fields["how"]) for event, fields in said] == [("worker_ended", "SIGSEGV")] * 2
    assert lives[-1].killed
    assert made._workers_count.ended == 2


def test_a_worker_that_says_why_it_cannot_begin_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[Any]
) -> None:
    """The next one would say the same, and whoever starts the proxy reads it once."""
    found, _ = keep(tmp_path, monkeypatch, [Life(WorkerFailed("state: the disk is full"))])
    assert isinstance(found, StartError)
    assert str(found) == "state: the disk is full"
    assert said == []
