"""What an imported configuration decides, as the server would."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_network

from egress_proxy.config.load import parse
from egress_proxy.core.conditions import Asked
from egress_proxy.core.decide import decide, vet_addresses
from egress_proxy.core.errors import HostError
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.core.policy import CompiledPolicy


@lru_cache(maxsize=64)
def policy_of(yaml: str) -> CompiledPolicy:
    """The policy of a configuration, which must be valid."""
    return parse(yaml.encode(), "imported.yaml").config.policy


def allows(
    policy: CompiledPolicy,
    client: str,
    host: str,
    port: int,
    *,
    addresses: tuple[str, ...] | None = None,
    user: str | None = None,
    lifted: str | None = None,
    method: str = "CONNECT",
    path: str = "/",
) -> bool:
    """Whether the rules let a client through; with addresses, whether one of those may be dialled too.

    ``lifted`` is a special-use network that counts as public, so that hosts of a test may live there.
    """
    try:
        authority = parse_authority(f"{host}:{port}".encode(), None)
    except HostError:
        return False
    asked = None if method == "CONNECT" else Asked(method, path.encode())
    decision = decide(policy, Identity(client=client, user=user), authority, asked)
    if not decision.allowed or addresses is None:
        return decision.allowed
    if lifted is not None:
        decision = replace(decision, grant=replace(decision.grant, allow=(ip_network(lifted),)))
    return vet_addresses(decision, addresses, port)[1] is None
