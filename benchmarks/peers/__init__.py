"""The proxies that are compared. Each is one small module; PEERS has the order of the table."""

from benchmarks.peers.envoy import Envoy
from benchmarks.peers.haproxy import Haproxy
from benchmarks.peers.mitmproxy import Mitmproxy
from benchmarks.peers.ours import Ours
from benchmarks.peers.peer import DENIED_HOST, ORIGIN_HOST, Peer, Site
from benchmarks.peers.proxy_py import ProxyPy
from benchmarks.peers.relay import Relay
from benchmarks.peers.squid import Squid
from benchmarks.peers.tinyproxy import Tinyproxy

__all__ = ["DENIED_HOST", "ORIGIN_HOST", "PEERS", "Peer", "Site"]

PEERS: tuple[Peer, ...] = (
    Ours(),
    Relay(),
    Squid(),
    Envoy(),
    Haproxy(),
    Tinyproxy(),
    ProxyPy(),
    Mitmproxy(),
)
