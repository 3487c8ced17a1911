"""The users file: what is read from it, and exactly what a person sees of a broken one."""

from __future__ import annotations

import time

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.config.errors import Code, Report
from egress_proxy.config.users import MAX_NAME, MAX_USERS, WEAK_COST, users

#: Of the password `secret`, as htpasswd made it.
HASH = "$2y$10$fHTmIvYn3f8dvbIlIVZObe3MZ9vUQxtpltLoTvHPVWLKruf4KkB2y"
CHEAP = "$2y$05$clkDC1OClRcBA4Jrru15juFO1lThjmZZvbBAUu4hQluY0aJkTPuhu"


def read(text: str | bytes, code: Code | None = None) -> tuple[dict[str, str], list[str]]:
    """The users of a text, and what is said about it: without its code, which all of it has."""
    report = Report("users")
    found = users(text if isinstance(text, bytes) else text.encode(), report)
    problems = report.exception().problems if report.failed else report.warnings()
    assert code is None or {problem.code for problem in problems} == {code}
    return found, [str(problem).rpartition(" [")[0] for problem in problems]


def said(text: str | bytes, code: Code = Code.BAD_USER) -> str:
    """The one thing that is said about a text."""
    (line,) = read(text, code)[1]
    return line


# What is read -----------------------------------------------------------------------------------


def test_users_are_read() -> None:
    text = f"# our robots\n\nbatch:{HASH}\n  \t\n#old:{HASH}\nci@example.org:{HASH}"
    assert read(text) == ({"batch": HASH, "ci@example.org": HASH}, [])


@pytest.mark.parametrize("version", ["2y", "2b", "2a"])
def test_every_version_of_bcrypt_that_is_sound(version: str) -> None:
    hashed = HASH.replace("$2y$", f"${version}$")
    assert read(f"batch:{hashed}") == ({"batch": hashed}, [])


@pytest.mark.parametrize("name", ["a", "A.b_c-d@e.test", "0", "x" * MAX_NAME])
def test_names_of_users(name: str) -> None:
    assert read(f"{name}:{HASH}\n") == ({name: HASH}, [])


def test_whatever_bcrypt_makes_is_taken_and_is_usable() -> None:
    for _ in range(50):
        hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
        assert read(f"a:{hashed}")[0] == {"a": hashed}
        assert bcrypt.checkpw(b"secret", hashed.encode())


def test_every_cost_that_is_allowed() -> None:
    for cost in range(4, 15):
        found, _ = read(f"a:{HASH.replace('$10$', f'${cost:02}$')}")
        assert found


# What is refused --------------------------------------------------------------------------------

HOW = "write the line that `htpasswd -nBC 10 batch` prints"
FORM = "write 1 to 64 letters, digits, dots, hyphens, underscores or @"


