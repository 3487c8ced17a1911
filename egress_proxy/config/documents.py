"""The files of one configuration: the one that was named, and what it includes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from egress_proxy.config.errors import MAX_PATH, Code, ConfigError, Report, quoted, told
from egress_proxy.config.nodes import fields, items, kind_of
from egress_proxy.config.sources import Sources
from egress_proxy.config.values import relative_path
from egress_proxy.config.yaml_source import Mapping, Node, Scalar, parse_yaml, place_of
from egress_proxy.core.policy import Place

VERSION: Final = 1
#: Files that may lead to an included one.
MAX_DEPTH: Final = 20
#: Keys of an included file. What is not about policies belongs to the one file that everything starts from.
INCLUDED_KEYS: Final = ("include", "sets", "policies")


@dataclass(frozen=True, slots=True)
class Document:
    """One file: its top-level keys, with what reports about it."""

    fields: dict[str, Node]
    places: dict[str, Place]
    """Where each key stands, those included that were reported."""
    root: Node
    report: Report


def read_document(
    data: bytes, report: Report, keys: tuple[str, ...], not_yet: dict[str, str]
) -> Document | None:
    """The top-level keys of a file, ``version`` aside; None where nothing further can be said about it."""
    root = parse_yaml(data, report)
    if root is None or not _has_our_version(root, report):
        return None
    example = "`version: 1`, then `policies:`"
    found = fields(root, "the configuration", report, ("version", *keys), not_yet, example)
    found.pop("version", None)
    places: dict[str, Place] = {}
    if isinstance(root, Mapping):
        places = {key.text: place_of(key, report) for key, _ in reversed(root.entries)}
    return Document(found, places, root, report)


def _has_our_version(root: Node, report: Report) -> bool:
    """Whether the file's keys mean what we take them for."""
    if not isinstance(root, Mapping):
        return True
    instead = f"write `version: {VERSION}`"
    for key, node in root.entries:
        if key.text == "version":
            if isinstance(node, Scalar) and node.plain and node.text == str(VERSION):
                return True
            shown = quoted(node.text) if isinstance(node, Scalar) else kind_of(node)
            what = f"`version` must be the number {VERSION}, not {shown}"
            report.error(Code.BAD_VERSION, place_of(node, report), what, instead)
            return False
    report.error(Code.BAD_VERSION, place_of(root, report), "the file has no `version`", instead)
    return False


def included(document: Document, sources: Sources, keys: tuple[str, ...]) -> list[Document]:
    """Every file that a file includes, and what those include, in the order of their names there.

    ``keys`` are those of the first file, to tell what cannot stand here from what can stand nowhere.
    """
    found: list[Document] = []
    _follow(document, sources, keys, {_identity(document.report.file): ""}, [], found)
    return found


def _follow(
    document: Document,
    sources: Sources,
    keys: tuple[str, ...],
    seen: dict[str, str],
    above: list[str],
    found: list[Document],
) -> None:
    """Add what a document includes.

    ``seen`` says for each file which other one included it; ``above`` are the files that lead here.
    """
    node = document.fields.get("include")
    if node is None:
        return
    report = document.report
    above = [*above, _identity(report.file)]
    if len(above) > MAX_DEPTH:
        what = f"files are included through more than {MAX_DEPTH} others"
        report.error(Code.BAD_INCLUDE, place_of(node, report), what, "include them by fewer steps")
        return
    for item in items(node, "`include`", report, '["policies.d"]') or ():
        for path in _paths(item, report, sources):
            identity = _identity(path)
            if identity in seen:
                if identity == above[-1]:
                    what = "the file includes itself"
                elif identity in above:
                    what = f"{quoted(path, MAX_PATH)} leads to this file, and this file back to it"
                else:
                    what = f"{quoted(path, MAX_PATH)} is included twice, first by {seen[identity]}"
                report.error(Code.BAD_INCLUDE, place_of(item, report), what, "remove this entry")
                continue
            seen[identity] = report.file
            inner = _read_included(path, item, report, sources, keys)
            if inner is not None:
                found.append(inner)
                _follow(inner, sources, keys, seen, above, found)


def _paths(node: Node, report: Report, sources: Sources) -> list[str]:
    path = relative_path(node, "an entry of `include`", report)
    if path is None:
        return []
    if not sources.is_directory(path):
        return [path]
    try:
        files, left_out = sources.files_in(path)
    except ConfigError as error:
        report.error(Code.UNREADABLE_FILE, place_of(node, report), *told(error))
        return []
    for doubtful in left_out:
        what = f"{quoted(doubtful, MAX_PATH)} is not read"
        if sources.is_directory(doubtful):
            instead = "include it by itself: directories in directories are not looked into"
        else:
            instead = "let its name end in .yaml or .yml"
        report.warning(Code.WITHOUT_EFFECT, place_of(node, report), what, instead)
    if not files:
        what = f"the directory {quoted(path, MAX_PATH)} holds no .yaml file"
        report.warning(Code.WITHOUT_EFFECT, place_of(node, report), what, "add one, or remove this")
    return files


def _read_included(
    path: str, node: Node, report: Report, sources: Sources, keys: tuple[str, ...]
) -> Document | None:
    try:
        data = sources.read(path)
    except ConfigError as error:
        report.error(Code.UNREADABLE_FILE, place_of(node, report), *told(error))
        return None
    inner = report.beside(path)
    found = read_document(data, inner, keys, {})
    if found is None:
        return None
    for key in sorted(found.fields.keys() - set(INCLUDED_KEYS)):
        what = f"`{key}` cannot stand in a file that another one includes"
        place = found.places[key]
        inner.error(Code.UNSUPPORTED_KEY, place, what, "write it in that other file")
    return found


def _identity(path: str) -> str:
    """One text for all the ways to name a file."""
    return os.path.realpath(path)
