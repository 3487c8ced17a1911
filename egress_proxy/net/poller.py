"""One private edge-triggered epoll nested in the event loop, and the coroutines that it steps.

Code tries an operation first and waits only after EAGAIN, so an edge that comes while nobody waits
is never missed. Registering reports what is ready already, so a descriptor need not be registered
before the first wait. No asyncio Task, Future, transport or timer exists per connection.
"""

from __future__ import annotations

import asyncio
import os
import select
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from time import monotonic
from typing import Any, Protocol, TypeVar

from egress_proxy.core.errors import EgressProxyError
from egress_proxy.core.reason import Reason
from egress_proxy.observe.events import log

T = TypeVar("T")

GONE = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
READABLE = select.EPOLLIN | GONE
#: Edges after which a short read is not all there is: an end, and urgent data, before which a read stops.
MORE_BEHIND = GONE | select.EPOLLPRI
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
#: A strand looks at two descriptors, a client's and an origin's. The edges of the client's are shifted by so many bits.
OF_CLIENT = 16
CLIENT_READABLE = READABLE << OF_CLIENT
CLIENT_WRITABLE = WRITABLE << OF_CLIENT
_INPUT = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
_INPUT_AND_OUTPUT = _INPUT | select.EPOLLOUT
_BATCH = 512
_NEVER = float("inf")


class Interrupted(EgressProxyError):  # noqa: N818 - it is meant, and no error
    """The proxy ends a connection of its own accord; ``reason`` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Connection(Protocol):
    """What the poller looks after besides edges: deadlines, and the end of the process."""

    deadline: float
    """On the poller's clock."""

    permit: object
    """What allows it to carry bytes, for whoever may take that back; None while it carries none."""

    @property
    def idle(self) -> bool:
        """Whether it waits for a request to begin, so that draining may end it at once."""

    def interrupt(self, error: Exception) -> None:
        """End it because of a TimeoutError (its deadline has passed) or an Interrupted."""


