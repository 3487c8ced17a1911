"""A squid.conf as directives with their places: comments, continued lines, includes and conditions.

As Squid 5 reads it (``parseOneConfigFile``, ``ConfigParser::strtokFile``), with its default of
``configuration_includes_quoted_values off``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from egress_proxy.migrate.writing import MigrationError, Note, UnreadableError, shown

ReadFile = Callable[[str], str]
#: The files that a pattern of ``include`` names, in order.
FindFiles = Callable[[str], Sequence[str]]

#: Squid's own bound.
_MAX_DEPTH: Final = 16
# ASCII alone: to Squid a no-break space is a part of a word.
_SPACE: Final = re.compile(r"[ \t\r\n]+")
_NUMBERS: Final = re.compile(r"([0-9]+)\s*=\s*([0-9]+)")


@dataclass(frozen=True, slots=True)
class Directive:
    """One directive with what follows it."""

    name: str
    words: tuple[str, ...]
    file: str
    line: int
    uncertain: bool
    """Whether it stands behind a condition that cannot be known here."""

    def __str__(self) -> str:
        return shown(" ".join((self.name, *self.words)))

    def note(self, why: str, what: str | None = None) -> Note:
        return Note(self.file, self.line, f"`{self}`" if what is None else what, why)


@dataclass(frozen=True, slots=True)
class Files:
    """How further files are read, and the folder that relative names start from."""

    read: ReadFile
    find: FindFiles
    folder: str

    def path(self, name: str) -> str:
        return str(PurePosixPath(self.folder) / name)


def directives(path: str, text: str, files: Files, depth: int = 0) -> Iterator[Directive]:
    """Every directive of the file and of those that it includes, in their order.

    Raises MigrationError where Squid would not start either: an include that is missing or too deep, an ``endif``
    without its ``if``.
    """
    conditions: list[bool | None] = []  # None: cannot be known
    for number, line in _joined(text):
        word, _, rest = line.partition(" ")
        place = f"{path}:{number}"
        if word == "if":
            conditions.append(_condition(rest.strip()))
        elif word in ("else", "endif"):
            if not conditions:
                raise MigrationError(f"{place}: `{word}` without `if`")
            ended = conditions.pop()
            if word == "else":
                conditions.append(None if ended is None else not ended)
        elif False not in conditions:
            words = tuple(_words(line))
            found = Directive(words[0], words[1:], path, number, None in conditions)
            if found.name != "include":
                yield found
            elif found.uncertain:
                raise MigrationError(
                    f"{place}: an `include` behind a condition that depends on the running Squid; "
                    "write the included lines that apply into the file"
                )
            else:
                yield from _included(found, files, depth)
    if conditions:
        raise MigrationError(f"{path}: an `if` without `endif`")


def _included(include: Directive, files: Files, depth: int) -> Iterator[Directive]:
    place = f"{include.file}:{include.line}"
    if depth >= _MAX_DEPTH:
        raise MigrationError(f"{place}: includes are nested deeper than {_MAX_DEPTH} files")
    for pattern in include.words:
        name = files.path(pattern)
        found = files.find(name) if re.search(r"[*?\[]", pattern) else [name]
        if not found:
            raise MigrationError(
                f"{place}: no file matches {shown(name)}; copy the included files to where they are expected"
            )
        for file in found:
            try:
                text = files.read(file)
            except (OSError, ValueError, MigrationError) as error:
                raise MigrationError(
                    f"{place}: the included file {shown(file)} cannot be read: {reason_of(error)}"
                ) from None
            yield from directives(file, text, files, depth + 1)


def reason_of(error: Exception) -> str:
    """What an exception of a file says, without the file's name."""
    if isinstance(error, UnreadableError):
        return shown(error.why)
    return shown(str((isinstance(error, OSError) and error.strerror) or error))


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines with what a backslash at their end continues, by the number of their last line, as Squid counts."""
    pending = ""
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.partition("\r")[0].lstrip(" \t\f\v")
        # Inside of a continued line too: Squid looks for comments first.
        if not line or line.startswith("#"):
            continue
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        if words := split(pending):
            yield number, " ".join(words)
        pending = ""


def split(text: str) -> list[str]:
    return [word for word in _SPACE.split(text) if word]


def _words(line: str) -> Iterator[str]:
    for word in split(line):
        if word.startswith("#"):
            return
        yield word


def _condition(text: str) -> bool | None:
    if text in ("true", "false"):
        return text == "true"
    numbers = _NUMBERS.fullmatch(text)
    return None if numbers is None else int(numbers[1]) == int(numbers[2])


def values_of_file(text: str) -> Iterator[str]:
    """The values of an acl's file: one a line, up to a word that starts with ``#``."""
    for line in text.split("\n"):
        words = split(line)
        comment = next((at for at, word in enumerate(words) if word.startswith("#")), len(words))
        if words[:comment]:
            yield " ".join(words[:comment])
