"""Why a shared store cannot be used, in words of our own: what it says itself may quote what it was sent."""

from __future__ import annotations

import re
import ssl
from typing import Final

#: The first word of a server's error. The rest may hold anything.
_WORD: Final = re.compile(r"[A-Z]{2,20}(?= |$)")
#: Before Redis 7, a command's error in a script stands behind where it happened.
_IN_SCRIPT: Final = re.compile(r"@user_script: [0-9]{1,6}: -([A-Z]{2,20})(?= )")


def told(error: BaseException) -> str:
    """Why the store cannot be used, in words of our own: an exception's text may quote anything."""
    from redis import exceptions  # noqa: PLC0415 - see the top

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return "its certificate is not trusted"
        if isinstance(seen, ssl.SSLError):
            return "TLS failed"
        seen = seen.__cause__ or seen.__context__
    match error:
        case exceptions.AuthenticationError():
            return "it refused the user or the password"
        case exceptions.BusyLoadingError():
            return "it is loading its data"
        case TimeoutError() | exceptions.TimeoutError():
            return "it did not answer in time"
        case exceptions.ResponseError():
            named = _error_word(error)
            if named in {"NOAUTH", "WRONGPASS"}:
                return "it refused the user or the password"
            return f"it answered with the error {named}"
        case exceptions.ConnectionError() | OSError():
            return "the connection failed"
        case exceptions.RedisError():
            return "it does not answer as a store does"
    return type(error).__name__


def _error_word(error: Exception) -> str:
    """The first word of a server's error, which names it; a name of ours where it has none."""
    status = getattr(error, "status_code", None)
    if status == "ERR" and (inner := _IN_SCRIPT.search(str(error))):
        return inner[1]
    word = _WORD.match(status or str(error))
    return word[0] if word else type(error).__name__
