"""The story of a client connection.

Bytes → head → who asks → destination → decision → vetted address → dial → relay → record.
"""

from __future__ import annotations

import itertools
from time import monotonic
from typing import Final

from msgspec.structs import replace

from egress_proxy.config.model import Config, Credentials
from egress_proxy.core import reasons
from egress_proxy.core.challenge import credentials_would_help
from egress_proxy.core.conditions import Asked
from egress_proxy.core.decide import Decision, as_decided, decide
from egress_proxy.core.errors import HeadError
from egress_proxy.core.http1 import Framing, ProxyRequest, has_passed, parse_request
from egress_proxy.core.max_forwards import ends_here, final_answer
from egress_proxy.core.policy import Mode
from egress_proxy.core.reason import Code, Event, Reason
from egress_proxy.core.record import Record
from egress_proxy.identity.credentials import MAX_WAIT, Refused
from egress_proxy.limits.limiter import Admission, Refusal
from egress_proxy.net.charge import admit
from egress_proxy.net.client import Client, Next
from egress_proxy.net.connect import serve_connect
from egress_proxy.net.contract import contract_breach
from egress_proxy.net.parent import Unreached
from egress_proxy.net.plain import pool_key, serve_plain
from egress_proxy.net.poller import Interrupted, Strand
from egress_proxy.net.reach import reach
from egress_proxy.net.refuse import refuse, tell
from egress_proxy.net.revocation import Permit, reason_to_revoke
from egress_proxy.net.worker import Worker
from egress_proxy.observe.events import log

# Plain names: looking a member up in its Enum is a Python call in 3.11.
_REQUEST, _NOTHING = Next.REQUEST, Next.NOTHING
#: Requests of one client after which the others have their turn.
_FAIR_SHARE: Final = 16


async def serve_client(worker: Worker, strand: Strand, fd: int, address: str) -> None:
    """Serve one client connection from accept to close, or until a tunnel takes it over."""
    client = Client(strand, fd, address, worker.heads)
    worker.open(client.key)
    after = Next.CLOSE
    try:
        for number in itertools.count(1):
            if number % _FAIR_SHARE == 0:
                await strand.turn()
            record = Record(
                request_id=worker.request_id(), client=address, generation=worker.generation
            )
            after = await _serve_request(worker, client, record)
            if after is _NOTHING:
                return
            # A connection that ends without a request has nothing to tell.
            if record.event:
                worker.conclude(record, client.started)
            if after is not _REQUEST:
                break
        if after is Next.LINGER:
            await client.linger()
    except (OSError, TimeoutError, Interrupted):
        pass  # the client is gone, or has had its time
    finally:
        if after is not _NOTHING:
            worker.close(fd, client.key)


async def _serve_request(worker: Worker, client: Client, record: Record) -> Next:
    """One request: its head, the decision about it, and what follows from that."""
    try:
        head = await client.read_head(
            worker.head_limits, worker.config.timeouts, draining=worker.draining
        )
        if head is None:
            return Next.CLOSE
        # From here on one configuration holds, whatever is loaded meanwhile.
        config, record.generation = worker.config, worker.generation
        request = parse_request(head, worker.head_limits)
        destination = request.destination
        record.method, record.host, record.port = (
            request.method,
            destination.host.text,
            destination.port,
        )
        if not request.is_connect:
            record.path = request.path.partition(b"?")[0].decode("ascii")
        if worker.draining:
            return await refuse(worker, client, record, reasons.DRAINING, request)
        # Looked for in the whole head first, which costs next to nothing.
        if worker.pseudonym in head and has_passed(request, worker.pseudonym):
            return await refuse(worker, client, record, reasons.PROXY_LOOP, request)

        identity, stamp = client.identity, None
        if config.credentials is not None:
            user, why, detail = await _who_asks(worker, client, config.credentials, request)
            if user is not None:
                identity, record.user = replace(identity, user=user), user
                stamp = worker.credentials.stamp(user)
            elif why is not None:
                if config.policy.mode is not Mode.AUDIT or why.code is not Code.UNAUTHORIZED:
                    return await refuse(worker, client, record, why, request, detail)
                record.conclude(Event.WOULD_DENY, why)

        asked = None if request.is_connect else Asked(request.method, request.path)
        decision = decide(config.policy, identity, destination, asked)
        if decision.match is not None:
            record.policy, record.rule = decision.match.policy, decision.match.text
        denial = decision.denial
        if denial is not None:
            if config.credentials is not None and credentials_would_help(
                config.policy, identity, destination, decision, asked
            ):
                denial = reasons.PROXY_CREDENTIALS_REQUIRED
            if not decision.allowed:
                detail = decision.detail if denial is decision.denial else None
                return await refuse(worker, client, record, denial, request, detail)
            record.conclude(Event.WOULD_DENY, denial)
        if asked is not None and decision.conditional:
            # What the rules saw is what is sent, and what a changed policy is asked about later.
            request = as_decided(request, decision)
            asked = Asked(request.method, request.path)
        if config.contract_wanted:
            breach = contract_breach(config, decision, request, record)
            if breach is not None:
                return await refuse(worker, client, record, breach.reason, request, breach.detail)

        admission: Admission | None = None
        if worker.limiter.active or config.names_tenants:
            admitted = await admit(
                worker, client.strand, config, decision, identity, request, record
            )
            if isinstance(admitted, Refusal):
                return await refuse(
                    *(worker, client, record, admitted.reason, request, admitted.detail),
                    retry_after=admitted.retry_after,
                )
            admission = admitted
        after = Next.CLOSE
        tunnel = request.is_connect or request.upgrade is not None
        worker.tunnels_opening += tunnel
        try:
            tunnels = worker.metrics.tunnels_active + worker.tunnels_opening
            if tunnel and tunnels > config.limits.tunnels:
                return await refuse(
                    worker, client, record, reasons.OVERLOADED, request, "of tunnels"
                )
            permit = Permit(identity, destination, None, True, stamp, asked, admission)
            after = await _carry_out(worker, client, config, decision, request, record, permit)
            return after
        finally:
            worker.tunnels_opening -= tunnel
            if admission is not None and after is not _NOTHING:
                admission.release()
    except HeadError as error:
        return await refuse(worker, client, record, error.reason, None, error.detail)
    except Interrupted as stop:
        if record.status is None:
            tell(client, record, stop.reason)
        else:
            client.break_off()
        record.conclude(Event.CLOSED, stop.reason)
    except (ConnectionError, TimeoutError):
        record.conclude(Event.FAILED, reasons.CLIENT_ABORTED)
    except Exception:  # noqa: BLE001 - whatever it is, nothing goes through, and the client is told
        log.error("defect", request_id=record.request_id, exc_info=True)
        if record.status is None:
            return await refuse(worker, client, record, reasons.INTERNAL_ERROR, None)
        record.conclude(Event.FAILED, reasons.INTERNAL_ERROR)
    return Next.CLOSE


