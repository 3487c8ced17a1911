"""A smokescreen ACL as values: what its YAML says, or why smokescreen would refuse it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final

import yaml

from egress_proxy.core.errors import HostError
from egress_proxy.core.names import canonical_host, plain_address
from egress_proxy.core.special_use import special_use
from egress_proxy.migrate.hosts import NameSet
from egress_proxy.migrate.ranges import of_network
from egress_proxy.migrate.writing import MigrationError, Note, shown

_ACTIONS: Final = ("open", "report", "enforce")
_KEYS: Final = ("version", "services", "default", "global_deny_list", "global_allow_list")
#: Keys of a role without a counterpart, and what that means.
_ROLE_NOTES: Final = {
    "mitm_domains": "TLS is never opened here, so no headers are added or logged",
    "allowed_external_proxies": "destinations are reached directly; a client cannot name a further proxy",
}
_ROLE_KEYS: Final = frozenset(("name", "project", "action", "allowed_domains", *_ROLE_NOTES))
_MAX_MERGES: Final = 16
#: Keys that merges copy in all: mappings that merge each other grow without bound.
_MAX_MERGED: Final = 100_000
_IGNORED: Final = "smokescreen ignores this key, and so is it here"
_NO_HOST: Final = "no host name or address is spelled so; it is left out"
SPECIAL_WHY: Final = (
    "smokescreen denies private and other special-use addresses without `--allow-range`, so it is left out; where it "
    "was reachable, add the `cidr` by hand"
)


@dataclass(slots=True)
class HostList:
    """One list of domains, which may hold addresses too."""

    line: int = 0
    """Where it stands; 0 for one that is missing."""
    names: NameSet = field(default_factory=NameSet)
    addresses: list[tuple[int, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.names.exact or self.names.below or self.addresses)


@dataclass(frozen=True, slots=True)
class Role:
    """A service, or the default."""

    name: str
    line: int
    action: str
    allowed: HostList


@dataclass(frozen=True, slots=True)
class SmokescreenAcl:
    """All that the file says."""

    roles: tuple[Role, ...]
    default: Role | None
    denied: HostList
    allowed: HostList
    notes: tuple[Note, ...]


def read_acl(path: str, text: str) -> SmokescreenAcl:
    """Read the file's text; ``path`` is the name that notes and errors show.

    Raises MigrationError.
    """
    return _Reader(path).acl(text)


class _Reader:
    def __init__(self, path: str) -> None:
        self.path = path
        self.notes: list[Note] = []
        self.merged = 0

    def note(self, node: yaml.Node, what: str, why: str) -> None:
        self.notes.append(Note(self.path, _line(node), what, why))

    def error(self, node: yaml.Node | None, what: str) -> MigrationError:
        where = self.path if node is None else f"{self.path}:{_line(node)}"
        return MigrationError(f"{where}: {what}")

    def acl(self, text: str) -> SmokescreenAcl:
        root = self._compose(text)
        fields = self._fields(root, "the file")
        version = self._text(fields.get("version"), "`version`")
        if version != "v1":
            said = f"`version: {shown(version)}`" if version else "no `version`"
            raise self.error(
                fields.get("version"), f"{said}: this is no smokescreen ACL of version v1"
            )
        if "services" not in fields:
            raise self.error(None, "no `services`, which smokescreen requires")
        for key, node in fields.items():
            if key not in _KEYS:
                self.note(node, f"`{shown(key)}`", _IGNORED)
        roles: dict[str, Role] = {}
        for item in self._items(fields["services"], "`services`"):
            role = self._role(item, "an entry of `services`")
            if role.name in roles:
                raise self.error(item, f"the role `{shown(role.name)}` stands twice")
            roles[role.name] = role
        default = fields.get("default")
        return SmokescreenAcl(
            roles=tuple(roles.values()),
            default=None if _is_null(default) else self._role(default, "`default`"),
            denied=self._hosts(fields.get("global_deny_list"), "global_deny_list", allowing=False),
            allowed=self._hosts(fields.get("global_allow_list"), "global_allow_list"),
            notes=tuple(self.notes),
        )

    # YAML -------------------------------------------------------------------------------------------------------

    def _compose(self, text: str) -> yaml.Node:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = self.path if mark is None else f"{self.path}:{mark.line + 1}"
            raise MigrationError(
                f"{where}: this is no YAML: {shown(error.problem or '')}"
            ) from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            what = shown(str(error).partition("\n")[0])
            raise MigrationError(f"{self.path}: this is no YAML: {what}") from None
        if not isinstance(root, yaml.MappingNode):
            raise self.error(None, "this is no smokescreen ACL: the file is no mapping")
        return root

    def _fields(self, node: yaml.Node, what: str, depth: int = 0) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode) or depth > _MAX_MERGES:
            raise self.error(node, f"{what} is no mapping")
        found: dict[str, yaml.Node] = {}
        merged: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, f"a key of {what} is no text")
            if key.tag == "tag:yaml.org,2002:merge":
                several = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for one in several:
                    # The first of several wins, and what the mapping itself says wins over all of them.
                    inner = self._fields(one, what, depth + 1)
                    self.merged += 1 + len(inner)
                    if self.merged > _MAX_MERGED:
                        raise self.error(
                            key, f"`<<` merges more than {_MAX_MERGED:,} keys; write them out"
                        )
                    for name, field_value in inner.items():
                        merged.setdefault(name, field_value)
            elif key.value in found:
                raise self.error(key, f"`{shown(key.value)}` stands twice")
            else:
                found[key.value] = value
        return merged | found

    def _items(self, node: yaml.Node | None, what: str) -> Sequence[yaml.Node]:
        if _is_null(node):
            return ()
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"{what} is no list")
        return tuple(node.value)

    def _text(self, node: yaml.Node | None, what: str) -> str:
        if _is_null(node):
            return ""
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, f"{what} is no text")
        return str(node.value)

    # What it says -----------------------------------------------------------------------------------------------

    def _role(self, node: yaml.Node | None, what: str) -> Role:
        assert node is not None  # noqa: S101 - asked for before
        fields = self._fields(node, what)
        name = self._text(fields.get("name"), "`name`")
        action = self._text(fields.get("action"), "`action`")
        said = f"role `{shown(name)}`" if name else what
        if action not in _ACTIONS:
            place = fields.get("action", node)
            raise self.error(place, f"{said} has the unknown action `{shown(action)}`")
        for key, value in fields.items():
            if key in _ROLE_NOTES and self._items(value, f"`{key}`"):
                self.note(value, f"`{key}` of {said}", _ROLE_NOTES[key])
            elif key not in _ROLE_KEYS:
                self.note(value, f"`{shown(key)}` of {said}", _IGNORED)
        allowed = self._hosts(fields.get("allowed_domains"), f"allowed_domains of {said}")
        return Role(name, _line(node), action, allowed)

    def _hosts(self, node: yaml.Node | None, where: str, *, allowing: bool = True) -> HostList:
        found = HostList(0 if node is None else _line(node))
        for item in self._items(node, f"`{where}`"):
            glob = self._text(item, f"an entry of `{where}`")
            what = f"`{shown(glob)}` in `{where}`"
            below = glob.startswith("*.")
            # Where smokescreen compares them, a name and a name with a dot behind it are the same.
            name = glob.removeprefix("*.").rstrip(".")
            if not name or "*" in name:
                raise self.error(item, f"{what}: smokescreen refuses this glob")
            if name != name.lower() or not name.isascii():
                raise self.error(item, f"{what}: smokescreen wants lower-case A-labels (xn--…)")
            if why := _add(found, name, below=below, allowing=allowing):
                self.note(item, what, why)
        return found


def _add(hosts: HostList, name: str, *, below: bool, allowing: bool) -> str:
    """Add a name or an address; else why it is left out: a text that is neither, or all below an address.

    Smokescreen asks its lists first and its ranges then, so an allowed address may be denied all the same.
    """
    try:
        address = ip_address(name)
    except ValueError:
        pass
    else:
        if below or "%" in name:
            return _NO_HOST
        plain = plain_address(address)
        if allowing and special_use(plain) is not None:
            return SPECIAL_WHY
        hosts.addresses.append(of_network(ip_network(plain)))
        return ""
    try:
        if canonical_host(name).address is not None:
            return _NO_HOST  # an address in a spelling that smokescreen takes for a name
    except HostError:
        return _NO_HOST
    hosts.names.add(name, exact=not below, below=below)
    return ""


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _is_null(node: yaml.Node | None) -> bool:
    return node is None or (
        isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
    )
