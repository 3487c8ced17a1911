"""`tls: verify` and Encrypted ClientHello (`tunnels.ech`): the real one, GREASE, and who knows which it is."""

from __future__ import annotations

import base64
import signal
from dataclasses import replace

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.client import RawClient
from tests.support.dns import SERVFAIL, SILENCE, Answer, NameServer
from tests.support.edges import at_rest, wait_for
from tests.support.held import BANNER, HELLO, Keeper, is_refused, opened
from tests.support.hellos import client_hello, ech_config, ech_config_list
from tests.support.proxy import ANY_PORT, Proxy, rule
from tests.support.serving import Server, echo
from tests.support.tools import wait_until

VERIFIED = rule("origin.test", tls="verify")


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve(echo)


def _service(port: int) -> str:
    """Where a server on another port than 443 publishes what it can do (RFC 9460 §9.1)."""
    return f"_{port}._https.origin.test"


def _https(*config_ids: int) -> Answer:
    """HTTPS records as they publish these ECH configurations, for the name {name}."""
    text = ""
    if config_ids:
        configs = ech_config_list(*(ech_config(number) for number in config_ids))
        text = f" ech={base64.b64encode(configs).decode()}"
    return Answer(records=(f"{{name}}. 60 IN HTTPS 1 . alpn=h2{text}",))


def _publish(name_server: NameServer, port: int, answer: Answer) -> None:
    name = _service(port)
    records = tuple(record.format(name=name) for record in answer.records)
    name_server.set(name, replace(answer, records=records), kind="HTTPS")


def _ech(proxy: Proxy, port: int, config_id: int, host: str = "origin.test") -> RawClient:
    return opened(proxy, f"{host}:{port}", b"", client_hello("origin.test", ech=config_id))


def _came_through(client: RawClient) -> bool:
    with client:
        return client.exactly(1) == b"\x16"


def test_ech_is_allowed_by_default(start_proxy: StartProxy, server: Server) -> None:
    """The outer name is the one that is compared."""
    proxy = start_proxy(allow=[VERIFIED])
    assert _came_through(_ech(proxy, server.port, 7))
    with opened(proxy, f"origin.test:{server.port}", client_hello("public.test", ech=7)) as client:
        is_refused(proxy, client, "sni_mismatch", sni="public.test")
    at_rest(proxy)


def test_ech_is_refused(start_proxy: StartProxy, serve: Serve, name_server: NameServer) -> None:
    """Nobody is asked whether it is real."""
    keeper = Keeper()
    server = serve(keeper)
    proxy = start_proxy(allow=[VERIFIED], tunnels={"ech": "refuse"})
    with _ech(proxy, server.port, 7) as client:
        is_refused(proxy, client, "ech_not_allowed", sni="origin.test")
    with opened(proxy, f"origin.test:{server.port}", client_hello("other.test", ech=7)) as client:
        is_refused(proxy, client, "sni_mismatch", sni="other.test")
    keeper.got_nothing()
    assert not name_server.asked("origin.test", "HTTPS")
    assert _came_through(opened(proxy, f"origin.test:{serve(echo).port}", HELLO))
    at_rest(proxy)


