"""Edits of configurations: the diff applies, the text means what it should, and the rest stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from egress_proxy.core.policy import Place
from egress_proxy.history.edit import Edited, EditError, NewPolicy, NewRule, edit
from egress_proxy.history.suggest import as_text, suggest
from tests.history.patching import apply_diff, apply_with_tools, line

# Layouts, one by one. ---------------------------------------------------------------------------------------------

ONE = line("new.test", 8443)
COMMENT = "1 request from 10.20.0.7, last 2026-01-31T12:00:00Z"
RULE = "{host: new.test, ports: [8443]}"
CLIENT = 'subjects: [{cidr: "10.20.0.7"}]'

#: Texts as a diff would show them, whole.
LAYOUTS = {
    "a list with dashes": """\
 policies:
   - name: a
     allow:
       - a.test  # why
+      - RULE  # COMMENT

       # the end
""",
    "dashes that are not indented, and a long rule": """\
 policies:
 - name: a
   allow:
   - host: a.test
     ports: [1,
       2]  # two
+  - RULE  # COMMENT
   deny: [b.test]
""",
    "a list in brackets": """\
 policies:
   - name: a
+    # RULE: COMMENT
-    allow: [a.test, 'b.test']  # check: ignore=wide-rule
+    allow: [a.test, 'b.test', RULE]  # check: ignore=wide-rule
""",
    "a policy in braces, a list with a comma at its end": """\
 policies:
+  # RULE: COMMENT
-  - {name: a, allow: [a.test,]}
+  - {name: a, allow: [a.test, RULE,]}
""",
    "brackets with an entry a line": """\
 policies:
   - name: a
     allow: [
       a.test,  # first
-      b.test   # second
+      b.test,   # second
+      RULE  # COMMENT
       # none
     ]
""",
    "brackets with an entry and a comma a line": """\
 policies:
   - name: a
     allow: [
       a.test,
       b.test,  # second
+      RULE,  # COMMENT
     ]
""",
    "commas where nobody puts them": """\
 policies:
   - name: a
     allow: [
       a.test  # why
+      # RULE: COMMENT
-      , b.test
+      , b.test, RULE
       ,  # odd
     ]
""",
    "a comma on a line of its own": """\
 policies:
   - name: a
     allow: [
+      # RULE: COMMENT
-      a.test
+      a.test, RULE
       # why
       ,
     ]
""",
    "a mapping without braces in brackets": """\
 policies:
   - name: a
+    # RULE: COMMENT
-    allow: [host: a.test  ]
+    allow: [host: a.test, RULE  ]
""",
    "a policy without allow": """\
 policies:
   - deny:
       - b.test  # why
     name: a  # last
+    allow:
+      - RULE  # COMMENT
   # end
""",
    "a policy in braces without allow": """\
+# RULE: COMMENT
-policies: [{name: a, deny: [b.test]}]
+policies: [{name: a, deny: [b.test], allow: [RULE]}]
""",
    "a new policy": """\
 policies:
   - name: a
     subjects: [{cidr: 192.0.2.0/24}]
     allow: [a.test]
+  - name: client-10.20.0.7
+    CLIENT
+    allow:
+      - RULE  # COMMENT
 # end
""",
    "a new policy in brackets": """\
 policies: [
+  # RULE: COMMENT
-  {name: a, subjects: [{user: b}], allow: [a.test]}, # bücher
+  {name: a, subjects: [{user: b}], allow: [a.test]}, {name: client-10.20.0.7, CLIENT, allow: [RULE]}, # bücher
 ]
""",
    "keys with question marks": """\
 policies:
   - ? name
     : a
     ? allow
     : - a.test
       -   b.test
+      - RULE  # COMMENT
     ? deny
     : [c.test]
""",
    "an escaped key": """\
 policies:
   - name: a
+    # RULE: COMMENT
-    "\\u0061llow": ["ü", 'it''s.test'  ] # "]
+    "\\u0061llow": ["ü", 'it''s.test', RULE  ] # "]
""".replace("it''s", "its"),
    "a list at the end": """\
 policies:
   - name: a
     allow:
       - a.test
+      - RULE  # COMMENT
""",
    "brackets at the end": """\
 policies: [{name: a, allow: [
   a.test,
+  # RULE: COMMENT
-  b.test]}]
+  b.test, RULE]}]
""",
    "another order, and allow elsewhere": """\
 sets:
   allow: [a.test]
   policies: [allow.test]
 policies:
   - allow:
       - "@allow"
