"""What is doubtful about a configuration that loads: each rule of the lint with a hit and a near miss."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from egress_proxy.config.errors import Code
from egress_proxy.config.load import load, parse

DATA = Path(__file__).parent / "lint"

# A hash of bcrypt's own test vectors.
USER = "batch:$2a$10$fVH8e28OQRj9tqiDXs1e1uxpsjN0c7II7YPKXua2NAKYvM6iQk7dq\n"


def warnings(text: str) -> list[str]:
    """``LINE:COLUMN: TEXT [CODE]`` of each warning."""
    return [
        str(problem).replace(": warning: ", ": ", 1).removeprefix("f.yaml:")
        for problem in parse(text.encode(), "f.yaml").warnings
    ]


def of_rule(entry: str, action: str = "allow") -> list[str]:
    """The warnings about one rule of a policy, without their place."""
    said = warnings(f"version: 1\npolicies:\n  - name: everyone\n    {action}:\n      - {entry}\n")
    assert all(line.startswith("5:9: ") for line in said)
    return [line.removeprefix("5:9: ") for line in said]


def _rules(action: str) -> list[tuple[str, str, list[str]]]:
    """The entries of ``lint/ACTION.txt``, each with what is said about it: the lines below it."""
    found: list[tuple[str, str, list[str]]] = []
    for line in (DATA / f"{action}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("    "):
            found[-1][2].append(line.strip())
        elif not line.startswith("#"):
            found.append((action, line, []))
    return found


@pytest.mark.parametrize(
    ("action", "entry", "said"), [*_rules("allow"), *_rules("ask"), *_rules("deny")]
)
def test_a_rule(action: str, entry: str, said: list[str]) -> None:
    assert of_rule(entry, action) == said


@pytest.mark.parametrize("path", sorted(DATA.glob("*.yaml")), ids=lambda path: path.stem)
def test_rules_that_cannot_matter(path: Path) -> None:
    said = path.with_suffix(".txt").read_text(encoding="utf-8")
    assert warnings(path.read_text(encoding="utf-8")) == said.splitlines()


def test_every_warning_about_rules_is_shown() -> None:
    said = "".join(path.read_text(encoding="utf-8") for path in DATA.glob("*.txt"))
    shown = set(re.findall(r"\[([a-z-]+)\]$", said, re.MULTILINE))
    assert shown == {
        *(Code.DUPLICATE_RULE, Code.REDUNDANT_RULE, Code.SHADOWED_RULE, Code.WITHOUT_EFFECT),
        *(Code.WIDE_RULE, Code.PUBLIC_SUFFIX, Code.SHARED_SUFFIX, Code.SPECIAL_NETWORK),
        *(Code.TUNNEL_OPEN, Code.ONE_SEGMENT, Code.TLS_OFF, Code.TLS_MISSING, Code.RISKY_PORT),
        *(Code.IMPOSSIBLE_HOST, Code.LOOKALIKE_HOST, Code.UNKNOWN_METHOD),
    }


def test_a_wildcard_below_which_no_name_fits() -> None:
    """A name has 253 characters at most, and the shortest below a wildcard two more than its own."""
    longest = ".".join(["a" * 61] * 4)
    assert of_rule(f'"*.{longest}.com"') == []
    (said,) = of_rule(f'"*.{longest}.info"')
    assert said == (
        f"below `{longest}.info` is no room for a name, for 253 characters are the most; remove it [impossible-host]"
    )


# Policies that apply to nobody ------------------------------------------------------------------------------------

NAMESPACES = "this version does not know the namespace and the labels of a client's pod"


def subjects(listed: str, deny: str = "", before: str = "") -> list[str]:
    return warnings(
        f"version: 1\n{before}policies:\n"
        f"  - {{name: some, subjects: [{listed}], allow: [example.com]{deny}}}\n"
    )


def test_a_subject_that_describes_nobody() -> None:
    cidr = "write the `cidr` or the `user` of these clients [unreachable-policy]"
    assert subjects("{namespace: agents}") == [
        f"3:29: {NAMESPACES}, so the policy `some` applies to nobody; {cidr}"
    ]
    assert subjects("{cidr: 10.0.0.0/8}, {cidr: 10.1.0.0/16, pod_labels: {app: web}}") == [
        f"3:49: {NAMESPACES}, so this subject describes nobody; {cidr}"
    ]
    assert subjects("{namespace: agents}", ", deny: [a.example.com]") == [
        f"3:29: {NAMESPACES}, so the policy `some` applies to nobody, and its `deny` denies them nothing; {cidr}"
    ]
    assert subjects("{cidr: 0.0.0.0/0}, {cidr: 10.0.0.0/8}") == []


def test_a_user_whom_nobody_can_be(tmp_path: Path) -> None:
    assert subjects("{user: batch}") == [
        (
            "3:29: without `credentials` no client has a user, so the policy `some` applies to nobody;"
            " write `credentials: {users_file: …}` [unreachable-policy]"
        )
    ]
    file = tmp_path / "users"
    file.write_text(USER)
    credentials = f"credentials: {{users_file: {file}}}\n"
    assert subjects("{user: batch}", before=credentials) == []
    assert subjects("{user: bath}", before=credentials) == [
        (
            f"4:29: {file} has no user `bath`, so the policy `some` applies to nobody;"
            " add the user there, or write another one [unreachable-policy]"
        )
    ]


def test_a_host_with_very_many_rules_has_the_first_of_them_compared() -> None:
    """So that no file is slow, however often it names one host."""
    ports = [*range(12_000, 12_030), 12_000, 12_029]
    rules = "".join(f"      - {{host: a.com, ports: [{port}]}}\n" for port in ports)
    assert warnings(f"version: 1\npolicies:\n  - name: a\n    allow:\n{rules}") == [
        "35:9: `a.com` stands twice, first on line 5; remove one of them [duplicate-rule]"
    ]


# Sets -------------------------------------------------------------------------------------------------------------


def test_the_hosts_of_a_set_are_looked_at_once(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.txt"
    hosts.write_text(
        "example.com\n*.github.io\n*.github.io # again\nlocalhost\n*.example.org\n"
        "a.example.org\n*.co.uk # check: ignore=public-suffix\n*\n"
    )
    said = warnings(f"""\
