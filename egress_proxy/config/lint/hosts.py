"""Warnings about hosts: those that cannot exist, that look like others, or that name more than their writer meant."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache
from typing import Final

from egress_proxy.config.errors import Code, Report
from egress_proxy.config.lint.lookalikes import is_valid, likeness
from egress_proxy.config.lint.suffixes import Suffixes
from egress_proxy.core.names import MAX_NAME_LENGTH
from egress_proxy.core.policy import Action, HostPattern, HostSet, Place, Rule

#: Top-level domains that are not the internet's: RFC 6761, RFC 6762, and what ICANN keeps for such use. `example` is
#: for documentation, and who writes it knows.
_OWN: Final = frozenset(
    ("example", "home", "internal", "lan", "local", "localdomain", "localhost", "test")
)
#: Top-level domains in which DNS has no name: RFC 6761, RFC 7686, RFC 9476.
_NEVER: Final = {
    "alt": "is for names outside of DNS",
    "invalid": "has no names",
    "onion": "is Tor's, and not in DNS",
}
#: Where next to all hosts are. A host in one of these is looked at without the list of suffixes.
_COMMON: Final = frozenset(
    (
        *("ai", "app", "at", "au", "be", "biz", "br", "ca", "ch", "cloud", "cn", "co", "com", "cz"),
        *("de", "dev", "dk", "edu", "es", "eu", "fi", "fr", "gov", "ie", "in", "info", "int", "io"),
        *("it", "jp", "kr", "me", "mil", "net", "nl", "no", "nz", "org", "pl", "pt", "ro", "ru"),
        *("se", "sh", "tv", "tw", "ua", "uk", "us", "xyz"),
    )
)
#: The ones that a slip of the finger is likely to have been meant for.
_LIKELY: Final = ("com", "net", "org", "io", "dev", "gov", "edu", "info")

_ODD_HYPHEN: Final = re.compile(r"(?:^|\.)(?:-|xn--)|-(?:\.|$)")


class HostLint:
    """Looks at hosts one by one. What next to all of them are is told apart at once."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._suffixes = Suffixes()

    def check(self, pattern: HostPattern, rule: Rule) -> None:
        """Look at the host of a rule."""
        name = pattern.name
        if (
            pattern.wildcard
            or name[name.rfind(".") + 1 :] not in _COMMON
            or ("-" in name and _ODD_HYPHEN.search(name))
        ):
            if rule.action is Action.DENY:
                self._check_denied(pattern, rule.place)
            else:
                private = bool(rule.allow_private)
                self._check(pattern, rule.place, rule.action, private=private)

    def check_set(self, hosts: HostSet, rules: list[Rule]) -> None:
        """Look at the hosts of a set, once for all rules that use it."""
        actions = {rule.action for rule in rules}
        if actions == {Action.DENY}:
            # Lists of what is bad hold much that is gone or never was.
            return
        action = Action.ALLOW if Action.ALLOW in actions else Action.ASK
        private = any(rule.allow_private for rule in rules)
        for text, place in hosts.patterns.items():
            wildcard = text[0] == "*"
            if (
                wildcard
                or text[text.rfind(".") + 1 :] not in _COMMON
                or ("-" in text and _ODD_HYPHEN.search(text))
            ):
                pattern = HostPattern(text[2:] if wildcard else text, wildcard)
                self._check(pattern, place, action, private=private)

    def _check(self, pattern: HostPattern, place: Place, action: Action, *, private: bool) -> None:
        name, warning = pattern.name, self._report.warning
        if not name:
            if action is Action.ALLOW:
                what = "`*` allows every host on the internet, so whatever can leave will leave"
                warning(Code.WIDE_RULE, place, what, "write the hosts that are needed")
            else:
                what = (
                    "`*` asks a human about every host on the internet, what other rules allow too"
                )
                warning(Code.WIDE_RULE, place, what, "write the hosts that are worth a question")
            return
        impossible = self._why_impossible(pattern, private=private)
        if impossible is not None:
            warning(Code.IMPOSSIBLE_HOST, place, *impossible)
            return
        if "xn--" in name and (looks := likeness(name)) is not None:
            what = f"`{pattern}` {looks}"
            warning(Code.LOOKALIKE_HOST, place, what, "make sure of where the name came from")
        if pattern.wildcard and not private and name.rpartition(".")[2] not in _OWN:
            self._check_suffix(pattern, place, action)

    def _why_impossible(self, pattern: HostPattern, *, private: bool) -> tuple[str, str] | None:
        """What is wrong with a host that no client can ever reach, and what to write instead."""
        name = pattern.name
        for label in name.split(".") if "-" in name else ():
            if label[0] == "-" or label[-1] == "-":
                end = "starts" if label[0] == "-" else "ends"
                what = f"`{pattern}` has a label that {end} with a hyphen, as no host's name does"
                return what, "write the host's real name"
            if label.startswith("xn--") and not is_valid(label):
                what = f"`{pattern}` has a label `{label}` that is not valid (IDNA 2008)"
                return what, "write the name in its own letters"
        if pattern.wildcard and len(name) > MAX_NAME_LENGTH - 2:
            what = f"below `{name}` is no room for a name, for {MAX_NAME_LENGTH} characters are the most"
            return what, "remove it"
        if private:
            return None
        top_level = name.rpartition(".")[2]
        if top_level in _NEVER:
            return f"`{pattern}` cannot be reached: `{top_level}` {_NEVER[top_level]}", "remove it"
        if top_level in _OWN and (pattern.wildcard or top_level != name):
            return None
        if "." not in name and not pattern.wildcard:
            what = f"`{pattern}` is one label, and no search domain is ever added to it"
            instead = "write its full name, and `allow_private` with the networks that it lives in"
            return what, instead
        if not self._suffixes.is_top_level(top_level):
            what = (
                f"`{pattern}` is not on the internet, which has no top-level domain `{top_level}`"
            )
            meant = _meant(pattern)
            instead = "write its full name, or `allow_private` with the networks that it lives in"
            return what, f"did you mean {meant}?" if meant else instead
        return None

    def _check_denied(self, pattern: HostPattern, place: Place) -> None:
        """To deny what cannot be harms nobody; but a slip of the finger denies nothing."""
        top_level = pattern.name.rpartition(".")[2]
        if (meant := _meant(pattern)) and not self._suffixes.is_top_level(top_level):
            what = f"`{pattern}` denies nothing: the internet has no top-level domain `{top_level}`"
            self._report.warning(Code.IMPOSSIBLE_HOST, place, what, f"did you mean {meant}?")

    def _check_suffix(self, pattern: HostPattern, place: Place, action: Action) -> None:
        name, warning = pattern.name, self._report.warning
        verb = "allows" if action is Action.ALLOW else "asks a human about"
        if self._suffixes.is_public(name):
            below = "a whole top-level domain" if "." not in name else f"the public suffix `{name}`"
            what = f"`{pattern}` {verb} every name below {below}"
            warning(Code.PUBLIC_SUFFIX, place, what, "write the domains that are needed")
            return
        # To ask is what such names are best for: a human sees each of them.
        shared = self._suffixes.shared(name) if action is Action.ALLOW else None
        if shared is not None:
            below = f"every name below `{name}`"
            if shared != name:
                below = f"the names below `{shared}` too"
            what = f"`{pattern}` allows {below}, where anyone can have one"
            instead = "write the hosts that are needed, or move it to `ask`"
            warning(Code.SHARED_SUFFIX, place, what, instead)


def _meant(pattern: HostPattern) -> str | None:
    """The host that may have been meant by one without a real top-level domain."""
    rest, dot, top_level = pattern.name.rpartition(".")
    likely = _likely(top_level) if dot else None
    if likely is None:
        return None
    meant = str(HostPattern(f"{rest}.{likely}", pattern.wildcard))
    return f'"{meant}"' if pattern.wildcard else meant


@lru_cache(maxsize=128)
def _likely(top_level: str) -> str | None:
    return next(iter(get_close_matches(top_level, _LIKELY, n=1, cutoff=0.66)), None)
