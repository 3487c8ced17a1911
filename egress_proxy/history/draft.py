"""The configuration with rules added: its files are edited, loaded again and compared before anybody sees them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import msgspec

from egress_proxy.config.errors import ConfigError, Problem
from egress_proxy.config.load import Loaded, load
from egress_proxy.config.sources import Sources
from egress_proxy.core.policy import CompiledPolicy, HostSet, Place, Policy
from egress_proxy.history.diff import names, unified_diff
from egress_proxy.history.edit import Edited, EditError, NewPolicy, NewRule, block, edit, flow
from egress_proxy.history.needs import Home, WantedRule, Wish, refusal, rule_key
from egress_proxy.history.tally import count, one_line


class Snapshot(Sources):
    """Keeps what was read, so that what is edited and checked is what was decided by."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}

    def read(self, path: str, *, secret: bool = False) -> bytes:
        data = self.files[path] = super().read(path, secret=secret)
        return data


class _Edits(Sources):
    """The same files, some with another text."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self._files = files

    def read(self, path: str, *, secret: bool = False) -> bytes:
        data = self._files.get(path)
        if data is None or secret:
            return super().read(path, secret=secret)
        self.take(data)
        return data


# Editing and checking ---------------------------------------------------------------------------------------------


class Draft(msgspec.Struct, frozen=True):
    diff: str = ""
    apply_in: str = ""
    unverified: str | None = None
    warnings: tuple[str, ...] = ()
    policy: CompiledPolicy | None = None
    """As edited, once it is verified."""


def draft(
    config_path: str, loaded: Loaded, sources: Snapshot, homes: list[Home], lifted: list[Wish]
) -> Draft:
    """Edit the files and load them again."""
    try:
        edits = _edit_files(loaded, sources, homes)
        files = {path: edited.text().encode() for path, edited in edits.items()}
        after = load(config_path, _Edits({**sources.files, **files}))
    except EditError as error:
        return Draft(unverified=str(error))
    except ConfigError as error:
        return Draft(unverified=f"the edited text does not load: {error.problems[0]}")
    problem = _difference(loaded, after, homes)
    if problem is None:
        policy = after.config.policy
        for wish in lifted:
            about = (wish.identity, wish.destination, wish.addresses, wish.asked)
            if refusal(policy, *about)[1] is not None:
                problem = f"{wish.destination} would still be refused for {wish.identity}"
                break
    if problem is not None:
        return Draft(unverified=problem)
    shown, root = names(list(edits))
    return Draft(
        diff="".join(unified_diff(edited, shown[path]) for path, edited in edits.items()),
        apply_in=root,
        warnings=_new_warnings(loaded.warnings, after.warnings),
        policy=after.config.policy,
    )


def _edit_files(loaded: Loaded, sources: Snapshot, homes: list[Home]) -> dict[str, Edited]:
    """Each file that gets rules, edited."""
    additions: dict[str, list[tuple[Place, tuple[NewRule, ...]]]] = {}
    new: dict[str, list[NewPolicy]] = {}
    # Policies of the file that everything starts from come first, if it has any.
    first = loaded.config.policy.policies[0].place.file
    for home in homes:
        if home.policy is not None:
            place = home.policy.place
            additions.setdefault(place.file, []).append((place, _new_rules(home)))
        else:
            new.setdefault(first, []).append(_new_policy(home))
    return {
        path: edit(sources.files[path].decode(), additions.get(path, []), new.get(path, []))
        for path in dict.fromkeys([*additions, *new])
    }


def _new_rules(home: Home) -> tuple[NewRule, ...]:
    return tuple(
        NewRule(value, _comment(wanted)) for wanted in home.rules for value in wanted.values
    )


def _new_policy(home: Home) -> NewPolicy:
    assert home.subject is not None  # noqa: S101 - what is no policy's is somebody's
    return NewPolicy(home.name, home.subject.yaml, _new_rules(home))


def _comment(wanted: WantedRule) -> str:
    (busiest, _), *others = wanted.clients.most_common()
    text = f"{count(wanted.tally.requests, 'request')} from {busiest}"
    if others:
        text += f" and {count(len(others), 'other client')}"
    return f"{text}, last {wanted.tally.last}" if wanted.tally.last else text


def _difference(before: Loaded, after: Loaded, homes: list[Home]) -> str | None:
    """What else would change than was meant to; None where nothing would."""
    old, new = before.config, after.config
    if replace(new, policy=old.policy, digest=old.digest, sources=old.sources) != old:
        return "the edited text changes more than policies"
    if new.policy.upstream != old.policy.upstream:
        return "the edited text changes the parent proxy"
    wanted = {home.name: home for home in homes}
    found = {policy.name: policy for policy in new.policy.policies}
    known = {policy.name for policy in old.policy.policies}
    if new.policy.mode is not old.policy.mode or found.keys() != known | wanted.keys():
        return "the edited text has other policies than it should"
    for policy in old.policy.policies:
        added = [key for rule in _rules_of(wanted.get(policy.name)) for key in rule.rules()]
        if _meaning(policy, added) != _meaning(found[policy.name]):
            return f"the edited policy {policy.name} says something else than it should"
    for home in homes:
        if home.policy is None and not _is_new(found[home.name], home):
            return f"the new policy {home.name} says something else than it should"
    sets = _sets(old.policy), _sets(new.policy)
    return None if sets[0] == sets[1] else "the edited text changes sets"


def _rules_of(home: Home | None) -> list[WantedRule]:
    return [] if home is None else home.rules


def _meaning(policy: Policy, more: Iterable[tuple[object, ...]] = ()) -> tuple[object, ...]:
    """All that a policy says, its places aside."""
    subjects = policy.subjects
    if subjects is not None:
        nowhere = Place("", 0, 0)
        subjects = tuple(replace(subject, place=nowhere) for subject in subjects)
    return subjects, Counter([*map(rule_key, policy.rules), *more])


def _is_new(policy: Policy, home: Home) -> bool:
    subjects = policy.subjects or ()
    rules = Counter(key for wanted in home.rules for key in wanted.rules())
    return (
        len(subjects) == 1
        and subjects[0].pod_labels == ()
        and home.subject is not None
        and home.subject.is_that_of(subjects[0])
        and Counter(map(rule_key, policy.rules)) == rules
    )


def _sets(policy: CompiledPolicy) -> dict[str, frozenset[str]]:
    return {
        rule.target.name: frozenset(rule.target.patterns)
        for found in policy.policies
        for rule in found.rules
        if isinstance(rule.target, HostSet)
    }


_LINE: Final = re.compile(r"\bline [0-9]+|:[0-9]+")


def _new_warnings(before: tuple[Problem, ...], after: tuple[Problem, ...]) -> tuple[str, ...]:
    """What is said of the edited text alone. Lines have moved, and a message may name one."""

    def words(problem: Problem) -> tuple[str, ...]:
        return problem.code, problem.place.file, _LINE.sub("", problem.what)

    known = Counter(map(words, before))
    found: list[str] = []
    for problem in after:
        if known[words(problem)]:
            known[words(problem)] -= 1
        else:
            found.append(str(problem))
    return tuple(found)


def as_yaml(homes: list[Home]) -> str:
    """The additions, for a person who puts them in their places."""
    parts = ["policies:\n"]
    for home in homes:
        if home.policy is None:
            lines = block(_new_policy(home))
        else:
            name = f"- name: {flow(home.name)}  # the policy at {one_line(str(home.policy.place))}"
            rules = (f"    - {flow(rule.value)}  # {rule.comment}" for rule in _new_rules(home))
            lines = [name, "  allow:", *rules]
        parts += (f"  {line}\n" for line in lines)
    return "".join(parts)
