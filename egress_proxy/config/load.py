"""From files to a checked configuration, or to everything that is wrong with them."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

from egress_proxy.config.documents import Document, included, read_document
from egress_proxy.config.errors import Code, ConfigError, Problem, Report, quoted, told
from egress_proxy.config.lint.rules import lint
from egress_proxy.config.model import (
    Config,
    Credentials,
    Listen,
    SharedState,
    SocketAddress,
    Upstream,
)
from egress_proxy.config.nodes import value_of
from egress_proxy.config.rules import PolicyReader
from egress_proxy.config.schema import KEYS, NOT_YET, SECTIONS
from egress_proxy.config.sets import Sets, read_sets
from egress_proxy.config.shared_state import with_secrets
from egress_proxy.config.sources import Sources
from egress_proxy.config.upstream import ParentCredentials, lacks, report_no_proxy, routes
from egress_proxy.config.users import users
from egress_proxy.config.yaml_source import Mapping, Sequence, place_of
from egress_proxy.core.names import Authority
from egress_proxy.core.policy import CompiledPolicy, Mode, Place
from egress_proxy.core.special_use import ANYWHERE, Surroundings
from egress_proxy.core.upstream import Upstream as Routes

__all__ = ["Loaded", "load", "parse"]

#: Seconds of Python at a stretch while others wait. Less makes loading slower, by a tenth at this.
_SWITCH_INTERVAL: Final = 0.0005

_SET_ADVICE: Final = 'use it as "@{name}", or remove it'


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used, and what is doubtful about it."""

    config: Config
    warnings: tuple[Problem, ...]
    places: dict[str, Place]
    """Where each top-level key stands."""


def load(path: str, sources: Sources | None = None) -> Loaded:
    """Read and check a configuration file, and the files that it names.

    ``sources`` then knows which they are, whatever becomes of it. Raises ConfigError with every problem.
    """
    sources = sources or Sources()
    return _check(sources.read(path), path, sources)


def parse(data: bytes, source: str) -> Loaded:
    """Check the text of a configuration; ``source`` is the file name that places show.

    Raises ConfigError with every problem of the text.
    """
    sources = Sources()
    sources.take(data)
    return _check(data, source, sources)


def _check(data: bytes, source: str, sources: Sources) -> Loaded:
    # Nothing here makes cycles, and looking for some among millions of nodes takes seconds.
    enabled, interval = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    # A proxy that runs does this in a thread. Its event loop gives the interpreter away with each system call, and
    # would wait for this long to get it back each time: by default 5 ms, a tenth of a second for one tunnel.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        return _check_all(data, source, sources)
    finally:
        sys.setswitchinterval(interval)
        if enabled:
            gc.enable()


def _check_all(data: bytes, source: str, sources: Sources) -> Loaded:
    report = Report(source)
    document = read_document(data, report, KEYS, NOT_YET)
    if document is None:
        raise report.exception()
    values: dict[str, Any] = {}
    for key, reader in SECTIONS.items():
        if key in document.fields:
            values[key] = reader(document.fields[key], f"`{key}`", report)
    # What was reported falls back to its default, and the configuration is refused in the end.
    values = {key: value for key, value in values.items() if value is not None}
    if values.get("credentials"):
        values["credentials"] = _with_users(values["credentials"], document, sources)
    if isinstance(state := values.get("state"), SharedState):
        place = document.places["state"]
        node = document.fields["state"]
        values["state"] = with_secrets(state, node, place, document.report, sources)
    _check_together(values, document)
    mode, credentials = values.pop("mode", Mode.ENFORCE), values.get("credentials")
    surroundings = values.pop("networks", ANYWHERE)
    parents = ParentCredentials(sources)
    upstream = _upstream(values.pop("upstream", None), document, parents)
    policy = _read_policies(document, sources, mode, credentials, surroundings, upstream, parents)
    config = Config(
        policy=policy,
        parent_credentials=parents.found,
        source=source,
        digest=sources.digest,
        sources=sources,
        **values,
    )
    return Loaded(config, report.warnings(), document.places)


def _read_policies(
    document: Document,
    sources: Sources,
    mode: Mode,
    credentials: Credentials | None,
    surroundings: Surroundings,
    upstream: Routes | None,
    parents: ParentCredentials,
) -> CompiledPolicy:
    """The policies of all files. Raises ConfigError if anything was wrong until now."""
    report = document.report
    documents = [document, *included(document, sources, KEYS)]
    sets: Sets = {}
    for each in documents:
        if "sets" in each.fields:
            read_sets(each.fields["sets"], each.report, sources, sets)
    reader = PolicyReader(sets, parents)
    for each in documents:
        if "policies" in each.fields:
            reader.read(each.fields["policies"], each.report)
    if isinstance(document.root, Mapping) and not any(
        "policies" in each.places for each in documents
    ):
        what = "the file has no `policies`, so nothing would be allowed"
        place = place_of(document.root, report)
        report.error(Code.MISSING_KEY, place, what, "write a list of policies")
    # A rule that was reported may have been the one that uses it.
    for name in () if report.failed else sorted(sets.keys() - reader.used_sets):
        what = f"no rule uses the set `{name}`"
        report.warning(Code.UNUSED_SET, sets[name].place, what, _SET_ADVICE.format(name=name))
    policies = tuple(reader.policies)
    lint(policies, report, credentials, surroundings)
    if report.failed:
        raise report.exception()
    return CompiledPolicy(policies, mode, surroundings, upstream)


