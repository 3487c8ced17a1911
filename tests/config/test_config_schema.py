"""The JSON Schema for editors says what the loader does, as far as a schema can, and never more.

A file is read here as PyYAML's SafeLoader reads it, with keys as texts, which is what they are to a schema.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from egress_proxy.config import load as load_module
from egress_proxy.config import rules, schema, subjects
from egress_proxy.config.destinations import host_pattern_of, network
from egress_proxy.config.errors import Code, ConfigError, Problem, Report, Severity
from egress_proxy.config.json_schema import DESCRIPTIONS, as_text, json_schema
from egress_proxy.config.load import Loaded, load
from egress_proxy.config.schema import SECTIONS, Section, every_key
from egress_proxy.config.values import DURATION_UNITS, SIZE_UNITS, parse_with_unit
from egress_proxy.config.yaml_source import Scalar
from egress_proxy.core.policy import Place
from tests.support.credentials import write_users

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
SCHEMA = json_schema()
HEAD = "version: 1\npolicies:\n  - name: everyone\n    allow:\n"
POLICIES = "policies: [{name: a, allow: [example.com]}]\n"


def pattern(_: Any, wanted: str, text: Any, __: Any) -> Iterator[ValidationError]:
    """As in ECMAScript, where `$` is the end, and not what stands before a line feed there."""
    if isinstance(text, str) and not re.search(wanted.replace("$", r"\Z"), text):
        yield ValidationError(f"{text!r} does not match {wanted!r}")


VALIDATOR = extend(Draft202012Validator, {"pattern": pattern})(SCHEMA)


# Reading. ---------------------------------------------------------------------------------------------------------


class NotYamlError(Exception):
    """An editor shows that much by itself."""


class Editor(yaml.CSafeLoader):
    """SafeLoader, with keys as texts and a plain `=` as one, as editors have them."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            raise yaml.constructor.ConstructorError(problem="a key is a list or a mapping")
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


Editor.add_constructor("tag:yaml.org,2002:value", lambda _, node: node.value)


def read(text: str) -> tuple[Any, Any]:
    """A document's root node and its value; None where it is empty."""
    editor: Any = Editor(text)
    try:
        node = editor.get_single_node()
        return node, editor.construct_document(node) if node is not None else None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date such as 2026-13-45
        raise NotYamlError from error
    finally:
        editor.dispose()


def is_valid(text: str) -> bool:
    """Whether an editor has nothing to say."""
    try:
        return VALIDATOR.is_valid(read(text)[1])
    except NotYamlError:
        return False


