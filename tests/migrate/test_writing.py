"""The YAML that importers write: valid whatever stood in the foreign file, and readable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from egress_proxy.core.policy import DEFAULT_PORTS, EVERY_PORT
from egress_proxy.migrate import PEERS, import_file, read_text
from egress_proxy.migrate.smokescreen import import_smokescreen
from egress_proxy.migrate.squid import import_squid
from egress_proxy.migrate.writing import (
    Imported,
    MigrationError,
    Note,
    WrittenPolicy,
    WrittenRule,
    policy_name,
    shown,
    write,
)
from tests.migrate.deciding import policy_of


def test_a_whole_file() -> None:
    policies = (
        WrittenPolicy(
            "all-of-it",
            ("squid.conf:7: http_access allow localnet sites",),
            ("{cidr: 10.0.0.0/8}",),
            allow=(
                WrittenRule("example.com", DEFAULT_PORTS),
                WrittenRule("*.example.com", ((443, 443), (8000, 8010))),
                WrittenRule("1password.com", DEFAULT_PORTS),
                WrittenRule("no", DEFAULT_PORTS),
                WrittenRule("192.0.2.0/24", DEFAULT_PORTS, network=True),
                WrittenRule("2001:db8::/32", EVERY_PORT, network=True),
            ),
            deny=(
                WrittenRule("*.example.org", EVERY_PORT),
                WrittenRule("x.example.org", ((25, 25),)),
                WrittenRule("y.example.org", EVERY_PORT, paths=("/v1/", "/a,b/")),
            ),
        ),
        WrittenPolicy(
            "two",
            (),
            ("{user: a}", "{user: b}"),
            allow=(
                WrittenRule("*", DEFAULT_PORTS, methods=("GET", "TRUE", "M-SEARCH")),
                WrittenRule("@ours", ((443, 443),), methods=("PUT",)),
            ),
        ),
    )
    notes = (Note("squid.conf", 3, "`acl x`", "it is " + "very " * 24 + "long"),)
    text = write(
        policies,
        ("A heading.",),
        notes,
        ("An ending.",),
        {"ours": ("example.com", "*.example.com")},
    )
    assert (
        text
        == """\
# A heading.
#
# Not carried over, or not in full:
# - squid.conf:3: `acl x`: it is very very very very very very very very very very very very very very very
#   very very very very very very very very very long
version: 1
sets:
  "ours":
    - example.com
    - "*.example.com"
policies:
  - name: all-of-it
    # squid.conf:7: http_access allow localnet sites
    subjects: [{cidr: 10.0.0.0/8}]
    allow:
      - example.com
      - {host: "*.example.com", ports: [443, "8000-8010"]}
      - "1password.com"
      - "no"
      - {cidr: 192.0.2.0/24}
      - {cidr: "2001:db8::/32", ports: ["1-65535"]}
    deny:
      - "*.example.org"
      - {host: x.example.org, ports: [25]}
      - {host: y.example.org, paths: [/v1/, "/a,b/"]}  # check: ignore=tunnel-open
  - name: "two"
    subjects:
      - {user: a}
      - {user: b}
    allow:
      - {host: "*", methods: [GET, "TRUE", M-SEARCH]}
      - {host: "@ours", ports: [443], methods: [PUT]}  # check: ignore=without-effect
