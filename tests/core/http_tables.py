"""The tables in ``data/http``: each row is an HTTP message as it stands on the wire, and what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from egress_proxy.core.http1 import Framing, HeadLimits

FOLDER = Path(__file__).parent / "data" / "http"
#: The limits that the tables are about.
LIMITS = HeadLimits(size=4096, fields=20)


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    file: str
    line: int
    section: str
    cells: dict[str, str]

    def __str__(self) -> str:
        return f"{self.section}: {self.cells['What']}"

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def data(self, column: str) -> bytes:
        """The bytes in a cell."""
        text = self.cells[column]
        return to_bytes(text[1:-1]) if text else b""

    @property
    def message(self) -> bytes:
        """What came: a whole head, or a body."""
        if "Came" in self.cells:
            return self.data("Came") + b"\r\n\r\n"
        return self.data(next(name for name in ("Request", "Answer", "Body") if name in self.cells))


_ONE = r"\\x[0-9a-f]{2}|\\[rnt\\]|[^\\]"
_PIECE = re.compile(rf"\(((?:{_ONE})*?)\)\{{(\d+)\}}|({_ONE})(?:\{{(\d+)\}})?", re.DOTALL)
_NAMED = {"\\r": b"\r", "\\n": b"\n", "\\t": b"\t", "\\\\": b"\\"}


def to_bytes(text: str) -> bytes:
    """What is written between backticks."""
    data, position = b"", 0
    while position < len(text):
        piece = _PIECE.match(text, position)
        assert piece is not None, text[position:]
        group, times, one, repeated = piece.groups()
        if group is not None:
            data += to_bytes(group) * int(times)
        else:
            byte = bytes.fromhex(one[2:]) if one.startswith("\\x") else _NAMED.get(one)
            data += (one.encode("ascii") if byte is None else byte) * int(repeated or 1)
        position = piece.end()
    return data


def framing_of(cell: str) -> tuple[Framing, int]:
    """What a Body cell says: ``none``, ``5 bytes``, ``chunked`` or ``until close``."""
    body = cell.partition(",")[0]
    if body.endswith(" bytes"):
        return Framing.LENGTH, int(body.removesuffix(" bytes"))
    return Framing(body), 0


@cache
def rows(file: str) -> tuple[Row, ...]:
    """All rows of a file."""
    return tuple(_rows(file))


def section(file: str, name: str) -> list[Row]:
    """The rows below the headings that begin with a name."""
    found = [row for row in rows(file) if row.section.startswith(name)]
    assert found
    return found


def _rows(file: str) -> Iterator[Row]:
    heading, columns = "", list[str]()
    for number, line in enumerate((FOLDER / file).read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("## "):
            heading, columns = line.removeprefix("## "), []
        elif line.startswith("|---"):
            pass
        elif line.startswith("| "):
            cells = [cell.strip(" ") for cell in line[1:-1].split("|")]
            if columns:
                yield Row(file, number, heading, dict(zip(columns, cells, strict=True)))
            else:
                columns = cells
