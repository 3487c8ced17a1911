"""``state``: where counters are kept that limits need."""

from __future__ import annotations

import re
from typing import Final

from egress_proxy.config.errors import Code, Report, quoted
from egress_proxy.config.model import FileState, MemoryState, State
from egress_proxy.config.nodes import text
from egress_proxy.config.shared_state import is_store, store
from egress_proxy.config.yaml_source import Mapping, Node, Scalar, place_of

STATE_FORM: Final = (
    "write `memory`, sqlite:///PATH with the absolute path of a file, "
    "or redis://HOST:PORT of a shared store"
)

#: RFC 3986 §3.3, without what has a meaning of its own in a URL: a path is written as it is. And no ``//`` or ``..``.
STATE_FILE: Final = r"sqlite://((?:/(?!\.{1,2}(?:/|$))[^/?#%\\\x00-\x20\x7f]+)+)"
_FILE: Final = re.compile(STATE_FILE)


def state_place(node: Node, name: str, report: Report) -> State | None:
    """Read ``memory``, ``sqlite:///PATH``, a shared store's URL, or a mapping with that."""
    if isinstance(node, Mapping) or (isinstance(node, Scalar) and is_store(node.text)):
        return store(node, name, report)
    found = text(node, name, report, STATE_FORM)
    if found is None:
        return None
    if found == "memory":
        return MemoryState()
    if (match := _FILE.fullmatch(found)) is not None and found.isprintable():
        return FileState(match[1])
    instead = STATE_FORM
    if found.startswith("/") and _FILE.fullmatch(f"sqlite://{found}"):
        instead = f"write sqlite://{found}"
    elif found.startswith("sqlite:////") and _FILE.fullmatch(f"sqlite:{found[8:]}"):
        instead = f"write sqlite:{found[8:]}"
    # What cannot be read may hold a password.
    what = f"{name} is none: {quoted(found)}" if "@" not in found else f"{name} is none of them"
    report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
    return None
