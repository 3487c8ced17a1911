"""Sets of ports and ways to ask, and the rules that can say them."""

from __future__ import annotations

from egress_proxy.migrate.ways import Ways


def test_what_can_be_written() -> None:
    ways = Ways([[(80, 80)], [(443, 443)]], ("GET", "POST"), ("/v1/", "/v1/x/"))
    plain = ways.on_ports([(80, 80)]) & ways.plain
    get = ways.with_method("GET") & ways.with_path("/v1/") & plain
    assert ways.said(ways.allowed(get), deny=False) == [(((80, 80),), ("GET",), ("/v1/",))]
    assert ways.allowed(ways.connect) == ways.every
    assert ways.denied(ways.with_method(None)) == ways.plain
    assert ways.allowed(ways.with_method(None)) == ways.with_method(None)
    assert ways.said(plain, deny=True) == [(((80, 80),), (), ("/",))]
    both = ways.denied((ways.with_method(None) & ways.with_path("/v1/x/")) | get) & plain
    assert ways.said(both, deny=True) == [
        (((80, 80),), (), ("/v1/x/",)),
        (((80, 80),), ("GET",), ("/v1/",)),
    ]
    assert ways.undeniable(get) & ways.connect == ways.ports_of(plain)
    assert ways.undeniable(get) & ways.with_method("POST") == 0
