"""Small tools that tests share: waiting, deterministic bytes, open descriptors."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30


def wait_until(
    condition: Callable[[], object],
    *,
    seconds: float = 5.0,
    look: float = 0.01,
    what: str | Callable[[], str] = "the condition",
) -> None:
    """Returns as soon as the condition is true; fails when it is not within these seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"after {seconds} s: {said} is still not so")
        time.sleep(look)


def blocks(size: int) -> Iterator[memoryview]:
    """``size`` bytes that are the same each time, no block like another, never held in memory at once.

    A block is good until the next one is asked for.
    """
    block = bytearray(random.Random(0).randbytes(256 * 1024))
    view = memoryview(block)
    for number in range(0, size, len(block)):
        struct.pack_into("!Q", block, 0, number)
        yield view[: min(len(block), size - number)]


@cache
def digest_of_blocks(size: int) -> str:
    """The SHA-256 of what :func:`blocks` yields, in hexadecimal."""
    digest = hashlib.sha256()
    for block in blocks(size):
        digest.update(block)
    return digest.hexdigest()


def write_blocks(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for block in blocks(size):
            file.write(block)
    return path


def descriptors(pid: int | None = None) -> dict[int, str]:
    """Open descriptors of a process, this one by default, and what each is."""
    folder = Path(f"/proc/{pid or os.getpid()}/fd")
    found: dict[int, str] = {}
    for entry in folder.iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue  # the descriptor of this listing itself, or one closed meanwhile
        found[int(entry.name)] = target
    return found


def socket_buffers() -> int:
    """Bytes that the system may hold of a flow through two connections: it lets buffers grow."""
    limits = (Path(f"/proc/sys/net/ipv4/tcp_{kind}mem").read_text() for kind in "rw")
    return 2 * sum(int(limit.split()[2]) for limit in limits)
