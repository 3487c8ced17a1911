"""``GET /v1/limits``, and ``egress-proxy limits``, which prints it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from egress_proxy import cli
from egress_proxy.admin.limits import Answer, Limit, Tenant, as_answer
from egress_proxy.admin.limits_verb import as_table
from egress_proxy.config.load import parse
from egress_proxy.limits.store import AccountState, Used
from tests.admin.running import Admin, Host

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "admin.md"
MIDNIGHT = 1_795_478_400.0
STATES = [
    AccountState(
        *("agents", "data-team", 3, 2),
        (
            Used("tunnels", 2, 200),
            Used("bytes_per_day.up", 900 * 2**20, 2**30, MIDNIGHT),
            Used("requests_per_day", 1234, 100_000, MIDNIGHT + 0.25),
        ),
    ),
    AccountState("everyone", "everyone", 0, 0, ()),
]


# The endpoint -----------------------------------------------------------------------------------------------------


def test_what_each_tenant_has_used(host: Host) -> None:
    host.state.limits = STATES

    async def conversation(admin: Admin) -> None:
        answer = await admin.ask("GET", "/v1/limits")
        assert answer.status == 200
        assert answer.fields["content-type"] == "application/json"
        assert answer.json == {
            "tenants": [
                {
                    "policy": "agents",
                    "tenant": "data-team",
                    "requests": 3,
                    "tunnels": 2,
                    "limits": [
                        {"limit": "tunnels", "used": 2, "of": 200, "resets_at": None, "rate": None},
                        {
                            "limit": "bytes_per_day.up",
                            "used": 943718400,
                            "of": 1073741824,
                            "resets_at": "2026-11-24T00:00:00Z",
                            "rate": None,
                        },
                        {
                            "limit": "requests_per_day",
                            "used": 1234,
                            "of": 100000,
                            # Rounded up: then it is so, and not a moment before.
                            "resets_at": "2026-11-24T00:00:01Z",
                            "rate": None,
                        },
                    ],
                },
                {
                    "policy": "everyone",
                    "tenant": "everyone",
                    "requests": 0,
                    "tunnels": 0,
                    "limits": [],
                },
            ]
        }
        assert (await admin.ask("HEAD", "/v1/limits")).body == b""
        assert (await admin.ask("POST", "/v1/limits")).status == 405

    host.run(conversation)


def test_it_is_for_holders_of_the_token(host: Host, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    object.__setattr__(host.state.config, "admin_token_file", str(token))
    host.state.limits = STATES

    async def conversation(admin: Admin) -> None:
        for fields in ((), ("Authorization: Bearer wrong",)):
            answer = await admin.ask("GET", "/v1/limits", *fields)
            assert answer.status == 401
            assert b"data-team" not in answer.body
        answer = await admin.ask("GET", "/v1/limits", "Authorization: Bearer secret")
        assert answer.status == 200

    host.run(conversation)


def test_the_page_explains_every_field() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## `GET /v1/limits`")[2]
    section = section.partition("\n## ")[0]
    for struct in (Tenant, Limit):
        for field in struct.__struct_fields__:
            assert f"`{field}`" in section


# The verb ---------------------------------------------------------------------------------------------------------


@contextmanager
def answering(host: Host) -> Iterator[int]:
    """An admin port in a thread of its own, because the verb waits for it."""
    ready, port, stop = threading.Event(), [0], asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def conversation(admin: Admin) -> None:
        loops.append(asyncio.get_running_loop())
        port[0] = admin.server.port
        ready.set()
        await stop.wait()

    thread = threading.Thread(target=host.run, args=(conversation,))
    thread.start()
    try:
        assert ready.wait(10)
        yield port[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(10)


def run(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(("limits", *arguments))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_table(host: Host, capsys: Any) -> None:
    host.state.limits = STATES
    with answering(host) as port:
        status, out, err = run(capsys, "--admin", f"http://127.0.0.1:{port}")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["POLICY", "TENANT", "LIMIT", "USED", "OF", "LEFT", "RESETS", "IN"]
    # The least is left of the bytes.
    assert lines[1][:8] == [
        "agents",
        "data-team",
        "bytes_per_day.up",
        "900.0",
        "MiB",
        "1.0",
        "GiB",
        "12%",
    ]
    assert lines[2][:6] == ["agents", "data-team", "requests_per_day", "1,234", "100,000", "99%"]
    assert lines[3] == ["agents", "data-team", "tunnels", "2", "200", "99%"]
    assert lines[4] == ["everyone", "everyone", "(none", "counted)"]


def test_json(host: Host, capsys: Any) -> None:
    host.state.limits = STATES
    with answering(host) as port:
        url = f"http://127.0.0.1:{port}/"
        status, out, _ = run(capsys, "--admin", url, "--format", "json")
    assert status == 0
    assert [each["tenant"] for each in json.loads(out)["tenants"]] == ["data-team", "everyone"]


def test_nothing_is_used(host: Host, capsys: Any) -> None:
    with answering(host) as port:
        status, out, _ = run(capsys, "--admin", f"http://127.0.0.1:{port}")
    assert (status, out) == (0, "No tenant has used any of its limits.\n")


def test_the_token(host: Host, capsys: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    object.__setattr__(host.state.config, "admin_token_file", str(token))
    wrong = tmp_path / "wrong"
    wrong.write_text("other")
    with answering(host) as port:
        url = f"http://127.0.0.1:{port}"
        status, _, err = run(capsys, "--admin", url)
        assert status == 1
        assert "answers 401 UNAUTHORIZED; name the token's file with --token-file" in err
        assert run(capsys, "--admin", url, "--token-file", str(wrong))[0] == 1
        assert run(capsys, "--admin", url, "--token-file", str(token))[0] == 0


@pytest.mark.parametrize("content", [b"", b" \n", b"a\nb: c", b"\xff"])
def test_a_file_without_a_token(content: bytes, capsys: Any, tmp_path: Path) -> None:
    """What would be a header of its own is no token."""
    path = tmp_path / "token"
    path.write_bytes(content)
    status, _, err = run(capsys, "--token-file", str(path))
    assert (status, err) == (2, "egress-proxy limits: the token file holds no token\n")
    status, _, err = run(capsys, "--token-file", str(tmp_path / "none"))
    assert status == 2
    assert "cannot be read: No such file" in err


@pytest.mark.parametrize(
    "url",
    [
        *(
            "localhost:9090",
            "https://127.0.0.1:9090",
            "http://",
            "http://u:p@h:1",
            "http://h:99999",
        ),
        *("http://h/x", "http://h?x", "http://h h", "file:///etc/passwd", "http://[::1", ""),
    ],
)
def test_what_is_no_admin_port(url: str, capsys: Any) -> None:
    status, out, err = run(capsys, "--admin", url)
    assert (status, out) == (2, "")
    assert "write the admin port as http://HOST:PORT" in err
    assert "u:p" not in err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:9090", "http://HOST:PORT, here http://localhost:9090"),
        ("127.0.0.1", "here http://127.0.0.1"),
        ("https://[::1]:9443", "speaks plain HTTP; write the admin port as http://HOST:PORT, here http://[::1]:9443"),
        ("http://a.test:9090/v1/limits", "here http://a.test:9090"),
        ("http://u:secret@h:1", "its token is --token-file's"),
        ("u:secret@h:1", "its token is --token-file's"),
    ],
)  # fmt: skip
def test_what_to_write_instead(url: str, said: str, capsys: Any) -> None:
    status, _, err = run(capsys, "--admin", url)
    assert status == 2
    assert said in err
    assert "secret" not in err


WHERE = "name the proxy's admin port (`listen.admin`) with --admin, such as http://127.0.0.1:9090"


def test_nobody_answers(capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    status, _, err = run(capsys, "--admin", f"http://127.0.0.1:{port}")
    assert status == 2
    assert err == (
        f"egress-proxy limits: nothing listens on 127.0.0.1:{port} (Connection refused); see that the proxy runs, "
        f"and {WHERE}\n"
    )


def test_a_host_without_an_address(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for url in ("http://none.test:9090", "http://a..b:1"):
        status, _, err = run(capsys, "--admin", url)
        assert status == 2
        assert "has no address" in err


def test_whoever_says_nothing(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egress_proxy.admin.asking._TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        status, _, err = run(capsys, "--admin", f"http://127.0.0.1:{port}")
    assert status == 2
    assert f"127.0.0.1:{port} does not answer within 0 s; {WHERE}" in err


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 2, "is not the admin port"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff\x00a", 2, "is not the admin port"),
        (b"SSH-2.0-x\r\n", 2, "does not speak HTTP; name the proxy's admin port"),
        (b"", 2, "closed the connection without an answer, as a port for TLS may"),
        # TLS alerts, and the words of servers that know better.
        (b"\x15\x03\x01\x00\x02\x02\x46", 2, "speaks TLS, and the admin port does not"),
        (
            b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
            *(2, "speaks TLS, and the admin port does not"),
        ),
        (
            b"HTTP/1.1 400 No\r\n\r\n<h1>The plain HTTP request was sent to HTTPS port</h1>",
            *(2, "speaks TLS, and the admin port does not"),
        ),
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", 2, "is not the admin port"),
        # The proxy's own port, as it answers what is no request to a proxy.
        (
            b"HTTP/1.1 400 Bad Request\r\nX-Egress-Error: SCHEMA_VALIDATION_FAILED\r\n\r\n%b"
            % b'{"error":{"reason":"not_a_proxy_request"}}',
            *(2, "is where clients reach a proxy (`listen.proxy`); name the proxy's admin port"),
        ),
        (
            b"HTTP/1.1 503 No\r\nX-Egress-Error: RETRY_LATER\r\n\r\n[",
            *(1, "the admin port answers 503 RETRY_LATER\n"),
        ),
        (
            b"HTTP/1.1 403 No\r\nX-Egress-Error: \x1b[31mred\r\nContent-Length: 0\r\n\r\n",
            *(1, "answers 403\n"),
        ),
    ],
)
def test_whoever_answers_there(answer: bytes, status: int, said: str, capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        found, out, err = run(capsys, "--admin", url)
        thread.join(10)
    assert (found, out) == (status, "")
    assert said in err
    assert "\x1b" not in err


def test_names_from_there_cannot_write_to_the_terminal() -> None:
    strange = Tenant("a\x1b[2J", "b\n", 0, 0, [Limit("x\x07", 1, 2)])
    table = as_table(Answer([strange]), lambda: 0.0)
    assert table.isascii()
    assert table.count("\n") == 2
    assert not {"\x1b", "\x07"} & set(table)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 s"),
        (58.5, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (7260, "2 h 1 min"),
        (-5, "0 s"),
    ],
)
def test_the_time_that_is_left(seconds: float, said: str) -> None:
    limit = Limit("requests_per_day", 5, 5, datetime.fromtimestamp(1_000_000 + seconds, UTC))
    table = as_table(Answer([Tenant("p", "t", 0, 0, [limit])]), lambda: 1_000_000.0)
    assert table.splitlines()[1].endswith(f"0%  {said}")


# Rates ------------------------------------------------------------------------------------------------------------

RATES = """\
version: 1
policies:
  - {name: slow, allow: [a.test], limits: {requests_per_second: 0.5, burst: 4}}
  - {name: fast, allow: [a.test], limits: {requests_per_second: 50, tunnels: 10}}
  - {name: wide, allow: [a.test], limits: {bandwidth: 1MiB}}
