"""The cluster's own networks and translators: names do not lead there, and tunnels that do are closed by a reload."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from egress_proxy.config.load import parse
from egress_proxy.config.model import Config
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.net import revocation
from egress_proxy.net.poller import Interrupted
from egress_proxy.net.revocation import Permit, reason_to_revoke, revoke
from tests.conftest import StartProxy
from tests.support.dns import Answer, NameServer
from tests.support.origin import Origin
from tests.support.proxy import Proxy, configuration, rule
from tests.support.tools import wait_until

PODS = "11.1.0.0/16"
PREFIX = "2600:1f00:64::/96"
NETWORKS = {"internal": [PODS, "2600:1f00:aaaa::/48"], "nat64": [PREFIX]}


def _why(proxy: Proxy, target: str) -> str:
    """What the gate says about the one address of a name. Nothing is dialled for that."""
    body = json.dumps({"target": target, "client": "198.51.100.1", "resolve": True}).encode()
    head = "Content-Type: application/json\r\n"
    response = proxy.ask_admin("/v1/explain", method="POST", body=body, head=head)
    assert response.status == 200, response.body
    (answer,) = json.loads(response.body)["addresses"]
    why: str = answer["why"]
    return why


# Names.


@pytest.mark.parametrize(
    "address",
    [
        "11.1.2.3",
        "11.1.255.255",
        "2600:1f00:aaaa::1",
        "::ffff:11.1.2.3",
        "64:ff9b::11.1.2.3",
        "2600:1f00:64::11.1.2.3",
        "2600:1f00:64::10.0.0.1",
        "2600:1f00:64::127.0.0.1",
        "2600:1f00:64::169.254.169.254",
        "2600:4700::5efe:11.1.2.3",
    ],
)
def test_a_name_may_not_lead_to_an_internal_address(
    start_proxy: StartProxy, name_server: NameServer, address: str
) -> None:
    """Not even for a rule that opens other networks."""
    allow = [rule("inside.test", allow_private=["127.0.0.0/8", "169.254.169.254", "10.0.0.0/8"])]
    proxy = start_proxy(allow=allow, networks=NETWORKS)
    name_server.set("inside.test", Answer((address,)))
    with proxy.client() as client:
        response = client.connect("inside.test:443")
    assert (response.status, response.error["reason"]) == (403, "destination_ip_prohibited")
    assert proxy.wait_for_line(event="DENIED")["address"]


@pytest.mark.parametrize("target", ["11.1.2.3:443", "0xb010203:443", "[2600:1f00:64::a00:1]:443"])
def test_a_client_may_not_name_an_internal_address(start_proxy: StartProxy, target: str) -> None:
    allow = [{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}, {"cidr": "11.0.0.0/8"}]
    proxy = start_proxy(allow=allow, networks=NETWORKS)
    with proxy.client() as client:
        response = client.connect(target)
    assert (response.status, response.error["reason"]) == (403, "destination_ip_prohibited")


def test_a_denied_network_is_closed_behind_a_translator(
    start_proxy: StartProxy, name_server: NameServer
) -> None:
    name_server.set("denied.test", Answer(("2600:1f00:64::9.9.9.9",)))
    proxy = start_proxy(allow=["denied.test"], deny=[{"cidr": "9.9.9.0/24"}], networks=NETWORKS)
    with proxy.client() as client:
        response = client.connect("denied.test:443")
    assert (response.status, response.error["reason"]) == (403, "destination_ip_prohibited")


# Reloads.


def test_a_reload_makes_a_network_internal(
    start_proxy: StartProxy, origin: Origin, name_server: NameServer
) -> None:
    """For what is decided after it; a tunnel that a rule opens by itself goes on."""
    name_server.set("pod.test", "11.1.2.3")
    allow = [rule("origin.test"), rule("pod.test", allow_private=[])]
    proxy = start_proxy(allow=allow)
    with proxy.client() as client:
        assert client.connect(f"origin.test:{origin.http}").status == 200
        assert _why(proxy, "pod.test") == "public"
        changed = configuration(name_server=name_server.address, allow=allow, networks=NETWORKS)
        proxy.reload(changed)
        wait_until(lambda: proxy.policy()["generation"] == 2, what="generation 2")
        assert _why(proxy, "pod.test") == f"internal ({PODS})"
        with proxy.client() as other:
            assert other.connect("pod.test:443").error["reason"] == "destination_ip_prohibited"
        client.send("GET / HTTP/1.1\r\nHost: origin.test\r\n\r\n")
        assert client.response().status == 200


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the event lines of a process."""
    log = SimpleNamespace(error=pytest.fail, info=lambda event, **_: None)
    monkeypatch.setattr(revocation, "log", log)


