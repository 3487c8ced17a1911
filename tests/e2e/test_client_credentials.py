"""Every client with credentials in the proxy's URL: right ones, wrong ones, none, and only when asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import StartProxy
from tests.support.certificates import Authority
from tests.support.clients import HTTP_CLIENTS, Client, environment, need, run
from tests.support.credentials import write_users
from tests.support.dns import NameServer
from tests.support.origin import Origin
from tests.support.proxy import Proxy, rule
from tests.support.repository import GitBackend, PackageIndex

pytestmark = pytest.mark.e2e

every_client = pytest.mark.parametrize("client", HTTP_CLIENTS, ids=lambda client: client.name)

#: What is special in a URL must be percent-encoded there, and every client takes that away again. Beyond this,
#: clients differ: requests and aiohttp send Latin-1, and git decodes `%` twice.
PASSWORD = "p@ss/w:rd #1?"
#: How the refusal of a tunnel looks: the same as a 403, with another number.
_STATUS = re.compile("403 Forbidden|403")


class Setting:
    """A proxy with users, and the environment of its clients."""

    def __init__(
        self, start: StartProxy, authority: Authority, tmp_path: Path, *, required: bool
    ) -> None:
        users = write_users(tmp_path / "users", batch=PASSWORD)
        policies = [
            {"name": "everyone", "allow": [rule("origin.test", tls="verify")]},
            {
                "name": "robots",
                "subjects": [{"user": "batch"}],
                "allow": [rule("git.test", tls="verify"), rule("index.test", tls="verify")],
            },
        ]
        credentials = {"users_file": str(users), "required": required}
        self.proxy: Proxy = start(credentials=credentials, policies=policies)
        self._authority = authority
        self._home = tmp_path / "home"

    def environment(self, user: str = "", password: str = "") -> dict[str, str]:
        said = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user else ""
        return environment(f"http://{said}{self.proxy.address}", self._authority, self._home)

    def told_nothing(self, *secrets: str) -> None:
        for secret in (PASSWORD, quote(PASSWORD, safe=""), *secrets):
            assert secret not in self.proxy.stdout + self.proxy.stderr


@pytest.fixture
def required(start_proxy: StartProxy, authority: Authority, tmp_path: Path) -> Setting:
    return Setting(start_proxy, authority, tmp_path, required=True)


@pytest.fixture
def optional(
    start_proxy: StartProxy, authority: Authority, tmp_path: Path, name_server: NameServer
) -> Setting:
    name_server.set("git.test", "127.0.0.1")
    name_server.set("index.test", "127.0.0.1")
    return Setting(start_proxy, authority, tmp_path, required=False)


def _url(origin: Origin, scheme: str, host: str = "origin.test") -> str:
    return f"{scheme}://{host}:{origin.https if scheme == 'https' else origin.http}"


both_ways = pytest.mark.parametrize(
    ("scheme", "method"), [("https", "CONNECT"), ("http", "GET")], ids=["tunnel", "absolute-form"]
)


@both_ways
@every_client
def test_right_ones(
    client: Client, required: Setting, origin: Origin, scheme: str, method: str
) -> None:
    need(client.program)
    env = required.environment("batch", PASSWORD)
    fetched = client.fetch(f"{_url(origin, scheme)}/", env)
    assert (fetched.exit, fetched.status) == (0, 200), fetched.said
    assert fetched.body == f"hello from {scheme}\n".encode()
    (line,) = required.proxy.stop()
    assert (line["event"], line["method"], line["user"]) == ("ALLOWED", method, "batch")
    (head,) = origin.heads
    assert b"authorization" not in head.lower()
    required.told_nothing()


@both_ways
@pytest.mark.parametrize("user", ["batch", "nobody", ""])
@every_client
def test_wrong_ones_and_none(
    client: Client, required: Setting, origin: Origin, user: str, scheme: str, method: str
) -> None:
    """407, as a client expects it, and nothing that it would take for a refusal of the destination."""
    need(client.program)
    env = required.environment(user, "tell-tale")
    fetched = client.fetch(f"{_url(origin, scheme)}/", env)
    reason = f"proxy_credentials_{'wrong' if user else 'required'}"
    if method == "CONNECT":
        assert fetched.exit == client.tunnel_exit, fetched.said
        says = _STATUS.sub("407", client.tunnel_says)
        assert re.search(says, fetched.said, re.DOTALL), fetched.said
    elif client.name == "node":  # which shows nothing of a 407, as fetch is specified
        assert "Proxy Authentication Required (407)" in fetched.said
    else:
        assert fetched.status == 407, fetched.said
        assert fetched.headers["proxy-authenticate"] == 'Basic realm="egress-proxy"'
        assert fetched.headers["x-egress-error"] == "UNAUTHORIZED"
        if client.name != "wget":  # which shows no body of a 407
            assert json.loads(fetched.body or b"")["error"]["reason"] == reason
    assert origin.heads == []
    lines = required.proxy.stop()
    assert lines
    assert {(line["event"], line["status"]) for line in lines} == {("DENIED", 407)}
    assert {line["reason"] for line in lines} == {reason}
    assert not any("user" in line for line in lines)
    required.told_nothing("tell-tale", "nobody")


# Clients that show them only when they are asked --------------------------------------------------


@pytest.fixture(params=["required", "optional"])
def setting(request: pytest.FixtureRequest) -> Setting:
    found: Setting = request.getfixturevalue(request.param)
    return found


@both_ways
def test_curl_with_anyauth(
    setting: Setting, origin: Origin, name_server: NameServer, scheme: str, method: str
) -> None:
    need("curl")
    name_server.set("git.test", "127.0.0.1")
    url = f"{_url(origin, scheme, 'git.test')}/"
    env = setting.environment("batch", PASSWORD)
    command = ["curl", "-sS", "-k", "--max-time", "20", "--proxy-anyauth", "-w", "%{num_connects}"]
    done = run([*command, url], env)
    # In absolute-form on the same connection; a refused CONNECT ends its own.
    connects = 1 if method == "GET" else 2
    assert done.stdout.decode() == f"hello from {scheme}\n{connects}", done.stderr.decode()
    asked, shown = setting.proxy.stop()
    assert (asked["status"], asked["reason"]) == (407, "proxy_credentials_required")
    assert (shown["event"], shown["method"], shown["user"]) == ("ALLOWED", method, "batch")


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_curl_posts_with_anyauth(required: Setting, origin: Origin, scheme: str) -> None:
    """The body of the request that was refused is not taken for a request."""
    need("curl")
    env = required.environment("batch", PASSWORD)
    command = ["curl", "-sS", "--max-time", "20", "--proxy-anyauth"]
    for body in ("GET http://denied.test/ HTTP/1.1\r\n\r\n", "x" * 100_000):
        done = run([*command, "--data-binary", body, f"{_url(origin, scheme)}/upload"], env)
        assert json.loads(done.stdout)["length"] == len(body), done.stderr.decode()
    assert not any(line.get("host") == "denied.test" for line in required.proxy.stop())


def _git(setting: Setting, url: str, password: str) -> subprocess.CompletedProcess[bytes]:
    return run(["git", "ls-remote", url], setting.environment("batch", password))


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_git(
    setting: Setting, origin: Origin, name_server: NameServer, tmp_path: Path, scheme: str
) -> None:
    """Its libcurl asks without them first, in both modes: an optional user must be asked, or git gives up."""
    need("git")
    name_server.set("git.test", "127.0.0.1")
    (tmp_path / "repositories").mkdir()
    backend = GitBackend(tmp_path / "repositories")
    origin.extensions["/git"] = backend
    commit = backend.create("project.git", blob=1000)
    url = f"{_url(origin, scheme, 'git.test')}/git/project.git"
    done = _git(setting, url, PASSWORD)
    assert done.returncode == 0, done.stderr.decode()
    assert commit in done.stdout.decode()
    lines = setting.proxy.stop()
    assert lines[0]["reason"] == "proxy_credentials_required"
    assert {line["user"] for line in lines if line["event"] == "ALLOWED"} == {"batch"}


@pytest.mark.parametrize(
    ("scheme", "says"), [("https", "CONNECT tunnel failed, response 407"), ("http", "407")]
)
def test_git_with_wrong_ones(required: Setting, origin: Origin, scheme: str, says: str) -> None:
    need("git")
    done = _git(required, f"{_url(origin, scheme)}/git/project.git", "tell-tale")
    assert done.returncode == 128
    assert says in done.stderr.decode()
    assert {line["status"] for line in required.proxy.stop()} == {407}
    required.told_nothing("tell-tale")


# pip ----------------------------------------------------------------------------------------------


def _pip(setting: Setting, index: str, target: Path, password: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target)]
    command += ["--no-cache-dir", "-vv", "--index-url", f"{index}/simple"]
    command += ["--trusted-host", "index.test"]
    done = run([*command, PackageIndex.PROJECT], setting.environment("batch", password))
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_pip(optional: Setting, origin: Origin, tmp_path: Path, scheme: str) -> None:
    origin.extensions["/simple"] = PackageIndex(tmp_path)
    target = tmp_path / "target"
    code, said = _pip(optional, _url(origin, scheme, "index.test"), target, PASSWORD)
    assert code == 0, said
    assert (target / "egress_test_package.py").read_text() == "ANSWER = 42\n"
    lines = optional.proxy.stop()
    assert {(line["event"], line["user"]) for line in lines} == {("ALLOWED", "batch")}


@pytest.mark.parametrize(
    ("scheme", "says"),
    [("https", "Tunnel connection failed: 407"), ("http", "407 Client Error")],
)
def test_pip_with_wrong_ones(
    optional: Setting, origin: Origin, tmp_path: Path, scheme: str, says: str
) -> None:
    base = _url(origin, scheme, "index.test")
    code, said = _pip(optional, base, tmp_path / "target", "tell-tale")
    assert code == 1
    assert says in said
    (line,) = optional.proxy.stop()
    assert (line["status"], line["reason"]) == (407, "proxy_credentials_wrong")
    optional.told_nothing("tell-tale")
