"""Who is asking: what is known about a client when a decision is made."""

from __future__ import annotations

from ipaddress import ip_address

import msgspec

from egress_proxy.core.errors import IdentityError
from egress_proxy.core.names import host_of_address

#: The client of a question that names none: this machine itself.
DEFAULT_CLIENT = "127.0.0.1"
_LABEL = "pod_labels."


class Identity(msgspec.Struct, frozen=True):
    """A client, as far as it is known. Policies' subjects are compared with it, and with nothing else."""

    client: str
    """Its IP address, as canonical text."""
    user: str | None = None
    """The user whose credentials it has shown."""
    namespace: str | None = None
    """The Kubernetes namespace that it runs in."""
    pod_labels: tuple[tuple[str, str], ...] = ()
    """The labels of its pod, sorted by key."""

    def __str__(self) -> str:
        """For a person: ``10.20.0.7, user batch``."""
        parts = [self.client]
        if self.user is not None:
            parts.append(f"user {self.user}")
        if self.namespace is not None:
            parts.append(f"namespace {self.namespace}")
        parts += [f"pod label {key}={value}" for key, value in self.pod_labels]
        return ", ".join(parts)


def parse_identity(text: str) -> Identity:
    """Parse ``client=10.20.0.7,user=batch,namespace=agents,pod_labels.app=web``, any of them.

    Raises IdentityError.
    """
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, separator, value = part.partition("=")
        known = key in ("client", "user", "namespace") or (key.startswith(_LABEL) and key != _LABEL)
        if not separator or not known:
            raise IdentityError(
                "write client=IP, user=NAME, namespace=NAME or pod_labels.KEY=VALUE, with commas between"
            )
        if not value and not key.startswith(_LABEL):
            raise IdentityError(f"`{key}` has no value")
        if key in fields:
            raise IdentityError(f"`{key}` stands there twice")
        fields[key] = value
    labels = {key[len(_LABEL) :]: value for key, value in fields.items() if key.startswith(_LABEL)}
    return identity(
        fields.get("client", DEFAULT_CLIENT), fields.get("user"), fields.get("namespace"), labels
    )


def identity(
    client: str,
    user: str | None = None,
    namespace: str | None = None,
    labels: dict[str, str] | None = None,
) -> Identity:
    """An identity from what a person writes. Raises IdentityError."""
    try:
        address = host_of_address(ip_address(client)).text
    except ValueError:
        raise IdentityError("the client is not an IP address") from None
    return Identity(address, user, namespace, tuple(sorted((labels or {}).items())))
