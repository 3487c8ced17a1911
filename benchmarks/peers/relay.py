"""The floor: a small C program of ours that does nothing a tunnel could do without."""

from types import MappingProxyType

from benchmarks.peers.peer import ORIGIN_HOST, Peer, Site


class Relay(Peer):
    name = "relay"
    cannot = MappingProxyType(dict.fromkeys(("get", "wrk"), "it knows CONNECT alone"))

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return "benchmarks/c/relay.c"

    def command(self, site: Site) -> list[str]:
        return [
            str(site.relay),
            str(site.proxy_port),
            ORIGIN_HOST,
            str(site.origin_port),
            str(site.log),
        ]
