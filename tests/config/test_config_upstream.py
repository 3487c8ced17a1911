"""Parent proxies in a configuration: what is read, and that credentials stay where they are."""

from __future__ import annotations

import asyncio
import base64
import json
from ipaddress import ip_network
from pathlib import Path

import pytest

from egress_proxy.config.errors import ConfigError
from egress_proxy.config.load import Loaded, load, parse
from egress_proxy.config.model import Config
from egress_proxy.config.reload import Reloader, ReloadOutcome
from egress_proxy.config.upstream import MAX_CREDENTIALS
from egress_proxy.core.names import parse_authority
from egress_proxy.core.policy import Rule
from egress_proxy.core.upstream import DIRECT, Parent, Upstream

SECRET = "correct-horse"
POLICIES = "policies: [{name: a, allow: [example.com]}]\n"


def parsed(text: str) -> Loaded:
    return parse(f"version: 1\n{text}".encode(), "f.yaml")


def parent(text: str, credentials_file: str = "") -> Parent:
    return Parent(parse_authority(text.encode(), None), credentials_file)


def rules(loaded: Loaded) -> dict[str, Rule]:
    return {
        str(rule.target): rule for policy in loaded.config.policy.policies for rule in policy.rules
    }


def shown(user_and_password: str) -> bytes:
    return b"Basic " + base64.b64encode(user_and_password.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "parent").write_text(f"proxy-user:{SECRET}\n")
    return tmp_path


def written(folder: Path, text: str, name: str = "policy.yaml") -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"version: 1\n{text}")
    return str(path)


# What is read -----------------------------------------------------------------------------------------------------


def test_without_it_there_is_no_parent() -> None:
    config = parsed(POLICIES).config
    assert config.policy.upstream is None
    assert config.parent_credentials == {}


def test_the_top_level() -> None:
    found = parsed(
        "upstream:\n"
        "  proxy: HTTP://Proxy.Example.:3128\n"
        '  no_proxy: [svc.example., "*.internal.example", "*.BÜCHER.example", 10.0.0.0/8, "FD00::1", 10.1.2.3]\n'
        + POLICIES
    )
    assert found.warnings == ()
    assert found.config.policy.upstream == Upstream(
        parent("proxy.example:3128"),
        frozenset({"svc.example"}),
        (".internal.example", ".xn--bcher-kva.example"),
        (ip_network("10.0.0.0/8"), ip_network("fd00::1"), ip_network("10.1.2.3")),
    )


def test_every_name_may_be_reached_directly() -> None:
    found = parsed('upstream: {proxy: "http://[fd00::1]:80", no_proxy: ["*"]}\n' + POLICIES)
    assert found.config.policy.upstream == Upstream(parent("[fd00::1]:80"), suffixes=("",))


def test_rules() -> None:
    found = parsed(
        """\
policies:
  - name: a
    allow:
      - example.com
      - {host: a.example.com, upstream: direct}
      - {host: b.example.com, upstream: {proxy: "http://10.0.0.1:3128"}}
      - {cidr: 198.51.100.0/24, upstream: {proxy: "http://bücher.example:8080"}}
    ask:
      - {host: c.example.com, upstream: "direct"}
"""
    )
    assert found.warnings == ()
    assert {name: rule.upstream for name, rule in rules(found).items()} == {
        "example.com": None,
        "a.example.com": DIRECT,
        "b.example.com": parent("10.0.0.1:3128"),
        "198.51.100.0/24": parent("xn--bcher-kva.example:8080"),
        "c.example.com": DIRECT,
    }


def test_a_private_parent_and_one_on_this_machine_are_fine() -> None:
    for address in ("127.0.0.1:3129", "192.168.0.1:3128", "[::1]:3128", "localhost:3128"):
        found = parsed(f"upstream: {{proxy: 'http://{address}'}}\n{POLICIES}")
        assert found.config.policy.upstream == Upstream(parent(address))


# Credentials ------------------------------------------------------------------------------------------------------


