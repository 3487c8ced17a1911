"""What is wrong with a configuration, and where: every problem of a file is shown at once."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from enum import StrEnum

from egress_proxy.core.errors import EgressProxyError
from egress_proxy.core.policy import Place, shown_path

#: Problems of one severity that are kept. A generated file of a million lines can be wrong in each of
#: them, and nobody reads beyond the first few; the rest is counted.
MAX_PROBLEMS = 1000

#: Characters of a value that a message quotes, and of each half of a message: what a file says can be long.
_MAX_QUOTED = 80
#: Of a path, whose end says most.
MAX_PATH = 250
_MAX_SHOWN = 400


class Severity(StrEnum):
    ERROR = "error"
    """The configuration cannot be used."""
    WARNING = "warning"
    """It can, but probably does not say what its writer meant."""


class Code(StrEnum):
    """What kind of problem it is, for programs and for ``# check: ignore=CODE``."""

    UNREADABLE_FILE = "unreadable-file"
    SYNTAX = "syntax"
    BAD_VERSION = "bad-version"
    UNKNOWN_KEY = "unknown-key"
    UNSUPPORTED_KEY = "unsupported-key"
    DUPLICATE_KEY = "duplicate-key"
    MISSING_KEY = "missing-key"
    WRONG_TYPE = "wrong-type"
    BAD_VALUE = "bad-value"
    BAD_HOST = "bad-host"
    BAD_NETWORK = "bad-network"
    BAD_PORT = "bad-port"
    BAD_PATH = "bad-path"
    BAD_USER = "bad-user"
    UNKNOWN_SET = "unknown-set"
    BAD_INCLUDE = "bad-include"
    CONFLICT = "conflict"
    DEFECT = "defect"
    MORE = "more"

    # Warnings.
    DUPLICATE_RULE = "duplicate-rule"
    REDUNDANT_RULE = "redundant-rule"
    SHADOWED_RULE = "shadowed-rule"
    UNREACHABLE_POLICY = "unreachable-policy"
    WITHOUT_EFFECT = "without-effect"
    UNUSED_SET = "unused-set"
    WIDE_RULE = "wide-rule"
    PUBLIC_SUFFIX = "public-suffix"
    SHARED_SUFFIX = "shared-suffix"
    SPECIAL_NETWORK = "special-network"
    TUNNEL_OPEN = "tunnel-open"
    ONE_SEGMENT = "one-segment"
    UNKNOWN_METHOD = "unknown-method"
    TLS_OFF = "tls-off"
    TLS_MISSING = "tls-missing"
    RISKY_PORT = "risky-port"
    IMPOSSIBLE_HOST = "impossible-host"
    LOOKALIKE_HOST = "lookalike-host"
    WEAK_HASH = "weak-hash"
    BAD_COMMENT = "bad-comment"
    NEEDS_RESTART = "needs-restart"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and what to write instead."""

    code: Code
    place: Place
    """Line and column 0 where the problem is the file as a whole."""
    what: str
    instead: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        where = str(self.place) if self.place.line else shown_path(self.place.file)
        warning = "warning: " if self.severity is Severity.WARNING else ""
        return f"{where}: {warning}{self.what}; {self.instead} [{self.code}]"


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


def file_error(
    file: str, what: str, instead: str, code: Code = Code.UNREADABLE_FILE
) -> ConfigError:
    """The error of a file that cannot be read at all."""
    return ConfigError((Problem(code, whole_file(file), what, instead),))


def told(error: ConfigError) -> tuple[str, str]:
    """What an unreadable file's error says, for a report at the place that names the file."""
    problem = error.problems[0]
    file = _short(shown_path(problem.place.file), MAX_PATH)
    return f"{file}: {problem.what}", problem.instead


def elsewhere(there: Place, here: Place) -> str:
    """Another place, as a message about this one names it."""
    return f"line {there.line}" if there.file == here.file else f"{there.file}:{there.line}"


def quoted(text: str, at_most: int = _MAX_QUOTED) -> str:
    """A value of the file for a message: on one line, short, and without what a terminal obeys."""
    shown = _short(text, at_most)
    if not shown.isprintable():
        shown = shown.encode("unicode_escape").decode("ascii")
    return f"`{shown}`" if shown else "the empty text"


def _short(text: str, limit: int = _MAX_SHOWN) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Report:
    """Collects the problems of one file, and of the files that it leads to."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._kept: dict[Severity, list[Problem]] = {severity: [] for severity in Severity}
        self._left_out = dict.fromkeys(Severity, 0)
        self._files = {file: 0}
        self._ignored: dict[tuple[str, int], frozenset[str]] = {}

    def beside(self, file: str) -> Report:
        """The report of another file of the same configuration, into which all problems go."""
        report = copy(self)
        report.file = file
        self._files.setdefault(file, len(self._files))
        return report

    @property
    def failed(self) -> bool:
        return bool(self._kept[Severity.ERROR])

    @property
    def full(self) -> bool:
        """Whether further errors are only counted, so that no work need go into their words."""
        return len(self._kept[Severity.ERROR]) >= MAX_PROBLEMS

    @property
    def warned_enough(self) -> bool:
        """The same of warnings."""
        return len(self._kept[Severity.WARNING]) >= MAX_PROBLEMS

    def error(self, code: Code, place: Place, what: str, instead: str) -> None:
        self._add(Problem(code, place, _short(what), _short(instead)))

    def warning(self, code: Code, place: Place, what: str, instead: str) -> None:
        if code not in self._ignored.get((place.file, place.line), ()):
            self._add(Problem(code, place, _short(what), _short(instead), Severity.WARNING))

    def ignore(self, line: int, codes: frozenset[str]) -> None:
        """Leave out warnings of these codes about this line, because a comment there says so."""
        self._ignored[self.file, line] = codes

    def _add(self, problem: Problem) -> None:
        kept = self._kept[problem.severity]
        if len(kept) < MAX_PROBLEMS:
            kept.append(problem)
        else:
            self._left_out[problem.severity] += 1

    def warnings(self) -> tuple[Problem, ...]:
        return self._sorted(Severity.WARNING)

    def exception(self) -> ConfigError:
        """The error to raise once ``failed``: everything found, in the order of the files."""
        return ConfigError(self._sorted(Severity.ERROR, Severity.WARNING))

    def _sorted(self, *severities: Severity) -> tuple[Problem, ...]:
        found = [problem for severity in severities for problem in self._kept[severity]]
        found.sort(key=self._position)
        for severity in severities:
            if count := self._left_out[severity]:
                what = f"{count:,} more {severity}s are not shown"
                instead = "mend those above first"
                place = whole_file(next(iter(self._files)))
                found.append(Problem(Code.MORE, place, what, instead, severity))
        return tuple(found)

    def _position(self, problem: Problem) -> tuple[int, int, int]:
        place = problem.place
        return self._files.get(place.file, len(self._files)), place.line, place.column
