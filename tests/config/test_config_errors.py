"""Broken configurations, and exactly what a person sees of each.

``data/NAME.yaml`` is the file and ``data/NAME.txt`` what is said about it.
"""

from __future__ import annotations

import os
import random
import re
import string
import time
from pathlib import Path

import pytest

from egress_proxy.config.errors import MAX_PROBLEMS, Code, ConfigError
from egress_proxy.config.load import load, parse
from egress_proxy.config.sources import MAX_BYTES

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config" / "egress-proxy.yaml"
HEAD = "version: 1\npolicies:\n  - name: everyone\n    allow:\n"


def errors_of(text: str | bytes) -> list[str]:
    """What is said about a text, without codes; nothing if it loads."""
    data = text if isinstance(text, bytes) else text.encode()
    try:
        parse(data, "f.yaml")
    except ConfigError as error:
        return [without_code(line) for line in str(error).splitlines()]
    return []


def without_code(said: str) -> str:
    """A message as a person reads it. The files beside this one hold the codes too."""
    said, bracket, code = said.rpartition(" [")
    assert bracket
    assert code.removesuffix("]") in set(Code)
    return said


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.yaml")))
def test_a_broken_file_is_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA)
    with pytest.raises(ConfigError) as caught:
        load(f"{name}.yaml")
    assert f"{caught.value}\n" == Path(f"{name}.txt").read_text(encoding="utf-8")


def test_every_message_has_its_file() -> None:
    assert {path.stem for path in DATA.glob("*.yaml")} == {path.stem for path in DATA.glob("*.txt")}


# Files that are no text files. ------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    path = str(tmp_path / "none.yaml")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert without_code(str(caught.value)) == f"{path}: there is no such file; name an existing one"


def test_the_empty_name() -> None:
    """It is no directory, though to `Path` it is the current one."""
    with pytest.raises(ConfigError) as caught:
        load("")
    assert str(caught.value) == (
        "(no name): the name of the file is empty; name an existing one [unreadable-file]"
    )


@pytest.mark.parametrize("size", ["9999999999999KiB", "1" * 100_000 + "B"])
def test_a_size_of_very_many_digits(size: str) -> None:
    (said,) = errors_of(f"limits: {{head_bytes: {size}}}\n{HEAD}      - a.example.com\n")
    assert "`head_bytes` is out of range: " in said
    assert len(said) < 300


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path))
    assert (
        without_code(str(caught.value))
        == f"{tmp_path}: this is a directory; name the configuration file in it"
    )


def test_permission_denied_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised here, because tests may run as root, whom no permission stops."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "secret.yaml"
    path.write_text("version: 1\n")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    wanted = f"{path}: the file cannot be read: permission denied; let the user that runs the proxy read it"
    assert without_code(str(caught.value)) == wanted


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert (
        without_code(str(caught.value))
        == f"{path}: this is not a regular file; name a configuration file"
    )


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/tty"])
def test_a_device_is_not_read(path: str) -> None:
    with pytest.raises(ConfigError):
        load(path)


def test_a_loop_of_symlinks(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.symlink_to(path)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    said = (
        f"{path}: the file cannot be read: Too many levels of symbolic links; name a readable file"
    )
    assert without_code(str(caught.value)) == said


def test_a_path_that_is_none() -> None:
    with pytest.raises(ConfigError) as caught:
        load("a\0b")
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    said = "the configuration is larger than 64 MiB; write fewer rules, with *.example.com for many names"
    assert without_code(str(caught.value)) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"version: 1\n# caf\xe9\n",
            "2:6: the file is not UTF-8: byte 17 is 0xe9; save it as UTF-8 text",
        ),
        (b"\x7fELF\x02\x01", "1:1: the file holds the invisible character U+007F; remove it"),
        (b"\x89PNG\r\n", "1:1: the file is not UTF-8: byte 1 is 0x89; save it as UTF-8 text"),
        (
            b"version: 1\xf0\x9f",
            "1:11: the file is not UTF-8: byte 11 is 0xf0; save it as UTF-8 text",
        ),
        (b"version: 1\x00", "1:11: the file holds the invisible character U+0000; remove it"),
        (
            "version: 1\n".encode("utf-8-sig"),
            "1:1: the file starts with the byte order mark of UTF-8; save it as UTF-8 without a byte order mark",
        ),
        (
            "version: 1\n".encode("utf-16"),
            "1:1: the file starts with the byte order mark of UTF-16; save it as UTF-8 without a byte order mark",
        ),
        (
            "version: 1\n".encode("utf-16-be"),
            "1:1: the file holds the invisible character U+0000; remove it",
        ),
    ],
)
def test_what_is_no_text(data: bytes, said: str) -> None:
    assert errors_of(data) == [f"f.yaml:{said}"]


