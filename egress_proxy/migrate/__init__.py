"""Rules of other proxies as ours: never wider than they were, with a note about each thing that is lost.

``squid`` and ``smokescreen`` each read one format. Both work out what ordered rules decide and have
:mod:`egress_proxy.migrate.order_free` say the same without order; :mod:`egress_proxy.migrate.writing` makes our YAML of
it. :func:`import_file` is the way in for a command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from egress_proxy.migrate.smokescreen import import_smokescreen
from egress_proxy.migrate.squid import import_squid
from egress_proxy.migrate.writing import Imported, MigrationError, Note, UnreadableError

__all__ = ["PEERS", "Imported", "MigrationError", "Note", "import_file", "read_text"]

#: The proxies whose rules can be imported.
PEERS: Final = ("squid", "smokescreen")

#: Bytes of one file: some three million names.
_MAX_FILE_BYTES: Final = 64 * 2**20


def import_file(peer: str, path: str) -> Imported:
    """Import a file with a peer's rules, and the files that it names.

    Raises MigrationError where it cannot be read, or is none of the peer's.
    """
    text = read_text(path)
    if peer == "squid":
        return import_squid(path, text, read_text)
    return import_smokescreen(path, text)


def read_text(path: str) -> str:
    """A file's text. Bytes that are no UTF-8 are taken as Latin-1: they stand in comments.

    Raises MigrationError.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise UnreadableError(path, str(why)) from None
    if len(data) > _MAX_FILE_BYTES:
        raise UnreadableError(path, f"it is larger than {_MAX_FILE_BYTES // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
