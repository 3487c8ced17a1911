"""The one connection to the shared store: scripts go out in batches, and an absent store costs nothing to ask.

The link is the circuit breaker. While it is down, a call is answered at once, with None; a task of its own connects
again, at growing intervals, and only once the store has answered it in time do calls go out again. Each call has the
same time, from when it is made; the first that takes longer takes the link down, and all that wait with it.

redis-py is imported here alone, and only once a link is made: it takes 60 ms and 10 MiB. Its connection is used without
its pool and client, which would cost a task or two for each command.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.resources
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from egress_proxy.config.model import SharedState
from egress_proxy.limits.trouble import told

if TYPE_CHECKING:
    from redis.asyncio import Connection

#: Scripts of one batch: what the store does at a stretch before it reads on, well under a millisecond each ten.
_BATCH: Final = 128
#: Calls that may wait. More than this wait only for a store that is about to be away.
_QUEUE: Final = 10_000
#: Seconds for a connection with its TLS handshake and password: some round trips, and a name to look up.
_CONNECT: Final = 2.0
#: Seconds between attempts to connect: from the first to the last, doubled each time.
_BACKOFF: Final = (0.05, 5.0)
#: Redirections by MOVED in a row, before they count as a failure.
_REDIRECTIONS: Final = 4
#: What a call's answer is handed to; None when the store is away.
OnReply = Callable[[Any], None]
Argument = bytes | str | int


class Script:
    """A Lua script: its text, and the digest that the store knows it by."""

    def __init__(self, *names: str) -> None:
        folder = importlib.resources.files(__package__).joinpath("lua")
        self.text = "\n".join(folder.joinpath(f"{name}.lua").read_text() for name in names)
        # The store's own name for a script, no more.
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class Call(NamedTuple):
    """One script, what it is about, and who is told of its result."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Argument]
    on_reply: OnReply
    deadline: float
    """On the loop's clock."""

    def command(self, verb: str) -> tuple[Argument, ...]:
        which = self.script.digest if verb == "EVALSHA" else self.script.text
        return (verb, which, len(self.keys), *self.keys, *self.arguments)


@dataclass(frozen=True, slots=True)
class Change:
    """The store is within reach again, or no more."""

    up: bool
    why: str
    """A few words of our own about what failed; never what the store or its password says."""
    seconds: float
    """For how long it had been as it was before."""


