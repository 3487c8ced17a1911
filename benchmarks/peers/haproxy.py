"""HAProxy, which has no forward proxy: a TCP relay and an HTTP reverse proxy in front of one fixed origin.

So for tunnels there is no CONNECT, no allow-list and no name to look up, and its figures flatter it. Requests go to an
HTTP listener, which denies what the allow-list doesn't have, CONNECT included. Splicing is told and not left to
`splice-auto`, with which it seldom does, and takes twice as long for bytes.
"""

import os
import shutil

from benchmarks.machine import descriptor_limit, first_line
from benchmarks.peers.peer import ORIGIN_HOST, Peer, Site

CONFIG = """\
global
    nbthread 1
    maxconn {connections}
    maxpipes {pipes}
    log stdout format raw daemon
defaults
    log global
    option splice-request
    option splice-response
    timeout connect 10s
    timeout client 10m
    timeout server 10m
listen relay
    bind 127.0.0.1:{proxy_port}
    mode tcp
    option tcplog
    server origin 127.0.0.1:{origin_port}
listen requests
    bind 127.0.0.1:{admin_port}
    mode http
    option httplog
    acl allowed url_beg -i http://{host}:{origin_port}/
    http-request deny unless allowed
    server origin 127.0.0.1:{origin_port}
"""


PIPES = 200  # to splice through; each takes two descriptors


class Haproxy(Peer):
    name = "haproxy"
    takes_connect = False

    def missing(self) -> str:
        return "" if self._path() else "not installed: apt-get install haproxy"

    def version(self) -> str:
        return first_line(self._path(), "-v").removeprefix("HAProxy version ").partition(" ")[0]

    def command(self, site: Site) -> list[str]:
        config = site.directory / "haproxy.cfg"
        config.write_text(
            CONFIG.format(
                proxy_port=site.proxy_port,
                admin_port=site.admin_port,
                origin_port=site.origin_port,
                host=ORIGIN_HOST,
                connections=descriptor_limit() // 2 - 2 * PIPES,
                pipes=PIPES,
            )
        )
        return [self._path(), "-db", "-f", str(config)]

    def port(self, site: Site, *, http: bool) -> int:
        return site.admin_port if http else site.proxy_port

    def _path(self) -> str:
        return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
