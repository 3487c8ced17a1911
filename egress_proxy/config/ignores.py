"""``# check: ignore=CODE`` at the end of a line: its writer knows the warning and means what stands there."""

from __future__ import annotations

import re
from typing import Final

from egress_proxy.config.errors import Code, Report, quoted
from egress_proxy.core.policy import Place

_MARK: Final = "check: ignore"
_COMMENT: Final = re.compile(r"(?:^|\s)# ?check: ignore=(.*)$", re.MULTILINE)
_BETWEEN: Final = re.compile(r"[,\s]+")


def find_ignores(text: str, report: Report) -> None:
    """Note which warnings the comments of a file switch off, each for its own line."""
    if _MARK not in text:
        return
    line, seen = 1, 0
    for found in _COMMENT.finditer(text):
        line, seen = line + text.count("\n", seen, found.start(1)), found.start(1)
        codes = frozenset(_BETWEEN.split(found[1].strip()))
        report.ignore(line, codes)
        for code in sorted(codes - set(Code)):
            column = found.start(1) - text.rfind("\n", 0, found.start(1))
            what = f"there is no warning with the code {quoted(code)}"
            place = Place(report.file, line, column)
            report.warning(Code.BAD_COMMENT, place, what, "write the code in brackets of a warning")
