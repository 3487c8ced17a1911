"""``egress-proxy limits``: asks the admin port what each tenant has used, and prints it."""

from __future__ import annotations

import http.client
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from egress_proxy.admin.limits import Answer
from egress_proxy.core.errors import EgressProxyError

DEFAULT_ADMIN: Final = "http://127.0.0.1:9090"
#: Seconds to wait for the admin port.
_TIMEOUT: Final = 10.0
#: Bytes of an answer that are read: some 100,000 tenants.
_MAX_ANSWER: Final = 64 * 1024 * 1024
_MAX_TOKEN: Final = 4096


class AdminError(EgressProxyError):
    """The admin port cannot be asked, or says no; the message says why."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        """Whether it was asked and said no."""


@dataclass(frozen=True, slots=True)
class Admin:
    """Where the admin port is."""

    host: str
    port: int


def parse_admin(url: str) -> Admin:
    """Read ``http://HOST:PORT``. Raises AdminError."""
    wrong = AdminError(f"write the admin port as http://HOST:PORT, such as {DEFAULT_ADMIN}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    rest = (parts.path.strip("/"), parts.query, parts.fragment, parts.username, parts.password)
    if parts.scheme != "http" or not host or any(rest) or not url.isascii() or " " in url:
        raise wrong
    return Admin(host, 80 if port is None else port)


def fetch(admin: Admin, token_file: str | None) -> Answer:
    """Ask the admin port. Raises AdminError."""
    headers = {}
    if token_file is not None:
        headers["Authorization"] = f"Bearer {_token(token_file)}"
    connection = http.client.HTTPConnection(admin.host, admin.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", "/v1/limits", headers=headers)
        response = connection.getresponse()
        body = response.read(_MAX_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise AdminError(
            f"the admin port {admin.host}:{admin.port} cannot be asked: {why}"
        ) from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        code = response.headers.get("X-Egress-Error", "")
        known = f" {code}" if code.replace("_", "").isalpha() and code.isascii() else ""
        hint = "; name the token's file with --token-file" if response.status == 401 else ""
        message = f"the admin port answers {response.status}{known}{hint}"
        raise AdminError(message, refused=True)
    try:
        return msgspec.json.decode(body, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise AdminError("what answers there is not the admin port of an egress-proxy") from None


def _token(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            token = file.read(_MAX_TOKEN).strip()
    except OSError as error:
        raise AdminError(f"the token file cannot be read: {error.strerror}") from None
    try:
        text = token.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not text:
        raise AdminError("the token file holds no token")
    return text


_HEADERS: Final = ("POLICY", "TENANT", "LIMIT", "USED", "OF", "LEFT", "RESETS IN")


def as_table(answer: Answer, now: Callable[[], float] = time.time) -> str:
    """One line for each limit of each tenant, those first that have the least left."""
    rows: list[tuple[float, tuple[str, ...]]] = []
    moment = now()
    for tenant in answer.tenants:
        for each in tenant.limits:
            left = max(0.0, 1 - each.used / each.of) if each.of > 0 else 0.0
            resets = "" if each.resets_at is None else _in(each.resets_at.timestamp() - moment)
            shown = (_shown(each.limit, each.used), _shown(each.limit, each.of))
            cells = (tenant.policy, tenant.tenant, each.limit, *shown, f"{left:.0%}", resets)
            rows.append((left, cells))
        if not tenant.limits:
            cells = (tenant.policy, tenant.tenant, "", "", "", "", "")
            rows.append((1.0, cells))
    if not rows:
        return "No tenant has used any of its limits.\n"
    rows.sort(key=lambda row: (row[0], row[1]))
    table = [_HEADERS, *(tuple(map(_plain, cells)) for _, cells in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADERS))]
    lines = []
    for row in table:
        cells_ = [
            cell.rjust(width) if 3 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells_).rstrip() + "\n")
    return "".join(lines)


def _plain(text: str) -> str:
    """A name as the terminal may show it: what answers may be anything."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _shown(limit: str, count: int) -> str:
    if not limit.startswith("bytes"):
        return f"{count:,}"
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.1f} {units[0]}" if units[0] != "B" else f"{count} B"


def _in(seconds: float) -> str:
    whole = max(0, math.ceil(seconds))
    hours, rest = divmod(whole, 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