class Connection:
    """A tunnel to a pod, which notes how it was ended."""

    def __init__(self, host: str, address: str) -> None:
        self.permit = Permit(
            Identity("198.51.100.1"),
            parse_authority(f"{host}:443".encode(), None),
            address,
            verified=True,
            stamp=None,
        )
        self.reasons: list[str] = []

    def interrupt(self, error: Interrupted) -> None:
        self.reasons.append(error.reason.name)


def _config(networks: dict[str, Any] | None = None, mode: str = "enforce") -> Config:
    policy = {
        "name": "p",
        "allow": [
            "name.test",
            {"host": "pod.test", "allow_private": [PODS]},
            {"cidr": "0.0.0.0/0"},
            {"cidr": "::/0"},
        ],
        "deny": [{"cidr": "9.9.9.9"}],
    }
    document = {"version": 1, "mode": mode, "policies": [policy]}
    if networks:
        document["networks"] = networks
    return parse(json.dumps(document).encode(), "f.yaml").config


@pytest.mark.parametrize(
    ("host", "address", "closed"),
    [
        ("name.test", "11.1.2.3", True),
        ("name.test", "11.2.2.3", False),
        ("name.test", "8.8.8.8", False),
        ("name.test", "2600:1f00:aaaa::1", True),
        ("name.test", "64:ff9b::b01:203", True),
        # The dialled address was ordinary, as long as nobody knew the translator.
        ("name.test", "2600:1f00:64::a00:1", True),
        ("name.test", "2600:1f00:64::909:909", True),
        ("name.test", "2600:1f00:64::808:808", False),
        ("pod.test", "11.1.2.3", False),
        ("11.1.2.3", "11.1.2.3", True),
        ("11.2.2.3", "11.2.2.3", False),
        ("[2600:1f00:64::a00:1]", "2600:1f00:64::a00:1", True),
    ],
)
@pytest.mark.usefixtures("silent")
async def test_a_tunnel_to_what_becomes_internal_is_closed(
    host: str, address: str, closed: bool
) -> None:
    before, after = _config(), _config(NETWORKS)
    connection = Connection(host, address)
    poller = SimpleNamespace(connections={connection})
    worker: Any = SimpleNamespace(config=before, generation=1, poller=poller)
    await revoke(worker)
    assert connection.reasons == []
    worker.config = after
    # A request that was decided before and would begin now, and one that carries bytes already.
    refused = reason_to_revoke(worker, before, connection.permit)
    assert (refused is not None) is closed
    await revoke(worker)
    assert connection.reasons == (["policy_revoked"] if closed else [])


@pytest.mark.usefixtures("silent")
async def test_audit_mode_closes_none_of_them() -> None:
    """It would not have refused them; but what is guarded behind a translator was never meant to be reached."""
    pod = Connection("name.test", "11.1.2.3")
    metadata = Connection("name.test", "2600:1f00:64::a9fe:a9fe")
    poller = SimpleNamespace(connections={pod, metadata})
    worker: Any = SimpleNamespace(
        config=_config(NETWORKS, mode="audit"), generation=2, poller=poller
    )
    await revoke(worker)
    assert (pod.reasons, metadata.reasons) == ([], ["policy_revoked"])
