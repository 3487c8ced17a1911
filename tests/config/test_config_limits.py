"""`limits`, tenants and `state`: what is read, and what is doubtful about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from egress_proxy.config.errors import Code, ConfigError
from egress_proxy.config.load import load, parse
from egress_proxy.config.model import FileState, MemoryState
from egress_proxy.core.limits import Limits

HEAD = "version: 1\npolicies:\n  - name: a\n    allow: [example.com]\n"
GIB = 2**30


def limits_of(text: str) -> Limits | None:
    return parse(f"{HEAD}    limits: {text}\n".encode(), "f").config.policy.policies[0].limits


def test_the_contract_s_example() -> None:
    text = "{requests_per_second: 50, burst: 100, tunnels: 200, bytes_per_day: 10GiB}"
    assert limits_of(text) == Limits(50.0, 100, 200, bytes_per_day=10 * GIB)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("{requests_per_second: 0.5}", Limits(0.5)),
        ("{requests_per_second: 0.001}", Limits(0.001)),
        ("{bytes_per_day: {up: 1GiB}}", Limits(bytes_up_per_day=GIB)),
        (
            "{bytes_per_day: {up: 1GiB, down: 2GiB, both: 2GiB}, time_zone: Europe/Berlin}",
            Limits(
                bytes_up_per_day=GIB,
                bytes_down_per_day=2 * GIB,
                bytes_per_day=2 * GIB,
                time_zone="Europe/Berlin",
            ),
        ),
        ("{requests_per_day: 5, time_zone: UTC}", Limits(requests_per_day=5)),
        (
            "{bandwidth: 10MiB, tunnel_bandwidth: 1MiB, new_hosts_per_hour: 20}",
            Limits(bandwidth=10 * 2**20, tunnel_bandwidth=2**20, new_hosts_per_hour=20),
        ),
    ],
)
def test_limits(text: str, limits: Limits) -> None:
    assert limits_of(text) == limits


def test_without_any_there_are_none() -> None:
    (policy,) = parse(HEAD.encode(), "f").config.policy.policies
    assert (policy.limits, policy.tenant, policy.trust_tenant_header) == (None, None, False)


def test_tenants(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"alice:$2y$10${'a' * 21}u{'a' * 30}.\n")
    path = tmp_path / "f.yaml"
    text = (
        HEAD
        + "    trust_tenant_header: true\n  - {name: b, allow: [example.org], tenant: team-b}\n"
    )
    who = "credentials: {users_file: users, tenants: {alice: team-a"
    path.write_text(f"{text}{who}}}}}\n")
    loaded = load(str(path))
    assert loaded.warnings == ()
    one, two = loaded.config.policy.policies
    assert (one.trust_tenant_header, two.tenant) == (True, "team-b")
    assert loaded.config.credentials is not None
    assert loaded.config.credentials.tenants == {"alice": "team-a"}
    path.write_text(f"{text}{who}, alcie: team-a, bob: b}}}}\n")
    (warning,) = load(str(path)).warnings
    assert warning.code is Code.WITHOUT_EFFECT
    assert "does not have the user `alcie`, nor 1 more" in warning.what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            HEAD + "    limits: {bandwidth: 1MiB, tunnel_bandwidth: 2MiB}\n",
            "5:49: `tunnel_bandwidth` is larger than `bandwidth`",
        ),
        (
            HEAD + "    limits: {bytes_per_day: {up: 2GiB, both: 2GiB}}\n",
            "5:29: `up` is not smaller than `both`",
        ),
        (
            HEAD + "    limits: {bytes_per_day: {up: 1GiB, down: 1GiB, both: 2GiB}}\n",
            "5:29: `both` is not smaller than `up` and `down` together",
        ),
        (
            HEAD + "    tenant: x\n    trust_tenant_header: true\n",
            "6:26: the policy names its `tenant`",
        ),
        (
            HEAD + "  - name: b\n    deny: [a.b]\n    limits: {tunnels: 1}\n",
            "7:13: the policy lets nothing through",
        ),
    ],
)
def test_what_never_takes_effect_is_told(text: str, said: str) -> None:
    warnings = parse(text.encode(), "f").warnings
    assert [w.code for w in warnings] == [Code.WITHOUT_EFFECT]
    assert str(warnings[0]).startswith(
        f"f:{said.partition(' ')[0]} warning: {said.partition(' ')[2]}"
    )


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("memory", MemoryState()),
        ("sqlite:///var/lib/egress-proxy/state.db", FileState("/var/lib/egress-proxy/state.db")),
        ("sqlite:///state.db", FileState("/state.db")),
    ],
)
def test_state(text: str, state: object) -> None:
    found = parse(f"{HEAD}state: {text}\n".encode(), "f").config.state
    assert found == state
    assert str(found) == text


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("/var/lib/state.db", "write sqlite:///var/lib/state.db"),
        ("sqlite:////var/lib/state.db", "write sqlite:///var/lib/state.db"),
        ("sqlite://state.db", "write `memory`"),
        ("sqlite:///", "write `memory`"),
        ("sqlite:///a/../../etc/passwd", "write `memory`"),
        ("sqlite:///a?mode=memory", "write `memory`"),
        ("file:///a", "write `memory`"),
        ("disk", "write `memory`"),
    ],
)
def test_what_is_no_state(text: str, instead: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{HEAD}state: {text}\n".encode(), "f")
    (problem,) = caught.value.problems
    assert problem.instead.startswith(instead)
    assert (problem.place.line, problem.place.column) == (5, 8)


def test_a_password_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{HEAD}state: postgres://user:hunter2@db/x\n".encode(), "f")
    assert "hunter2" not in str(caught.value)
