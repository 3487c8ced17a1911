"""The reference page and the example show every key that the loader knows, with its real default and bounds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from egress_proxy.config import rules
from egress_proxy.config.errors import Code
from egress_proxy.config.load import load, parse
from egress_proxy.config.model import Audit, Config, Dns, Limits, Timeouts
from egress_proxy.config.schema import NOT_YET, SECTIONS, Section, every_key
from egress_proxy.config.subjects import SUBJECT_NOT_YET
from egress_proxy.config.values import (
    DURATION_UNITS,
    SIZE_UNITS,
    Duration,
    Integer,
    Reader,
    Size,
    parse_with_unit,
)
from egress_proxy.core.policy import CompiledPolicy

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
PAGE = (REFERENCE / "configuration.md").read_text(encoding="utf-8")
POLICY = (REFERENCE / "policy.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "config" / "egress-proxy.yaml"

#: The cells of each row of the page's tables, by the key that they are about.
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in (PAGE + POLICY).splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}

READERS: dict[str, Reader] = {
    name: reader
    for key, value in SECTIONS.items()
    for name, reader in (
        ((f"{key}.{inner}", it) for inner, it in value.keys.items())
        if isinstance(value, Section)
        else ((key, value),)
    )
}


IN_COMMENTS = {
    *("admin_token_file", "credentials", "file", "include", "namespace", "pod_labels"),
    *("credentials_file", "internal", "nat64", "networks", "no_proxy", "upstream"),
    *("required", "servers", "source_addresses", "user", "users_file"),
    *("both", "tenant", "tenants"),
    *("ca_file", "lease", "on_store_failure", "password_file", "prefix", "url"),
}


def test_the_page_has_every_key_and_no_other() -> None:
    explained = {
        key
        for key in ROWS
        if re.fullmatch(r"[a-zN][a-zAMEN0-9_.\[\]]*", key) and key != "example.com"
    }
    assert explained | {"policies"} == set(every_key())


@pytest.mark.parametrize(
    "key", sorted({key.rpartition(".")[2].removesuffix("[]") for key in every_key()})
)
def test_the_example_has_every_key(key: str) -> None:
    """Some of them in comments, because no value of theirs is right everywhere."""
    text = EXAMPLE.read_text(encoding="utf-8")
    shown = re.search(rf"^ *(# *)?(?:- )?{key}:", text, re.MULTILINE)
    assert shown is not None
    assert bool(shown[1]) == (key in IN_COMMENTS)


def test_what_the_example_shows_are_the_defaults() -> None:
    config = load(str(EXAMPLE)).config
    assert config.dns == Dns()
    assert config.timeouts == Timeouts()
    assert config.limits == Limits()
    assert config.audit == Audit()
    default = Config(CompiledPolicy(()), "", "")
    assert config.drain_timeout == default.drain_timeout
    assert config.admin_token_file == default.admin_token_file
    assert config.policy.mode == default.policy.mode


def test_the_example_s_comments_can_be_uncommented() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    uncommented = re.sub(r"^( *)# (servers|admin_token_file):", r"\1\2:", text, flags=re.MULTILINE)
    config = parse(uncommented.encode(), "f.yaml").config
    assert config.dns.servers == ("10.96.0.10:53",)
    assert config.admin_token_file == "/etc/egress-proxy/admin/token"


def default_of(key: str) -> Any:
    config = Config(CompiledPolicy(()), "", "")
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(
    "key", [key for key, reader in READERS.items() if isinstance(reader, Duration | Size | Integer)]
)
def test_the_page_has_the_default_and_the_bounds(key: str) -> None:
    reader = READERS[key]
    _, default, bounds, _ = ROWS[key]
    low, _, high = bounds.partition(" to ")
    if isinstance(reader, Integer):
        assert int(default.strip("`")) == default_of(key)
        assert (int(low.strip("`")), int(high.strip("`"))) == (reader.low, reader.high)
        return
    assert isinstance(reader, Duration | Size)
    units = DURATION_UNITS if isinstance(reader, Duration) else SIZE_UNITS
    assert parse_with_unit(default.strip("`"), units) == default_of(key)
    assert (low.strip("`"), high.strip("`")) == (reader.low, reader.high)


@pytest.mark.parametrize("key", ["listen.proxy", "listen.admin", "dns.hosts_file"])
def test_the_page_has_the_other_defaults(key: str) -> None:
    assert ROWS[key][1] == f"`{default_of(key)}`"


def test_every_default_lies_within_its_bounds() -> None:
    for key, reader in READERS.items():
        if isinstance(reader, Integer):
            assert reader.low <= default_of(key) <= reader.high
        elif isinstance(reader, Duration | Size):
            units: dict[str, Any] = dict(
                DURATION_UNITS if isinstance(reader, Duration) else SIZE_UNITS
            )
            low, high = (parse_with_unit(bound, units) for bound in (reader.low, reader.high))
            assert low is not None
            assert high is not None
            assert low <= default_of(key) <= high


def test_the_page_names_every_key_that_is_not_there_yet() -> None:
    section = PAGE.partition("does not have yet")[2].partition("\n\n")[0]
    for key in {*NOT_YET, *rules.POLICY_NOT_YET, *SUBJECT_NOT_YET, *rules.RULE_NOT_YET}:
        assert f"`{key}`" in section


def test_the_page_of_check_explains_every_code() -> None:
    text = (REFERENCE / "check.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)
    assert sorted(explained) == sorted(Code)


def test_an_example_of_the_pages_loads() -> None:
    """Those that are whole configurations; what they name beside themselves is not there."""
    whole = 0
    for page in (PAGE, POLICY):
        for text in re.findall(r"```yaml\n(version: 1\n.*?)```", page, re.DOTALL):
            whole += 1
            whole_text = re.sub(r"(?m)^include:.*\n", "", text).replace(
                "{file: partners.txt}", "[partner.example.com]"
            )
            loaded = parse(whole_text.encode(), "f.yaml")
            codes = {problem.code for problem in loaded.warnings}
            assert codes <= {
                Code.UNREACHABLE_POLICY,
                Code.RISKY_PORT,
                Code.IMPOSSIBLE_HOST,
                Code.TLS_OFF,
            }
    assert whole == 2


def test_editors_find_the_schema_of_the_example() -> None:
    first = EXAMPLE.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"
    assert (EXAMPLE.parent / "schema.json").is_file()
