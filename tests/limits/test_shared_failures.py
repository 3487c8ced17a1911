"""When the store is away, slow, or forgets: requests are decided in time, and nothing is lost for good."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from egress_proxy.config.model import SharedState
from egress_proxy.core.limits import Kind, Limits
from egress_proxy.core.tenant import Charge
from egress_proxy.limits.store import Exceeded
from tests.limits.sharing import MIB, Answer, Replica, closed, lost, replicas, until
from tests.support.certificates import Authority
from tests.support.redis_server import Delay, RedisServer, need_tls, needs_server, serving

pytestmark = needs_server
PASSWORD = "correct-horse-battery"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with serving(tmp_path) as server:
        yield server


async def ask_now(replica: Replica, *, tunnel: bool = False) -> Answer:
    """An answer that must not need the store."""
    answer = replica.store.admit((Charge(replica.policy, "acme"),), "example.com", tunnel=tunnel)
    assert not isinstance(answer, asyncio.Future)
    return answer


# Away -------------------------------------------------------------------------------------------------------------


async def test_local_each_replica_goes_on_from_what_it_knows(server: RedisServer) -> None:
    limits = Limits(requests_per_day=10, tunnels=3, new_hosts_per_hour=5)
    async with replicas(server.settings(), limits) as (one, two):
        for _ in range(3):
            await one.admitted(tunnel=True)
        for number in range(4):
            await two.admitted(f"{number}.example.com")
        await one.store.states()
        server.kill()
        await lost(one)
        # It knows of 7 requests and 3 tunnels, its own and the other's.
        assert isinstance(answer := await one.ask(tunnel=True), Exceeded)
        assert answer.kind is Kind.TUNNELS
        for _ in range(3):
            assert not isinstance(await ask_now(one), Exceeded)
        assert isinstance(answer := await ask_now(one), Exceeded)
        assert answer.kind is Kind.REQUEST_BUDGET
        # One event, however many requests there were, and each failed attempt in the metric.
        assert [(each.up, each.why) for each in one.changes] == [(False, "the connection failed")]
        assert one.store.failures >= 1


async def test_closed_nothing_is_counted_without_the_store(server: RedisServer) -> None:
    limits = Limits(requests_per_second=100, bytes_per_day=1000 * MIB)
    async with replicas(closed(server.settings()), limits, 1) as (one,):
        (account,) = await one.admitted(tunnel=True)
        (mine,) = one.account().slices
        account.spend(MIB, 0)
        server.kill()
        await lost(one)
        assert isinstance(answer := await ask_now(one), Exceeded)
        assert (answer.kind, answer.retry_after) == (Kind.STORE_UNAVAILABLE, 5)
        # The tunnel may spend what was leased to it, and not a chunk more.
        spent = MIB
        while account.spend(65536, 0) is None:
            spent += 65536
        assert account.spend(1, 0) is Kind.STORE_UNAVAILABLE
        assert spent <= mine.held + 65536 <= 10 * MIB + 65536


async def test_closed_what_the_store_does_not_limit_goes_on(server: RedisServer) -> None:
    async with replicas(closed(server.settings()), Limits(bandwidth=MIB), 1) as (one,):
        server.kill()
        assert not isinstance(await ask_now(one), Exceeded)


async def test_what_was_counted_meanwhile_is_told_on_return(server: RedisServer) -> None:
    """Although the store has lost everything: each replica tells the whole of what it has counted."""
    limits = Limits(
        requests_per_second=1000,
        tunnels=9,
        requests_per_day=100,
        bytes_per_day=1000 * MIB,
        new_hosts_per_hour=50,
    )
    async with replicas(server.settings(), limits) as both:
        one, two = both
        for each in both:
            (account,) = await each.admitted("before.example.com", tunnel=True)
            account.spend(MIB, 0)
        server.kill()
        await lost(one, two)
        for each in both:
            for number in range(3):
                (account,) = await each.admitted(f"{number}.example.com", tunnel=True)
                account.spend(MIB, MIB)
        assert server.start()
        await until(lambda: one.store.up and two.store.up)
        assert [[change.up for change in each.changes] for each in both] == [[False, True]] * 2
        with server.client() as client:
            (day,) = client.scan_iter("*:day:*")
            assert client.hget(day, "requests") == "8"
            (key,) = client.scan_iter("*:tunnels:*")
            assert sorted(client.hvals(key)) == ["4", "4"]
            (key,) = client.scan_iter("*:hosts:*")
            assert client.zcard(key) == 4
        await one.store.close()
        await two.store.close()
        with server.client() as client:
            assert client.hget(day, "both") == str(14 * MIB)


async def test_a_kill_in_mid_run_loses_no_more_than_the_slices(server: RedisServer) -> None:
    budget = 200 * MIB
    async with replicas(closed(server.settings()), Limits(bytes_per_day=budget)) as both:
        passed = 0

        async def load(replica: Replica) -> None:
            nonlocal passed
            (account,) = await replica.admitted(tunnel=True)
            while account.spend(0, 65536) is None:
                passed += 65536
                await asyncio.sleep(0.001)

        tasks = [asyncio.ensure_future(load(each)) for each in both]
        await until(lambda: passed > 20 * MIB)
        server.kill()
        await asyncio.gather(*tasks)
        at_the_end = passed
        slices = sum(each.account().slices[0].most for each in both)
        known = sum(each.account().slices[0].held for each in both)
        # What passed while the next slices were on their way.
        assert at_the_end <= known + 2 * (4 * MIB + 65536)
        assert known - at_the_end <= slices


async def test_closed_no_more_than_a_slice_passes_while_the_store_is_silent(
    server: RedisServer,
) -> None:
    delay = Delay()
    async with delay.before(server.port):
        settings = closed(SharedState(host="127.0.0.1", port=delay.port, timeout=0.5, lease=60.0))
        async with replicas(settings, Limits(bytes_per_day=400 * MIB), 1) as (one,):
            (account,) = await one.admitted(tunnel=True)
            held = one.account().slices[0].held
            delay.seconds = 0.9
            spent = 0
            while account.spend(65536, 0) is None:
                spent += 65536
                await asyncio.sleep(0)
            assert spent <= held + 4 * MIB + 65536
            delay.seconds = 0.0


async def test_an_answer_that_is_not_understood_leaves_nobody_waiting(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: complaints.append(context["message"])
    )
    async with replicas(server.settings(), Limits(requests_per_day=9), 1) as (one,):
        link = one.store._link
        assert link is not None
        call: Any = link.call

        def garbled(*arguments: Any) -> None:
            *rest, on_reply = arguments
            call(*rest, lambda reply: on_reply(reply and b"1 x"))

        monkeypatch.setattr(link, "call", garbled)
        await one.admitted()
        assert complaints == ["an answer of the store is not understood"]
        monkeypatch.undo()
        await one.admitted()


async def test_a_store_that_is_away_costs_nothing_to_ask(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(requests_per_second=1e6, burst=10**6), 1) as (
        one,
    ):
        server.kill()
        await lost(one)
        before = time.process_time()
        for _ in range(2000):
            await ask_now(one)
        # 100 ms for each of them would be 200 s, of waiting as well.
        assert time.process_time() - before < 2


async def test_it_starts_without_a_store_and_finds_it_later(server: RedisServer) -> None:
    server.kill()
    async with replicas(server.settings(), Limits(requests_per_day=3), 1) as (one,):
        assert [each.up for each in one.changes] == [False]
        await one.admitted()
        assert server.start()
        await until(lambda: one.store.up)
        await one.admitted()
        with server.client() as client:
            (key,) = client.scan_iter("*:day:*")
            assert client.hget(key, "requests") == "2"


async def test_a_store_that_forgets_while_it_runs_is_told_again(server: RedisServer) -> None:
    async with replicas(server.settings(lease=0.3), Limits(requests_per_day=9, tunnels=5), 1) as (
        one,
    ):
        for _ in range(3):
            await one.admitted(tunnel=True)
        with server.client() as client:
            client.flushall()
            async with asyncio.timeout(10):
                while not (keys := [*client.scan_iter("*:day:*")]):  # noqa: ASYNC110 - in the store
                    await asyncio.sleep(0.01)
            assert client.hget(keys[0], "requests") == "3"


# Slow -------------------------------------------------------------------------------------------------------------


async def test_a_slow_store_is_waited_for_no_longer_than_the_timeout(server: RedisServer) -> None:
    delay = Delay()
    async with delay.before(server.port):
        settings = SharedState(host="127.0.0.1", port=delay.port, timeout=0.1, lease=60.0)
        async with replicas(settings, Limits(requests_per_day=100), 1) as (one,):
            await one.admitted()
            delay.seconds = 0.7
            begun = time.monotonic()
            answers = await asyncio.gather(*(one.ask() for _ in range(5)))
            took = time.monotonic() - begun
            assert not any(isinstance(each, Exceeded) for each in answers)
            assert 0.09 <= took < 0.6
            await ask_now(one)
            assert [(each.up, each.why) for each in one.changes] == [
                (False, "it did not answer in time")
            ]
            # It answers, and too late: it is not taken back.
            await asyncio.sleep(0.9)
            assert not one.store.up
            delay.seconds = 0.0
            await until(lambda: one.store.up)
            # What the late connection has still counted is put right by what is told.
            await one.store.states()
            with server.client() as client:
                (key,) = client.scan_iter("*:day:*")
                assert client.hget(key, "requests") == "7"


# Who does not come back -------------------------------------------------------------------------------------------

_REPLICA = """
import asyncio, sys
from egress_proxy.core.limits import Limits
from tests.limits.sharing import Replica
from egress_proxy.config.model import SharedState

