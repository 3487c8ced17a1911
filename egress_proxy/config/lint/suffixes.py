"""Under which domains anyone can have a name: the Public Suffix List, as its package carries it.

Read from the package's data file when it is first asked, in some 10 ms, and gone with the object: the list is needed
while a configuration is checked and never by a server that runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from importlib.resources import files
from typing import Final

import idna

from egress_proxy.core.policy import parents

#: Not on the list, because it is about cookies and certificates; anyone can have a name there all the same.
_SHARED_BESIDES: Final = (
    "atlassian.net",
    "bc.googleusercontent.com",  # virtual machines of Google Cloud
    "cloudapp.azure.com",  # those of Azure
    "firebaseio.com",
    "loca.lt",
    "nip.io",  # every IPv4 address has a name below this one and below sslip.io
    "sharepoint.com",
    "sslip.io",
    "storage.googleapis.com",
    "wordpress.com",
)

#: Labels that a shared suffix may lie below a domain to be told with it. Further down are their owners' test beds.
_DEPTH: Final = 3


class Suffixes:
    """The list's two sections: what registries hand out, and what the owner of a domain hands out below it."""

    @cached_property
    def _sections(self) -> tuple[frozenset[str], frozenset[str]]:
        data = files("publicsuffixlist").joinpath("public_suffix_list.dat")
        registries, _, owners = data.read_text(encoding="utf-8").partition(
            "===END ICANN DOMAINS==="
        )
        return frozenset(_rules(registries)), frozenset((*_rules(owners), *_SHARED_BESIDES))

    @cached_property
    def _below(self) -> dict[str, str]:
        """Each name that has shared suffixes below it, with the shortest of them."""
        found: dict[str, str] = {}
        names = {rule.lstrip("*!").lstrip(".") for rule in self._sections[1]}
        for name in sorted(names, key=lambda name: (len(name), name)):
            for _, parent in zip(range(_DEPTH), parents(name), strict=False):
                found.setdefault(parent, name)
        return found

    @cached_property
    def _top_levels(self) -> frozenset[str]:
        return frozenset(rule.rpartition(".")[2] for rule in self._sections[0])

    def is_top_level(self, label: str) -> bool:
        """Whether the internet has this top-level domain."""
        return _unicode(label) in self._top_levels

    def is_public(self, name: str) -> bool:
        """Whether a registry hands out the names right below this one: ``com``, ``co.uk``."""
        name = _unicode(name)
        return "." not in name or _is_suffix(name, self._sections[0])

    def shared(self, name: str) -> str | None:
        """The suffix, this name or one below it, under which its owner hands out names to others.

        One entry below a domain is enough: the list takes them from the domain's owner alone, so that other people's
        entries never stand below ``google.com``; and where there is a single one, such as ``up.railway.app``, it is
        the way by which everything can leave.
        """
        name = _unicode(name)
        found = name if _is_suffix(name, self._sections[1]) else self._below.get(name)
        return None if found is None else found.encode("idna").decode("ascii")


def _rules(section: str) -> Iterator[str]:
    for line in section.split("\n"):
        if line and not line.startswith("//"):
            yield line.strip()


def _is_suffix(name: str, rules: frozenset[str]) -> bool:
    # The list's own algorithm, for a name as a whole. What has a wildcard below it is a suffix too.
    if f"!{name}" in rules:
        return False
    return name in rules or f"*.{name}" in rules or f"*.{name.partition('.')[2]}" in rules


def _unicode(name: str) -> str:
    """The name as the list writes it."""
    if "xn--" not in name:
        return name
    try:
        return idna.decode(name)
    except UnicodeError:
        return name