def refusals(path: Path) -> tuple[Problem, ...]:
    """What the loader refuses in this file itself."""
    try:
        load(str(path))
    except ConfigError as error:
        return tuple(
            problem
            for problem in error.problems
            if problem.severity is Severity.ERROR and problem.place.file == str(path)
        )
    return ()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for a configuration, with the files that it may name."""
    folder = tmp_path_factory.mktemp("schema")
    write_users(folder / "users", alice="secret")
    (folder / "hosts.txt").write_text("example.net\n")
    (folder / "parent").write_text("proxy-user:secret\n")
    (folder / "more.yaml").write_text("version: 1\nsets: {far: [example.org]}\n")
    return folder


def refused(folder: Path, text: str) -> tuple[Problem, ...]:
    path = folder / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return refusals(path)


# The schema itself. -----------------------------------------------------------------------------------------------


def test_the_file_is_what_the_tables_say() -> None:
    """``egress-proxy schema > config/schema.json`` makes it so."""
    assert (ROOT / "config" / "schema.json").read_text(encoding="utf-8") == as_text()
    assert json.loads(as_text()) == SCHEMA


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in the schema that may be a schema."""
    if isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            if key not in ("default", "examples", "enum"):
                yield from parts(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from parts(value)


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    return {**SCHEMA["$defs"][name], **schema} if name else schema


def keys_of(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key that the schema knows, by its path as ``every_key()`` writes it, with its own schema."""
    schema = resolved(schema)
    for key, value in schema.get("properties", {}).items():
        inner = f"{path}.{key}" if path else key
        yield inner, value
        yield from keys_of(value, inner)
    for value in schema.get("patternProperties", {}).values():
        yield from keys_of(value, f"{path}.NAME")
    if "items" in schema:
        yield from keys_of(schema["items"], f"{path}[]")
    for value in schema.get("anyOf", ()):
        yield from keys_of(value, path)


FOUND = list(keys_of(SCHEMA))


def test_it_has_every_key_and_no_other() -> None:
    allow = {path for path, _ in FOUND if not path.startswith(("policies[].ask", "policies[].de"))}
    assert allow | {"policies[].ask", "policies[].deny"} == set(every_key())


def test_rules_have_the_keys_that_their_list_allows() -> None:
    keys = {
        action: {path.partition("[].")[2] for path, _ in FOUND if path.startswith(f"{action}[].")}
        for action in ("policies[].allow", "policies[].ask", "policies[].deny")
    }
    keys = {action: {path.split(".")[1] for path in paths} for action, paths in keys.items()}
    assert keys["policies[].allow"] == keys["policies[].ask"] == set(rules.RULE_KEYS)
    assert keys["policies[].deny"] == {"host", "cidr", "ports", "methods", "paths"}


def test_it_has_no_key_that_is_not_there_yet() -> None:
    later = (rules.POLICY_NOT_YET, rules.RULE_NOT_YET, subjects.SUBJECT_NOT_YET)
    # The top level has limits, and a parent proxy. So have rules, the latter.
    there = ("limits", "upstream", *(f"policies[].{key}[].upstream" for key in ("allow", "ask")))
    named = {path.rpartition(".")[2] for path, _ in FOUND if path not in there}
    assert not named & {key for table in later for key in table}
    assert not SCHEMA["properties"].keys() & schema.NOT_YET.keys()


def test_no_mapping_takes_what_it_does_not_know() -> None:
    mappings = [part for part in parts(SCHEMA) if part.get("type") == "object"]
    assert len(mappings) > 10
    assert all(part["additionalProperties"] is False for part in mappings)
    assert all(
        part.get("type") == "object" for part in parts(SCHEMA) if "additionalProperties" in part
    )


def test_every_key_is_explained() -> None:
    assert DESCRIPTIONS.keys() <= set(every_key())
    for path, part in FOUND:
        said = part["description"]
        assert re.fullmatch(r"[`A-Z].*\.", said), path
        # A file says 5s where the value in memory is 5.0 seconds; and no editor knows RST.
        assert not re.search(r"Seconds|``|:mod:", said), path


def test_defaults_and_examples_are_valid() -> None:
    shown = 0
    for part in parts(SCHEMA):
        values = [part["default"]] if "default" in part else []
        examples = part.get("examples", [])
        for value in (*values, *(examples if isinstance(examples, list) else ())):
            Draft202012Validator({**part, "$defs": SCHEMA["$defs"]}).validate(value)
            shown += 1
    assert shown > 30


def test_the_loader_takes_each_example_of_a_top_level_key(folder: Path) -> None:
    """Apart from the files that they name."""
    for key, part in SCHEMA["properties"].items():
        for example in part.get("examples", ()):
            document = {"version": 1, "policies": [{"name": "a", "allow": ["example.com"]}]}
            said = refused(folder, json.dumps(document | {key: example}))
            assert {problem.code for problem in said} <= {Code.UNREADABLE_FILE}, key


def test_the_defaults_are_those_of_the_loader(folder: Path) -> None:
    defaults: dict[str, Any] = {}
    for key, reader in SECTIONS.items():
        part = SCHEMA["properties"][key]
        if isinstance(reader, Section):
            inner = {name: each.get("default") for name, each in part["properties"].items()}
            shown = {name: value for name, value in inner.items() if value is not None}
            # Of some, such as `networks`, nothing is said by default.
            defaults |= {key: shown} if shown else {}
        elif "default" in part:
            defaults[key] = part["default"]
    assert defaults.pop("credentials") == {"required": False}
    assert defaults["dns"]["hosts_file"] == "/etc/hosts"
    assert len(defaults) >= 8
    path = folder / "policy.yaml"

    def loaded(document: dict[str, Any]) -> Loaded:
        path.write_text(json.dumps(document))
        return load(str(path))

    document = {"version": 1, "policies": [{"name": "a", "allow": ["example.com"]}]}
    bare, full = loaded(document).config, loaded(document | defaults).config
    assert bare.policy.mode == full.policy.mode
    for key in defaults.keys() - {"mode"}:
        assert getattr(bare, key) == getattr(full, key)


# Patterns. --------------------------------------------------------------------------------------------------------

PATTERNS = sorted(
    {
        pattern
        for part in parts(SCHEMA)
        for pattern in (part.get("pattern"), *part.get("patternProperties", ()))
        if isinstance(pattern, str)
    }
)
SAMPLES = [
    *("example.com", "*.example.com.", "*", "@set", "@", "a..b", ".a", "a.b.1", "a.0x", "x" * 64),
    *("bücher.example", "*.BÜCHER。example", "ü b", "a_b", "a/b", "", "é" * 300, f"{'a.' * 127}a"),
    *("10.0.0.0/8", "10.0.0.0/33", "256.1.1.1", "::1", "fd00::/129", "fd00::/128", "1.2.3"),
    *("2001:db8:64::/96", "2001:db8::/95", "http://a.b:80", "http://a.b:0", "http://a@b:80"),
    *("memory", "sqlite:///a/b.db", "sqlite:///a/../b", "sqlite:///", "sqlite://a", "sqlite:////a"),
    *("GET", "get", "CONNECT", "G-T", "/", "/v1/*", "/ü"),
    *("1.2.3.4:0", "[::]:65535", "[::]:65536", "::1:53", "1-65535", "0-1", "80", "80-"),
    *("5s", "05s", "5", "5 s", "1000000000000s", "32KiB", "32kib", "/etc/x", "x", "/a\tb", "a/b"),
    *("redis://redis.example.com", "rediss://user@[::1]:6379/0", "redis://user:password@redis"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_for_whole_texts(pattern: str) -> None:
    assert (pattern[0], pattern[-1]) == ("^", "$")
    inner = pattern[1:-1]
    assert "|" not in inner or re.fullmatch(r"\(\?:.*\)", inner)


def test_the_patterns_mean_the_same_in_ecmascript() -> None:
    """JSON Schema's regular expressions are ECMAScript's, and editors ask for its Unicode mode."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    script = """
        const {patterns, samples} = JSON.parse(require("fs").readFileSync(0));
        const found = patterns.map(p => samples.filter(s => new RegExp(p, "u").test(s)));
        console.log(JSON.stringify(found));
    """
    given = json.dumps({"patterns": PATTERNS, "samples": SAMPLES})
    done = subprocess.run(
        ["node", "-e", script], input=given, capture_output=True, text=True, check=True
    )
    here = [[text for text in SAMPLES if re.search(pattern, text)] for pattern in PATTERNS]
    assert json.loads(done.stdout) == here
    assert all(0 < len(found) < len(SAMPLES) for found in here)


def matches(part: dict[str, Any], text: str) -> bool:
    return re.search(part["pattern"], text) is not None


def takes_host(text: str) -> bool:
    report = Report("f.yaml")
    return host_pattern_of(text, Place("f.yaml", 1, 1), report) is not None


HOST = SCHEMA["$defs"]["host"]
HOSTS = st.text("aZ09xX_-.*", max_size=14) | st.text(
    "aB1-._*@:/ %~üß。１﹒\u00ad\u200d℀", max_size=9
)


@pytest.mark.parametrize(
    "text",
    [
        *("*", "*.", "**", "*.*", "*.a", "a.*", "a", "a.", "a..", ".a", "A-_9", "-a-", "", ".", " "),
        *("1", "a.1", "1.a", "a.0x", "a.0xg", "0x1f.b", "*.1.2.3.4", "1.2.3.4", "127.1.", "@a"),
        *("a" * 63, "a" * 64, f"*.{'a' * 63}", f"b.{'a' * 64}.c", f"{'a.' * 126}a", f"{'a.' * 126}a."),
        *(f"{'a.' * 126}aa", f"{'a.' * 126}aa.", f"*.{'a.' * 126}a.", f"*.{'a.' * 126}aa"),
        *("example.com:443", "https://example.com", "a/b", "a?b", "a@b", "a,b", "a b", "a%20b", "[::1]"),
    ],
    ids=lambda text: text[:12] + text[-3:],
)  # fmt: skip
def test_a_host_in_ascii_is_exactly_what_the_loader_takes(text: str) -> None:
    assert matches(HOST, text) == takes_host(text)


@given(HOSTS)
@settings(deadline=None, max_examples=400)
def test_any_host(text: str) -> None:
    """Beyond ASCII it is IDNA's to say which letters make a name."""
    taken = takes_host(text)
    assert matches(HOST, text) or not taken
    if text.isascii():
        assert matches(HOST, text) == taken


@pytest.mark.parametrize("text", ["bücher.example", "*.BÜCHER.example.", "例え。テスト", "xn--a.é"])
def test_u_labels_are_valid(text: str) -> None:
    assert takes_host(text) or text.startswith("xn--")
    assert matches(HOST, text)


@pytest.mark.parametrize("text", ["a_ü", "ü b", ".ü", "ü..a", "ü:443", "ü/x", "ü*", "*ü", "é@ü"])
def test_what_no_u_label_has(text: str) -> None:
    assert not takes_host(text)
    assert not matches(HOST, text)


def takes_network(text: str) -> bool:
    node = Scalar(text, 1, 1, plain=False, several_lines=False)
    return network(node, "it", Report("f.yaml")) is not None


@given(
    st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number)))
    | st.integers(0, 2**128 - 1).map(lambda number: str(IPv6Address(number)))
    | st.ip_addresses(v=6).flatmap(
        lambda address: st.sampled_from([str(address), address.exploded, str(address).upper()])
    )
    | st.sampled_from(["10.0.0.0", "::", "fd00::", "0.0.0.0", "::192.0.2.0", "64:ff9b::1.2.3.4"])
    | st.text("0123456789.", max_size=15),
    st.none() | st.integers(-1, 140).map(str) | st.sampled_from(["", "08", "255.0.0.0", " 8"]),
)
@settings(deadline=None, max_examples=200)
def test_any_network(address: str, prefix: str | None) -> None:
    text = address if prefix is None else f"{address}/{prefix}"
    matched = matches(SCHEMA["$defs"]["network"], text)
    if takes_network(text):
        assert matched
    elif ":" not in text and prefix is None:
        assert not matched
    elif ":" not in text and matched:
        # Its form is right, so it is the bits behind the prefix.
        assert takes_network(f"{address}/32")