"""


def test_a_rate_and_what_is_left_of_it() -> None:
    policies = parse(RATES.encode(), "f.yaml").config.policy.policies
    states = [
        AccountState("slow", "slow", 0, 0, (Used("requests_per_second", 3, 4, 1_000_006.0),)),
        AccountState("fast", "t", 1, 1, (Used("tunnels", 1, 10),)),
        AccountState("wide", "wide", 1, 1, ()),
        # Of a policy that is gone.
        AccountState("gone", "gone", 1, 1, ()),
    ]
    found = as_answer(states, policies)
    slow, fast, *others = found.tenants
    (limit,) = slow.limits
    assert (limit.limit, limit.used, limit.of, limit.rate) == ("requests_per_second", 3, 4, 0.5)
    # A store that does not tell leaves it open; the rate is known all the same.
    rate, tunnels = fast.limits
    assert (rate.limit, rate.used, rate.of, rate.rate) == ("requests_per_second", None, 50, 50.0)
    assert (tunnels.limit, tunnels.rate) == ("tunnels", None)
    assert [each.limits for each in others] == [[], []]
    lines = as_table(found, lambda: 1_000_000.0).splitlines()
    assert lines[1].split() == [
        "slow",
        "slow",
        "requests_per_second",
        "0.5",
        "3",
        "4",
        "25%",
        "6",
        "s",
    ]
    assert lines[2].split() == ["fast", "t", "tunnels", "1", "10", "90%"]
    assert lines[3].split() == ["fast", "t", "requests_per_second", "50", "50"]
    assert lines[4].split() == ["gone", "gone", "(none", "counted)"]
