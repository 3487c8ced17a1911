"""The contract headers: what is one key and one tenant, and which of several policies' words holds."""

from __future__ import annotations

from itertools import permutations
from uuid import UUID, uuid1, uuid3, uuid4, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.core.contract import ContractHeaders, check_contract, strictest
from egress_proxy.core.http1 import Field, HeadLimits, origin_request, parse_request
from egress_proxy.core.policy import Place, Policy

KEY = b"4f0c8a52-3d1e-4b7a-9c55-0d9f2f6a1b3e"
PLACE = Place("policy.yaml", 1, 1)
OFF, WARN, ENFORCE = ContractHeaders


def field(name: bytes, value: bytes) -> Field:
    return name.lower(), name, value


def breach(*fields: Field, method: str = "POST") -> str | None:
    found = check_contract(method, fields)
    return None if found is None else found.reason.name


def with_key(key: bytes) -> str | None:
    return breach(field(b"Idempotency-Key", key), field(b"X-Tenant-ID", b"team-a"))


def with_tenant(tenant: bytes) -> str | None:
    return breach(field(b"Idempotency-Key", KEY), field(b"X-Tenant-ID", tenant))


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "CONNECT"])
def test_methods_that_change_nothing_need_none(method: str) -> None:
    assert breach(method=method) is None
    # What nobody asked for is not looked at.
    assert breach(field(b"Idempotency-Key", b"1"), method=method) is None


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "get", "Head", "X"]
)
def test_every_other_method_needs_both(method: str) -> None:
    key, tenant = field(b"Idempotency-Key", KEY), field(b"X-Tenant-ID", b"team-a")
    assert breach(method=method) == "idempotency_key_missing"
    assert breach(tenant, method=method) == "idempotency_key_missing"
    assert breach(key, method=method) == "tenant_id_missing"
    for order in permutations((key, tenant, field(b"Accept", b"*/*"))):
        assert breach(*order, method=method) is None


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        KEY.upper(),
        b"00000000-0000-4000-8000-000000000000",
        b"ffffffff-ffff-4fff-bfff-ffffffffffff",
        b"4F0c8a52-3d1e-4b7a-AC55-0d9f2f6a1b3e",
    ],
)
def test_a_uuid_of_version_4(key: bytes) -> None:
    assert with_key(key) is None


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(str(uuid1()).encode(), id="version 1"),
        pytest.param(str(uuid3(UUID(int=1), "a")).encode(), id="version 3"),
        pytest.param(str(uuid5(UUID(int=1), "a")).encode(), id="version 5"),
        pytest.param(b"017f22e2-79b0-7cc3-98c4-dc0c0c07398f", id="version 7"),
        pytest.param(b"00000000-0000-0000-0000-000000000000", id="nil"),
        pytest.param(b"ffffffff-ffff-ffff-ffff-ffffffffffff", id="max"),
        pytest.param(b"4f0c8a52-3d1e-4b7a-7c55-0d9f2f6a1b3e", id="variant of NCS"),
        pytest.param(b"4f0c8a52-3d1e-4b7a-cc55-0d9f2f6a1b3e", id="variant of Microsoft"),
        pytest.param(b"4f0c8a52-3d1e-4b7a-ec55-0d9f2f6a1b3e", id="variant for later"),
        pytest.param(b"{" + KEY + b"}", id="braces"),
        pytest.param(b"urn:uuid:" + KEY, id="urn"),
        pytest.param(KEY.replace(b"-", b""), id="without hyphens"),
        pytest.param(b"4f0c8a523d1e-4b7a-9c55-0d9f-2f6a1b3e", id="hyphens elsewhere"),
        pytest.param(b'"' + KEY + b'"', id="quotes"),
        pytest.param(KEY + b"," + KEY, id="comma list"),
        pytest.param(KEY + b", " + KEY, id="comma list with a space"),
        pytest.param(KEY + b";a=b", id="parameter"),
        pytest.param(b" " + KEY, id="white space"),
        pytest.param(KEY + b"\n", id="line feed"),
        pytest.param(KEY[:-1], id="short"),
        pytest.param(KEY + b"0", id="long"),
        pytest.param(KEY[:-1] + b"g", id="no digit"),
        pytest.param("4f0c8a52-3d1e-4b7a-9c55-0d9f2f6a1b3\u0661".encode(), id="Arabic digit"),
        pytest.param(b"", id="empty"),
    ],
)
def test_anything_else_is_no_key(key: bytes) -> None:
    assert with_key(key) == "idempotency_key_invalid"


@given(st.uuids(version=4))
def test_every_uuid_of_version_4_is_a_key(key: UUID) -> None:
    assert with_key(str(key).encode()) is None


