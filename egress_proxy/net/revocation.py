"""Permissions that are taken back: what a new configuration no longer allows is closed."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from egress_proxy.config.model import Config, OnRevoke
from egress_proxy.core import reasons
from egress_proxy.core.conditions import Asked
from egress_proxy.core.decide import decide, known_addresses, vet_addresses
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority
from egress_proxy.core.policy import Mode
from egress_proxy.core.reason import Reason
from egress_proxy.limits.limiter import Admission
from egress_proxy.net.poller import Interrupted
from egress_proxy.observe.events import log

if TYPE_CHECKING:
    from egress_proxy.net.worker import Worker

#: Seconds of looking at connections after which others have their turn. A look takes microseconds, or a millisecond
#: with thousands of subjects and a client that the new policy has not seen.
_FAIR_SHARE: Final = 0.002


class Permit(msgspec.Struct, gc=False):
    """What a connection that carries bytes was allowed, to be looked at again."""

    identity: Identity
    destination: Authority
    address: str | None
    """The address that was dialled; None where a parent proxy was, for the gate has not judged the parent's."""
    verified: bool
    """Whether a tunnel is TLS to the destination (``tls: verify``); True for what is no tunnel."""
    stamp: bytes | None
    """Of the user's hash when the password was right: another one is another permission. None without a user."""
    asked: Asked | None = None
    """What was asked of the origin, as it was sent; None for a tunnel."""
    admission: Admission | None = None
    """What it is charged to; None where nothing is limited."""


def reason_to_revoke(worker: Worker, decided_by: Config, permit: Permit) -> Reason | None:
    """Why a request must not go on that was decided by a configuration which is no longer in force."""
    if worker.config is decided_by or worker.config.on_revoke is OnRevoke.KEEP:
        return None
    return _refusal(worker, permit)


def _refusal(worker: Worker, permit: Permit) -> Reason | None:
    """Why the configuration in force does not allow what was allowed once; None where it still does."""
    config, identity = worker.config, permit.identity
    if config.credentials is None:
        # Nobody is asked any more, so nobody is a user.
        identity = msgspec.structs.replace(identity, user=None)
    elif config.policy.mode is not Mode.AUDIT:
        if identity.user is None:
            if config.credentials.required:
                return reasons.PROXY_CREDENTIALS_REQUIRED
        elif worker.credentials.stamp(identity.user) != permit.stamp:
            return reasons.PROXY_CREDENTIALS_WRONG
    decision = decide(config.policy, identity, permit.destination, permit.asked)
    if not decision.allowed:
        return decision.denial
    if decision.path is not None and config.policy.mode is not Mode.AUDIT:
        # It was sent in a form that the rules now would not have let through as it is.
        return reasons.PATH_NOT_ALLOWED
    if decision.tls and not permit.verified and config.policy.mode is not Mode.AUDIT:
        return reasons.POLICY_REVOKED
    addresses = known_addresses(permit.destination) if permit.address is None else (permit.address,)
    if not addresses:
        return None
    vetting, prohibition = vet_addresses(decision, addresses, permit.destination.port)
    return None if vetting.passed else prohibition


async def revoke(worker: Worker) -> None:
    """Close every connection whose permit is no longer good, as the configuration in force says."""
    config = worker.config
    if config.on_revoke is OnRevoke.KEEP:
        return
    closed = 0
    until = monotonic() + _FAIR_SHARE
    for connection in list(worker.poller.connections):
        if monotonic() > until:
            await asyncio.sleep(0)
            until = monotonic() + _FAIR_SHARE
            if worker.config is not config:
                return  # the configuration after this one is looked at by itself
        permit = connection.permit
        if not isinstance(permit, Permit) or connection not in worker.poller.connections:
            continue
        try:
            refused = _refusal(worker, permit) is not None
        except Exception:  # noqa: BLE001 - what cannot be decided is not allowed
            log.error("defect", exc_info=True)
            refused = True
        if not refused:
            continue
        closed += 1
        try:
            connection.interrupt(Interrupted(reasons.POLICY_REVOKED))
        except Exception:  # noqa: BLE001 - the others must be closed too
            log.error("defect", exc_info=True)
    if closed:
        log.info("revoked", connections=closed, generation=worker.generation)
