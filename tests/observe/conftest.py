"""Pipes to write lines to: one that somebody may read, and one that is full."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.observe.line_pipe import Pipe


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe(*os.pipe())
    yield made
    # The read end first: it frees whoever is stuck in a write.
    made.close_read_end()
    made.close_write_end()


@pytest.fixture
def full_pipe(pipe: Pipe) -> Pipe:
    pipe.fill()
    return pipe
