"""Whether a client that has shown no credentials should be asked for them (407) instead of being refused (403).

Some clients, git among them, show their credentials only when they are asked (RFC 9110 §11.7). Where credentials are
optional, what a user may do and nobody else must therefore be answered with a challenge: after a 403 they give up.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from egress_proxy.core import reason as reasons
from egress_proxy.core.decide import Decision, decide
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority
from egress_proxy.core.policy import CompiledPolicy
from egress_proxy.core.reason import Reason

#: Denials that end where a rule allows. A deny rule holds for whoever it is.
_NOT_ALLOWED: Final = (
    reasons.HOST_NOT_ALLOWED,
    reasons.PORT_NOT_ALLOWED,
    reasons.ADDRESS_NOT_ALLOWED,
)
#: What the same request may meet instead when it is a user's.
_BETTER: Final = (None, reasons.APPROVAL_REQUIRED)


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
    tried: set[str] = set()
    for number, _ in policy.naming(destination.host):
        for subject in policy.policies[number].subjects or ():
            user = subject.user
            if user is not None and user not in tried:
                tried.add(user)
                known = msgspec.structs.replace(identity, user=user)
                if decide(policy, known, destination).denial in _BETTER:
                    return True
    return False
