"""tinyproxy: a thread for each connection, a filter file as the allow-list."""

import shutil
from types import MappingProxyType

from benchmarks.machine import descriptor_limit, first_line
from benchmarks.peers.hosts import why_impossible, with_hosts
from benchmarks.peers.peer import ORIGIN_HOST, SLOW, Peer, Site

CONFIG = """\
Listen 127.0.0.1
Port {proxy_port}
LogFile "{log}"
LogLevel Connect
MaxClients {clients}
Timeout 600
DisableViaHeader Yes
Filter "{directory}/allowed"
FilterDefaultDeny Yes
FilterExtended Yes
ConnectPort {origin_port}
"""


class Tinyproxy(Peer):
    name = "tinyproxy"
    cannot = MappingProxyType(
        {
            "get": "it closes after each answer",
            "wrk": "it closes after each answer",
            "growth": SLOW,
        }
    )
    share = 0.25

    def missing(self) -> str:
        if not shutil.which("tinyproxy"):
            return "not installed: apt-get install tinyproxy-bin"
        return why_impossible()

    def version(self) -> str:
        return first_line("tinyproxy", "-v").removeprefix("tinyproxy ")

    def command(self, site: Site) -> list[str]:
        config = site.directory / "tinyproxy.conf"
        config.write_text(
            CONFIG.format(
                proxy_port=site.proxy_port,
                origin_port=site.origin_port,
                directory=site.directory,
                log=site.log,
                clients=descriptor_limit() // 2,
            )
        )
        allowed = ORIGIN_HOST.replace(".", r"\.")
        (site.directory / "allowed").write_text(f"^{allowed}$\n")
        return with_hosts(site, ["tinyproxy", "-d", "-c", str(config)])