# An ending.
"""
    )
    policy_of(text)


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("localnet-sites", "localnet-sites"),
        ("a b/c", "a-b-c"),
        ("ü", "policy"),
        ("", "policy"),
        ("x" * 80, "x" * 64),
    ],
)
def test_names_of_policies(wanted: str, name: str) -> None:
    taken: set[str] = set()
    assert policy_name(wanted, taken) == name
    again = policy_name(wanted, taken)
    assert again.endswith("-2")
    assert len(again) <= 64
    assert taken == {name, again}


def test_foreign_text_stays_on_its_line() -> None:
    assert shown("a\x1b[31m\u2028b") == r"a\x1b[31m\u2028b"
    assert len(shown("x" * 1000)) == 200


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            (
                *(
                    "acl a dstdomain .example.com",
                    "acl b src 10.0.0.0/8",
                    "http_access allow b a",
                    "if true",
                    "endif",
                ),
                *(
                    "acl c port 443",
                    "http_access deny !c",
                    "http_access allow a",
                    "acl d any-of a !b",
                ),
            )
        ),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
        st.tuples(
            st.sampled_from(
                ("acl a dstdomain ", "acl b src ", "acl c port ", "http_access allow ", "acl ")
            ),
            st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), max_size=20),
        ).map("".join),
    ),
    max_size=8,
)


def outcome(importing: Callable[[], Imported]) -> str:
    """The message of the error; or nothing, where the result is valid and its notes can be printed."""
    try:
        imported = importing()
    except MigrationError as error:
        return str(error)
    policy_of(imported.yaml)
    assert all(str(note).isprintable() for note in imported.notes)
    return ""


@settings(max_examples=100, deadline=None)
@given(LINES)
def test_whatever_a_squid_conf_holds_the_result_is_valid_or_an_error(lines: list[str]) -> None:
    text = "\n".join(lines)
    message = outcome(lambda: import_squid("squid.conf", text, _no_file, lambda pattern: []))
    assert message.isprintable()
    assert not message or message.startswith("squid.conf")


DOMAINS = "version: v1\nservices:\n- name: a\n  action: open\n  allowed_domains: [{}]\n"


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text(max_size=20).map(DOMAINS.format)))
def test_whatever_an_acl_holds_the_result_is_valid_or_an_error(text: str) -> None:
    message = outcome(lambda: import_smokescreen("acl.yaml", text))
    assert message.isprintable()
    assert not message or message.startswith("acl.yaml")


def _no_file(path: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", path)


# Files ----------------------------------------------------------------------------------------------------------


def test_importing_files(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "b.conf").write_text("http_access allow sites\n")
    (tmp_path / "conf.d" / "a.conf").write_text('acl sites dstdomain "sites"\n')
    (tmp_path / "sites").write_bytes(b"# caf\xe9\n.example.com\n")
    main = tmp_path / "squid.conf"
    main.write_text("include conf.d/*.conf\n", encoding="utf-8-sig")
    (policy,) = yaml.safe_load(import_file("squid", str(main)).yaml)["policies"]
    assert [rule["host"] for rule in policy["allow"]] == ["example.com", "*.example.com"]

    acl = tmp_path / "acl.yaml"
    acl.write_text("version: v1\nservices: [{name: a, action: open}]\n")
    (policy,) = yaml.safe_load(import_file("smokescreen", str(acl)).yaml)["policies"]
    assert policy["allow"] == ["*"]
    assert PEERS == ("squid", "smokescreen")


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    for path, why in ((missing, "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(MigrationError) as caught:
            import_file("squid", str(path))
        assert str(caught.value) == f"{path}: the file cannot be read: {why}"
    monkeypatch.setattr("egress_proxy.migrate._MAX_FILE_BYTES", 2**20)
    large = tmp_path / "large"
    large.write_bytes(bytes(2**20 + 1))
    with pytest.raises(MigrationError) as caught:
        read_text(str(large))
    assert str(caught.value) == f"{large}: the file cannot be read: it is larger than 1 MiB"


def test_a_file_that_a_file_names_is_named_once(tmp_path: Path) -> None:
    main = tmp_path / "squid.conf"
    main.write_text('acl wl dstdomain "wl.txt"\nhttp_access allow wl\n')
    first = import_file("squid", str(main)).notes[0]
    why = "cannot be read: No such file or directory"
    assert first.why == f"the file {tmp_path}/wl.txt {why}"

    main.write_text("include wl.conf\n")
    with pytest.raises(MigrationError) as caught:
        import_file("squid", str(main))
    assert str(caught.value) == f"{main}:1: the included file {tmp_path}/wl.conf {why}"
