"""Who is asking, by credentials: what is accepted, what is remembered, and what a flood costs."""

from __future__ import annotations

import asyncio
import base64
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from statistics import median
from typing import Any

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.identity import credentials as module
from egress_proxy.identity.credentials import Credentials, Refused, Verdict, parse_basic
from tests.support.tools import wait_until

NOW = 1000.0


def hashed(password: bytes, cost: int = 4) -> str:
    return bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode()


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


#: Of the passwords ``secret``, ``pass:word`` and ``grün``.
USERS = {
    "batch": "$2b$04$1/qYPDyinNb/pmxKBONq3egpZSiNY.43uv7WripYvxpqXFR28DdfC",
    "ci": "$2b$04$n0fjhaqPweD8P8BOJNbwWOX3VPDLBGFSSXRQhtTnQSUr/ZWDm49iC",
    "umlaut": "$2b$04$nnSGUV4EOYDzwCM/kJF2FOHkIH/ISrEvBZsL4j1/8a1rH2s6H1yYW",
}
RIGHT = basic("batch", "secret")
WRONG = basic("batch", "guess")


class Bcrypt:
    """The real one, which says what it was asked and can be made to wait."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.threads: set[str] = set()
        self.go_on = threading.Event()
        self.go_on.set()
        self._check = bcrypt.checkpw

    def checkpw(self, password: bytes, hashed_password: bytes) -> bool:
        self.asked.append((password, hashed_password))
        self.threads.add(threading.current_thread().name)
        assert self.go_on.wait(10)
        return self._check(password, hashed_password)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Bcrypt:
    made = Bcrypt()
    monkeypatch.setattr(bcrypt, "checkpw", made.checkpw)
    return made


@pytest.fixture
async def credentials() -> AsyncIterator[Credentials]:
    made = Credentials(USERS, asyncio.get_running_loop())
    yield made
    made.close()


async def ask(credentials: Credentials, value: bytes, client: str = "192.0.2.1") -> Verdict:
    return await asyncio.wait_for(credentials.check(value, client), 10)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what a thread does
            await asyncio.sleep(0.001)


# Syntax -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", ("Aladdin", b"open sesame")),  # RFC 7617 §2
        (b"bASIC QWxhZGRpbjpvcGVuIHNlc2FtZQ==", ("Aladdin", b"open sesame")),
        (b"Basic   QWxhZGRpbjpvcGVuIHNlc2FtZQ==", ("Aladdin", b"open sesame")),
        (basic("a", "b:c:"), ("a", b"b:c:")),
        (basic("a", ""), ("a", b"")),
        (basic("test", "123£"), ("test", "123£".encode())),  # RFC 7617 §2.1
        (basic("x" * 64, "y" * 72), ("x" * 64, b"y" * 72)),
    ],
)
def test_what_is_basic(value: bytes, found: tuple[str, bytes]) -> None:
    assert parse_basic(value) == found


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Basic",
        b"Basic ",
        b"Basic\tYTpi",
        b"BasicYTpi",
        b"Basic YTpi ",
        b"Basic YTpi, Basic YTpi",
        b"Basic YTpi YTpi",
        b"Basic YTp",  # not a multiple of four
        b"Basic YTo",  # without its padding
        b"Basic YTo==",
        b"Basic YTq=",  # the same text as YTo=, written otherwise
        b"Basic YT*pi",  # which base64 would pass over
        b"Basic YT-_",  # of base64url
        b"Basic ====",
        b"Bearer YTpi",
        b"Digest username=a",
        b"Negotiate YTpi",
        b"YTpi",
        b"a:b",
        b"Basic " + base64.b64encode(b"no colon"),
        b"Basic " + base64.b64encode(b":secret"),
        b"Basic " + base64.b64encode(b"a:b\0"),
        b"Basic " + base64.b64encode(b"a\n:b"),
        b"Basic " + base64.b64encode(b"a:\x7f"),
        b"Basic " + base64.b64encode("a:ü".encode("latin-1")),
        b"Basic " + base64.b64encode(b"a:\xed\xa0\x80"),  # a surrogate
        basic("x" * 65, "y"),
        basic("x", "y" * 73),
        basic("x", "ü" * 37),  # 74 bytes
        b"Basic " + b"YTpi" * 8000,
    ],
)
async def test_what_is_not_is_refused_without_a_check(
    value: bytes, credentials: Credentials, spy: Bcrypt
) -> None:
    assert parse_basic(value) is None
    assert await ask(credentials, value) is Refused.MALFORMED
    assert not spy.asked


@given(st.binary() | st.binary().map(lambda data: b"Basic " + base64.b64encode(data)))
def test_no_value_is_too_strange(value: bytes) -> None:
    found = parse_basic(value)
    if found is not None:
        user, password = found
        assert base64.b64decode(value[5:]) == user.encode() + b":" + password


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=":"), min_size=1),
    st.text(st.characters(exclude_categories=["Cc", "Cs"])),
)
def test_whatever_a_client_may_send_comes_through(user: str, password: str) -> None:
    fits = len(user.encode()) <= 64 and len(password.encode()) <= 72
    wanted = (user, password.encode()) if fits else None
    assert parse_basic(basic(user, password)) == wanted


# Verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (RIGHT, "batch"),
        (basic("ci", "pass:word"), "ci"),
        (basic("umlaut", "grün"), "umlaut"),
        (WRONG, Refused.WRONG),
        (basic("batch", ""), Refused.WRONG),
        (basic("batch", "secret "), Refused.WRONG),
        (basic("Batch", "secret"), Refused.WRONG),
        (basic("ci", "secret"), Refused.WRONG),
        (basic("nobody", "secret"), Refused.WRONG),
        (basic("nöbody", "secret"), Refused.WRONG),
        (basic("ci", USERS["ci"]), Refused.WRONG),
    ],
)
async def test_verdicts(value: bytes, verdict: Verdict, credentials: Credentials) -> None:
    assert credentials.known(value, NOW) is None
    assert await ask(credentials, value) == verdict


@pytest.mark.parametrize("version", ["2y", "2b", "2a"])
async def test_every_version_of_bcrypt(version: str) -> None:
    table = {"batch": USERS["batch"].replace("$2b$", f"${version}$")}
    credentials = Credentials(table, asyncio.get_running_loop())
    assert await ask(credentials, RIGHT) == "batch"
    assert await ask(credentials, WRONG) is Refused.WRONG
    credentials.close()


async def test_a_user_who_does_not_exist_is_nobody_whatever_bcrypt_says(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, hashed_password: True)
    assert await ask(credentials, basic("nobody", "secret")) is Refused.WRONG


async def test_without_users_nobody_is_known(spy: Bcrypt) -> None:
    credentials = Credentials({}, asyncio.get_running_loop())
    assert await ask(credentials, RIGHT) is Refused.WRONG
    assert not spy.asked
    credentials.close()


async def test_a_hash_that_cannot_be_used_lets_nobody_in() -> None:
    """The users file does not pass such a hash; were it ever to, the client would be told of a defect."""
    credentials = Credentials({**USERS, "bad": "$2b$04$short"}, asyncio.get_running_loop())
    value = basic("bad", "secret")
    with pytest.raises(ValueError, match="salt"):
        await ask(credentials, value)
    assert credentials.known(value, time.monotonic()) is None
    assert await ask(credentials, RIGHT) == "batch"
    credentials.close()


# What is remembered -----------------------------------------------------------------------------


async def test_a_verdict_is_asked_for_once(credentials: Credentials, spy: Bcrypt) -> None:
    await ask(credentials, RIGHT)
    await ask(credentials, WRONG)
    assert len(spy.asked) == 2
    now = time.monotonic()
    assert credentials.known(RIGHT, now) == "batch"
    assert credentials.known(WRONG, now) is Refused.WRONG
    assert credentials.known(RIGHT, now + 10**6) == "batch"
    assert credentials.known(basic("batch", "other"), now) is None


async def test_wrong_ones_are_tried_again_after_a_minute(
    credentials: Credentials, spy: Bcrypt
) -> None:
    before = time.monotonic()
    await ask(credentials, WRONG)
    assert credentials.known(WRONG, before + module.NEGATIVE_TTL) is Refused.WRONG
    assert credentials.known(WRONG, time.monotonic() + module.NEGATIVE_TTL) is None
    assert await ask(credentials, WRONG) is Refused.WRONG
    assert len(spy.asked) == 2


async def test_what_is_remembered_is_bounded(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither kind drives out the other: guesses must not cost others their verdicts."""
    monkeypatch.setattr(module, "MAX_KEPT", 3)
    spaced = [RIGHT.replace(b" ", b" " * count) for count in range(1, 5)]
    for value in spaced[:3]:
        await ask(credentials, value)
    now = time.monotonic()
    assert credentials.known(spaced[0], now) == "batch"  # the most recently used now
    await ask(credentials, spaced[3])
    assert [credentials.known(value, now) for value in spaced] == ["batch", None, "batch", "batch"]
    guesses = [basic("batch", f"guess {number}") for number in range(5)]
    for guess in guesses:
        await ask(credentials, guess)
    assert [credentials.known(guess, now) for guess in guesses] == [None] * 2 + [Refused.WRONG] * 3
    assert credentials.known(spaced[3], now) == "batch"


