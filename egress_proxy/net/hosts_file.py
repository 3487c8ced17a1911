"""The hosts file: names that no server is asked for."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from egress_proxy.core.errors import HostError
from egress_proxy.core.names import canonical_host


class HostsFile:
    """Reads the file when it has changed. None is an empty one."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = (0, 0, 0)

    def look(self) -> dict[str, tuple[str, ...]] | None:
        """The addresses of each canonical name, IPv4 first; None if they are as before, or cannot be read."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return None
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            gone, self._seen = self._seen is not None, None
            return {} if gone else None
        except OSError:
            return None  # what was known is better than nothing
        self._seen = seen
        return parse(text)


def parse(text: str) -> dict[str, tuple[str, ...]]:
    """As hosts(5): an address and its names on each line. What is neither is passed over, as every resolver does."""
    found: dict[str, dict[str, None]] = {}
    for line in text.split("\n"):
        words = line.partition("#")[0].split()
        if len(words) < 2:
            continue
        try:
            address = str(ip_address(words[0]))
        except ValueError:
            continue
        for word in words[1:]:
            try:
                name = canonical_host(word)
            except HostError:
                continue
            if name.address is None:
                found.setdefault(name.text, {})[address] = None
    # Sorting keeps the file's order within each family.
    return {
        name: tuple(sorted(addresses, key=lambda address: ":" in address))
        for name, addresses in found.items()
    }
