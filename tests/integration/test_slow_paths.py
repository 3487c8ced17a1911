"""What is slow or stuck beside the traffic does not hold it up: all of it at once."""

from __future__ import annotations

import contextlib
import select
import signal
from typing import Any

from tests.conftest import StartProxy
from tests.support.client import RawClient
from tests.support.dns import SILENCE, NameServer
from tests.support.origin import Origin
from tests.support.proxy import configuration, rule, write
from tests.support.tools import wait_until

#: Requests whose lines fill a pipe that nobody reads (64 KiB), then the queue before it.
MANY = 900
#: Rules of a configuration that takes a moment to load.
RULES = 3000


def test_requests_go_on(start_proxy: StartProxy, origin: Origin, name_server: NameServer) -> None:
    name_server.set("silence.test", SILENCE)
    keys: dict[str, Any] = {
        "audit": {"queue_lines": 200},
        "dns": {"timeout": "60s"},
        "drain_timeout": "500ms",
        "limits": {"connections_per_client": 2000},
    }
    allow = [rule("origin.test"), rule("silence.test")]
    proxy = start_proxy(options={"read_stdout": False}, allow=allow, **keys)
    url = f"http://origin.test:{origin.http}/"
    with contextlib.ExitStack() as stack:
        # A scraper that asks, and asks, and does not read.
        scraper = stack.enter_context(RawClient(proxy.admin, receive_buffer=4096))
        scraper.send(f"GET /metrics HTTP/1.1\r\nHost: {proxy.admin}\r\n\r\n" * 200)
        # A name whose server says nothing.
        waiting = stack.enter_context(proxy.client())
        waiting.send("CONNECT silence.test:443 HTTP/1.1\r\nHost: silence.test:443\r\n\r\n")
        client = stack.enter_context(proxy.client())
        for number in range(MANY):
            if number == MANY // 2:
                # A reload, while stdout is stuck and scrapes go on.
                hosts = [f"host{each}.test" for each in range(RULES)]
                more = configuration(name_server=name_server.address, allow=allow + hosts, **keys)
                write(proxy.config, more)
                proxy.signal(signal.SIGHUP)
            assert client.get("http://denied.test/").status == 403
            if number % 100 == 0:
                assert client.get(url).status == 200
                # Whoever reads is answered, too.
                assert proxy.ask_admin("/readyz").status == 200
        proxy.wait_for_event("policy_reloaded", seconds=20)
        assert client.get(url).status == 200
        wait_until(
            lambda: proxy.metrics()["egress_proxy_audit_lines_dropped_total"] > 0,
            what=lambda: f"dropped lines in {proxy.metrics()}",
        )
        assert not select.select([waiting.socket], [], [], 0)[0], "the name was not slow at all"
        served = [
            count
            for name, count in proxy.metrics().items()
            if name.startswith("egress_proxy_requests_total") and "denied" in name
        ]
        assert served == [MANY]
        # Far more than it should be, for machines that are busy with other things.
        assert proxy.metrics()["egress_proxy_event_loop_lag_seconds"] < 5
        proxy.signal(signal.SIGTERM)
        assert proxy.wait(20) == 0
