"""What is wrong with a configuration, and where: every problem of a file is shown at once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from egress_proxy.core.errors import EgressProxyError
from egress_proxy.core.policy import Place

#: Problems of one severity that are kept. A generated file of a million lines can be wrong in each of
#: them, and nobody reads beyond the first few; the rest is counted.
MAX_PROBLEMS = 1000

#: Characters of a value that a message quotes, and of each half of a message: what a file says can be long.
_MAX_QUOTED = 80
_MAX_SHOWN = 400


class Severity(StrEnum):
    ERROR = "error"
    """The configuration cannot be used."""
    WARNING = "warning"
    """It can, but probably does not say what its writer meant."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and what to write instead."""

    place: Place
    """Line and column 0 where the problem is the file as a whole."""
    what: str
    instead: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        where = str(self.place) if self.place.line else self.place.file
        warning = "warning: " if self.severity is Severity.WARNING else ""
        return f"{where}: {warning}{self.what}; {self.instead}"


class ConfigError(EgressProxyError):
    """A configuration that cannot be used. Its text is one line for each problem."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems
        """Errors and warnings in the order of the file; at least one error."""

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


def whole_file(file: str) -> Place:
    """The place of a problem that has no line."""
    return Place(file, 0, 0)


def file_error(file: str, what: str, instead: str) -> ConfigError:
    """The error of a file that cannot be read at all."""
    return ConfigError((Problem(whole_file(file), what, instead),))


def quoted(text: str) -> str:
    """A value of the file for a message: on one line, short, and without what a terminal obeys."""
    shown = _short(text, _MAX_QUOTED)
    if not shown.isprintable():
        shown = shown.encode("unicode_escape").decode("ascii")
    return f"`{shown}`" if shown else "the empty text"


def _short(text: str, limit: int = _MAX_SHOWN) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Report:
    """Collects the problems of one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._kept: dict[Severity, list[Problem]] = {severity: [] for severity in Severity}
        self._left_out = dict.fromkeys(Severity, 0)

    @property
    def failed(self) -> bool:
        return bool(self._kept[Severity.ERROR])

    @property
    def full(self) -> bool:
        """Whether further errors are only counted, so that no work need go into their words."""
        return len(self._kept[Severity.ERROR]) >= MAX_PROBLEMS

    def error(self, place: Place, what: str, instead: str) -> None:
        self._add(Problem(place, _short(what), _short(instead)))

    def warning(self, place: Place, what: str, instead: str) -> None:
        self._add(Problem(place, _short(what), _short(instead), Severity.WARNING))

    def _add(self, problem: Problem) -> None:
        kept = self._kept[problem.severity]
        if len(kept) < MAX_PROBLEMS:
            kept.append(problem)
        else:
            self._left_out[problem.severity] += 1

    def warnings(self) -> tuple[Problem, ...]:
        return self._sorted(Severity.WARNING)

    def exception(self) -> ConfigError:
        """The error to raise once ``failed``: everything found, in the order of the file."""
        return ConfigError(self._sorted(Severity.ERROR, Severity.WARNING))

    def _sorted(self, *severities: Severity) -> tuple[Problem, ...]:
        found = [problem for severity in severities for problem in self._kept[severity]]
        found.sort(key=lambda problem: (problem.place.line, problem.place.column))
        for severity in severities:
            if count := self._left_out[severity]:
                what = f"{count:,} more {severity}s are not shown"
                instead = "mend those above first"
                found.append(Problem(whole_file(self.file), what, instead, severity))
        return tuple(found)