async def test_those_who_ask_for_the_same_share_one_check(
    credentials: Credentials, spy: Bcrypt
) -> None:
    spy.go_on.clear()
    asked = [credentials.check(RIGHT, f"192.0.2.{number}") for number in range(50)]
    spy.go_on.set()
    assert set(await asyncio.gather(*asked)) == {"batch"}
    assert len(spy.asked) == 1


async def test_a_look_up_takes_two_microseconds_at_most(credentials: Credentials) -> None:
    await ask(credentials, RIGHT)
    await ask(credentials, WRONG)
    now = time.monotonic()
    for value in (RIGHT, WRONG, basic("un", "known")):
        rounds = []
        for _ in range(50):
            began = time.perf_counter()
            for _ in range(200):
                credentials.known(value, now)
            rounds.append((time.perf_counter() - began) / 200)
        assert min(rounds) < 2e-6


# Another table ----------------------------------------------------------------------------------


async def test_a_verdict_outlives_a_table_with_the_same_hash(
    credentials: Credentials, spy: Bcrypt
) -> None:
    others = basic("ci", "pass:word")
    await ask(credentials, RIGHT)
    await ask(credentials, others)
    credentials.adopt({"batch": USERS["batch"], "new": hashed(b"new")})
    assert credentials.known(RIGHT, time.monotonic()) == "batch"
    assert credentials.known(others, time.monotonic()) is None
    assert await ask(credentials, others) is Refused.WRONG
    assert await ask(credentials, basic("new", "new")) == "new"


