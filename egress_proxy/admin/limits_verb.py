"""``egress-proxy limits``: asks the admin port what each tenant has used, and prints it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import msgspec

from egress_proxy.admin.asking import Admin, AdminError, ask, not_admin, parse_admin
from egress_proxy.admin.limits import Answer, Limit

__all__ = ["AdminError", "as_table", "fetch", "parse_admin"]


def fetch(admin: Admin, token_file: str | None) -> Answer:
    """Ask the admin port. Raises AdminError."""
    body = ask(admin, "/v1/limits", token_file)
    try:
        return msgspec.json.decode(body, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise not_admin(admin) from None


_HEADERS: Final = ("POLICY", "TENANT", "LIMIT", "USED", "OF", "LEFT", "RESETS IN")


def as_table(answer: Answer, now: Callable[[], float] = time.time) -> str:
    """One line for each limit of each tenant, those first that have the least left."""
    rows: list[tuple[float, tuple[str, ...]]] = []
    moment = now()
    for tenant in answer.tenants:
        for each in tenant.limits:
            left = 1.0
            if each.used is not None:
                left = max(0.0, 1 - each.used / each.of) if each.of > 0 else 0.0
            resets = "" if each.resets_at is None else _in(each.resets_at.timestamp() - moment)
            cells = (tenant.policy, tenant.tenant, _named(each), *_counts(each, left), resets)
            rows.append((left, cells))
        if not tenant.limits:
            # Such as of a bandwidth alone.
            cells = (tenant.policy, tenant.tenant, "(none counted)", "", "", "", "")
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


def _named(limit: Limit) -> str:
    """The limit's key; a rate with its number, for what is used is its burst's."""
    return limit.limit if limit.rate is None else f"{limit.limit} {limit.rate:g}"


def _counts(limit: Limit, left: float) -> tuple[str, str, str]:
    """What is used, of how much, and what is left, as far as that is known."""
    of = _shown(limit.limit, limit.of)
    if limit.used is None:
        return "", of, ""
    return _shown(limit.limit, limit.used), of, f"{left:.0%}"


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
