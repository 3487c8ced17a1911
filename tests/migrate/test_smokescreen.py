"""A smokescreen ACL: what becomes of each part, and that no role may do more than before."""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.core.errors import EgressProxyError
from egress_proxy.migrate.smokescreen import (
    DEFAULT_WHY,
    LOST_WHY,
    OPEN_WHY,
    PORTS_WHY,
    REPORT_WHY,
    ROLES_WHY,
    import_smokescreen,
)
from egress_proxy.migrate.smokescreen_acl import SPECIAL_WHY
from egress_proxy.migrate.writing import Imported, MigrationError
from tests.migrate.deciding import allows, policy_of
from tests.migrate.importing import policies

#: They come with every role.
USUAL = (ROLES_WHY, PORTS_WHY)


def smokescreen(text: str) -> Imported:
    imported = import_smokescreen("acl.yaml", dedent(text))
    policy_of(imported.yaml)
    return imported


def notes(imported: Imported) -> list[str]:
    return [str(note) for note in imported.notes if note.why not in USUAL]


def may(imported: Imported, user: str | None, host: str, port: int = 443) -> bool:
    return allows(policy_of(imported.yaml), "10.0.0.1", host, port, user=user)


def test_roles_become_users() -> None:
    imported = smokescreen("""\
        ---
        version: v1
        services:
          - name: billing
            project: payments
            action: enforce
            allowed_domains:
              - api.example.com
              - "*.example.org"
              - 8.8.8.8
              - 2606:4700::1
          - name: nothing
            project: idle
            action: enforce
        """)
    assert policies(imported) == [
        {
            "name": "billing",
            "subjects": [{"user": "billing"}],
            "allow": [
                "api.example.com",
                "*.example.org",
                {"cidr": "8.8.8.8/32"},
                {"cidr": "2606:4700::1/128"},
            ],
        }
    ]
    assert list(map(str, imported.notes)) == [
        f"acl.yaml:4: `services`: {ROLES_WHY}",
        f"acl.yaml:4: `services`: {PORTS_WHY}",
    ]
    assert "# credentials: {users_file: /etc/egress-proxy/users, required: true}\n" in imported.yaml
    assert may(imported, "billing", "a.b.example.org")
    assert not may(imported, "billing", "example.org")  # there as here
    assert not may(imported, "nothing", "api.example.com")
    assert not may(imported, None, "api.example.com")
    assert not may(imported, "billing", "api.example.com", 8443)


def test_report_is_enforced() -> None:
    imported = smokescreen("""\
        version: v1
        services:
          - name: crawler
            action: report
            allowed_domains: [api.example.com]
        """)
    assert notes(imported) == [f"acl.yaml:3: role `crawler`: {REPORT_WHY}"]
    assert may(imported, "crawler", "api.example.com")
    assert not may(imported, "crawler", "www.example.com")
    assert "    # acl.yaml:3: action report, which is `enforce` here\n" in imported.yaml


def test_open_allows_every_name() -> None:
    imported = smokescreen("version: v1\nservices: [{name: legacy-batch, action: open}]\n")
    assert notes(imported) == [f"acl.yaml:2: role `legacy-batch`: {OPEN_WHY}"]
    assert policies(imported)[0]["allow"] == ["*"]
    assert "WARNING: this allows every host on the internet." in imported.yaml
    assert may(imported, "legacy-batch", "anything.example.com")
    assert not may(imported, "legacy-batch", "8.8.8.8")
    assert not may(imported, "other", "anything.example.com")