@given(
    st.text("0159kKmMsdiBTG .-", max_size=7)
    | st.from_regex(r"[0-9]{1,14}(ms|s|h|KiB|B)?", fullmatch=True)
)
@settings(deadline=None, max_examples=200)
def test_any_number_with_a_unit(text: str) -> None:
    properties = SCHEMA["properties"]
    for part, units in (
        (properties["drain_timeout"], dict[str, Any](DURATION_UNITS)),
        (properties["limits"]["properties"]["head_bytes"], dict[str, Any](SIZE_UNITS)),
    ):
        assert matches(part, text) == (parse_with_unit(text, units) is not None)


@given(
    st.integers(-2, 70_000) | st.sampled_from([1, 9, 10, 65_529, 65_530, 65_535, 65_536, 99_999]),
    st.integers(-2, 70_000),
)
@settings(deadline=None, max_examples=200)
def test_any_port(low: int, high: int) -> None:
    validator = Draft202012Validator(SCHEMA["$defs"]["port"])
    assert validator.is_valid(low) == (1 <= low <= 65535)
    assert not validator.is_valid(str(low))
    both = 1 <= low <= 65535 and 1 <= high <= 65535
    assert validator.is_valid(f"{low}-{high}") == both
    servers = SCHEMA["properties"]["dns"]["properties"]["servers"]["items"]
    assert matches(servers, f"10.0.0.1:{low}") == (1 <= low <= 65535)


# What loads is valid. ---------------------------------------------------------------------------------------------

