"""The JSON Schema (draft 2020-12) of the configuration, for editors: made from the tables that the loader reads by.

It is never stricter than the loader, which alone decides: an editor must not mark what the proxy takes. What no schema
can see (a name taken twice, a set that is not there, bits behind a prefix) is left to ``egress-proxy check``.

One schema serves both kinds of files, the first one and those that it includes, because editors cannot be pointed at a
part of a schema. So ``policies`` may be missing where ``include`` stands, or where nothing stands that an included file
cannot have.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, Final

import yaml

from egress_proxy.config import model
from egress_proxy.config.conditions import (
    METHOD,
    METHOD_FORM,
    PATH_FORM,
    method,
    methods,
    path,
    paths,
)
from egress_proxy.config.destinations import network
from egress_proxy.config.documents import INCLUDED_KEYS, VERSION
from egress_proxy.config.limits import (
    BY_THE_DAY,
    BYTES_KEYS,
    LIMIT_KEYS,
    MAX_USERS,
    Number,
    bytes_per_day,
    tenant_name,
    time_zone,
    user_tenants,
)
from egress_proxy.config.model import Config, MemoryState, SharedState
from egress_proxy.config.networks import internal_network, nat64_prefix
from egress_proxy.config.reload import NEEDS_RESTART
from egress_proxy.config.rules import (
    MAX_PER_RULE,
    POLICY_KEYS,
    RULE_KEYS,
    allow_private_networks,
    contract_headers,
)
from egress_proxy.config.schema import KEYS, SECTIONS, Section
from egress_proxy.config.shared_state import (
    STORE_FORM,
    STORE_KEYS,
    STORE_URL,
    store_prefix,
    store_url,
)
from egress_proxy.config.state import STATE_FILE, STATE_FORM, state_place
from egress_proxy.config.subjects import (
    LABEL_KEY,
    LABEL_VALUE,
    MAX_LABELS,
    MAX_SUBJECTS,
    NAMESPACE,
    NAMESPACE_FORM,
    SUBJECT_KEYS,
    USER,
    USER_FORM,
)
from egress_proxy.config.upstream import PARENT_KEYS, no_proxy_entry, proxy_url
from egress_proxy.config.values import (
    DURATION_UNITS,
    NAME,
    NAME_FORM,
    NUMBER_AND_UNIT,
    SIZE_UNITS,
    Choice,
    ChoiceWithOff,
    Duration,
    Integer,
    ListOf,
    Reader,
    Size,
    boolean,
    file_path,
    name_server,
    parse_with_unit,
    relative_path,
    socket_address,
    source_address,
)
from egress_proxy.core.embedding import NAT64_PREFIX_LENGTHS
from egress_proxy.core.names import MAX_LABEL_LENGTH, MAX_NAME_LENGTH
from egress_proxy.core.policy import (
    DEFAULT_PORTS,
    EVERY_PORT,
    Action,
    CompiledPolicy,
    PortRanges,
)

__all__ = ["DESCRIPTIONS", "as_text", "json_schema"]

Schema = dict[str, Any]

#: What an editor shows of a key, by its path in ``every_key()``. The other keys' texts are their docstrings in
#: :mod:`.model`.
DESCRIPTIONS: Final = {
    "version": "The version of this format.",
    "include": "Further files of policies and sets, or directories of `*.yaml` and `*.yml` files.",
    "sets": 'Named sets of hosts, which rules use as "@NAME".',
    "sets.NAME.file": "The hosts in a file: a YAML list, or plain text with one host a line and `#` comments.",
    "policies": "Who may reach what. The order does not matter: of all policies that apply to a client, deny beats "
    "ask, ask beats allow, and what nothing allows is denied.",
    "listen": "Where to listen.",
    "listen.proxy": "Where clients connect.",
    "listen.admin": "Health, metrics and the API. `/healthz`, `/readyz` and `/metrics` are open to whoever reaches it.",
    "mode": "`enforce` refuses what no rule allows. `audit` lets it through and logs WOULD_DENY; addresses of this "
    "machine and of metadata services stay refused.",
    "on_revoke": "What becomes of open tunnels that a reloaded policy no longer allows: `close` or `keep`.",
    "contract_headers": "Whether a plain HTTP request that changes something must carry `Idempotency-Key` and "
    "`X-Tenant-ID`: `enforce` refuses it with 400, `warn` records it, `off` does not look. Tunnels are exempt.",
    "forwarded_for": "What origins are told about who asks, in plain HTTP: `remove` is nothing, `keep` what the client "
    "says (`Forwarded`, `X-Forwarded-*`, `X-Real-IP` and the like), `add` that and the client's address.",
    "credentials": "User names and passwords. Without it nobody is asked for any.",
    "dns": "How names become addresses.",
    "dns.servers": "The servers to ask, in this order. Default: the system's, from `/etc/resolv.conf`.",
    "networks": "What is special about the networks that the proxy is among.",
    "networks.internal": "Networks of your own that use public addresses. They are refused like private ones: only "
    "`allow_private`, or a rule with `cidr`, opens them.",
    "networks.nat64": "Prefixes of your translators from IPv6 to IPv4 (RFC 6052), beside 64:ff9b::/96. The IPv4 "
    "address inside decides.",
    "dial": "How the addresses of a destination are tried. For requests that begin after a change.",
    "dial.prefer": "Which family is tried first, `ipv6` or `ipv4`; the two then take turns.",
    "dial.stagger": "How long one address has before the next is tried beside it (RFC 8305 §5).",
    "dial.failure_memory": "How long an address that could not be reached, or that another has overtaken, is tried "
    "after the others. `0s` is never.",
    "dial.source_addresses": "Where connections come from: an address of this machine, or one of each family. Default: "
    "the system's choice.",
    "tunnels": "What a CONNECT tunnel may carry. For tunnels that begin after a change.",
    "tunnels.ech": "What becomes of a tunnel whose TLS handshake carries Encrypted ClientHello. `allow`: its "
    "outer name is compared. `grease`: refused where the host publishes the configuration that it is encrypted with. "
    "`refuse`: refused, GREASE or not.",
    "upstream": "The parent proxy of every destination about which no rule says otherwise. For requests that begin "
    "after a change.",
    "timeouts": "How long anything may take. For requests and tunnels that begin after a change.",
    "limits": "How much of anything there may be in the whole proxy.",
    "audit": "The log of decisions, on standard output.",
    "policies[].name": "Stands in log lines and metrics; unique. 1 to 64 letters, digits, dots, hyphens, underscores.",
    "policies[].subjects": "The clients that the policy is for: whom any one of the entries describes. Without it, "
    "every client.",
    "policies[].allow": "What they may reach.",
    "policies[].ask": "What they may reach once a human has approved. Until then it is denied.",
    "policies[].deny": "What they may not reach, whatever else allows it.",
    "policies[].contract_headers": "The same as at the top level, for what this policy lets through. Of several "
    "policies that let a request through, the strictest holds.",
    "policies[].limits": "What each of its tenants may do at most. Of several policies that let a request through, the "
    "limits of all hold.",
    "policies[].limits.requests_per_second": "Requests per second on average, each CONNECT counted as one.",
    "policies[].limits.burst": "Requests that may come at once after a rest. Default: what one second allows.",
    "policies[].limits.tunnels": "CONNECT tunnels that are open at once.",
    "policies[].limits.requests_per_day": "Requests of a calendar day, each CONNECT counted as one.",
    "policies[].limits.bytes_per_day": "Bytes of a calendar day, to origins and from them together; or a mapping.",
    "policies[].limits.bytes_per_day.up": "Bytes to origins.",
    "policies[].limits.bytes_per_day.down": "Bytes from origins.",
    "policies[].limits.bytes_per_day.both": "Bytes in both directions together.",
    "policies[].limits.time_zone": "The time zone in which a day begins at midnight.",
    "policies[].limits.bandwidth": "Bytes per second in each direction, of all that a tenant has open.",
    "policies[].limits.tunnel_bandwidth": "Bytes per second in each direction, of each tunnel or request.",
    "policies[].limits.new_hosts_per_hour": "Different hosts that a tenant may start to talk to within any hour.",
    "policies[].tenant": "Whom its requests are charged to. Default: the user's tenant (`credentials.tenants`), else "
    "what `trust_tenant_header` says, else the policy's name.",
    "policies[].trust_tenant_header": "Whether clients may name their tenant themselves, in `X-Tenant-ID`.",
    "state.url": "The store that all replicas share, Redis or Valkey: `redis://[USER@]HOST[:PORT][/DATABASE]`, or "
    "`rediss://` with TLS.",
    "state.password_file": "A file with one line, the store's password.",
    "state.ca_file": "Certificates of the authorities that the store's is checked against, as PEM. Default: "
    "the system's.",
    "state.on_store_failure": "What becomes of requests with limits while the store is away: `local` lets each replica "
    "go on by what it knows, `closed` refuses them with 503.",
    "state.timeout": "How long a request waits for the store at most.",
    "state.prefix": "What all keys in the store begin with, in braces. Another one for another group of replicas.",
    "state.lease": "Time of silence after which a replica counts as dead, and its tunnels as closed.",
    "policies[].subjects[].cidr": "Clients with an address in this network, as the proxy sees it.",
    "policies[].subjects[].user": "The client that has shown this user's password.",
    "policies[].subjects[].namespace": "Clients in this Kubernetes namespace.",
    "policies[].subjects[].pod_labels": "Clients in pods that carry all of these labels.",
    "policies[].allow[].host": "The host or hosts. Never matches a destination that is written as an address.",
    "policies[].allow[].cidr": "Destinations that clients write as an address. In a deny rule, also what allowed names "
    "lead to.",
    "policies[].allow[].ports": 'Ports, and ranges such as "8000-8010".',
    "policies[].allow[].methods": "Methods of plain HTTP requests; a rule with them is for no tunnel.",
    "policies[].allow[].paths": "Paths of plain HTTP requests: `/a/b`, `/a/*/b` (`*` is one whole segment), `/a/` for "
    "all that begins so. A rule with them is for no tunnel.",
    "policies[].allow[].allow_private": "The networks in which the host's addresses may lie although they are private "
    "or special.",
    "policies[].allow[].tls": "`verify`: a tunnel must be TLS to the host that was asked for. `off` lifts that.",
    "policies[].allow[].upstream": "How these destinations are reached: `direct`, or through a parent proxy of their "
    "own. The most specific rule that says it decides.",
    "policies[].allow[].upstream.proxy": "The parent proxy, as `http://HOST:PORT`.",
    "policies[].allow[].upstream.credentials_file": "A file with one line `user:password`, which this parent is shown.",
}  # fmt: skip


def as_text() -> str:
    """The schema as ``config/schema.json`` holds it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """The schema as plain values, in the order of the tables."""
    written = _docstrings()
    properties = {"version": {"const": VERSION, **_described("version")}}
    for key in KEYS:
        form = _BESIDE[key] if key in _BESIDE else _section_or_value(key, SECTIONS[key], written)
        properties[key] = form
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Generated by `egress-proxy schema` from egress_proxy/config/: change the tables there, not this.",
        "title": f"egress-proxy configuration, version {VERSION}",
        **_mapping(properties, required=["version"]),
        "anyOf": [
            {"required": ["policies"]},
            {"required": ["include"]},
            {
                "$comment": "A file that another one includes.",
                "propertyNames": {"enum": ["version", *INCLUDED_KEYS]},
            },
        ],
        "$defs": _DEFINITIONS,
    }


