"""Lines, includes and conditions of a squid.conf, and files that are none."""

from __future__ import annotations

import pytest

from egress_proxy.core.errors import EgressProxyError
from egress_proxy.migrate.writing import MigrationError
from tests.migrate.deciding import allows, policy_of
from tests.migrate.importing import notes, policies, squid

NOT_KNOWN = "not known; if it denies something, that is not carried over"

# Lines ------------------------------------------------------------------------------------------------------------


def test_lines_are_joined_and_included() -> None:
    imported = squid(
        """\
        acl sites dstdomain \\
            # a comment between
            a.example.com \\
            b.example.com
        include conf.d/*.conf
        http_access deny all
        """,
        {
            "conf.d/10-a.conf": "acl web port 443\nhttp_access allow sites web\n",
            "conf.d/20-b.conf": "acl odd time MTWHF\nhttp_access allow odd\n",
            "conf.d/other": "http_access allow all\n",
        },
    )
    assert [str(note).partition(" acl")[0] for note in imported.notes][-1] == (
        "conf.d/20-b.conf:2: `http_access allow odd`:"
    )
    (policy,) = policies(imported)
    assert policy["allow"] == [
        {"host": "a.example.com", "ports": [443]},
        {"host": "b.example.com", "ports": [443]},
    ]
    assert "# conf.d/10-a.conf:2: http_access allow sites web" in imported.yaml


@pytest.mark.parametrize(
    ("condition", "allowed", "said"),
    [
        ("true", True, False),
        ("false", False, False),
        ("1 = 1", True, False),
        ("1 = 2", False, False),
        ("${process_number} = 1", False, True),
    ],
)
def test_conditions(condition: str, allowed: bool, said: bool) -> None:
    imported = squid(f"""\
        acl site dstdomain a.example.com
        if {condition}
        http_access allow site
        else
        http_access deny site
        endif
        """)
    assert allows(policy_of(imported.yaml), "10.0.0.1", "a.example.com", 443) == allowed
    why = "it stands behind a condition that depends on the running Squid"
    assert (
        f"squid.conf:3: `http_access allow site`: {why}; only what surely matches is allowed"
        in notes(imported)
    ) == said


def test_a_last_line_that_may_not_be_there_has_no_opposite() -> None:
    imported = squid("""\
        acl bad dstdomain bad.example.com
        if ${process_number} = 1
        http_access deny bad
        endif
        """)
    assert not allows(policy_of(imported.yaml), "10.0.0.1", "a.example.com", 443)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            "cache_peer parent.example.com parent 3128 0",
            "destinations are reached directly; write a parent proxy as `upstream`",
        ),
        ("append_domain .example.com", "names are absolute here; clients must write them in full"),
        (
            "ssl_bump bump all",
            "TLS is never opened; a tunnel must start with TLS to the host that was asked for",
        ),
        (
            "http_port 3129 intercept",
            "clients must be told of the proxy; what a router diverts to it is not taken",
        ),
        ("http_access allow", "it names no acl, so Squid skips it"),
        ("redirector_access deny all", "URLs are not rewritten or refused by a helper"),
        ("icp_access deny all", "other caches are not answered"),
        ("video_access deny all", NOT_KNOWN),
        ("video_access2 deny all", NOT_KNOWN),
        ("http_acess deny all", NOT_KNOWN),
        ("HTTP_Access deny all", NOT_KNOWN),
    ],
)
def test_directives_that_are_not_carried_over(line: str, why: str) -> None:
    imported = squid(f"acl site dstdomain a.example.com\n{line}\nhttp_access allow site\n")
    assert notes(imported) == [f"squid.conf:2: `{line}`: {why}"]


@pytest.mark.parametrize("gate", ["adapted_http_access", "http_access2", "miss_access"])
def test_further_lists_must_allow_too(gate: str) -> None:
    imported = squid(f"""\
        acl sites dstdomain a.example.com b.example.com
        acl bad dstdomain b.example.com
        http_access allow sites
        {gate} deny bad
        """)
    policy = policy_of(imported.yaml)
    assert allows(policy, "10.0.0.1", "a.example.com", 443)
    assert not allows(policy, "10.0.0.1", "b.example.com", 443)


def test_both_names_of_a_list_are_one_list() -> None:
    imported = squid("""\
        acl sites dstdomain a.example.com b.example.com
        acl good dstdomain a.example.com
        http_access allow sites
        http_access2 allow good
        adapted_http_access deny all
        http_access2 allow all
        """)
    policy = policy_of(imported.yaml)
    assert notes(imported) == []
    assert allows(policy, "10.0.0.1", "a.example.com", 443)
    assert not allows(policy, "10.0.0.1", "b.example.com", 443)


def test_other_directives_need_no_note() -> None:
    imported = squid("""\
        acl site dstdomain a.example.com
        access_log none
        http_port 3128
        httpd_suppress_version_string on
        http_access allow site
        """)
    assert notes(imported) == []


def test_a_list_about_responses_is_about_plain_requests() -> None:
    imported = squid("""\
        acl site dstdomain a.example.com
        acl video rep_mime_type video
        acl web port 80 443
        http_access allow site web
        http_reply_access deny video
        """)
    policy = policy_of(imported.yaml)
    for port in (80, 443):
        assert allows(policy, "10.0.0.1", "a.example.com", port)
        assert not allows(policy, "10.0.0.1", "a.example.com", port, method="GET")


# Files that are refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "squid.conf: no `acl`, `http_access` or `http_port` line: this is no squid.conf"),
        (
            "version: v1\nservices: []\n",
            "squid.conf: no `acl`, `http_access` or `http_port` line: this is no squid.conf",
        ),
        ("\0\x01", "squid.conf: this is not a text file"),
        ("acl\n", "squid.conf:1: `acl` has no name or no type"),
        ("acl a\n", "squid.conf:1: `acl a` has no name or no type"),
        (
            "http_access permit all\n",
            "squid.conf:1: `http_access permit all` says neither `allow` nor `deny`",
        ),
        ("http_access\n", "squid.conf:1: `http_access` says neither `allow` nor `deny`"),
        ("endif\n", "squid.conf:1: `endif` without `if`"),
        ("if true\nacl a src all\n", "squid.conf: an `if` without `endif`"),
        (
            "include missing.conf\n",
            "squid.conf:1: the included file missing.conf cannot be read: No such file or directory",
        ),
        (
            "include conf.d/*.conf\n",
            "squid.conf:1: no file matches conf.d/*.conf; copy the included files to where they are expected",
        ),
        (
            "if ${process_number} = 1\ninclude a.conf\nendif\n",
            (
                "squid.conf:2: an `include` behind a condition that depends on the running Squid; write the "
                "included lines "
                "that apply into the file"
            ),
        ),
        ("include loop.conf\n", "loop.conf:1: includes are nested deeper than 16 files"),
        (
            "configuration_includes_quoted_values on\n",
            (
                "squid.conf:1: `configuration_includes_quoted_values on` gives quotes another meaning, which cannot be "
                "imported; write the file without it"
            ),
        ),
    ],
)
def test_what_cannot_be_imported(text: str, message: str) -> None:
    with pytest.raises(MigrationError) as caught:
        squid(text, {"loop.conf": "include loop.conf\n"})
    assert str(caught.value) == message
    assert isinstance(caught.value, EgressProxyError)
