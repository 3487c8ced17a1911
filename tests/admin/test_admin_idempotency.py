"""An Idempotency-Key that comes again: the first answer, or a conflict, and what is forgotten when."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from pathlib import Path
from uuid import uuid4

import pytest

from egress_proxy.admin.http import Refusal, Response
from egress_proxy.admin.idempotency import LIFETIME, Answer, Answers, Scope
from egress_proxy.config.errors import Code, ConfigError, Problem
from egress_proxy.core import reasons
from egress_proxy.core.policy import Place
from tests.admin.running import Admin, Host, configuration
from tests.support.contract import contract

QUESTION = b'{"target": "example.com", "client": "10.0.0.7"}'
OTHER_QUESTION = b'{"target": "example.org", "client": "10.0.0.7"}'
DAY = 24 * 3600
KEY = "4f0c8a52-3d1e-4b7a-9c55-0d9f2f6a1b3e"


def scope(key: int = 1, tenant: bytes = b"a", principal: bytes = b"") -> Scope:
    return Scope(principal, tenant, b"%d" % key)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Act:
    """Counts how often it is done; answers with its number."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.done = 0
        self._answer = answer

    async def __call__(self) -> Answer:
        self.done += 1
        return self._answer or Response(b"%d" % self.done)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def answers(clock: Clock) -> Answers:
    return Answers(clock)


def is_replayed(answer: Answer) -> bool:
    return answer.fields.endswith(b"Idempotency-Replayed: true\r\n")


def is_conflict(answer: Answer) -> bool:
    return isinstance(answer, Refusal) and answer.reason is reasons.IDEMPOTENCY_KEY_REUSED


# The store ------------------------------------------------------------------------------------------------------------


async def test_the_same_request_is_done_once(answers: Answers) -> None:
    act = Act()
    first = await answers.once(scope(), b"p", act)
    for _ in range(3):
        again = await answers.once(scope(), b"p", act)
        assert isinstance(again, Response)
        assert (again.body, is_replayed(again)) == (b"1", True)
    assert not is_replayed(first)
    assert act.done == 1


async def test_another_payload_is_a_conflict_and_changes_nothing(answers: Answers) -> None:
    act = Act()
    await answers.once(scope(), b"p", act)
    assert is_conflict(await answers.once(scope(), b"q", act))
    assert is_replayed(await answers.once(scope(), b"p", act))
    assert act.done == 1


async def test_keys_belong_to_a_tenant_and_a_principal(answers: Answers) -> None:
    """Nobody learns another one's answer, or that there is one."""
    act = Act()
    for tenant in (b"a", b"b"):
        for principal in (b"", b"token"):
            answer = await answers.once(scope(1, tenant, principal), tenant + principal, act)
            assert not is_replayed(answer)
            assert not is_conflict(answer)
    assert act.done == 4


async def test_an_answer_is_kept_for_a_day(answers: Answers, clock: Clock) -> None:
    act = Act()
    await answers.once(scope(), b"p", act)
    clock.now += DAY - 0.001
    assert is_replayed(await answers.once(scope(), b"p", act))
    assert is_conflict(await answers.once(scope(), b"q", act))
    clock.now += 0.001
    assert not is_replayed(await answers.once(scope(), b"q", act))
    assert act.done == 2
    assert LIFETIME == DAY


async def test_what_is_old_takes_no_room(answers: Answers, clock: Clock) -> None:
    for key in range(10):
        await answers.once(scope(key), b"p", Act())
        clock.now += 3600
    assert len(answers) == 10
    clock.now = 1000 + DAY + 4 * 3600
    await answers.once(scope(11), b"p", Act())
    assert len(answers) == 6
    clock.now += 2 * DAY
    await answers.once(scope(12), b"p", Act())
    assert (len(answers), answers.bytes) == (1, 1024 + 1)


async def test_a_full_store_forgets_the_oldest(clock: Clock) -> None:
    answers = Answers(clock, max_answers=3)
    for key in range(5):
        # Being asked for again makes none younger: how long a key lives does not hang on its use.
        await answers.once(scope(key), b"p", Act())
        await answers.once(scope(2), b"p", Act())
    assert len(answers) == 3
    known = [is_replayed(await answers.once(scope(key), b"p", Act())) for key in (2, 3, 4)]
    assert known == [True, True, True]
    assert not is_replayed(await answers.once(scope(0), b"p", Act()))
    assert len(answers) == 3


async def test_the_bytes_of_all_answers_are_bounded(clock: Clock) -> None:
    answers = Answers(clock, max_bytes=10_000)
    for key in range(100):
        await answers.once(scope(key), b"p", Act(Response(b"x" * 2000)))
        assert answers.bytes <= 10_000
    assert len(answers) == 3
    assert is_replayed(await answers.once(scope(99), b"p", Act()))
    # One that is too large by itself is not kept, and drives no other out.
    act = Act(Response(b"x" * 20_000))
    await answers.once(scope(1000), b"p", act)
    await answers.once(scope(1000), b"p", act)
    assert (act.done, len(answers)) == (2, 3)


