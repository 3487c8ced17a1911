"""Texts of a certain form, in the common part of the regular expressions of Python, ECMAScript and Java."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from egress_proxy.config.conditions import METHOD, METHOD_FORM, PATH_FORM, method, path
from egress_proxy.config.destinations import network
from egress_proxy.config.json_schema.parts import Schema, names, ref, text
from egress_proxy.config.limits import MAX_USERS, tenant_name, time_zone, user_tenants
from egress_proxy.config.networks import internal_network, nat64_prefix
from egress_proxy.config.shared_state import STORE_FORM, STORE_URL, store_prefix, store_url
from egress_proxy.config.subjects import USER
from egress_proxy.config.upstream import no_proxy_entry, proxy_url
from egress_proxy.config.values import (
    NAME,
    NAME_FORM,
    NUMBER_AND_UNIT,
    Reader,
    boolean,
    file_path,
    name_server,
    relative_path,
    socket_address,
    source_address,
)
from egress_proxy.core.embedding import NAT64_PREFIX_LENGTHS
from egress_proxy.core.names import MAX_LABEL_LENGTH, MAX_NAME_LENGTH

_OCTET: Final = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4: Final = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
#: Every IPv6 address and more: its exact grammar would fill a page.
_IPV6: Final = "[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*"
PORT: Final = (
    "(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
)
_ADDRESS: Final = rf"(?:{_IPV4}|\[{_IPV6}\])"
NETWORK: Final = (
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
HOST: Final = rf"\*|(?:\*\.)?(?:{_ASCII_NAME}|{_OTHER_NAME})"

#: A host of whatever letters: its exact form is its own pattern's, which knows no port behind it.
_PROXY_URL: Final = rf"[hH][tT][tT][pP]://(?:[^\x00-\x20/?#@\[\]:\\]+|\[{_IPV6}\]):{PORT}"

#: Of a request's path. What its encoded bytes and its dots mean is the loader's to say.
_SEGMENT: Final = r"[A-Za-z0-9._~!\x24&'()+,=:@%-]"

_PATH_CHARACTER: Final = r"[^\x00-\x1F\x7F]"
HOST_SAYS: Final = (
    'Write a host: example.com, or "*.example.com" for every name below it, without port, path or scheme. '
    "Addresses are written {cidr: …}."
)
NETWORK_SAYS: Final = "Write an address and a prefix length, such as 192.0.2.0/24 or 2001:db8::/32."


def _address_and_port(port: str, example: str) -> Schema:
    form = text(f"{_ADDRESS}:{port}", f"Write address:port, such as {example}.")
    return form | {"examples": [example]}


def with_unit(kind: str, units: Mapping[str, Any], low: str, high: str) -> Schema:
    unit = "|".join(units)
    says = f"A {kind} from {low} to {high}: a whole number with a unit ({', '.join(units)})."
    number = NUMBER_AND_UNIT.pattern.removesuffix("([A-Za-z]+)")
    return text(f"{number}(?:{unit})", says) | {"description": says}


#: The readers that take no parameter.
FORMS: Final[dict[Reader, Schema]] = {
    boolean: {"type": "boolean"},
    file_path: text(f"/{_PATH_CHARACTER}*", "Write an absolute path.")
    | {"description": "An absolute path."},
    relative_path: text(f"{_PATH_CHARACTER}+", "Write a path.")
    | {"description": "A path, relative to the directory of this file."},
    socket_address: _address_and_port(f"(?:0|{PORT})", "0.0.0.0:3128")
    | {"description": "Port 0 lets the system choose one."},
    name_server: _address_and_port(PORT, "10.96.0.10:53"),
    source_address: text(
        f"{_IPV4}|{_IPV6}", "Write an IP address of this machine, such as 192.0.2.10."
    ),
    time_zone: text(r"[A-Za-z][A-Za-z0-9+_/-]*", "Write UTC, or a name such as Europe/Berlin.")
    | {"examples": ["Europe/Berlin"]},
    tenant_name: text(NAME.pattern, NAME_FORM),
    user_tenants: names(
        USER.pattern, text(NAME.pattern, NAME_FORM), minProperties=1, maxProperties=MAX_USERS
    )
    | {"examples": [{"batch": "data-team"}]},
    store_url: text(STORE_URL, STORE_FORM)
    | {"examples": ["rediss://user@redis.example.com:6379/0"]},
    store_prefix: text(NAME.pattern, NAME_FORM),
    method: text(f"(?!CONNECT(?![!-~])){METHOD.pattern}", METHOD_FORM),
    path: text(rf"/(?:(?:\*|{_SEGMENT}+)/)*(?:\*|{_SEGMENT}*)", PATH_FORM),
    network: ref("network"),
    internal_network: ref("network"),
    proxy_url: text(_PROXY_URL, "Write http://HOST:PORT, such as http://proxy.example.com:3128.")
    | {"examples": ["http://proxy.example.com:3128"]},
    no_proxy_entry: {"anyOf": [ref("host"), ref("network")]},
    nat64_prefix: text(
        f"(?:{_IPV6})/(?:{'|'.join(map(str, NAT64_PREFIX_LENGTHS))})",
        "Write the translator's prefix, such as 2001:db8:64::/96.",
    ),
}