VALID = {
    "every key": """\
        version: 1
        listen: {proxy: "0.0.0.0:0", admin: "[::1]:9091"}
        mode: audit
        on_revoke: keep
        contract_headers: off
        forwarded_for: add
        credentials: {users_file: users, required: true, tenants: {alice: team-a}}
        state: sqlite:///var/lib/egress-proxy/state.db
        include: [more.yaml]
        sets: {}
        policies:
          - name: a
            allow: [example.com]
            tenant: team-b
            trust_tenant_header: false
            limits:
              requests_per_second: 0.5
              burst: 3
              tunnels: 200
              requests_per_day: 100000
              bytes_per_day: {up: 1GiB, down: 10GiB, both: 10GiB}
              time_zone: Europe/Berlin
              bandwidth: 10MiB
              tunnel_bandwidth: 1MiB
              new_hosts_per_hour: 20
        dns:
          servers: ["10.96.0.10:53", "[2001:db8::53]:5353"]
          hosts_file: /dev/null
          timeout: 1500ms
          tries: 3
          min_ttl: 0s
          max_ttl: 1h
          stale_if_error: 1d
          negative_ttl: "2s"
          cache_entries: 7
        networks: {internal: [203.0.113.0/24, "2001:db8:1::/48"], nat64: ["2001:db8:64::/96"]}
        upstream:
          proxy: http://Proxy.example.:3128
          no_proxy: ["*.internal.example", svc.example., "*", 10.0.0.0/8, "fd00::1", bücher.example]
          credentials_file: parent
        timeouts:
          {head: 1s, keep_alive: 2s, connect: 3s, connect_attempt: 100ms, client_hello: 5s, response: 4s,
          origin_keep_alive: 6s, idle: 5m, lifetime: 30d}
        tunnels: {ech: refuse}
        limits:
          {head_bytes: 1MiB, head_fields: 8, client_hello_bytes: 1KiB, connections: 1, connections_per_client: 2,
          tunnels: 3, heads: 4, idle_origins: 0, idle_per_origin: 5}
        audit: {queue_lines: 5, flush_interval: 1ms}
        drain_timeout: 0s
        admin_token_file: /etc/token
        """,
    "the grammar": """\
        version: 1
        sets:
          ai-apis: [api.openai.com, "*.anthropic.com"]
          1: ["*"]
          no: {file: hosts.txt}
        policies:
          - name: everyone
            allow:
              - github.com
              - "@ai-apis"
              - {host: "@no", ports: [443, "8000-8010", 1-65535, 80]}
              - host: "*.githubusercontent.com"
                ports: [443]
              - {host: ssh.github.com, ports: [443], tls: off}
              - {host: ssh.example.com, tls: "off"}
              - {host: a.example.com, tls: verify, upstream: direct}
              - {host: b.example.com, upstream: {proxy: "http://10.0.0.1:65535"}}
              - {cidr: 198.51.100.0/24, upstream: {proxy: "HTTP://[fd00::1]:80", credentials_file: parent}}
              - {host: c.example.com, upstream: {proxy: http://bücher.example:8080}}
              - {host: db.corp.test, ports: [5432], tls: off, allow_private: [10.1.0.0/16, "fd00::/8"]}
              - {cidr: 192.0.2.0/24, ports: [443], tls: off}
              - {cidr: "2001:DB8::/32"}
          - name: "2026"
            subjects:
              - {namespace: agents, pod_labels: {app: web, example.com/tier: "", 1: "true"}}
              - {cidr: 10.20.0.0/16}
              - {cidr: "::1"}
              - {user: batch@example}
            allow: ["no", bücher.example, Example.COM., _a.example, "1.example"]
            ask: ["*.example.org", {host: example.org, tls: off}]
            deny: [gist.github.com, "@1", {host: "*", ports: [25]}, {cidr: 0.0.0.0/0}]
        """,
    "ask alone": "version: 1\npolicies: [{name: a, ask: [example.com]}]\n",
    "all in one line": 'version: 1\npolicies: [{"name": "a", "deny": ["example.com"]}]\n',
    "policies elsewhere": "version: 1\nmode: audit\ninclude: [with-policies.yaml]\n",
}


@pytest.mark.parametrize("name", VALID)
def test_a_valid_configuration(name: str, folder: Path) -> None:
    (folder / "with-policies.yaml").write_text(f"version: 1\n{POLICIES}")
    text = VALID[name]
    assert refused(folder, text) == ()
    VALIDATOR.validate(read(text)[1])


@pytest.mark.parametrize("path", ["config/egress-proxy.yaml", "egress_proxy/default.yaml"])
def test_a_shipped_configuration(path: str) -> None:
    VALIDATOR.validate(read((ROOT / path).read_text(encoding="utf-8"))[1])


@pytest.mark.parametrize(
    "text", ["version: 1\n", "version: 1\nsets: {b: [example.com]}\n", f"version: 1\n{POLICIES}"]
)
def test_an_included_file_needs_no_policies(text: str, folder: Path) -> None:
    """It has the same schema, because editors cannot be pointed at a part of one."""
    (folder / "included.yaml").write_text(text)
    assert not refused(
        folder, f"version: 1\ninclude: [included.yaml]\n{POLICIES}".replace("a,", "b,")
    )
    VALIDATOR.validate(read(text)[1])


@pytest.mark.parametrize("text", ["version: 1\nmode: audit\n", "version: 1\ndns: {timeout: 5s}\n"])
def test_another_file_needs_them(text: str, folder: Path) -> None:
    assert [problem.code for problem in refused(folder, text)] == [Code.MISSING_KEY]
    assert not is_valid(text)


# What no schema sees. ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unseen:
    """A kind of refusal that the schema does not share."""

    why: str
    code: Code
    said: str
    """A regular expression for what the loader says."""
    text: str
    """A configuration with nothing but this wrong."""


