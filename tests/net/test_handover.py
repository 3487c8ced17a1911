"""New connections go to whoever takes a port over, and to all listeners again afterwards."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from egress_proxy.net.handover import steer_away

#: So many that chance does not leave one listener without any.
MANY = 64


class Port:
    """A port that several sockets listen on."""

    def __init__(self, family: socket.AddressFamily, host: str) -> None:
        self._where = (family, host)
        self.port = 0
        self.listeners: list[socket.socket] = []

    def listen(self, count: int = 1) -> list[socket.socket]:
        family, host = self._where
        made = []
        for _ in range(count):
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, self.port))
            listener.listen(MANY)
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            made.append(listener)
        self.listeners += made
        return made

    def dealt(self) -> list[bool]:
        """Which of those that still listen get any of many new connections."""
        family, host = self._where
        listening = [each for each in self.listeners if each.fileno() >= 0]
        with ExitStack() as stack:
            for _ in range(MANY):
                client = stack.enter_context(socket.socket(family))
                client.connect((host, self.port))
            return [_accepted(each) > 0 for each in listening]


def _accepted(listener: socket.socket) -> int:
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def port(request: pytest.FixtureRequest) -> Iterator[Port]:
    made = Port(*request.param)
    try:
        made.listen(0)
        yield made
    finally:
        for listener in made.listeners:
            listener.close()


@pytest.mark.parametrize(("own", "others"), [(1, 1), (1, 3), (2, 2), (2, 3)])
def test_only_others_get_any_until_ours_have_closed(port: Port, own: int, others: int) -> None:
    ours = port.listen(own)
    port.listen(others)
    assert port.dealt() == [True] * (own + others)
    assert steer_away(ours[0], own)
    for left in range(own, 0, -1):
        dealt = port.dealt()
        assert not any(dealt[:left]), dealt
        assert any(dealt[left:])
        ours[own - left].close()
    # The program is still there and means nothing any more: nobody is left out.
    assert port.dealt() == [True] * others


def test_nobody_else_is_there(port: Port) -> None:
    ours = port.listen(2)
    assert not steer_away(ours[0], 2)
    assert port.dealt() == [True, True]


def test_too_few_others_get_their_part_as_before(port: Port) -> None:
    """Where one of them stands in the line cannot be known, so nothing is steered to one of ours."""
    ours = port.listen(3)
    port.listen(1)
    assert steer_away(ours[0], 3)
    assert port.dealt() == [True] * 4


def test_a_system_that_does_not_tell(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = port.listen(1)
    port.listen(1)

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "open", missing)
    assert not steer_away(ours[0], 1)
    assert port.dealt() == [True, True]
