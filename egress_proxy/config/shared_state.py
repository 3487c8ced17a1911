"""``state: redis://…``: the store that replicas share, its password and the authority of its certificate."""

from __future__ import annotations

import re
import ssl
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, Final

from egress_proxy.config.errors import MAX_PATH, Code, ConfigError, Report, quoted, told
from egress_proxy.config.model import OnStoreFailure, SharedState
from egress_proxy.config.nodes import fields, text, value_of
from egress_proxy.config.sources import Sources
from egress_proxy.config.values import Choice, Duration, Reader, relative_path
from egress_proxy.config.yaml_source import Mapping, Node, place_of
from egress_proxy.core.errors import HostError
from egress_proxy.core.names import parse_authority
from egress_proxy.core.policy import Place

_EXAMPLE: Final = "rediss://user@redis.example.com:6379/0"
STORE_FORM: Final = f"write redis://HOST:PORT, or with TLS rediss://HOST:PORT, such as {_EXAMPLE}"

#: A name, or an address in brackets where it is one of IPv6. A user's name is one that Redis' ACL takes, and no escape.
STORE_URL: Final = (
    r"(rediss?)://(?:([A-Za-z0-9._-]{1,64})@)?"
    r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?(?:/([0-9]{0,5}))?"
)
_URL: Final = re.compile(STORE_URL)
_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DEFAULT_PORT: Final = 6379
#: Bytes of a password. Redis takes 512 MiB, and a file of that is none.
_MAX_PASSWORD: Final = 4096


def is_store(found: str) -> bool:
    """Whether a text was meant for a store's URL."""
    return found.lower().startswith(("redis:", "rediss:", "valkey:", "valkeys:"))


def store_url(node: Node, name: str, report: Report) -> SharedState | None:
    """Read ``redis://[USER@]HOST[:PORT][/DATABASE]``, or ``rediss://`` with TLS."""
    found = text(node, name, report, STORE_FORM)
    if found is None:
        return None

    def refuse(what: str, instead: str = STORE_FORM) -> None:
        report.error(Code.BAD_VALUE, place_of(node, report), f"{name} {what}", instead)

    user_information, at, _ = found.partition("://")[2].rpartition("@")
    if at and ":" in user_information:
        # Nothing is quoted, here and below, where a password may stand.
        refuse(
            "has a password in its URL",
            "write it in a file of its own, and that as `password_file`",
        )
        return None
    shown = "" if "@" in found else f": {quoted(found)}"
    if found.lower().startswith("valkey"):
        scheme = "rediss" if found.lower().startswith("valkeys") else "redis"
        refuse("has a scheme of Valkey's", f"write {scheme}://, which Valkey speaks as well")
        return None
    if found == "memory" or found.lower().startswith("sqlite:"):
        alone = "sqlite:///PATH" if shown == "" or len(found) > MAX_PATH else found
        refuse("names no store that replicas share", f"write `state: {quoted(alone, MAX_PATH)[1:]}")
        return None
    match = _URL.fullmatch(found)
    if match is None:
        refuse(f"is no URL of a store{shown}")
        return None
    scheme, user, host, port, database = match.groups()
    number = int(port or _DEFAULT_PORT)
    try:
        authority = parse_authority(f"{host}:{number}".encode("ascii"), None)
    except HostError as error:
        refuse(f"is no URL of a store: {error}")
        return None
    if isinstance(authority.host.address, IPv4Address) and host != authority.host.text:
        instead = f"write {authority.host.text}, if that is meant"
        refuse("is no URL of a store: its address has an unusual spelling", instead)
        return None
    return SharedState(
        host=authority.host.text,
        port=number,
        database=int(database or 0),
        tls=scheme == "rediss",
        user=user or "",
    )


def _prefix(node: Node, name: str, report: Report) -> str | None:
    """The beginning of all keys. Braces and colons have a meaning of their own there."""
    instead = "write 1 to 64 letters, digits, dots, hyphens or underscores"
    found = text(node, name, report, instead)
    if found is not None and _PREFIX.fullmatch(found) is None:
        what = f"{name} cannot be {quoted(found)}"
        report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
        return None
    return found