NUMBER = r"`[-+]?(0[0-9_.oxb]|[0-9][0-9]*[_.:eE])[0-9a-fA-F_.:+-]*`"
WORD = "`(?i:yes|no|on|off|true|false)`"
UNSEEN = [
    # A schema compares no value with another, and looks into no file.
    Unseen("unique names", Code.CONFLICT, "is taken by the policy",
           f"version: 1\n{POLICIES[:-2]}, {{name: a, deny: [example.com]}}]\n"),
    Unseen("both ports", Code.CONFLICT, "cannot both listen",
           f'version: 1\nlisten: {{proxy: "127.0.0.1:1", admin: "127.0.0.1:1"}}\n{POLICIES}'),
    Unseen("two durations", Code.CONFLICT, "is longer than `max_ttl`",
           f"version: 1\ndns: {{min_ttl: 10s, max_ttl: 5s}}\n{POLICIES}"),
    Unseen("a range's order", Code.BAD_PORT, "ends before it starts",
           f"{HEAD}      - {{host: example.com, ports: [8010-8000]}}\n"),
    Unseen("sets elsewhere", Code.UNKNOWN_SET, "there is no set", f'{HEAD}      - "@none"\n'),
    Unseen("a file", Code.UNREADABLE_FILE, "no such file|is a directory",
           f"version: 1\nsets: {{b: {{file: none.txt}}}}\n{POLICIES}"),
    Unseen("an include", Code.BAD_INCLUDE, "includes itself|is included twice",
           f"version: 1\ninclude: [policy.yaml]\n{POLICIES}"),
    Unseen("which file it is", Code.MISSING_KEY, "the file has no `policies`",
           "version: 1\nsets: {b: [example.com]}\n"),
    # A regular expression could, at the length of a page.
    Unseen("a duration's bounds", Code.BAD_VALUE, "is out of range: `[0-9]+[A-Za-z]+`",
           f"version: 1\ndrain_timeout: 2h\n{POLICIES}"),
    Unseen("a path's encoding", Code.BAD_PATH, "is not in normal form|encoded|percent sign",
           f"{HEAD}      - {{host: example.com, paths: [/%61]}}\n"),
    Unseen("a path's dots", Code.BAD_PATH, "climbs above the root",
           f"{HEAD}      - {{host: example.com, paths: [/../a]}}\n"),
    Unseen("a method and a tunnel", Code.CONFLICT, "is for no tunnel",
           f"{HEAD}      - {{host: example.com, methods: [GET], tls: verify}}\n"),
    Unseen("host bits", Code.BAD_NETWORK, "has bits set behind its prefix",
           f"{HEAD}      - {{cidr: 192.0.2.1/24}}\n"),
    Unseen("an IPv6 address", Code.BAD_NETWORK, "`[^` ]*:.* is not a network",
           f'{HEAD}      - {{cidr: "1::2::3"}}\n'),
    Unseen("IPv4 inside IPv6", Code.BAD_NETWORK, "is IPv4 inside IPv6",
           f'{HEAD}      - {{cidr: "::ffff:192.0.2.0/120"}}\n'),
    Unseen("where translators are", Code.BAD_NETWORK, "cannot be a prefix of NAT64",
           f'version: 1\nnetworks: {{nat64: ["ff00::/32"]}}\n{POLICIES}'),
    Unseen("a translator's bits", Code.BAD_NETWORK, "its bits 64 to 71 are not zero",
           f'version: 1\nnetworks: {{nat64: ["2001:db8:0:0:100::/96"]}}\n{POLICIES}'),
    Unseen("what is known", Code.BAD_NETWORK, "is known as NAT64 anyway",
           f'version: 1\nnetworks: {{nat64: ["64:ff9b::/96"]}}\n{POLICIES}'),
    Unseen("two prefixes", Code.CONFLICT, "of `nat64` overlap",
           f'version: 1\nnetworks: {{nat64: ["fd00:1::/32", "fd00:1:2::/48"]}}\n{POLICIES}'),
    Unseen("a parent's host", Code.BAD_VALUE, "is no URL of a proxy: the (host|brackets|text|part)|a label",
           f"{HEAD}      - {{host: a.example, upstream: {{proxy: 'http://a..b:3128'}}}}\n"),
    Unseen("a parent's address", Code.BAD_VALUE, "has an address in an unusual spelling",
           f"version: 1\nupstream: {{proxy: 'http://127.1:3128'}}\n{POLICIES}"),
    Unseen("a parent's address", Code.BAD_VALUE, "nobody can connect to",
           f"version: 1\nupstream: {{proxy: 'http://[ff02::1]:3128'}}\n{POLICIES}"),
    Unseen("one's own parent", Code.CONFLICT, "is the address that the proxy itself listens on",
           f"version: 1\nupstream: {{proxy: 'http://127.0.0.1:3128'}}\n{POLICIES}"),
    Unseen("an IPv6 address", Code.BAD_VALUE, "does not name an IP address: `\\[",
           f'version: 1\nlisten: {{proxy: "[1::2::3]:1"}}\n{POLICIES}'),
    Unseen("IPv4 inside IPv6", Code.BAD_VALUE, "is an IPv4 address inside IPv6",
           f'version: 1\nlisten: {{proxy: "[::ffff:192.0.2.1]:1"}}\n{POLICIES}'),
    Unseen("IDNA", Code.BAD_HOST, r"`.*[^\x00-\x7f].*`|`.*\\[uxU]", f"{HEAD}      - 😀.example\n"),
    Unseen("letters that cannot be printed", Code.BAD_VALUE, r"is not an? .*path: `.*\\[uxU]",
           f'version: 1\nadmin_token_file: "/\\u00ad"\n{POLICIES}'),
    # It does not see how a value is written, only what YAML 1.1 makes of it.
    Unseen("a key twice", Code.DUPLICATE_KEY, "stands twice|is defined twice",
           f"version: 1\nmode: audit\nmode: enforce\n{POLICIES}"),
    Unseen("a number's digits", Code.BAD_PORT, NUMBER,
           f"{HEAD}      - {{host: example.com, ports: [0443]}}\n"),
    Unseen("a number's digits", Code.BAD_VALUE, f"whole number in plain digits: {NUMBER}",
           f"version: 1\nlimits: {{head_fields: 0b1100}}\n{POLICIES}"),
    Unseen("a number's digits", Code.BAD_VALUE, rf"is not a number: (?:{NUMBER}|`[-+]?[0-9.]+[eE])",
           f"{HEAD}      - a.b\n    limits: {{requests_per_second: 0x1f}}\n"),
    Unseen("a number's sign", Code.BAD_VALUE, r"is not a number: `\+[0-9]",
           f"{HEAD}      - a.b\n    limits: {{requests_per_second: +5}}\n"),
    Unseen("which time zones there are", Code.BAD_VALUE, "knows no time zone",
           f"{HEAD}      - a.b\n    limits: {{requests_per_day: 5, time_zone: Mars/Olympus}}\n"),
    Unseen("a number's digits", Code.BAD_VERSION, NUMBER, f"version: 1.0\n{POLICIES}"),
    Unseen("a number's sign", Code.BAD_PORT, r"`\+[1-9][0-9]*`",
           f"{HEAD}      - {{host: example.com, ports: [+443]}}\n"),
    Unseen("a truth value's word", Code.WRONG_TYPE, rf"must be true or false, not {WORD}",
           f"version: 1\ncredentials: {{users_file: users, required: yes}}\n{POLICIES}"),
    Unseen("`no` for `off`", Code.BAD_VALUE, "`tls` cannot be `(?i:no|off|false)`",
           f"{HEAD}      - {{host: example.com, tls: no}}\n"),
    Unseen("`false` for `off`", Code.BAD_VALUE, "`contract_headers` cannot be `(?i:no|off|false)`",
           f"contract_headers: false\n{HEAD}      - example.com\n"),
    Unseen("YAML 1.2's types", Code.WRONG_TYPE, "YAML reads `([yYnN]|[-+]?[0-9.]+[eE].*|0o.*|=)` as",
           f"{HEAD}      - y\n"),
    Unseen("several lines", Code.WRONG_TYPE, "over several lines",
           f"version: 1\nadmin_token_file: /a\n  b\n{POLICIES}"),
    Unseen("anchors", Code.SYNTAX, "is an anchor", f"{HEAD}      - &a example.com\n"),
    Unseen("aliases", Code.SYNTAX, "is an alias",
           f"version: 1\n{POLICIES[:-4]}, &b example.org, *b]}}]\n"),
    Unseen("tags", Code.SYNTAX, "the tag", f"{HEAD}      - !!str example.com\n"),
    Unseen("directives", Code.SYNTAX, "a directive", f"%YAML 1.1\n---\nversion: 1\n{POLICIES}"),
    Unseen("what nobody sees", Code.SYNTAX, "invisible", f"version: 1\n{POLICIES[:-1]} # \u200f\n"),
]  # fmt: skip