version: 1
sets:
  long: {{file: {hosts}}}
  bad: [localhost, a.onion, "*.com"]
  inner: [db, web.corp, "*.corp"]
  asked: ["*.dev"]
policies:
  - name: a
    allow: ["@long", {{host: "@inner", allow_private: [10.0.0.0/8]}}]
    ask: ["@asked"]
    deny: ["@bad"]
  - name: b
    subjects: [{{cidr: 10.0.0.0/8}}]
    allow: ["@long", "@inner"]
    ask: ["@asked"]
""")
    where = [line.replace(str(hosts), "hosts.txt") for line in said]
    assert [re.sub(r"^(\S+): .* \[(.*)\]$", r"\1 \2", line) for line in where] == [
        "6:11 public-suffix",
        "hosts.txt:2:1 shared-suffix",
        "hosts.txt:3:1 duplicate-rule",
        "hosts.txt:4:1 impossible-host",
        "hosts.txt:6:1 redundant-rule",
        "hosts.txt:8:1 wide-rule",
    ]


def test_a_rule_of_another_file_is_named_with_it(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(
        "version: 1\npolicies:\n  - {name: b, allow: [a.example.com]}\n"
    )
    main = tmp_path / "main.yaml"
    main.write_text(
        "version: 1\ninclude: [more.yaml]\npolicies:\n  - {name: a, deny: ['*.example.com']}\n"
    )
    (warning,) = load(str(main)).warnings
    assert (warning.place.file, warning.place.line) == (str(tmp_path / "more.yaml"), 3)
    assert warning.what == f"`a.example.com` is denied by the rule on {main}:4"


# Comments and the list of suffixes --------------------------------------------------------------------------------


def test_a_comment_keeps_a_warning_away() -> None:
    assert of_rule('"*.github.io"  # check: ignore=shared-suffix') == []
    assert (
        of_rule("{host: a.example.com, ports: [22]}  # check: ignore=risky-port,tls-missing") == []
    )
    (other,) = of_rule("{host: a.example.com, ports: [22]}  # check: ignore=tls-missing")
    assert other.endswith("[risky-port]")


def test_the_list_of_suffixes_is_read_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(package: str) -> None:
        raise AssertionError(package)

    monkeypatch.setattr("egress_proxy.config.lint.suffixes.files", refuse)
    assert of_rule("github.com") == []
    assert of_rule("{host: a.test, ports: [8443]}") == []
    with pytest.raises(AssertionError, match="publicsuffixlist"):
        of_rule('"*.github.com"')


def test_many_paths_are_not_compared_each_with_each() -> None:
    """A hundred paths in each of a thousand rules, some of them deep."""
    listed = ", ".join(f'"/a{number}{"/*" * (number % 50)}/"' for number in range(100))
    rules = "\n".join(
        f"      - {{host: a{number}.example.com, paths: [{listed}]}}" for number in range(100)
    )
    said = warnings(f"version: 1\npolicies:\n  - name: everyone\n    allow:\n{rules}\n")
    assert said == []


def test_very_many_methods_that_nobody_knows_are_soon_said() -> None:
    """What was meant is looked for as long as somebody will read it."""
    listed = [f"      - {{host: a.test, ports: [{n}], methods: [M{n}]}}\n" for n in range(1, 3000)]
    said = warnings(f"version: 1\npolicies:\n  - name: p\n    allow:\n{''.join(listed)}")
    assert len(said) == 1001
    assert sum("[unknown-method]" in line for line in said) == 1000
