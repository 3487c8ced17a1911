"""A question to the admin port of a proxy that runs; and where something else answers, what it is.

Nothing that comes from there is printed: what answers may be anything.
"""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from egress_proxy.core import reasons
from egress_proxy.core.errors import EgressProxyError

DEFAULT_ADMIN: Final = "http://127.0.0.1:9090"
#: Seconds to wait for the admin port.
_TIMEOUT: Final = 10.0
#: Bytes of an answer that are read: some 100,000 tenants.
_MAX_ANSWER: Final = 64 * 1024 * 1024
_MAX_TOKEN: Final = 4096

_PLAIN_FORM: Final = "write the admin port as http://HOST:PORT"
_FORM: Final = f"{_PLAIN_FORM}, such as {DEFAULT_ADMIN}"
_WHERE: Final = (
    f"name the proxy's admin port (`listen.admin`) with --admin, such as {DEFAULT_ADMIN}"
)
#: The first bytes of a TLS alert (RFC 8446 §5.1, §6), with which a server meets what is no TLS.
_ALERT: Final = "\x15\x03"
#: What servers say, in their own words, of plain HTTP on a port for TLS.
_WANTS_TLS: Final = (b"https server", b"https port", b"speaking plain http")


class AdminError(EgressProxyError):
    """The admin port cannot be asked, or says no; the message says why, and what to write instead."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        """Whether it was asked and said no."""


@dataclass(frozen=True, slots=True)
class Admin:
    """Where the admin port is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_admin(url: str) -> Admin:
    """Read ``http://HOST:PORT``. Raises AdminError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise AdminError(_FORM) from None
    if not url.isascii() or not url.isprintable() or " " in url:
        raise AdminError(_FORM)
    rest = (parts.path.strip("/"), parts.query, parts.fragment)
    secrets = (parts.username, parts.password)
    if parts.scheme == "http" and host and not any((*rest, *secrets)):
        return Admin(host, 80 if port is None else port)
    if any(secrets) or "@" in url:
        # Nothing is quoted where a password may stand.
        raise AdminError(f"{_FORM}, without `user:password@`: its token is --token-file's")
    if parts.scheme in {"http", "https"} and host:
        where = Admin(host, port or 9090)
        why = "the path is known" if parts.scheme == "http" else "the admin port speaks plain HTTP"
        raise AdminError(f"{why}; {_PLAIN_FORM}, here http://{where}")
    if "://" not in url and url and "/" not in url.strip("/"):
        parse_admin(f"http://{url}")
        raise AdminError(f"{_PLAIN_FORM}, here http://{url}")
    raise AdminError(_FORM)


def ask(admin: Admin, path: str, token_file: str | None) -> bytes:
    """What the admin port answers to a GET. Raises AdminError."""
    headers = {}
    if token_file is not None:
        headers["Authorization"] = f"Bearer {_token(token_file)}"
    connection = http.client.HTTPConnection(admin.host, admin.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read(_MAX_ANSWER)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise AdminError(_unasked(admin, error)) from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise _no(admin, response, body)
    return body


def not_admin(admin: Admin) -> AdminError:
    """The error about a port that answers something else."""
    return AdminError(f"what answers on {admin} is not the admin port of an egress-proxy; {_WHERE}")


def _unasked(admin: Admin, error: Exception) -> str:
    """Why nothing came of a question."""
    if isinstance(error, http.client.BadStatusLine) and str(error.args[0]).startswith(_ALERT):
        return f"{admin} speaks TLS, and the admin port does not; {_WHERE}"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return f"{admin} closed the connection without an answer, as a port for TLS may; {_WHERE}"
    if isinstance(error, http.client.HTTPException):
        return f"what answers on {admin} does not speak HTTP; {_WHERE}"
    if isinstance(error, ConnectionRefusedError):
        return (
            f"nothing listens on {admin} ({error.strerror}); see that the proxy runs, and {_WHERE}"
        )
    if isinstance(error, TimeoutError):
        return f"{admin} does not answer within {_TIMEOUT:.0f} s; {_WHERE}"
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"the host of {admin} has no address; {_WHERE}"
    why = getattr(error, "strerror", None) or type(error).__name__
    return f"{admin} cannot be asked: {why}; {_WHERE}"


class _Error(msgspec.Struct):
    reason: str = ""


class _Body(msgspec.Struct):
    error: _Error


def _no(admin: Admin, response: http.client.HTTPResponse, body: bytes) -> AdminError:
    """The error about an answer that is not 200."""
    code = response.headers.get("X-Egress-Error")
    if code is None:
        if any(words in body[:65536].lower() for words in _WANTS_TLS):
            return AdminError(f"{admin} speaks TLS, and the admin port does not; {_WHERE}")
        return not_admin(admin)
    try:
        reason = msgspec.json.decode(body, type=_Body).error.reason
    except (msgspec.DecodeError, UnicodeDecodeError):
        reason = ""
    if reason == reasons.NOT_A_PROXY_REQUEST.name:
        return AdminError(f"{admin} is where clients reach a proxy (`listen.proxy`); {_WHERE}")
    known = f" {code}" if code.replace("_", "").isalpha() and code.isascii() else ""
    hint = "; name the token's file with --token-file" if response.status == 401 else ""
    return AdminError(f"the admin port answers {response.status}{known}{hint}", refused=True)


def _token(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            token = file.read(_MAX_TOKEN).strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "its name holds a NUL"
        raise AdminError(f"the token file cannot be read: {why}") from None
    try:
        text = token.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not text:
        raise AdminError("the token file holds no token")
    return text
