"""Accepting client connections."""

from __future__ import annotations

import contextlib
import os
import socket
from time import monotonic

from egress_proxy.config.model import SocketAddress
from egress_proxy.core.answer import refusal
from egress_proxy.core.reason import Event, Reason
from egress_proxy.core.record import Record
from egress_proxy.net.handover import steer_away
from egress_proxy.net.poller import Strand
from egress_proxy.net.session import serve_client
from egress_proxy.net.worker import Worker
from egress_proxy.observe.events import log

_BACKLOG = 4096
#: Connections accepted per event at most, so that those already there keep their turn.
_BATCH = 64
#: Seconds for which the kernel may hold back a connection whose client has not sent anything.
_DEFER_ACCEPT = 1
#: Seconds until none of these is left.
_HAND_OVER = _DEFER_ACCEPT + 0.5
#: Seconds without accepting after descriptors have run out.
_PAUSE = 0.5
#: Seconds between two events about that.
_SILENCE = 10.0


class Listener:
    """The proxy's listening socket."""

    def __init__(
        self, worker: Worker, address: SocketAddress, *, reuse_port: bool = False, own: int = 1
    ) -> None:
        """Bind and listen. Raises OSError.

        With ``reuse_port`` other processes of the same user may listen there as well (``SO_REUSEPORT``); ``own`` of
        all these listeners are this proxy's.
        """
        self._worker = worker
        self._own = own
        self._silent_until = 0.0
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_ACCEPT)
            self._socket.bind((address.host, address.port))
            self._socket.listen(_BACKLOG)
        except OSError:
            self._socket.close()
            raise

    @property
    def address(self) -> SocketAddress:
        host, port = self._socket.getsockname()[:2]
        return SocketAddress(host, port)

    def start(self) -> None:
        self._worker.poller.listen(self._socket.fileno(), self._accept)

    def hand_over(self) -> float:
        """Have new connections go to the listeners of another process, where there are some.

        Returns the seconds after which all that were ours before have been accepted.
        """
        return _HAND_OVER if steer_away(self._socket, self._own) else 0.0

    def close(self) -> None:
        """Stop accepting, after those whom the system has let in already. May be called twice."""
        if self._socket.fileno() >= 0:
            for _ in range(_BACKLOG // _BATCH):
                self._accept(0)
            self._worker.poller.unlisten(self._socket.fileno())
            self._socket.close()

    def _accept(self, _mask: int) -> None:
        worker = self._worker
        for _ in range(_BATCH):
            try:
                # The private call leaves out a socket object, 2 µs per connection.
                fd, peer = self._socket._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # gone before it was accepted
            except OSError as error:
                self._pause(error)
                return
            os.set_blocking(fd, False)
            reason = worker.admits(peer[0])
            if reason is not None:
                self._turn_away(fd, peer[0], reason)
                continue
            strand = Strand(worker.poller)
            strand.start(serve_client(worker, strand, fd, peer[0]))

    def _pause(self, error: OSError) -> None:
        """Leave clients in the backlog for a moment: descriptors have run out, most likely."""
        now = monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _SILENCE
            log.error(
                "accept_failed",
                error=error.strerror,
                connections=self._worker.metrics.connections_active,
            )
        self._worker.poller.unlisten(self._socket.fileno())
        self._worker.poller.loop.call_later(_PAUSE, self._go_on)

    def _go_on(self) -> None:
        if self._socket.fileno() >= 0:
            self.start()

    def _turn_away(self, fd: int, client: str, reason: Reason) -> None:
        worker = self._worker
        record = Record(request_id=worker.request_id(), client=client, generation=worker.generation)
        record.conclude(Event.FAILED, reason)
        record.status = reason.status
        answer = refusal(reason, request_id=record.request_id, keep_alive=False, method="GET")
        with contextlib.suppress(OSError):
            # Reading first: closing with the request unread would reset the answer away.
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 65536)
            os.write(fd, answer)
        os.close(fd)
        worker.conclude(record, monotonic())