+      - RULE  # COMMENT
     name: allow
     deny: [ "@policies" ]
 timeouts: {idle: 1m}
""",
}


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = LAYOUTS[layout]
    for name, value in (("RULE", RULE), ("COMMENT", COMMENT), ("CLIENT", CLIENT)):
        text = text.replace(name, value)
    lines = [" version: 1", *text.splitlines()]
    before = "\n".join(each[1:] for each in lines if each[:1] != "+")
    after = "\n".join(each[1:] for each in lines if each[:1] != "-")
    if end:
        before, after = (f"{each}\n".replace("\n", end) for each in (before, after))
    elif layout == "a list at the end":
        after += "\n"  # what is appended ends as a line should
    path = Path("policy.yaml")
    path.write_bytes(before.encode())
    found = suggest("policy.yaml", [ONE])
    assert found.unverified is None
    apply_diff(as_text(found), tmp_path)
    assert path.read_bytes().decode() == after
    assert suggest("policy.yaml", [ONE]).already_allowed == 1
    path.write_bytes(before.encode())
    if apply_with_tools(as_text(found), tmp_path):
        assert path.read_bytes().decode() == after


@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_that_is_json_stays_json(indent: int | None, tmp_path: Path) -> None:
    config = {
        "version": 1,
        "policies": [
            {"name": "a", "subjects": [{"cidr": "10.0.0.0/8"}], "allow": ["a.test", "b.test"]},
            {"name": "b", "subjects": [{"user": "x"}], "deny": ["a.test"]},
        ],
    }
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(config, indent=indent))
    found = suggest(
        str(path), [ONE, line("new.test", user="x", client="::2"), line("c.test", client="::1")]
    )
    apply_diff(found.diff, Path("/"))
    assert json.loads(path.read_text()) == {
        "version": 1,
        "policies": [
            {
                "name": "a",
                "subjects": [{"cidr": "10.0.0.0/8"}],
                "allow": ["a.test", "b.test", {"host": "new.test", "ports": [8443]}],
            },
            {
                "name": "b",
                "subjects": [{"user": "x"}],
                "deny": ["a.test"],
                "allow": [{"host": "new.test", "ports": [443]}],
            },
            {
                "name": "client---1",
                "subjects": [{"cidr": "::1"}],
                "allow": [{"host": "c.test", "ports": [443]}],
            },
        ],
    }


def test_far_places_are_hunks_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    policies = "".join(
        f"  - name: p{number}\n    subjects: [{{user: u{number}}}]\n    allow: [a.test]\n"
        for number in range(9)
    )
    Path("f.yaml").write_text(f"version: 1\npolicies:\n{policies}")
    lines = [line("new.test", user=f"u{number}") for number in (0, 2, 4, 8)]
    found = suggest("f.yaml", lines)
    # What is 6 lines apart shares its context, what is 12 does not.
    assert found.diff.count("@@ -") == 2
    before = Path("f.yaml").read_text()
    apply_diff(found.diff, tmp_path)
    after = Path("f.yaml").read_text()
    assert suggest("f.yaml", lines).already_allowed == 4
    Path("f.yaml").write_text(before)
    if apply_with_tools(found.diff, tmp_path):
        assert Path("f.yaml").read_text() == after


@pytest.mark.parametrize("distance", range(1, 12))
@pytest.mark.parametrize("below", range(5))
def test_hunks_lie_where_they_say(
    distance: int, below: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither tool is helped by fuzz, or takes a hunk for one at the start or the end of the file."""
    monkeypatch.chdir(tmp_path)
    before = (
        "version: 1\npolicies:\n  - name: a\n    subjects: [{user: a}]\n    allow:\n      - a.test\n"
        + "# same\n" * distance
        + "  - {name: b, subjects: [{user: b}], allow: [a.test]}\n"
        + "# same\n" * below
    )
    Path("f.yaml").write_text(before)
    lines = [line("new.test", user=user) for user in "ab"]
    found = suggest("f.yaml", lines)
    assert found.diff.count("@@ -") == (1 if distance <= 6 else 2)
    apply_diff(found.diff, tmp_path)
    after = Path("f.yaml").read_text()
    Path("f.yaml").write_text(before)
    if apply_with_tools(found.diff, tmp_path):
        assert Path("f.yaml").read_text() == after
    assert suggest("f.yaml", lines).already_allowed == 2