@pytest.mark.parametrize("unseen", UNSEEN, ids=lambda unseen: f"{unseen.why}, {unseen.code}")
def test_what_no_schema_sees(unseen: Unseen, folder: Path) -> None:
    """So that this list has nothing that the schema has learnt since."""
    said = refused(folder, unseen.text)
    assert said
    for problem in said:
        # An anchor leaves an alias or two behind.
        assert problem.code is unseen.code
    assert any(re.search(unseen.said, problem.what) for problem in said), said
    assert is_valid(unseen.text)


def is_unseen(problem: Problem) -> bool:
    return any(problem.code is each.code and re.search(each.said, problem.what) for each in UNSEEN)


# Broken files: of each line that the loader refuses, the schema refuses something. --------------------------------


def leaves(error: ValidationError) -> Iterator[ValidationError]:
    """What is wrong in the end, of each alternative."""
    if not error.context:
        yield error
    for inner in error.context or ():
        yield from leaves(inner)


def node_at(node: Any, path: list[Any]) -> Any:
    for part in path:
        if isinstance(node, yaml.MappingNode):
            node = next(value for key, value in reversed(node.value) if key.value == part)
        else:
            node = node.value[part]
    return node


def lines_refused(text: str) -> set[int]:
    """The lines of what the schema refuses: of the keys, where it is keys."""
    root, value = read(text)
    lines = set()
    for error in (leaf for found in VALIDATOR.iter_errors(value) for leaf in leaves(found)):
        node = node_at(root, list(error.absolute_path))
        if error.validator == "additionalProperties" and isinstance(node, yaml.MappingNode):
            part: Any = error.schema
            known, free = part.get("properties", {}), part.get("patternProperties", {})
            lines |= {
                key.start_mark.line + 1
                for key, _ in node.value
                if key.value not in known and not any(re.search(one, key.value) for one in free)
            }
        else:
            lines.add(1 if node is None else node.start_mark.line + 1)
    return lines


NO_YAML = {
    *("at_sign", "backslash", "bare_star", "colon_in_value", "indentation", "list_on_key_line"),
    *("no_colon", "open_brace", "open_bracket", "open_quote", "second_document"),
    *("star_alias", "tab", "yaml_features"),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.yaml")))
def test_a_broken_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA)
    path = Path(f"{name}.yaml")
    said = refusals(path)
    assert said
    text = path.read_text(encoding="utf-8")
    if name in NO_YAML:
        with pytest.raises(NotYamlError):
            read(text)
        return
    lines = lines_refused(text)
    missed = [
        str(problem)
        for problem in said
        if problem.place.line not in lines and not is_unseen(problem)
    ]
    assert missed == []
    assert all(is_unseen(problem) for problem in said) or not is_valid(text)


# Chance. ----------------------------------------------------------------------------------------------------------


class Plain(str):
    """Written without quotes, so that YAML makes of it what it likes."""

    __slots__ = ()


