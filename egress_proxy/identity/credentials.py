"""Who is asking, by ``Proxy-Authorization: Basic`` (RFC 7617) against a table of bcrypt hashes.

bcrypt is slow on purpose: a check takes from a millisecond to a second. So a verdict is remembered, a
check runs in one thread beside the event loop, and checks that wait stand in a bounded, fair queue.
Neither a verdict nor a queue is kept under the credentials themselves, and nothing here prints them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
from collections import OrderedDict, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from hashlib import blake2b
from time import monotonic
from typing import Final, TypeVar

import bcrypt

from egress_proxy.config.users import MAX_NAME

T = TypeVar("T")

#: Verdicts of each kind that are kept, the least recently used going first. About 250 bytes each.
MAX_KEPT: Final = 10_000
#: Seconds for which wrong credentials are known as wrong: a client that repeats them costs one check a minute.
NEGATIVE_TTL: Final = 60.0
#: Checks that wait, in all and of one client address: a client that guesses fills its own queue.
MAX_WAITING: Final = 1000
MAX_WAITING_OF_CLIENT: Final = 100
#: Seconds that a check waits for its turn at most. Clients give up soon after.
MAX_WAIT: Final = 10.0

#: Bytes of a password: bcrypt looks at no more, and its library refuses more instead of cutting it.
MAX_PASSWORD: Final = 72

# credentials (RFC 9110 §11.4) of scheme Basic: token68 alone, and of that what base64 makes (RFC 4648 §4).
_BASIC: Final = re.compile(rb"[Bb][Aa][Ss][Ii][Cc] +([A-Za-z0-9+/]+={0,2})")
# RFC 7617 §2: neither part holds a control character.
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")

# What follows the salt in a hash that no password has.
_NO_PASSWORD: Final = b"." * 31


class Refused(Enum):
    """Why nobody is known by these credentials."""

    WRONG = "no such user has this password"
    """Which of the two it is, nobody is told."""
    MALFORMED = "they are not Basic with the base64 of user:password in UTF-8, or are too long"
    OVERLOADED = "too many checks wait"


Verdict = str | Refused
"""The name of the user who was verified, or why there is none."""


def parse_basic(value: bytes) -> tuple[str, bytes] | None:
    """User and password of a field value; None for whatever is not exactly that.

    The password is UTF-8. No part is longer than one of the table can be.
    """
    match = _BASIC.fullmatch(value)
    if match is None:
        return None
    try:
        decoded = base64.b64decode(match[1], validate=True)
        decoded.decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None
    # One spelling for one text (RFC 4648 §3.5): else the bits that fill the last letter could be any.
    if base64.b64encode(decoded) != match[1] or _CONTROL.search(decoded):
        return None
    user, colon, password = decoded.partition(b":")
    if not colon or not 0 < len(user) <= MAX_NAME or len(password) > MAX_PASSWORD:
        return None
    return user.decode("utf-8"), password


class _Check:
    """One pair of credentials that waits for its verdict, and whoever waits with it."""

    __slots__ = ("digest", "future", "password", "since", "user")

    def __init__(
        self, digest: bytes, user: str, password: bytes, future: asyncio.Future[Verdict]
    ) -> None:
        self.digest = digest
        self.user = user
        self.password = password
        self.future = future
        self.since = monotonic()


class Credentials:
    """Says who is asking. All methods are for the event loop's thread."""

    def __init__(self, users: Mapping[str, str], loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # The key is the process's own: digests say nothing about what was hashed to whoever finds
        # them, and nobody can make two values whose digests begin alike, so that it does not matter
        # how long a look-up compares them.
        self._keyed = blake2b(key=os.urandom(32), digest_size=16)
        self._valid: OrderedDict[bytes, str] = OrderedDict()
        self._wrong: OrderedDict[bytes, float] = OrderedDict()
        self._checks: dict[bytes, _Check] = {}
        self._waiting: dict[str, deque[_Check]] = {}
        self._busy = False
        self._thread = ThreadPoolExecutor(1, "credentials")
        self._users: Mapping[str, str] = {}
        self.adopt(users)

    def known(self, value: bytes, now: float) -> Verdict | None:
        """What is known about a field value without a check. now is on the clock of time.monotonic."""
        digest = self._digest(value)
        user = self._valid.get(digest)
        if user is not None:
            self._valid.move_to_end(digest)
            return user
        until = self._wrong.get(digest)
        return Refused.WRONG if until is not None and now < until else None

    def check(self, value: bytes, client: str) -> asyncio.Future[Verdict]:
        """Check a field value that is not known; all who ask for the same one share one check.

        ``client`` is the address whose queue it stands in. The answer takes a second more than
        MAX_WAIT at most, if no hash costs more than 14.
        """
        digest = self._digest(value)
        check = self._checks.get(digest)
        if check is not None:
            return check.future
        future: asyncio.Future[Verdict] = self._loop.create_future()
        found = parse_basic(value)
        if found is None:
            future.set_result(Refused.MALFORMED)
        elif not self._users:
            future.set_result(Refused.WRONG)
        elif not self._has_room(client):
            future.set_result(Refused.OVERLOADED)
        else:
            check = self._checks[digest] = _Check(digest, *found, future)
            self._waiting.setdefault(client, deque()).append(check)
            if not self._busy:
                self._start_next()
        return future

    def adopt(self, users: Mapping[str, str]) -> None:
        """Decide by this table from now on.

        What is known of users whose hash is the same stays known; checks that run are repeated where it is not.
        """
        old, self._users = self._users, users
        self._hashes = tuple(users.values())
        for digest, user in list(self._valid.items()):
            if users.get(user) != old.get(user):
                del self._valid[digest]
        self._wrong.clear()

    def stamp(self, user: str) -> bytes | None:
        """What is the same as long as a user has the same password, and None while there is no such user."""
        found = self._users.get(user)
        return None if found is None else self._digest(found.encode("ascii"))

    def close(self) -> None:
        """Start no further check. One that runs is not waited for."""
        self._waiting.clear()
        self._checks.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _digest(self, value: bytes) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(value)
        return keyed.digest()

    def _has_room(self, client: str) -> bool:
        queue = self._waiting.get(client)
        # Whoever has nothing waiting gets in, or a few who guess would shut out the others.
        return queue is None or (
            len(self._checks) < MAX_WAITING and len(queue) < MAX_WAITING_OF_CLIENT
        )

    def _start_next(self) -> None:
        """Have the thread begin the next check, one of each client in turn."""
        self._busy = False
        while self._waiting:
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            check = queue.popleft()
            if queue:
                self._waiting[client] = queue
            if monotonic() - check.since <= MAX_WAIT:
                self._run(check)
                return
            self._settle(check, Refused.OVERLOADED)

    def _run(self, check: _Check) -> None:
        self._busy = True
        expected = self._users.get(check.user)
        hashed = self._nobodys_hash(check.user) if expected is None else expected.encode("ascii")
        try:
            done = self._loop.run_in_executor(self._thread, bcrypt.checkpw, check.password, hashed)
        except RuntimeError:
            # The system has no thread for us now. The next check tries again.
            self._busy = False
            self._settle(check, Refused.OVERLOADED)
            return
        done.add_done_callback(partial(self._ran, check, expected))

    def _ran(self, check: _Check, expected: str | None, done: asyncio.Future[bool]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            # A defect, since the table's hashes were looked at. Nobody is let in by it.
            self._checks.pop(check.digest, None)
            check.future.set_exception(error)
        elif self._users.get(check.user) != expected:
            # Another table has come meanwhile, and this answer is about the old one.
            self._run(check)
            return
        elif expected is not None and done.result():
            _keep(self._valid, check.digest, check.user)
            self._settle(check, check.user)
        else:
            _keep(self._wrong, check.digest, monotonic() + NEGATIVE_TTL)
            self._settle(check, Refused.WRONG)
        self._start_next()

    def _settle(self, check: _Check, verdict: Verdict) -> None:
        self._checks.pop(check.digest, None)
        check.future.set_result(verdict)

    def _nobodys_hash(self, user: str) -> bytes:
        """What a user who does not exist is checked against, so that the time does not tell.

        Its cost is that of some user, and the same one whenever this name is asked for.
        """
        number = int.from_bytes(self._digest(user.encode("utf-8")), "big")
        cost = int(self._hashes[number % len(self._hashes)][4:6]) if self._hashes else 4
        return bcrypt.gensalt(cost) + _NO_PASSWORD


def _keep(verdicts: OrderedDict[bytes, T], digest: bytes, value: T) -> None:
    verdicts.pop(digest, None)
    verdicts[digest] = value
    if len(verdicts) > MAX_KEPT:
        verdicts.popitem(last=False)
