"""The command line: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import egress_proxy
from egress_proxy import app, cli
from egress_proxy.config.load import Loaded
from egress_proxy.core.reason import Event
from egress_proxy.supervise import supervisor

ROOT = Path(__file__).parents[1]
EXAMPLE = str(ROOT / "config" / "egress-proxy.yaml")

BROKEN = "version: 1\npolicies:\n  - {name: everyone, allow: ['*', .example.com]}\n"


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.yaml"
    path.write_text(BROKEN)
    return str(path)


class Said:
    """What one command printed, and its status."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> Said:
        try:
            status = cli.main(arguments)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else -1
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run


# Usage. -----------------------------------------------------------------------------------------------------------


def test_version(run: Any) -> None:
    said = run("--version")
    assert (said.status, said.out) == (0, f"egress-proxy {egress_proxy.__version__}\n")


@pytest.mark.parametrize("verb", [(), ("serve",), ("check",), ("explain",)])
def test_help(run: Any, verb: tuple[str, ...]) -> None:
    said = run(*verb, "--help")
    assert said.status == 0
    assert said.out.startswith("usage: egress-proxy")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("unknown",),
        ("check",),
        ("check", "a", "b"),
        ("check", "--format", "xml", "a"),
        ("check", "--form", "json", "a"),
        ("explain",),
        ("explain", "--as", "10.0.0.1", "example.com"),
        ("explain", "--as", "user", "example.com"),
        ("explain", "--as", "user=", "example.com"),
        ("explain", "--as", "user=a,user=b", "example.com"),
        ("explain", "--as", "pod_labels.=a", "example.com"),
        ("explain", "--as", "client=me", "example.com"),
        ("explain", "--as", "client=10.0.0.1,pod=a", "example.com"),
        ("explain", "--address", "example.com", "example.com"),
        ("explain", "ftp://example.com"),
        ("explain", "user:secret@example.com"),
        ("explain", "example.com:0"),
        ("explain", ""),
        ("serve", "extra"),
        ("serve", "--conf", "x"),
    ],
)
def test_bad_usage(run: Any, arguments: tuple[str, ...]) -> None:
    said = run(*arguments)
    assert said.status == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    assert "secret" not in said.err
    assert "egress-proxy" in said.err


# check ------------------------------------------------------------------------------------------------------------


def test_check_of_a_good_file(run: Any) -> None:
    said = run("check", EXAMPLE)
    assert said.status == 0
    assert said.out == f"{EXAMPLE}: 3 policies, 15 rules; 0 errors, 0 warnings\n"
    assert said.err == ""