async def main():
    settings = SharedState(host="127.0.0.1", port=int(sys.argv[1]), timeout=2.0, lease=1.0)
    replica = Replica(settings, Limits(tunnels=3))
    replica.store.start()
    await replica.store.ready(2.0)
    for _ in range(3):
        await replica.admitted(tunnel=True)
    print("open", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_replica_that_is_killed_gives_its_tunnels_back(server: RedisServer) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _REPLICA, str(server.port)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        async with replicas(server.settings(lease=1.0), Limits(tunnels=3), 1) as (one,):
            assert (await one.refused(tunnel=True)).kind is Kind.TUNNELS
            os.kill(process.pid, signal.SIGKILL)
            # Not before its lease is over.
            assert (await one.refused(tunnel=True)).kind is Kind.TUNNELS
            async with asyncio.timeout(10):
                while isinstance(await one.ask(tunnel=True), Exceeded):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await one.admitted(tunnel=True)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_an_end_gives_everything_back_at_once(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(tunnels=1, bytes_per_day=1000 * MIB)) as (
        one,
        two,
    ):
        await one.admitted(tunnel=True)
        assert isinstance(await two.ask(tunnel=True), Exceeded)
        await one.store.close()
        await two.admitted(tunnel=True)


# Passwords, TLS, rights -------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_told_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path, "--requirepass", PASSWORD) as server:
        for wrong in ("wrong-" + PASSWORD, ""):
            settings = server.settings(password=wrong)
            async with replicas(settings, Limits(requests_per_day=1), 1) as (one,):
                await until(lambda: one.changes)
                assert one.changes[0].why == "it refused the user or the password"
                assert (
                    PASSWORD not in repr(settings) + str(settings) + repr(one.changes) + caplog.text
                )
        settings = server.settings(password=PASSWORD)
        async with replicas(settings, Limits(requests_per_day=1), 1) as (one,):
            assert one.store.up


async def test_a_user_needs_few_rights(server: RedisServer) -> None:
    """Those that the documentation names."""
    rights = ["+eval", "+evalsha", "+time", "+select"]
    rights += ["+get", "+set", "+hmget", "+hset", "+hdel", "+hincrby", "+hgetall"]
    rights += ["+zadd", "+zrem", "+zcard", "+zscore", "+zrange", "+zrangebyscore"]
    rights += ["+zremrangebyscore", "+expire", "+pexpireat"]
    with server.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "proxy", "reset", "on", f">{PASSWORD}"),
            *("~{egress-proxy}:*", *rights),
        )
    limits = Limits(
        requests_per_second=100,
        tunnels=9,
        requests_per_day=9,
        bytes_per_day=MIB,
        new_hosts_per_hour=9,
    )
    settings = server.settings(user="proxy", password=PASSWORD, database=1)
    async with replicas(settings, limits, 1) as (one,):
        await one.admitted(tunnel=True)
        await one.store.states()
        assert (one.store.up, one.changes) == (True, [])
    # With another prefix, it has no rights.
    async with replicas(
        server.settings(user="proxy", password=PASSWORD, prefix="x"), limits, 1
    ) as (one,):
        await until(lambda: one.changes)
        assert one.changes[0].why == "it answered with the error NOPERM"


