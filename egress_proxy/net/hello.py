"""The first bytes of a tunnel: whether they begin TLS to the host that was asked for, before any of them goes on."""

from __future__ import annotations

import contextlib
import socket
from time import monotonic
from typing import TYPE_CHECKING, Final

from egress_proxy.config.model import Config, Ech
from egress_proxy.core import reasons
from egress_proxy.core.errors import HelloError
from egress_proxy.core.known_hellos import parse_known_hello
from egress_proxy.core.names import MAX_NAME_LENGTH
from egress_proxy.core.policy import Mode
from egress_proxy.core.reason import Event, Reason
from egress_proxy.core.record import Record
from egress_proxy.core.retry import HelloRetry
from egress_proxy.core.tls import (
    DECODE_ERROR,
    UNRECOGNIZED_NAME,
    ClientHello,
    alert,
)
from egress_proxy.net.client import READ_SIZE, Client, Next
from egress_proxy.net.poller import CLIENT_READABLE, MORE_BEHIND, READABLE, Interrupted
from egress_proxy.net.revocation import Permit

if TYPE_CHECKING:
    from egress_proxy.net.worker import Worker

#: What the client is told, where it is one that speaks TLS.
_ALERTS: Final = {
    reasons.SNI_MISMATCH: alert(UNRECOGNIZED_NAME),
    reasons.SNI_MISSING: alert(UNRECOGNIZED_NAME),
    reasons.ECH_NOT_ALLOWED: alert(UNRECOGNIZED_NAME),
    reasons.CLIENT_HELLO_MALFORMED: alert(DECODE_ERROR),
}