@pytest.mark.parametrize(
    "answer",
    [
        Refusal(reasons.INTERNAL_ERROR),
        Refusal(reasons.DRAINING),
        # What tells the client to send the same request again must let it through then.
        Refusal(reasons.APPROVAL_REQUIRED),
        Response(b"", status=HTTPStatus.BAD_GATEWAY),
    ],
)
async def test_what_is_no_last_word_is_not_kept(answers: Answers, answer: Answer) -> None:
    failing, act = Act(answer), Act()
    assert await answers.once(scope(), b"p", failing) is answer
    assert not is_replayed(await answers.once(scope(), b"p", act))
    assert (failing.done, act.done) == (1, 1)


async def test_a_refusal_is_kept_with_its_request_id(answers: Answers) -> None:
    refused = Refusal(reasons.RELOAD_FAILED, "policy.yaml:1:1: wrong")
    await answers.once(scope(), b"p", Act(refused))
    again = await answers.once(scope(), b"p", Act())
    assert isinstance(again, Refusal)
    assert again.request_id == refused.request_id
    assert again.detail == refused.detail


async def test_whoever_comes_meanwhile_waits_for_the_first_answer(answers: Answers) -> None:
    go = asyncio.Event()
    act = Act()

    async def slow() -> Answer:
        await go.wait()
        return await act()

    waiting = [asyncio.ensure_future(answers.once(scope(), b"p", slow)) for _ in range(5)]
    await asyncio.sleep(0)
    # Another payload need not wait to be told.
    assert is_conflict(await answers.once(scope(), b"q", act))
    assert not any(task.done() for task in waiting)
    go.set()
    async with asyncio.timeout(10):
        came = await asyncio.gather(*waiting)
    assert [is_replayed(answer) for answer in came] == [False, True, True, True, True]
    assert act.done == 1


async def test_whoever_waits_for_a_failure_acts_in_turn(answers: Answers) -> None:
    running = most = acts = 0

    async def failing() -> Answer:
        nonlocal running, most, acts
        running, acts = running + 1, acts + 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return Response(b"") if acts == 3 else Refusal(reasons.INTERNAL_ERROR)

    async with asyncio.timeout(10):
        came = await asyncio.gather(*(answers.once(scope(), b"p", failing) for _ in range(6)))
    assert (acts, most) == (3, 1)
    assert sum(is_replayed(answer) for answer in came) == 3


async def test_one_that_is_cancelled_leaves_nothing(answers: Answers) -> None:
    async def never() -> Answer:
        return await asyncio.get_running_loop().create_future()

    first = asyncio.ensure_future(answers.once(scope(), b"p", never))
    await asyncio.sleep(0)
    act = Act()
    second = asyncio.ensure_future(answers.once(scope(), b"p", act))
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(10):
        assert not is_replayed(await second)
    assert act.done == 1
    with pytest.raises(asyncio.CancelledError):
        await first


# The admin port -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/reload", "/v1/explain"])
@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ("", "idempotency_key_missing"),
        ("X-Tenant-ID: a\r\n", "idempotency_key_missing"),
        (f"Idempotency-Key: {KEY}\r\n", "tenant_id_missing"),
        (contract("17"), "idempotency_key_invalid"),
        (contract(KEY, "a b"), "tenant_id_invalid"),
        (contract(KEY) * 2, "idempotency_key_invalid"),
    ],
)
def test_requests_that_change_something_need_the_contract_headers(
    host: Host, path: str, headers: str, reason: str
) -> None:
    """Whatever the configuration says: that is about what goes through the proxy."""

    async def conversation(admin: Admin) -> None:
        answer = await admin.ask("POST", path, body=QUESTION, headers=headers)
        assert (answer.status, answer.reason) == (400, reason)
        assert answer.fields["connection"] == "keep-alive"
        assert host.state.reloads == 0

    host.run(conversation)


def test_who_may_not_ask_is_told_that_first(host: Host) -> None:
    """And what is not there needs no headers."""
    host.state.config = configuration(admin_token_file="/nonexistent")

    async def conversation(admin: Admin) -> None:
        assert (await admin.ask("POST", "/v1/reload", headers="")).status == 401
        assert (await admin.ask("POST", "/nothing", headers="")).status == 404
        assert (await admin.ask("DELETE", "/healthz", headers="")).status == 405

    host.run(conversation)


def test_requests_that_only_read_need_none(host: Host) -> None:
    async def conversation(admin: Admin) -> None:
        same = contract()
        for path in ("/v1/policy", "/healthz", "/metrics"):
            for method in ("GET", "HEAD"):
                for headers in ("", same, "Idempotency-Key: 1\r\n"):
                    answer = await admin.ask(method, path, headers=headers)
                    assert answer.status == 200
                    assert "idempotency-replayed" not in answer.fields

    host.run(conversation)