def test_grease_passes_and_the_real_one_does_not(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    keeper = Keeper(echo=True)
    server = serve(keeper)
    _publish(name_server, server.port, _https(7, 9))
    proxy = start_proxy(allow=[VERIFIED], tunnels={"ech": "grease"})
    for count, config_id in enumerate([7, 9, 7], 1):
        with _ech(proxy, server.port, config_id) as client:
            is_refused(proxy, client, "ech_not_allowed", count=count, sni="origin.test")
    keeper.got_nothing()
    for config_id in (0, 8, 255):
        assert _came_through(_ech(proxy, server.port, config_id))
    assert name_server.asked(_service(server.port), "HTTPS") == 1
    at_rest(proxy)


@pytest.mark.parametrize(
    "answer", [_https(), Answer(), Answer(rcode="NXDOMAIN")], ids=["no ech", "no record", "no name"]
)
def test_where_nothing_is_published_it_can_only_be_grease(
    start_proxy: StartProxy, server: Server, name_server: NameServer, answer: Answer
) -> None:
    _publish(name_server, server.port, answer)
    proxy = start_proxy(allow=[VERIFIED], tunnels={"ech": "grease"})
    assert _came_through(_ech(proxy, server.port, 7))
    at_rest(proxy)


#: An ECHConfig that ends too soon.
_BROKEN = base64.b64encode(ech_config_list(ech_config(9)[:-3])).decode()


@pytest.mark.parametrize(
    "answer",
    [
        SERVFAIL,
        SILENCE,
        Answer(rcode="REFUSED"),
        Answer(records=(f"{{name}}. 60 IN HTTPS 1 . ech={_BROKEN}",)),
    ],
    ids=["failure", "silence", "refusal", "no such configuration"],
)
def test_where_nobody_knows_it_is_refused(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer, answer: Answer
) -> None:
    keeper = Keeper()
    server = serve(keeper)
    _publish(name_server, server.port, answer)
    proxy = start_proxy(
        allow=[VERIFIED], tunnels={"ech": "grease"}, dns={"timeout": "300ms", "tries": 1}
    )
    with _ech(proxy, server.port, 7) as client:
        is_refused(proxy, client, "ech_not_allowed")
    keeper.got_nothing()
    at_rest(proxy)


def test_an_address_publishes_nothing(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer
) -> None:
    """So that nothing tells the real one from GREASE; and whoever asks for an address has no name to hide."""
    keeper = Keeper()
    server = serve(keeper)
    network = {"cidr": "127.0.0.0/8", "ports": ANY_PORT}
    proxy = start_proxy(allow=[network], tunnels={"ech": "grease"})
    with opened(proxy, f"127.0.0.1:{server.port}", client_hello(None, ech=7)) as client:
        is_refused(proxy, client, "ech_not_allowed")
    keeper.got_nothing()
    assert not any(query.kind == "HTTPS" for query in name_server.queries)
    at_rest(proxy)


@pytest.mark.parametrize("what", ["end", "reset", "banner", "drain"])
def test_what_happens_while_it_is_asked(
    start_proxy: StartProxy, serve: Serve, name_server: NameServer, what: str
) -> None:
    """Edges that nobody waits for then are not lost."""
    keeper = Keeper(greeting=BANNER if what == "banner" else b"", echo=True)
    keeper.greets.clear()
    if what != "banner":
        keeper.greets.set()
    proxy = start_proxy(
        allow=[VERIFIED], tunnels={"ech": "grease"}, dns={"timeout": "3s"}, drain_timeout="100ms"
    )
    server = serve(keeper)
    _publish(name_server, server.port, replace(_https(9), delay=0.5))
    with _ech(proxy, server.port, 7) as client:
        wait_until(lambda: name_server.asked(_service(server.port), "HTTPS"), what="a question")
        wait_for(keeper.said, 1)
        hello = client_hello("origin.test", ech=7)
        match what:
            case "end":
                behind = b"\x17\3\3\0\6behind"
                client.send(behind)
                client.eof()
                assert client.rest() == hello + behind
            case "reset":
                client.reset()
                line = proxy.wait_for_line(host="origin.test")
                assert line["event"] in {"ALLOWED", "FAILED"}
            case "banner":
                keeper.greets.set()
                assert client.exactly(len(BANNER + hello)) == BANNER + hello
            case _:
                proxy.signal(signal.SIGTERM)
                assert client.is_closed()
                assert proxy.wait() == 0
                (line,) = proxy.lines
                assert (line["event"], line["reason"]) == ("CLOSED", "drain_timeout")
                keeper.got_nothing()
                return
    at_rest(proxy)


def test_audit_mode_tells_of_ech(start_proxy: StartProxy, server: Server) -> None:
    proxy = start_proxy(mode="audit", allow=[VERIFIED], tunnels={"ech": "refuse"})
    assert _came_through(_ech(proxy, server.port, 7))
    proxy.wait_for_line(event="WOULD_DENY", reason="ech_not_allowed")
    at_rest(proxy)