async def _carry_out(
    worker: Worker,
    client: Client,
    config: Config,
    decision: Decision,
    request: ProxyRequest,
    record: Record,
    permit: Permit,
) -> Next:
    """What was allowed: reach the destination, and serve the request there.

    Raises ConnectionError, TimeoutError, Interrupted.
    """
    key = kept = None
    if not request.is_connect:
        if ends_here(request):
            return await _answer_at_the_end(worker, client, request, record)
        key = pool_key(worker, config, decision, request, permit.identity)
        # RFC 9110 §9.2.2: what may be sent once more where the origin closes a kept connection on it.
        kept = key if request.idempotent else None
    verify = decision.tls and request.is_connect
    permit.verified = verify or not request.is_connect
    while True:
        origin = await reach(worker, client.strand, config, decision, request, record, kept)
        if isinstance(origin, Unreached):
            return await refuse(worker, client, record, origin.reason, request, origin.detail)
        # The gate has not judged a parent's address.
        permit.address = record.address if decision.parent is None else None
        revoked = reason_to_revoke(worker, config, permit)
        if revoked is not None:
            worker.poller.close(origin.detach())
            # What allowed it is no longer there; the reason and the generation are the new policy's.
            record.generation, record.policy, record.rule = worker.generation, None, None
            return await refuse(worker, client, record, revoked, request)
        client.strand.permit = permit
        if request.is_connect:
            return await serve_connect(
                worker, client, origin, config, permit, record, verify=verify
            )
        # Nothing was dialled where it has waited.
        waited = record.connect_ms is None
        after = await serve_plain(
            worker, client, origin, config, decision, request, permit, record, key, kept=waited
        )
        if after is not None:
            return after
        # The connection had come to its end unnoticed: once more, on one of its own.
        kept = None


async def _answer_at_the_end(
    worker: Worker, client: Client, request: ProxyRequest, record: Record
) -> Next:
    """Answer TRACE or OPTIONS whose client wants the proxy's own answer (RFC 9110 §7.6.2).

    Raises ConnectionError, TimeoutError, Interrupted.
    """
    keep_alive = request.keep_alive and request.framing is Framing.NONE and not worker.draining
    record.status = 200
    answer = final_answer(request, keep_alive=keep_alive)
    await client.send(answer, worker.config.timeouts.head)
    record.conclude(Event.ALLOWED, None)
    return Next.REQUEST if keep_alive else Next.LINGER


async def _who_asks(
    worker: Worker, client: Client, settings: Credentials, request: ProxyRequest
) -> tuple[str | None, Reason | None, str | None]:
    """The user whose credentials a request shows; or why there is none, with a detail; or nothing, for anybody may ask.

    Raises HeadError.
    """
    shown = request.section.known.get(b"proxy-authorization", ())
    if not shown:
        return None, reasons.PROXY_CREDENTIALS_REQUIRED if settings.required else None, None
    if len(shown) > 1:
        # As with two Host fields. Not 407: other credentials beside these would not help.
        raise HeadError(reasons.DUPLICATE_CREDENTIALS, "one is needed")
    (value,) = shown
    verdict = worker.credentials.known(value, worker.poller.now)
    if verdict is None:
        check = worker.credentials.check(value, client.key)
        try:
            # It keeps to its time by itself; the deadline is there in case it should not.
            verdict = await client.strand.result_of(check, monotonic() + MAX_WAIT + 5)
        except TimeoutError:
            verdict = Refused.OVERLOADED
        # Between a verdict and this strand's turn, another table may have come.
        if isinstance(verdict, str) and worker.credentials.known(value, monotonic()) != verdict:
            verdict = Refused.WRONG
    if isinstance(verdict, str):
        return verdict, None, None
    if verdict is Refused.OVERLOADED:
        return None, reasons.CREDENTIALS_UNCHECKED, None
    detail = verdict.value if verdict is Refused.MALFORMED else None
    return None, reasons.PROXY_CREDENTIALS_WRONG, detail