@pytest.mark.parametrize("hidden", ["\r", "\x85", "\u2028", "\u2029"])
def test_a_comment_cannot_hide_a_rule(hidden: str) -> None:
    """These end a line, and so the comment, to YAML alone: an editor or a diff shows one comment."""
    text = f"{HEAD}      - example.com # approved{hidden}      - evil.example\n"
    (said,) = errors_of(text)
    assert f"the file holds the invisible character U+{ord(hidden):04X}" in said


@pytest.mark.parametrize("hidden", ["\u202e", "\u2066", "\u200f", "\x1b", "\x07", "\x9b", "\ufeff"])
def test_invisible_characters_are_refused(hidden: str) -> None:
    (said,) = errors_of(f"{HEAD}      - example.com # {hidden}\n")
    assert (
        said
        == f"f.yaml:5:23: the file holds the invisible character U+{ord(hidden):04X}; remove it"
    )


def test_lines_may_end_as_on_windows() -> None:
    assert errors_of(f"{HEAD}      - example.com\n".replace("\n", "\r\n")) == []


# What is long or deep. --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "{a: ", "[{a: [", "- - ? "])
def test_deep_nesting_is_refused_at_once(opening: str) -> None:
    start = time.monotonic()
    said = errors_of(opening * 500_000)
    assert said[-1].endswith("there are more than 20 levels of nesting; write it flatter")
    assert time.monotonic() - start < 5


def test_many_directives_are_refused_at_once() -> None:
    """libyaml compares each with all before it: a mebibyte of them took minutes."""
    text = "".join(f"%TAG !a{number}! b\n" for number in range(100_000))
    start = time.monotonic()
    assert errors_of(text) == [
        "f.yaml:1:1: a line starts with `%`, which is a directive to YAML; remove it"
    ]
    assert time.monotonic() - start < 5


def test_very_many_problems_are_counted() -> None:
    text = HEAD + "".join(f"      - .example{number}.com\n" for number in range(MAX_PROBLEMS + 7))
    said = errors_of(text)
    assert len(said) == MAX_PROBLEMS + 1
    assert said[-1] == "f.yaml: 7 more errors are not shown; mend those above first"


def test_very_many_warnings_are_counted_apart() -> None:
    text = HEAD + "      - example.com\n" * (MAX_PROBLEMS + 3)
    warnings = parse(text.encode(), "f.yaml").warnings
    assert len(warnings) == MAX_PROBLEMS + 1
    assert (
        str(warnings[-1])
        == "f.yaml: warning: 2 more warnings are not shown; mend those above first [more]"
    )
    said = errors_of(f"{text}      - .example.com\n")
    assert [line for line in said if "warning" not in line] == [
        f'f.yaml:{MAX_PROBLEMS + 8}:9: `.example.com` starts with a dot; write "*.example.com"'
    ]


LONG = "1" * 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        f"version: {LONG}\n",
        f"{LONG}: 1\n",
        f"{HEAD}      - {LONG}\n",
        f"{HEAD}      - '{LONG}'\n",
        f"{HEAD}      - a.com:{LONG}\n",
        f"{HEAD}      - a.com:{'1,' * 400_000}1\n",
        f"{HEAD}      - https://{LONG}\n",
        f"{HEAD}      - {LONG}@a.com\n",
        f"{HEAD}      - ^{'.*' * 400_000}\n",
        f"{HEAD}      - &a{LONG} a.com\n",
        f"{HEAD}      - !a{LONG} a.com\n",
        f"{HEAD}      - *a{LONG}\n",
        f"{HEAD}      - *.a{LONG}\n",
        f"{HEAD}      - {{cidr: 1.1.1.1/{LONG}}}\n",
        f"{HEAD}      - {{cidr: '{LONG}'}}\n",
        f"{HEAD}      - {{cidr: '{':' * 400_000}'}}\n",
        f"{HEAD}      - {{host: a.com, ports: [{LONG}, '{LONG}-{LONG}']}}\n",
        f"version: 1\npolicies: [{{name: {LONG}}}]\n",
        f"version: 1\nlisten: {{proxy: '1.1.1.1:{LONG}'}}\n",
        f"version: 1\nlimits: {{head_bytes: {LONG}, connections: {LONG}, head_fields: '{LONG}'}}\n",
        f"version: 1\ntimeouts: {{head: {LONG}s, connect: {LONG}}}\n",
    ],
    ids=lambda text: (
        text[-1_000_100:][:60].replace("\n", " ") if len(text) > 1_000_100 else text[:60]
    ),
)
def test_a_long_value_gives_a_short_message_soon(text: str) -> None:
    start = time.monotonic()
    said = errors_of(text)
    assert said
    assert max(len(line) for line in said) < 1000
    assert time.monotonic() - start < 5


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    said = errors_of(f'{HEAD}      - "a\\nf.yaml:1:1: all is well\\e[2J\\u202e"\n')
    assert said == [
        r"f.yaml:5:9: `a\nf.yaml:1:1: all is well\x1b[2J\u202e` is not one host; write each host as an entry of its own"
    ]