def written(value: Any) -> str:
    """The value in YAML's flow style. json.dumps would do but for plain scalars."""
    match value:
        case Plain():
            return str(value)
        case dict():
            return "{" + ", ".join(f"{key}: {written(each)}" for key, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


BASE: dict[str, Any] = {
    "version": 1,
    "listen": {"proxy": "127.0.0.1:3128", "admin": "[::1]:9090"},
    "mode": "enforce",
    "on_revoke": "close",
    "contract_headers": "warn",
    "forwarded_for": "keep",
    "credentials": {"users_file": "users", "required": False, "tenants": {"alice": "team-a"}},
    "state": "memory",
    "include": ["more.yaml"],
    "sets": {"near": ["example.com", "*.example.com"], "file": {"file": "hosts.txt"}},
    "policies": [
        {
            "name": "one",
            "subjects": [
                {"cidr": "10.0.0.0/8", "user": "alice", "namespace": "agents"},
                {"pod_labels": {"app": "web", "example.com/tier": ""}},
            ],
            "allow": [
                "example.com",
                "@near",
                {"host": "*.example.org", "ports": [443, "8000-8010"], "tls": "off"},
                {"host": "db.example", "allow_private": ["10.0.0.0/8", "fd00::/8"], "upstream": "direct"},
                {
                    "cidr": "192.0.2.0/24",
                    "ports": [443],
                    "upstream": {"proxy": "http://10.0.0.1:3128", "credentials_file": "parent"},
                },
            ],
            "ask": ["*.example.net", {"host": "@far", "tls": "verify"}],
            "deny": ["a.example.net", {"host": "@file", "ports": [25]}, {"cidr": "::/0", "ports": [25]}],
        },
        {
            "name": "two", "allow": ["example.net"], "trust_tenant_header": True,
            "limits": {
                "requests_per_second": 50, "burst": 100, "tunnels": 200, "requests_per_day": 1000,
                "bytes_per_day": {"up": "1GiB", "down": "10GiB", "both": "10GiB"}, "time_zone": "UTC",
                "bandwidth": "10MiB", "tunnel_bandwidth": "1MiB", "new_hosts_per_hour": 20,
            },
        },
        {"name": "three", "tenant": "team-b", "allow": ["a.b"], "limits": {"bytes_per_day": "10GiB"}},
    ],
    "dns": {
        "servers": ["10.96.0.10:53"],
        "hosts_file": "/etc/hosts",
        "timeout": "5s", "tries": 2, "min_ttl": "0s", "max_ttl": "5m", "negative_ttl": "5s",
        "stale_if_error": "1h",
        "cache_entries": 10_000,
    },
    "dial": {
        "prefer": "ipv4", "stagger": "250ms", "max_attempts": 16, "failure_memory": "0s",
        "source_addresses": ["192.0.2.10", "2001:db8::10"],
    },
    "networks": {"internal": ["203.0.113.0/24", "2001:db8:1::/48"], "nat64": ["2001:db8:64::/96"]},
    "upstream": {
        "proxy": "http://proxy.example:3128",
        "no_proxy": ["svc.example", "*.internal.example", "10.0.0.0/8", "fd00::/8"],
        "credentials_file": "parent",
    },
    "tunnels": {"ech": "grease"},
    "timeouts": {
        "head": "10s", "keep_alive": "1m", "connect": "10s", "connect_attempt": "4s", "client_hello": "10s",
        "response": "1m", "origin_keep_alive": "30s", "idle": "15m", "lifetime": "24h",
    },
    "limits": {
        "head_bytes": "32KiB", "head_fields": 100, "client_hello_bytes": "32KiB", "connections": 10_000,
        "connections_per_client": 2000, "tunnels": 10_000, "heads": 2000, "idle_origins": 1024, "idle_per_origin": 64,
    },
    "audit": {"queue_lines": 5, "flush_interval": "1ms"},
    "drain_timeout": "20s",
    "admin_token_file": "/etc/token",
}  # fmt: skip

PLAIN = [
    *(
        "no",
        "on",
        "off",
        "Off",
        "yes",
        "true",
        "True",
        "false",
        "y",
        "~",
        "null",
        "example.com",
        "5s",
    ),
    *(
        "22:22",
        "1e3",
        "0x1f",
        "0o17",
        "017",
        "1_000",
        ".5",
        "443.0",
        "1.0",
        "+443",
        "0443",
        "2026-01-31",
    ),
    *(
        "2026-13-45",
        "8000-8010",
        "80-",
        "10.0.0.0/8",
        "127.1",
        "1.2.3.4:53",
        "=",
        "verify",
        "0b11",
        "a b",
    ),
    *(
        '"a\n  b"',
        "'off'",
        "bücher.example",
        "😀.example",
        ".example.com",
        "!!str a",
        "&a b",
        "*a",
        "<<",
    ),
]
LEAVES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        443,
        65_535,
        65_536,
        10**20,
        1.5,
        "",
        " ",
        "off",
        "verify",
        "no",
    ),
    *(
        "443",
        "80-",
        "8010-8000",
        "65535-65535",
        "65536-1",
        "01-2",
        "1-2-3",
        "5s",
        "05s",
        "5",
        "1m30s",
    ),
    *(
        "99d",
        "1w",
        "32KB",
        "1B",
        "100ms",
        "9h",
        "example.com",
        "Example.COM.",
        "*.example.com",
        "*",
        "*.",
    ),
    *(
        "@near",
        "@nowhere",
        "@",
        "@a b",
        ".example.com",
        "a*.com",
        "1.2.3.4",
        "a.1",
        "a..b",
        "ü.example",
    ),
    *("ü b", "a_b", "example.com:443", "10.0.0.0/8", "10.0.0.1/8", "10.0.0.1", "::1", "::1/129"),
    *(
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "fd00:64::/96",
        "2001:db8::/32",
        "2001:db8::/95",
        "ff00::/32",
    ),
    *("::ffff:1.2.3.0/120", "1::2::3", "1.2.3.4:53", "1.2.3.4:0", "[::1]:53", "[::1]", "::1:53"),
    *(
        "[1::2::3]:53",
        "[::ffff:1.2.3.4]:53",
        "enforce",
        "audit",
        "keep",
        "/etc/x",
        "users",
        "a\x07b",
        "-a",
    ),
    *("direct", "http://proxy.example:3128", "http://proxy.example", "https://proxy.example:3128"),
    *("http://u:p@proxy.example:3128", "http://proxy.example:3128/", "http://[::1]:3128", "parent"),
    *("hosts.txt", "x" * 65, "a:b", "A", "a\nb", "\U000e0041/"),
]
WHOLES: list[Any] = [
    *([], {}, ["example.com"], [["example.com"]], [443], ["443"], [{}], [None], [*range(1, 102)]),
    *({"host": "example.com"}, {"cidr": "10.0.0.0/8"}, {"host": "a.b", "cidr": "10.0.0.0/8"}),
    *(
        {"file": "hosts.txt"},
        {"name": "three"},
        {"name": "three", "ask": ["example.com"]},
        {"app": "web"},
    ),
    *(
        {"user": "bob"},
        {"pod_labels": {}},
        {"ports": [443]},
        {"host": "a.b", "tls": True},
        {"host": "a.b", "methods": ["GET"], "paths": ["/a/*/b", "/%2e%2e"]},
        *(["GET", "get", "CONNECT"], ["/a/", "/a*b", "/a?b"], ["/%2f", "/a b"], ["/../a", "//a"]),
        {"tls": "off"},
    ),
]
KEYS = sorted({path.rpartition(".")[2] for path in every_key()})
VALUES = (
    st.sampled_from(LEAVES)
    | st.sampled_from([Plain(text) for text in PLAIN])
    | st.sampled_from(WHOLES).map(deepcopy)
    | st.integers(-10, 70_000)
    | HOSTS
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each collection in the document with each of its keys or positions."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield value, key
        if isinstance(each, dict | list):
            yield from places(each)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The base with one to three changes."""
    document: Any = deepcopy(BASE)
    for _ in range(draw(st.integers(1, 3))):
        where = list(places(document))
        if not where:
            break
        holder, key = where[draw(st.integers(0, len(where) - 1))]
        match draw(st.sampled_from(["set", "set", "set", "delete", "copy", "add", "rename"])):
            case "set":
                holder[key] = draw(VALUES)
            case "delete":
                del holder[key]
            case "copy":
                other, there = where[draw(st.integers(0, len(where) - 1))]
                holder[key] = deepcopy(other[there])
            case "add" if isinstance(holder, list):
                holder.append(draw(VALUES))
            case "add":
                name = draw(st.sampled_from([*KEYS, "x-key", "state", "1", "no", "<<"]))
                holder[name] = draw(VALUES)
            case "rename" if isinstance(holder, dict):
                name = draw(st.sampled_from([*KEYS, "Hosts", "a b", "7", "-app", "a/b", "on"]))
                holder[name] = holder.pop(key)
            case _:
                holder.insert(0, deepcopy(holder[key]))
    if draw(st.booleans()):
        return written(document) + "\n"
    return "".join(f"{key}: {written(value)}\n" for key, value in document.items())


SEEN = (
    *(Code.BAD_VERSION, Code.UNKNOWN_KEY, Code.UNSUPPORTED_KEY, Code.MISSING_KEY, Code.WRONG_TYPE),
    *(Code.BAD_VALUE, Code.BAD_HOST, Code.BAD_NETWORK, Code.BAD_PORT, Code.CONFLICT),
)


@pytest.fixture(scope="module")
def without_lint() -> Iterator[None]:
    """It only warns, and takes ten times as long as all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_module, "lint", lambda *_: None)
        yield


