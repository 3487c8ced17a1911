"""The schema of the keys that concern the proxy itself: what each reader takes, with its default."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Final

import yaml

from egress_proxy.config import model
from egress_proxy.config.json_schema.descriptions import DESCRIPTIONS, described
from egress_proxy.config.json_schema.forms import FORMS, with_unit
from egress_proxy.config.json_schema.parts import Schema, list_of, mapping, text, words_with_off
from egress_proxy.config.limits import Number
from egress_proxy.config.model import Config, MemoryState, SharedState
from egress_proxy.config.reload import NEEDS_RESTART
from egress_proxy.config.schema import SECTIONS, Section
from egress_proxy.config.shared_state import STORE_KEYS, STORE_URL
from egress_proxy.config.state import STATE_FILE, STATE_FORM, state_place
from egress_proxy.config.values import (
    DURATION_UNITS,
    SIZE_UNITS,
    Choice,
    ChoiceWithOff,
    Duration,
    Integer,
    ListOf,
    Reader,
    Size,
    boolean,
    parse_with_unit,
    socket_address,
)
from egress_proxy.core.policy import CompiledPolicy


def form_of(reader: Reader) -> Schema:
    """What a reader takes."""
    match reader:
        case Integer(low, high):
            return {"type": "integer", "minimum": low, "maximum": high}
        case Duration(low, high):
            return with_unit("duration", DURATION_UNITS, low, high)
        case Size(low, high):
            return with_unit("size", SIZE_UNITS, low, high)
        case ChoiceWithOff(words):
            return words_with_off(words)
        case Choice(words):
            return {"type": "string", "enum": [word.value for word in words]}
        case Number(low, high):
            return {"type": "number", "minimum": low, "maximum": high}
        case ListOf(inner, at_most, example):
            return list_of(form_of(inner), at_most) | {"examples": [yaml.safe_load(example)]}
    if reader is state_place:
        return _state()
    return FORMS[reader]


def _state() -> Schema:
    """A text, or a mapping about a shared store."""
    default = SharedState()
    store = {
        key: _value(f"state.{key}", inner, None if key == "url" else getattr(default, key), {})
        for key, inner in STORE_KEYS.items()
    }
    place = text(f"memory|{STATE_FILE}|{STORE_URL}", STATE_FORM)
    examples = ["sqlite:///var/lib/egress-proxy/state.db", "redis://redis.example.com:6379"]
    return {"anyOf": [place, mapping(store, required=("url",))], "examples": examples}


#: Keys that a section cannot do without, which :mod:`.load` sees to.
_REQUIRED: Final = {"credentials": ("users_file",), "upstream": ("proxy",)}


def section_or_value(key: str, reader: Reader, written: Mapping[str, str]) -> Schema:
    if not isinstance(reader, Section):
        return _value(key, reader, _top_level_defaults().get(key), written)
    default = reader.model()
    properties = {
        name: _value(f"{key}.{name}", inner, getattr(default, name), written)
        for name, inner in reader.keys.items()
    }
    restart = ["A change needs a restart."] if key in NEEDS_RESTART else []
    return mapping(properties, required=_REQUIRED.get(key, ())) | described(key, *restart)


def _value(path: str, reader: Reader, default: Any, written: Mapping[str, str]) -> Schema:
    form = form_of(reader)
    texts = (DESCRIPTIONS.get(path) or written[path], form.get("description"))
    shown = _as_written(reader, default)
    return (
        form
        | {"description": " ".join(filter(None, texts))}
        | ({} if shown is None else {"default": shown})
    )


def _top_level_defaults() -> dict[str, Any]:
    found = {each.name: each.default for each in fields(Config) if each.default is not MISSING}
    return found | {"mode": inspect.signature(CompiledPolicy).parameters["mode"].default}


def _as_written(reader: Reader, value: Any) -> Any:
    """A default as a file would say it; None where there is none."""
    match reader:
        case Duration():
            return _in_largest_unit(value, DURATION_UNITS)
        case Size():
            return _in_largest_unit(value, SIZE_UNITS)
        case Choice():
            return value.value
        case Integer():
            return value
    if reader is boolean:
        return value
    if reader is socket_address:
        return str(value)
    if reader is state_place:
        return str(MemoryState())
    return value or None


def _in_largest_unit(value: float, units: Mapping[str, Any]) -> str:
    texts = [f"{round(value / factor)}{unit}" for unit, factor in reversed([*units.items()])]
    return next(text for text in texts if parse_with_unit(text, dict(units)) == value)


def docstrings() -> dict[str, str]:
    """The texts under the fields of :mod:`.model`, by the paths of the keys that they are about."""
    found: dict[str, str] = {}
    classes = {
        reader.model.__name__: f"{key}."
        for key, reader in SECTIONS.items()
        if isinstance(reader, Section)
    } | {Config.__name__: ""}
    for node in ast.parse(inspect.getsource(model)).body:
        if not isinstance(node, ast.ClassDef) or node.name not in classes:
            continue
        for before, here in zip(node.body, node.body[1:], strict=False):
            match before, here:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[classes[node.name] + name] = _for_readers_of_a_file(text)
    return found


def _for_readers_of_a_file(docstring: str) -> str:
    """A docstring tells the unit of the value in memory; a file writes the unit itself."""
    text = " ".join(docstring.split()).replace("``", "`")
    return text.replace("Seconds that ", "How long ").replace("Seconds for ", "Time for ")
