"""Handing a port over: new connections go to another process that listens there, and none is lost.

With SO_REUSEPORT the system deals new connections out among all listeners of a port, and what waits at a listener that
closes is reset. So before a proxy closes its own listeners it has the system deal only to the others', with a classic
BPF program of one instruction (socket(7), SO_ATTACH_REUSEPORT_CBPF): it returns a listener's index in the order in
which they began to listen.

The index is the number of the others' listeners. Ours, which are older, come first; so with as many of the others as of
ours or more, theirs is at that index. When ours close, the last ones take their places; the index stays theirs
until none of ours is left, and is then past the end, which the system takes for no answer at all: it deals to all
again. A program that nobody removes is no harm then.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from pathlib import Path
from typing import Final

# <asm-generic/socket.h>, <linux/filter.h>
_SO_ATTACH_REUSEPORT_CBPF: Final = 51
_BPF_RET_K: Final = 0x06
#: <net/tcp_states.h>: TCP_LISTEN, as /proc/net/tcp shows it.
_LISTEN: Final = "0A"


def steer_away(listener: socket.socket, own: int) -> bool:
    """Have new connections go to others' listeners; ``own`` is how many of the port's are ours.

    Returns whether there are others at all. Where the system does not take the program, they get their part of the
    new connections, as before.
    """
    others = _listeners(listener) - own
    if others < 1:
        return False
    if others >= own:
        program = ctypes.create_string_buffer(struct.pack("=HBBI", _BPF_RET_K, 0, 0, others))
        filter_ = struct.pack("@HP", 1, ctypes.addressof(program))
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, filter_)
    return True


def _listeners(listener: socket.socket) -> int:
    """How many sockets listen where this one does; 1 where the system does not tell."""
    host, port = listener.getsockname()[:2]
    packed = socket.inet_pton(listener.family, host)
    # As proc(5) has it: 32-bit words as this machine stores them.
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    wanted = f"{''.join(f'{word:08X}' for word in words)}:{port:04X}"
    table = "tcp" if listener.family == socket.AF_INET else "tcp6"
    found = 0
    try:
        with Path(f"/proc/self/net/{table}").open(encoding="ascii") as lines:
            next(lines)
            for line in lines:
                _, local, _, state, _ = line.split(maxsplit=4)
                # Those that listen come first, and connections may be many.
                if state != _LISTEN:
                    break
                found += local == wanted
    except (OSError, ValueError, StopIteration):
        return 1
    return found