def test_credentials_are_read_beside_the_file_that_names_them(folder: Path) -> None:
    (folder / "team").mkdir()
    (folder / "team" / "parent").write_text("team:pass:word")
    written(
        folder,
        "policies:\n  - name: b\n    allow:\n"
        '      - {host: a.example.com, upstream: {proxy: "http://x.example:1", credentials_file: parent}}\n'
        '      - {host: b.example.com, upstream: {proxy: "http://y.example:1", credentials_file: parent}}\n',
        "team/policy.yaml",
    )
    path = written(
        folder,
        "include: [team/policy.yaml]\n"
        f'upstream: {{proxy: "http://x.example:1", credentials_file: parent}}\n{POLICIES}',
    )
    config = load(path).config
    top, team = str(folder / "parent"), str(folder / "team" / "parent")
    assert config.policy.upstream == Upstream(parent("x.example:1", top))
    assert rules(load(path))["a.example.com"].upstream == parent("x.example:1", team)
    assert config.parent_credentials == {
        top: shown(f"proxy-user:{SECRET}"),
        team: shown("team:pass:word"),
    }
    assert {top, team} <= set(config.sources.paths)


def test_a_rule_s_parent_is_not_shown_the_common_one_s_credentials(folder: Path) -> None:
    path = written(
        folder,
        'upstream: {proxy: "http://x.example:1", credentials_file: parent}\n'
        "policies:\n  - name: a\n    allow:\n"
        '      - {host: a.example.com, upstream: {proxy: "http://x.example:1"}}\n',
    )
    assert rules(load(path))["a.example.com"].upstream == parent("x.example:1")


