"""Ports, and the ways to ask on each: CONNECT, or a plain request with its method and its path.

What rules decide is kept as sets of (port, way) in the bits of one number. What rules of ours can say of such a set is
less than a program could: a rule without conditions is for every way, and one with ``methods`` and ``paths`` for plain
requests. So no rule is for CONNECT alone, and a path is always meant with all below it. :meth:`Ways.allowed` and
:meth:`Ways.denied` are the smallest sets that can be written and hold a given one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from egress_proxy.core.policy import EVERY_PORT, PortRanges
from egress_proxy.migrate.ranges import merged

#: What an imported rule lists where plain requests alone are allowed, whatever their method: no rule says "all but
#: CONNECT" without looking at the path, which is then sent on in another form.
USUAL_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: Squid answers it by itself. No imported rule names it; those that name no method let it through.
_NEVER_SENT: Final = frozenset(("PURGE",))
METHOD: Final = re.compile(r"[A-Z][A-Z-]{1,30}")
EVERY_PATH: Final = "/"


class Said(NamedTuple):
    """What one rule of ours says of a host."""

    ports: PortRanges
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


class Ways:
    """Sets of ports and ways, each a number with one bit for every pair of a class of ports and a way."""

    def __init__(
        self,
        ports: Sequence[Sequence[tuple[int, int]]] = (EVERY_PORT,),
        methods: Sequence[str] = (),
        paths: Iterable[str] = (),
        *,
        told_apart: bool = True,
    ) -> None:
        """The ports are in classes that are decided alike. ``methods`` and ``paths`` are those that rules name; the
        paths end in a slash. Without ``told_apart`` there are ports alone.
        """
        self.ports = ports
        self.methods = tuple(methods)
        self.paths = (EVERY_PATH, *(path for path in dict.fromkeys(paths) if path != EVERY_PATH))
        # The way 0 is CONNECT. Behind it, for each path: all methods that no rule names, then each that one does.
        self._kinds = 1 + len(self.methods)
        self.count = 1 + self._kinds * len(self.paths) if told_apart else 1
        self._all_ways = (1 << self.count) - 1
        #: CONNECT on every port. Times a set of ways, it is these ways on every port.
        self.connect = sum(1 << (position * self.count) for position in range(len(ports)))
        self.every = self.connect * self._all_ways
        self.plain = self.every & ~self.connect
        #: Plain requests whose method and path no rule names.
        self.unnamed = self.connect << 1 if told_apart else 0
        self._allowing = [self._closure(way, deny=False) for way in range(self.count)]
        self._denying = [self._closure(way, deny=True) for way in range(self.count)]
        self._known: dict[tuple[int, bool], int] = {}

    def _closure(self, way: int, *, deny: bool) -> int:
        """The ways that a rule is for which is for this one."""
        if not way:
            return self._all_ways
        path, kind = divmod(way - 1, self._kinds)
        # A deny of methods that nobody can list is one of all methods.
        kinds = (1 << self._kinds) - 1 if deny and not kind else 1 << kind
        return sum(kinds << (1 + at * self._kinds) for at in self._below(path))

    def _below(self, path: int) -> list[int]:
        return [at for at, other in enumerate(self.paths) if other.startswith(self.paths[path])]

    # Sets of what acls ask for ----------------------------------------------------------------------------------

    def on_ports(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Every way on these ports."""
        return self._all_ways * sum(
            1 << (position * self.count)
            for position, found in enumerate(self.ports)
            if any(low <= found[0][0] <= high for low, high in ranges)
        )

    def with_method(self, method: str | None) -> int:
        """Plain requests with this method; with None, with those that no rule names."""
        kind = 0 if method is None else 1 + self.methods.index(method)
        return self.connect * sum(
            1 << (1 + at * self._kinds + kind) for at in range(len(self.paths))
        )

    def with_path(self, path: str) -> int:
        """Plain requests with this path, or one below it."""
        kinds = (1 << self._kinds) - 1
        return self.connect * sum(
            kinds << (1 + at * self._kinds) for at in self._below(self.paths.index(path))
        )

    # Sets that rules can be written of --------------------------------------------------------------------------

    def allowed(self, mask: int) -> int:
        """What an allow rule lets through that is to let these through."""
        return self._closed(mask, deny=False)

    def denied(self, mask: int) -> int:
        """What a deny rule denies that is to deny these."""
        return self._closed(mask, deny=True)

    def _closed(self, mask: int, *, deny: bool) -> int:
        found = self._known.get((mask, deny))
        if found is None:
            found = 0
            for way, closure in enumerate(self._denying if deny else self._allowing):
                found |= ((mask >> way) & self.connect) * closure
            self._known[mask, deny] = found
        return found

    def undeniable(self, mask: int) -> int:
        """What no rule can deny that is to deny none of these."""
        found = 0
        columns = [(mask >> way) & self.connect for way in range(self.count)]
        for way, closure in enumerate(self._denying):
            hit = 0
            for one, column in enumerate(columns):
                if column and closure >> one & 1:
                    hit |= column
            found |= hit << way
        return found

    def ports_of(self, mask: int) -> int:
        """CONNECT on each port that the set has anything of."""
        found = 0
        for way in range(self.count):
            found |= (mask >> way) & self.connect
        return found

    def on_its_ports(self, mask: int) -> int:
        """Every way on each port that the set has anything of."""
        return self.ports_of(mask) * self._all_ways

    def everywhere(self, mask: int) -> int:
        """The ways of the set, on every port."""
        ways = 0
        for position in range(len(self.ports)):
            ways |= mask >> (position * self.count)
        return self.connect * (ways & self._all_ways)

    # Writing ----------------------------------------------------------------------------------------------------

    def ranges_of(self, mask: int) -> PortRanges:
        """The ports that the set has anything of."""
        return merged(
            piece
            for position, found in enumerate(self.ports)
            if (mask >> (position * self.count)) & self._all_ways
            for piece in found
        )

    def said(self, mask: int, *, deny: bool) -> list[Said]:
        """The rules that say a set which :meth:`allowed` or :meth:`denied` has made."""
        found: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
        for position in range(len(self.ports)):
            ways = (mask >> (position * self.count)) & self._all_ways
            for conditions in self._conditions(ways, deny=deny):
                found[conditions] = found.get(conditions, 0) | 1 << (position * self.count)
        return [Said(self.ranges_of(ports), *conditions) for conditions, ports in found.items()]

    def _conditions(
        self, ways: int, *, deny: bool
    ) -> Iterable[tuple[tuple[str, ...], tuple[str, ...]]]:
        if ways & 1:
            yield (), ()
            return
        methods: dict[tuple[str, ...], list[str]] = {}
        every = self._highest(ways, 0)
        if deny and every:
            yield (), every
        for kind in range(self._kinds):
            paths = self._highest(ways, kind)
            if deny:
                paths = tuple(path for path in paths if not path.startswith(every or ("?",)))
            if paths and not (deny and not kind):
                methods.setdefault(paths, []).extend(self._listed(kind, deny=deny))
        for paths, listed in methods.items():
            if len(methods) == 1 and paths != (EVERY_PATH,) and self._is_every(ways, paths):
                yield (), paths
            elif listed:
                yield _in_order(listed), () if paths == (EVERY_PATH,) else paths

    def _is_every(self, ways: int, paths: tuple[str, ...]) -> bool:
        """Whether these paths may be asked for by every method, so that no method need be named."""
        return not _NEVER_SENT & {*self.methods} and all(
            self._highest(ways, kind) == paths for kind in range(self._kinds)
        )

    def _highest(self, ways: int, kind: int) -> tuple[str, ...]:
        """The paths with this method, without those that lie below another of them."""
        found = [
            path for at, path in enumerate(self.paths) if ways >> (1 + at * self._kinds + kind) & 1
        ]
        return tuple(
            path
            for path in found
            if not any(path != other and path.startswith(other) for other in found)
        )

    def _listed(self, kind: int, *, deny: bool) -> Iterable[str]:
        if kind:
            method = self.methods[kind - 1]
            return (method,) if deny or method not in _NEVER_SENT else ()
        return (method for method in USUAL_METHODS if method not in self.methods)


def _in_order(methods: Iterable[str]) -> tuple[str, ...]:
    """The usual ones first, in their usual order."""
    usual = {method: position for position, method in enumerate(USUAL_METHODS)}
    return tuple(sorted(methods, key=lambda method: (usual.get(method, len(usual)), method)))
