"""A private authority, and certificates for the names of the tests."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

NAMES = ("origin.test", "other.test", "git.test", "index.test", "denied.test", "127.0.0.1")


class Authority:
    """``file`` is the authority's certificate, for clients to trust."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.file = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(self.file)
        self._leaf = self._authority.issue_cert(*NAMES)

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._leaf.configure_cert(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.file))
