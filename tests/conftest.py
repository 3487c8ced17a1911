"""Fixtures of all tests, and what every test must leave behind: nothing."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import socket
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
import uvloop
from hypothesis import settings

from tests.support.certificates import Authority
from tests.support.dns import NameServer
from tests.support.origin import Origin
from tests.support.proxy import Proxy, configuration, rule, write
from tests.support.serving import Handler, Server
from tests.support.tools import descriptors, wait_until

# Which loop an async test runs on ---------------------------------------------------------------

_LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop, as in production; and, for ``mark.asyncio(loop_factories=["uvloop", "asyncio"])``, both."""
    marker = item.get_closest_marker("asyncio")
    chosen = marker is not None and "loop_factories" in marker.kwargs
    return _LOOPS if chosen else {"uvloop": uvloop.new_event_loop}


# No test is skipped in CI -----------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--loop", choices=_LOOPS, help="run the proxy on this event loop, uvloop by default"
    )
    parser.addoption(
        "--times", type=float, default=1, help="try so many times as many examples of each property"
    )


@pytest.hookimpl(trylast=True)  # the marker is set by hypothesis' own hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    times = config.getoption("--times")
    for item in items if times != 1 else ():
        if item.get_closest_marker("hypothesis"):
            function: Any = item.obj  # type: ignore[attr-defined]
            # How hypothesis itself keeps what @settings said; there is no public way to change it.
            said = function._hypothesis_internal_use_settings
            function._hypothesis_internal_use_settings = settings(
                said, max_examples=max(int(times * said.max_examples), 5), derandomize=times < 1
            )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The proxy runs on uvloop, as in production; CI runs it on asyncio's own loop as well."""
    if "proxy_loop" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--loop") or "uvloop"
        metafunc.parametrize("proxy_loop", [chosen], indirect=True)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    forbidden = os.environ.get("EGRESS_TEST_NO_SKIP") == "1"
    if forbidden and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which EGRESS_TEST_NO_SKIP=1 forbids: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


# What a test leaves behind ----------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _process_wide_descriptors() -> None:
    """libuv opens what it keeps for ever with the first loop: that is no test's leak."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def _nothing_left_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """The descriptors and asyncio tasks after a test are those from before it."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_no_task_left")  # first, because it opens the loop
    before = descriptors()
    yield

    def leaked() -> dict[int, str]:
        return {
            number: target
            for number, target in descriptors().items()
            if before.get(number) != target
        }

    if leaked():
        gc.collect()  # what only waits for the collector warns of itself
        wait_until(lambda: not leaked(), seconds=3, what=lambda: f"left open: {leaked()}; that it")


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(10):
        await asyncio.sleep(0)  # a cancelled task needs turns to end
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"


# Peers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    """Knows ``origin.test`` and ``other.test`` on loopback, and nothing else."""
    with NameServer() as server:
        server.set("origin.test", "127.0.0.1")
        server.set("other.test", "127.0.0.1")
        yield server


@pytest.fixture
def origin(authority: Authority) -> Iterator[Origin]:
    server = Origin(authority.server_context())
    yield server
    server.close()


@pytest.fixture
def base(origin: Origin) -> str:
    """The beginning of an ``http://`` URL of the origin."""
    return f"http://origin.test:{origin.http}"


@pytest.fixture
def lan_origin(authority: Authority, name_server: NameServer) -> Iterator[Origin]:
    """An ``origin.test`` that is not on loopback, which audit mode does not open."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    name_server.set("origin.test", address)
    server = Origin(authority.server_context(), host=address)
    yield server
    server.close()


class Serve(Protocol):
    def __call__(self, handler: Handler, **options: Any) -> Server: ...


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A factory of loopback servers, closed in the end."""
    servers: list[Server] = []

    def make(handler: Handler, **options: Any) -> Server:
        servers.append(Server(handler, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


class StartProxy(Protocol):
    def __call__(self, **keys: Any) -> Proxy: ...


@pytest.fixture
def proxy_loop(request: pytest.FixtureRequest) -> str:
    """The event loop of the proxies."""
    return getattr(request, "param", "uvloop")


@pytest.fixture
def start_proxy(name_server: NameServer, proxy_loop: str, tmp_path: Path) -> Iterator[StartProxy]:
    """A factory of proxies, by default with a rule for ``origin.test`` alone.

    Keys are those of the configuration, and ``allow`` and ``deny`` of its one policy. At the end of
    the test each proxy that still runs must have closed its clients' and origins' sockets, and must
    stop as it should.
    """
    proxies: list[Proxy] = []

    def start(
        *, text: str | None = None, options: Mapping[str, Any] | None = None, **keys: Any
    ) -> Proxy:
        path = tmp_path / f"proxy-{len(proxies)}" / "policy.yaml"
        path.parent.mkdir()
        keys.setdefault("allow", [rule("origin.test")])
        config = configuration(name_server=name_server.address, **{"drain_timeout": "1s", **keys})
        write(path, config if text is None else text)
        proxies.append(Proxy(path, loop=proxy_loop, **(options or {})))
        proxies[-1].wait_until_listening()
        return proxies[-1]

    try:
        yield start
        for proxy in proxies:
            if proxy.process.poll() is None:
                proxy.settled()
                proxy.stop()
    finally:
        for proxy in proxies:
            proxy.dispose()


@pytest.fixture
def proxy(start_proxy: StartProxy) -> Proxy:
    """A proxy with the defaults of :func:`start_proxy`."""
    return start_proxy()
