"""The schema of policies, their rules and subjects, and of sets."""

from __future__ import annotations

from typing import Final

from egress_proxy.config.conditions import methods, paths
from egress_proxy.config.json_schema.descriptions import described
from egress_proxy.config.json_schema.forms import (
    FORMS,
    HOST,
    HOST_SAYS,
    NETWORK,
    NETWORK_SAYS,
    PORT,
)
from egress_proxy.config.json_schema.parts import (
    Schema,
    list_of,
    mapping,
    names,
    ref,
    text,
    words_with_off,
)
from egress_proxy.config.json_schema.sections import form_of
from egress_proxy.config.limits import (
    BY_THE_DAY,
    BYTES_KEYS,
    LIMIT_KEYS,
    bytes_per_day,
    tenant_name,
)
from egress_proxy.config.rules import (
    MAX_PER_RULE,
    POLICY_KEYS,
    RULE_KEYS,
    allow_private_networks,
    contract_headers,
)
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
from egress_proxy.config.upstream import PARENT_KEYS, proxy_url
from egress_proxy.config.values import NAME, NAME_FORM, Reader, boolean, relative_path
from egress_proxy.core.policy import DEFAULT_PORTS, EVERY_PORT, Action, PortRanges


def _ports(ranges: PortRanges) -> list[int | str]:
    """Ports as a file says them."""
    return [low if low == high else f"{low}-{high}" for low, high in ranges]


_TLS: Final[Schema] = words_with_off(("verify", "off")) | {"default": "verify"}

_ROUTE: Final[Schema] = {
    "anyOf": [
        {"const": "direct"},
        mapping(
            {
                key: FORMS[form] | described(f"policies[].allow[].upstream.{key}")
                for key, form in zip(PARENT_KEYS, (proxy_url, relative_path), strict=True)
            },
            required=["proxy"],
        ),
    ],
}

_RULE: Final[dict[str, Schema]] = {
    "host": ref("hostOrSet"),
    "cidr": ref("network"),
    "ports": list_of(ref("port"), MAX_PER_RULE) | {"examples": [[443, "8000-8010"]]},
    "methods": form_of(methods),
    "paths": form_of(paths),
    "allow_private": form_of(allow_private_networks),
    "tls": _TLS,
    "upstream": _ROUTE,
}


def _rule(*, deny: bool) -> Schema:
    """One entry of a list of rules: a host alone, or a mapping with either ``host`` or ``cidr``."""
    both = {"allow_private", "tls", "upstream"} if deny else set[str]()
    return {
        "anyOf": [
            ref("hostOrSet"),
            _long_rule("host", {"cidr"} | both, deny=deny),
            _long_rule("cidr", {"host", "allow_private"} | both, deny=deny),
        ]
    }


def _long_rule(target: str, without: set[str], *, deny: bool) -> Schema:
    properties = {
        key: _RULE[key] | described(f"policies[].allow[].{key}")
        for key in RULE_KEYS
        if key not in without
    }
    properties["ports"]["default"] = _ports(EVERY_PORT if deny else DEFAULT_PORTS)
    return {"title": f"a rule with {target}"} | mapping(properties, required=[target])


_SUBJECT: Final[dict[str, Schema]] = {
    "cidr": ref("network"),
    "user": text(USER.pattern, USER_FORM),
    "namespace": text(NAMESPACE.pattern, NAMESPACE_FORM),
    "pod_labels": names(
        LABEL_KEY.pattern,
        text(LABEL_VALUE.pattern, "Write the label's value, in quotes if need be."),
        minProperties=1,
        maxProperties=MAX_LABELS,
    ),
}


def _limit(key: str, reader: Reader) -> Schema:
    if reader is not bytes_per_day:
        return form_of(reader) | ({"default": "UTC"} if key == "time_zone" else {})
    ways = {
        way: form_of(inner) | described(f"policies[].limits.{key}.{way}")
        for way, inner in BYTES_KEYS.items()
    }
    return {"anyOf": [form_of(BYTES_KEYS["both"]), mapping(ways)]}


_POLICY: Final[dict[str, Schema]] = {
    "name": text(NAME.pattern, NAME_FORM),
    "subjects": list_of(ref("subject"), MAX_SUBJECTS) | {"examples": [[{"cidr": "10.20.0.0/16"}]]},
    "allow": list_of(ref("rule")) | {"examples": [["github.com", "*.githubusercontent.com"]]},
    "ask": list_of(ref("rule")),
    "deny": list_of(ref("denyRule")),
    "contract_headers": form_of(contract_headers),
    "limits": mapping(
        {
            key: _limit(key, reader) | described(f"policies[].limits.{key}")
            for key, reader in LIMIT_KEYS.items()
        }
    )
    | {
        "dependentRequired": {"burst": ["requests_per_second"]},
        "dependentSchemas": {
            "time_zone": {"anyOf": [{"required": [key]} for key in BY_THE_DAY]},
        },
    },
    "tenant": form_of(tenant_name),
    "trust_tenant_header": form_of(boolean) | {"default": False},
}

_SET: Final[Schema] = {
    "anyOf": [
        list_of(ref("host")),
        mapping({"file": FORMS[relative_path] | described("sets.NAME.file")}, required=["file"]),
    ]
}

DEFINITIONS: Final[dict[str, Schema]] = {
    "host": text(HOST, HOST_SAYS)
    | {
        "description": 'A host, "*.example.com" for every name below example.com, or "*" for every host.',
        "examples": ["example.com", "*.example.com"],
    },
    "hostOrSet": text(f"@{NAME.pattern}|{HOST}", f'{HOST_SAYS} A set is "@NAME".')
    | {
        "description": 'A host, "*.example.com" for every name below example.com, "*" for every host, or "@NAME" for a '
        "set. On ports 80 and 443; in a deny rule on every port.",
        "examples": ["example.com", "*.example.com"],
    },
    "network": text(NETWORK, NETWORK_SAYS)
    | {"description": "A network, or one address.", "examples": ["192.0.2.0/24", "2001:db8::/32"]},
    "port": {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 65535},
            text(f"{PORT}-{PORT}", 'Write a number, or a range such as "8000-8010".'),
        ]
    },
    "rule": _rule(deny=False),
    "denyRule": _rule(deny=True),
    "subject": mapping(
        {key: _SUBJECT[key] | described(f"policies[].subjects[].{key}") for key in SUBJECT_KEYS}
    )
    | {"description": "Clients for whom all of these keys hold."},
    "policy": mapping(
        {key: _POLICY[key] | described(f"policies[].{key}") for key in POLICY_KEYS},
        required=["name"],
    )
    | {"anyOf": [{"required": [action.value]} for action in Action]},
}

#: The top-level keys that are not in SECTIONS.
BESIDE: Final[dict[str, Schema]] = {
    "include": list_of(FORMS[relative_path])
    | described("include")
    | {"examples": [["policies.d"]]},
    "sets": names(NAME.pattern, _SET)
    | described("sets")
    | {"examples": [{"mirrors": ["example.org"], "partners": {"file": "hosts.txt"}}]},
    "policies": list_of(ref("policy"))
    | described("policies")
    | {"examples": [[{"name": "everyone", "allow": ["github.com"]}]]},
}