class Link:
    """The connection, and the task that looks after it.

    ``on_connect`` is awaited with each new connection, before any call goes out, and may call :meth:`ask`.
    ``before_batch`` may add calls to what is about to go out. ``changed`` hears of the store's coming and going.
    """

    def __init__(
        self,
        settings: SharedState,
        on_connect: Callable[[], Awaitable[None]],
        before_batch: Callable[[], list[Call]],
        changed: Callable[[Change], None],
    ) -> None:
        self.up = False
        self.failures = 0
        """Times that a connection could not be made, or was lost."""
        self._settings = settings
        self._on_connect = on_connect
        self._before_batch = before_batch
        self._changed = changed
        self.loop = asyncio.get_running_loop()
        self._since = self.loop.time()
        self._told: Change | None = None
        self._queue: deque[Call] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._closing = False
        self._context = _tls(settings) if settings.tls else None
        self._address = (settings.host, settings.port)
        self._connection: Connection | None = None
        self._taught: set[str] = set()
        """Digests of the scripts that the store knows from this connection."""
        self._first = self.loop.create_future()
        self._task = self.loop.create_task(self._run())

    async def ready(self, seconds: float) -> None:
        """Wait for the first connection to stand or to fail, for so long at most."""
        await asyncio.wait([self._first], timeout=seconds)

    def call(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        on_reply: OnReply,
    ) -> None:
        """Run a script. ``on_reply`` gets its result in time, or None; at once, if the store is away already."""
        if not self.up or len(self._queue) >= _QUEUE:
            on_reply(None)
        else:
            self._queue.append(self.prepare(script, keys, arguments, on_reply))
            self.wake()

    def prepare(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        on_reply: OnReply,
    ) -> Call:
        """A call that begins now, for ``before_batch`` and :meth:`ask`."""
        deadline = self.loop.time() + self._settings.timeout
        return Call(script, keys, arguments, on_reply, deadline)

    def wake(self) -> None:
        """Have a batch go out, for what ``before_batch`` has to say, if nothing else."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def ask(self, calls: Sequence[Call]) -> None:
        """Run scripts on a new connection. Raises what the connection does."""
        assert self._connection is not None  # noqa: S101 - on_connect alone asks, which has one
        for first in range(0, len(calls), _BATCH):
            batch = calls[first : first + _BATCH]
            await self._send(self._connection, batch, self.loop.time() + self._settings.timeout)

    async def close(self, seconds: float = 1.0) -> None:
        """Let what waits go out, for so long at most, and disconnect."""
        self._closing = True
        self.wake()
        if self.up:
            await asyncio.wait([self._task], timeout=seconds)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    # The task ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        failed = redirected = 0
        try:
            while not self._closing:
                try:
                    await self._connect()
                    failed = redirected = 0
                    await self._serve()
                except asyncio.CancelledError:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever it is, it must be tried again
                    redirected = redirected + 1 if self._redirected(error) else 0
                    if not 0 < redirected <= _REDIRECTIONS:
                        self._went(up=False, why=told(error))
                        self._address = (self._settings.host, self._settings.port)
                        failed += 1
                finally:
                    self.up = False
                    self._answer_all()
                    await self._disconnect()
                if redirected == 0 and not self._closing:
                    await self._pause(failed)
        finally:
            if not self._first.done():
                self._first.set_result(None)

    async def _connect(self) -> None:
        self._connection = connection = _connection(self._settings, self._address, self._context)
        self._taught.clear()
        async with asyncio.timeout(_CONNECT):
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py says nothing of it
        await self._on_connect()
        self._went(up=True, why="")
        self.up = True
        if not self._first.done():
            self._first.set_result(None)

    async def _serve(self) -> None:
        """Send batches until the link is closed. Raises what the connection does."""
        connection, queue, loop = self._connection, self._queue, self.loop
        assert connection is not None  # noqa: S101 - made by _connect
        while True:
            batch = self._before_batch()
            while queue and len(batch) < _BATCH:
                batch.append(queue.popleft())
            if not batch:
                if self._closing:
                    return
                self._wake = loop.create_future()
                await self._wake
                continue
            # Whoever waits longest has the least time left.
            await self._send(connection, batch, min(call.deadline for call in batch))

    async def _send(self, connection: Connection, batch: Sequence[Call], deadline: float) -> None:
        """Have each call answered. Raises what the connection does, after telling that there is no answer."""
        try:
            async with asyncio.timeout_at(deadline):
                replies = await self._exchange(connection, batch)
        except BaseException:
            self.up = False
            for call in batch:
                call.on_reply(None)
            raise
        for call, reply in zip(batch, replies, strict=True):
            try:
                call.on_reply(reply)
            except Exception as error:  # noqa: BLE001 - whoever waits must not wait for ever, nor the others
                context = {
                    "message": "an answer of the store is not understood",
                    "exception": error,
                }
                self.loop.call_exception_handler(context)
                call.on_reply(None)

    async def _exchange(self, connection: Connection, batch: Sequence[Call]) -> list[Any]:
        """Each script's result; None of one that was not run. Raises what the connection does."""
        from redis.exceptions import NoScriptError  # noqa: PLC0415 - see the top

        # In full with the first use: what has to be sent once more comes behind what it should come before.
        replies = await _round_trip(connection, [self._command(call) for call in batch])
        unknown = [
            number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)
        ]
        if unknown:
            # After SCRIPT FLUSH, or where a store keeps few scripts.
            self._taught.clear()
            last = max(
                (number for number in range(len(batch)) if number not in unknown), default=-1
            )
            again = [number for number in unknown if number > last]
            for number in unknown:
                # Not run, and too late for that: what it says is about the time before the others.
                replies[number] = None
            commands = [self._command(batch[number]) for number in again]
            for number, reply in zip(again, await _round_trip(connection, commands), strict=True):
                replies[number] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def _command(self, call: Call) -> tuple[Argument, ...]:
        digest = call.script.digest
        if digest in self._taught:
            return call.command("EVALSHA")
        self._taught.add(digest)
        return call.command("EVAL")

    async def _pause(self, failed: int) -> None:
        """Wait before the next attempt; replicas that lost the store together do not come back together."""
        shortest, longest = _BACKOFF
        seconds = min(longest, shortest * 2 ** min(failed, 16))
        await asyncio.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)

    def _answer_all(self) -> None:
        while self._queue:
            self._queue.popleft().on_reply(None)

    def _redirected(self, error: Exception) -> bool:
        """Whether the store is a cluster, and another of its nodes has our keys. All of them have one hash tag."""
        from redis.exceptions import MovedError  # noqa: PLC0415 - see the top

        if not isinstance(error, MovedError):
            return False
        self._address = (error.host or self._address[0], error.port)
        return True

    def _went(self, *, up: bool, why: str) -> None:
        self.failures += not up
        if not self._first.done() and not up:
            self._first.set_result(None)
        if self._told is not None and self._told.up == up and self._told.why == why:
            return
        if up and self._told is None:
            # It was never away.
            self._told = Change(up=True, why="", seconds=0.0)
            return
        now = self.loop.time()
        self._told = Change(up, why, now - self._since)
        self._since = now
        self._changed(self._told)


async def _round_trip(
    connection: Connection, commands: Sequence[tuple[Argument, ...]]
) -> list[Any]:
    """Send commands together and read what comes back, errors among it. Raises what the connection does."""
    from redis.exceptions import ConnectionError as Broken  # noqa: PLC0415 - see the top
    from redis.exceptions import ResponseError  # noqa: PLC0415

    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except Broken:
            raise
        except ResponseError as error:
            replies.append(error)
    return replies


def _connection(
    settings: SharedState, address: tuple[str, int], context: ssl.SSLContext | None
) -> Connection:
    """A connection that is not made yet. RESP2 and no introduction: proxies and managed stores all know it."""
    from redis.asyncio import Connection, SSLConnection  # noqa: PLC0415 - see the top

    options: dict[str, Any] = {
        "host": address[0],
        "port": address[1],
        "db": settings.database,
        "username": settings.user or None,
        "password": settings.password or None,
        "protocol": 2,
        "driver_info": None,
        # Batches have their own time: a timeout of redis-py's makes a task for each command.
        "socket_timeout": None,
        "socket_connect_timeout": _CONNECT,
    }
    if context is None:
        return Connection(**options)
    connection = SSLConnection(**options)
    connection.ssl_context.context = context
    return connection


def _tls(settings: SharedState) -> ssl.SSLContext:
    """Certificates are checked, and the host's name in them, by the named authority or the system's."""
    context = ssl.create_default_context(cadata=settings.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