def test_credentials_are_nowhere_to_be_seen(folder: Path) -> None:
    path = written(
        folder, f'upstream: {{proxy: "http://x.example:1", credentials_file: parent}}\n{POLICIES}'
    )
    config = load(path).config
    digest = config.digest
    encoded = base64.b64encode(f"proxy-user:{SECRET}".encode()).decode()
    for text in (repr(config), repr(config.policy.upstream), str(config.sources.paths)):
        assert SECRET not in text
        assert encoded not in text
    # Who knows the rest of the configuration could try passwords on a digest of them, which anybody may ask for.
    (folder / "parent").write_text("proxy-user:another\n")
    assert load(path).config.digest == digest
    assert load(path).config.parent_credentials != config.parent_credentials


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"\n", "the file is empty"),
        (SECRET.encode(), "the line has no colon"),
        (f"u:{SECRET}\nv:{SECRET}\n".encode(), "the file has more than one line"),
        (f"u:{SECRET}\n\n".encode(), "the file has more than one line"),
        (f"u:{SECRET}\r\n".encode(), "the line ends with CR"),
        (f"u:{SECRET}\0\n".encode(), "the line holds a control character"),
        (f"u:{SECRET}\rProxy-Connection: x\n".encode(), "the line holds a control character"),
        (f"u:{SECRET}\x85\n".encode(), "the line holds a control character"),
        (f"u:{SECRET}".encode() + b"\xff\n", "the file is not UTF-8"),
        (b"\xef\xbb\xbfu:" + SECRET.encode(), "the file starts with the byte order mark of UTF-8"),
        (b":", "the line has neither a user nor a password"),
        (b"u:" + b"x" * MAX_CREDENTIALS, "the line is longer than 4,096 bytes"),
    ],
    ids=repr,
)
def test_what_is_no_line_of_credentials(folder: Path, content: bytes, said: str) -> None:
    (folder / "parent").write_bytes(content)
    path = written(
        folder, f'upstream: {{proxy: "http://x.example:1", credentials_file: parent}}\n{POLICIES}'
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert problem.what == said
    assert (problem.place.file, problem.place.line) == (str(folder / "parent"), 1)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("content", ["u:", ":p", "ü:ß€", "u: p w ", "u:p:q\n", "u:" + "x" * 4094])
def test_what_is_one(folder: Path, content: str) -> None:
    (folder / "parent").write_text(content, encoding="utf-8")
    path = written(
        folder, f'upstream: {{proxy: "http://x.example:1", credentials_file: parent}}\n{POLICIES}'
    )
    found = load(path)
    expected = shown(content.removesuffix("\n"))
    assert found.config.parent_credentials == {str(folder / "parent"): expected}
    spaces = [problem.what for problem in found.warnings]
    assert spaces == (
        ["the line begins or ends with white space, which is taken for a part of it"]
        if content.endswith(" ")
        else []
    )


def test_a_broken_file_that_many_rules_name_is_told_of_once(folder: Path) -> None:
    (folder / "parent").write_text("nothing")
    entries = "".join(
        f'      - {{host: a{n}.example, upstream: {{proxy: "http://x.example:1", credentials_file: parent}}}}\n'
        for n in range(5)
    )
    path = written(folder, f"policies:\n  - name: a\n    allow:\n{entries}")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert len(caught.value.problems) == 1


def test_a_password_in_the_url_is_not_repeated(folder: Path) -> None:
    for text in (
        f'upstream: {{proxy: "http://u:{SECRET}@x.example:1"}}\n{POLICIES}',
        f'upstream: {{proxy: "http://u:{SECRET}/@x.example:1"}}\n{POLICIES}',
        f'upstream: {{proxy: "u:{SECRET}@x.example:1"}}\n{POLICIES}',
        f'upstream: "http://u:{SECRET}@x.example:1"\n{POLICIES}',
        f'policies: [{{name: a, allow: [{{host: b.example, upstream: "http://u:{SECRET}@x.example:1"}}]}}]\n',
        f'upstream: {{proxy: "http://x.example:1", no_proxy: ["u:{SECRET}@x.example"]}}\n{POLICIES}',
    ):
        with pytest.raises(ConfigError) as caught:
            load(written(folder, text))
        assert SECRET not in str(caught.value)


# Reload -----------------------------------------------------------------------------------------------------------


def _reloader(path: str) -> tuple[Reloader, asyncio.Queue[bytes]]:
    """A reloader, with the credentials that it swaps in and the errors that it meets."""
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    def on_swap(config: Config, _: int) -> None:
        for each in config.parent_credentials.values():
            seen.put_nowait(each)

    def on_error(error: ConfigError) -> None:
        seen.put_nowait(str(error).encode())

    return Reloader(path, load(path).config, on_swap, on_error, poll_interval=0.01), seen


async def test_new_credentials_take_effect_although_the_digest_stays(folder: Path) -> None:
    path = written(
        folder, f'upstream: {{proxy: "http://x.example:1", credentials_file: parent}}\n{POLICIES}'
    )
    reloader, seen = _reloader(path)
    assert (await reloader.reload()).outcome is ReloadOutcome.UNCHANGED
    (folder / "parent").write_text("proxy-user:new\n")
    result = await reloader.reload()
    assert (result.outcome, result.generation) == (ReloadOutcome.SWAPPED, 2)
    (folder / "parent").write_text("broken\n")
    assert (await reloader.reload()).outcome is ReloadOutcome.FAILED
    assert reloader.config.parent_credentials[str(folder / "parent")] == shown("proxy-user:new")
    assert seen.get_nowait() == shown("proxy-user:new")
    assert b"the line has no colon" in seen.get_nowait()


async def test_the_file_of_credentials_is_watched(folder: Path) -> None:
    path = written(
        folder, f'upstream: {{proxy: "http://x.example:1", credentials_file: parent}}\n{POLICIES}'
    )
    reloader, seen = _reloader(path)
    watch = asyncio.ensure_future(reloader.watch())
    try:
        await asyncio.sleep(0.05)
        (folder / "parent").write_text("proxy-user:new\n")
        assert await asyncio.wait_for(seen.get(), 10) == shown("proxy-user:new")
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


# What `check` says ------------------------------------------------------------------------------------------------


def warnings(*allow: str, more: str = "") -> list[str]:
    entries = "".join(f"      - {entry}\n" for entry in allow)
    found = parsed(f"policies:\n  - name: a\n    allow:\n{entries}{more}")
    return [f"{problem.place.line}: {problem.what} [{problem.code}]" for problem in found.warnings]


DIRECTLY = "{host: a.example.com, upstream: direct}"
X, Y = (
    f'{{host: a.example.com, upstream: {{proxy: "http://{name}.example.com:1"}}}}' for name in "xy"
)


@pytest.mark.parametrize(
    ("allow", "line", "other"), [((DIRECTLY, X), 5, 6), ((X, DIRECTLY), 6, 5), ((Y, X), 5, 6)]
)
def test_two_ways_for_one_target(allow: tuple[str, ...], line: int, other: int) -> None:
    (warning,) = warnings(*allow)
    assert warning == (
        f"{line}: `upstream` of `a.example.com` changes nothing: the rule on line {other} says "
        "http://x.example.com:1 [without-effect]"
    )


def test_the_same_way_twice_is_another_mistake() -> None:
    assert warnings(X, X) == ["6: `a.example.com` stands twice, first on line 5 [duplicate-rule]"]


def test_no_contradiction() -> None:
    assert warnings(DIRECTLY, X.replace("a.example", "b.example")) == []
    assert warnings(DIRECTLY, X.replace("host:", "ports: [8443], host:")) == []
    more = "  - {name: b, subjects: [{cidr: 10.0.0.0/8}], allow: [%s]}\n"
    others = "  - {name: c, subjects: [{cidr: 10.1.0.0/16}], allow: [%s]}\n"
    assert warnings("example.com", more=more % DIRECTLY + others % X) == []
    # Whom a policy without subjects is for, the other one is for too.
    assert len(warnings(DIRECTLY, more=more % X)) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("methods: [GET]", "methods: [POST, PUT]"),
        ("paths: [/a/]", "paths: [/b/]"),
        ("paths: [/a]", "paths: [/a/]"),
        ("paths: [/a/b]", "paths: [/a]"),
        ('paths: ["/a/*"]', 'paths: ["/a/*/c"]'),
        ('paths: ["/*/b/"]', "paths: [/a/c/d]"),
        ("methods: [GET], paths: [/]", "methods: [PUT], paths: [/]"),
    ],
)
def test_rules_that_no_request_fits_both_of(one: str, other: str) -> None:
    entries = DIRECTLY.replace("host:", f"{one}, host:"), X.replace("host:", f"{other}, host:")
    assert warnings(*entries) == []
    assert warnings(*reversed(entries)) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("methods: [GET, HEAD]", "methods: [HEAD]"),
        ("paths: [/a/]", "paths: [/a/b]"),
        ("paths: [/a/b/]", "paths: [/a/]"),
        ('paths: ["/*/b/"]', "paths: [/a/b/d]"),
        ("paths: [/x, /y]", 'paths: ["/z", "/*"]'),
        ("paths: [/]", "methods: [PUT]"),
        ("ports: [80]", "ports: [80, 8080]"),
        ("methods: [GET]", "ports: [80]"),
    ],
)
def test_rules_that_some_requests_fit_both_of(one: str, other: str) -> None:
    entries = DIRECTLY.replace("host:", f"{one}, host:"), X.replace("host:", f"{other}, host:")
    for found in (warnings(*entries), warnings(*reversed(entries))):
        (said,) = (each for each in found if "`upstream`" in each)
        assert "says http://x.example.com:1 [without-effect]" in said