def test_the_default_is_left_to_the_reader() -> None:
    imported = smokescreen("""\
        version: v1
        services:
          - {name: billing, action: enforce, allowed_domains: [api.example.com]}
        default:
          action: enforce
          allowed_domains: [default.example.com, "*.example.org"]
        """)
    assert notes(imported) == [f"acl.yaml:5: `default`: {DEFAULT_WHY}"]
    assert [policy["name"] for policy in policies(imported)] == ["billing"]
    assert not may(imported, None, "default.example.com")
    # Without their comment signs the last lines are a policy.
    ending = imported.yaml.partition("# without credentials too")[2].partition("\n")[2]
    whole = imported.yaml + "".join(line.removeprefix("# ") for line in ending.splitlines(True))
    assert yaml.safe_load(whole)["policies"][1] == {
        "name": "default",
        "allow": ["default.example.com", "*.example.org"],
    }


def test_global_lists() -> None:
    imported = smokescreen("""\
        version: v1
        services:
          - {name: strict, action: enforce, allowed_domains: [own.example.com, bad.example.com]}
          - {name: legacy, action: open}
        global_allow_list: [good.example.com, both.example.com, "*.example.org"]
        global_deny_list: [bad.example.com, both.example.com, no.example.org]
        """)
    for role in ("strict", "legacy"):
        assert may(imported, role, "good.example.com")
        assert may(imported, role, "yes.example.org")
        assert not may(imported, role, "both.example.com")
        assert not may(imported, role, "no.example.org")
    assert may(imported, "strict", "own.example.com")
    assert may(imported, "strict", "bad.example.com")  # its own list wins, there as here
    assert not may(imported, "legacy", "bad.example.com")
    assert may(imported, "legacy", "whatever.example.com")
    assert not may(imported, "strict", "whatever.example.com")


def test_what_a_role_allows_below_what_all_are_denied_is_lost() -> None:
    imported = smokescreen("""\
        version: v1
        services:
          - {name: legacy, action: open, allowed_domains: [good.bad.example.com]}
        global_deny_list: ["*.bad.example.com"]
        """)
    assert notes(imported) == [
        f"acl.yaml:3: role `legacy`: {OPEN_WHY}",
        "acl.yaml:3: `good.bad.example.com` of role `legacy`: " + LOST_WHY,
    ]
    assert not may(imported, "legacy", "good.bad.example.com")


def test_what_has_no_counterpart_is_named() -> None:
    imported = smokescreen("""\
        version: v1
        services:
          - name: "two words"
            action: enforce
            allowed_domains: [a.example.com]
          - name: mitm
            action: enforce
            allowed_domains: [a.example.com, "*.192.0.2.1", 0x7f.1]
            mitm_domains: [{domain: a.example.com}]
            allowed_external_proxies: [proxy.example.com]
            owner: me
        colour: red
        """)
    assert notes(imported) == [
        "acl.yaml:3: role `two words`: no user can have this name; the role is left out",
        (
            "acl.yaml:8: `*.192.0.2.1` in `allowed_domains of role `mitm``: no host name or address is spelled "
            "so; it is "
            "left out"
        ),
        (
            "acl.yaml:8: `0x7f.1` in `allowed_domains of role `mitm``: no host name or address is spelled so; it is "
            "left out"
        ),
        "acl.yaml:9: `mitm_domains` of role `mitm`: TLS is never opened here, so no headers are added or logged",
        (
            "acl.yaml:10: `allowed_external_proxies` of role `mitm`: destinations are reached directly; a client "
            "cannot name "
            "a further proxy"
        ),
        "acl.yaml:11: `owner` of role `mitm`: smokescreen ignores this key, and so is it here",
        "acl.yaml:12: `colour`: smokescreen ignores this key, and so is it here",
    ]
    assert [policy["name"] for policy in policies(imported)] == ["mitm"]


