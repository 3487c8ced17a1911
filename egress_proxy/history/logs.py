"""The requests of a log, ours or Squid's, as one stream of values.

A log holds what clients sent, so nothing of it is trusted: a line gives canonical values alone, or it is counted as not
understood. What is said about such a line is its number and why, in our own words.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, BinaryIO, Final

import msgspec

from egress_proxy.config.subjects import NAMESPACE, USER
from egress_proxy.core import reasons
from egress_proxy.core.conditions import Asked
from egress_proxy.core.errors import HostError, IdentityError
from egress_proxy.core.explain import parse_address, parse_question
from egress_proxy.core.identity import Identity, identity
from egress_proxy.core.limits import Kind
from egress_proxy.core.names import Authority, parse_authority
from egress_proxy.core.reason import Code, Event
from egress_proxy.core.reasons import REASONS
from egress_proxy.history.tally import count

#: Characters of a line. A line of ours holds a path of at most `limits.head_bytes`, which JSON may spell twice as long.
MAX_LINE: Final = 4 * 2**20
#: Lines that were not understood and are named.
MAX_COMPLAINTS: Final = 5

#: Refusals that rules decide about. Others, such as a limit or a malformed request, no rule lifts.
RULES: Final = frozenset(
    row.name
    for row in (
        reasons.HOST_NOT_ALLOWED,
        reasons.PORT_NOT_ALLOWED,
        reasons.ADDRESS_NOT_ALLOWED,
        reasons.METHOD_NOT_ALLOWED,
        reasons.PATH_NOT_ALLOWED,
        reasons.CONNECT_NOT_ALLOWED,
        reasons.DENY_RULE,
        reasons.APPROVAL_REQUIRED,
        reasons.DESTINATION_IP_PROHIBITED,
    )
)
_CONTRACT: Final = frozenset(
    row.name
    for row in (
        reasons.IDEMPOTENCY_KEY_MISSING,
        reasons.IDEMPOTENCY_KEY_INVALID,
        reasons.TENANT_ID_MISSING,
        reasons.TENANT_ID_INVALID,
    )
)
_LIMITS: Final = frozenset(Kind)
#: What may end a request before its destination was decided about; then the line names no policy.
_PERHAPS_UNDECIDED: Final = frozenset(
    row.name
    for row in (
        reasons.DRAINING,
        reasons.STARTING,
        reasons.OVERLOADED,
        reasons.CLIENT_CONNECTIONS,
        reasons.CREDENTIALS_UNCHECKED,
        reasons.INTERNAL_ERROR,
        reasons.CLIENT_ABORTED,
        reasons.DRAIN_TIMEOUT,
    )
)


class PastRequest(msgspec.Struct, frozen=True):
    """One request as a log tells it."""

    identity: Identity
    destination: Authority
    refused: bool
    """Whether rules refused it, or would have in enforce mode."""
    was: str
    """What was decided, for a person: ``ALLOWED``, ``DENIED (host_not_allowed)``, ``TCP_DENIED/403``."""
    reason: str | None
    """Why it was refused, as a row of :mod:`egress_proxy.core.reason`; None where only that is known."""
    address: str | None
    """The destination's address that was dialled."""
    time: str
    """When it ended, in RFC 3339; empty where that is unknown."""
    asked: Asked | None = None
    """The method and the path of a plain request, as far as the log tells them; None of a tunnel."""


class Skipped(StrEnum):
    """Why a line that was understood says nothing about rules."""

    OTHER = "other"
    """It is not about a request."""
    MALFORMED = "malformed"
    """The request was malformed, so it had no destination."""
    CREDENTIALS = "credentials"
    """It was refused for its credentials."""
    CONTRACT = "contract"
    """The rules let it through, and it was refused for its contract headers."""
    LIMITS = "limits"
    """The rules let it through, and a limit refused it, or the store that counts was away."""
    UNDECIDED = "undecided"
    """It ended for another reason, such as overload, and not by what the rules say."""


#: What the rules let through, and what was refused all the same for what a log does not hold.
NOT_BY_RULES: Final = (Skipped.CONTRACT, Skipped.LIMITS)


class LogSummary(msgspec.Struct, frozen=True):
    """What was read."""

    lines: int
    requests: int
    """Lines about requests that rules decided."""
    skipped: dict[str, int]
    """Lines by :class:`Skipped`."""
    not_understood: int
    complaints: tuple[str, ...]
    """The first lines that were not understood: which, and why."""

    @property
    def is_another_file(self) -> bool:
        """Whether there are lines, and none of them is about a request: the proxy's events, say."""
        other = self.skipped.get(Skipped.OTHER, 0)
        return self.lines > 0 and self.not_understood + other == self.lines

    def messages(self) -> list[str]:
        """What a person should know about the log, one line each."""
        found = list(self.complaints)
        if self.not_understood:
            found.append(f"{count(self.not_understood, 'line')} could not be understood")
        found += [
            f"{count(self.skipped[why], 'line')} left out: {text}"
            for why, text in _WHY_SKIPPED.items()
            if self.skipped.get(why)
        ]
        if not self.lines:
            found.append("the log is empty")
        elif self.is_another_file and self.skipped:
            other = count(self.skipped[Skipped.OTHER], "line")
            found.append(
                f"no audit line was in it: {other} about other things than requests, such as the proxy's events, "
                "which stand on stderr"
            )
        return found


