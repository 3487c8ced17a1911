"""The first bytes of a tunnel: whether they begin TLS to the host that was asked for, before any of them goes on."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from egress_proxy.config.model import Config, Ech
from egress_proxy.core import reason as reasons
from egress_proxy.core.errors import HelloError
from egress_proxy.core.names import MAX_NAME_LENGTH, Authority
from egress_proxy.core.reason import Reason
from egress_proxy.core.record import Record
from egress_proxy.core.retry import HelloRetry
from egress_proxy.core.tls import (
    DECODE_ERROR,
    UNRECOGNIZED_NAME,
    ClientHello,
    alert,
    parse_client_hello,
)
from egress_proxy.net.client import READ_SIZE, Client
from egress_proxy.net.poller import GONE, READABLE, Interrupted

if TYPE_CHECKING:
    from egress_proxy.net.worker import Worker

#: What the client is told, where it is one that speaks TLS.
_ALERTS: Final = {
    reasons.SNI_MISMATCH: alert(UNRECOGNIZED_NAME),
    reasons.SNI_MISSING: alert(UNRECOGNIZED_NAME),
    reasons.ECH_NOT_ALLOWED: alert(UNRECOGNIZED_NAME),
    reasons.CLIENT_HELLO_MALFORMED: alert(DECODE_ERROR),
}
#: Edges after which a short read is not all there is: an end, and urgent data, before which a read stops.
_MORE_BEHIND: Final = GONE | select.EPOLLPRI


class NothingSent(Exception):  # noqa: N818 - it is no error
    """The client has ended the tunnel without a byte."""


class Opening:
    """A tunnel between its 200 and its first byte to the origin."""

    __slots__ = ("_client", "_origin", "client_readable", "inspector", "origin_edges")

    def __init__(self, client: Client, origin: socket.SocketType) -> None:
        """The origin is watched, and from here on tells us."""
        self._client = client
        self._origin = origin
        strand = client.strand
        # Where the client is watched, its 200 may have had to wait, and what the origin told meanwhile is lost.
        self.origin_edges = READABLE if client.watched else strand.edges & READABLE
        """What the origin has told of. The edge that ended connecting may have told of its first bytes, too."""
        self.client_readable = True
        """Whether the client may have more to read than its buffer has."""
        self.inspector: SecondHello | None = None
        """Who looks at what comes next, where that needs looking at."""
        strand.poller.hand_over(origin.fileno(), self._on_origin)

    async def refusal(
        self,
        worker: Worker,
        config: Config,
        destination: Authority,
        record: Record,
        refuses: Callable[[Reason], bool],
    ) -> Reason | None:
        """Read the ClientHello, which stays in the client's buffer; why the tunnel must end, or None.

        The record is told what the handshake says. ``refuses`` is told why a tunnel that has begun must end, too, and
        says whether it does. Raises NothingSent, ConnectionError, Interrupted.
        """
        try:
            hello = await self._read(config)
            host, name = destination.host, hello.server_name
            record.sni = name
            record.tls_version, record.alpn = hello.tls_version, hello.alpn
            if name is None:
                # Who asks for an address has no name to tell (RFC 6066 §3).
                if host.address is None:
                    return reasons.SNI_MISSING
            elif name != host.text:
                return reasons.SNI_MISMATCH
            if hello.ech is not None and config.tunnels.ech is not Ech.ALLOW:
                self.client_readable = True
                refused = await _judge_ech(worker, self._client, config, destination, hello.ech)
                if refused is not None:
                    return refused
            limit, ech = config.limits.client_hello_bytes, config.tunnels.ech
            retry = HelloRetry(hello, limit, may_change_ech=ech is Ech.ALLOW)
            self._client.buffer = retry.from_client(self._client.buffer)
            if not retry.over:
                self.inspector = SecondHello(self._client, retry, refuses)
        except HelloError as error:
            return error.reason
        return None

    async def _read(self, config: Config) -> ClientHello:
        """Raises HelloError, NothingSent, ConnectionError, Interrupted."""
        client, strand = self._client, self._client.strand
        limit = config.limits.client_hello_bytes
        deadline = monotonic() + config.timeouts.client_hello
        # Who waits for the 200 has not sent anything yet; watching tells if it has. What a watched client told before
        # anybody waited for it is lost, and may have been its end.
        quiet = followed = not client.watched
        while True:
            if client.buffer:
                hello = parse_client_hello(client.buffer, limit)
                if hello is not None:
                    return hello
            if quiet or (more := client.read()) is None:
                if self.origin_edges and _has_spoken(self._origin):
                    # In TLS the client begins.
                    raise HelloError(reasons.TUNNEL_NOT_TLS, "the destination has spoken first")
                quiet, followed = False, True
                client.watch()
                try:
                    await strand.until(READABLE, deadline)
                except TimeoutError:
                    what = "the handshake did not begin, or is not complete, in time"
                    raise HelloError(reasons.CLIENT_HELLO_TIMEOUT, what) from None
            elif more:
                client.buffer += more
                # What comes from now on is told by another edge.
                self.client_readable = (
                    not followed or len(more) == READ_SIZE or bool(strand.edges & _MORE_BEHIND)
                )
            else:
                self.client_readable = True  # to find the end once more
                if not client.buffer:
                    raise NothingSent
                what = "the connection ended inside the handshake"
                raise HelloError(reasons.CLIENT_HELLO_MALFORMED, what)

    def _on_origin(self, mask: int) -> None:
        self.origin_edges |= mask
        self._client.strand.wake(mask)


class SecondHello:
    """The inspector of a tunnel whose server may ask for a second ClientHello."""

    __slots__ = ("_client", "_refuses", "_retry", "over")

    def __init__(
        self, client: Client, retry: HelloRetry, refuses: Callable[[Reason], bool]
    ) -> None:
        self._client = client
        self._retry = retry
        self._refuses = refuses
        self.over = False

    def from_client(self, data: bytes) -> bytes:
        """Raises Interrupted."""
        retry = self._retry
        try:
            passed = retry.from_client(data)
        except HelloError as error:
            if self._refuses(error.reason):
                tell(self._client, error.reason)
                raise Interrupted(error.reason) from None
            retry.over = True
            passed = retry.release()
        self.over = retry.over
        return passed

    def from_server(self, data: bytes) -> None:
        self._retry.from_server(data)
        self.over = self._retry.over

    def release(self) -> bytes:
        return self._retry.release()


def _has_spoken(origin: socket.SocketType) -> bool:
    """Whether there are bytes from the origin. Its end, if there are none, is the tunnel's to find."""
    try:
        return bool(origin.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


async def _judge_ech(
    worker: Worker, client: Client, config: Config, destination: Authority, config_id: int
) -> Reason | None:
    """Whether Encrypted ClientHello is refused.

    GREASE is made to look like it (RFC 9849 §6.2); what the host publishes tells them apart.
    """
    host, port = destination.host, destination.port
    # RFC 9460 §9.1.
    name = host.text if port == 443 else f"_{port}._https.{host.text}"
    if config.tunnels.ech is Ech.GREASE and host.address is None and len(name) <= MAX_NAME_LENGTH:
        deadline = monotonic() + config.dns.timeout + 1
        try:
            published = await client.strand.result_of(
                worker.resolver.ech_config_ids(name), deadline
            )
        except TimeoutError:
            published = reasons.DNS_TIMEOUT
        if not isinstance(published, Reason) and config_id not in published:
            return None
    return reasons.ECH_NOT_ALLOWED


def tell(client: Client, reason: Reason) -> None:
    """Tell a client that speaks TLS, as far as that needs no waiting. Who has gone is refused all the same."""
    if reason in _ALERTS:
        with contextlib.suppress(ConnectionError):
            client.write(_ALERTS[reason])
