"""What the harness must know of a proxy in order to run it."""

import socket
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

ORIGIN_HOST = "origin.test"
DENIED_HOST = "denied.test"


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
    speaks_http: bool = True  # takes absolute-form requests too, not only CONNECT

    @abstractmethod
    def missing(self) -> str:
        """Why it cannot run here, or nothing."""

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def command(self, site: Site) -> list[str]:
        """Writes the configuration and says what to run: in the foreground, as this user."""

    def ready(self, site: Site) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", site.proxy_port), timeout=1):
                return True
        except OSError:
            time.sleep(0.02)
            return False
