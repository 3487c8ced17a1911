"""Edits as a unified diff, for ``patch -p0`` and ``git apply -p0``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from egress_proxy.history.edit import Change, Edited

#: Unchanged lines around a change, as diff and git show them.
_CONTEXT: Final = 3


def unified_diff(edited: Edited, name: str) -> str:
    """The edits of one file. It is made from what was inserted, so that its size is that of the change."""
    parts = [f"--- {name}\n+++ {name}\n"]
    shift = 0
    for group in _groups(sorted(edited.changes.items())):
        hunk, added = _hunk(edited.lines, group, shift)
        parts.append(hunk)
        shift += added
    return "".join(parts)


def _groups(changes: list[tuple[int, Change]]) -> Iterator[list[tuple[int, Change]]]:
    """Changes whose context touches stand in one hunk."""
    group: list[tuple[int, Change]] = []
    for number, change in changes:
        if group and _first(number, change) - _end(*group[-1]) > 2 * _CONTEXT:
            yield group
            group = []
        group.append((number, change))
    if group:
        yield group


# There must be as many lines of context before a change as behind it: to `patch` and git, a hunk that has fewer lies at
# the start or at the end of the file.
def _first(number: int, change: Change) -> int:
    """The line at which a change begins."""
    return number if change.before or change.text is not None else number + 1


def _end(number: int, change: Change) -> int:
    """The line before which a change ends."""
    return number + 1 if change.after or change.text is not None else number


def _hunk(lines: list[str], group: list[tuple[int, Change]], shift: int) -> tuple[str, int]:
    """One hunk, and how many lines it adds."""
    first = max(_first(*group[0]) - _CONTEXT, 0)
    end = min(_end(*group[-1]) + _CONTEXT, len(lines))
    changes = dict(group)
    body: list[str] = []
    removed = added = 0
    for number in range(first, end):
        change = changes.get(number, Change())
        body += (f"+{line}" for line in change.before)
        added += len(change.before) + len(change.after)
        if change.text is None:
            body.append(f" {lines[number]}")
        else:
            body += (f"-{lines[number]}", f"+{change.text}")
            removed, added = removed + 1, added + 1
        body += (f"+{line}" for line in change.after)
    old = end - first
    new = old - removed + added
    marked = (
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in body
    )
    head = f"@@ -{first + 1},{old} +{first + 1 + shift},{new} @@\n"
    return head + "".join(marked), new - old


# Names ------------------------------------------------------------------------------------------------------------

_PLAIN: Final = re.compile(rb"[ !#-\[\]-~]+")


def names(paths: list[str]) -> tuple[dict[str, str], str]:
    """What the diff calls each file, and the directory to apply it in.

    That is the current directory if all of them lie in it, and the root otherwise: `patch` follows neither absolute
    names nor `..` nor symbolic links.
    """
    here = os.path.realpath(".")
    real = {path: os.path.realpath(path) for path in paths}
    inside = all(Path(path).is_relative_to(here) for path in real.values())
    root = here if inside else "/"
    return {path: quote(os.path.relpath(found, root)) for path, found in real.items()}, root


def quote(name: str) -> str:
    """The name of a file as it stands in a diff: in C's quotes where that is needed."""
    raw = os.fsencode(name)
    if _PLAIN.fullmatch(raw):
        # The tab says that the space before it does not end the name.
        return f"{name}\t" if " " in name else name
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in raw
    )
    return f'"{escaped}"'
