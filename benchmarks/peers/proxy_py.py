"""proxy.py with one process that works, its threadless mode, and a plugin of ours as the allow-list."""

from types import MappingProxyType

from benchmarks.machine import descriptor_limit
from benchmarks.peers import environment
from benchmarks.peers.hosts import why_impossible, with_hosts
from benchmarks.peers.peer import ORIGIN_HOST, SLOW, Peer, Site


class ProxyPy(Peer):
    name = "proxy.py"
    cannot = MappingProxyType({"growth": SLOW})
    share = 0.25

    def missing(self) -> str:
        return why_impossible() if environment.executable("proxy") else environment.ABSENT

    def version(self) -> str:
        return environment.version("proxy.py")

    def command(self, site: Site) -> list[str]:
        addons = environment.addon("proxy_py_allow.py")
        environ = [
            "env",
            f"PYTHONPATH={addons.parent}",
            "PYTHONDONTWRITEBYTECODE=1",
            f"ALLOWED={ORIGIN_HOST}:{site.origin_port}",
        ]
        options = {
            "--hostname": "127.0.0.1",
            "--port": str(site.proxy_port),
            "--num-acceptors": "1",
            "--num-workers": "1",
            "--timeout": "600",
            "--open-file-limit": str(descriptor_limit()),
            "--plugins": "proxy_py_allow.AllowList",
            "--log-level": "INFO",
            "--log-file": str(site.log),
        }
        proxy = [environment.executable("proxy"), "--threadless"]
        for option, value in options.items():
            proxy += [option, value]
        return with_hosts(site, [*environ, *proxy])
