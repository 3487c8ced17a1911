"""What other proxies said of the client and of themselves is checked in time that its length explains."""

from __future__ import annotations

import time

import pytest

from egress_proxy.core.hops import proxy_status_lines, without_open_ends

LONG = 60_000


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"a" * LONG, id="a name"),
        pytest.param(b"a=b;" * (LONG // 4), id="pairs"),
        pytest.param(b"a=b," * (LONG // 4), id="elements"),
        pytest.param(b'a="' + b"b" * LONG, id="an open string"),
        pytest.param(b'a="' + b"\\\\" * (LONG // 2), id="backslashes"),
        pytest.param(b"a=b" + b" " * LONG + b"c", id="spaces"),
        pytest.param(b"a=b" + b" ;" * (LONG // 2), id="semicolons"),
        pytest.param(b"a; b=" + b"1" * LONG, id="a number"),
        pytest.param(b"a; b=" + b":" * LONG, id="colons"),
        pytest.param(b"a" + b"; b" * (LONG // 3) + b" ", id="parameters"),
        pytest.param(b"a, " * (LONG // 3), id="members"),
    ],
)
def test_no_value_costs_more_than_its_length(value: bytes) -> None:
    start = time.process_time()
    assert without_open_ends([(b"forwarded", b"Forwarded", value)]) == []
    assert proxy_status_lines([(b"proxy-status", b"Proxy-Status", value)], 200) in {
        b"",
        # A long token is one all the same.
        b"Proxy-Status: %b\r\nProxy-Status: egress-proxy; received-status=200\r\n" % value,
    }
    assert time.process_time() - start < 0.5