def test_what_holds_for_some_requests_alone_is_not_said_to_change_nothing() -> None:
    some = X.replace("host:", "methods: [GET], host:")
    there = "the rule on line 6 says http://x.example.com:1 [without-effect]"
    (said,) = warnings(DIRECTLY, some)
    assert said == f"5: `upstream` of `a.example.com` does not always hold: {there}"
    narrow = DIRECTLY.replace("host:", "methods: [GET], host:")
    (said,) = warnings(narrow, X)
    assert said == f"5: `upstream` of `a.example.com` changes nothing: {there}"


def test_a_rule_that_says_another_way_than_a_wider_one_is_not_redundant() -> None:
    wide = '{host: "*.example.com", upstream: {proxy: "http://x.example.com:1"}}'
    assert warnings(wide, DIRECTLY) == []
    assert warnings('"*.example.com"', X) == []
    # Between it and the wide one, a third may say something else.
    assert warnings(wide, X) == []
    redundant = ["6: `a.example.com` adds nothing to `*.example.com` on line 5 [redundant-rule]"]
    assert warnings(wide, "a.example.com") == redundant


def test_many_rules_of_one_target_are_not_compared_each_with_each() -> None:
    entries = (
        f'{{host: a.example.com, ports: [{n}], upstream: {{proxy: "http://x.example:{n}"}}, tls: off}}'
        for n in range(20000, 23000)
    )
    assert json.dumps(warnings(*entries)) == "[]"
