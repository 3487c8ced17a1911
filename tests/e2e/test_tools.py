"""git and pip through the proxy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import StartProxy
from tests.support.certificates import Authority
from tests.support.clients import environment, need, run
from tests.support.dns import NameServer
from tests.support.origin import Origin
from tests.support.proxy import Proxy, rule
from tests.support.repository import BLOB, GitBackend, PackageIndex, commit_blob, git

pytestmark = pytest.mark.e2e


@pytest.fixture
def tools_proxy(start_proxy: StartProxy, name_server: NameServer) -> Proxy:
    name_server.set("git.test", "127.0.0.1")
    name_server.set("index.test", "127.0.0.1")
    return start_proxy(allow=[rule("git.test", tls="verify"), rule("index.test", tls="verify")])


@pytest.fixture
def env(tools_proxy: Proxy, authority: Authority, tmp_path: Path) -> dict[str, str]:
    return environment(tools_proxy.url, authority, tmp_path / "home")


def _base(origin: Origin, scheme: str, host: str) -> str:
    return f"{scheme}://{host}:{origin.https if scheme == 'https' else origin.http}"


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_git_clones_and_pushes_20_mib(
    tools_proxy: Proxy, origin: Origin, env: dict[str, str], tmp_path: Path, scheme: str
) -> None:
    need("git")
    (tmp_path / "repositories").mkdir()
    backend = GitBackend(tmp_path / "repositories")
    origin.extensions["/git"] = backend
    first = backend.create("project.git", blob=BLOB)
    work = tmp_path / "work"
    url = f"{_base(origin, scheme, 'git.test')}/git/project.git"

    cloned = run(["git", "clone", "--quiet", url, str(work)], env)
    assert cloned.returncode == 0, cloned.stderr.decode()
    assert git("-C", str(work), "rev-parse", "HEAD") == first
    git("-C", str(work), "fsck", "--full")

    second = commit_blob(work, BLOB + 4096, "another")
    pushed = run(["git", "push", "--quiet", "origin", "HEAD:main"], env, cwd=work)
    assert pushed.returncode == 0, pushed.stderr.decode()
    bare = str(backend.folder / "project.git")
    assert git("-C", bare, "rev-parse", "main") == second
    git("-C", bare, "fsck", "--full")

    lines = tools_proxy.stop()
    assert {line["event"] for line in lines} == {"ALLOWED"}
    assert sum(line["bytes_received"] for line in lines) > BLOB
    assert sum(line["bytes_sent"] for line in lines) > BLOB


@pytest.mark.parametrize(
    ("scheme", "method", "says"),
    [("https", "CONNECT", "CONNECT tunnel failed, response 403"), ("http", "GET", "error: 403")],
)
def test_git_is_refused(
    tools_proxy: Proxy, origin: Origin, env: dict[str, str], scheme: str, method: str, says: str
) -> None:
    need("git")
    url = f"{_base(origin, scheme, 'denied.test')}/git/project.git"
    done = run(["git", "ls-remote", url], env)
    assert done.returncode == 128
    assert says in done.stderr.decode()
    (line,) = tools_proxy.stop()
    assert (line["event"], line["method"], line["reason"]) == ("DENIED", method, "host_not_allowed")
    assert tools_proxy.stdout.count("DENIED") == 1


def _pip(env: dict[str, str], index: str, host: str, target: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target)]
    command += ["--no-cache-dir", "-vv", "--index-url", f"{index}/simple", "--trusted-host", host]
    done = run([*command, PackageIndex.PROJECT], env)
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_pip_installs(
    tools_proxy: Proxy, origin: Origin, env: dict[str, str], tmp_path: Path, scheme: str
) -> None:
    origin.extensions["/simple"] = PackageIndex(tmp_path)
    target = tmp_path / "target"
    base = _base(origin, scheme, "index.test")
    trusted = "none.test" if scheme == "https" else "index.test"
    code, said = _pip(env, base, trusted, target)
    assert code == 0, said
    assert (target / "egress_test_package.py").read_text() == "ANSWER = 42\n"
    lines = tools_proxy.stop()
    assert {line["event"] for line in lines} == {"ALLOWED"}
    assert {line["method"] for line in lines} == {"CONNECT" if scheme == "https" else "GET"}


@pytest.mark.parametrize(
    ("scheme", "method", "says"),
    [("https", "CONNECT", "Tunnel connection failed: 403"), ("http", "GET", "403 Client Error")],
)
def test_pip_is_refused(
    tools_proxy: Proxy,
    origin: Origin,
    env: dict[str, str],
    tmp_path: Path,
    scheme: str,
    method: str,
    says: str,
) -> None:
    code, said = _pip(env, _base(origin, scheme, "denied.test"), "denied.test", tmp_path / "target")
    assert code == 1
    assert says in said
    (line,) = tools_proxy.stop()
    assert (line["event"], line["method"], line["reason"]) == ("DENIED", method, "host_not_allowed")
    assert tools_proxy.stdout.count("DENIED") == 1