def test_addresses_that_smokescreen_itself_refuses_are_not_opened() -> None:
    imported = smokescreen("""\
        version: v1
        services:
          - name: metadata
            action: enforce
            allowed_domains: [169.254.169.254, 10.0.0.5, 127.0.0.1, "::1", "::ffff:10.0.0.6", 8.8.8.8]
        default:
          action: enforce
          allowed_domains: [192.168.0.7, 8.8.4.4]
        global_allow_list: [10.0.0.9]
        global_deny_list: [10.0.0.8]
        """)
    (policy,) = policies(imported)
    assert policy["allow"] == [{"cidr": "8.8.8.8/32"}]
    assert "8.8.4.4/32" in imported.yaml
    assert "192.168.0.7/32" not in imported.yaml
    named = [(note.line, note.what) for note in imported.notes if note.why == SPECIAL_WHY]
    role = "`allowed_domains of role `metadata``"
    assert named == [
        (5, f"`169.254.169.254` in {role}"),
        (5, f"`10.0.0.5` in {role}"),
        (5, f"`127.0.0.1` in {role}"),
        (5, f"`::1` in {role}"),
        (5, f"`::ffff:10.0.0.6` in {role}"),
        (8, "`192.168.0.7` in `allowed_domains of `default``"),
        (9, "`10.0.0.9` in `global_allow_list`"),
    ]


def test_addresses_that_smokescreen_refuses_stay_denied() -> None:
    imported = smokescreen("""\
        version: v1
        services: [{name: legacy, action: open}]
        global_deny_list: [10.0.0.8]
        """)
    assert SPECIAL_WHY not in [note.why for note in imported.notes]
    assert not may(imported, "legacy", "10.0.0.8")


def test_merges_of_merges_are_bounded() -> None:
    """Each mapping merges the one before ten times: a hundred million merges in a few lines."""
    steps = "".join(
        f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 10)}]}}\n" for n in range(1, 9)
    )
    with pytest.raises(MigrationError, match="merges more than 100,000 keys"):
        smokescreen(
            f"x0: &x0 {{}}\n{steps}version: v1\nservices: [{{<<: *x8, name: a, action: open}}]\n"
        )


def test_anchors_and_merged_mappings_are_read() -> None:
    imported = smokescreen("""\
        version: v1
        services:
          - &base {name: first, action: enforce, allowed_domains: &hosts [a.example.com]}
          - {<<: *base, name: second}
          - {name: third, action: enforce, allowed_domains: *hosts}
        """)
    assert [may(imported, role, "a.example.com") for role in ("first", "second", "third")] == [
        True
    ] * 3


def test_more_roles_than_one_policy_takes() -> None:
    roles = [f"{{name: role{number}, action: enforce}}" for number in range(1200)]
    imported = smokescreen(
        f"version: v1\nservices: [{', '.join(roles)}]\nglobal_allow_list: [a.example.com]\n"
    )
    assert [len(policy["subjects"]) for policy in policies(imported)] == [1000, 200]


