"""The users file: who may show which credentials.

One ``name:hash`` a line, as ``htpasswd -B`` writes it, and nothing but bcrypt. A line that is wrong may
hold a password in clear, so that a message never quotes what stands behind the name, nor a name that
cannot be one.
"""

from __future__ import annotations

import re
from typing import Final

from egress_proxy.config.errors import Code, Report
from egress_proxy.config.subjects import USER, USER_FORM
from egress_proxy.core.policy import Place

#: Characters of a name.
MAX_NAME: Final = 64
#: Users of a file. Beyond it, people belong in a directory, not in a file.
MAX_USERS: Final = 100_000

#: Costs of bcrypt, each of which doubles the time: 4 is a millisecond, 10 some 60, 14 a second.
MIN_COST: Final = 4
MAX_COST: Final = 14
WEAK_COST: Final = 10
"""Below it, who steals the file tries more than some dozens of passwords a second and core."""

_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9._@-]")

# bcrypt's own base64. The last letters of salt and hash hold fewer bits than a letter can; other ones
# there were not made by any bcrypt, and no password has such a hash.
_BCRYPT: Final = re.compile(
    r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]"
)
_BCRYPT_SIZE: Final = 60

#: What else stands in such files, by how it begins.
_OTHER_SCHEMES: Final = (
    (re.compile(r"\$2[aby]\$"), "a bcrypt hash that is damaged"),
    (re.compile(r"\$2x?\$"), "a bcrypt hash of a version with a known fault"),
    (re.compile(r"\$apr1\$|\$1\$"), "an MD5 hash, as htpasswd makes without -B"),
    (re.compile(r"\{SHA\}|\{SSHA\}"), "a SHA-1 hash"),
    (re.compile(r"\$5\$"), "a SHA-256 hash"),
    (re.compile(r"\$6\$"), "a SHA-512 hash"),
    (re.compile(r"\$argon2"), "an Argon2 hash"),
    (re.compile(r"\$7\$|\$scrypt\$"), "a scrypt hash"),
    (re.compile(r"\$g?y\$"), "a yescrypt hash"),
)

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def users(data: bytes, report: Report) -> dict[str, str]:
    """The hash of each user. What is broken is reported and left out."""
    text = _decode(data, report)
    found: dict[str, str] = {}
    if text is None:
        return found
    empty = True
    lines: dict[str, int] = {}
    weak: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.startswith("#") or not line.strip(" \t"):
            continue
        empty = False
        if len(lines) >= MAX_USERS:
            what = f"the file has more than {MAX_USERS:,} users"
            report.error(
                Code.BAD_USER, Place(report.file, number, 1), what, "remove those who are gone"
            )
            break
        user = _user(line, number, report)
        if user is None:
            continue
        name, hashed, cost = user
        first = lines.setdefault(name, number)
        if first != number:
            what = f"the user `{name}` stands twice, first on line {first}"
            report.error(Code.BAD_USER, Place(report.file, number, 1), what, "remove one of them")
        elif hashed:
            found[name] = hashed
            if cost < WEAK_COST:
                weak.append((number, name))
    _tell_weak(weak, report)
    if empty:
        what = "the file has no users, so nobody's credentials are right"
        report.warning(
            Code.BAD_USER, Place(report.file, 1, 1), what, f"add what {_how_to('NAME')} prints"
        )
    return found


def _decode(data: bytes, report: Report) -> str | None:
    """The text with plain line ends, whatever is wrong with its encoding being reported once."""
    first = Place(report.file, 1, 1)
    if data.startswith(_BYTE_ORDER_MARK):
        what = "the file starts with a byte order mark"
        report.error(Code.SYNTAX, first, what, "save it as UTF-8 without a byte order mark")
        return None
    for byte, what, instead in (
        (b"\0", "the file holds a NUL byte", "save it as UTF-8 text"),
        (b"\r", "the line ends with CR", "save the file with the line ends of Unix (LF alone)"),
    ):
        position = data.find(byte)
        if position >= 0:
            report.error(Code.SYNTAX, _place_of_byte(data, position, report), what, instead)
            return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place_of_byte(data, error.start, report)
        report.error(Code.SYNTAX, place, "the file is not UTF-8", "save it as UTF-8 text")
        return None


def _place_of_byte(data: bytes, position: int, report: Report) -> Place:
    start = data.rfind(b"\n", 0, position) + 1
    column = len(data[start:position].decode("utf-8", "replace")) + 1
    return Place(report.file, data.count(b"\n", 0, position) + 1, column)


def _user(line: str, number: int, report: Report) -> tuple[str, str, int] | None:
    """Name, hash and cost of a line: the hash is empty where it cannot be used, and None is for no name."""

    def error(column: int, what: str, instead: str) -> None:
        report.error(Code.BAD_USER, Place(report.file, number, column), what, instead)

    content = line.strip(" \t")
    start = line.find(content) + 1
    if len(content) != len(line):
        column = 1 if start > 1 else len(content) + 1
        error(column, "there is white space around the user", "remove it")
    found = _CONTROL.search(content)
    if found is not None:
        column = start + found.start()
        error(column, f"the line holds the control character U+{ord(found[0]):04X}", "remove it")
        return None
    name, colon, hashed = content.partition(":")
    if not colon:
        error(start, "the line has no colon", f"write the line that {_how_to('NAME')} prints")
        return None
    if not USER.fullmatch(name):
        wrong = _NOT_IN_NAME.search(name)
        if wrong is not None:
            error(start + wrong.start(), "this character cannot stand in a user's name", USER_FORM)
        else:
            what = "the user's name is too long" if name else "the user has no name"
            error(start, what, USER_FORM)
        return None
    column = start + len(name) + 1
    bcrypt = _BCRYPT.fullmatch(hashed)
    if bcrypt is None:
        instead = f"write the line that {_how_to(name)} prints"
        error(column, f"the user `{name}` has {_what_it_is(hashed)}", instead)
        return name, "", 0
    cost = int(bcrypt[1])
    if not MIN_COST <= cost <= MAX_COST:
        if cost > MAX_COST:
            what = f"the hash of `{name}` has cost {cost}, and checking it would block all others for seconds"
        else:
            what = f"the hash of `{name}` has cost {cost}, which no bcrypt has"
        error(column + 4, what, f"write one with a cost from {WEAK_COST} to 12: {_how_to(name)}")
        return name, "", 0
    return name, hashed, cost


def _what_it_is(hashed: str) -> str:
    if not hashed:
        return "no hash"
    for begins, what in _OTHER_SCHEMES:
        if begins.match(hashed):
            if what.endswith("damaged") and len(hashed) != _BCRYPT_SIZE:
                return f"a bcrypt hash of {len(hashed)} characters instead of {_BCRYPT_SIZE}"
            return what
    if ":" in hashed:
        return "more than a hash behind the name"
    return "a password in clear, or a hash of an unknown kind"


def _tell_weak(weak: list[tuple[int, str]], report: Report) -> None:
    """One warning for all: whoever made one line with too low a cost has made them all so."""
    if not weak:
        return
    number, name = weak[0]
    others = f", and so do those of {len(weak) - 1:,} more users" if len(weak) > 1 else ""
    what = f"the hash of `{name}` has a cost below {WEAK_COST}{others}"
    instead = f"make the line again with {_how_to(name)}: who steals the file guesses slower then"
    report.warning(Code.WEAK_HASH, Place(report.file, number, len(name) + 2), what, instead)


def _how_to(name: str) -> str:
    return f"`htpasswd -nBC {WEAK_COST} {name}`"
