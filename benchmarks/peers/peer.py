"""What the harness must know of a proxy in order to run it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ORIGIN_HOST = "origin.test"
DENIED_HOST = "denied.test"
#: Why a peer has no figure among 8,500 tunnels.
SLOW = "it would take minutes to open 8,500"
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Site:
    """Where one run of a proxy takes place."""

    directory: Path  # empty, its own
    proxy_port: int
    admin_port: int
    origin_port: int
    hosts_file: Path  # /etc/hosts format: ORIGIN_HOST at 127.0.0.1
    relay: Path  # the compiled floor

    @property
    def log(self) -> Path:
        """A line for each request is written here, standard output included."""
        return self.directory / "access.log"


class Peer(ABC):
    """Allows ORIGIN_HOST at the origin's port, denies all else, logs a line for each request."""

    name: str
    #: What it cannot do, by the group of the figure (what `--only` knows it by), and why.
    cannot: Mapping[str, str] = NOTHING
    #: False: a fixed relay. No CONNECT is sent; what a tunnel would carry goes to it as it is.
    takes_connect: bool = True
    #: Of the usual number of operations: so that what is slow does not take all the time.
    share: float = 1.0

    @abstractmethod
    def missing(self) -> str:
        """Why it cannot run here, or nothing."""

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def command(self, site: Site) -> list[str]:
        """Writes the configuration and says what to run: in the foreground, as this user."""

    def port(self, site: Site, *, http: bool) -> int:
        """Where it listens, for requests that it reads (`http`) or for tunnels."""
        return site.proxy_port