# Parts ------------------------------------------------------------------------------------------------------------


def _described(path: str, *more: str) -> Schema:
    return {"description": " ".join([DESCRIPTIONS[path], *more])}


def _text(pattern: str, instead: str) -> Schema:
    """A text of this form. ``instead`` becomes the message of a keyword that VS Code has and others pass over."""
    message = f"{instead[0].upper()}{instead[1:].removesuffix('.')}."
    return {"type": "string", "pattern": _whole(pattern), "patternErrorMessage": message}


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$" if "|" in pattern else f"^{pattern}$"


def _list(items: Schema, at_most: int | None = None) -> Schema:
    limit = {} if at_most is None else {"maxItems": at_most}
    return {"type": "array", "items": items, "minItems": 1, **limit}


def _mapping(properties: Mapping[str, Schema], *, required: Collection[str] = ()) -> Schema:
    """A mapping of known keys. An empty one is refused, as the loader does."""
    needed = {"required": list(required)} if required else {"minProperties": 1}
    return {
        "type": "object",
        "properties": dict(properties),
        **needed,
        "additionalProperties": False,
    }


def _names(pattern: str, value: Schema, **bounds: int) -> Schema:
    """A mapping of free names."""
    return {
        "type": "object",
        "patternProperties": {_whole(pattern): value},
        **bounds,
        "additionalProperties": False,
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


# Forms of texts. In the common part of the regular expressions of Python, ECMAScript and Java. --------------------

_OCTET: Final = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4: Final = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
#: Every IPv6 address and more: its exact grammar would fill a page.
_IPV6: Final = "[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*"
_PORT: Final = (
    "(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
)
_ADDRESS: Final = rf"(?:{_IPV4}|\[{_IPV6}\])"
_NETWORK: Final = (
    f"{_IPV4}(?:/(?:3[0-2]|[12]?[0-9]))?|{_IPV6}(?:/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9]))?"
)

_LABEL: Final = f"[A-Za-z0-9_-]{{1,{MAX_LABEL_LENGTH}}}"
_LENGTH: Final = rf"(?=.{{1,{MAX_NAME_LENGTH}}}\.?$)"
#: A name whose last label is a number is an address to resolvers.
_NO_ADDRESS: Final = r"(?!(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?$)"
_ASCII_NAME: Final = rf"{_LENGTH}{_NO_ADDRESS}{_LABEL}(?:\.{_LABEL})*\.?"
#: With a letter beyond ASCII. Which of them make a name, and how long it becomes, is IDNA's to say.
_ANY_LABEL: Final = r"(?:[A-Za-z0-9-]|[^\x00-\x7F])+"
_OTHER_NAME: Final = rf"(?=.*[^\x00-\x7F]){_ANY_LABEL}(?:\.{_ANY_LABEL})*\.?"
_HOST: Final = rf"\*|(?:\*\.)?(?:{_ASCII_NAME}|{_OTHER_NAME})"

#: A host of whatever letters: its exact form is its own pattern's, which knows no port behind it.
_PROXY_URL: Final = rf"[hH][tT][tT][pP]://(?:[^\x00-\x20/?#@\[\]:\\]+|\[{_IPV6}\]):{_PORT}"

#: Of a request's path. What its encoded bytes and its dots mean is the loader's to say.
_SEGMENT: Final = r"[A-Za-z0-9._~!\x24&'()+,=:@%-]"

_PATH_CHARACTER: Final = r"[^\x00-\x1F\x7F]"
_HOST_SAYS: Final = (
    'Write a host: example.com, or "*.example.com" for every name below it, without port, path or scheme. '
    "Addresses are written {cidr: …}."
)
_NETWORK_SAYS: Final = (
    "Write an address and a prefix length, such as 192.0.2.0/24 or 2001:db8::/32."
)


def _address_and_port(port: str, example: str) -> Schema:
    form = _text(f"{_ADDRESS}:{port}", f"Write address:port, such as {example}.")
    return form | {"examples": [example]}


def _with_unit(kind: str, units: Mapping[str, Any], low: str, high: str) -> Schema:
    unit = "|".join(units)
    says = f"A {kind} from {low} to {high}: a whole number with a unit ({', '.join(units)})."
    number = NUMBER_AND_UNIT.pattern.removesuffix("([A-Za-z]+)")
    return _text(f"{number}(?:{unit})", says) | {"description": says}


#: The readers that take no parameter.
_FORMS: Final[dict[Reader, Schema]] = {
    boolean: {"type": "boolean"},
    file_path: _text(f"/{_PATH_CHARACTER}*", "Write an absolute path.")
    | {"description": "An absolute path."},
    relative_path: _text(f"{_PATH_CHARACTER}+", "Write a path.")
    | {"description": "A path, relative to the directory of this file."},
    socket_address: _address_and_port(f"(?:0|{_PORT})", "0.0.0.0:3128")
    | {"description": "Port 0 lets the system choose one."},
    name_server: _address_and_port(_PORT, "10.96.0.10:53"),
    source_address: _text(
        f"{_IPV4}|{_IPV6}", "Write an IP address of this machine, such as 192.0.2.10."
    ),
    time_zone: _text(r"[A-Za-z][A-Za-z0-9+_/-]*", "Write UTC, or a name such as Europe/Berlin.")
    | {"examples": ["Europe/Berlin"]},
    tenant_name: _text(NAME.pattern, NAME_FORM),
    user_tenants: _names(
        USER.pattern, _text(NAME.pattern, NAME_FORM), minProperties=1, maxProperties=MAX_USERS
    )
    | {"examples": [{"batch": "data-team"}]},
    store_url: _text(STORE_URL, STORE_FORM)
    | {"examples": ["rediss://user@redis.example.com:6379/0"]},
    store_prefix: _text(NAME.pattern, NAME_FORM),
    method: _text(f"(?!CONNECT(?![!-~])){METHOD.pattern}", METHOD_FORM),
    path: _text(rf"/(?:(?:\*|{_SEGMENT}+)/)*(?:\*|{_SEGMENT}*)", PATH_FORM),
    network: _ref("network"),
    internal_network: _ref("network"),
    proxy_url: _text(_PROXY_URL, "Write http://HOST:PORT, such as http://proxy.example.com:3128.")
    | {"examples": ["http://proxy.example.com:3128"]},
    no_proxy_entry: {"anyOf": [_ref("host"), _ref("network")]},
    nat64_prefix: _text(
        f"(?:{_IPV6})/(?:{'|'.join(map(str, NAT64_PREFIX_LENGTHS))})",
        "Write the translator's prefix, such as 2001:db8:64::/96.",
    ),
}


def _form(reader: Reader) -> Schema:
    """What a reader takes."""
    match reader:
        case Integer(low, high):
            return {"type": "integer", "minimum": low, "maximum": high}
        case Duration(low, high):
            return _with_unit("duration", DURATION_UNITS, low, high)
        case Size(low, high):
            return _with_unit("size", SIZE_UNITS, low, high)
        case ChoiceWithOff(words):
            return _words_with_off(words)
        case Choice(words):
            return {"type": "string", "enum": [word.value for word in words]}
        case Number(low, high):
            return {"type": "number", "minimum": low, "maximum": high}
        case ListOf(inner, at_most, example):
            return _list(_form(inner), at_most) | {"examples": [yaml.safe_load(example)]}
    if reader is state_place:
        return _state()
    return _FORMS[reader]


def _state() -> Schema:
    """A text, or a mapping about a shared store."""
    default = SharedState()
    store = {
        key: _value(f"state.{key}", inner, None if key == "url" else getattr(default, key), {})
        for key, inner in STORE_KEYS.items()
    }
    place = _text(f"memory|{STATE_FILE}|{STORE_URL}", STATE_FORM)
    examples = ["sqlite:///var/lib/egress-proxy/state.db", "redis://redis.example.com:6379"]
    return {"anyOf": [place, _mapping(store, required=("url",))], "examples": examples}


def _words_with_off(words: Iterable[str]) -> Schema:
    """One of these words, ``off`` among them.

    YAML 1.1 takes a bare ``off`` for false, and so do the editors that read it. What the schema says with ``not`` no
    editor offers to write: the loader refuses the word ``false``.
    """
    return {
        "anyOf": [
            {"enum": [str(word) for word in words]},
            {
                "$comment": "A bare `off`, which YAML 1.1 reads as false.",
                "not": {"anyOf": [{"const": True}, {"not": {"type": "boolean"}}]},
            },
        ]
    }


# Sections ---------------------------------------------------------------------------------------------------------

#: Keys that a section cannot do without, which :mod:`.load` sees to.
_REQUIRED: Final = {"credentials": ("users_file",), "upstream": ("proxy",)}


def _section_or_value(key: str, reader: Reader, written: Mapping[str, str]) -> Schema:
    if not isinstance(reader, Section):
        return _value(key, reader, _top_level_defaults().get(key), written)
    default = reader.model()
    properties = {
        name: _value(f"{key}.{name}", inner, getattr(default, name), written)
        for name, inner in reader.keys.items()
    }
    restart = ["A change needs a restart."] if key in NEEDS_RESTART else []
    return _mapping(properties, required=_REQUIRED.get(key, ())) | _described(key, *restart)


def _value(path: str, reader: Reader, default: Any, written: Mapping[str, str]) -> Schema:
    form = _form(reader)
    texts = (DESCRIPTIONS.get(path) or written[path], form.get("description"))
    shown = _as_written(reader, default)
    return (
        form
        | {"description": " ".join(filter(None, texts))}
        | ({} if shown is None else {"default": shown})
    )


def _top_level_defaults() -> dict[str, Any]:
    found = {each.name: each.default for each in fields(Config) if each.default is not MISSING}
    return found | {"mode": inspect.signature(CompiledPolicy).parameters["mode"].default}


def _as_written(reader: Reader, value: Any) -> Any:
    """A default as a file would say it; None where there is none."""
    match reader:
        case Duration():
            return _in_largest_unit(value, DURATION_UNITS)
        case Size():
            return _in_largest_unit(value, SIZE_UNITS)
        case Choice():
            return value.value
        case Integer():
            return value
    if reader is boolean:
        return value
    if reader is socket_address:
        return str(value)
    if reader is state_place:
        return str(MemoryState())
    return value or None


def _in_largest_unit(value: float, units: Mapping[str, Any]) -> str:
    texts = [f"{round(value / factor)}{unit}" for unit, factor in reversed([*units.items()])]
    return next(text for text in texts if parse_with_unit(text, dict(units)) == value)


def _docstrings() -> dict[str, str]:
    """The texts under the fields of :mod:`.model`, by the paths of the keys that they are about."""
    found: dict[str, str] = {}
    classes = {
        reader.model.__name__: f"{key}."
        for key, reader in SECTIONS.items()
        if isinstance(reader, Section)
    } | {Config.__name__: ""}
    for node in ast.parse(inspect.getsource(model)).body:
        if not isinstance(node, ast.ClassDef) or node.name not in classes:
            continue
        for before, here in zip(node.body, node.body[1:], strict=False):
            match before, here:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[classes[node.name] + name] = _for_readers_of_a_file(text)
    return found


def _for_readers_of_a_file(docstring: str) -> str:
    """A docstring tells the unit of the value in memory; a file writes the unit itself."""
    text = " ".join(docstring.split()).replace("``", "`")
    return text.replace("Seconds that ", "How long ").replace("Seconds for ", "Time for ")


# Policies ---------------------------------------------------------------------------------------------------------


def _ports(ranges: PortRanges) -> list[int | str]:
    """Ports as a file says them."""
    return [low if low == high else f"{low}-{high}" for low, high in ranges]


_TLS: Final[Schema] = _words_with_off(("verify", "off")) | {"default": "verify"}

_ROUTE: Final[Schema] = {
    "anyOf": [
        {"const": "direct"},
        _mapping(
            {
                key: _FORMS[form] | _described(f"policies[].allow[].upstream.{key}")
                for key, form in zip(PARENT_KEYS, (proxy_url, relative_path), strict=True)
            },
            required=["proxy"],
        ),
    ],
}

_RULE: Final[dict[str, Schema]] = {
    "host": _ref("hostOrSet"),
    "cidr": _ref("network"),
    "ports": _list(_ref("port"), MAX_PER_RULE) | {"examples": [[443, "8000-8010"]]},
    "methods": _form(methods),
    "paths": _form(paths),
    "allow_private": _form(allow_private_networks),
    "tls": _TLS,
    "upstream": _ROUTE,
}


def _rule(*, deny: bool) -> Schema:
    """One entry of a list of rules: a host alone, or a mapping with either ``host`` or ``cidr``."""
    both = {"allow_private", "tls", "upstream"} if deny else set[str]()
    return {
        "anyOf": [
            _ref("hostOrSet"),
            _long_rule("host", {"cidr"} | both, deny=deny),
            _long_rule("cidr", {"host", "allow_private"} | both, deny=deny),
        ]
    }


def _long_rule(target: str, without: set[str], *, deny: bool) -> Schema:
    properties = {
        key: _RULE[key] | _described(f"policies[].allow[].{key}")
        for key in RULE_KEYS
        if key not in without
    }
    properties["ports"]["default"] = _ports(EVERY_PORT if deny else DEFAULT_PORTS)
    return {"title": f"a rule with {target}"} | _mapping(properties, required=[target])


_SUBJECT: Final[dict[str, Schema]] = {
    "cidr": _ref("network"),
    "user": _text(USER.pattern, USER_FORM),
    "namespace": _text(NAMESPACE.pattern, NAMESPACE_FORM),
    "pod_labels": _names(
        LABEL_KEY.pattern,
        _text(LABEL_VALUE.pattern, "Write the label's value, in quotes if need be."),
        minProperties=1,
        maxProperties=MAX_LABELS,
    ),
}


def _limit(key: str, reader: Reader) -> Schema:
    if reader is not bytes_per_day:
        return _form(reader) | ({"default": "UTC"} if key == "time_zone" else {})
    ways = {
        way: _form(inner) | _described(f"policies[].limits.{key}.{way}")
        for way, inner in BYTES_KEYS.items()
    }
    return {"anyOf": [_form(BYTES_KEYS["both"]), _mapping(ways)]}


_POLICY: Final[dict[str, Schema]] = {
    "name": _text(NAME.pattern, NAME_FORM),
    "subjects": _list(_ref("subject"), MAX_SUBJECTS) | {"examples": [[{"cidr": "10.20.0.0/16"}]]},
    "allow": _list(_ref("rule")) | {"examples": [["github.com", "*.githubusercontent.com"]]},
    "ask": _list(_ref("rule")),
    "deny": _list(_ref("denyRule")),
    "contract_headers": _form(contract_headers),
    "limits": _mapping(
        {
            key: _limit(key, reader) | _described(f"policies[].limits.{key}")
            for key, reader in LIMIT_KEYS.items()
        }
    )
    | {
        "dependentRequired": {"burst": ["requests_per_second"]},
        "dependentSchemas": {
            "time_zone": {"anyOf": [{"required": [key]} for key in BY_THE_DAY]},
        },
    },
    "tenant": _form(tenant_name),
    "trust_tenant_header": _form(boolean) | {"default": False},
}

_SET: Final[Schema] = {
    "anyOf": [
        _list(_ref("host")),
        _mapping({"file": _FORMS[relative_path] | _described("sets.NAME.file")}, required=["file"]),
    ]
}

_DEFINITIONS: Final[dict[str, Schema]] = {
    "host": _text(_HOST, _HOST_SAYS)
    | {
        "description": 'A host, "*.example.com" for every name below example.com, or "*" for every host.',
        "examples": ["example.com", "*.example.com"],
    },
    "hostOrSet": _text(f"@{NAME.pattern}|{_HOST}", f'{_HOST_SAYS} A set is "@NAME".')
    | {
        "description": 'A host, "*.example.com" for every name below example.com, "*" for every host, or "@NAME" for a '
        "set. On ports 80 and 443; in a deny rule on every port.",
        "examples": ["example.com", "*.example.com"],
    },
    "network": _text(_NETWORK, _NETWORK_SAYS)
    | {"description": "A network, or one address.", "examples": ["192.0.2.0/24", "2001:db8::/32"]},
    "port": {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 65535},
            _text(f"{_PORT}-{_PORT}", 'Write a number, or a range such as "8000-8010".'),
        ]
    },
    "rule": _rule(deny=False),
    "denyRule": _rule(deny=True),
    "subject": _mapping(
        {key: _SUBJECT[key] | _described(f"policies[].subjects[].{key}") for key in SUBJECT_KEYS}
    )
    | {"description": "Clients for whom all of these keys hold."},
    "policy": _mapping(
        {key: _POLICY[key] | _described(f"policies[].{key}") for key in POLICY_KEYS},
        required=["name"],
    )
    | {"anyOf": [{"required": [action.value]} for action in Action]},
}

#: The top-level keys that are not in SECTIONS.
_BESIDE: Final[dict[str, Schema]] = {
    "include": _list(_FORMS[relative_path])
    | _described("include")
    | {"examples": [["policies.d"]]},
    "sets": _names(NAME.pattern, _SET)
    | _described("sets")
    | {"examples": [{"mirrors": ["example.org"], "partners": {"file": "hosts.txt"}}]},
    "policies": _list(_ref("policy"))
    | _described("policies")
    | {"examples": [[{"name": "everyone", "allow": ["github.com"]}]]},
}
