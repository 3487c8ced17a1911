"""Names with dead or slow addresses, on a network of their own: through the proxy it takes no longer than without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import StartProxy
from tests.support.certificates import Authority
from tests.support.clients import need
from tests.support.curl_times import fetch
from tests.support.dns import Answer, NameServer
from tests.support.edges import at_rest
from tests.support.namespaces import (
    BLACK_HOLE,
    BLACK_HOLE_6,
    NETWORKS,
    NO_ROUTE_6,
    SLOW_6,
    THERE,
    THERE_6,
    Network,
    long_wire,
    need_namespaces,
    network,
)
from tests.support.origin import Origin
from tests.support.proxy import Proxy, rule

pytestmark = pytest.mark.e2e

#: Seconds that the proxy may need beyond what curl needs by itself. Of these, 0.05 are what its stagger (RFC 8305 §8)
#: is longer than curl's; the rest is for a busy machine. Without a race it would be four.
SLACK = 0.5
#: ``dial.stagger``.
STAGGER = 0.25
ALLOW = [rule("origin.test", allow_private=NETWORKS)]


@pytest.fixture(autouse=True)
def net() -> Iterator[Network]:
    """The test, the proxy and curl are on one machine; the origins on another."""
    need("curl")
    need_namespaces()
    with network() as made, made.here.entered():
        yield made


@pytest.fixture
def far(net: Network, authority: Authority) -> Iterator[Origin]:
    """An origin on every address of the other machine."""
    with net.there.entered():
        origin = Origin(authority.server_context(), host="::")
    yield origin
    origin.close()


def through(proxy: Proxy, origin: Origin, count: int = 1) -> tuple[float, dict[str, Any]]:
    """Seconds to the first byte through the proxy, and its line: of the request with this number."""
    timed = fetch(origin.http, proxy=proxy.url)
    assert (timed.exit, timed.status) == (0, 200)
    return timed.first_byte, proxy.wait_for_lines(count, event="ALLOWED")[-1]


def alone(origin: Origin, *addresses: str) -> float:
    timed = fetch(origin.http, addresses=addresses)
    assert (timed.exit, timed.status) == (0, 200)
    return timed.first_byte


def test_both_families_are_well(
    start_proxy: StartProxy, name_server: NameServer, far: Origin
) -> None:
    name_server.set("origin.test", Answer((THERE_6, THERE)))
    seconds, line = through(start_proxy(allow=ALLOW), far)
    assert line["address"] == THERE_6
    assert "attempts" not in line
    assert seconds <= alone(far, THERE_6, THERE) + SLACK


def test_no_route_for_ipv6(start_proxy: StartProxy, name_server: NameServer, far: Origin) -> None:
    name_server.set("origin.test", Answer((NO_ROUTE_6, THERE)))
    seconds, line = through(start_proxy(allow=ALLOW, dial={"stagger": "10s"}), far)
    assert line["address"] == THERE
    assert line["failed"] == [f"{NO_ROUTE_6} destination_unreachable"]
    assert seconds <= alone(far, NO_ROUTE_6, THERE) + SLACK


def test_ipv6_into_a_black_hole(
    start_proxy: StartProxy, name_server: NameServer, far: Origin
) -> None:
    """And the next request begins with what answered."""
    name_server.set("origin.test", Answer((BLACK_HOLE_6, THERE)))
    proxy = start_proxy(allow=ALLOW, limits={"idle_origins": 0})
    first, line = through(proxy, far)
    assert (line["address"], line["attempts"]) == (THERE, 2)
    assert STAGGER - 0.01 <= first <= alone(far, BLACK_HOLE_6, THERE) + SLACK
    _, line = through(proxy, far, 2)
    assert line["address"] == THERE
    assert "attempts" not in line
    at_rest(proxy)


def test_the_first_of_one_family_into_a_black_hole(
    start_proxy: StartProxy, name_server: NameServer, far: Origin
) -> None:
    name_server.set("origin.test", Answer((BLACK_HOLE, THERE)))
    # Each request dials: none takes the connection of the one before.
    proxy = start_proxy(allow=ALLOW, dial={"failure_memory": "0s"}, limits={"idle_origins": 0})
    attempts = set()
    # The addresses of a family take turns at being the first.
    for count in range(1, 5):
        seconds, line = through(proxy, far, count)
        attempts.add(line.get("attempts"))
        assert line["address"] == THERE
        assert seconds < STAGGER + SLACK
    assert 2 in attempts


@pytest.mark.parametrize(
    ("round_trip", "stagger", "address"),
    [(0.1, "2s", SLOW_6), (0.5, "250ms", THERE)],
    ids=["in time", "too slow"],
)
def test_a_long_way_for_ipv6(
    start_proxy: StartProxy,
    name_server: NameServer,
    far: Origin,
    net: Network,
    round_trip: float,
    stagger: str,
    address: str,
) -> None:
    name_server.set("origin.test", Answer((SLOW_6, THERE)))
    proxy = start_proxy(allow=ALLOW, dial={"stagger": stagger})
    with long_wire(net, round_trip / 2):
        seconds, line = through(proxy, far)
        assert line["address"] == address
        assert seconds <= alone(far, SLOW_6, THERE) + SLACK


def test_everything_into_a_black_hole(
    start_proxy: StartProxy, name_server: NameServer, far: Origin
) -> None:
    name_server.set("origin.test", Answer((BLACK_HOLE_6, BLACK_HOLE)))
    timeouts = {"connect": "800ms", "connect_attempt": "400ms"}
    proxy = start_proxy(allow=ALLOW, timeouts=timeouts)
    timed = fetch(far.http, proxy=proxy.url)
    assert timed.status == 504
    # The second begins a stagger after the first. Deadlines are looked at ten times a second.
    assert STAGGER + 0.4 <= timed.first_byte < STAGGER + 0.4 + 0.1 + SLACK
    line = proxy.wait_for_line(event="FAILED")
    assert line["failed"] == [
        f"{BLACK_HOLE_6} connection_timeout",
        f"{BLACK_HOLE} connection_timeout",
    ]
    at_rest(proxy)
