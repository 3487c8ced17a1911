"""The configuration changes while the proxy runs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.dns import NameServer
from tests.support.proxy import Proxy, configuration, rule, write
from tests.support.serving import echo
from tests.support.tools import wait_until

_BROKEN = "version: 1\npolicies:\n  - name: test\n    allow: [a*.test]\n"


@pytest.fixture
def both(name_server: NameServer) -> dict[str, Any]:
    """A configuration that allows other.test too."""
    return configuration(
        name_server=name_server.address, allow=[rule("origin.test"), rule("other.test")]
    )


@pytest.fixture
def neither(name_server: NameServer) -> dict[str, Any]:
    return configuration(name_server=name_server.address, allow=["nothing.test"])


def _status(proxy: Proxy, host: str, port: int) -> int:
    with proxy.client() as client:
        return client.connect(f"{host}:{port}").status


def _wait_for_generation(proxy: Proxy, generation: int) -> None:
    wait_until(lambda: proxy.policy()["generation"] == generation, what=f"generation {generation}")


@pytest.mark.parametrize("way", ["file", "written-in-place", "sighup", "admin"])
def test_a_new_policy_takes_effect(
    proxy: Proxy, serve: Serve, both: dict[str, Any], way: str
) -> None:
    server = serve(echo)
    assert _status(proxy, "other.test", server.port) == 403
    before = proxy.policy()
    if way == "sighup":
        proxy.reload(both)
    elif way == "admin":
        write(proxy.config, both)
        response = proxy.ask_admin("/v1/reload", method="POST")
        assert response.status == 200
        assert json.loads(response.body)["generation"] == 2
    elif way == "file":
        write(proxy.config, both)
    else:
        proxy.config.write_text(json.dumps(both))
    _wait_for_generation(proxy, 2)
    after = proxy.policy()
    assert after["hash"] != before["hash"]
    assert after["rules"] == 2
    assert _status(proxy, "other.test", server.port) == 200
    denied = proxy.wait_for_line(event="DENIED")
    allowed = proxy.wait_for_line(event="ALLOWED")
    assert (denied["generation"], allowed["generation"]) == (1, 2)
    assert proxy.metrics()["egress_proxy_policy_generation"] == 2


def test_kubernetes_turns_a_symlink(
    start_proxy: StartProxy, serve: Serve, both: dict[str, Any]
) -> None:
    """A mounted ConfigMap: policy.yaml → ..data/policy.yaml, ..data → a directory that is replaced."""
    server = serve(echo)
    proxy = start_proxy()
    folder = proxy.config.parent
    for name, text in (("..1", proxy.config.read_text()), ("..2", json.dumps(both))):
        (folder / name).mkdir()
        (folder / name / "policy.yaml").write_text(text)
    (folder / "..data").symlink_to("..1")
    link = folder / ".link"
    link.symlink_to("..data/policy.yaml")
    link.replace(proxy.config)
    time.sleep(0.7)
    assert proxy.policy()["generation"] == 1
    turned = folder / "..data_tmp"
    turned.symlink_to("..2")
    turned.replace(folder / "..data")
    _wait_for_generation(proxy, 2)
    assert _status(proxy, "other.test", server.port) == 200


@pytest.mark.parametrize("way", ["file", "sighup", "admin", "missing"])
def test_a_broken_file_changes_nothing(proxy: Proxy, serve: Serve, way: str) -> None:
    server = serve(echo)
    before = proxy.policy()
    if way == "missing":
        proxy.config.unlink()
        proxy.ask_admin("/v1/reload", method="POST")
    elif way == "admin":
        write(proxy.config, _BROKEN)
        response = proxy.ask_admin("/v1/reload", method="POST")
        assert response.status == 422
        assert response.error["reason"] == "reload_failed"
        assert "policy.yaml:4:" in response.body.decode()
    elif way == "sighup":
        proxy.reload(_BROKEN)
    else:
        write(proxy.config, _BROKEN)
    wait_until(
        lambda: (
            proxy.metrics().get('egress_proxy_reload_total{result="failure"}', 0) >= 1
            or any(
                "reload" in name and "fail" in name and value
                for name, value in proxy.metrics().items()
            )
        ),
        what=lambda: f"a failed reload in {proxy.metrics()}",
    )
    after = proxy.policy()
    assert (after["generation"], after["hash"]) == (before["generation"], before["hash"])
    assert _status(proxy, "origin.test", server.port) == 200
    assert _status(proxy, "other.test", server.port) == 403
    assert "policy.yaml" in proxy.stderr


def test_a_mended_file_is_taken(proxy: Proxy, serve: Serve, both: dict[str, Any]) -> None:
    server = serve(echo)
    proxy.reload(_BROKEN)
    time.sleep(0.3)
    proxy.reload(both)
    _wait_for_generation(proxy, 2)
    assert _status(proxy, "other.test", server.port) == 200


def test_an_open_tunnel_outlives_the_reload(
    proxy: Proxy, serve: Serve, neither: dict[str, Any]
) -> None:
    server = serve(echo)
    with proxy.client() as client:
        client.connect(f"origin.test:{server.port}")
        proxy.reload({**neither, "on_revoke": "keep"})
        _wait_for_generation(proxy, 2)
        client.send(b"still here")
        assert client.exactly(10) == b"still here"
        assert _status(proxy, "origin.test", server.port) == 403
    allowed = proxy.wait_for_line(event="ALLOWED")
    assert allowed["generation"] == 1


def test_a_kept_connection_obeys_the_new_policy(
    proxy: Proxy, serve: Serve, neither: dict[str, Any]
) -> None:
    with proxy.client() as client:
        client.get("http://denied.test/")
        first = client.get("http://origin.test:1/")
        assert first.status == 502
        proxy.reload(neither)
        _wait_for_generation(proxy, 2)
        assert client.get("http://origin.test:1/").status == 403


def test_the_same_file_again_is_no_new_generation(proxy: Proxy) -> None:
    assert proxy.ask_admin("/v1/reload", method="POST").status == 200
    assert proxy.policy()["generation"] == 1


def test_many_reloads_under_load(
    proxy: Proxy, serve: Serve, both: dict[str, Any], neither: dict[str, Any]
) -> None:
    """Each request is decided by one policy or the other, and none is lost."""
    server = serve(echo)
    for number in range(20):
        write(proxy.config, (both, neither)[number % 2])
        assert proxy.ask_admin("/v1/reload", method="POST").status == 200
        expected = (200, 403)[number % 2]
        assert _status(proxy, "origin.test", server.port) == expected
    assert proxy.policy()["generation"] == 21


def test_timeouts_apply_to_new_connections(
    proxy: Proxy, serve: Serve, both: dict[str, Any]
) -> None:
    proxy.reload(both | {"timeouts": {"head": "300ms"}})
    _wait_for_generation(proxy, 2)
    with proxy.client() as client:
        assert client.response().status == 408
