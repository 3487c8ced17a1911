"""The headers that a request which changes something must carry, where the configuration asks for them.

``Idempotency-Key`` tells a second try from a second deed, and ``X-Tenant-ID`` says for whom it is done. Both are
compared with one canonical form; nothing is repaired, and no refusal quotes what was sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from egress_proxy.core import reasons
from egress_proxy.core.http1 import Field
from egress_proxy.core.reason import Reason

if TYPE_CHECKING:
    from egress_proxy.core.policy import Policy


class ContractHeaders(StrEnum):
    """What becomes of a request without them; the later, the stricter."""

    OFF = "off"
    WARN = "warn"
    """It goes on, and its audit line and a metric say what was missing."""
    ENFORCE = "enforce"


class Breach(msgspec.Struct, frozen=True):
    """What is wrong with a request's contract headers."""

    reason: Reason
    detail: str | None = None
    """One clause of our own words that says more than the reason does."""


#: Methods that need none. Names of methods are case-sensitive (RFC 9110 §9.1). What a tunnel carries nobody can see.
EXEMPT: Final = frozenset(("GET", "HEAD", "OPTIONS", "CONNECT"))

IDEMPOTENCY_KEY: Final = b"idempotency-key"
TENANT_ID: Final = b"x-tenant-id"

# RFC 9562 §4: the text form, whose digits may be of either case; §5.4: version 4, and the variant of §4.1.
_UUID4: Final = re.compile(
    rb"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
)
_TENANT: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")

_REPEATED: Final = "it stands more than once"
_KEY_MISSING: Final = Breach(reasons.IDEMPOTENCY_KEY_MISSING)
_KEY_REPEATED: Final = Breach(reasons.IDEMPOTENCY_KEY_INVALID, _REPEATED)
_KEY_INVALID: Final = Breach(reasons.IDEMPOTENCY_KEY_INVALID)
_TENANT_MISSING: Final = Breach(reasons.TENANT_ID_MISSING)
_TENANT_REPEATED: Final = Breach(reasons.TENANT_ID_INVALID, _REPEATED)
_TENANT_INVALID: Final = Breach(reasons.TENANT_ID_INVALID)


def check_contract(method: str, fields: Iterable[Field]) -> Breach | None:
    """The first thing that is wrong with a request's contract headers; None where nothing is.

    A request whose method is not exempt carries exactly one of each, in its one form.
    """
    if method in EXEMPT:
        return None
    keys: list[bytes] = []
    tenants: list[bytes] = []
    for lower, _, value in fields:
        if lower == IDEMPOTENCY_KEY:
            keys.append(value)
        elif lower == TENANT_ID:
            tenants.append(value)
    if not keys:
        return _KEY_MISSING
    if len(keys) > 1:
        return _KEY_REPEATED
    if _UUID4.fullmatch(keys[0]) is None:
        return _KEY_INVALID
    if not tenants:
        return _TENANT_MISSING
    if len(tenants) > 1:
        return _TENANT_REPEATED
    if _TENANT.fullmatch(tenants[0]) is None:
        return _TENANT_INVALID
    return None


_ORDER: Final = tuple(ContractHeaders)


def strictest(general: ContractHeaders, allowed_by: Iterable[Policy]) -> ContractHeaders:
    """What holds for a request that these policies let through: the strictest that any of them says.

    A policy that says nothing means what is said in general, and so does a request that no policy lets through
    (``mode: audit``).
    """
    said = [policy.contract_headers or general for policy in allowed_by]
    return max(said, key=_ORDER.index, default=general)