async def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    need_tls()
    ours, others = Authority(tmp_path), tmp_path / "others"
    others.mkdir()
    other = Authority(others)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    leaf = ours._leaf
    leaf.private_key_and_cert_chain_pem.write_to_path(certificate)
    key.write_bytes(certificate.read_bytes())
    with serving(tmp_path, "--requirepass", PASSWORD, tls=(certificate, key, ours.file)) as server:

        def settings(authority: Authority, host: str) -> SharedState:
            ca = authority.file.read_text()
            return SharedState(
                host=host, port=server.port, tls=True, ca=ca, password=PASSWORD, timeout=2.0
            )

        limits = Limits(requests_per_day=3)
        async with replicas(settings(ours, "127.0.0.1"), limits) as (one, two):
            await one.admitted()
            await two.admitted()
            assert one.store.up
            assert two.store.up
        # Another authority; and a name that the certificate does not have.
        for bad in (settings(other, "127.0.0.1"), settings(ours, "localhost")):
            async with replicas(bad, limits, 1) as (one,):
                await until(lambda: one.changes)
                assert one.changes[0].why == "its certificate is not trusted"
        # In the clear, to a port of TLS.
        async with replicas(server.settings(password=PASSWORD), limits, 1) as (one,):
            await until(lambda: one.changes)
            assert not one.store.up


