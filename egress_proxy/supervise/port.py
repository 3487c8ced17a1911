"""The proxy's port, held for all workers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from egress_proxy.app import hinting
from egress_proxy.config.model import SocketAddress
from egress_proxy.engine import cannot_listen


@contextlib.contextmanager
def reserve(
    address: SocketAddress, *, shared: bool
) -> Iterator[tuple[socket.socket, SocketAddress]]:
    """Hold a port for all workers, without listening: the socket, and which port it is. Raises StartError.

    Unless it is to be ``shared`` with another proxy, nobody else may listen there: the system would deal out
    connections to both.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        if address.port and not shared:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address.host, address.port))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((address.host, address.port))
    except OSError as error:
        held.close()
        with hinting(reuse_port=shared):
            raise cannot_listen(address, error) from None
    with held:
        host, port = held.getsockname()[:2]
        yield held, SocketAddress(host, port)
