"""Configurations in any layout, and requests of any kind: exactly what was refused is let through, nothing is lost."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress_proxy.config.load import load
from egress_proxy.core.identity import Identity
from egress_proxy.core.names import Authority, parse_authority
from egress_proxy.core.policy import CompiledPolicy
from egress_proxy.history.needs import refusal
from egress_proxy.history.suggest import Suggestion, as_text, suggest
from tests.history.patching import allowed, apply_diff, apply_with_tools, line

HOSTS = ("a.test", "b.a.test", "c.test", "no", "1e3.test", "198.51.100.7", "10.9.9.9", "8.8.8.8")
PORTS = (80, 443, 8443)
ADDRESSES = (None, "8.8.4.4", "10.1.2.3", "10.66.0.1", "127.0.0.1")
IDENTITIES = (
    Identity("10.20.0.7"),
    Identity("10.20.0.8", user="u"),
    Identity("10.30.0.1", namespace="agents"),
    Identity("192.168.0.1", user="u", namespace="agents"),
    Identity("fd00::1"),
)
SUBJECTS = (
    None,
    "{cidr: 10.20.0.0/16}",
    "{user: u}",
    "{namespace: agents, user: u}",
    "{namespace: agents}",
    '{cidr: "fd00::/64"}',
)
RULES = {
    "allow": (
        "a.test",
        '"*.a.test"',
        "{host: c.test, ports: [8443]}",
        "{host: 'no', allow_private: [10.1.0.0/16]}",
        '"@s"',
        "{cidr: 8.8.8.0/24}",
        "{host: c.test,\n  ports: [443,   # inner\n  80]}",
    ),
    "deny": ("{host: b.a.test, ports: [80]}", "c.test", "{cidr: 10.66.0.0/16}"),
    "ask": ("1e3.test", '"*.test"'),
}


class Writer:
    """Writes YAML in a layout that hypothesis draws, with a comment wherever one may stand."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._numbers = itertools.count()

    def flag(self) -> bool:
        return self._draw(st.booleans())

    def comment(self) -> str:
        return f"  # keep-{next(self._numbers)}: [{{" if self._draw(st.integers(0, 3)) == 0 else ""

    def entries(self, values: list[str], indent: str) -> str:
        """The value of a key: a list in one of the layouts. Starts behind the colon, ends with a newline."""
        layout = self._draw(st.sampled_from(["dashes", "line", "lines", "mixed"]))
        values = [value.replace("\n", f"\n{indent}    ") for value in values]
        if layout == "dashes":
            inner = indent + self._draw(st.sampled_from(["", "  ", "    "]))
            dash = self._draw(st.sampled_from(["- ", "-   "]))
            lines = [f"{inner}{dash}{value}{self.comment()}\n" for value in values]
            if self.flag():
                lines.insert(self._draw(st.integers(0, len(lines))), f"\n{inner}{self.comment()}\n")
            return f"{self.comment()}\n" + "".join(lines)
        comma = "," if self.flag() else ""
        if layout == "line":
            space = " " if self.flag() else ""
            return f" [{space}{', '.join(values)}{space}{comma}]{self.comment()}\n"
        if layout == "mixed":
            between = f",{self.comment()}\n{indent}    "
            return f" [{between.join(values)}{comma} ]{self.comment()}\n"
        lines = [f"{indent}  {value},{self.comment()}\n" for value in values[:-1]]
        last = f"{indent}  {values[-1]}{comma}{self.comment()}\n"
        return f" [{self.comment()}\n{''.join(lines)}{last}{indent}]{self.comment()}\n"

    def policy(self, name: str) -> tuple[list[tuple[str, list[str]]], str]:
        keys: list[tuple[str, list[str]]] = []
        subjects = self._draw(
            st.lists(st.sampled_from(SUBJECTS), max_size=2, unique=True).map(
                lambda found: [] if None in found else found
            )
        )
        if subjects:
            keys.append(("subjects", [subject for subject in subjects if subject]))
        actions = self._draw(st.lists(st.sampled_from(list(RULES)), min_size=1, unique=True))
        for action in actions:
            rules = st.lists(st.sampled_from(RULES[action]), min_size=1, max_size=3, unique=True)
            keys.append((action, self._draw(rules)))
        return self._draw(st.permutations(keys)), name

    def policies(self, names: list[str]) -> str:
        policies = [self.policy(name) for name in names]
        if self.flag():
            inner = "" if self.flag() else "  "
            dash = "-" + " " * self._draw(st.integers(1, 3))
            return f"policies:{self.comment()}\n" + "".join(
                self._policy(keys, name, inner, dash) for keys, name in policies
            )
        braces = [self._braces(keys, name) for keys, name in policies]
        return f"policies:{self.entries(braces, '')}"

    def _policy(self, keys: list[tuple[str, list[str]]], name: str, inner: str, dash: str) -> str:
        if self.flag():
            text = self._braces(keys, name).replace("\n", f"\n{inner}    ")
            return f"{inner}{dash}{text}{self.comment()}\n"
        indent = inner + " " * len(dash)
        parts = [f"name: {name}{self.comment()}\n"]
        parts += [f"{key}:{self.entries(values, indent)}" for key, values in keys]
        if self.flag():
            parts.append(f"{self.comment().lstrip()}\n")
        return (
            f"{inner}{dash}" + indent.join(parts[:1]) + "".join(indent + part for part in parts[1:])
        )

    def _braces(self, keys: list[tuple[str, list[str]]], name: str) -> str:
        parts = [f"name: {name}", *(f"{key}: [{', '.join(values)}]" for key, values in keys)]
        return (
            "{" + f",{self.comment()}\n  ".join(parts) + "}"
            if self.flag()
            else "{" + ", ".join(parts) + "}"
        )

    def files(self) -> dict[str, str]:
        names = [f"p{number}" for number in range(self._draw(st.integers(1, 4)))]
        split = self._draw(st.integers(0, len(names)))
        main, more = names[:split], names[split:]
        parts = [f"version: 1{self.comment()}\n", "sets: {s: [c.test, '*.s.test']}\n"]
        files = {}
        if more:
            parts.append(f"include: [more.yaml]{self.comment()}\n")
            files["more.yaml"] = f"version: 1\n{self.policies(more)}"
        if main:
            parts.append(self.policies(main))
        tail = self._draw(st.permutations(parts[1:]))
        files["main.yaml"] = parts[0] + "".join(tail)
        for name, text in files.items():
            end = self._draw(st.sampled_from(["\n", "\r\n"]))
            files[name] = (text.rstrip("\n") if self.flag() else text).replace("\n", end)
        return files


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, str]:
    return Writer(draw).files()


