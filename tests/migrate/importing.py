"""Importing a few lines, and looking at what comes out without its comments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from textwrap import dedent
from typing import Any

import yaml

from egress_proxy.migrate.squid import SPECIAL_USE_WHY, import_squid
from egress_proxy.migrate.squid_decisions import LITERALS_WHY
from egress_proxy.migrate.writing import Imported
from tests.migrate.deciding import policy_of

#: Notes about bare addresses and private destinations come with most rules, and have tests of their own.
USUAL = (LITERALS_WHY, SPECIAL_USE_WHY)


def squid(text: str, files: Mapping[str, str] | None = None) -> Imported:
    """Import the lines of a squid.conf, and check that the result is a valid configuration."""
    have = files or {}

    def read(path: str) -> str:
        if path not in have:
            raise FileNotFoundError(2, "No such file or directory", path)
        return have[path]

    imported = import_squid(
        "squid.conf",
        dedent(text),
        read,
        lambda pattern: sorted(name for name in have if fnmatchcase(name, pattern)),
    )
    policy_of(imported.yaml)
    return imported


def policies(imported: Imported) -> list[dict[str, Any]]:
    document = yaml.safe_load(imported.yaml)
    assert document["version"] == 1
    found: list[dict[str, Any]] = document["policies"]
    return found


def notes(imported: Imported) -> list[str]:
    """The notes that are about this file alone."""
    return [str(note) for note in imported.notes if note.why not in USUAL]


def causes(imported: Imported) -> list[str]:
    """The notes about what is not known, without those about the rules that are lost by it."""
    return [
        note
        for note in notes(imported)
        if not re.search("not carried over|NOTHING IS ALLOWED", note)
    ]


def only_policy(text: str) -> dict[str, Any]:
    """The one policy of lines that leave nothing to say."""
    imported = squid(text)
    assert notes(imported) == []
    (policy,) = policies(imported)
    return policy
