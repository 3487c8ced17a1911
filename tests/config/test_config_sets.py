"""Sets of hosts, further files, and the comments that switch a warning off."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from egress_proxy.config import sources as sources_module
from egress_proxy.config.errors import ConfigError
from egress_proxy.config.load import Loaded, load, parse
from egress_proxy.config.sources import Sources
from egress_proxy.core.decide import decide
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import parse_authority
from egress_proxy.core.policy import HostSet

HEAD = "version: 1\n"


def written(folder: Path, **files: str) -> str:
    """Write files (``a__b`` is a/b, ``_`` before the extension a dot) and return the path of the first."""
    paths = []
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_yaml", ".yaml").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        paths.append(str(path))
    return paths[0]


def decided(loaded: Loaded, target: str, client: str = "10.0.0.1") -> str:
    """What is decided, and by which rule."""
    decision = decide(loaded.config.policy, Identity(client), parse_authority(target.encode(), 443))
    said = "allowed" if decision.denial is None else decision.denial.name
    return said if decision.match is None else f"{said}: {decision.match.rule}"


def warnings(loaded: Loaded) -> list[str]:
    return [str(problem) for problem in loaded.warnings]


# Sets -------------------------------------------------------------------------------------------------------------

SETS = """\
version: 1
sets:
  ai: [api.ai.test, "*.models.test"]
  text: {file: hosts.txt}
  yaml: {file: lists/hosts.yaml}
policies:
  - name: everyone
    allow: ["@ai", {host: "@text", ports: [443, "8000-8010"], tls: off, allow_private: [10.0.0.0/8]}]
    ask: [{host: "@yaml"}]
  - name: others
    subjects: [{cidr: 10.9.0.0/16}]
    deny: ["@ai"]
