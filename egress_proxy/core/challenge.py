"""Whether a client that has shown no credentials should be asked for them (407) instead of being refused (403).

Some clients, git among them, show their credentials only when they are asked (RFC 9110 §11.7). Where credentials are
optional, what a user may do and nobody else must therefore be answered with a challenge: after a 403 they give up.
"""

from __future__ import annotations

from enum import Enum
from ipaddress import ip_address
from typing import Final

import msgspec

from egress_proxy.core import reason as reasons
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
)


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
) -> Reason | None:
    """The reason to ask a client for credentials instead of doing what the decision says."""
    if asks is Asks.NOBODY or identity.user is not None:
        return None
    if asks is Asks.EVERYBODY or credentials_would_help(policy, identity, destination, decision):
        return reasons.PROXY_CREDENTIALS_REQUIRED
    return None


def credentials_would_help(
    policy: CompiledPolicy, identity: Identity, destination: Authority, decision: Decision
) -> bool:
    """Whether a user could do from here what this client, of whom no user is known, was just refused."""
    if identity.user is not None or decision.denial not in _NOT_ALLOWED:
        return False
    # Remembered beside the decisions: whoever repeats a refused request must not cost a walk along the users each time.
    key = (identity, destination)
    known: bool | None = policy.memo.get(key)
    if known is None:
        known = bool(_users(policy, identity, destination))
        remember(policy, key, known)
    return known


def _users(policy: CompiledPolicy, identity: Identity, destination: Authority) -> set[str]:
    """The users who may ask for the destination from here, though perhaps a human must approve it."""
    address = plain_address(ip_address(identity.client))
    allowed: set[str] = set()
    denied: set[str] = set()
    for number, rule in policy.naming(destination.host):
        if rule.covers_port(destination.port):
            found = denied if rule.action is Action.DENY else allowed
            for subject in policy.policies[number].subjects or ():
                user = subject.user
                # Each condition but the user's is this client's.
                if user is not None and subject.describes(
                    msgspec.structs.replace(identity, user=user), address
                ):
                    found.add(user)
    return allowed - denied
