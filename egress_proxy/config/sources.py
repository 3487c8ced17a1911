"""The files that a configuration is read from, and whether they are still what was read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from egress_proxy.config.errors import file_error

#: Bytes of a configuration, all of its files together. 64 MiB are some three million hosts; more is a wrong file.
MAX_BYTES: Final = 64 * 2**20
#: Files of a configuration. A directory of ConfigMaps holds some dozens.
MAX_FILES: Final = 1000

#: What tells one state of a file from another: of the file that symlinks lead to, or why there is none.
Signature = tuple[object, ...]


class Sources:
    """Reads the files of one configuration and remembers the state in which each was found."""

    def __init__(self) -> None:
        self._seen: dict[str, Signature] = {}
        self._digests: list[str] = []
        self._count = 0
        self._left = MAX_BYTES

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file and directory that was looked at, whether it could be read or not."""
        return tuple(self._seen)

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal: of the one file's bytes, or of the digests of several, one a line. No secrets'."""
        if len(self._digests) == 1:
            return self._digests[0]
        return hashlib.sha256(
            "".join(f"{digest}\n" for digest in self._digests).encode()
        ).hexdigest()

    @property
    def state(self) -> Signature:
        """In which state each of :attr:`paths` was found."""
        return tuple(self._seen.values())

    @property
    def changed(self) -> bool:
        """Whether a file is not what it was before it was read."""
        return signature(self.paths) != self.state

    def read(self, path: str, *, secret: bool = False) -> bytes:
        """The bytes of a file. Raises ConfigError.

        Those of a secret are no part of the digest: it is shown to whoever asks, who could try passwords on it.
        """
        if self._count >= MAX_FILES:
            what = f"the configuration has more than {MAX_FILES:,} files"
            raise file_error(path, what, "write fewer and larger ones")
        self._seen.setdefault(path, _signature_of(path))
        data = _read(path, self._left)
        self._left -= len(data)
        self._count += 1
        if not secret:
            self._digests.append(hashlib.sha256(data).hexdigest())
        return data

    def take(self, data: bytes) -> None:
        """Count a text that did not come from a file of its own."""
        self._count += 1
        self._digests.append(hashlib.sha256(data).hexdigest())

    def is_directory(self, path: str) -> bool:
        # What cannot be looked at is none: reading it then tells why.
        return os.path.isdir(path)  # noqa: PTH112 - Path's raises

    def files_in(self, directory: str) -> tuple[list[str], list[str]]:
        """The YAML files of a directory and of the directories in it, by name; and what is left out and may be some.

        That is what a directory looks like into which one ConfigMap was mounted, or one for each directory in it. What
        starts with a dot counts for nothing. Raises ConfigError.
        """
        found: list[str] = []
        left_out: list[str] = []
        for path in self._entries(directory):
            if not self.is_directory(path):
                (found if _is_yaml(path) else left_out).append(path)
                continue
            for inner in self._entries(path):
                is_file = not self.is_directory(inner) and _is_yaml(inner)
                (found if is_file else left_out).append(inner)
        doubtful = [
            path
            for path in left_out
            if self.is_directory(path) or path.lower().endswith((".yaml", ".yml"))
        ]
        return found, doubtful

    def _entries(self, directory: str) -> list[str]:
        self._seen.setdefault(directory, _signature_of(directory))
        try:
            found = sorted(Path(directory).iterdir())
        except OSError as error:
            why = error.strerror or "unknown error"
            raise file_error(
                directory, f"the directory cannot be read: {why}", "name a readable one"
            ) from None
        return [str(path) for path in found if not path.name.startswith(".")]


def signature(paths: Iterable[str]) -> Signature:
    """The state of these files now."""
    return tuple(map(_signature_of, paths))


def _signature_of(path: str) -> Signature:
    try:
        found = os.stat(path)  # noqa: PTH116 - raises the same, and is called for ever
    except (OSError, ValueError) as error:
        return (type(error), str(error))
    # ctime_ns as well: it alone tells of changed permissions, and of a changed text whose mtime was set back.
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _is_yaml(path: str) -> bool:
    return path.endswith((".yaml", ".yml"))


def _read(path: str, at_most: int) -> bytes:
    if not path:
        # `Path` takes it for the current directory. In a shell, a variable was empty.
        raise file_error("(no name)", "the name of the file is empty", "name an existing one")
    try:
        # Looked at before it is opened: to open a named pipe or a device may wait for ever.
        kind = Path(path).stat().st_mode
        if stat.S_ISDIR(kind):
            raise file_error(path, "this is a directory", "name the configuration file in it")
        if not stat.S_ISREG(kind) and not _is_open_pipe(path, kind):
            raise file_error(path, "this is not a regular file", "name a configuration file")
        with Path(path).open("rb") as file:
            data = file.read(at_most + 1)
    except FileNotFoundError:
        raise file_error(path, "there is no such file", "name an existing one") from None
    except PermissionError:
        what = "the file cannot be read: permission denied"
        raise file_error(path, what, "let the user that runs the proxy read it") from None
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise file_error(path, f"the file cannot be read: {why}", "name a readable file") from None
    if len(data) > at_most:
        what = f"the configuration is larger than {MAX_BYTES // 2**20} MiB"
        raise file_error(path, what, "write fewer rules, with *.example.com for many names")
    return data


def _is_open_pipe(path: str, kind: int) -> bool:
    """Whether this is a shell's ``<(command)`` or standard input, which somebody writes to."""
    return stat.S_ISFIFO(kind) and path.startswith(("/dev/", "/proc/"))
