"""Rules on methods and paths, from the client to a real origin: what was matched is what it gets, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve, StartProxy
from tests.support.credentials import authorization, write_users
from tests.support.dns import NameServer
from tests.support.origin import Origin
from tests.support.proxy import Proxy, configuration, rule

PROXY_AUTHORIZATION = authorization("batch", "correct-horse")


def readable(host: str = "origin.test", **conditions: Any) -> dict[str, Any]:
    """A rule with conditions; it is for no tunnel, so it says nothing about TLS."""
    made = rule(host) | conditions
    del made["tls"]
    return made


def closed(host: str = "origin.test", **conditions: Any) -> dict[str, Any]:
    return {"host": host, **conditions}


def lines_of(origin: Origin) -> list[str]:
    return [head.partition(b"\r\n")[0].decode() for head in origin.heads]


def test_get_and_not_post(start_proxy: StartProxy, origin: Origin, base: str) -> None:
    proxy = start_proxy(allow=[readable(methods=["GET", "HEAD"])])
    with proxy.client() as client:
        assert client.get(f"{base}/bytes/1?b=c").status == 200
        assert client.get(f"{base}/", method="HEAD").status == 200
        # The connection goes on after a refusal.
        for method in ("PUT", "get", "DELETE", "TRACE"):
            refused = client.get(f"{base}/", method=method)
            assert (refused.status, refused["x-egress-error"]) == (403, "POLICY_BLOCKED")
            assert refused.error["reason"] == "method_not_allowed"
        assert client.get(f"{base}/").status == 200
        assert (
            client.get(f"{base}/", method="POST", head="Content-Length: 1\r\n", body=b"x").status
            == 403
        )
    assert lines_of(origin) == ["GET /bytes/1?b=c HTTP/1.1", "HEAD / HTTP/1.1", "GET / HTTP/1.1"]
    line = proxy.wait_for_line(event="DENIED", method="POST")
    assert (line["reason"], line["rule"], line["path"]) == (
        "method_not_allowed",
        "allow origin.test (GET, HEAD)",
        "/",
    )


def test_paths_and_what_is_forwarded(start_proxy: StartProxy, origin: Origin, base: str) -> None:
    proxy = start_proxy(allow=[readable(paths=["/bytes/", "/status/*"])])
    allowed = {
        "/bytes/1": "/bytes/1",
        "/status/../bytes/2?../x": "/bytes/2?../x",
        "/%62ytes/%33?%62": "/bytes/3?%62",
        "/x/%2e%2e/./status/200": "/status/200",
        "/bytes/a/../4?": "/bytes/4?",
    }
    refused = [
        *("/", "", "?/bytes/1", "/upload", "/bytes", "/status", "/status/", "/status/200/x"),
        *("/bytes/../upload", "/bytes/%2e%2e/upload", "/bytes/..%2fupload", "/bytes/..\\upload"),
        *("/bytes/%252e%252e/upload", "/bytes//1", "//bytes/1", "/bytes/..;/upload", "/bytes/1;x"),
        *("/../bytes/1", "/bytes/1%00", "/bytes/%c0%ae%c0%ae/upload", "/BYTES/1", "/bytes%2f1"),
    ]  # fmt: skip
    with proxy.client() as client:
        for path in allowed:
            assert client.get(f"{base}{path}").status == 200, path
        for path in refused:
            said = client.get(f"{base}{path}")
            assert (said.status, said.error["reason"]) == (403, "path_not_allowed"), path
    assert lines_of(origin) == [f"GET {path} HTTP/1.1" for path in allowed.values()]
    # The log has what was asked for, as it was asked.
    proxy.wait_for_line(event="ALLOWED", path="/x/%2e%2e/./status/200")
    proxy.wait_for_lines(len(refused), event="DENIED")


def test_the_answer_says_what_is_unclear(start_proxy: StartProxy, base: str) -> None:
    proxy = start_proxy(allow=[readable(paths=["/bytes/"])])
    with proxy.client() as client:
        said = client.get(f"{base}/bytes/a%2fb").error
    assert said["message"] == (
        "The host is allowed, but not this path: the path holds an encoded slash or backslash."
    )
    assert "plainest form" in said["advice"]


def test_a_denied_path(start_proxy: StartProxy, origin: Origin, base: str) -> None:
    proxy = start_proxy(
        deny=[closed(paths=["/upload"], methods=["GET"]), closed(methods=["DELETE"])]
    )
    denied = [
        "/upload",
        "/UPLOAD/",
        "/x/../upload",
        "//upload",
        "/%75pload",
        "/a%2f../upload",
        "/upload;x",
    ]
    with proxy.client() as client:
        for path in denied:
            said = client.get(f"{base}{path}")
            assert (said.status, said.error["reason"]) == (403, "deny_rule"), path
        assert client.get(f"{base}/", method="DELETE").error["reason"] == "deny_rule"
        assert client.get(f"{base}/a/../status/200").status == 200
        # Of another method, any path; but it goes on as the rule saw it.
        assert client.get(f"{base}/a/../upload", method="HEAD").status == 200
    assert lines_of(origin) == ["GET /status/200 HTTP/1.1", "HEAD /upload HTTP/1.1"]


def test_without_paths_a_path_goes_on_untouched(
    start_proxy: StartProxy, origin: Origin, base: str
) -> None:
    proxy = start_proxy(allow=[readable(methods=["GET"]), readable("other.test", paths=["/"])])
    paths = ["/a/../b", "/%61%2f;x//y?z", "//", "/a\\b"]
    with proxy.client() as client:
        for path in paths:
            client.get(f"{base}{path}")
    assert lines_of(origin) == [f"GET {path} HTTP/1.1" for path in paths]


def test_what_would_overrule_the_request_line_is_not_sent(
    start_proxy: StartProxy, origin: Origin, base: str
) -> None:
    proxy = start_proxy(allow=[readable(methods=["GET"], paths=["/head"])])
    with proxy.client() as client:
        overruling = "X-HTTP-Method-Override: DELETE\r\nX-Original-URL: /upload\r\nX_Rewrite_URL: /upload\r\n"
        head = client.get(f"{base}/head", head=f"{overruling}X-Kept: 1\r\n").body.lower()
    assert b"x-kept: 1" in head
    assert b"override" not in head
    assert b"/upload" not in head


def test_no_tunnel(start_proxy: StartProxy, origin: Origin) -> None:
    proxy = start_proxy(allow=[readable(methods=["GET"])])
    for port in (origin.http, origin.https):
        with proxy.client() as client:
            said = client.connect(f"origin.test:{port}")
            assert (said.status, said["x-egress-error"]) == (403, "POLICY_BLOCKED")
            assert said.error["reason"] == "connect_not_allowed"
    assert origin.heads == []
    line = proxy.wait_for_line(event="DENIED", port=origin.http)
    assert line["rule"] == "allow origin.test (GET)"


def test_a_tunnel_past_a_rule_that_denies_some_requests(
    start_proxy: StartProxy, origin: Origin, base: str
) -> None:
    """Nobody sees what is asked there: ``check`` warns of it."""
    proxy = start_proxy(deny=[closed(methods=["POST"])])
    with proxy.client() as client:
        assert client.get(f"{base}/", method="POST").status == 403
        assert client.connect(f"origin.test:{origin.http}").status == 200
        client.send("POST /upload HTTP/1.1\r\nHost: origin.test\r\nContent-Length: 0\r\n\r\n")
        assert client.response("POST").status == 200


def test_audit_mode_says_what_it_lets_through(start_proxy: StartProxy, lan_origin: Origin) -> None:
    rules = [
        {"host": "origin.test", "ports": ["1-65535"], "methods": ["GET"], "paths": ["/bytes/"]}
    ]
    proxy = start_proxy(allow=rules, mode="audit")
    base = f"http://origin.test:{lan_origin.http}"
    with proxy.client() as client:
        assert client.get(f"{base}/status/200").status == 200
        assert client.get(f"{base}/bytes/1", method="PUT").status == 200
        assert client.get(f"{base}//bytes/1").status == 200
    reasons = [line["reason"] for line in proxy.wait_for_lines(3, event="WOULD_DENY")]
    assert reasons == ["path_not_allowed", "method_not_allowed", "path_not_allowed"]


# Credentials. -----------------------------------------------------------------------------------------------------


def test_who_may_do_more_is_asked_who_it_is(
    start_proxy: StartProxy, origin: Origin, base: str, tmp_path: Path
) -> None:
    write_users(tmp_path / "users", batch="correct-horse")
    policies = [
        {"name": "everyone", "allow": [readable(methods=["GET"])]},
        {
            "name": "robots",
            "subjects": [{"user": "batch"}],
            "allow": [readable(methods=["POST"], paths=["/upload"])],
        },
    ]
    credentials = {"users_file": str(tmp_path / "users"), "required": False}
    proxy = start_proxy(policies=policies, credentials=credentials)
    body = {"head": "Content-Length: 0\r\n"}
    with proxy.client() as client:
        asked = client.get(f"{base}/upload", method="POST", **body)  # type: ignore[arg-type]
        assert (asked.status, asked.error["reason"]) == (407, "proxy_credentials_required")
    for path, method in (("/other", "POST"), ("/upload", "PUT"), ("/upload%2f", "POST")):
        with proxy.client() as client:
            assert client.get(f"{base}{path}", method=method).status == 403
    with proxy.client() as client:
        head = f"{PROXY_AUTHORIZATION}Content-Length: 0\r\n"
        assert client.get(f"{base}/upload", method="POST", head=head).status == 200
    assert lines_of(origin) == ["POST /upload HTTP/1.1"]


# A permission that is taken back. ---------------------------------------------------------------------------------


def downloading(proxy: Proxy, port: int, path: str) -> Any:
    client = proxy.client()
    client.send(f"GET http://origin.test:{port}{path} HTTP/1.1\r\nHost: origin.test\r\n\r\n")
    client.until(b"begin")
    return client


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [
        ({"paths": ["/"]}, {"methods": ["GET"], "paths": ["/a/"]}, False),
        ({"paths": ["/"]}, {"methods": ["POST"]}, True),
        ({"paths": ["/"]}, {"paths": ["/b/"]}, True),
        # Without `paths` it was sent as it came, which is not what the new rule would have sent.
        ({}, {"paths": ["/a/"]}, True),
        ({}, {"methods": ["GET"]}, False),
    ],
)
def test_a_download_that_its_method_or_path_no_longer_allows(
    before: dict[str, Any],
    after: dict[str, Any],
    ends: bool,
    start_proxy: StartProxy,
    serve: Serve,
    name_server: NameServer,
) -> None:
    def slow(connection: Any) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nbegin")
        connection.recv(1)

    server = serve(slow)
    # The second one is there to be closed in any case, after which the first would be closed as well.
    proxy = start_proxy(allow=[readable(**before), readable("gone.test")])
    name_server.set("gone.test", "127.0.0.1")
    with downloading(proxy, server.port, "/x/../a/file") as client, proxy.client() as other:
        other.send(f"GET http://gone.test:{server.port}/ HTTP/1.1\r\nHost: gone.test\r\n\r\n")
        other.until(b"begin")
        proxy.reload(configuration(name_server=name_server.address, allow=[readable(**after)]))
        assert other.is_closed()
        closed_paths = [line["path"] for line in proxy.wait_for_lines(1 + ends, event="CLOSED")]
        assert ("/x/../a/file" in closed_paths) is ends
        if ends:
            assert client.is_closed()


# What explain says. -----------------------------------------------------------------------------------------------


def test_the_admin_port_explains_it(start_proxy: StartProxy, origin: Origin, base: str) -> None:
    proxy = start_proxy(allow=[readable(methods=["GET"], paths=["/v1/"])])

    def told(**question: str) -> dict[str, Any]:
        body = json.dumps({"client": "10.0.0.1", **question}).encode()
        found: dict[str, Any] = json.loads(
            proxy.ask_admin("/v1/explain", method="POST", body=body).body
        )
        return found

    said = told(target=f"{base}/x/../v1/a?b")
    assert (said["outcome"], said["method"], said["path"]) == ("ALLOWED", "GET", "/v1/a")
    assert said["conditions"] == "GET; /v1/"
    said = told(target=f"{base}/v1/a", method="POST")
    assert (said["outcome"], said["reason"]) == ("DENIED", "method_not_allowed")
    assert 'methods: ["POST"]' in said["add"]
    said = told(target=f"origin.test:{origin.http}")
    assert (said["outcome"], said["reason"]) == ("DENIED", "connect_not_allowed")
    assert "method" not in said
    said = told(target=f"https://origin.test:{origin.http}/v1/a", method="GET")
    assert said["error"]["reason"] == "bad_admin_request"
