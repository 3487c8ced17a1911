"""Who a request is charged to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from egress_proxy.core.identity import Identity
from egress_proxy.core.policy import Policy

#: The form of a tenant's name, in the configuration and in ``X-Tenant-ID``.
TENANT: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_IN_HEADER: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Charge(NamedTuple):
    """A policy whose limits hold for a request, and the tenant that it is charged to. Made for policies with limits."""

    policy: Policy
    tenant: str


def tenant_of(
    policy: Policy, identity: Identity, header: bytes | None, tenants: Mapping[str, str]
) -> str:
    """The tenant of a request under a policy: the policy's, else the user's, else the header's, else the policy's name.

    ``header`` is the value of ``X-Tenant-ID``, which counts where the policy trusts it; None where the request has
    none, or several. One that is not a tenant's name is passed over: to be charged to the policy's own name is the
    narrowest there is, and a request cannot win anything by it. ``tenants`` are the users' (``credentials.tenants``).
    """
    if policy.tenant is not None:
        return policy.tenant
    if identity.user is not None and (found := tenants.get(identity.user)) is not None:
        return found
    if policy.trust_tenant_header and header is not None and _IN_HEADER.fullmatch(header):
        return header.decode("ascii")
    return policy.name


def charges(
    policies: tuple[Policy, ...],
    identity: Identity,
    header: bytes | None,
    tenants: Mapping[str, str],
) -> tuple[Charge, ...]:
    """What a request that these policies let through is charged to: those of them that have limits."""
    return tuple(
        [
            Charge(policy, tenant_of(policy, identity, header, tenants))
            for policy in policies
            if policy.limits is not None
        ]
    )