"""
TEXT = (
    "# Hosts that we trust.\n\none.test\n\t*.two.test # and below\r\nbücher.test\n  three.test#x\n"
)


def test_hosts_of_a_set(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        main_yaml=SETS,
        hosts_txt=TEXT.replace("  three.test#x\n", ""),
        lists__hosts_yaml='- asked.test\n- "*"\n',
    )
    loaded = load(path)
    # The other set holds `*`, and ask beats allow.
    assert decided(loaded, "api.ai.test") == "approval_required: ask @yaml"
    assert decided(loaded, "api.ai.test:8005") == "port_not_allowed: allow @ai"
    assert decided(loaded, "other.test") == "approval_required: ask @yaml"
    assert decided(loaded, "one.test:8443") == "port_not_allowed: allow @text"
    assert decided(loaded, "one.test:8005") == "allowed: allow @text"
    assert decided(loaded, "a.b.two.test:8005") == "allowed: allow @text"
    assert decided(loaded, "two.test:8005") != "allowed: allow @text"
    assert decided(loaded, "xn--bcher-kva.test:8005") == "allowed: allow @text"
    assert decided(loaded, "api.ai.test", client="10.9.0.1") == "deny_rule: deny @ai"
    assert loaded.config.policy.rule_count == 2 * 2 + 3 + 2


def test_a_host_of_a_set_knows_its_place(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        main_yaml='version: 1\nsets: {a: {file: hosts.txt}}\npolicies: [{name: p, allow: ["@a"]}]\n',
        hosts_txt="one.test\n\t*.two.test # why\n",
    )
    (rule,) = load(path).config.policy.policies[0].rules
    assert isinstance(rule.target, HostSet)
    found = {text: str(place) for text, place in rule.target.patterns.items()}
    assert found == {
        "one.test": f"{tmp_path}/hosts.txt:1:1",
        "*.two.test": f"{tmp_path}/hosts.txt:2:2",
    }


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    text = "version: 1\nsets: {a: {file: hosts.txt}}\npolicies: [{name: p, allow: ['@a']}]\n"
    path = written(tmp_path, main_yaml=text, hosts_txt=TEXT)
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert str(problem) == (
        f"{tmp_path}/hosts.txt:6:3: `three.test#x` has a path, and a rule names a host; "
        "write three.test [bad-host]"
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "1:1: the file holds no host; write one host a line"),
        (b"# nothing\n", "1:1: the file holds no host; write one host a line"),
        (
            b"a.test\n\xff.test\n",
            "2:1: the file is not UTF-8: byte 8 is 0xff; save it as UTF-8 text",
        ),
        (b"a.test\rb.test\n", "1:7: the file holds the invisible character U+000D; remove it"),
        (b"evil\x00.test\n", "1:5: the file holds the invisible character U+0000; remove it"),
        ("a.test\u2028b.test\n".encode(), "1:7: the file holds the invisible character U+2028"),
    ],
)
def test_a_file_of_hosts_that_is_none(tmp_path: Path, data: bytes, said: str) -> None:
    text = "version: 1\nsets: {a: {file: hosts.txt}}\npolicies: [{name: p, allow: ['@a']}]\n"
    path = written(tmp_path, main_yaml=text)
    (tmp_path / "hosts.txt").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert f"{tmp_path}/hosts.txt:{said}" in str(caught.value)


def test_an_unused_set_is_warned_of() -> None:
    text = "version: 1\nsets: {a: [a.test]}\npolicies: [{name: p, allow: [b.example.com]}]\n"
    assert any("[unused-set]" in said for said in warnings(parse(text.encode(), "f.yaml")))


# Includes ---------------------------------------------------------------------------------------------------------

MAIN = "version: 1\ninclude: [policies.d]\nsets: {a: [a.example.com]}\n"


def test_a_directory_of_policies(tmp_path: Path) -> None:
    """As Kubernetes mounts ConfigMaps: one into the directory itself, others into directories in it."""
    path = written(
        tmp_path,
        main_yaml=MAIN,
        **{
            "policies.d__..2026__one_yaml": "version: 1\npolicies: [{name: one, allow: ['@a']}]\n",
            "policies.d__team__two_yaml": "version: 1\npolicies: [{name: two, deny: ['@b']}]\n",
            "policies.d__team__sets_yaml": "version: 1\nsets: {b: [b.example.com]}\n",
            "policies.d__README_txt": "not: [yaml",
            "policies.d__.hidden_yaml": "version: 7\n",
            "policies.d__team__too__deep_yaml": "version: 7\n",
        },
    )
    folder = tmp_path / "policies.d"
    (folder / "..data").symlink_to("..2026")
    (folder / "one.yaml").symlink_to("..data/one.yaml")
    loaded = load(path)
    assert [policy.name for policy in loaded.config.policy.policies] == ["one", "two"]
    assert decided(loaded, "a.example.com") == "allowed: allow @a"
    assert decided(loaded, "b.example.com") == "deny_rule: deny @b"
    assert loaded.config.policy.policies[0].place.file == f"{folder}/one.yaml"


def test_what_is_left_out_of_a_directory_is_told(tmp_path: Path) -> None:
    """A deny rule in it would be missed, and nobody would know."""
    deny = "version: 1\npolicies: [{name: two, deny: [a.example.com]}]\n"
    path = written(
        tmp_path,
        main_yaml=f"{MAIN}policies: [{{name: p, allow: ['@a']}}]\n",
        **{
            "policies.d__team__deep__deny_yaml": deny,
            "policies.d__NOTES_txt": "none",
            "policies.d__sets_yaml": "version: 1\nsets: {b: [b.example.com]}\n",
        },
    )
    (tmp_path / "policies.d" / "deny.YAML").write_text(deny)
    said = [warning for warning in warnings(load(path)) if "is not read" in warning]
    assert len(said) == 2
    assert "/policies.d/deny.YAML` is not read; let its name end in .yaml or .yml" in said[0]
    assert "/policies.d/team/deep` is not read; include it by itself" in said[1]


def test_a_link_to_nothing_is_an_error(tmp_path: Path) -> None:
    path = written(
        tmp_path, main_yaml=MAIN, **{"policies.d__a_yaml": "version: 1\nsets: {b: [b.c]}\n"}
    )
    (tmp_path / "policies.d" / "gone.yaml").symlink_to("nowhere")
    sources = Sources()
    with pytest.raises(ConfigError, match=r"gone\.yaml: there is no such file"):
        load(path, sources)
    assert f"{tmp_path}/policies.d/gone.yaml" in sources.paths


def test_a_path_that_no_system_takes(tmp_path: Path) -> None:
    path = written(tmp_path, main_yaml=f"version: 1\ninclude: [{'a' * 300}]\n")
    with pytest.raises(ConfigError, match="the file cannot be read: File name too long"):
        load(path)


def test_a_long_chain_of_files_ends(tmp_path: Path) -> None:
    for number in range(500):
        text = f"version: 1\ninclude: [{number + 1}.yaml]\n"
        (tmp_path / f"{number}.yaml").write_text(text)
    with pytest.raises(ConfigError, match="files are included through more than 20 others"):
        load(str(tmp_path / "0.yaml"))


def test_the_number_of_sets_is_bounded() -> None:
    sets = "".join(f"  s{number}: [a.example.com]\n" for number in range(1001))
    text = f"version: 1\nsets:\n{sets}policies: [{{name: p, allow: ['@s0']}}]\n"
    with pytest.raises(ConfigError, match="there are more than 1,000 sets"):
        parse(text.encode(), "f.yaml")


def test_a_file_s_name_does_not_command_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\nb.yaml"
    path.write_text("version: 1\npolicies: [{name: p, allow: [.a]}]\n")
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("line", [f"a.test{' ' * 50_000}b", f"{' ' * 50_000}#", "#" * 50_000])
def test_a_long_line_takes_no_time(tmp_path: Path, line: str) -> None:
    text = "version: 1\nsets: {a: {file: hosts.txt}}\npolicies: [{name: p, allow: ['@a']}]\n"
    path = written(tmp_path, main_yaml=text, hosts_txt=f"ok.test\n{line}\n")
    begun = time.process_time()
    if "b" in line:
        with pytest.raises(ConfigError):
            load(path)
    else:
        assert load(path).config.policy.rule_count == 1
    assert time.process_time() - begun < 2


def test_many_comments_for_check_take_no_time(tmp_path: Path) -> None:
    text = "version: 1\nsets: {a: {file: hosts.txt}}\npolicies: [{name: p, allow: ['@a']}]\n"
    lines = "".join(f"h{n}.example.com # check: ignore=duplicate-rule\n" for n in range(40_000))
    path = written(tmp_path, main_yaml=text, hosts_txt=lines)
    begun = time.process_time()
    assert load(path).config.policy.rule_count == 40_000
    assert time.process_time() - begun < 5


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        main_yaml="version: 1\ninclude: [sub/one.yaml]\n",
        sub__one_yaml="version: 1\ninclude: [two.yaml, ../three.yaml]\n",
        sub__two_yaml="version: 1\nsets: {a: {file: hosts.txt}}\n",
        sub__hosts_txt="a.example.com\n",
        three_yaml="version: 1\npolicies: [{name: three, allow: ['@a']}]\n",
    )
    assert decided(load(path), "a.example.com") == "allowed: allow @a"


def test_without_policies_anywhere_nothing_loads(tmp_path: Path) -> None:
    path = written(
        tmp_path, main_yaml=MAIN, **{"policies.d__a_yaml": "version: 1\nsets: {b: [b.c]}\n"}
    )
    with pytest.raises(ConfigError, match="the file has no `policies`"):
        load(path)


def test_an_empty_directory_is_warned_of(tmp_path: Path) -> None:
    path = written(tmp_path, main_yaml=f"{MAIN}policies: [{{name: p, allow: ['@a']}}]\n")
    (tmp_path / "policies.d").mkdir()
    said = f"{path}:2:11: warning: the directory `{tmp_path}/policies.d` holds no .yaml file"
    assert any(warning.startswith(said) for warning in warnings(load(path)))


def test_a_text_that_is_no_file_can_include_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``egress-proxy check /dev/stdin``: paths are then relative to that."""
    written(tmp_path, extra_yaml="version: 1\npolicies: [{name: p, allow: [a.example.com]}]\n")
    monkeypatch.chdir(tmp_path)
    loaded = parse(b"version: 1\ninclude: [extra.yaml]\n", "f.yaml")
    assert decided(loaded, "a.example.com") == "allowed: allow a.example.com"


