"""Squid's rules as a small program reads them: in order, one request at a time. Nothing is shared with the importer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network


@dataclass(frozen=True)
class Request:
    client: str
    method: str
    host: str
    port: int
    addresses: tuple[str, ...] = ()
    """Of a name; a literal address is its own."""
    reverse: str = "none"
    """The reverse name of a literal address."""
    path: str = "/"
    """Of a plain request, without anything that is encoded."""

    @property
    def url(self) -> str:
        """As ``url_regex`` sees it."""
        host = self.host.rstrip(".").lower()
        if self.method == "CONNECT":
            return f"{host}:{self.port}"
        return f"http://{host}{'' if self.port == 80 else f':{self.port}'}{self.path}"

    @property
    def literal(self) -> bool:
        try:
            ip_address(self.host.strip("[]"))
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class ModelAcl:
    name: str
    kind: str
    values: tuple[str, ...]

    def line(self) -> str:
        return f"acl {self.name} {self.kind} {' '.join(self.values)}"


@dataclass(frozen=True)
class ModelRule:
    allow: bool
    literals: tuple[tuple[bool, str], ...]
    """Whether negated, and the acl's name."""

    def line(self) -> str:
        words = [("!" if negated else "") + name for negated, name in self.literals]
        return f"http_access {'allow' if self.allow else 'deny'} {' '.join(words)}"


@dataclass(frozen=True)
class Model:
    acls: tuple[ModelAcl, ...]
    rules: tuple[ModelRule, ...]

    def text(self) -> str:
        return (
            "\n".join([acl.line() for acl in self.acls] + [rule.line() for rule in self.rules])
            + "\n"
        )

    def unknown(self) -> list[str]:
        """Acls whose answer the model takes from outside."""
        return sorted({acl.name for acl in self.acls if acl.kind == "time"})

    def allows(self, request: Request, unknown: dict[str, bool]) -> bool:
        for rule in self.rules:
            if all(
                self._matches(name, request, unknown) is not negated
                for negated, name in rule.literals
            ):
                return rule.allow
        return bool(self.rules) and not self.rules[-1].allow

    def _matches(self, name: str, request: Request, unknown: dict[str, bool]) -> bool:
        if name == "all":
            return True
        return any(
            _value_matches(acl, value, request, unknown)
            for acl in self.acls
            if acl.name == name
            for value in acl.values
        )


def _value_matches(acl: ModelAcl, value: str, request: Request, unknown: dict[str, bool]) -> bool:
    host = request.host.strip("[]").rstrip(".").lower()
    match acl.kind:
        case "src":
            return _inside(request.client, value)
        case "dst":
            return any(
                _inside(one, value) for one in ((host,) if request.literal else request.addresses)
            )
        case "dstdomain":
            names = [host, request.reverse] if request.literal else [host]
            return any(_domain(name, value.lower()) for name in names)
        case "port":
            low, _, high = value.partition("-")
            return int(low) <= request.port <= int(high or low)
        case "method":
            return request.method == value
        case "urlpath_regex":
            return request.method != "CONNECT" and re.search(value, request.path) is not None
        case "url_regex":
            return re.search(value, request.url) is not None
        case "time":
            return unknown[acl.name]
    raise AssertionError(acl.kind)


def _inside(address: str, network: str) -> bool:
    low, dash, high = network.partition("-")
    number = ip_address(address)
    if dash:
        return number.version == ip_address(low).version and int(ip_address(low)) <= int(
            number
        ) <= int(ip_address(high))
    return number in ip_network(network)


def _domain(host: str, value: str) -> bool:
    if value.startswith("."):
        return host == value[1:] or host.endswith(value)
    return host == value