def compare(folder: Path, text: str) -> None:
    """The schema is never stricter than the loader, and laxer in what it cannot see alone."""
    said = refused(folder, text)
    valid = is_valid(text)
    if not said:
        assert valid
    # What spoils the YAML itself hides what else is said of it.
    if not any(problem.code is Code.SYNTAX for problem in said):
        seen = [str(each) for each in said if each.code in SEEN and not is_unseen(each)]
        assert seen == [] or not valid


@given(mutated())
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.usefixtures("without_lint")
def test_the_schema_is_never_stricter_and_seldom_laxer(folder: Path, text: str) -> None:
    compare(folder, text)


#: Something of every kind, for keys of every kind.
FEW: list[Any] = [
    *(None, True, 0, -1, 7, 10**8, 1.5, "", "!", "a b", "5", "80-81", "é", Plain("off"), Plain("no")),
    *([], {}, [None], [7], ["!"], {"x": 1}, Plain("2026-01-31"), Plain("7.0")),
]  # fmt: skip


LONG: dict[str, Any] = {
    "servers": (8, lambda count: {"dns": {"servers": ["10.0.0.1:53"] * count}}),
    **{
        f"ports of {action} {target}": (
            100,
            lambda count, action=action, rule={target: value}: policy_with(
                {action: [rule | {"ports": [443] * count}]}
            ),
        )
        for action in ("allow", "deny")
        for target, value in (("host", "example.com"), ("cidr", "192.0.2.0/24"))
    },
    "allow_private": (
        100,
        lambda count: policy_with(
            {"allow": [{"host": "example.com", "allow_private": ["10.0.0.0/8"] * count}]}
        ),
    ),
    "no_proxy": (
        1000,
        lambda count: {"upstream": {"proxy": "http://a.example:1", "no_proxy": ["a.b"] * count}},
    ),
    "internal": (
        1000,
        lambda count: {
            "networks": {"internal": [f"8.{n >> 8}.{n & 255}.0/24" for n in range(count)]}
        },
    ),
    "nat64": (
        16,
        lambda count: {"networks": {"nat64": [f"fd00:64:{n:x}::/48" for n in range(count)]}},
    ),
    "subjects": (1000, lambda count: policy_with({"subjects": [{"user": "a"}] * count})),
    "pod_labels": (20, lambda count: policy_with({"subjects": [{"pod_labels": labels(count)}]})),
}


def policy_with(keys: dict[str, Any]) -> dict[str, Any]:
    return {"policies": [{"name": "a", "allow": ["example.com"]} | keys]}


def labels(count: int) -> dict[str, str]:
    return {f"l{number}": "v" for number in range(count)}


@pytest.mark.parametrize("key", LONG)
def test_how_long_a_list_may_be(key: str, folder: Path) -> None:
    most, document = LONG[key]
    for count in (most, most + 1):
        text = written({"version": 1, **policy_with({}), **document(count)})
        assert (refused(folder, text) == ()) == is_valid(text) == (count == most)


@pytest.mark.parametrize("path", [path for path, part in FOUND if "minimum" in part])
def test_how_large_a_number_may_be(path: str, folder: Path) -> None:
    section, _, key = path.rpartition(".")
    low, high = (dict(FOUND)[path][bound] for bound in ("minimum", "maximum"))
    for number in (low - 1, low, high, high + 1):
        document: dict[str, Any] = {section: {key: number}}
        if section == "policies[].limits":
            rate = {"requests_per_second": 1} if key == "burst" else {}
            document = {
                "policies": [{"name": "a", "allow": ["a.b"], "limits": rate | {key: number}}]
            }
        text = written({"version": 1, **policy_with({}), **document})
        assert (refused(folder, text) == ()) == is_valid(text) == (low <= number <= high)


@pytest.mark.parametrize("number", range(len([*places(BASE)])))
@pytest.mark.usefixtures("without_lint")
def test_each_value_of_the_base(number: int, folder: Path) -> None:
    """Replaced by each of a few, and removed; what stands elsewhere is left out where it can be."""
    document = deepcopy(BASE)
    holder, key = [*places(document)][number]
    top = [name for name, value in document.items() if name == key or holder_in(holder, value)]
    needed = ["version", *top, *(() if "policies" in top else ("include", "policies"))]
    small = {name: document[name] for name in document if name in needed}
    if "policies" in top:
        small |= {name: document[name] for name in ("sets", "include")}
    else:
        small["policies"] = [{"name": "one", "allow": ["example.com"]}]
    for value in FEW:
        if holder is document:
            small[key] = value
        else:
            holder[key] = value
        compare(folder, written(small))
    del (small if holder is document else holder)[key]
    compare(folder, written(small))


def holder_in(holder: Any, value: Any) -> bool:
    return holder is value or any(
        holder is each for each, _ in (places(value) if isinstance(value, dict | list) else ())
    )


def test_the_base_is_valid_and_has_every_top_level_key(folder: Path) -> None:
    """Otherwise chance would try nothing but broken files, or miss some keys."""
    assert BASE.keys() == SCHEMA["properties"].keys()
    for key, value in BASE.items():
        if isinstance(SECTIONS.get(key), Section):
            assert value.keys() == SCHEMA["properties"][key]["properties"].keys()
    assert refused(folder, written(BASE)) == ()
    assert is_valid(written(BASE))
