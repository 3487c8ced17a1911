"""``# check: ignore=CODE`` at the end of a line: its writer knows the warning and means what stands there."""

from __future__ import annotations

import re
from typing import Final

from egress_proxy.config.errors import Code, Report, quoted
from egress_proxy.core.policy import Place

_MARK: Final = "check: ignore"
_COMMENT: Final = re.compile(r"(?:^|\s)# ?check: ignore=(\S*)\s*$", re.MULTILINE)


def find_ignores(text: str, report: Report) -> None:
    """Note which warnings the comments of a file switch off, each for its own line."""
    if _MARK not in text:
        return
    for found in _COMMENT.finditer(text):
        line = text.count("\n", 0, found.start(1)) + 1
        codes = frozenset(found[1].split(","))
        report.ignore(line, codes)
        for code in sorted(codes - set(Code)):
            column = found.start(1) - text.rfind("\n", 0, found.start(1))
            what = f"there is no warning with the code {quoted(code)}"
            place = Place(report.file, line, column)
            report.warning(Code.BAD_COMMENT, place, what, "write the code in brackets of a warning")
