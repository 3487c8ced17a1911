"""How long a zone lets it be believed that a name is not there: what pycares drops, caught before it does.

c-ares hands the whole of a negative answer to pycares, its authority section with the SOA record too. pycares hands on
the status alone. So its callback gets a companion, through two names of pycares that are not public: it notes what
the SOA record says, and calls the original. Where a later pycares does not have these names, nothing is noted, and
the resolver believes a negative answer for ``dns.negative_ttl`` (docs/decisions/0007).
"""

from __future__ import annotations

import threading
from typing import Any, Final

import pycares

from egress_proxy.net.dns_answer import negative_seconds

_CALLBACK: Final = "_query_dnsrec_cb"

#: Statuses of answers that hold a SOA record.
_NEGATIVE: Final = frozenset({pycares.errno.ARES_ENODATA, pycares.errno.ARES_ENOTFOUND})


class _Noted(threading.local):
    """What was noted for the callback that runs in this thread right now."""

    seconds: int | None = None


_noted = _Noted()


def noted() -> int | None:
    """What the SOA record of the answer says that this thread is being called back with."""
    return _noted.seconds


def install() -> bool:
    """Take notes from now on, in the whole process; whether that is possible. To ask again does no harm."""
    original: Any = getattr(pycares, _CALLBACK, None)
    define: Any = getattr(getattr(pycares, "_ffi", None), "def_extern", None)
    parse: Any = getattr(pycares, "parse_dnsrec", None)
    if not (callable(original) and callable(define) and callable(parse)):
        return False

    def note_and_call(argument: Any, status: int, timeouts: int, record: Any) -> None:
        _noted.seconds = _seconds(parse, record) if status in _NEGATIVE else None
        original(argument, status, timeouts, record)

    try:
        define(name=_CALLBACK)(note_and_call)
    except Exception:  # noqa: BLE001 - whatever it is: there is no such callback
        return False
    return True


def _seconds(parse: Any, record: Any) -> int | None:
    """Raises nothing: without the original callback nobody would learn of the answer."""
    try:
        result, _ = parse(record)
        return negative_seconds(result.authority)
    except Exception:  # noqa: BLE001 - that is for a later pycares to surprise with
        return None