async def test_a_changed_password_is_forgotten(credentials: Credentials) -> None:
    await ask(credentials, RIGHT)
    await ask(credentials, WRONG)
    credentials.adopt({"batch": hashed(b"guess")})
    assert credentials.known(RIGHT, time.monotonic()) is None
    assert credentials.known(WRONG, time.monotonic()) is None
    assert await ask(credentials, RIGHT) is Refused.WRONG
    assert await ask(credentials, WRONG) == "batch"


async def test_the_same_password_with_another_hash_is_checked_again(
    credentials: Credentials, spy: Bcrypt
) -> None:
    await ask(credentials, RIGHT)
    credentials.adopt({"batch": hashed(b"secret")})
    assert credentials.known(RIGHT, time.monotonic()) is None
    assert await ask(credentials, RIGHT) == "batch"
    assert len(spy.asked) == 2


@pytest.mark.parametrize(
    ("value", "table", "verdict"),
    [
        (RIGHT, {}, Refused.WRONG),
        (RIGHT, {"ci": USERS["ci"]}, Refused.WRONG),
        (RIGHT, {"batch": hashed(b"changed")}, Refused.WRONG),
        (basic("batch", "changed"), {"batch": hashed(b"changed")}, "batch"),
        (basic("new", "secret"), {"new": hashed(b"secret")}, "new"),
        (RIGHT, {**USERS, "new": hashed(b"new")}, "batch"),
        (WRONG, USERS, Refused.WRONG),
    ],
)
async def test_a_table_that_comes_while_a_check_runs(
    value: bytes, table: dict[str, str], verdict: Verdict, credentials: Credentials, spy: Bcrypt
) -> None:
    spy.go_on.clear()
    asked = credentials.check(value, "192.0.2.1")
    await until(lambda: len(spy.asked) == 1)
    credentials.adopt(table)
    spy.go_on.set()
    assert await asyncio.wait_for(asked, 10) == verdict
    assert credentials.known(value, time.monotonic()) == verdict
    # And that it is so by the new table, not by the old one.
    assert len(spy.asked) == (1 if table.get("batch") == USERS["batch"] else 2)


