"""Writes docs/reference/errors.md and docs/reference/reasons.md from the table in egress_proxy/core/reasons.

Run it with ``python docs/reference/generate.py`` after the table has changed; tests hold them
equal.
"""  # noqa: INP001 - a script beside what it writes, in no package

from __future__ import annotations

from pathlib import Path

from egress_proxy.core.error_table import retry, rows
from egress_proxy.core.reason import MEANINGS, Code, Event, Reason
from egress_proxy.core.reasons import REASONS

PAGE = Path(__file__).with_name("reasons.md")
ERRORS_PAGE = Path(__file__).with_name("errors.md")

_INTRODUCTION = """\
# Reasons

Generated from `egress_proxy/core/reasons` by `docs/reference/generate.py`: change the table, not this page.

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


_ERRORS = """\
# Errors

Generated from `egress_proxy/core/reasons` by `docs/reference/generate.py`: change the table, not this page.
`egress-proxy errors` prints the same, `egress-proxy errors REASON` explains one, `egress-proxy errors 429` shows
those of a status, and `--format json` is for programs.

Every refusal has one of ten codes, in `X-Egress-Error` and in its body, and a reason that says which case of it this
is. A program decides by the code and by `retry`; [the walk](../errors-walk.md) shows each code as a client sees it.

## The codes

"""


def errors_page() -> str:
    """The page of the codes."""
    parts = [_ERRORS, "| Code | Status | What it says |\n|---|---|---|\n"]
    for code in Code:
        statuses = sorted({row.status for row in rows(code)})
        said = ", ".join(map(str, statuses))
        parts.append(f"| [`{code}`](#{code.lower()}) | {said} | {MEANINGS[code]} |\n")
    for code in Code:
        parts.append(f"\n## {code}\n\n{MEANINGS[code]}\n\n")
        parts.append("| Reason | Status | Proxy-Status error | Retry | What to do |\n")
        parts.append("|---|---|---|---|---|\n")
        parts += [
            f"| [`{row.reason}`](reasons.md#{row.reason}) | {row.status} | `{row.proxy_status}` "
            f"| {retry(row)} | {row.advice} |\n"
            for row in rows(code)
        ]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(reasons_page(), encoding="utf-8")
    ERRORS_PAGE.write_text(errors_page(), encoding="utf-8")