def test_no_role_at_all() -> None:
    imported = smokescreen("version: v1\nservices: []\nglobal_allow_list: [a.example.com]\n")
    assert policies(imported) == [{"name": "nothing-allowed", "deny": ["nothing.invalid"]}]
    assert notes(imported) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http_access allow all\n", "acl.yaml: this is no smokescreen ACL: the file is no mapping"),
        ("", "acl.yaml: this is no smokescreen ACL: the file is no mapping"),
        (
            "a: [\n",
            "acl.yaml:2: this is no YAML: expected the node content, but found '<stream end>'",
        ),
        (
            "\0",
            "acl.yaml: this is no YAML: unacceptable character #x0000: special characters are not allowed",
        ),
        ("services: []\n", "acl.yaml: no `version`: this is no smokescreen ACL of version v1"),
        ("version: 1\n", "acl.yaml:1: `version: 1`: this is no smokescreen ACL of version v1"),
        ("version: v1\n", "acl.yaml: no `services`, which smokescreen requires"),
        ("version: v1\nservices: {}\n", "acl.yaml:2: `services` is no list"),
        ("version: v1\nservices: [a]\n", "acl.yaml:2: an entry of `services` is no mapping"),
        (
            "version: v1\nservices:\n- {name: a, action: allow}\n",
            "acl.yaml:3: role `a` has the unknown action `allow`",
        ),
        (
            "version: v1\nservices:\n- {name: a, action: open}\n- {name: a, action: open}\n",
            "acl.yaml:4: the role `a` stands twice",
        ),
        ("version: v1\nversion: v1\nservices: []\n", "acl.yaml:2: `version` stands twice"),
        ("version: v1\nservices: []\n? [a]\n: b\n", "acl.yaml:3: a key of the file is no text"),
        (
            "version: v1\nservices: []\nglobal_deny_list: [a*.com]\n",
            "acl.yaml:3: `a*.com` in `global_deny_list`: smokescreen refuses this glob",
        ),
        (
            "version: v1\nservices: []\nglobal_deny_list: ['*']\n",
            "acl.yaml:3: `*` in `global_deny_list`: smokescreen refuses this glob",
        ),
        (
            "version: v1\nservices: []\nglobal_allow_list: [Example.com]\n",
            "acl.yaml:3: `Example.com` in `global_allow_list`: smokescreen wants lower-case A-labels (xn--…)",
        ),
        (
            "version: v1\nservices: []\nglobal_allow_list: [[a.com]]\n",
            "acl.yaml:3: an entry of `global_allow_list` is no text",
        ),
        (
            "version: v1\nservices: [&a {<<: *a}]\n",
            "acl.yaml:2: an entry of `services` is no mapping",
        ),
    ],
)
def test_what_cannot_be_imported(text: str, message: str) -> None:
    with pytest.raises(MigrationError) as caught:
        smokescreen(text)
    assert str(caught.value) == message
    assert isinstance(caught.value, EgressProxyError)


# Against smokescreen's own order ---------------------------------------------------------------------------------

GLOBS = ("a.com", "*.a.com", "b.a.com", "*.b.a.com", "c.b.a.com", "*.com", "d.org", "8.8.8.8")
HOSTS = (
    "a.com",
    "b.a.com",
    "c.b.a.com",
    "x.c.b.a.com",
    "x.a.com",
    "nota.com",
    "com",
    "d.org",
    "8.8.8.8",
    "8.8.4.4",
)

_globs = st.lists(st.sampled_from(GLOBS), max_size=4, unique=True)
_role = st.fixed_dictionaries(
    {"action": st.sampled_from(("enforce", "report", "open")), "allowed_domains": _globs}
)
_acl = st.fixed_dictionaries(
    {
        "services": st.lists(_role, max_size=3),
        "default": _role,
        "global_allow_list": _globs,
        "global_deny_list": _globs,
    }
)


def _matches(host: str, globs: list[str]) -> bool:
    return any(host.endswith(glob[1:]) if glob.startswith("*.") else host == glob for glob in globs)


def _decides(acl: dict[str, Any], role: dict[str, Any], host: str) -> bool:
    """``ACL.Decide`` of smokescreen, for a client without a further proxy."""
    if _matches(host, role["allowed_domains"]):
        return True
    if _matches(host, acl["global_deny_list"]):
        return False
    return _matches(host, acl["global_allow_list"]) or role["action"] != "enforce"


@settings(max_examples=60, deadline=None)
@given(_acl)
def test_never_wider(acl: dict[str, Any]) -> None:
    for number, role in enumerate(acl["services"]):
        role["name"] = f"role{number}"
    imported = smokescreen(yaml.safe_dump({"version": "v1", **acl}))
    lost = any(note.why == LOST_WHY for note in imported.notes)
    for role in acl["services"]:
        for host in HOSTS:
            here, there = may(imported, role["name"], host), _decides(acl, role, host)
            assert there or not here, (role, host, imported.yaml)
            literal = host[0].isdigit()
            if role["action"] == "enforce" or (role["action"] == "open" and not literal):
                assert here == there or lost, (role, host, imported.yaml)
    assert not any(may(imported, user, host) for user in (None, "unknown") for host in HOSTS)
