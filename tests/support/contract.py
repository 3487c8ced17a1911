"""The contract headers of a request that changes something."""

from __future__ import annotations

from uuid import UUID, uuid4


def contract(key: UUID | str | None = None, tenant: str = "tests") -> str:
    """The header lines, each with its CRLF; by default with a new key."""
    return f"Idempotency-Key: {uuid4() if key is None else key}\r\nX-Tenant-ID: {tenant}\r\n"