def _cluster_is_ready(client: redis.Redis) -> bool:
    said: str = client.execute_command("CLUSTER", "INFO")
    return "cluster_state:ok" in said.replace("'", "").replace(": ", ":")


# Other servers ----------------------------------------------------------------------------------------------------


async def test_a_cluster_says_where_the_keys_are(tmp_path: Path) -> None:
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with serving(tmp_path / "a", *options) as first, serving(tmp_path / "b", *options) as second:
        with first.client() as a, second.client() as b:
            slot = a.execute_command("CLUSTER", "KEYSLOT", "{egress-proxy}:x")
            # Version 6.2 has no ranges.
            b.execute_command("CLUSTER", "ADDSLOTS", *range(slot + 1))
            a.execute_command("CLUSTER", "ADDSLOTS", *range(slot + 1, 16384))
            a.execute_command("CLUSTER", "MEET", "127.0.0.1", second.port)
            for client in (a, b):
                ready = partial(_cluster_is_ready, client)
                await until(ready, seconds=20)
        async with replicas(first.settings(), Limits(requests_per_day=1)) as (one, two):
            await until(lambda: one.store.up and two.store.up)
            await one.admitted()
            await two.refused()
            assert one.changes == []
        with second.client() as b:
            assert any(b.scan_iter("*:day:*"))


async def test_what_is_no_redis_is_told_so(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        settings = SharedState(host="127.0.0.1", port=port, timeout=2.0)
        async with replicas(settings, Limits(requests_per_day=1), 1) as (one,):
            await until(lambda: one.changes)
            assert not one.changes[0].up
            assert "HTTP" not in one.changes[0].why
            await one.admitted()


async def test_a_store_without_memory_left_is_away(server: RedisServer) -> None:
    async with replicas(server.settings(), Limits(requests_per_day=5), 1) as (one,):
        await one.admitted()
        with server.client() as client:
            client.config_set("maxmemory", 1)
        await one.admitted()
        assert one.changes[-1].why == "it answered with the error OOM"
        with server.client() as client:
            client.config_set("maxmemory", 0)
        await until(lambda: one.store.up)
        await one.admitted()
        with server.client() as client:
            (key,) = client.scan_iter("*:day:*")
            assert client.hget(key, "requests") == "3"
