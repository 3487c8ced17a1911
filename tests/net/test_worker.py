"""What a process lets in at once: clients by whom they are, and all of them by the descriptors that there are."""

from __future__ import annotations

import asyncio
import resource
from types import SimpleNamespace
from typing import Any

import pytest

from egress_proxy.config.load import parse
from egress_proxy.core import reasons
from egress_proxy.core.http1 import HeadLimits, parse_request
from egress_proxy.identity.credentials import Refused
from egress_proxy.net import worker as module
from egress_proxy.net.client import Client, Heads
from egress_proxy.net.client_key import client_key
from egress_proxy.net.dialer import MAX_BESIDE
from egress_proxy.net.poller import Poller, Strand
from egress_proxy.net.session import _who_asks
from egress_proxy.net.worker import Worker

CONFIG = """
version: 1
policies: [{name: all, allow: ["*"]}]
limits: {connections: %d, connections_per_client: 3}
"""


@pytest.fixture
async def make_worker() -> Any:
    poller = Poller(asyncio.get_running_loop())

    def make(connections: int = 1000) -> Worker:
        config = parse((CONFIG % connections).encode(), "test.yaml").config
        metrics: Any = SimpleNamespace(connections_active=0, origins_idle=0)
        limiter: Any = SimpleNamespace(adopt=lambda _: None)
        nobody: Any = None
        return Worker(poller, nobody, nobody, metrics, limiter, config)

    yield make
    poller.shut()


# By client --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        # One machine, however often it chooses another address.
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("2001:db8::1", "2001:db8:1::1", False),
        ("fd00:1:2:3::1", "fd00:1:2:3:9::", True),
        # IPv4 in its three spellings.
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("64:ff9b::c000:201", "192.0.2.1", True),
        ("64:ff9b::c000:201", "64:ff9b::c000:202", False),
        # All on a link have the same /64.
        ("fe80::1%eth0", "fe80::1%eth0", True),
        ("fe80::1%eth0", "fe80::2%eth0", False),
        ("fe80::1%eth0", "fe80::1%eth1", False),
        ("febf::1", "febf::2", False),
        ("fec0::1", "fec0::2", True),
        ("2001:db8::1%eth0", "2001:db8::2", True),
        ("::1", "127.0.0.1", False),
    ],
)
def test_whose_connection_it_is(one: str, other: str, same: bool) -> None:
    assert (client_key(one) == client_key(other)) is same


async def test_a_client_with_many_addresses_is_one_client(make_worker: Any) -> None:
    """The attack: each connection from another address of the attacker's own network."""
    worker = make_worker()
    clients: list[str] = []
    for number in range(3):
        address = f"2001:db8::{number:x}"
        assert worker.admits(address) is None
        clients.append(client_key(address))
        worker.open(clients[-1])
    assert worker.admits("2001:db8::4444") is reasons.CLIENT_CONNECTIONS
    assert worker.admits("2001:db8:0:1::1") is None
    worker.poller.close = lambda _: None
    worker.close(-1, clients.pop())
    assert worker.admits("2001:db8::4444") is None
    for client in clients:
        worker.close(-1, client)
    assert worker._clients == {}


async def test_guesses_of_one_network_wait_in_one_queue() -> None:
    """The attack: each guess from another address, so that each has a queue of its own."""
    asked: list[str] = []

    class Checks:
        def known(self, _value: bytes, _now: float) -> None:
            return None

        def check(self, _value: bytes, client: str) -> asyncio.Future[Refused]:
            asked.append(client)
            verdict: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()
            verdict.set_result(Refused.WRONG)
            return verdict

    poller = Poller(asyncio.get_running_loop())
    worker: Any = SimpleNamespace(credentials=Checks(), poller=poller)
    settings: Any = SimpleNamespace(required=True)
    head = b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nProxy-Authorization: Basic eA==\r\n\r\n"
    for address in ("2001:db8::1", "2001:db8::2", "192.0.2.1"):
        client = Client(Strand(poller), -1, address, Heads())
        asking = _who_asks(worker, client, settings, parse_request(head, HeadLimits(4096, 20)))
        assert (await asking)[1] is reasons.PROXY_CREDENTIALS_WRONG
    poller.shut()
    assert asked == ["2001:db8::/64", "2001:db8::/64", "192.0.2.1"]


# By descriptors ---------------------------------------------------------------------------------


@pytest.fixture(params=[512, 1024, 4096, 20_000, 65_536, 1_048_576])
def descriptors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (request.param, request.param))
    count: int = request.param
    return count


async def test_all_that_takes_descriptors_together_has_no_more_than_there_are(
    make_worker: Any, descriptors: int
) -> None:
    """Clients and their origins, connections that wait, attempts beside a first one, and the rest."""
    worker = make_worker(1_000_000)
    idle, beside = worker.pool._most, worker.dialer.most_beside
    assert 0 < beside <= MAX_BESIDE
    together = 2 * worker.max_connections + idle + beside + module._OTHER_DESCRIPTORS
    assert together <= descriptors
    # And none is wasted.
    assert together >= descriptors - 1
    assert worker.max_per_client <= 3