class Poller:
    """The descriptors of one worker and who is told about them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.now = monotonic()
        """Seconds on the clock of all deadlines (time.monotonic), read once a batch."""
        self.connections: set[Connection] = set()
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._again: deque[Callable[[], None]] = deque()
        self._doomed: list[int] = []
        self._running = False
        loop.add_reader(self._epoll.fileno(), self._run)

    def watch(self, fd: int, handler: Callable[[int], None], *, output: bool = True) -> None:
        """Tell handler about every edge of a descriptor, beginning with what is ready now.

        Without output, nothing is told about when it can be written: nearly always it can, and telling so costs.
        """
        self._handlers[fd] = handler
        self._epoll.register(fd, _INPUT_AND_OUTPUT if output else _INPUT)

    def watch_output(self, fd: int) -> None:
        """Tell from now on, and now, when a watched descriptor can be written."""
        self._epoll.modify(fd, _INPUT_AND_OUTPUT)

    def listen(self, fd: int, handler: Callable[[int], None]) -> None:
        """Tell handler as long as a listening socket has connections to accept (level-triggered)."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def unlisten(self, fd: int) -> None:
        """Stop telling about a listening socket, which stays open."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def hand_over(self, fd: int, handler: Callable[[int], None]) -> None:
        """Tell another handler about a watched descriptor from now on."""
        self._handlers[fd] = handler

    def again(self, call: Callable[[], None]) -> None:
        """Call after the others of this batch have had their turn."""
        self._again.append(call)
        if not self._running and len(self._again) == 1:
            self.loop.call_soon(self._run)

    def close(self, fd: int) -> None:
        """Forget and close a descriptor: at the end of the batch, so that no stale event reaches a reused number."""
        self._handlers.pop(fd, None)
        if self._running:
            self._doomed.append(fd)
        else:
            os.close(fd)

    def sweep(self) -> None:
        """Interrupt every connection whose deadline has passed."""
        self.now = now = monotonic()
        for connection in [
            connection for connection in self.connections if connection.deadline <= now
        ]:
            try:
                connection.interrupt(TimeoutError())
            except Exception:  # noqa: BLE001 - the others have deadlines too
                log.error("defect", exc_info=True)

    def shut(self) -> None:
        """Stop for good; the descriptors have been closed by their owners."""
        if not self._epoll.closed:
            self.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _run(self) -> None:
        if self._epoll.closed:
            return
        self.now = monotonic()
        handlers = self._handlers
        self._running = True
        try:
            for fd, mask in self._epoll.poll(0, _BATCH):
                handler = handlers.get(fd)
                if handler is not None:
                    try:
                        handler(mask)
                    except Exception:  # noqa: BLE001 - the others' edges would not come again
                        log.error("defect", exc_info=True)
            for _ in range(len(self._again)):
                try:
                    self._again.popleft()()
                except Exception:  # noqa: BLE001 - the others wait for their turn
                    log.error("defect", exc_info=True)
        finally:
            self._running = False
            for fd in self._doomed:
                os.close(fd)
            self._doomed.clear()
        if self._again:
            self.loop.call_soon(self._run)


@types.coroutine
def _pause() -> Generator[None, None, None]:
    yield


class Strand:
    """One connection's coroutine, stepped by the poller instead of by a Task."""

    __slots__ = (
        *("_coroutine", "_future", "_turning", "_want"),
        *("deadline", "edges", "idle", "permit", "poller"),
    )

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.deadline = _NEVER
        self.idle = False
        self.permit: object = None
        self._want = 0
        self._turning = False
        self.edges = 0
        """What the edges were that ended the last wait."""
        self._future: asyncio.Future[Any] | None = None
        self._coroutine: Coroutine[None, None, None] | None = None

    def start(self, coroutine: Coroutine[None, None, None]) -> None:
        """Run the coroutine up to its first wait. It handles its own exceptions."""
        self._coroutine = coroutine
        self.poller.connections.add(self)
        self._resume()

    def wake(self, mask: int) -> None:
        """Handler for the poller: go on if this is what the coroutine waits for."""
        if mask & self._want:
            self._want = 0
            self.edges = mask
            self._resume()

    def go_on(self, mask: int) -> None:
        """Handler for the poller: end :meth:`parked`. For a descriptor whose edges alone matter now."""
        self.edges = mask
        self._resume()

    def interrupt(self, error: Exception) -> None:
        """Raise an exception where the coroutine waits."""
        coroutine = self._coroutine
        if coroutine is None:
            return
        self.deadline = _NEVER
        self._want = 0
        self._turning = False
        self._future = None
        try:
            coroutine.throw(error)
        except StopIteration:
            self._finish()
        except BaseException:
            self._finish()
            raise

    # No `async def`: most of what waits waits here, and a coroutine around the pause would cost as much again.
    @types.coroutine
    def until(self, want: int, deadline: float) -> Generator[None, None, None]:
        """Wait for one of these edges that ``wake`` is told about.

        Raises TimeoutError after deadline.
        """
        self._want = want
        self.deadline = deadline
        yield

    async def parked(self, deadline: float) -> None:
        """Wait until ``go_on`` is called. Raises TimeoutError after deadline."""
        self.deadline = deadline
        await _pause()

    async def turn(self, deadline: float = _NEVER) -> None:
        """Let the others have their turn: a peer that is always ready must not keep it.

        Raises TimeoutError after deadline.
        """
        self._turning = True
        self.deadline = deadline
        self.poller.again(self._take_turn)
        await _pause()

    async def result_of(self, future: asyncio.Future[T], deadline: float) -> T:
        """Wait for a future of asyncio's, which others may wait for too.

        Raises TimeoutError, or what the future raises.
        """
        if not future.done():
            self._future = future
            self.deadline = deadline
            future.add_done_callback(self._future_done)
            await _pause()
        return future.result()

    def _take_turn(self) -> None:
        if self._turning:
            self._turning = False
            self._resume()

    def _future_done(self, future: asyncio.Future[Any]) -> None:
        if self._future is future:
            self._future = None
            self._resume()

    def _resume(self) -> None:
        try:
            self._coroutine.send(None)  # type: ignore[union-attr]  # a wait is over, so there is one
        except StopIteration:
            self._finish()
        except BaseException:
            self._finish()
            raise

    def _finish(self) -> None:
        self._coroutine = None
        self.poller.connections.discard(self)
