"""Writes docs/reference/reasons.md from the table in egress_proxy/core/reason.py.

Run it with ``python docs/reference/generate.py`` after the table has changed; a test holds the two
equal.
"""  # noqa: INP001 - a script beside what it writes, in no package

from __future__ import annotations

from pathlib import Path

from egress_proxy.core.reason import REASONS, Event, Reason

PAGE = Path(__file__).with_name("reasons.md")

_INTRODUCTION = """\
# Reasons

Generated from `egress_proxy/core/reason.py` by `docs/reference/generate.py`: change the table, not this page.

Whatever the proxy refuses, cannot do or cuts short has one of these reasons. Its name stands in the audit line
(`reason`), in the metrics (label `reason`), in the body of the answer and in `Proxy-Status`. *Status* and *code* are
what the client gets where an answer can still be given; *retry* is `Retry-After` in seconds, or nothing where the
same request will fail again.
"""

_SECTIONS = {
    Event.DENIED: "## DENIED: refused",
    Event.FAILED: "## FAILED: not refused by the policy, and not done",
    Event.CLOSED: "## CLOSED: let through, and ended by the proxy",
}


def reasons_page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for event, title in _SECTIONS.items():
        rows = [reason for reason in REASONS.values() if reason.event is event]
        parts.append(f"{title}\n\n{_overview(rows)}\n" + "\n".join(map(_entry, rows)))
    return "\n".join(parts)


def _overview(rows: list[Reason]) -> str:
    lines = ["| Reason | Code | Status | Retry | Proxy-Status error |", "|---|---|---|---|---|"]
    lines += [
        f"| [`{row.name}`](#{row.name}) | `{row.code}` | {row.status} "
        f"| {'' if row.retry_after is None else f'{row.retry_after} s'} | `{row.proxy_status}` |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _entry(row: Reason) -> str:
    return f"### `{row.name}`\n\n{row.message}\n\n**What to do.** {row.advice}\n"


if __name__ == "__main__":
    PAGE.write_text(reasons_page(), encoding="utf-8")
