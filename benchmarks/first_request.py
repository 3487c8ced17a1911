"""A proxy's first request: it is ready when that has been answered, and not when it listens."""

import socket
import time

from benchmarks.peers import ORIGIN_HOST, Peer, Site

PAUSE = 0.001  # seconds between attempts: how exactly the time to the first request is known
PATIENCE = 1.0  # seconds for one attempt


def is_served(peer: Peer, site: Site) -> bool:
    """A CONNECT and its 200; of a relay that takes none, a GET and whatever its origin answers."""
    authority = f"{ORIGIN_HOST}:{site.origin_port}"
    target = f"CONNECT {authority}" if peer.takes_connect else f"GET http://{authority}/"
    request = f"{target} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
    port = peer.port(site, http=not peer.takes_connect)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(request)
            status = client.recv(4096)[8:13]
    except OSError:
        status = b""
    if status == b" 200 " or (status and not peer.takes_connect and status[1:2] != b"5"):
        return True
    time.sleep(PAUSE)
    return False
