"""Whether a client that has shown no credentials should be asked for them (407) instead of being refused (403).

Some clients, git among them, show their credentials only when they are asked (RFC 9110 §11.7). Where credentials are
optional, what a user may do and nobody else must therefore be answered with a challenge: after a 403 they give up.
"""

from __future__ import annotations

from enum import Enum
from ipaddress import ip_address
from typing import Final

import msgspec

from egress_proxy.core import reasons
from egress_proxy.core.conditions import Asked, Fit, see
from egress_proxy.core.decide import Decision, remember
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority, plain_address
from egress_proxy.core.policy import Action, CompiledPolicy
from egress_proxy.core.reason import Reason

#: Denials that end where a rule allows. A deny rule holds for whoever it is.
_NOT_ALLOWED: Final = (
    reasons.HOST_NOT_ALLOWED,
    reasons.PORT_NOT_ALLOWED,
    reasons.ADDRESS_NOT_ALLOWED,
    reasons.METHOD_NOT_ALLOWED,
    reasons.PATH_NOT_ALLOWED,
    reasons.CONNECT_NOT_ALLOWED,
)

#: How a request fits the rules with conditions that name its destination, in their order.
_Fits = tuple[Fit, ...]


class Asks(Enum):
    """Whom a configuration asks for credentials."""

    NOBODY = "nobody"
    WHOM_THEY_HELP = "whoever a user's policy would let through"
    EVERYBODY = "everybody"


def challenge(
    asks: Asks,
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    decision: Decision,
    asked: Asked | None = None,
) -> Reason | None:
    """The reason to ask a client for credentials instead of doing what the decision says."""
    if asks is Asks.NOBODY or identity.user is not None:
        return None
    if asks is Asks.EVERYBODY or credentials_would_help(
        policy, identity, destination, decision, asked
    ):
        return reasons.PROXY_CREDENTIALS_REQUIRED
    return None


def credentials_would_help(
    policy: CompiledPolicy,
    identity: Identity,
    destination: Authority,
    decision: Decision,
    asked: Asked | None = None,
) -> bool:
    """Whether a user could do from here what this client, of whom no user is known, was just refused."""
    if identity.user is not None or decision.denial not in _NOT_ALLOWED:
        return False
    fits = _fits(policy, destination, asked) if policy.conditional else ()
    # Remembered beside the decisions: whoever repeats a refused request must not cost a walk along the users each time.
    # Not by its path, of which there is no end, but by what it is to the rules.
    key = (identity, destination, fits)
    known: bool | None = policy.memo.get(key)
    if known is None:
        known = bool(_users(policy, identity, destination, fits))
        remember(policy, key, known)
    return known


def _fits(policy: CompiledPolicy, destination: Authority, asked: Asked | None) -> _Fits:
    seen = see(asked)
    return tuple(
        rule.conditions.fit(seen)
        for _, rule in policy.naming(destination.host)
        if rule.conditions is not None
    )


def _users(
    policy: CompiledPolicy, identity: Identity, destination: Authority, fits: _Fits
) -> set[str]:
    """The users who may ask for the destination from here, though perhaps a human must approve it."""
    address = plain_address(ip_address(identity.client))
    allowed: set[str] = set()
    denied: set[str] = set()
    of_conditions = iter(fits)
    for number, rule in policy.naming(destination.host):
        fit = Fit.FITS if rule.conditions is None else next(of_conditions)
        # What nearly fits a rule that asks is refused, whatever else allows it.
        doubtful = rule.action is not Action.ALLOW and fit.may_be_meant and fit is not Fit.FITS
        if rule.covers_port(destination.port) and (fit is Fit.FITS or doubtful):
            found = denied if rule.action is Action.DENY or doubtful else allowed
            for subject in policy.policies[number].subjects or ():
                user = subject.user
                # Each condition but the user's is this client's.
                if user is not None and subject.describes(
                    msgspec.structs.replace(identity, user=user), address
                ):
                    found.add(user)
    return allowed - denied