def test_check_of_a_doubtful_file(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("version: 1\npolicies:\n  - {name: everyone, allow: ['*']}\n")
    said = run("check", str(path))
    assert said.status == 1
    warning, summary = said.out.splitlines()
    assert warning.startswith(f"{path}:3:30: warning: `*` allows every host")
    assert summary == f"{path}: 1 policy, 1 rule; 0 errors, 1 warning"


def test_check_of_a_broken_file(run: Any, broken: str) -> None:
    said = run("check", broken)
    assert said.status == 2
    warning, error, summary = said.out.splitlines()
    assert ": warning: " in warning
    assert (
        error
        == f'{broken}:3:35: `.example.com` starts with a dot; write "*.example.com" [bad-host]'
    )
    assert summary == f"{broken}: 1 error, 1 warning"


def test_check_as_json(run: Any, broken: str) -> None:
    said = run("check", "--format", "json", broken)
    assert said.status == 2
    told = json.loads(said.out)
    assert (told["file"], told["valid"]) == (broken, False)
    assert told["problems"][1] == {
        "file": broken,
        "line": 3,
        "column": 35,
        "severity": "error",
        "code": "bad-host",
        "what": "`.example.com` starts with a dot",
        "instead": 'write "*.example.com"',
    }
    said = run("check", EXAMPLE, "--format=json")
    assert said.status == 0
    assert json.loads(said.out) == {
        "file": EXAMPLE,
        "valid": True,
        "policies": 3,
        "rules": 15,
        "problems": [],
    }


def test_check_of_no_file(run: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    said = run("check", path)
    assert said.status == 2
    assert said.out.splitlines()[0] == (
        f"{path}: there is no such file; name an existing one [unreadable-file]"
    )
    said = run("check", path, "--format", "json")
    assert said.status == 2
    assert json.loads(said.out)["problems"][0]["line"] is None


def test_ctrl_c_is_no_error(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: str) -> Loaded:
        raise KeyboardInterrupt

    monkeypatch.setattr("egress_proxy.config.load.load", interrupted)
    said = run("check", EXAMPLE)
    assert (said.status, said.out, said.err) == (130, "", "")


# explain ----------------------------------------------------------------------------------------------------------


def test_explain_an_allowed_host(run: Any) -> None:
    said = run(
        "explain", "--config", EXAMPLE, "--as", "client=10.20.0.7", "https://www.example.com/"
    )
    assert said.status == 0
    assert said.out.splitlines()[0] == "ALLOWED: www.example.com:443 for the client 10.20.0.7"
    assert f"by rule: allow *.example.com, of policy builders, at {EXAMPLE}:" in said.out


def test_explain_a_denied_host(run: Any) -> None:
    said = run("explain", "--config", EXAMPLE, "new.example")
    assert said.status == 1
    assert said.out.splitlines()[:2] == [
        "DENIED: new.example:443 for the client 127.0.0.1",
        "  because: No rule allows this host. (host_not_allowed)",
    ]
    assert said.out.endswith("        - {host: new.example, ports: [443]}\n")


def test_explain_a_deny_rule(run: Any) -> None:
    said = run("explain", "--config", EXAMPLE, "gist.github.com")
    assert said.status == 1
    assert "deny beats allow" in said.out


def test_explain_with_addresses(run: Any) -> None:
    said = run(
        "explain",
        "--config",
        EXAMPLE,
        "--address",
        "10.0.0.1",
        "--address",
        "8.8.8.8",
        "github.com",
    )
    assert said.status == 0
    assert "address: 10.0.0.1 is prohibited: private (10.0.0.0/8)" in said.out
    assert "address: 8.8.8.8 passes: public" in said.out
    assert run("explain", "--config", EXAMPLE, "--address", "10.0.0.1", "github.com").status == 1


WHO = """\
version: 1
dns: {hosts_file: HOSTS, servers: ["127.0.0.1:9"], timeout: 1s}
sets: {a: [set.example.com, "*.set.example.com"]}
policies:
  - name: everyone
    allow: ["@a"]
  - name: batch
    subjects: [{user: batch}]
    allow: [{host: user.example.com, tls: off, ports: [22]}]
  - name: agents
    subjects: [{namespace: agents, pod_labels: {app: web}}]
    allow: [pod.example.com]
    ask: [set.example.com]
"""


@pytest.fixture
def who(tmp_path: Path) -> str:
    """A configuration with policies for all kinds of clients."""
    (tmp_path / "hosts").write_text("10.0.0.1 set.example.com\n8.8.8.8 a.set.example.com\n")
    path = tmp_path / "who.yaml"
    path.write_text(WHO.replace("HOSTS", str(tmp_path / "hosts")))
    return str(path)


@pytest.mark.parametrize(
    ("client", "target", "said"),
    [
        ("user=batch", "user.example.com:22", "ALLOWED: user.example.com:22 for the client 127.0.0.1, user batch"),
        ("user=batch", "user.example.com:22", "  tunnel:  need not be TLS"),
        ("user=other", "user.example.com:22", "its policy is not for the client 127.0.0.1, user other"),
        ("user=other", "user.example.com:22", "  - name: everyone  # the policy at"),
        ("namespace=agents,pod_labels.app=web", "pod.example.com", "ALLOWED: "),
        ("namespace=agents", "pod.example.com", "DENIED: pod.example.com:443"),
        ("pod_labels.app=web", "pod.example.com", "DENIED: pod.example.com:443"),
        ("client=10.0.0.1", "b.set.example.com", "by rule: allow @a, of policy everyone"),
        ("client=10.0.0.1", "b.set.example.com", "  by host: *.set.example.com at "),
        ("namespace=agents,pod_labels.app=web", "set.example.com", "(approval_required)"),
        ("namespace=agents,pod_labels.app=web", "set.example.com", "ask beats allow"),
    ],
)  # fmt: skip
def test_explain_for_an_identity(run: Any, who: str, client: str, target: str, said: str) -> None:
    assert said in run("explain", "--config", who, "--as", client, target).out


def test_explain_says_that_credentials_would_help(run: Any, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("batch:$2b$10$" + "abcdefghijklmnopqrstuu" + "a" * 31 + "\n")
    path = tmp_path / "f.yaml"
    text = (
        f"version: 1\ncredentials: {{users_file: {users}%s}}\npolicies:\n"
        "  - {name: p, allow: [a.example.com]}\n"
        "  - {name: q, subjects: [{user: batch}], allow: [b.example.com]}\n"
    )
    path.write_text(text % "")

    def reason(target: str, *more: str) -> str | None:
        said = run("explain", "--config", str(path), "--format", "json", *more, target)
        found: str | None = json.loads(said.out).get("reason")
        return found

    assert reason("a.example.com") is None
    assert reason("b.example.com") == "proxy_credentials_required"
    assert reason("b.example.com", "--as", "user=batch") is None
    assert reason("b.example.com", "--as", "user=other") == "host_not_allowed"
    assert reason("c.example.com") == "host_not_allowed"
    path.write_text(text % ", required: true")
    assert reason("a.example.com") == "proxy_credentials_required"
    assert reason("c.example.com") == "proxy_credentials_required"
    assert reason("a.example.com", "--as", "user=batch") is None


def test_explain_looks_the_name_up(run: Any, who: str) -> None:
    said = run("explain", "--config", who, "--resolve", "set.example.com")
    assert said.status == 1
    assert "address: 10.0.0.1 is prohibited: private (10.0.0.0/8)" in said.out
    assert 'allow_private: ["10.0.0.1/32"]' in said.out
    said = run("explain", "--config", who, "--resolve", "a.set.example.com")
    assert (said.status, "address: 8.8.8.8 passes: public" in said.out) == (0, True)
    said = run("explain", "--config", who, "--resolve", "b.set.example.com")
    assert said.status == 0
    assert "address: the name could not be resolved (dns_" in said.out


def test_explain_a_parent_proxy(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(
        "version: 1\ndns: {servers: ['127.0.0.1:1'], timeout: 100ms}\n"
        "upstream: {proxy: 'http://proxy.example:3128'}\n"
        "policies: [{name: a, allow: [a.example, {host: b.example, upstream: direct}]}]\n"
    )
    # It resolves the name, so that nobody is asked here, nor told an address.
    for more in (("--resolve",), ("--address", "10.0.0.1"), ("--resolve", "--address", "10.0.0.1")):
        said = run("explain", "--config", str(path), *more, "a.example")
        assert (said.status, said.out.count("address")) == (0, 1)
        assert (
            "  address: not judged here, because the parent proxy resolves the name\n" in said.out
        )
        assert "  through: the parent proxy proxy.example:3128, which resolves names\n" in said.out
        assert "  routed:  by `upstream` of the configuration\n" in said.out
    said = run("explain", "--config", str(path), "a.example")
    assert (said.status, said.out.count("address")) == (0, 0)
    more = ("--resolve", "--address", "10.0.0.1")
    said = run("explain", "--config", str(path), *more, "b.example")
    assert (said.status, "through:" in said.out) == (1, False)
    assert "address: the name could not be resolved (dns_" in said.out
    said = run("explain", "--config", str(path), "c.example")
    assert (said.status, "through:" in said.out) == (1, False)
    said = run("explain", "--config", str(path), "--format", "json", "a.example")
    assert json.loads(said.out)["parent"] == "proxy.example:3128"


def test_explain_a_plain_request(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(
        "version: 1\npolicies: [{name: a, allow: [{host: a.example, methods: [GET], paths: [/v1/]}]}]\n"
    )
    said = run("explain", "--config", str(path), "http://a.example/x/%2e%2e/v1/a?b")
    assert said.status == 0
    assert said.out == (
        "ALLOWED: GET /v1/a of a.example:80 for the client 127.0.0.1\n"
        f"  by rule: allow a.example (GET, /v1/), of policy a, at {path}:2:30\n"
        "  is for:  GET; /v1/\n"
        "  address: checked when the name is resolved; --resolve does it now\n"
    )
    said = run("explain", "--config", str(path), "--method", "POST", "http://a.example/v1/a")
    assert said.status == 1
    assert (
        "because: The host is allowed, but not with this method. (method_not_allowed)\n" in said.out
    )
    assert '- {host: a.example, ports: [80], methods: ["POST"], paths: ["/v1/a"]}\n' in said.out
    said = run("explain", "--config", str(path), "http://a.example/v1%2fa")
    assert "not this path: the path holds an encoded slash or backslash. (path_not" in said.out
    said = run("explain", "--config", str(path), "a.example:80")
    assert said.out.startswith("DENIED: a.example:80 for")
    assert "(connect_not_allowed)" in said.out
    for bad in (("--method", "GET", "a.example"), ("--method", "G T", "http://a.example")):
        said = run("explain", "--config", str(path), *bad)
        assert (said.status, "TARGET:" in said.err) == (2, True)


def test_explain_where_no_proxy_names_it(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(
        "version: 1\nupstream: {proxy: 'http://proxy.example:3128', no_proxy: ['*.b.example']}\n"
        "policies: [{name: a, allow: [a.b.example, {host: c.example, upstream: direct}]}]\n"
    )
    said = run("explain", "--config", str(path), "a.b.example")
    assert "  routed:  directly, by the entry `*.b.example` of `no_proxy`\n" in said.out
    said = run("explain", "--config", str(path), "c.example")
    assert f"  routed:  directly, by `upstream: direct` of `allow c.example` at {path}:" in said.out


def test_explain_in_audit_mode(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("version: 1\nmode: audit\npolicies: [{name: a, allow: [example.com]}]\n")
    said = run("explain", "--config", str(path), "example.org")
    assert said.status == 1
    assert said.out.startswith("WOULD_DENY: ")


def test_explain_as_json(run: Any) -> None:
    said = run("explain", "--config", EXAMPLE, "--format", "json", "new.example")
    assert said.status == 1
    told = json.loads(said.out)
    assert (told["outcome"], told["reason"]) == (Event.DENIED, "host_not_allowed")


def test_explain_uses_the_packaged_configuration(run: Any) -> None:
    said = run("explain", "github.com")
    assert said.status == 0
    assert "default.yaml:" in said.out


def test_explain_with_a_broken_configuration(run: Any, broken: str) -> None:
    said = run("explain", "--config", broken, "github.com")
    assert (said.status, said.out) == (2, "")
    assert "starts with a dot" in said.err


# serve ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Loaded, bool]]:
    """In place of the server."""
    calls: list[tuple[Loaded, bool]] = []

    def serve(loaded: Loaded, *, packaged_default: bool, loop: str, reuse_port: bool) -> None:
        assert loop == "uvloop"
        assert not reuse_port
        assert Path(loaded.config.source).is_file()
        calls.append((loaded, packaged_default))

    monkeypatch.setattr(app, "run", serve)
    return calls


def test_serve_hands_the_configuration_to_the_server(
    run: Any, served: list[tuple[Loaded, bool]]
) -> None:
    assert run("serve", "--config", EXAMPLE).status == 0
    ((loaded, packaged_default),) = served
    assert loaded.config.source == EXAMPLE
    assert not packaged_default


def test_serve_without_a_configuration_takes_the_packaged_one(
    run: Any, served: list[tuple[Loaded, bool]]
) -> None:
    assert run("serve").status == 0
    ((loaded, packaged_default),) = served
    assert loaded.config.listen.proxy.is_loopback
    assert packaged_default


def test_serve_refuses_a_broken_configuration(
    run: Any, served: list[tuple[Loaded, bool]], broken: str
) -> None:
    said = run("serve", "--config", broken)
    assert (said.status, said.out, served) == (2, "", [])
    assert "starts with a dot" in said.err


def test_serve_says_why_it_cannot_start(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(*_: object, **__: object) -> None:
        raise app.StartError("cannot listen on 127.0.0.1:3128: the port is in use")

    monkeypatch.setattr(app, "run", serve)
    said = run("serve", "--config", EXAMPLE)
    assert (said.status, said.out) == (2, "")
    assert said.err == "egress-proxy: cannot listen on 127.0.0.1:3128: the port is in use\n"


@pytest.mark.parametrize("workers", ["0", "257", "-1", "two", "1.5", "٢", ""])
def test_serve_refuses_what_is_no_number_of_workers(run: Any, workers: str) -> None:
    said = run("serve", "--workers", workers, "--config", EXAMPLE)
    assert said.status == 2
    assert "write a number from 1 to 256, or auto" in said.err


@pytest.mark.parametrize(("workers", "wanted"), [("3", 3), ("auto", 4)])
def test_serve_with_workers(
    run: Any, monkeypatch: pytest.MonkeyPatch, workers: str, wanted: int
) -> None:
    calls = []
    monkeypatch.setattr(supervisor, "run", lambda *given, **_: calls.append(given))
    monkeypatch.setattr("egress_proxy.supervise.cpus.usable_cpus", lambda: 4)
    assert run("serve", "--workers", workers, "--config", EXAMPLE).status == 0
    ((loaded, count),) = calls
    assert count == wanted
    assert loaded.config.sources.snapshot.files[EXAMPLE]


def test_serve_auto_is_one_process_on_one_processor(
    run: Any, served: list[tuple[Loaded, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("egress_proxy.supervise.cpus.usable_cpus", lambda: 1)
    assert run("serve", "--workers", "auto", "--config", EXAMPLE).status == 0
    assert len(served) == 1


# Processes. -------------------------------------------------------------------------------------------------------


def command(*arguments: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "egress_proxy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        **options,
    )


def test_check_does_not_load_the_server() -> None:
    script = (
        "import sys\n"
        "from egress_proxy.cli import main\n"
        f"assert main(['check', {EXAMPLE!r}]) == 0\n"
        "assert main(['explain', 'github.com']) == 0\n"
        "print(sorted({'asyncio', 'uvloop', 'aiodns', 'structlog', 'prometheus_client'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    rules = "".join(f"      - .h{number}.example.com\n" for number in range(900))
    path.write_text(f"version: 1\npolicies:\n  - name: everyone\n    allow:\n{rules}")
    process = command("check", str(path))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (141, b"")


def test_a_configuration_from_a_pipe() -> None:
    process = command("check", "/dev/stdin", stdin=subprocess.PIPE)
    out, err = process.communicate(BROKEN.encode())
    assert process.returncode == 2
    assert out.startswith(b"/dev/stdin:3:30: warning: ")
    assert err == b""


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.yaml"
    process = command("check", name, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    out, err = process.communicate()
    assert process.returncode == 2
    assert b"there is no such file" in out
    assert err == b""