class Opening:
    """A tunnel between its 200 and its first byte to the origin."""

    __slots__ = (
        *("_client", "_config", "_origin", "_permit", "_record", "_retry", "_worker"),
        *("client_readable", "origin_edges", "over"),
    )

    def __init__(
        self,
        worker: Worker,
        client: Client,
        origin: socket.SocketType,
        config: Config,
        permit: Permit,
        record: Record,
    ) -> None:
        """The origin is watched, and from here on tells us."""
        self._worker = worker
        self._client = client
        self._origin = origin
        self._config = config
        self._permit = permit
        self._record = record
        strand = client.strand
        # Where the client is watched, its 200 may have had to wait, and what the origin told meanwhile is lost.
        self.origin_edges = READABLE if client.watched else strand.edges & READABLE
        """What the origin has told of. The edge that ended connecting may have told of its first bytes, too."""
        self.client_readable = True
        """Whether the client may have more to read than its buffer has."""
        self.over = True
        """Whether nothing of what comes next needs to be looked at."""
        self._retry: HelloRetry | None = None
        strand.poller.hand_over(origin.fileno(), self._on_origin)

    async def verify(self) -> Next:
        """Hold the tunnel until its ClientHello shows that it is what was asked for; NOTHING if it is, or may go on.

        The ClientHello stays in the client's buffer, and the record is told what it says. Raises ConnectionError,
        Interrupted.
        """
        try:
            hello = await self._read()
            if hello is None:
                return self._end_without_a_byte()
            refused = self._refusal(hello)
            if refused is None and hello.ech is not None:
                refused = await self._refusal_of_ech(hello.ech)
            if refused is None:
                self._await_second(hello)
                return Next.NOTHING
        except HelloError as error:
            refused = error.reason
        if not self._refuses(refused):
            return Next.NOTHING
        self._record.bytes_sent = self._record.bytes_received = 0
        self._client.strand.permit = None
        self._tell(refused)
        return Next.LINGER

    def _refuses(self, reason: Reason) -> bool:
        """Whether what is in a tunnel ends it, which is recorded. In audit mode it is noted, and the tunnel goes on."""
        record = self._record
        if self._config.policy.mode is Mode.AUDIT:
            # A rule's denial says more.
            if not record.event:
                record.conclude(Event.WOULD_DENY, reason)
            self._permit.verified = False
            return False
        record.conclude(Event.DENIED, reason)
        return True

    def _tell(self, reason: Reason) -> None:
        """Tell a client that speaks TLS, as far as that needs no waiting. Who has gone is refused all the same."""
        if reason in _ALERTS:
            with contextlib.suppress(ConnectionError):
                self._client.write(_ALERTS[reason])

    async def _read(self) -> ClientHello | None:
        """The ClientHello, or None where the client has ended the tunnel without a byte.

        Raises HelloError, ConnectionError, Interrupted.
        """
        client, strand = self._client, self._client.strand
        limit, host = self._config.limits.client_hello_bytes, self._permit.destination.host.text
        deadline = monotonic() + self._config.timeouts.client_hello
        # Who waits for the 200 has not sent anything yet; watching tells if it has.
        quiet = not client.watched
        while True:
            if client.buffer:
                hello = parse_known_hello(client.buffer, limit, host)
                if hello is not None:
                    return hello
            if quiet or (more := client.read()) is None:
                if self.origin_edges and _has_spoken(self._origin):
                    # In TLS the client begins.
                    raise HelloError(reasons.TUNNEL_NOT_TLS, "the destination has spoken first")
                quiet = False
                client.watch()
                try:
                    await strand.until(READABLE | CLIENT_READABLE, deadline)
                except TimeoutError:
                    what = "the handshake did not begin, or is not complete, in time"
                    raise HelloError(reasons.CLIENT_HELLO_TIMEOUT, what) from None
            elif more:
                client.buffer += more
                # What comes from now on is told by another edge.
                self.client_readable = len(more) == READ_SIZE or bool(client.edges & MORE_BEHIND)
            else:
                self.client_readable = True  # to find the end once more
                if not client.buffer:
                    return None
                what = "the connection ended inside the handshake"
                raise HelloError(reasons.CLIENT_HELLO_MALFORMED, what)

    def _end_without_a_byte(self) -> Next:
        if self._config.policy.mode is Mode.AUDIT:
            # What the destination says all the same is not for us to hide.
            self._permit.verified = False
            return Next.NOTHING
        self._record.bytes_sent = self._record.bytes_received = 0
        self._record.conclude(Event.ALLOWED, None)
        return Next.CLOSE

    def _refusal(self, hello: ClientHello) -> Reason | None:
        """Why the tunnel must end, going by the name that it is for; None if it need not."""
        record, host, name = self._record, self._permit.destination.host, hello.server_name
        record.sni = name
        record.tls_version, record.alpn = hello.tls_version, hello.alpn
        if name is None:
            # Who asks for an address has no name to tell (RFC 6066 §3).
            return reasons.SNI_MISSING if host.address is None else None
        return None if name == host.text else reasons.SNI_MISMATCH

    async def _refusal_of_ech(self, config_id: int) -> Reason | None:
        """Why Encrypted ClientHello ends the tunnel; None if it does not. Raises Interrupted.

        GREASE is made to look like it (RFC 9849 §6.2); what the host publishes tells them apart.
        """
        setting = self._config.tunnels.ech
        if setting is Ech.ALLOW:
            return None
        self.client_readable = True
        host, port = self._permit.destination.host, self._permit.destination.port
        # RFC 9460 §9.1.
        name = host.text if port == 443 else f"_{port}._https.{host.text}"
        if setting is Ech.GREASE and host.address is None and len(name) <= MAX_NAME_LENGTH:
            deadline = monotonic() + self._config.dns.timeout + 1
            try:
                published = await self._client.strand.result_of(
                    self._worker.resolver.ech_config_ids(name), deadline
                )
            except TimeoutError:
                published = reasons.DNS_TIMEOUT
            if not isinstance(published, Reason) and config_id not in published:
                return None
        return reasons.ECH_NOT_ALLOWED

    def _await_second(self, first: ClientHello) -> None:
        """Have what comes next looked at. Raises HelloError where that is no TLS."""
        client, config = self._client, self._config
        limit, ech = config.limits.client_hello_bytes, config.tunnels.ech
        self._retry = retry = HelloRetry(first, limit, ech is Ech.ALLOW)
        if len(client.buffer) > first.size:
            behind = retry.from_client(client.buffer[first.size :])
            client.buffer = client.buffer[: first.size] + behind
        self.over = retry.over

    # As the inspector of the tunnel, whose server may ask for a second ClientHello.

    def from_client(self, data: bytes) -> bytes:
        """What of it may go on, with what was held back before. Raises Interrupted where it ends the tunnel."""
        retry = self._retry
        assert retry is not None  # noqa: S101 - or it would be over
        try:
            passed = retry.from_client(data)
        except HelloError as error:
            if self._refuses(error.reason):
                self._tell(error.reason)
                raise Interrupted(error.reason) from None
            self.over = True
            return retry.release()
        self.over = retry.over
        return passed

    def from_server(self, data: bytes) -> bytes:
        """Look at it before it goes on; what was held back of the client's, once it is over."""
        retry = self._retry
        assert retry is not None  # noqa: S101 - or it would be over
        retry.from_server(data)
        self.over = retry.over
        return retry.release() if retry.over else b""

    def _on_origin(self, mask: int) -> None:
        self.origin_edges |= mask
        self._client.strand.wake(mask)


def _has_spoken(origin: socket.SocketType) -> bool:
    """Whether there are bytes from the origin. Its end, if there are none, is the tunnel's to find."""
    try:
        return bool(origin.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
