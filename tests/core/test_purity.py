"""What decides is pure: it does no I/O, asks no clock, and throws no dice."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from egress_proxy import core

CORE = Path(core.__file__).parent
FILES = sorted(CORE.rglob("*.py"))

#: What the core may import. Each new line here is to be argued for: it must do no I/O and answer the same each time.
ALLOWED = {
    "__future__",
    "base64",
    "binascii",
    "bisect",
    "collections",
    "collections.abc",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "http",  # The table of status codes; http.client and http.server are other modules.
    "idna",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "msgspec",
    "operator",
    "re",
    "struct",
    "types",
    "typing",
}

#: Built-in functions that reach out of the program, or around an import.
FORBIDDEN_CALLS = {
    "open",
    "print",
    "input",
    "eval",
    "exec",
    "compile",
    "__import__",
    "breakpoint",
    "id",
    "hash",
}


IO = {
    "asyncio",
    "concurrent",
    "http.client",
    "logging",
    "multiprocessing",
    "random",
    "secrets",
    "select",
    "selectors",
    "socket",
    "ssl",
    "structlog",
    "subprocess",
    "tempfile",
    "threading",
    "urllib.request",
    "uvloop",
    "yaml",
}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def impurities(source: str) -> list[str]:
    tree = ast.parse(source)
    found = [
        name
        for name in imports(tree)
        if name not in ALLOWED and f"{name}.".partition("egress_proxy.core.")[0]
    ]
    found += [
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in FORBIDDEN_CALLS
    ]
    return found + [
        "async" for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]


def test_there_is_a_core() -> None:
    assert {path.stem for path in FILES} >= {
        "addresses",
        "body",
        "decide",
        "http1",
        "names",
        "policy",
        "reason",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CORE).as_posix())
def test_a_file_of_the_core_is_pure(path: Path) -> None:
    assert impurities(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "import socket as s",
        "from ssl import SSLContext",
        "import os.path",
        "from time import monotonic",
        "def f():\n    import random",
        "import collections, select",
        "from . import names",
        "from egress_proxy.net import dialer",
        "import egress_proxy.corelike",
        "open('/etc/hosts')",
        "async def f(): pass",
    ],
)
def test_the_check_sees(source: str) -> None:
    assert len(impurities(source)) == 1


def test_a_fresh_interpreter_that_imports_the_core_loads_no_io() -> None:
    """Third parties of the core count too: what idna and msgspec load stands between a decision and its test."""
    paths = (path.relative_to(CORE).with_suffix("") for path in FILES if path.stem != "__init__")
    names = [".".join(("egress_proxy", "core", *path.parts)) for path in paths]
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}; import {', '.join(names)}; print(*sys.modules)"
    )
    # Without `site`, because what an environment loads at its start is not the core's doing.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], check=True, capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert set(names) <= loaded
    assert loaded & IO == set()
