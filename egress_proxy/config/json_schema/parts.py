"""The parts that every schema is made of: texts, lists and mappings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

Schema = dict[str, Any]


def text(pattern: str, instead: str) -> Schema:
    """A text of this form. ``instead`` becomes the message of a keyword that VS Code has and others pass over."""
    message = f"{instead[0].upper()}{instead[1:].removesuffix('.')}."
    return {"type": "string", "pattern": _whole(pattern), "patternErrorMessage": message}


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$" if "|" in pattern else f"^{pattern}$"


def list_of(items: Schema, at_most: int | None = None) -> Schema:
    limit = {} if at_most is None else {"maxItems": at_most}
    return {"type": "array", "items": items, "minItems": 1, **limit}


def mapping(properties: Mapping[str, Schema], *, required: Collection[str] = ()) -> Schema:
    """A mapping of known keys. An empty one is refused, as the loader does."""
    needed = {"required": list(required)} if required else {"minProperties": 1}
    return {
        "type": "object",
        "properties": dict(properties),
        **needed,
        "additionalProperties": False,
    }


def names(pattern: str, value: Schema, **bounds: int) -> Schema:
    """A mapping of free names."""
    return {
        "type": "object",
        "patternProperties": {_whole(pattern): value},
        **bounds,
        "additionalProperties": False,
    }


def ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def words_with_off(words: Iterable[str]) -> Schema:
    """One of these words, ``off`` among them.

    YAML 1.1 takes a bare ``off`` for false, and so do the editors that read it. What the schema says with ``not`` no
    editor offers to write: the loader refuses the word ``false``.
    """
    return {
        "anyOf": [
            {"enum": [str(word) for word in words]},
            {
                "$comment": "A bare `off`, which YAML 1.1 reads as false.",
                "not": {"anyOf": [{"const": True}, {"not": {"type": "boolean"}}]},
            },
        ]
    }
