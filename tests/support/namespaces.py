"""Networks of a test's own: two machines and the wire between them, in namespaces of the kernel (root alone may).

A namespace is held by a descriptor of this process and has no name, so that it and all in it ends with the process,
whatever becomes of a test, and runs beside each other do not meet. A thread that enters one takes what it starts
along: sockets, threads and programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000
_OWN = Path("/proc/thread-self/ns/net")
_TUN = Path("/dev/net/tun")
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000

# Documentation's addresses (RFC 5737, RFC 3849): nobody has them, and here they lead nowhere else.
HERE, HERE_TOO, HERE_6 = "192.0.2.1", "192.0.2.11", "2001:db8::1"
THERE, THERE_TOO, THERE_6 = "192.0.2.2", "192.0.2.12", "2001:db8::2"
#: What is sent to them arrives and is dropped without a word.
BLACK_HOLE, BLACK_HOLE_6 = "198.51.100.1", "2001:db8:b::1"
#: No route leads there.
NO_ROUTE_6 = "2001:db8:e::1"
#: The other machine at the end of a long wire, which has no route to the second and says so (ICMPv6).
SLOW_6, UNREACHABLE_6 = "2001:db8:5::2", "2001:db8:5:e::1"
#: All of these, as a rule's ``allow_private`` names them.
NETWORKS = ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"]

_libc = ctypes.CDLL(None, use_errno=True)


def why_impossible() -> str | None:
    """Why there can be no namespaces here."""
    if os.geteuid():
        return "namespaces need root"
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    try:
        Namespace().close()
    except OSError as error:
        return f"the system makes no namespaces: {error.strerror}"
    return None


def need_namespaces() -> None:
    """Skip the test where there can be none."""
    reason = why_impossible()
    if reason is not None:
        pytest.skip(reason)


class Namespace:
    """The network of one machine."""

    def __init__(self) -> None:
        made: list[int | OSError] = []

        def make() -> None:
            # Of a thread that ends at once, because the one that asks stays where it is.
            try:
                _call(_libc.unshare, _CLONE_NEWNET)
                made.append(_open_own())
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        (result,) = made
        if isinstance(result, OSError):
            raise result
        self._fd = result

    @property
    def path(self) -> str:
        """As ``ip`` takes it for a name."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in it; so is what it starts, for good."""
        before = _open_own()
        try:
            _call(_libc.setns, self._fd, _CLONE_NEWNET)
            try:
                yield
            finally:
                _call(_libc.setns, before, _CLONE_NEWNET)
        finally:
            os.close(before)

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8), all in one."""
        with self.entered():
            done = subprocess.run(
                ["ip", "-batch", "-"],
                input="\n".join(commands) + "\n",
                text=True,
                capture_output=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr

    def sysctl(self, name: str, value: str) -> None:
        """Set what is of this network alone, such as ``ipv4/ip_local_port_range``."""
        with self.entered():
            Path("/proc/sys/net", name).write_text(value)

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Network:
    """Two machines and a wire."""

    here: Namespace
    """Where the clients are, and the proxy."""
    there: Namespace
    """Where the origins are."""


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Two machines, with the addresses above."""
    with contextlib.ExitStack() as stack:
        made = Network(Namespace(), Namespace())
        for end in (made.here, made.there):
            stack.callback(end.close)
            for each in ("all", "default"):
                # Addresses are good at once, without a look whether somebody else has them.
                end.sysctl(f"ipv6/conf/{each}/accept_dad", "0")
                end.sysctl(f"ipv6/conf/{each}/disable_ipv6", "0")
        mac, other_mac = "02:00:00:00:00:01", "02:00:00:00:00:02"
        made.here.ip(
            f"link add wire address {mac} type veth peer name wire address {other_mac} netns {made.there.path}",
        )
        sides = (
            (made.here, (HERE, HERE_TOO), HERE_6, (THERE, THERE_TOO), THERE_6, other_mac),
            (made.there, (THERE, THERE_TOO), THERE_6, (HERE, HERE_TOO), HERE_6, mac),
        )
        for end, own, own_6, *_ in sides:
            end.ip(
                "link set lo up",
                "link set wire up",
                *(f"address add {ip}/24 dev wire" for ip in own),
                f"address add {own_6}/64 dev wire nodad",
            )
        for end, _, _, peers, peer_6, peer_mac in sides:
            # Known from the start: the first packet to an unknown neighbour may wait for a second.
            end.ip(
                *(
                    f"neighbour replace {ip} lladdr {peer_mac} dev wire nud permanent"
                    for ip in (*peers, peer_6)
                )
            )
        made.here.ip(
            f"route add {BLACK_HOLE}/32 via {THERE}",
            f"route add {BLACK_HOLE_6}/128 via {THERE_6}",
        )
        made.there.ip(
            f"route add blackhole {BLACK_HOLE}/32", f"route add blackhole {BLACK_HOLE_6}/128"
        )
        yield made


@contextlib.contextmanager
def long_wire(made: Network, delay: float) -> Iterator[None]:
    """A second wire, on which every packet takes so many seconds; SLOW_6 is at its other end."""
    if not _TUN.exists():
        pytest.skip(f"there is no {_TUN}")
    with contextlib.ExitStack() as stack:
        ends = []
        for end, own in ((made.here, "2001:db8:5::1"), (made.there, SLOW_6)):
            with end.entered():
                fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH14x", b"long", _IFF_TUN | _IFF_NO_PI))
            ends.append(fd)
            end.ip("link set long up", f"address add {own}/64 dev long nodad")
        made.here.ip(f"route add {UNREACHABLE_6}/128 via {SLOW_6}")
        stop, stopper = os.pipe()
        stack.callback(os.close, stop)
        carrier = threading.Thread(target=_carry, args=(*ends, delay, stop))
        carrier.start()
        stack.callback(carrier.join)
        stack.callback(os.close, stopper)
        yield


def _carry(one: int, other: int, delay: float, stop: int) -> None:
    """Bring packets from one end to the other, each after its time, until the pipe is closed."""
    across = {one: other, other: one}
    under_way: deque[tuple[float, int, bytes]] = deque()
    while True:
        wait = max(under_way[0][0] - time.monotonic(), 0) if under_way else None
        ready = select.select([one, other, stop], [], [], wait)[0]
        if stop in ready:
            return
        for end in ready:
            packet = os.read(end, 65536)
            under_way.append((time.monotonic() + delay, across[end], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, packet = under_way.popleft()
            os.write(end, packet)


def _open_own() -> int:
    """The calling thread's namespace."""
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def _call(function: ctypes._FuncPointer, *arguments: int) -> None:
    """Call the C library. Raises OSError."""
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
