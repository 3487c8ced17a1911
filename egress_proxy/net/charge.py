"""Whom a request is charged to, and whether their limits let it through."""

from __future__ import annotations

from asyncio import Future
from time import monotonic
from typing import Final

from egress_proxy.config.model import Config
from egress_proxy.core import reasons
from egress_proxy.core.decide import Decision
from egress_proxy.core.http1 import ProxyRequest
from egress_proxy.core.identity import Identity
from egress_proxy.core.reason import Event
from egress_proxy.core.record import Record
from egress_proxy.core.tenant import charges, tenant_of
from egress_proxy.limits.limiter import Admission, Refusal
from egress_proxy.net.poller import Strand
from egress_proxy.net.worker import Worker

#: Seconds after which a shared store counts as away, should it not keep to its own time.
_PATIENCE: Final = 10.0


async def admit(
    worker: Worker,
    strand: Strand,
    config: Config,
    decision: Decision,
    identity: Identity,
    request: ProxyRequest,
    record: Record,
) -> Admission | Refusal | None:
    """Charge a request that the rules let through to its tenants; None where nobody is charged.

    The record is told the tenant of the policy that decided. Raises Interrupted.
    """
    named = [value for lower, _, value in request.fields if lower == b"x-tenant-id"]
    header = named[0] if len(named) == 1 else None
    tenants = config.credentials.tenants if config.credentials is not None else {}
    for policy in decision.allowed_by:
        if decision.match is not None and policy.name == decision.match.policy:
            record.tenant = tenant_of(policy, identity, header, tenants)
    charged = charges(decision.allowed_by, identity, header, tenants)
    if not charged:
        return None
    host = request.destination.host.text
    # What a WebSocket becomes is a tunnel, too.
    tunnel = request.is_connect or request.upgrade is not None
    admitted = worker.limiter.admit(charged, host, tunnel=tunnel)
    if isinstance(admitted, Future):
        admitted = await _wait_for(worker, strand, admitted)
    if isinstance(admitted, Refusal) and not worker.limiter.enforces:
        if not record.event:
            record.conclude(Event.WOULD_DENY, admitted.reason)
        return None
    return admitted


async def _wait_for(
    worker: Worker, strand: Strand, answer: Future[Admission | Refusal]
) -> Admission | Refusal:
    """What a shared store says. Raises Interrupted."""
    arrived = False
    try:
        found: Admission | Refusal = await strand.result_of(answer, monotonic() + _PATIENCE)
        arrived = True
    except TimeoutError:
        return Refusal(reasons.OVERLOADED, 1.0, "the limits cannot be looked up", "", "")
    finally:
        if not arrived:
            worker.limiter.abandon(answer)
    return found
