"""Exceptions for broken input. A refusal that the policy makes is a value, never an exception.

::

    EgressProxyError
    ├── HeadError        a request or response head that cannot be understood
    │   └── BodyError    framing inside a message body that cannot be understood
    ├── HelloError       a TLS ClientHello that cannot be understood
    ├── HostError        a text that is neither a host name nor an address
    ├── IdentityError    a text that describes no client
    ├── ConfigError      in ``egress_proxy.config``: a configuration that cannot be used
    ├── MigrationError   in ``egress_proxy.migrate``: another proxy's file that cannot be read as one
    ├── StartError       in ``egress_proxy.app``: a port that cannot be had
    └── Interrupted      in ``egress_proxy.net``: the proxy ends a connection of its own accord
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from egress_proxy.core.reason import Reason


class EgressProxyError(Exception):
    """The root of every exception that this project raises on purpose."""


class HeadError(EgressProxyError):
    """A message head that is refused.

    ``reason`` is a row of :mod:`egress_proxy.core.reason`; ``detail`` is one sentence of our own words about what is
    wrong. It never quotes what the client sent, so it is safe to log and to answer.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class BodyError(HeadError):
    """Chunked framing that is refused (RFC 9112 §7.1)."""


class HelloError(EgressProxyError):
    """The first bytes of a tunnel are no TLS ClientHello that can be understood.

    ``reason`` and ``detail`` are as those of :class:`HeadError`.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class IdentityError(EgressProxyError):
    """A text that describes no client; the message says why, and what to write instead."""


class HostError(EgressProxyError):
    """A text that is neither a host name nor an address; the message says why, in our own words."""
