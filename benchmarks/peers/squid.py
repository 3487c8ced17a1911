"""Squid with one worker, without a cache and without what only a cache needs."""

import os
import shutil

from benchmarks.machine import descriptor_limit, first_line
from benchmarks.peers.peer import ORIGIN_HOST, Peer, Site

CONFIG = """\
http_port 127.0.0.1:{proxy_port}
visible_hostname squid.test
hosts_file {hosts_file}
acl allowed dstdomain "{directory}/allowed"
acl Safe_ports port {origin_port}
http_access deny !Safe_ports
http_access allow allowed
http_access deny all

access_log stdio:{log}
buffered_logs on
cache_log {directory}/cache.log
cache_store_log none
logfile_rotate 0

cache deny all
cache_mem 0
memory_cache_shared off
pinger_enable off
client_db off
icp_port 0
digest_generation off
via off
forwarded_for delete
half_closed_clients off

max_filedescriptors {descriptors}
pid_filename {directory}/squid.pid
coredump_dir {directory}
shutdown_lifetime 0 seconds
"""


USER = "nobody"


class Squid(Peer):
    name = "squid"

    def missing(self) -> str:
        return "" if self._path() else "not installed: apt-get install squid"

    def version(self) -> str:
        return first_line(self._path(), "-v").removeprefix("Squid Cache: Version ")

    def command(self, site: Site) -> list[str]:
        config = CONFIG.format(
            proxy_port=site.proxy_port,
            origin_port=site.origin_port,
            hosts_file=site.hosts_file,
            directory=site.directory,
            log=site.log,
            descriptors=descriptor_limit(),
        )
        if os.geteuid() == 0:  # which Squid refuses to stay
            config += f"cache_effective_user {USER}\n"
            for path in (site.directory, site.log):
                shutil.chown(path, USER)
            site.directory.parent.chmod(0o711)
        file = site.directory / "squid.conf"
        file.write_text(config)
        (site.directory / "allowed").write_text(ORIGIN_HOST + "\n")
        return [self._path(), "-N", "-n", f"bench{site.proxy_port}", "-f", str(file)]

    def _path(self) -> str:
        return shutil.which("squid", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
