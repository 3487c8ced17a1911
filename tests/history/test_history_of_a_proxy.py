"""The log of a real proxy: what it refused is suggested, let through, and shown by a replay."""

from __future__ import annotations

from pathlib import Path

import pytest

from egress_proxy.config.load import load
from egress_proxy.history.logs import open_log
from egress_proxy.history.replay import Kind, replay
from egress_proxy.history.suggest import as_text, suggest
from tests.conftest import StartProxy
from tests.history.patching import apply_diff
from tests.support.dns import NameServer
from tests.support.origin import Origin
from tests.support.proxy import Proxy, rule

pytestmark = pytest.mark.e2e

DENIED_PORT = 7


def ask(proxy: Proxy, request: str) -> int:
    with proxy.client() as client:
        client.send(f"{request}\r\n\r\n".encode())
        return client.response(request.partition(" ")[0]).status


def test_what_was_refused_is_let_through(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer, tmp_path: Path
) -> None:
    proxy = start_proxy(allow=[rule("origin.test", ports=[origin.http])], deny=["bad.test"])
    requests = {
        f"CONNECT other.test:{origin.http} HTTP/1.1\r\nHost: other.test:{origin.http}": 403,
        f"GET http://origin.test:{DENIED_PORT}/?q HTTP/1.1\r\nHost: origin.test:{DENIED_PORT}": 403,
        "CONNECT bad.test:443 HTTP/1.1\r\nHost: bad.test:443": 403,
        f"GET http://origin.test:{origin.http}/ HTTP/1.1\r\nHost: origin.test:{origin.http}": 200,
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b": 400,
    }
    for request, status in requests.items():
        assert ask(proxy, request) == status
    proxy.wait_for_lines(4, event="DENIED")
    proxy.wait_for_line(event="ALLOWED")
    log = tmp_path / "log"
    log.write_text(
        "".join(f"[pod/egress-proxy-0/proxy] {line}\n" for line in proxy.stdout.splitlines())
    )

    with open_log(str(log)) as lines:
        found = suggest(str(proxy.config), lines)
    assert found.unverified is None
    assert [(each.destination, each.reason) for each in found.not_lifted] == [
        ("bad.test:443", "deny_rule")
    ]
    assert [rule.rule for addition in found.additions for rule in addition.rules] == [
        [f"{{host: origin.test, ports: [{DENIED_PORT}]}}"],
        [f"{{host: other.test, ports: [{origin.http}]}}"],
    ]
    assert found.log.messages() == ["1 line left out: refused as malformed"]
    apply_diff(as_text(found), Path(found.apply_in))

    with open_log(str(log)) as lines:
        again = replay(load(str(proxy.config)).config.policy, lines)
    assert [(change.kind, change.destination) for change in again.changes] == [
        (Kind.NEWLY_ALLOWED, f"origin.test:{DENIED_PORT}"),
        (Kind.NEWLY_ALLOWED, f"other.test:{origin.http}"),
    ]
    assert (again.requests, again.same) == (4, 2)

    proxy.wait_for_event("policy_reloaded")
    refused = f"CONNECT other.test:{origin.http} HTTP/1.1\r\nHost: other.test:{origin.http}"
    # The rule is there; the address behind the name is the machine's own, which a person has to open.
    assert ask(proxy, refused) == 403
    line = proxy.wait_for_line(reason="destination_ip_prohibited")
    assert line["rule"] == "allow other.test"
