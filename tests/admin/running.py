"""A running admin port, and a client that says exactly what a test wants said."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

import h11
import msgspec
import uvloop

from egress_proxy.admin.server import AdminServer, PolicyOfWorker
from egress_proxy.config.model import Config, Listen, SocketAddress
from egress_proxy.core.policy import Action, CompiledPolicy, HostPattern, Place, Policy, Rule
from egress_proxy.core.reason import Reason
from egress_proxy.limits.store import AccountState
from egress_proxy.observe.metrics import Metrics
from tests.support.contract import contract

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def configuration(**changes: Any) -> Config:
    place = Place("policy.yaml", 3, 5)
    rules = (
        Rule(Action.ALLOW, HostPattern("example.com", wildcard=False), place),
        Rule(Action.ALLOW, ip_network("192.0.2.0/24"), place),
    )
    config = Config(
        policy=CompiledPolicy([Policy("everyone", rules, None, place)]),
        source="policy.yaml",
        digest="ab" * 32,
        listen=Listen(admin=SocketAddress("127.0.0.1", 0)),
    )
    return replace(config, **changes)


@dataclass
class State:
    """What the application would be to the admin port."""

    config: Config = field(default_factory=configuration)
    metrics: Metrics = field(default_factory=Metrics)
    generation: int = 3
    loaded_at: float = 1_700_000_000.125
    ready: bool = True
    draining: bool = False
    workers: tuple[PolicyOfWorker, ...] = ()
    reloads: int = 0
    failure: Exception | None = None
    answers: dict[str, tuple[str, ...] | Reason] = field(default_factory=dict)
    """What the name servers say."""
    limits: list[AccountState] = field(default_factory=list)
    """What each tenant has used."""

    async def exposition(self) -> bytes:
        # As the engine has it done: beside everything else.
        return await asyncio.to_thread(self.metrics.exposition)

    async def resolve(self, name: str) -> tuple[str, ...] | Reason:
        return self.answers[name]

    async def limit_states(self) -> list[AccountState]:
        return self.limits

    async def reload(self) -> None:
        self.reloads += 1
        if self.failure is not None:
            raise self.failure
        self.generation += 1


@dataclass(frozen=True)
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def reason(self) -> str:
        """The reason of a refusal; its other parts are checked on the way."""
        error = self.json["error"]
        assert self.fields["x-egress-error"] == error["code"]
        assert error["request_id"]
        return str(error["reason"])


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._unread = b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, method: str = "GET") -> Answer:
        """Read one response, as an independent parser understands it."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        if self._unread:  # no data means the end of the connection
            parser.receive_data(self._unread)
        response, body = None, b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await self.reader.read(65536)
                parser.receive_data(data)
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
        self._unread = parser.trailing_data[0]
        assert response is not None
        fields = {name.decode(): value.decode() for name, value in response.headers}
        return Answer(response.status_code, fields, body)

    async def ends(self) -> bool:
        """Whether the server closes, and says nothing more before."""
        return not self._unread and await self.reader.read() == b""

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


class Admin:
    """A server that listens, and its clients."""

    def __init__(self, server: AdminServer) -> None:
        self.server = server
        self._clients: list[Client] = []

    async def client(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        self._clients.append(Client(reader, writer))
        return self._clients[-1]

    async def raw(self, data: bytes, method: str = "GET") -> Answer:
        """The answer to these bytes on a connection of their own."""
        client = await self.client()
        await client.send(data)
        return await client.answer(method)

    async def ask(
        self,
        method: str,
        path: str,
        *fields: str,
        body: bytes = b"",
        host: str = "localhost",
        headers: str | None = None,
    ) -> Answer:
        """Ask once. ``headers`` replaces the contract headers of a request that changes something."""
        if headers is None and method not in {"GET", "HEAD"}:
            headers = contract()
        fields += tuple((headers or "").split("\r\n")[:-1])
        length = [f"Content-Length: {len(body)}"] if body else []
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, *length, "", ""]
        return await self.raw("\r\n".join(lines).encode() + body, method)

    async def close(self) -> None:
        for client in self._clients:
            client.writer.close()
        for client in self._clients:
            with suppress(OSError):
                await client.writer.wait_closed()


class Host:
    """Runs a test's conversation on one kind of event loop and checks that nothing is left."""

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.state = State()
        self._loop_factory = loop_factory

    def run(self, conversation: Callable[[Admin], Awaitable[None]]) -> None:
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            server = AdminServer(self.state, self.state.limit_states)
            await server.start()
            admin = Admin(server)
            try:
                await conversation(admin)
            finally:
                await admin.close()
                await server.close()
            # What a transport still does to close takes a turn of the loop or two.
            for _ in range(3):
                await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(main())
        assert complaints == []


@contextmanager
def faster(monkeypatch: Any, **seconds: float) -> Iterator[None]:
    """With shorter timeouts than real clients need."""
    with monkeypatch.context() as patch:
        for name, value in seconds.items():
            patch.setattr(f"egress_proxy.admin.http.{name}", value)
        yield