async def test_a_check_that_waits_takes_the_table_of_its_turn(
    credentials: Credentials, spy: Bcrypt
) -> None:
    spy.go_on.clear()
    first, second = credentials.check(WRONG, "192.0.2.1"), credentials.check(RIGHT, "192.0.2.1")
    credentials.adopt({"batch": hashed(b"guess")})
    spy.go_on.set()
    assert await first == "batch"
    assert await second is Refused.WRONG


async def test_stamps_tell_whether_a_user_is_still_the_same(credentials: Credentials) -> None:
    before = {user: credentials.stamp(user) for user in USERS}
    assert len(set(before.values())) == len(USERS)
    assert credentials.stamp("nobody") is None
    credentials.adopt({"batch": USERS["batch"], "ci": hashed(b"pass:word")})
    assert credentials.stamp("batch") == before["batch"]
    assert credentials.stamp("ci") not in (None, before["ci"])
    assert credentials.stamp("umlaut") is None
    credentials.adopt(USERS)
    assert {user: credentials.stamp(user) for user in USERS} == before


# Floods -----------------------------------------------------------------------------------------


def guesses(count: int, *, start: int = 0) -> list[bytes]:
    return [basic("batch", f"guess {number}") for number in range(start, start + count)]


async def test_one_thread_checks_and_the_loop_never(credentials: Credentials, spy: Bcrypt) -> None:
    await asyncio.gather(*(credentials.check(value, "192.0.2.1") for value in guesses(20)))
    (name,) = spy.threads
    assert name != threading.current_thread().name
    assert [thread.name for thread in threading.enumerate()].count(name) == 1


async def test_the_loop_goes_on_while_a_check_runs() -> None:
    """A check of cost 12 takes some 200 ms."""
    credentials = Credentials({"batch": hashed(b"secret", 12)}, asyncio.get_running_loop())
    asked = credentials.check(RIGHT, "192.0.2.1")
    turns = 0
    while not asked.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 20
    credentials.close()


