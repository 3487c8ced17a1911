"""Who may use the admin API: holders of the token, or, where none is configured, local programs."""

from __future__ import annotations

import hmac
from hashlib import sha256
from pathlib import Path
from typing import Final

from egress_proxy.admin.http import Refusal
from egress_proxy.core import reasons
from egress_proxy.core.errors import HostError
from egress_proxy.core.http1 import Head
from egress_proxy.core.names import parse_authority
from egress_proxy.observe.events import log

# Bytes of the token file that are read; no token is longer.
_MAX_TOKEN: Final = 4096
_LOOPBACK_PORT: Final = 80


class TokenFile:
    """The bearer token in a file, read again whenever the file changes.

    A file that is missing, unreadable or empty lets nobody in.
    """

    def __init__(self) -> None:
        self._seen: object = None
        self._token = b""

    def admits(self, path: str, head: Head) -> bool:
        """Whether the request carries the token (RFC 6750 §2.1), compared in constant time."""
        token = self._read(path)
        values = head.values(b"authorization")
        if not token or len(values) != 1:
            return False
        scheme, _, given = values[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(b" "), token)

    def _read(self, path: str) -> bytes:
        try:
            state = Path(path).stat()
            # A mounted Secret changes by a link that points elsewhere: its inode is another one.
            seen: object = (path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
            if seen == self._seen:
                return self._token
            with Path(path).open("rb") as file:
                token = file.read(_MAX_TOKEN).strip()
            problem = None if token else "the file is empty"
        except OSError as error:
            seen, token, problem = (path, error.errno), b"", error.strerror
        if problem is not None and seen != self._seen:
            log.warning("admin_token_unusable", file=path, error=problem)
        self._seen, self._token = seen, token
        return token


def principal(head: Head, token_file: str | None) -> bytes:
    """Who sent a request that was admitted: a digest of the token, or nothing for local programs without one."""
    if token_file is None:
        return b""
    (value,) = head.values(b"authorization")
    return sha256(value.partition(b" ")[2].strip(b" ")).digest()


def local_refusal(head: Head) -> Refusal | None:
    """Why a request without token to a port on loopback is refused, or None.

    A browser on this machine reaches the port for any page it shows: with that page's own name in
    Host after DNS rebinding, or with Origin when the page posts to loopback.
    """
    if head.values(b"origin"):
        return Refusal(reasons.FORBIDDEN_HOST, "the request has an Origin header")
    for value in head.values(b"host"):
        try:
            host = parse_authority(value, _LOOPBACK_PORT).host
        except HostError:
            return Refusal(reasons.FORBIDDEN_HOST, "the Host header is not a host")
        if host.text != "localhost" and not (host.address and host.address.is_loopback):
            return Refusal(reasons.FORBIDDEN_HOST, "the Host header names another machine")
    return None