_WHY_SKIPPED: Final = {
    Skipped.MALFORMED: "refused as malformed",
    Skipped.CREDENTIALS: "refused for credentials",
    Skipped.CONTRACT: "refused for contract headers, not decided by rules",
    Skipped.LIMITS: "refused by limits, not decided by rules",
    Skipped.UNDECIDED: "ended for another reason than rules",
}


class _LineError(Exception):
    """Why a line cannot be understood, without quoting it."""


class LogReader:
    """Reads a log once; :meth:`summary` tells in the end what was there."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = lines
        self._count = 0
        self._requests = 0
        self._skipped: Counter[str] = Counter()
        self._not_understood = 0
        self._complaints: list[str] = []
        self.named: set[str] = set()
        """What lines say about clients beside their address: ``user``, ``namespace``."""

    def __iter__(self) -> Iterator[PastRequest]:
        for line in self._lines:
            self._count += 1
            try:
                found = _parse(line)
            except (_LineError, HostError, IdentityError) as error:
                self._not_understood += 1
                if len(self._complaints) < MAX_COMPLAINTS:
                    self._complaints.append(f"line {self._count:,}: {error}")
                continue
            if isinstance(found, PastRequest):
                self._requests += 1
                if found.identity.user is not None:
                    self.named.add("user")
                if found.identity.namespace is not None:
                    self.named.add("namespace")
                yield found
            else:
                self._skipped[found] += 1

    def summary(self) -> LogSummary:
        return LogSummary(
            self._count,
            self._requests,
            {str(why): number for why, number in sorted(self._skipped.items())},
            self._not_understood,
            tuple(self._complaints),
        )


# Lines ------------------------------------------------------------------------------------------------------------


@contextmanager
def open_log(path: str | None) -> Iterator[Iterator[str]]:
    """The lines of a file; of standard input without a path or for ``-``. Raises OSError."""
    if path is None or path == "-":
        yield read_lines(sys.stdin.buffer)
        return
    # `Path` takes the empty name for the current directory.
    with open(path, "rb") as file:  # noqa: PTH123
        yield read_lines(file)


def read_lines(stream: BinaryIO) -> Iterator[str]:
    """Lines as text; of one that is too long, so much of it that this shows."""
    while line := stream.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE + 1)
        yield line.decode("utf-8", "replace") if len(line) <= MAX_LINE else " " * len(line)


# What `kubectl logs --prefix --timestamps`, and the files of a container runtime, put before a line.
_PREFIX: Final = re.compile(
    r"(?:\[[a-z]+/[^\s\]]{1,300}\] )?"
    r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,18}(?:Z|[+-][0-9]{2}:[0-9]{2}) (?:std(?:out|err) F )?)?"
)


def _parse(line: str) -> PastRequest | Skipped:
    """Raises _LineError, HostError and IdentityError."""
    if len(line) > MAX_LINE:
        raise _LineError("the line is too long")
    line = line.rstrip("\r\n")
    if "\0" in line:
        raise _LineError("the line holds a NUL")
    prefix = _PREFIX.match(line)
    if prefix is not None:
        line = line[prefix.end() :]
    if not line.strip():
        return Skipped.OTHER
    return _parse_ours(line) if line.startswith("{") else _parse_squid(line)


@lru_cache(maxsize=65536)
def _identity(client: str, user: str | None, namespace: str | None) -> Identity:
    return identity(client, user, namespace)


# Our lines --------------------------------------------------------------------------------------------------------


class _Line(msgspec.Struct):
    """The fields of an audit line that matter here, as whatever they are."""

    event: Any = None
    client: Any = None
    namespace: Any = None
    user: Any = None
    method: Any = None
    host: Any = None
    port: Any = None
    path: Any = None
    reason: Any = None
    policy: Any = None
    address: Any = None
    parent: Any = None
    timestamp: Any = None


_decoder: Final = msgspec.json.Decoder(_Line)
_EVENTS: Final = frozenset(Event)
_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]{1,9})?Z"
)


def _parse_ours(text: str) -> PastRequest | Skipped:
    try:
        line = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _LineError("this is not one whole line of JSON") from None
    event = _text(line.event, "event")
    if event not in _EVENTS:
        return Skipped.OTHER
    if line.host is None:
        return Skipped.MALFORMED if event == Event.DENIED else Skipped.UNDECIDED
    who = _identity(
        _text(line.client, "client") or "",
        _matching(line.user, "user", USER),
        _matching(line.namespace, "namespace", NAMESPACE),
    )
    destination = _destination(_text(line.host, "host") or "", line.port)
    reason = _text(line.reason, "reason")
    refused = event in (Event.DENIED, Event.WOULD_DENY)
    if refused and reason not in RULES:
        return _why_refused(reason)
    if not refused and line.policy is None and reason in _PERHAPS_UNDECIDED:
        return Skipped.UNDECIDED
    # Of a request that went through a parent proxy, it is the parent's.
    address = _text(line.address, "address") if line.parent is None else None
    time = _TIME.fullmatch(line.timestamp) if isinstance(line.timestamp, str) else None
    return PastRequest(
        identity=who,
        destination=destination,
        refused=refused,
        was=f"{event} ({reason})" if refused else Event.ALLOWED.value,
        reason=reason if refused else None,
        address=None if address is None else parse_address(address),
        time="" if time is None else f"{time[1]}Z",
        asked=_asked(_text(line.method, "method"), _text(line.path, "path")),
    )


def _asked(method: str | None, path: str | None) -> Asked | None:
    """What a line says was asked. Without a path, no rule with `paths` can be sure of it."""
    if method is None or method == "CONNECT":
        return None
    if not _METHOD.fullmatch(method):
        raise _LineError("`method` is no method")
    if path is not None and not _PATH.fullmatch(path):
        raise _LineError("`path` is no path")
    return Asked(method, b"" if path is None else path.encode("ascii"))


_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,1000}")
_PATH: Final = re.compile(r"[\x21-\x7e]+")


def _text(value: object, field: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise _LineError(f"`{field}` is not a text")


def _matching(value: object, field: str, form: re.Pattern[str]) -> str | None:
    found = _text(value, field)
    if found is not None and not form.fullmatch(found):
        raise _LineError(f"`{field}` cannot be the name of a {field}")
    return found


def _destination(host: str, port: object) -> Authority:
    if not isinstance(port, int) or isinstance(port, bool):
        raise _LineError("`port` is not a number")
    if not host.isascii():
        raise _LineError("`host` holds characters beyond ASCII")
    bracketed = f"[{host}]" if ":" in host else host
    return parse_authority(f"{bracketed}:{port}".encode("ascii"), None)


def _why_refused(reason: str | None) -> Skipped:
    if reason in _CONTRACT:
        return Skipped.CONTRACT
    if reason in _LIMITS:
        return Skipped.LIMITS
    row = REASONS.get(reason or "")
    if row is not None and row.code is Code.SCHEMA_VALIDATION_FAILED:
        return Skipped.MALFORMED
    if row is not None and row.code is Code.UNAUTHORIZED:
        return Skipped.CREDENTIALS
    return Skipped.UNDECIDED


# Squid's lines ----------------------------------------------------------------------------------------------------

# `time elapsed client result/status bytes method URL user hierarchy/peer type`, as its default format `squid` has them.
_SQUID_TIME: Final = re.compile(r"[0-9]{1,11}\.[0-9]{1,9}")
_SQUID_RESULT: Final = re.compile(r"([A-Z_]{1,60})/([0-9]{3})")
_SQUID_DENIED: Final = "TCP_DENIED"
_NEEDS_CREDENTIALS: Final = "407"


def _parse_squid(text: str) -> PastRequest | Skipped:
    parts = text.split(maxsplit=10)
    if len(parts) < 10 or not _SQUID_TIME.fullmatch(parts[0]):
        raise _LineError("this is neither an audit line nor a line of Squid's access.log")
    result = _SQUID_RESULT.fullmatch(parts[3])
    if result is None:
        raise _LineError("the result code is not one of Squid's")
    code, status = result.groups()
    method, url, user, peer = parts[5:9]
    refused = code.startswith(_SQUID_DENIED)
    if refused and status == _NEEDS_CREDENTIALS:
        return Skipped.CREDENTIALS
    if url.startswith("error:") or ("NONE" in code and status.startswith("4")):
        return Skipped.MALFORMED
    if method != "CONNECT" and "://" not in url:
        raise _LineError("the URL has no scheme")
    if not url.isascii():
        raise _LineError("the URL holds characters beyond ASCII")
    if method == "CONNECT":
        destination, asked = parse_authority(url.encode("ascii"), None), None
    else:
        # What Squid read of https:// was inside a tunnel.
        plain = url[:7].lower() == "http://"
        destination, asked = parse_question(url, method if plain else None)
    return PastRequest(
        # A name that our users cannot have, such as DOMAIN\user, says nothing here.
        identity=_identity(parts[2], user if user != "-" and USER.fullmatch(user) else None, None),
        destination=destination,
        refused=refused,
        was=parts[3] if refused else Event.ALLOWED.value,
        reason=None,
        address=_squid_address(peer),
        time=_squid_time(float(parts[0])),
        asked=asked,
    )


def _squid_address(peer: str) -> str | None:
    """The origin's address, unless another proxy was asked."""
    hierarchy, _, address = peer.partition("/")
    if not hierarchy.endswith("DIRECT"):
        return None
    try:
        return parse_address(address)
    except HostError:
        return None


def _squid_time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return ""
