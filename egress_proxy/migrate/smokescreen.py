"""A smokescreen ACL (version v1) as our configuration.

Checked against smokescreen's ``pkg/smokescreen/acl/v1``: a role's ``allowed_domains`` win over ``global_deny_list``,
which wins over ``global_allow_list``, which wins over the role's ``action``. ``*.example.com`` is every name below
``example.com`` and not itself, as here. A role without an entry gets ``default``. Ports do not matter there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from egress_proxy.config.subjects import MAX_SUBJECTS, USER
from egress_proxy.core.policy import DEFAULT_PORTS, EVERY_PORT
from egress_proxy.migrate.hosts import Region, host_tree
from egress_proxy.migrate.order_free import order_free
from egress_proxy.migrate.ordered import Draft, Entry, Loss, Ordered, Verdict
from egress_proxy.migrate.ranges import EVERY_ADDRESS, holds, networks, pieces
from egress_proxy.migrate.smokescreen_acl import HostList, Role, SmokescreenAcl, read_acl
from egress_proxy.migrate.ways import Ways
from egress_proxy.migrate.writing import (
    Imported,
    Note,
    WrittenPolicy,
    WrittenRule,
    flow_text,
    nothing_allowed,
    policy_name,
    shown,
    write,
)

PORTS_WHY: Final = (
    "smokescreen allows every port of an allowed host; rules here allow 80 and 443 unless `ports` "
    "says otherwise"
)
ROLES_WHY: Final = (
    "smokescreen takes a role from the client's TLS certificate; here it is the name of a user, who needs a line in "
    "`credentials.users_file`"
)
DEFAULT_WHY: Final = (
    "policies here add up, so what every client may do is added to what each role may; the default is left out and "
    "stands at the end as a comment"
)
REPORT_WHY: Final = (
    "its action `report` lets everything pass and logs it; here `mode: audit` does so for all clients alone, so the "
    "role may reach what its lists name and nothing else"
)
OPEN_WHY: Final = (
    "its action `open` allows every host; bare IP addresses, which it allows too, are denied here"
)
LOST_WHY: Final = "it cannot stay allowed: a deny beats every allow here, and global_deny_list denies all around it"

# The rules that are tried in order: each role's own list, these two, and the role's action, which counts as its own.
_DENY: Final = 0
_ALLOW: Final = 1
_FIRST_ROLE: Final = 2


def import_smokescreen(path: str, text: str) -> Imported:
    """Turn the text of a smokescreen ACL into our configuration.

    ``path`` is the name that notes show. Raises MigrationError for a text that smokescreen would refuse.
    """
    acl = read_acl(path, text)
    conversion = _Conversion(path, acl)
    policies = conversion.policies()
    if not policies:
        why = "Nothing is allowed to any role that can be carried over."
        policies = [nothing_allowed(why)]
    notes = tuple(
        sorted(dict.fromkeys((*acl.notes, *conversion.notes)), key=lambda note: note.line)
    )
    return Imported(write(policies, _heading(path), notes, _ending(acl.default)), notes)


class _Conversion:
    def __init__(self, path: str, acl: SmokescreenAcl) -> None:
        self.path = path
        self.acl = acl
        self.notes: list[Note] = []
        self.roles = [role for role in acl.roles if USER.fullmatch(role.name)]
        #: By number of the rule.
        self.lists: list[HostList] = [
            acl.denied,
            acl.allowed,
            *(role.allowed for role in self.roles),
        ]
        for hosts in self.lists:
            hosts.addresses.sort()
        by_role = (*self.lists[_FIRST_ROLE:], *self.lists[:_FIRST_ROLE])
        self.tree = host_tree(name for hosts in by_role for name in hosts.names.mentioned())
        self.groups = pieces(EVERY_ADDRESS, [hosts.addresses for hosts in self.lists])

    def policies(self) -> list[WrittenPolicy]:
        self._note_roles()
        drafts, losses = order_free(self._ordered())
        self._note_losses(losses)
        taken: set[str] = set()
        return [policy for draft in drafts for policy in self._written(draft, taken)]

    # Deciding ---------------------------------------------------------------------------------------------------

    def _ordered(self) -> Ordered:
        return Ordered(
            tree=self.tree,
            clients=len(self.roles),
            groups=len(self.groups),
            name_verdict=self._about_name,
            group_verdict=self._about_group,
            closes=lambda _: frozenset(),
            own_policy=lambda rule: rule == _DENY,
            natural=lambda _: frozenset(),
            client_cost=len,
            network_cost=lambda groups: len(networks(self.groups[group] for group in groups)),
            ways=Ways(told_apart=False),
        )

    def _about_name(self, client: int, region: Region) -> Verdict:
        name, below = self.tree.names[region[0]], region[1]
        found = [hosts.names.covers(name, below=below) for hosts in self.lists]
        return self._verdict(client, found, otherwise="open")

    def _about_group(self, client: int, group: int) -> Verdict:
        first = self.groups[group][0]
        return self._verdict(client, [holds(hosts.addresses, first) for hosts in self.lists])

    def _verdict(self, client: int, listed: Sequence[bool], otherwise: str = "") -> Verdict:
        """What smokescreen decides; a role whose action is ``otherwise`` may do what no list names."""
        own = _FIRST_ROLE + client
        if listed[own]:
            return Verdict({own: 1}, {}, {})
        if listed[_DENY]:
            return Verdict({}, {_DENY: 1}, {})
        if listed[_ALLOW]:
            return Verdict({_ALLOW: 1}, {}, {})
        if self.roles[client].action == otherwise:
            return Verdict({own: 1}, {}, {})
        return Verdict({}, {}, {})

    # Notes ------------------------------------------------------------------------------------------------------

    def _note(self, line: int, what: str, why: str) -> None:
        self.notes.append(Note(self.path, line, what, why))

    def _note_roles(self) -> None:
        if self.roles:
            line = self.roles[0].line
            self._note(line, "`services`", ROLES_WHY)
            self._note(line, "`services`", PORTS_WHY)
        if self.acl.default is not None:
            self._note(self.acl.default.line, "`default`", DEFAULT_WHY)
        for role in self.acl.roles:
            what = f"role `{shown(role.name)}`"
            if role not in self.roles:
                self._note(role.line, what, "no user can have this name; the role is left out")
            elif role.action == "report":
                self._note(role.line, what, REPORT_WHY)
            elif role.action == "open":
                self._note(role.line, what, OPEN_WHY)

    def _note_losses(self, losses: Iterable[Loss]) -> None:
        for loss in losses:
            if loss.rule == _ALLOW:
                line, where = self.acl.allowed.line, "global_allow_list"
            else:
                role = self.roles[loss.rule - _FIRST_ROLE]
                line, where = role.line, f"role `{shown(role.name)}`"
            self._note(line, f"`{shown(loss.what)}` of {where}", LOST_WHY)

    # Writing ----------------------------------------------------------------------------------------------------

    def _written(self, draft: Draft, taken: set[str]) -> Iterable[WrittenPolicy]:
        if draft.rule < _FIRST_ROLE:
            name = "global_deny_list" if draft.rule == _DENY else "global_allow_list"
            comment = f"{self.path}:{self.lists[draft.rule].line}: {name}"
        else:
            role = self.roles[draft.rule - _FIRST_ROLE]
            name = role.name
            comment = f"{self.path}:{role.line}: action {role.action}"
            if role.action == "open":
                comment += ". WARNING: this allows every host on the internet."
            elif role.action == "report":
                comment += ", which is `enforce` here"
        allow = tuple(self._rules(draft.allow, default_ports=True))
        deny = tuple(self._rules(draft.deny, default_ports=False))
        users = [f"{{user: {flow_text(self.roles[one].name)}}}" for one in sorted(draft.clients)]
        for start in range(0, len(users), MAX_SUBJECTS):
            subjects = tuple(users[start : start + MAX_SUBJECTS])
            yield WrittenPolicy(policy_name(name, taken), (comment,), subjects, allow, deny)

    def _rules(self, entries: Iterable[Entry], *, default_ports: bool) -> Iterable[WrittenRule]:
        ports = DEFAULT_PORTS if default_ports else EVERY_PORT
        for entry in entries:
            if entry.pattern:
                yield WrittenRule(entry.pattern, ports)
            for network in networks(self.groups[group] for group in entry.groups):
                yield WrittenRule(str(network), ports, network=True)


def _ending(default: Role | None) -> list[str]:
    """The default as a comment, for somebody to decide about."""
    if default is None:
        return []
    names = default.allowed.names
    hosts = [*names.exact, *(f"*.{name}" for name in names.below)]
    rules = [
        WrittenRule(host, DEFAULT_PORTS) for host in (["*"] if default.action == "open" else hosts)
    ]
    rules += [
        WrittenRule(str(network), DEFAULT_PORTS, network=True)
        for network in networks(default.allowed.addresses)
    ]
    if not rules:
        return []
    policy = write([WrittenPolicy("default", (), None, tuple(rules))], (), ())
    return [
        "What roles without an entry may reach. Without subjects it is for every client, those with roles and those",
        "without credentials too: give it subjects, or take it as it is if all may do so.",
        *policy.splitlines()[2:],
    ]


def _heading(path: str) -> list[str]:
    return [
        f"Imported from {shown(path)} by `egress-proxy import smokescreen`.",
        "Rules here have no order: a deny beats every allow. Try them with `mode: audit` first, which logs what",
        "would be denied and lets it through. Give each role credentials, or replace its subject by where it runs:",
        "credentials: {users_file: /etc/egress-proxy/users, required: true}",
    ]
