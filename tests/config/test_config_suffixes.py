"""Below which domains anyone can have a name."""

from __future__ import annotations

import pytest
from publicsuffixlist import PublicSuffixList

from egress_proxy.config.lint.suffixes import Suffixes

SUFFIXES = Suffixes()


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("githubusercontent.com", "githubusercontent.com"),
        ("github.io", "github.io"),
        ("cloudfront.net", "cloudfront.net"),
        ("azurewebsites.net", "azurewebsites.net"),
        ("workers.dev", "workers.dev"),
        ("herokuapp.com", "herokuapp.com"),
        ("s3.amazonaws.com", "s3.amazonaws.com"),
        ("eu-west-1.compute.amazonaws.com", "eu-west-1.compute.amazonaws.com"),
        ("digitaloceanspaces.com", "digitaloceanspaces.com"),
        ("trycloudflare.com", "trycloudflare.com"),
        ("googleapis.com", "googleapis.com"),
        # No entry themselves, but for what lies below.
        ("amazonaws.com", "s3.amazonaws.com"),
        ("compute.amazonaws.com", "compute.amazonaws.com"),
        ("core.windows.net", "web.core.windows.net"),
        ("windows.net", "web.core.windows.net"),
        ("railway.app", "up.railway.app"),
        ("linode.com", "members.linode.com"),
        ("fastly.net", "map.fastly.net"),
        # Not on the list.
        ("azure.com", "cloudapp.azure.com"),
        ("storage.googleapis.com", "storage.googleapis.com"),
        ("sslip.io", "sslip.io"),
        # One's own name below such a domain, and the domains of companies.
        ("octocat.github.io", None),
        ("mine.s3.amazonaws.com", None),
        ("google.com", None),
        ("microsoft.com", None),
        ("example.com", None),
        ("openai.com", None),
        ("anthropic.com", None),
        ("github.com", None),
        ("gitlab.com", None),
        ("docker.io", None),
        ("debian.org", None),
        ("googlevideo.com", None),
        ("slack.com", None),
        ("salesforce.com", None),  # an entry five labels further down is no place for others' data
    ],
)
def test_where_others_have_names(name: str, shared: str | None) -> None:
    assert SUFFIXES.shared(name) == shared
    assert not SUFFIXES.is_public(name)


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("com", True),
        ("co.uk", True),
        ("example.co.uk", False),
        ("za", True),
        ("co.za", True),
        ("kobe.jp", True),
        ("any.kobe.jp", True),
        ("city.kobe.jp", False),
        ("www.ck", False),
        ("any.ck", True),
        ("xn--p1ai", True),
        ("xn--55qx5d.cn", True),
        ("xn--a.cn", False),
        ("github.io", False),
    ],
)
def test_what_registries_hand_out(name: str, public: bool) -> None:
    assert SUFFIXES.is_public(name) == public


def test_top_level_domains() -> None:
    for label in ("com", "za", "ck", "xn--p1ai", "museum"):
        assert SUFFIXES.is_top_level(label)
    for label in ("con", "svc", "corp", "internal", "xn--a", ""):
        assert not SUFFIXES.is_top_level(label)


def test_the_package_s_own_reader_agrees() -> None:
    """About each name of the list, and about one below and one above it."""
    registries = PublicSuffixList(only_icann=True)
    listed = {rule.lstrip("*!").lstrip(".") for rule in SUFFIXES._sections[0]}
    names = {name for rule in listed for name in (rule, f"zz.{rule}", rule.partition(".")[2])}
    # Above entries without one of their own, the package's reader falls back to the unknown.
    wrong = {
        name for name in names if name and registries.is_public(name) != SUFFIXES.is_public(name)
    }
    assert len(names) > 10_000
    assert wrong == set()


def test_shared_suffixes_are_told_as_a_labels() -> None:
    """So that a message shows nothing else than what a rule could say."""
    assert all(name.isascii() for name in map(SUFFIXES.shared, SUFFIXES._below) if name)
