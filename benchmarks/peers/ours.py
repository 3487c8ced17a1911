"""egress-proxy itself, with every feature that is on by default."""

import sys
from importlib.metadata import version
from importlib.util import find_spec

from benchmarks.peers.peer import ORIGIN_HOST, Peer, Site

CONFIG = """\
version: 1
listen: {{proxy: "127.0.0.1:{proxy_port}", admin: "127.0.0.1:{admin_port}"}}
dns: {{hosts_file: "{hosts_file}"}}
policies:
  - name: bench
    allow:
      - {{host: {host}, ports: [{origin_port}], allow_private: [127.0.0.0/8]}}
"""


class Ours(Peer):
    name = "ours"
    config = CONFIG

    def missing(self) -> str:
        return "" if find_spec("egress_proxy") else "egress_proxy is not installed: make bench"

    def version(self) -> str:
        return version("egress-proxy")

    def command(self, site: Site) -> list[str]:
        config = site.directory / "egress-proxy.yaml"
        config.write_text(
            self.config.format(
                proxy_port=site.proxy_port,
                admin_port=site.admin_port,
                origin_port=site.origin_port,
                hosts_file=site.hosts_file,
                host=ORIGIN_HOST,
            )
        )
        return [sys.executable, "-m", "egress_proxy", "serve", "--config", str(config)]
