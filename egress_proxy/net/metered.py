"""One direction of a tunnel whose tenant has a budget of bytes, or a bandwidth."""

from __future__ import annotations

import socket
from asyncio import TimerHandle
from typing import TYPE_CHECKING

from egress_proxy.core.limits import Direction
from egress_proxy.core.reason import Reason
from egress_proxy.limits.limiter import Admission
from egress_proxy.net.flow import CHUNK, Flow, SideError, share_of_buffer
from egress_proxy.net.pipes import PIPE_SIZE
from egress_proxy.net.poller import Interrupted

if TYPE_CHECKING:
    from egress_proxy.net.relay import Tunnel

_ONE_TURN = range(1)


class MeteredFlow(Flow):
    """Bytes are counted when the sink has taken them. While they may not pass, they wait in the source's buffer."""

    __slots__ = ("_admission", "_counted", "_direction", "_timer")

    def __init__(
        self, tunnel: Tunnel, source: int, sink: int, admission: Admission, direction: Direction
    ) -> None:
        super().__init__(tunnel, source, sink)
        self._admission = admission
        self._direction = direction
        self._counted = 0
        self._timer: TimerHandle | None = None

    def move(self) -> None:
        if self._timer is not None:
            try:
                if not self._has_nothing_left():
                    return  # it rests
            except SideError as lost:
                self._lost(lost.fd)
                return
            self._timer.cancel()
            self._timer = None
        tunnel = self._tunnel
        super().move()
        reason = self._count()
        if reason is not None:
            tunnel.finish(Interrupted(reason))

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # What it was that ended the tunnel is known already.
        self._count()
        super().stop()

    def _count(self) -> Reason | None:
        """Tell what has passed since the last time; why the tunnel must end, or None."""
        passed = self.total - self._counted
        if not passed:
            return None
        self._counted = self.total
        if self._direction is Direction.UP:
            return self._admission.spend(passed, 0)
        return self._admission.spend(0, passed)

    def _copy(self) -> bool:
        if not self._admission.paced:
            return super()._copy()
        allowed = self._allowed(CHUNK)
        return bool(allowed) and self._copy_by(share_of_buffer(allowed), allowed, _ONE_TURN)

    def _splice(self) -> bool:
        if not self._admission.paced:
            return super()._splice()
        allowed = self._allowed(PIPE_SIZE)
        if not allowed and self._pipe is not None:
            # It is empty, and others have a use for it.
            self._return_pipe(self._pipe)
        return bool(allowed) and self._splice_by(allowed, _ONE_TURN)

    def _allowed(self, wanted: int) -> int:
        """How many bytes may be read now; 0 where it rests before more may."""
        allowed, seconds = self._admission.pace(self._direction, wanted)
        if not allowed:
            if self._has_nothing_left():
                return 1
            self._timer = self._tunnel.poller.loop.call_later(seconds, self._go_on)
        return allowed

    def _has_nothing_left(self) -> bool:
        """Whether the next read would bring the source's end, which takes no bandwidth. Raises SideError.

        To wait for it would hold the tunnel's place, and those who wait for one, for as long as bytes would have to.
        """
        if not self.closing:
            return False
        sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, self.source)
        try:
            return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            # No read would find it again.
            raise SideError(self.source) from None
        finally:
            sock.detach()

    def _go_on(self) -> None:
        self._timer = None
        if not self.blocked:
            self.move()