def test_the_number_and_the_size_of_files_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        f"policies.d__p{n}_yaml": f"version: 1\npolicies: [{{name: p{n}, allow: ['@a']}}]\n"
        for n in range(4)
    }
    path = written(tmp_path, main_yaml=MAIN, **files)
    monkeypatch.setattr(sources_module, "MAX_FILES", 5)
    assert len(load(path).config.policy.policies) == 4
    monkeypatch.setattr(sources_module, "MAX_FILES", 4)
    with pytest.raises(ConfigError, match="the configuration has more than 4 files"):
        load(path)
    monkeypatch.setattr(sources_module, "MAX_FILES", 5)
    monkeypatch.setattr(sources_module, "MAX_BYTES", 150)
    with pytest.raises(ConfigError, match="the configuration is larger than"):
        load(path)


# What is remembered of the files ----------------------------------------------------------------------------------


def test_the_digest_of_one_file_is_its_own(tmp_path: Path) -> None:
    text = "version: 1\npolicies: [{name: p, allow: [a.example.com]}]\n"
    path = written(tmp_path, main_yaml=text)
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert load(path).config.digest == expected
    assert parse(text.encode(), "f.yaml").config.digest == expected


def test_the_digest_of_several_files_changes_with_each(tmp_path: Path) -> None:
    text = f"{MAIN}policies: [{{name: p, allow: ['@a', '@b']}}]\n"
    path = written(
        tmp_path,
        main_yaml=text,
        **{
            "policies.d__b_yaml": "version: 1\nsets: {b: {file: b.txt}}\n",
            "policies.d__b_txt": "b.example.com\n",
        },
    )
    seen = {load(path).config.digest}
    for name in ("main.yaml", "policies.d/b.yaml", "policies.d/b.txt"):
        with (tmp_path / name).open("a") as file:
            file.write("# changed\n")
        seen.add(load(path).config.digest)
    assert len(seen) == 4
    assert load(path).config.digest in seen


