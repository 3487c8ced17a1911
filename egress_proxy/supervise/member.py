"""One worker as its supervisor sees it: a process, what it is asked, and what it has counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from typing import Any, Final, TypeVar

import msgspec

from egress_proxy.app import LoopName
from egress_proxy.limits.store import AccountState
from egress_proxy.observe.merge import Families
from egress_proxy.observe.turns import Turns
from egress_proxy.supervise.channel import (
    Adopt,
    Asking,
    Resolved,
    Start,
    Wire,
    WorkerFailed,
    WorkerGone,
)

S = TypeVar("S")

_NOTHING: Final = type(None)

#: Seconds that a question about the state may take: an answer that is late is told without.
QUESTION: Final = 2.0
#: Seconds that a worker may take to compile a configuration. A million rules take about one.
COMPILE: Final = 300.0
#: Seconds between two looks whether it answers anything.
PING: Final = 5.0
#: Looks in a row that found nothing, after which it is taken for hung. Not one long wait: where the whole machine or
#: container stood still, the first look afterwards must not end everybody.
MISSES: Final = 3
#: Seconds that its end may take once its connections have ended.
END: Final = 5.0

# A fresh interpreter, not a fork: event loops and threads do not survive one. It imports what this one would
# import, from the same places.
_BEGIN: Final = (
    "import json, sys; _, descriptor, turns, loop, path, _ = sys.argv; sys.path[:] = json.loads(path); "
    "from egress_proxy.supervise.child import main; sys.exit(main(int(descriptor), int(turns), loop))"
)


class Member:
    """A worker process, from its start to its end."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, asking: Asking) -> None:
        self.number = number
        self.generation = 0
        """Of the configuration that it decides by; 0 before it takes connections."""
        self.digest = ""
        self.counted: Families = ()
        """What it had counted when it was last asked."""
        self._process = process
        self._asking = asking
        self._listening = asyncio.ensure_future(asking.listen())

    @classmethod
    async def begin(cls, number: int, workers: int, loop: LoopName, turns: Turns) -> Member:
        """Start the process. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-c", _BEGIN),
                    *(str(theirs.fileno()), str(turns.fd), loop, json.dumps(sys.path)),
                    f"worker {number} of {workers}",
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), turns.fd],
                )
            except BaseException:
                ours.close()
                raise
        return cls(number, process, Asking(await Wire.over(ours)))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> str:
        """Wait for the end of the process; says how it ended."""
        status = await self._process.wait()
        # Not awaited itself: whoever gives up waiting must not cancel it.
        await asyncio.wait([self._listening])
        if self._asking.last is not None:
            # Of another release, if the program was replaced meanwhile: then what it told last counts.
            with contextlib.suppress(msgspec.MsgspecError):
                self.counted = msgspec.msgpack.decode(self._asking.last, type=Families)
        if status >= 0:
            return f"exit status {status}"
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self._process.returncode is None:
            self._process.kill()

    async def start(self, start: Start, digest: str) -> None:
        """Have it take connections. Raises WorkerGone or WorkerFailed."""
        await self._ask("start", _NOTHING, start, timeout=COMPILE)
        self.generation, self.digest = start.generation, digest

    async def adopt(self, order: Adopt, digest: str) -> None:
        """Have it decide by another configuration. Raises WorkerGone or WorkerFailed."""
        await self._ask("adopt", _NOTHING, order, timeout=COMPILE)
        self.generation, self.digest = order.generation, digest

    async def silent(self) -> None:
        """Ask again and again whether it is there; returns when it is not.

        It answers while it compiles a configuration, which is done in a thread.
        """
        missed = 0
        while missed < MISSES:
            heard = self._asking.heard
            self._asking.tell("ping")
            await asyncio.sleep(PING)
            missed = 0 if self._asking.heard != heard else missed + 1

    async def connections(self) -> int:
        """How many client connections it has."""
        return await self._try("connections", int) or 0

    async def scrape(self) -> None:
        """Look what it has counted. One that does not answer is believed to have counted nothing since."""
        found = await self._try("scrape", Families)
        self.counted = self.counted if found is None else found

    async def limits(self) -> list[AccountState]:
        """What the tenants that it knows have used there."""
        return await self._try("limits", list[AccountState]) or []

    async def resolve(self, name: str) -> Resolved | None:
        """What it knows of a name; None where it does not answer."""
        try:
            return await self._ask("resolve", Resolved, name)
        except (WorkerGone, WorkerFailed):
            return None

    async def hand_over(self) -> None:
        """Have it leave new connections to another proxy that listens on the port, and wait for those on their way."""
        await self._try("hand_over", _NOTHING, timeout=2 * QUESTION)

    async def stop_accepting(self) -> int:
        """Close its listener; how many connections it has."""
        return await self._try("stop_accepting", int) or 0

    async def drain(self, timeout: float) -> None:
        """Wait for the end of its connections, for so many seconds and a little."""
        await self._try("drain", _NOTHING, timeout=timeout + QUESTION)

    async def cut(self) -> None:
        """End its connections at once."""
        await self._try("kill", _NOTHING)

    async def end(self) -> None:
        """Have it write down what is not written yet, and end."""
        self._asking.tell("end")
        try:
            async with asyncio.timeout(END):
                await self.ended()
        except TimeoutError:
            self.kill()
            await self.ended()

    async def _try(self, what: str, kind: type[S], *, timeout: float = QUESTION) -> S | None:
        try:
            return await self._ask(what, kind, timeout=timeout)
        except (WorkerGone, WorkerFailed):
            return None

    async def _ask(
        self, what: str, kind: type[S], value: Any = None, *, timeout: float | None = None
    ) -> S:
        return await self._asking.ask(what, kind, value, timeout=timeout)