@pytest.mark.parametrize(
    "host",
    [
        "https://user:s3cret@example.com/",
        "user:s3cret@example.com",
        "s3cret@",
        "http://s3cret@[::1]:80/x",
    ],
)
def test_a_password_is_not_repeated(host: str) -> None:
    (said,) = errors_of(f'{HEAD}      - "{host}"\n')
    assert "s3cret" not in said


# Advice. ----------------------------------------------------------------------------------------------------------


def test_the_advice_is_accepted() -> None:
    """Whoever writes what a message says to write has mended it."""
    lines = ((DATA / "hosts.txt").read_text() + (DATA / "addresses.txt").read_text()).splitlines()
    advice = [without_code(line).rpartition("; write ")[2] for line in lines]
    entries = [entry for entry in advice if re.fullmatch(r'\{[^…]*\}|"[^"]*"|[a-z.]*', entry)]
    entries = [f"{{cidr: {entry}}}" if entry.startswith('"1') else entry for entry in entries]
    assert len(entries) > 30
    refused = {entry: said for entry in entries if (said := errors_of(f"{HEAD}      - {entry}\n"))}
    assert refused == {}


# Chance. ----------------------------------------------------------------------------------------------------------


def mutated(text: str, chance: random.Random) -> bytes:
    """The text with one to four changes such as slips, merges and truncation make."""
    lines = text.splitlines(keepends=True)
    for _ in range(chance.randint(1, 4)):
        here = chance.randrange(len(lines))
        line = lines[here]
        column = chance.randrange(len(line) + 1)
        match chance.randrange(9):
            case 0:
                lines[here] = line[:column] + chance.choice(string.printable) + line[column:]
            case 1:
                lines[here] = line[:column] + line[column + 1 :]
            case 2:
                lines[here] = (
                    line[:column] + chr(chance.randrange(0x110000 - 0x800)) + line[column:]
                )
            case 3:
                lines.insert(chance.randrange(len(lines)), line)
            case 4 if len(lines) > 1:
                del lines[here]
            case 5:
                lines[here] = " " * chance.randrange(9) + line.lstrip(" ")
            case 6:
                other = chance.choice(lines)
                lines[here] = line[:column] + other[chance.randrange(len(other) + 1) :]
            case 7:
                word = chance.choice(
                    ["[", "]", "{", "}", "*a", "&a ", "!t ", "<<: ", "~", "- ", ": ", "no", "1e3"]
                )
                lines[here] = line[:column] + word + line[column:]
            case _:
                lines = lines[: here + 1]
    data = bytearray("".join(lines).encode("utf-8", "replace"))
    if data and chance.random() < 0.1:
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("seed", range(10))
def test_a_mutated_example_loads_or_is_explained(seed: int) -> None:
    chance = random.Random(seed)
    text = "\n".join(
        line
        for line in EXAMPLE.read_text(encoding="utf-8").splitlines()
        if not line.lstrip().startswith("#")
    )
    outcomes = {"loaded": 0, "refused": 0}
    start = time.monotonic()
    for _ in range(100):
        data = mutated(text, chance)
        try:
            loaded = parse(data, "f.yaml")
        except ConfigError as error:
            outcomes["refused"] += 1
            problems = error.problems
        else:
            outcomes["loaded"] += 1
            problems = loaded.warnings
        lines = "\n".join(str(problem) for problem in problems).splitlines()
        assert len(lines) == len(problems), data
        assert all(line.startswith("f.yaml:") and "; " in line for line in lines), data
    assert min(outcomes.values()) > 0
    assert time.monotonic() - start < 30