@pytest.mark.parametrize("name", ["a b.yaml", 'a"b.yaml', "ü.yaml", "a\\b.yaml", "a\nb.yaml"])
def test_odd_file_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("version: 1\npolicies: [{name: a, allow: [a.test]}]\n")
    found = suggest(name, [ONE])
    assert found.diff
    assert not any(text.startswith("b.yaml") for text in as_text(found).splitlines())
    if not apply_with_tools(as_text(found), tmp_path):
        pytest.skip("neither patch nor git is installed")
    assert suggest(name, [ONE]).already_allowed == 1


def test_a_symbolic_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f.yaml").write_text("version: 1\npolicies: [{name: a, allow: [a.test]}]")
    (tmp_path / "link.yaml").symlink_to("real/f.yaml")
    monkeypatch.chdir(tmp_path)
    assert suggest("link.yaml", [ONE]).diff.startswith("--- real/f.yaml\n")
    monkeypatch.chdir("real")
    found = suggest("../link.yaml", [ONE])
    assert (found.diff.partition("\n")[0], found.apply_in) == ("--- f.yaml", str(tmp_path / "real"))
    monkeypatch.chdir("/")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = suggest("../link.yaml", [ONE])
    assert found.diff.startswith(f"--- {tmp_path}/real/f.yaml\n".replace("--- /", "--- "))
    assert "patch -p0 -d / < FILE" in as_text(found)


# What cannot be verified. -----------------------------------------------------------------------------------------


def test_a_wrong_edit_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the editor did, the text is only shown if it means the right thing."""
    path = tmp_path / "f.yaml"
    path.write_text(
        "version: 1\nmode: enforce\nsets: {s: [s.test]}\n"
        'policies:\n  - {name: a, subjects: [{user: u}], allow: [a.test, "@s"]}\n'
    )
    wrong: list[tuple[Callable[[str], str], str]] = [
        (lambda text: text.replace("new.test", "old.test"), "says something else"),
        (lambda text: text.replace("[8443]", "[8443, 22]"), "says something else"),
        (lambda text: text.replace("enforce", "audit"), "other policies"),
        (lambda text: text.replace("[a.test", "[b.test"), "policy a says something else"),
        (lambda text: text.replace("{user: u}", "{user: v}"), "policy a says something else"),
        (lambda text: text.replace('cidr: "10', 'user: x, cidr: "10'), "says something else"),
        (lambda text: text.replace("10.20.0.7", "10.20.0.8", 1), "other policies"),
        (lambda text: text.replace('"10.20.0.7"', '"10.20.0.0/24"'), "new policy"),
        (lambda text: text.replace("[s.test]", "[s.test, t.test]"), "changes sets"),
        (lambda text: text + "timeouts: {idle: 1s}\n", "more than policies"),
        (lambda text: text + "nonsense\n", "does not load"),
        (lambda text: text + "  - {name: z, allow: [z.test]}\n", "other policies"),
    ]
    right = Edited.text
    for mangle, why in wrong:

        def text(self: Edited, mangle: Callable[[str], str] = mangle) -> str:
            assert mangle(right(self)) != right(self)
            return mangle(right(self))

        monkeypatch.setattr(Edited, "text", text)
        found = suggest(str(path), [ONE])
        assert found.diff == ""
        assert found.unverified is not None
        assert why in found.unverified
        assert found.yaml == (
            'policies:\n  - name: client-10.20.0.7\n    subjects: [{cidr: "10.20.0.7"}]\n    allow:\n'
            f"      - {RULE}  # {COMMENT}\n"
        )
        shown = as_text(found)
        assert shown.startswith(found.yaml)
        assert "# There is no diff: " in shown


def test_a_place_where_nothing_stands() -> None:
    rule = NewRule("a.test", "why")
    text = "version: 1\npolicies:\n  - {name: a, allow: [a.test]}\n"
    with pytest.raises(EditError):
        edit(text, [(Place("f.yaml", 2, 1), (rule,))], [])
    with pytest.raises(EditError):
        edit("version: 1\n", [], [NewPolicy("a", {"user": "a"}, (rule,))])
    assert edit(text, [], []).text() == text


def test_a_key_over_two_lines_is_left_to_a_person(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text('version: 1\npolicies:\n  - name: a\n    ? "all\\\n      ow"\n    : [a.test]\n')
    found = suggest(str(path), [ONE])
    # Either it is edited rightly or not at all.
    if found.diff:
        apply_diff(found.diff, Path("/"))
        assert suggest(str(path), [ONE]).already_allowed == 1
    else:
        assert found.unverified is not None