async def test_a_client_that_guesses_fills_its_own_queue(
    credentials: Credentials, spy: Bcrypt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_OF_CLIENT", 10)
    spy.go_on.clear()
    flood = [credentials.check(value, "192.0.2.66") for value in guesses(30)]
    # One runs, ten wait, nineteen know at once that they will not.
    assert [future.done() for future in flood] == [False] * 11 + [True] * 19
    assert {future.result() for future in flood[11:]} == {Refused.OVERLOADED}
    asked = credentials.check(RIGHT, "192.0.2.1")
    spy.go_on.set()
    assert await asked == "batch"
    # Its turn came after the check that ran and one more.
    assert len(spy.asked) <= 4
    assert set(await asyncio.gather(*flood[:11])) == {Refused.WRONG}


async def test_clients_have_their_checks_in_turn(credentials: Credentials, spy: Bcrypt) -> None:
    spy.go_on.clear()
    clients = {"192.0.2.1": guesses(4), "192.0.2.2": guesses(2, start=10), "192.0.2.3": [RIGHT]}
    asked = [credentials.check(value, client) for client in clients for value in clients[client]]
    spy.go_on.set()
    await asyncio.gather(*asked)
    order = [password.decode().removeprefix("guess ") for password, _ in spy.asked]
    assert order == ["0", "1", "10", "secret", "2", "11", "3"]


async def test_the_whole_queue_is_bounded(
    credentials: Credentials, spy: Bcrypt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    spy.go_on.clear()
    flood = [
        credentials.check(value, f"192.0.2.{number % 2}") for number, value in enumerate(guesses(8))
    ]
    assert [future.done() for future in flood] == [False] * 5 + [True] * 3
    # Whoever has nothing in it gets in all the same: a few who guess shut nobody out.
    newcomer = credentials.check(RIGHT, "192.0.2.50")
    assert not newcomer.done()
    # Who asks for what is being checked already needs no room.
    assert credentials.check(guesses(1)[0], "192.0.2.99") is flood[0]
    spy.go_on.set()
    await asyncio.gather(*flood[:5])
    assert await newcomer == "batch"
    # What was turned away is not remembered as wrong.
    assert credentials.known(guesses(8)[7], time.monotonic()) is None
    assert await ask(credentials, guesses(8)[7]) is Refused.WRONG


async def test_without_a_thread_nobody_is_let_in_and_the_next_one_is_tried(
    credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert await ask(credentials, RIGHT) is Refused.OVERLOADED
    assert await ask(credentials, RIGHT) == "batch"


async def test_nobody_waits_for_ever(
    credentials: Credentials, spy: Bcrypt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that comes too late is not used: its client is gone, and others wait."""
    spy.go_on.clear()
    flood = [credentials.check(value, "192.0.2.1") for value in guesses(20)]
    await until(lambda: len(spy.asked) == 1)
    monkeypatch.setattr(module, "MAX_WAIT", 0.0)
    spy.go_on.set()
    verdicts = await asyncio.gather(*flood)
    assert verdicts == [Refused.WRONG] + [Refused.OVERLOADED] * 19
    assert len(spy.asked) == 1
    monkeypatch.undo()
    assert await ask(credentials, RIGHT) == "batch"


async def test_time_does_not_tell_who_exists(credentials: Credentials, spy: Bcrypt) -> None:
    costs = {"quick": hashed(b"x", 4), "slow": hashed(b"x", 6)}
    credentials.adopt(costs)
    for number in range(40):
        await ask(credentials, basic(f"nobody{number}", "x"))
    used = [hashed_password[:7] for _, hashed_password in spy.asked]
    # Each is checked, against a hash that costs as much as that of somebody.
    assert len(used) == 40
    assert set(used) == {b"$2b$04$", b"$2b$06$"}
    # And the same name at the same cost, as it would be if it existed.
    for number in range(40):
        await ask(credentials, basic(f"nobody{number}", "y"))
    assert [hashed_password[:7] for _, hashed_password in spy.asked[40:]] == used


async def test_the_time_of_an_unknown_user_is_that_of_a_known_one() -> None:
    credentials = Credentials({"batch": hashed(b"secret", 8)}, asyncio.get_running_loop())

    async def seconds(user: str) -> float:
        found = []
        for number in range(15):
            began = time.perf_counter()
            assert await ask(credentials, basic(user, f"guess {number}")) is Refused.WRONG
            found.append(time.perf_counter() - began)
        return median(found)

    known, unknown = await seconds("batch"), await seconds("nobody")
    credentials.close()
    assert 0.5 < known / unknown < 2


# What is never told -----------------------------------------------------------------------------


async def test_credentials_are_kept_nowhere(credentials: Credentials, spy: Bcrypt) -> None:
    """Once they are checked, nothing that the process holds leads to them."""
    value, wrong = basic("batch", "secret"), basic("batch", "tell-tale")
    await ask(credentials, value)
    await ask(credentials, wrong)
    spy.asked.clear()
    await asyncio.sleep(0)
    seen: set[int] = set()
    stack: list[object] = [credentials]
    while stack:
        found = stack.pop()
        # Into our own objects and containers, not into modules and whatever they lead to.
        if id(found) in seen or not (
            isinstance(found, (bytes, str, dict, list, tuple, set))
            or type(found).__module__ in ("collections", module.__name__)
        ):
            continue
        seen.add(id(found))
        assert found not in (value, wrong, b"secret", b"tell-tale", "tell-tale")
        stack += gc.get_referents(found)
    assert len(seen) > 10


async def test_nothing_shows_credentials(credentials: Credentials, spy: Bcrypt) -> None:
    spy.go_on.clear()
    asked = credentials.check(RIGHT, "192.0.2.1")
    waiting = credentials.check(WRONG, "192.0.2.1")
    shown = repr([credentials, vars(credentials), asked, waiting])
    assert "secret" not in shown
    assert "guess" not in shown
    assert RIGHT.decode().removeprefix("Basic ") not in shown
    spy.go_on.set()
    await asked
    await waiting


# The end ----------------------------------------------------------------------------------------


async def test_closing_does_not_wait(spy: Bcrypt) -> None:
    loop = asyncio.get_running_loop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    credentials = Credentials(USERS, loop)
    spy.go_on.clear()
    running = credentials.check(RIGHT, "192.0.2.1")
    waiting = credentials.check(WRONG, "192.0.2.1")
    await until(lambda: len(spy.asked) == 1)
    credentials.close()
    spy.go_on.set()
    assert await asyncio.wait_for(running, 10) == "batch"
    assert not waiting.done()
    assert len(spy.asked) == 1
    assert not errors
    wait_until(lambda: not any(t.name.startswith("credentials") for t in threading.enumerate()))
