"""``squid.conf`` as our configuration.

Squid tries its ``http_access`` lines in order, and the first whose acls all match decides. What they decide is worked
out by :mod:`egress_proxy.migrate.squid_decisions` and made free of order by :mod:`egress_proxy.migrate.order_free`.
Here is what comes before and after: the lines, and the notes. :mod:`egress_proxy.migrate.squid_policies` writes it.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Final

from egress_proxy.core.networks import IPNetwork, lies_within
from egress_proxy.core.special_use import SPECIAL_USE
from egress_proxy.migrate.order_free import order_free
from egress_proxy.migrate.ordered import Draft
from egress_proxy.migrate.squid_acls import Acl, Literal, built_in, cut_nested, why_unknown
from egress_proxy.migrate.squid_decisions import GATES, Decisions, Rule
from egress_proxy.migrate.squid_lines import Directive, Files, FindFiles, ReadFile, directives
from egress_proxy.migrate.squid_losses import (
    doubt_notes,
    loss_notes,
    nothing_note,
    useless_notes,
)
from egress_proxy.migrate.squid_policies import written
from egress_proxy.migrate.squid_values import define
from egress_proxy.migrate.writing import (
    Imported,
    MigrationError,
    Note,
    nothing_allowed,
    shown,
    write,
)

#: Directives that change what passes, or where it goes, and that are not carried over.
_NOTED: Final = {
    "cache_peer": "destinations are reached directly; write a parent proxy as `upstream`",
    "cache_peer_access": "destinations are reached directly; write a parent proxy as `upstream`",
    "never_direct": "destinations are reached directly; write a parent proxy as `upstream`",
    "append_domain": "names are absolute here; clients must write them in full",
    "follow_x_forwarded_for": "the client's address is that of its connection",
    "url_rewrite_program": "URLs are not rewritten or refused by a helper",
    "url_rewrite_access": "URLs are not rewritten or refused by a helper",
    "redirector_access": "URLs are not rewritten or refused by a helper",
    "redirect_program": "URLs are not rewritten or refused by a helper",
    "icap_service": "nothing is handed to a content filter",
    "ecap_service": "nothing is handed to a content filter",
    "ssl_bump": "TLS is never opened; a tunnel must start with TLS to the host that was asked for",
    "reply_body_max_size": "the size of responses is not limited",
    "request_body_max_size": "the size of requests is not limited",
    "delay_access": "bandwidth is not limited; see `limits`",
    "client_delay_access": "bandwidth is not limited; see `limits`",
    "icp_access": "other caches are not answered",
    "htcp_access": "other caches are not answered",
    "htcp_clr_access": "other caches are not answered",
    "snmp_access": "SNMP is not spoken; see the metrics",
    "adaptation_access": "nothing is handed to a content filter",
    "reply_header_access": "headers of responses are not removed",
    "request_header_access": "headers of requests are not removed",
    "request_header_add": "headers are not added to requests",
    "request_header_replace": "headers of requests are not replaced",
    "tcp_outgoing_address": "write the address as `dial.source_addresses`, which is for all clients",
    "deny_info": "the answer to a denied request is ours",
}

#: Squid's further name of a list; the lines of both are one list, in the order of the file.
_OLD_NAMES: Final = {"http_access2": "adapted_http_access"}
_NOT_KNOWN: Final = "not known; if it denies something, that is not carried over"

_INTERCEPTING: Final = frozenset(("intercept", "transparent", "tproxy", "accel"))

#: What a squid.conf has at least one of.
_SIGNS: Final = frozenset((*GATES, *_OLD_NAMES, "acl", "http_port", "https_port", "cache_peer"))

_OWN_DOMAINS: Final = frozenset(
    ("corp", "home", "internal", "intranet", "lan", "local", "localdomain", "localhost", "test")
)

SPECIAL_USE_WHY: Final = (
    "destinations with private, loopback or other special-use addresses are denied here, unless a rule with their host "
    "has `allow_private: [CIDR]`"
)
MIXED_WHY: Final = (
    "Squid denies a name if any of its addresses is in this network; here those addresses are never dialled, and a "
    "name is denied if it has no other"
)


def find_files(pattern: str) -> Sequence[str]:
    """The files of an ``include``, in the order of their names, as Squid takes them."""
    return sorted(glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute, which Path.glob does not take


def import_squid(
    path: str, text: str, read_file: ReadFile, find: FindFiles = find_files
) -> Imported:
    """Turn the text of a squid.conf into our configuration.

    ``path`` is the name that notes show, and its folder the one that relative names start from. ``read_file`` gets the
    files that the text names, and raises OSError, ValueError or MigrationError.

    Raises MigrationError for a text that is no squid.conf, or that Squid would not start with.
    """
    if "\0" in text:
        raise MigrationError(f"{path}: this is not a text file")
    files = Files(read_file, find, str(PurePosixPath(path).parent))
    importer = _Importer(path)
    for line in directives(path, text, files):
        importer.take(line, files)
    return importer.finish()


class _Importer:
    def __init__(self, path: str) -> None:
        self.path = path
        self.acls = built_in()
        self.rules: dict[str, list[Rule]] = {gate: [] for gate in GATES}
        self.notes: dict[Note, None] = {}
        self.order: dict[tuple[str, int], int] = {}
        self.recognised = False

    # Reading ----------------------------------------------------------------------------------------------------

    def take(self, line: Directive, files: Files) -> None:
        self.order.setdefault((line.file, line.line), len(self.order))
        self.recognised = self.recognised or line.name in _SIGNS
        gate = _OLD_NAMES.get(line.name, line.name)
        if line.name == "acl":
            define(self.acls, line, files)
        elif gate in self.rules:
            self._take_rule(gate, line)
        elif line.name in _NOTED:
            self.notes[line.note(_NOTED[line.name])] = None
        elif line.name in ("http_port", "https_port") and _INTERCEPTING & set(line.words):
            why = "clients must be told of the proxy; what a router diverts to it is not taken"
            self.notes[line.note(why)] = None
        elif line.name == "configuration_includes_quoted_values" and line.words[:1] == ("on",):
            raise MigrationError(
                f"{line.file}:{line.line}: `{line}` gives quotes another meaning, which cannot be imported; "
                "write the file without it"
            )
        elif _may_deny(line.name):
            self.notes[line.note(_NOT_KNOWN)] = None

    def _take_rule(self, gate: str, line: Directive) -> None:
        if line.words[:1] not in (("allow",), ("deny",)):
            raise MigrationError(
                f"{line.file}:{line.line}: `{line}` says neither `allow` nor `deny`"
            )
        if len(line.words) == 1:
            self.notes[line.note("it names no acl, so Squid skips it")] = None
            return
        literals = tuple(Literal.read(word) for word in line.words[1:])
        self.rules[gate].append(Rule(gate, line.words[0] == "allow", literals, line))

    # Deciding ---------------------------------------------------------------------------------------------------

    def finish(self) -> Imported:
        if not self.recognised:
            raise MigrationError(
                f"{self.path}: no `acl`, `http_access` or `http_port` line: this is no squid.conf"
            )
        numbered = [rule for gate in GATES for rule in self.rules[gate]]
        used = self._used(numbered)
        cut_nested(used)
        for acl in used.values():
            acl.sort()
        decisions = Decisions(self.rules, numbered, used)
        drafts, losses = order_free(decisions.ordered())
        for acl in used.values():
            self.notes |= dict.fromkeys(acl.notes)
        for rule in numbered:
            self._note_unknown(rule, used)
        self.notes |= dict.fromkeys(decisions.notes())
        self.notes |= dict.fromkeys(loss_notes(decisions, losses))
        self.notes |= dict.fromkeys(doubt_notes(decisions))
        noted = {(note.file, note.line) for note in self.notes}
        self.notes |= dict.fromkeys(useless_notes(decisions, noted))
        self.notes |= dict.fromkeys(_private_note(decisions, drafts))
        policies, sets = written(decisions, drafts)
        if not policies:
            policies = [nothing_allowed(_why_nothing(self.rules["http_access"]))]
        notes = tuple(
            sorted(self.notes, key=lambda note: self.order.get((note.file, note.line), 0))
        )
        last = nothing_note(self.path, decisions, drafts)
        if last is not None:
            notes = (*notes, last)
        return Imported(write(policies, _heading(self.path), notes, sets=sets), notes)

    def _used(self, rules: Iterable[Rule]) -> dict[str, Acl]:
        """The acls that the rules name, and those that these name."""
        found: dict[str, Acl] = {}
        waiting = [literal.name for rule in rules for literal in rule.literals]
        while waiting:
            name = waiting.pop(0)
            if name not in found:
                acl = self.acls.get(name)
                if acl is None:
                    acl = Acl(name, "", unknown=True)
                found[name] = acl
                waiting += [literal.name for line in acl.lines for literal in line]
        return found

    def _note_unknown(self, rule: Rule, acls: dict[str, Acl]) -> None:
        effect = (
            "only what surely matches is allowed" if rule.allow else "all that may match is denied"
        )
        if rule.line.uncertain:
            why = "it stands behind a condition that depends on the running Squid"
            self.notes[rule.line.note(f"{why}; {effect}")] = None
        for literal in _inside(rule.literals, acls):
            acl = acls[literal.name]
            if acl.name == "manager" and not acl.unknown:
                why = (
                    "the cache manager is Squid's own, and nothing here is denied or allowed for it"
                )
                self.notes[rule.line.note(why)] = None
            elif not acl.kind:
                why = f"acl `{shown(literal.name)}` is defined nowhere; {effect}"
                self.notes[rule.line.note(why)] = None
            elif acl.incomplete:
                self.notes[rule.line.note(f"{why_unknown(acl)}; {effect}")] = None
            elif acl.kind == "dst" and not acl.no_lookup:
                self._note_dst(rule, literal)

    def _note_dst(self, rule: Rule, literal: Literal) -> None:
        # Inside of an acl of acls it closes no addresses.
        if not rule.allow and not literal.negated and literal in rule.literals:
            self.notes[rule.line.note(MIXED_WHY)] = None
            several = [one.name for one in rule.literals if self.acls[one.name].kind == "dst"]
            if len(several) > 1:
                why = f"of its `dst` acls only `{shown(several[0])}` is asked for names, so more of them are denied"
                self.notes[rule.line.note(why)] = None
            return
        effect = "bare IP addresses alone are" if rule.allow else "all names that it may match are"
        why = (
            f"acl `{shown(literal.name)}` asks for the addresses of names, which no rule here does; "
            f"{effect} {'allowed' if rule.allow else 'denied'} by it"
        )
        self.notes[rule.line.note(why)] = None


def _inside(literals: Iterable[Literal], acls: dict[str, Acl]) -> Iterable[Literal]:
    """The literals, and those of the acls of acls that they name, each once."""
    waiting = list(reversed(tuple(literals)))
    found: dict[Literal, None] = {}
    while waiting:
        literal = waiting.pop()
        if literal not in found:
            found[literal] = None
            inner = [one for line in acls[literal.name].lines for one in line]
            waiting += [
                Literal(one.name, one.negated is not literal.negated) for one in reversed(inner)
            ]
    return found


def _may_deny(name: str) -> bool:
    """Whether the name of an unknown directive is that of an access list, perhaps misspelt."""
    return name.endswith(("_access", "_access2")) or bool(
        get_close_matches(name.lower(), (*GATES, *_OLD_NAMES), n=1, cutoff=0.8)
    )


def _private_note(decisions: Decisions, drafts: Iterable[Draft]) -> Iterable[Note]:
    """Once, where Squid may well lead to private destinations."""
    for draft in drafts:
        for entry in draft.allow:
            if entry.pattern:
                name = entry.pattern.removeprefix("*.")
                private = "." not in name or name.rpartition(".")[2] in _OWN_DOMAINS
            else:
                private = any(map(_holds_private, decisions.networks_of(entry.groups)))
            if private:
                yield decisions.line(draft.rule).note(SPECIAL_USE_WHY)
                return


def _holds_private(network: IPNetwork) -> bool:
    """Whether special-use addresses are in it that it does not open, because it is wider than they are."""
    return any(
        lies_within(special.network, network) and special.network != network
        for special in SPECIAL_USE
    )


def _heading(path: str) -> list[str]:
    return [
        f"Imported from {shown(path)} by `egress-proxy import squid`.",
        "Rules here have no order: a deny beats every allow. Try them with `mode: audit` first, which logs what",
        "would be denied and lets it through.",
    ]


def _why_nothing(rules: Sequence[Rule]) -> str:
    if rules:
        return "Nothing is surely allowed by the imported rules."
    return "Without http_access lines Squid denies everything."
