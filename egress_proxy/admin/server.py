"""The admin port: what each path answers, and the server that answers.

docs/reference/admin.md is its manual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Final, Protocol

import msgspec

from egress_proxy.admin.access import TokenFile, local_refusal, principal
from egress_proxy.admin.http import Connection, Refusal, Request, Response
from egress_proxy.admin.idempotency import Answers, payload_of, scope_of
from egress_proxy.admin.limits import as_answer
from egress_proxy.config.errors import ConfigError
from egress_proxy.config.model import Config
from egress_proxy.core import reasons
from egress_proxy.core.contract import EXEMPT, check_contract
from egress_proxy.core.errors import HeadError, HostError, IdentityError
from egress_proxy.core.explain import explain, parse_question
from egress_proxy.core.http1 import Head
from egress_proxy.core.identity import identity
from egress_proxy.core.reason import Reason
from egress_proxy.limits.store import AccountState
from egress_proxy.observe.events import log
from egress_proxy.observe.metrics import CONTENT_TYPE

#: Connections at once. Probes and scrapes need a handful; whoever holds more is answered 503.
MAX_CONNECTIONS: Final = 64

# Problems of a refused configuration that the answer names; the log names all.
_PROBLEMS_SHOWN: Final = 10


Endpoint = Callable[[Request], Awaitable[Response | Refusal]]


class AdminState(Protocol):
    """What the admin port asks of the running proxy."""

    async def exposition(self) -> bytes:
        """All metrics in the text format."""

    @property
    def config(self) -> Config:
        """The configuration in force."""

    @property
    def generation(self) -> int: ...
    @property
    def loaded_at(self) -> float:
        """When the configuration in force was loaded, in seconds since the epoch."""

    @property
    def ready(self) -> bool:
        """Whether the proxy takes connections, or once did and now drains."""

    @property
    def draining(self) -> bool: ...
    @property
    def workers(self) -> Sequence[PolicyOfWorker]:
        """What each worker decides by; none where one process does everything."""

    async def resolve(self, name: str) -> tuple[str, ...] | Reason:
        """The addresses behind a name, or why there are none."""

    async def reload(self) -> None:
        """Load the configuration again. Raises ConfigError and leaves the old one in force."""


#: What each tenant has used.
LimitStates = Callable[[], Awaitable[list[AccountState]]]


async def _no_limits() -> list[AccountState]:
    return []


class AdminServer:
    """Serves the admin port until closed."""

    def __init__(self, state: AdminState, limits: LimitStates = _no_limits) -> None:
        self._state = state
        self._limit_states = limits
        self._token = TokenFile()
        self._answers = Answers(monotonic)
        self._server: asyncio.Server | None = None
        self._loopback = False
        self._connections: set[asyncio.Task[None]] = set()
        endpoints: dict[str, dict[str, Endpoint]] = {
            "/healthz": {"GET": self._healthz},
            "/readyz": {"GET": self._readyz},
            "/metrics": {"GET": self._metrics},
            "/v1/policy": {"GET": self._policy},
            "/v1/limits": {"GET": self._limits},
            "/v1/explain": {"POST": self._explain},
            "/v1/reload": {"POST": self._reload},
        }
        for methods in endpoints.values():
            if "GET" in methods:
                methods["HEAD"] = methods["GET"]
        self._endpoints = endpoints

    @property
    def port(self) -> int:
        """The port that is listened on, which the system chose where 0 was asked for."""
        assert self._server is not None  # noqa: S101 - asked for after start()
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, *, reuse_port: bool = False) -> None:
        """Listen where the configuration says, perhaps beside another proxy. Raises OSError."""
        address = self._state.config.listen.admin
        self._loopback = address.is_loopback
        self._server = await asyncio.start_server(
            self._serve, address.host, address.port, reuse_port=reuse_port or None
        )

    async def close(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - start_server makes a task for each connection
        full = len(self._connections) >= MAX_CONNECTIONS
        self._connections.add(task)
        connection = Connection(reader, writer)
        try:
            try:
                if full:
                    refused = Refusal(reasons.OVERLOADED)
                    await connection.send(refused, method="GET", keep_alive=False)
                else:
                    await self._converse(connection)
            finally:
                await connection.close()
        except OSError:
            pass  # The client went away, or does not read: nobody is left to tell.
        except asyncio.CancelledError:
            # close() alone cancels, and Python 3.11 reports a cancelled handler as a defect.
            writer.transport.abort()
        finally:
            self._connections.discard(task)

    async def _converse(self, connection: Connection) -> None:
        """Answer one request after the other."""
        keep_alive = True
        while keep_alive:
            try:
                request = await connection.receive()
            except HeadError as error:
                refused = Refusal(error.reason, error.detail)
                await connection.send(refused, method="GET", keep_alive=False)
                await connection.linger()
                return
            if request is None:
                return
            answer = await self._answer(request)
            defect = isinstance(answer, Refusal) and answer.reason is reasons.INTERNAL_ERROR
            keep_alive = request.keep_alive and not defect
            await connection.send(answer, method=request.head.method, keep_alive=keep_alive)

    async def _answer(self, request: Request) -> Response | Refusal:
        refused = _host_refusal(request.head)
        if refused is None and request.path.startswith("/v1/"):
            refused = self._access_refusal(request.head)
        if refused is not None:
            return refused
        methods = self._endpoints.get(request.path)
        if methods is None:
            return Refusal(reasons.NO_SUCH_ENDPOINT)
        endpoint = methods.get(request.head.method)
        if endpoint is None:
            allow = b"Allow: %b\r\n" % ", ".join(methods).encode("ascii")
            return Refusal(reasons.ENDPOINT_METHOD_NOT_ALLOWED, fields=allow)
        act = partial(self._act, endpoint, request)
        if request.head.method in EXEMPT:
            return await act()
        # Whatever `contract_headers` says: that is about what goes through the proxy.
        breach = check_contract(request.head.method, request.head.fields)
        if breach is not None:
            return Refusal(breach.reason, breach.detail)
        scope = scope_of(request, principal(request.head, self._state.config.admin_token_file))
        return await self._answers.once(scope, payload_of(request), act)

    async def _act(self, endpoint: Endpoint, request: Request) -> Response | Refusal:
        try:
            return await endpoint(request)
        except Exception:  # noqa: BLE001 - a defect of ours: told, logged, the connection closed
            refused = Refusal(reasons.INTERNAL_ERROR)
            log.error(
                "internal_error",
                request_id=refused.request_id,
                path=request.path,
                exc_info=True,
            )
            return refused

    def _access_refusal(self, head: Head) -> Refusal | None:
        """Why the request may not use ``/v1/``, or None."""
        token_file = self._state.config.admin_token_file
        if token_file is not None:
            admitted = self._token.admits(token_file, head)
            return None if admitted else Refusal(reasons.CREDENTIALS_REQUIRED)
        if not self._loopback:
            return Refusal(reasons.CREDENTIALS_REQUIRED, "and no admin_token_file is configured")
        return local_refusal(head)

    # The endpoints.

    async def _healthz(self, _request: Request) -> Response:
        return Response(b"ok\n", "text/plain; charset=utf-8")

    async def _readyz(self, _request: Request) -> Response | Refusal:
        if self._state.draining:
            return Refusal(reasons.DRAINING)
        if not self._state.ready:
            return Refusal(reasons.STARTING)
        return Response(b"ready\n", "text/plain; charset=utf-8")

    async def _metrics(self, _request: Request) -> Response:
        return Response(await self._state.exposition(), CONTENT_TYPE)

    async def _policy(self, _request: Request) -> Response:
        return Response(msgspec.json.encode(_policy_in_force(self._state)))

    async def _limits(self, _request: Request) -> Response:
        states = await self._limit_states()
        policies = self._state.config.policy.policies

        def answer() -> bytes:
            return msgspec.json.encode(as_answer(states, policies))

        # Beside everything else: of 10,000 tenants it takes a tenth of a second.
        return Response(await asyncio.to_thread(answer))

    async def _explain(self, request: Request) -> Response | Refusal:
        try:
            question = msgspec.json.decode(request.body, type=Question)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Refusal(reasons.BAD_ADMIN_REQUEST, 'send {"target": "...", "client": "IP"}')
        try:
            destination, asked = parse_question(question.target, question.method)
        except HostError as error:
            return Refusal(reasons.BAD_ADMIN_REQUEST, f"target: {error}")
        try:
            client = identity(
                question.client, question.user, question.namespace, question.pod_labels
            )
        except IdentityError as error:
            return Refusal(reasons.BAD_ADMIN_REQUEST, f"client: {error}")
        config = self._state.config
        about = (config.policy, client, destination)
        explanation = explain(*about, (), config.asks, asked, config.terms)
        if question.resolve and destination.host.address is None:
            if explanation.parent is not None:
                # What a parent proxy resolves is perhaps unknown here.
                explanation = msgspec.structs.replace(explanation, addresses_ignored=True)
            else:
                answer = await self._state.resolve(destination.host.text)
                found, failure = ((), answer.name) if isinstance(answer, Reason) else (answer, None)
                explanation = explain(*about, found, config.asks, asked, config.terms)
                explanation = msgspec.structs.replace(explanation, dns=failure)
        return Response(msgspec.json.encode(explanation))

    async def _reload(self, _request: Request) -> Response | Refusal:
        try:
            await self._state.reload()
        except ConfigError as error:
            lines = [str(problem) for problem in error.problems[:_PROBLEMS_SHOWN]]
            return Refusal(reasons.RELOAD_FAILED, "; ".join(lines))
        return Response(msgspec.json.encode(_policy_in_force(self._state)))


class PolicyOfWorker(msgspec.Struct, frozen=True):
    """What one worker decides by."""

    worker: int
    pid: int
    generation: int
    hash: str


class PolicyInForce(msgspec.Struct, frozen=True):
    """What ``/v1/policy`` answers."""

    generation: int
    hash: str
    loaded_at: datetime
    rules: int
    source: str
    mode: str
    workers: Sequence[PolicyOfWorker] | msgspec.UnsetType = msgspec.UNSET
    """Where there are several, each as long as it takes connections."""


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``/v1/explain`` is asked."""

    target: str
    client: str
    user: str | None = None
    namespace: str | None = None
    pod_labels: dict[str, str] = {}
    method: str | None = None
    """Of a plain HTTP request, whose target is an ``http://`` URL; GET where it is left out."""
    resolve: bool = False
    """Whether to ask the name servers, so that the address gate's answer is told too."""


def _policy_in_force(state: AdminState) -> PolicyInForce:
    config = state.config
    return PolicyInForce(
        state.generation,
        config.digest,
        datetime.fromtimestamp(state.loaded_at, UTC),
        config.policy.rule_count,
        config.source,
        config.policy.mode,
        state.workers or msgspec.UNSET,
    )


def _host_refusal(head: Head) -> Refusal | None:
    """RFC 9112 §3.2: a request without Host, or with two, gets 400."""
    hosts = head.values(b"host")
    if len(hosts) > 1:
        return Refusal(reasons.DUPLICATE_HOST)
    if not hosts and head.minor == 1:
        return Refusal(reasons.MISSING_HOST)
    return None