def test_sources_know_every_file_and_see_each_change(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        main_yaml=f"{MAIN}policies: [{{name: p, allow: ['@b']}}]\n",
        **{
            "policies.d__b_yaml": "version: 1\nsets: {b: {file: b.txt}}\n",
            "policies.d__b_txt": "b.example.com\n",
        },
    )
    sources = Sources()
    load(path, sources)
    folder = f"{tmp_path}/policies.d"
    assert set(sources.paths) == {path, folder, f"{folder}/b.yaml", f"{folder}/b.txt"}
    assert not sources.changed
    os.utime(f"{folder}/b.txt", ns=(1, 1))
    assert sources.changed


def test_sources_know_a_file_that_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path, main_yaml="version: 1\ninclude: [none.yaml]\n")
    sources = Sources()
    with pytest.raises(ConfigError):
        load(path, sources)
    assert f"{tmp_path}/none.yaml" in sources.paths
    assert not sources.changed
    (tmp_path / "none.yaml").touch()
    assert sources.changed


# Comments that switch a warning off -------------------------------------------------------------------------------


def test_a_warning_can_be_switched_off_on_its_line(tmp_path: Path) -> None:
    def said(text: str) -> list[str]:
        return [
            warning.rpartition("[")[2].removesuffix("]")
            for warning in warnings(parse(text.encode(), "f.yaml"))
        ]

    rule = 'version: 1\npolicies:\n  - name: p\n    allow:\n      - "*"{}\n      - "*"{}\n'
    assert said(rule.format("", "")) == ["wide-rule", "duplicate-rule", "wide-rule"]
    ignore = "  # check: ignore="
    assert said(rule.format(f"{ignore}wide-rule", "")) == ["duplicate-rule", "wide-rule"]
    assert said(rule.format("", f"{ignore}wide-rule,duplicate-rule")) == ["wide-rule"]
    assert said(rule.format(f"{ignore}wide-rule, duplicate-rule", "")) == [
        "duplicate-rule",
        "wide-rule",
    ]
    assert "bad-comment" in said(rule.format(f"{ignore}wide-rule # we know", ""))
    assert said(rule.format("", " # we know; check: ignore=wide-rule")) == [
        "wide-rule",
        "duplicate-rule",
        "wide-rule",
    ]
    assert said(rule.format(f"{ignore}wide-rules", "")) == [
        "wide-rule",
        "bad-comment",
        "duplicate-rule",
        "wide-rule",
    ]


def test_an_error_cannot_be_switched_off() -> None:
    text = "version: 1\npolicies: [{name: p, allow: [.a]}]  # check: ignore=bad-host\n"
    with pytest.raises(ConfigError):
        parse(text.encode(), "f.yaml")
