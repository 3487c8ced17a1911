"""What becomes of a request whose contract headers are missing or wrong (:mod:`egress_proxy.core.contract`)."""

from __future__ import annotations

from egress_proxy.config.model import Config
from egress_proxy.core.contract import Breach, ContractHeaders, check_contract, strictest
from egress_proxy.core.decide import Decision
from egress_proxy.core.http1 import ProxyRequest
from egress_proxy.core.policy import Mode
from egress_proxy.core.reason import Event
from egress_proxy.core.record import Record


def contract_breach(
    config: Config, decision: Decision, request: ProxyRequest, record: Record
) -> Breach | None:
    """Why a request that the rules let through is refused all the same; None where it goes on.

    The record then says what was wrong with it, if anything was.
    """
    breach = check_contract(request.method, request.fields)
    if breach is None:
        return None
    match strictest(config.contract_headers, decision.allowed_by):
        case ContractHeaders.ENFORCE:
            if config.policy.mode is not Mode.AUDIT:
                return breach
            record.conclude(Event.WOULD_DENY, breach.reason)
        case ContractHeaders.WARN:
            record.contract = breach.reason.name
    return None