def _with_users(found: Credentials, document: Document, sources: Sources) -> Credentials:
    """The credentials with what the users file says."""
    report, place = document.report, document.places["credentials"]
    if not found.users_file:
        node = document.fields["credentials"]
        # What stands there and is wrong was reported already.
        if isinstance(node, Mapping) and all(key.text != "users_file" for key, _ in node.entries):
            what = "`credentials` has no `users_file`"
            report.error(Code.MISSING_KEY, place, what, "write `users_file:` with the path of one")
        return found
    try:
        data = sources.read(found.users_file)
    except ConfigError as error:
        place = _place(document, "credentials", "users_file")
        report.error(Code.UNREADABLE_FILE, place, *told(error))
        return found
    known = users(data, report.beside(found.users_file))
    strangers = sorted(found.tenants.keys() - known.keys()) if known else []
    if strangers:
        others = f", nor {len(strangers) - 1:,} more of `tenants`" if len(strangers) > 1 else ""
        what = f"the users file does not have the user {quoted(strangers[0])}{others}"
        place = _place(document, "credentials", "tenants")
        report.warning(Code.WITHOUT_EFFECT, place, what, "remove what `tenants` says of them")
    return replace(found, users=known)


def _upstream(
    found: Upstream | None, document: Document, parents: ParentCredentials
) -> Routes | None:
    """The parent of whatever no rule speaks of, its credentials read."""
    if found is None:
        return None
    report, place = document.report, document.places["upstream"]
    if lacks(document.fields["upstream"], "proxy"):
        report_no_proxy(place, report)
    if found.credentials_file:
        place = _place(document, "upstream", "credentials_file")
        parents.read(found.credentials_file, place, report)
    return routes(found)


def _check_together(values: dict[str, Any], document: Document) -> None:
    """What single values cannot show."""
    places, report = document.places, document.report
    listen = values.get("listen") or Listen()
    if _collide(listen.proxy, listen.admin):
        what = f"the proxy and the admin port cannot both listen on {listen.admin}"
        place = places.get("listen", place_of(document.root, report))
        if "listen" in places:
            place = _place(document, "listen", "admin", "proxy")
        report.error(Code.CONFLICT, place, what, "write different ports")
    upstream = values.get("upstream")
    for own in (listen.proxy, listen.admin):
        if upstream is not None and _is_own(upstream.proxy, own):
            what = f"`proxy` is the address that the proxy itself listens on, {own}"
            instead = "write the parent's, or other ports"
            report.error(Code.CONFLICT, _place(document, "upstream", "proxy"), what, instead)
    dns = values.get("dns")
    if dns is not None and dns.min_ttl > dns.max_ttl:
        what = "`min_ttl` is longer than `max_ttl`"
        instead = "write a shorter `min_ttl` or a longer `max_ttl`"
        report.error(Code.CONFLICT, _place(document, "dns", "min_ttl", "max_ttl"), what, instead)
    dial = values.get("dial")
    if dial is not None and len({":" in each for each in dial.source_addresses}) < len(
        dial.source_addresses
    ):
        what = "`source_addresses` has two addresses of one family"
        place = _place(document, "dial", "source_addresses", entry=1)
        report.error(Code.CONFLICT, place, what, "write one of each at most")
    networks = values.get("networks")
    for (_, prefix), (number, other) in combinations(
        enumerate(networks.nat64 if networks else ()), 2
    ):
        if prefix.overlaps(other):
            what = f"the prefixes {prefix} and {other} of `nat64` overlap"
            instead = "write each prefix as the translator has it"
            place = _place(document, "networks", "nat64", entry=number)
            report.error(Code.CONFLICT, place, what, instead)
    timeouts = values.get("timeouts")
    if timeouts is not None:
        for shorter, longer in (("connect_attempt", "connect"), ("idle", "lifetime")):
            if getattr(timeouts, shorter) > getattr(timeouts, longer):
                what = f"`{shorter}` is longer than `{longer}`, so it never takes effect"
                instead = f"write a shorter `{shorter}`"
                place = _place(document, "timeouts", shorter, longer)
                report.warning(Code.WITHOUT_EFFECT, place, what, instead)


def _place(document: Document, section: str, *keys: str, entry: int | None = None) -> Place:
    """Where the first of a section's keys that is there has its value, or an entry of it; else where it begins."""
    for key in keys:
        node = value_of(document.fields.get(section), key)
        if isinstance(node, Sequence) and entry is not None and entry < len(node.items):
            node = node.items[entry]
        if node is not None:
            return place_of(node, document.report)
    return document.places[section]


def _is_own(parent: Authority | None, own: SocketAddress) -> bool:
    """Whether a parent proxy's address is surely the one that is listened on."""
    if parent is None or parent.host.address is None or parent.port != own.port:
        return False
    everywhere = own.host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    return parent.host.text == own.host or (everywhere and parent.host.address.is_loopback)


def _collide(one: SocketAddress, other: SocketAddress) -> bool:
    everywhere = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    same_host = one.host == other.host or bool({one.host, other.host} & everywhere)
    return one.port == other.port != 0 and same_host