@pytest.mark.parametrize(
    ("hashed", "what"),
    [
        ("$apr1$eVE7iEGP$hVpqO8QPKCYFEIoXP3r8z/", "an MD5 hash, as htpasswd makes without -B"),
        ("$1$abcdefgh$hVpqO8QPKCYFEIoXP3r8z/", "an MD5 hash, as htpasswd makes without -B"),
        ("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "a SHA-1 hash"),
        ("{SSHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "a SHA-1 hash"),
        ("$5$abc$hVpqO8QPKCYFEIoXP3r8z", "a SHA-256 hash"),
        ("$6$abc$hVpqO8QPKCYFEIoXP3r8z", "a SHA-512 hash"),
        ("$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA", "an Argon2 hash"),
        ("$7$C6..../....salt$hash", "a scrypt hash"),
        ("$y$j9T$salt$hash", "a yescrypt hash"),
        (HASH.replace("$2y$", "$2x$"), "a bcrypt hash of a version with a known fault"),
        (HASH.replace("$2y$", "$2$"), "a bcrypt hash of a version with a known fault"),
        ("rqXexS6ZhobKA", "a password in clear, or a hash of an unknown kind"),
        ("hunter2", "a password in clear, or a hash of an unknown kind"),
        (f"realm:{HASH}", "more than a hash behind the name"),
        ("", "no hash"),
        (HASH[:-3], "a bcrypt hash of 57 characters instead of 60"),
        (HASH + "x", "a bcrypt hash of 61 characters instead of 60"),
        (HASH + " # robot", "a bcrypt hash of 68 characters instead of 60"),
        (HASH.replace("fHT", "f!T"), "a bcrypt hash that is damaged"),
        (HASH.replace("$10$", "$1x$"), "a bcrypt hash that is damaged"),
    ],
)
def test_other_hashes(hashed: str, what: str) -> None:
    assert read(f"batch:{hashed}\nother:{HASH}\n") == (
        {"other": HASH},
        [f"users:1:7: the user `batch` has {what}; {HOW}"],
    )


@pytest.mark.parametrize("position", [28, 59])
def test_a_hash_that_no_bcrypt_has_made(position: int) -> None:
    """Such a salt is an error of the library, which must not come when a client asks; such a hash fits no password."""
    hashed = HASH[:position] + "1" + HASH[position + 1 :]
    assert said(f"batch:{hashed}") == (
        f"users:1:7: the user `batch` has a bcrypt hash that is damaged; {HOW}"
    )


def test_a_cost_that_would_block_everybody() -> None:
    line = f"batch:{HASH.replace('$10$', '$15$')}"
    assert read(line)[0] == {}
    assert said(line) == (
        "users:1:11: the hash of `batch` has cost 15, and checking it would block all others for"
        " seconds; write one with a cost from 10 to 12: `htpasswd -nBC 10 batch`"
    )


def test_a_cost_that_does_not_exist() -> None:
    assert said(f"batch:{HASH.replace('$10$', '$03$')}").startswith(
        "users:1:11: the hash of `batch` has cost 3, which no bcrypt has; "
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("hunter2", "1: the line has no colon; write the line that `htpasswd -nBC 10 NAME` prints"),
        (f":{HASH}", f"1: the user has no name; {FORM}"),
        (f"{'x' * 65}:{HASH}", f"1: the user's name is too long; {FORM}"),
        (f"a b:{HASH}", f"2: this character cannot stand in a user's name; {FORM}"),
        (f"bätch:{HASH}", f"2: this character cannot stand in a user's name; {FORM}"),
        (f"batch {HASH}:", f"6: this character cannot stand in a user's name; {FORM}"),
        (f"ba\tch:{HASH}", f"3: this character cannot stand in a user's name; {FORM}"),
        (f"ba\x1bch:{HASH}", "3: the line holds the control character U+001B; remove it"),
    ],
)
def test_names_that_are_none(line: str, problem: str) -> None:
    assert read(f"# robots\n{line}\n") == ({}, [f"users:2:{problem}"])


def test_two_lines_of_one_user() -> None:
    _, problems = read(f"batch:{HASH}\n\nbatch:{HASH}\nbatch:{HASH}\n")
    assert problems == [
        "users:3:1: the user `batch` stands twice, first on line 1; remove one of them",
        "users:4:1: the user `batch` stands twice, first on line 1; remove one of them",
    ]


def test_two_lines_of_one_user_the_first_of_which_is_wrong() -> None:
    """Mending the first must not be what makes the second an error."""
    _, problems = read(f"batch:hunter2\nbatch:{HASH}\n")
    assert [problem.partition(";")[0] for problem in problems] == [
        "users:1:7: the user `batch` has a password in clear, or a hash of an unknown kind",
        "users:2:1: the user `batch` stands twice, first on line 1",
    ]


@pytest.mark.parametrize(
    ("line", "column"),
    [
        (f" batch:{HASH}", 1),
        (f"\tbatch:{HASH} ", 1),
        (f"batch:{HASH} ", 67),
        (f"batch:{HASH}\t", 67),
    ],
)
def test_white_space_around_a_user(line: str, column: int) -> None:
    assert said(line) == f"users:1:{column}: there is white space around the user; remove it"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            b"# a\r\n# b\r\n",
            "1:4: the line ends with CR; save the file with the line ends of Unix (LF alone)",
        ),
        (b"# a\n# \xc3\xa4\xff\n", "2:4: the file is not UTF-8; save it as UTF-8 text"),
        (b"# a\n\0", "2:1: the file holds a NUL byte; save it as UTF-8 text"),
        ("# a".encode("utf-16-le"), "1:2: the file holds a NUL byte; save it as UTF-8 text"),
        (
            b"\xef\xbb\xbf# a",
            "1:1: the file starts with a byte order mark; save it as UTF-8 without a byte order mark",
        ),
    ],
)
def test_files_that_are_no_such_text(data: bytes, problem: str) -> None:
    assert said(data, Code.SYNTAX) == f"users:{problem}"


def test_comments_may_be_in_any_language() -> None:
    assert read(f"# für Prüfungen\u2028\nbatch:{HASH}\n") == ({"batch": HASH}, [])


def test_what_splits_lines_elsewhere_splits_none_here() -> None:
    """What is a comment to an editor is a comment to us."""
    found, problems = read(f"# a\u2028evil:{HASH}\u0085evil:{HASH}\n")
    assert found == {}
    assert "the file has no users" in problems[0]


def test_a_file_without_users_is_doubtful() -> None:
    for text in ("", "# nobody yet\n"):
        assert said(text) == (
            "users:1:1: warning: the file has no users, so nobody's credentials are right;"
            " add what `htpasswd -nBC 10 NAME` prints"
        )


def test_cheap_hashes_are_doubtful_and_said_once() -> None:
    text = f"batch:{HASH}\nci:{CHEAP}\n"
    assert set(read(text)[0]) == {"batch", "ci"}
    assert said(text, Code.WEAK_HASH) == (
        f"users:2:4: warning: the hash of `ci` has a cost below {WEAK_COST}; make the line again"
        " with `htpasswd -nBC 10 ci`: who steals the file guesses slower then"
    )
    many = said("".join(f"u{number}:{CHEAP}\n" for number in range(1500)), Code.WEAK_HASH)
    assert "the hash of `u0` has a cost below 10, and so do those of 1,499 more users;" in many


def test_too_many_users() -> None:
    lines = [f"u{number}:{HASH}\n" for number in range(MAX_USERS + 2)]
    began = time.monotonic()
    assert len(read("".join(lines[:-2]))[0]) == MAX_USERS
    assert time.monotonic() - began < 5
    assert said("".join(lines)) == (
        f"users:{MAX_USERS + 1}:1: the file has more than 100,000 users; remove those who are gone"
    )


# What is never said -----------------------------------------------------------------------------


@given(st.binary() | st.text().map(str.encode))
def test_no_file_is_too_strange(data: bytes) -> None:
    read(data)


@given(
    before=st.sampled_from(
        [
            "",
            "batch",
            "batch:",
            "batch::",
            "batch:x:",
            " batch:",
            "bätch:",
            "x" * 70 + ":",
            "batch:$2y$10$",
            "batch:{SHA}",
        ]
    ),
    secret=st.text("ghjkmnpqrtvwxyz§", min_size=12, max_size=70),
    after=st.sampled_from(["", " ", "\t#", "\x01", "é"]),
)
def test_no_message_quotes_what_may_be_a_password(before: str, secret: str, after: str) -> None:
    _, problems = read(f"{before}{secret}{after}\n")
    assert problems
    assert not any(secret in problem for problem in problems)
