"""The table of errors, as ``egress-proxy errors`` prints it: every reason that a client can meet, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from egress_proxy.core.answer import REASONS_PAGE
from egress_proxy.core.reason import MEANINGS, Code, Reason
from egress_proxy.core.reasons import REASONS

#: Their answers work out `Retry-After` from what the tenant has used; the table's seconds are for when they cannot.
_WORKED_OUT: Final = (Code.RATE_LIMIT_EXCEEDED, Code.BUDGET_EXCEEDED)


class Row(msgspec.Struct, frozen=True):
    """One reason, with its fields in the order of the table's columns."""

    code: str
    reason: str
    status: int
    proxy_status: str
    """Error type of the ``Proxy-Status`` field (RFC 9209 §2.3)."""
    retry: bool
    retry_after: int | None
    """Seconds; None where a retry cannot help, or where each answer works them out (``Retry-After``)."""
    message: str
    advice: str
    """What to do."""
    docs: str


def names() -> Iterator[str]:
    """Every reason and every code."""
    for row in REASONS.values():
        yield from (row.name, row.code)


def rows(name: str | None = None) -> tuple[Row, ...]:
    """All rows, by code; or those of one code or one status, or the one of a reason, in any case.

    None are of another name.
    """
    wanted = None if name is None else name.lower()
    found = [
        row
        for row in REASONS.values()
        if wanted in (None, row.name.lower(), row.code.lower(), str(row.status))
    ]
    order = tuple(Code)
    return tuple(_row(each) for each in sorted(found, key=lambda row: order.index(row.code)))


def as_text(table: tuple[Row, ...]) -> str:
    """The table for a terminal: one line a row, so that grep finds whole rows."""
    lines = [("CODE", "REASON", "STATUS", "PROXY-STATUS", "RETRY", "WHAT TO DO")]
    lines += [
        (row.code, row.reason, str(row.status), row.proxy_status, retry(row), row.advice)
        for row in table
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "".join("  ".join([*map(str.ljust, line[:5], widths), line[5]]) + "\n" for line in lines)


def explained(row: Row) -> str:
    """One row in sentences."""
    again = f"yes, {retry(row)}" if row.retry else "no"
    return (
        f"{row.reason}: {row.message}\n"
        f"  code:         {row.code}: {MEANINGS[Code(row.code)]}\n"
        f"  status:       {row.status}\n"
        f"  Proxy-Status: error={row.proxy_status}\n"
        f"  retry:        {again}\n"
        f"  what to do:   {row.advice}\n"
    )


def retry(row: Row) -> str:
    """Whether, and when, the same request may be sent again."""
    if not row.retry:
        return "no"
    return "when it says" if row.retry_after is None else f"after {row.retry_after} s"


def _row(reason: Reason) -> Row:
    return Row(
        reason.code,
        reason.name,
        reason.status,
        reason.proxy_status,
        reason.retry_after is not None,
        None if reason.code in _WORKED_OUT else reason.retry_after,
        reason.message,
        reason.advice,
        f"{REASONS_PAGE}#{reason.name}",
    )