requests = st.lists(
    st.tuples(
        st.sampled_from(IDENTITIES),
        st.sampled_from(HOSTS),
        st.sampled_from(PORTS),
        st.sampled_from(ADDRESSES),
    ),
    max_size=12,
)


def destination(host: str, port: int) -> Authority:
    return parse_authority(f"{host}:{port}".encode(), None)


def decided(
    policy: CompiledPolicy, who: Identity, host: str, port: int, address: str | None
) -> str | None:
    known = () if address is None else (address,)
    denial = refusal(policy, who, destination(host, port), known)[1]
    return None if denial is None else denial.name


def as_line(policy: CompiledPolicy, request: tuple[Identity, str, int, str | None]) -> str:
    who, host, port, address = request
    reason = decided(policy, *request)
    names: dict[str, Any] = {"user": who.user, "namespace": who.namespace, "address": address}
    if reason is None:
        return allowed(host, port, who.client, **names)
    event = "DENIED" if address is None else "WOULD_DENY"
    return line(host, port, who.client, event=event, reason=reason, **names)


LIFTED = {
    "host_not_allowed",
    "port_not_allowed",
    "address_not_allowed",
    "destination_ip_prohibited",
}


# Each example reads and writes files and may run two processes.
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configurations(), requests, st.integers(0, 7))
def test_any_layout(
    files: dict[str, str],
    asked: list[tuple[Identity, str, int, str | None]],
    tools: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(os.path.realpath(folder))
        for name, text in files.items():
            (root / name).write_bytes(text.encode())
        main = str(root / "main.yaml")
        before = load(main).config.policy
        found = suggest(main, [as_line(before, request) for request in asked])
        assert found.unverified is None, found.unverified
        shown = as_text(found)
        apply_diff(shown, Path("/"))
        after = {name: (root / name).read_bytes().decode() for name in files}
        if found.diff and tools < 2 and shutil.which("patch"):
            for name, text in files.items():
                (root / name).write_bytes(text.encode())
            apply_with_tools(shown, Path("/"))
            assert after == {name: (root / name).read_bytes().decode() for name in files}
        for name, text in files.items():
            _assert_nothing_is_lost(text, after[name])
        _assert_exactly_these(before, load(main).config.policy, asked, found)
        # What was lifted needs nothing more.
        again = suggest(main, [as_line(before, request) for request in asked])
        assert (again.diff, again.lifted) == ("", 0)
        assert again.already_allowed == found.already_allowed + found.lifted


def _assert_nothing_is_lost(before: str, after: str) -> None:
    """The old text is what remains when something is taken out of the new one."""
    rest = iter(after)
    assert all(character in rest for character in before)
    for text in before.splitlines():
        if "# keep-" in text:
            assert text[text.index("# keep-") :] in after.splitlines() or any(
                new.endswith(text[text.index("# keep-") :]) for new in after.splitlines()
            )


def _lives_at(policy: CompiledPolicy, host: str, address: str | None) -> bool:
    """Whether a rule for a host opens an address, other than the machine's own."""
    if address is None or address == "127.0.0.1":
        return False
    named = policy.naming(destination(host, 443).host)
    return any(
        ip_address(address) in network for _, rule in named for network in rule.allow_private
    )


def _assert_exactly_these(
    before: CompiledPolicy,
    after: CompiledPolicy,
    asked: list[tuple[Identity, str, int, str | None]],
    found: Suggestion,
) -> None:
    changed = {addition.policy for addition in found.additions}
    numbers = {number for number, policy in enumerate(after.policies) if policy.name in changed}
    lifted = set()
    for request in asked:
        was, now = decided(before, *request), decided(after, *request)
        host, address = request[1], request[3]
        if was in LIFTED and address != "127.0.0.1" and "10.66.0.1" not in (host, address):
            assert now is None, request
        if was is not None and now is None:
            lifted.add(request[1:])
    opened = {(host, port) for host, port, _ in lifted}
    for request in itertools.product(IDENTITIES, HOSTS, PORTS, ADDRESSES):
        was, now = decided(before, *request), decided(after, *request)
        if was == now:
            continue
        who, host, port, address = request
        if now is None:
            # Only what was asked for, from addresses that were asked for, and only for whom the policy is.
            assert (host, port) in opened
            is_address = destination(host, port).host.address is not None
            asked_for = is_address or address in (None, "8.8.4.4")
            asked_for = asked_for or (host, port, address) in lifted
            # Or where the host lives, as the rule says that nearly let it through.
            assert asked_for or ((host, port, None) in lifted and _lives_at(before, host, address))
            assert numbers & after.applicable(who)
        else:
            # Refused as before, for the next reason.
            assert was in LIFTED
            assert now in LIFTED
