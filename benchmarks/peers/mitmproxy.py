"""mitmproxy without its interception: an addon of ours as the allow-list and the log, TLS passed through."""

from types import MappingProxyType

from benchmarks.peers import environment
from benchmarks.peers.hosts import why_impossible, with_hosts
from benchmarks.peers.peer import ORIGIN_HOST, SLOW, Peer, Site


class Mitmproxy(Peer):
    name = "mitmproxy"
    cannot = MappingProxyType({"growth": SLOW})
    share = 0.1

    def missing(self) -> str:
        return why_impossible() if environment.executable("mitmdump") else environment.ABSENT

    def version(self) -> str:
        return environment.version("mitmproxy")

    def command(self, site: Site) -> list[str]:
        environ = [
            "env",
            "PYTHONDONTWRITEBYTECODE=1",
            f"ALLOWED={ORIGIN_HOST}:{site.origin_port}",
            f"ACCESS_LOG={site.log}",
        ]
        mitmdump = [environment.executable("mitmdump"), "--quiet"]
        mitmdump += ["--listen-host", "127.0.0.1", "--listen-port", str(site.proxy_port)]
        mitmdump += ["--ignore-hosts", ".*"]
        settings = {"confdir": str(site.directory / "confdir"), "flow_detail": "0"}
        for setting, value in settings.items():
            mitmdump += ["--set", f"{setting}={value}"]
        mitmdump += ["--scripts", str(environment.addon("mitmproxy_allow.py"))]
        return with_hosts(site, [*environ, *mitmdump])