#: Keys of ``state``, where it is a mapping.
STORE_KEYS: Final[dict[str, Reader]] = {
    "url": store_url,
    "password_file": relative_path,
    "ca_file": relative_path,
    "on_store_failure": Choice(OnStoreFailure),
    "timeout": Duration("5ms", "5s"),
    "prefix": _prefix,
    "lease": Duration("1s", "5m"),
}
store_prefix: Final = _prefix


def store(node: Node, name: str, report: Report) -> SharedState | None:
    """Read the URL alone, or a mapping with it."""
    if not isinstance(node, Mapping):
        return store_url(node, name, report)
    example = f'url: "{_EXAMPLE}" on a line below'
    values: dict[str, Any] = {}
    for key, value in fields(node, name, report, tuple(STORE_KEYS), {}, example).items():
        values[key] = STORE_KEYS[key](value, f"`{key}`", report)
    if all(key.text != "url" for key, _ in node.entries) and node.entries:
        what = f"{name} has no `url`"
        report.error(Code.MISSING_KEY, place_of(node, report), what, STORE_FORM)
    found: SharedState | None = values.pop("url", None)
    if found is None:
        return None
    found = replace(found, **{key: value for key, value in values.items() if value is not None})
    if found.ca_file and not found.tls:
        what = "`ca_file` is for TLS, and the URL begins with redis://"
        report.error(
            Code.CONFLICT, place_of(node, report), what, "write rediss://, or remove `ca_file`"
        )
    if found.user and not found.password_file:
        what = "the URL has a user, and there is no `password_file`"
        instead = "name a file with the user's password"
        report.error(Code.MISSING_KEY, place_of(node, report), what, instead)
    return found


def with_secrets(
    found: SharedState, node: Node, place: Place, report: Report, sources: Sources
) -> SharedState:
    """The store's settings with what its files say. No message shows what the password's holds.

    ``node`` is the value of ``state``, which stands at ``place``.
    """
    if found.user and not found.password_file and not report.failed:
        # As a text alone, `state` has no other place to say it.
        what = "the URL of `state` has a user, and no password"
        instead = "write `state: {url: …, password_file: …}`"
        report.error(Code.MISSING_KEY, place, what, instead)
    if found.password_file:
        named = value_of(node, "password_file")
        where = place if named is None else place_of(named, report)
        data = _read(found.password_file, where, report, sources, secret=True)
        if data is not None:
            found = replace(found, password=_password(data, report.beside(found.password_file)))
    if found.ca_file:
        named = value_of(node, "ca_file")
        where = place if named is None else place_of(named, report)
        data = _read(found.ca_file, where, report, sources, secret=False)
        if data is not None:
            found = replace(found, ca=_certificates(data, report.beside(found.ca_file)))
    return found


def _read(
    path: str, place: Place, report: Report, sources: Sources, *, secret: bool
) -> bytes | None:
    try:
        return sources.read(path, secret=secret)
    except ConfigError as error:
        report.error(Code.UNREADABLE_FILE, place, *told(error))
        return None


def _password(data: bytes, report: Report) -> str:
    """The one line of the file, without its end."""

    def error(what: str, instead: str = "write one line with the password alone") -> str:
        report.error(Code.BAD_USER, Place(report.file, 1, 1), what, instead)
        return ""

    line = data.removesuffix(b"\n")
    if not line:
        return error("the file is empty")
    if b"\n" in line or b"\r" in line:
        return error("the file has more than one line, or line ends that are not Unix'")
    if len(line) > _MAX_PASSWORD:
        return error(f"the line is longer than {_MAX_PASSWORD:,} bytes")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return error("the file is not UTF-8", "save it as UTF-8 text")


def _certificates(data: bytes, report: Report) -> str:
    """The certificates of the file, which are some."""
    try:
        pem = data.decode("ascii")
        if not pem:
            raise ValueError
        ssl.create_default_context(cadata=pem)
    except (UnicodeDecodeError, ssl.SSLError, ValueError):
        what = "the file has no certificates that can be read"
        instead = "write the authority's certificate as PEM (-----BEGIN CERTIFICATE-----)"
        report.error(Code.BAD_VALUE, Place(report.file, 1, 1), what, instead)
        return ""
    return pem
