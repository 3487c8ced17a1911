"""The proxies that are compared. Each is one small module; PEERS has the order of the table."""

from benchmarks.peers.ours import Ours
from benchmarks.peers.peer import DENIED_HOST, ORIGIN_HOST, Peer, Site
from benchmarks.peers.relay import Relay
from benchmarks.peers.squid import Squid

__all__ = ["DENIED_HOST", "ORIGIN_HOST", "PEERS", "Peer", "Site"]

PEERS: tuple[Peer, ...] = (Ours(), Squid(), Relay())