def test_a_reload_is_done_once_for_a_key(host: Host) -> None:
    key = uuid4()

    async def conversation(admin: Admin) -> None:
        first = await admin.ask("POST", "/v1/reload", headers=contract(key))
        assert (first.status, first.json["generation"]) == (200, 4)
        assert "idempotency-replayed" not in first.fields
        # Another one came between: the answer stays that to the request, whatever holds by now.
        await admin.ask("POST", "/v1/reload")
        again = await admin.ask("POST", "/v1/reload", headers=contract(str(key).upper()))
        assert (again.status, again.body) == (200, first.body)
        assert again.fields["idempotency-replayed"] == "true"
        assert again.fields["content-type"] == "application/json"
        assert host.state.reloads == 2

    host.run(conversation)


def test_a_key_for_another_request_is_a_conflict(host: Host) -> None:
    key = contract(uuid4())

    async def conversation(admin: Admin) -> None:
        ask = admin.ask
        first = await ask("POST", "/v1/explain", body=QUESTION, headers=key)
        assert first.json["outcome"] == "ALLOWED"
        for path, body in (
            ("/v1/explain", OTHER_QUESTION),
            ("/v1/explain", b""),
            ("/v1/explain?x", QUESTION),
            ("/v1/reload", QUESTION),
        ):
            answer = await ask("POST", path, body=body, headers=key)
            assert (answer.status, answer.reason) == (409, "idempotency_key_reused")
            assert answer.fields["x-egress-error"] == "CONFLICT"
            assert not answer.json["error"]["retry"]
        assert host.state.reloads == 0
        again = await ask("POST", "/v1/explain", body=QUESTION, headers=key)
        assert again.body == first.body

    host.run(conversation)


def test_tenants_do_not_share_keys(host: Host) -> None:
    key = uuid4()

    async def conversation(admin: Admin) -> None:
        for tenant in ("team-a", "team-b", "Team-A"):
            answer = await admin.ask("POST", "/v1/reload", headers=contract(key, tenant))
            assert "idempotency-replayed" not in answer.fields
        assert host.state.reloads == 3

    host.run(conversation)


def test_who_has_another_token_has_other_keys(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one\n")
    host.state.config = configuration(admin_token_file=str(path))
    key = contract(uuid4())

    async def conversation(admin: Admin) -> None:
        for scheme, replayed in (("Bearer", False), ("bearer ", True)):
            answer = await admin.ask(
                "POST", "/v1/reload", f"Authorization: {scheme} one", headers=key
            )
            assert answer.status == 200
            assert ("idempotency-replayed" in answer.fields) == replayed
        # A kept answer is no way around the token.
        assert (await admin.ask("POST", "/v1/reload", headers=key)).status == 401
        path.write_text("another\n")
        answer = await admin.ask("POST", "/v1/reload", "Authorization: Bearer another", headers=key)
        assert "idempotency-replayed" not in answer.fields
        assert host.state.reloads == 2

    host.run(conversation)


def test_a_refused_file_stays_refused_for_its_key(host: Host) -> None:
    """A new try, once the file is mended, is a new request."""
    problem = Problem(Code.BAD_VALUE, Place("policy.yaml", 1, 1), "wrong", "write `e`")
    host.state.failure = ConfigError((problem,))
    key = contract(uuid4())

    async def conversation(admin: Admin) -> None:
        first = await admin.ask("POST", "/v1/reload", headers=key)
        assert (first.status, first.reason) == (422, "reload_failed")
        host.state.failure = None
        again = await admin.ask("POST", "/v1/reload", headers=key)
        assert (again.status, again.body) == (422, first.body)
        assert again.fields["idempotency-replayed"] == "true"
        assert (await admin.ask("POST", "/v1/reload")).status == 200

    host.run(conversation)


def test_a_defect_is_not_kept(host: Host) -> None:
    host.state.failure = ZeroDivisionError()
    key = contract(uuid4())

    async def conversation(admin: Admin) -> None:
        assert (await admin.ask("POST", "/v1/reload", headers=key)).status == 500
        host.state.failure = None
        again = await admin.ask("POST", "/v1/reload", headers=key)
        assert again.status == 200
        assert "idempotency-replayed" not in again.fields

    host.run(conversation)


def test_a_client_that_went_away_gets_the_answer_later(host: Host) -> None:
    """That is what it is for."""
    go, began = asyncio.Event(), asyncio.Event()
    reload = host.state.reload

    async def slow() -> None:
        began.set()
        await go.wait()
        await reload()

    host.state.reload = slow  # type: ignore[method-assign]
    key = contract(uuid4())

    async def conversation(admin: Admin) -> None:
        gone = await admin.client()
        await gone.send(f"POST /v1/reload HTTP/1.1\r\nHost: localhost\r\n{key}\r\n".encode())
        await began.wait()
        await gone.close()
        later = asyncio.ensure_future(admin.ask("POST", "/v1/reload", headers=key))
        await asyncio.sleep(0)
        go.set()
        async with asyncio.timeout(10):
            answer = await later
        assert (answer.status, answer.fields["idempotency-replayed"]) == (200, "true")
        assert host.state.reloads == 1

    host.run(conversation)