@given(st.binary(max_size=40) | st.uuids().map(lambda key: str(key).encode()))
def test_whatever_is_taken_is_one(key: bytes) -> None:
    """As another implementation sees it."""
    if with_key(key) is None:
        found = UUID(key.decode("ascii"))
        assert found.version == 4
        assert str(found) == key.decode("ascii").lower()


@pytest.mark.parametrize("tenant", [b"a", b"0", b"team-a", b"A_b.c-9", b".", b"-", b"x" * 64])
def test_a_tenant(tenant: bytes) -> None:
    assert with_tenant(tenant) is None


@pytest.mark.parametrize(
    "tenant",
    [
        *(b"", b"x" * 65, b"a b", b"a,b", b"a, b", b"a/b", b"a:b", b"a@b", b'"a"', b"a\n", b" a"),
        *(b"a%20b", b"a*", "café".encode(), b"\xff", b"a\x00"),
    ],
)
def test_anything_else_is_no_tenant(tenant: bytes) -> None:
    assert with_tenant(tenant) == "tenant_id_invalid"


def test_two_of_a_kind_are_none_even_where_they_agree() -> None:
    """Which of them holds, the next program on the way may see in another way."""
    key, tenant = field(b"Idempotency-Key", KEY), field(b"X-Tenant-ID", b"team-a")
    for fields, wanted in (
        ((key, key, tenant), "idempotency_key_invalid"),
        ((key, field(b"idempotency-key", b""), tenant), "idempotency_key_invalid"),
        ((tenant, key, tenant), "tenant_id_invalid"),
        ((key, tenant, field(b"x-tenant-id", b"team-b")), "tenant_id_invalid"),
    ):
        assert breach(*fields) == wanted
        found = check_contract("POST", fields)
        assert found is not None
        assert found.detail == "it stands more than once"


def test_names_of_fields_are_compared_whole() -> None:
    near = (b"X-Idempotency-Key", b"Idempotency-Key2", b"Idempotency_Key", b"X-Request-ID")
    assert breach(*(field(name, KEY) for name in near)) == "idempotency_key_missing"


@pytest.mark.parametrize("value", [b"secret-value", b"a secret, b"])
def test_no_refusal_quotes_what_was_sent(value: bytes) -> None:
    for fields in (
        [field(b"Idempotency-Key", value)],
        [field(b"Idempotency-Key", KEY), field(b"X-Tenant-ID", value + b" ")],
        [field(b"Idempotency-Key", value)] * 2,
    ):
        found = check_contract("POST", fields)
        assert found is not None
        said = f"{found.detail} {found.reason.message} {found.reason.advice}"
        assert "secret" not in said
        # An agent that reads one refusal can mend both.
        assert "Idempotency-Key" in said
        assert "X-Tenant-ID" in said


def policy(mode: ContractHeaders | None) -> Policy:
    return Policy("p", (), None, PLACE, mode)


@pytest.mark.parametrize(
    ("general", "said", "wanted"),
    [
        (OFF, (), OFF),
        (ENFORCE, (), ENFORCE),
        (OFF, (None,), OFF),
        (WARN, (None,), WARN),
        (ENFORCE, (None,), ENFORCE),
        (ENFORCE, (OFF,), OFF),
        (ENFORCE, (OFF, WARN), WARN),
        (ENFORCE, (OFF, None), ENFORCE),
        (OFF, (WARN, None), WARN),
        (OFF, (WARN, ENFORCE, OFF), ENFORCE),
        (WARN, (OFF, OFF), OFF),
    ],
)
def test_the_strictest_of_the_policies_holds(
    general: ContractHeaders, said: tuple[ContractHeaders | None, ...], wanted: ContractHeaders
) -> None:
    for order in permutations(said):
        assert strictest(general, map(policy, order)) is wanted


def test_a_new_key_of_the_standard_library_is_one() -> None:
    assert with_key(str(uuid4()).encode()) is None


def test_a_client_cannot_have_them_taken_away() -> None:
    """What was checked goes on: Connection cannot name it."""
    request = parse_request(
        b"POST http://origin.test/ HTTP/1.1\r\nHost: origin.test\r\nContent-Length: 0\r\n"
        b"Idempotency-Key: 3f9c2a10-7d1e-4b7a-9c59-0c1d2e3f4a5b\r\nX-Tenant-ID: one\r\n"
        b"Connection: Idempotency-Key, X-Tenant-ID, X-Other\r\nX-Other: 1\r\n\r\n",
        HeadLimits(8192, 100),
    )
    sent = origin_request(request).lower()
    assert b"idempotency-key: 3f9c" in sent
    assert b"x-tenant-id: one" in sent
    assert b"x-other" not in sent
