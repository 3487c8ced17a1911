"""From a file to a checked configuration, or to everything that is wrong with it."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from egress_proxy.config.errors import Problem, Report, file_error, quoted
from egress_proxy.config.lint import lint
from egress_proxy.config.model import Config, Listen, SocketAddress
from egress_proxy.config.nodes import fields, kind_of
from egress_proxy.config.schema import KEYS, NOT_YET, VERSION
from egress_proxy.config.yaml_source import Mapping, Node, Scalar, parse_yaml, place_of
from egress_proxy.core.policy import CompiledPolicy, Mode, Place

#: Bytes of a configuration. 64 MiB are some three million rules; more is a wrong file.
MAX_FILE_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used, and what is doubtful about it."""

    config: Config
    warnings: tuple[Problem, ...]
    places: dict[str, Place]
    """Where each top-level key stands."""


def load(path: str) -> Loaded:
    """Read and check a configuration file.

    Raises ConfigError with every problem of the file.
    """
    return parse(read(path), path)


def read(path: str) -> bytes:
    """The bytes of a configuration file.

    Raises ConfigError.
    """
    try:
        # Looked at before it is opened: to open a named pipe or a device may wait for ever.
        kind = Path(path).stat().st_mode
        if stat.S_ISDIR(kind):
            raise file_error(path, "this is a directory", "name the configuration file in it")
        if not stat.S_ISREG(kind) and not _is_open_pipe(path, kind):
            raise file_error(path, "this is not a regular file", "name a configuration file")
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise file_error(path, "there is no such file", "name an existing one") from None
    except PermissionError:
        what = "the file cannot be read: permission denied"
        raise file_error(path, what, "let the user that runs the proxy read it") from None
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise file_error(path, f"the file cannot be read: {why}", "name a readable file") from None
    if len(data) > MAX_FILE_BYTES:
        what = f"the file is larger than {MAX_FILE_BYTES // 2**20} MiB"
        raise file_error(path, what, "write fewer rules, with *.example.com for many names")
    return data


def _is_open_pipe(path: str, kind: int) -> bool:
    """Whether this is a shell's ``<(command)`` or standard input, which somebody writes to."""
    return stat.S_ISFIFO(kind) and path.startswith(("/dev/", "/proc/"))


def parse(data: bytes, source: str) -> Loaded:
    """Check the text of a configuration; ``source`` is the file name that places show.

    Raises ConfigError with every problem of the text.
    """
    report = Report(source)
    root = parse_yaml(data, report)
    if root is None:
        raise report.exception()
    _check_version(root, report)
    example = "`version: 1`, then `policies:`"
    found = fields(root, "the configuration", report, ("version", *KEYS), NOT_YET, example)
    places: dict[str, Place] = {}
    if isinstance(root, Mapping):
        places = {key.text: place_of(key, report) for key, _ in reversed(root.entries)}
    values: dict[str, Any] = {}
    for key, node in found.items():
        if key != "version":
            values[key] = KEYS[key](node, f"`{key}`", report)
    if isinstance(root, Mapping):
        _check_together(values, places, root, report)
    policies = values.pop("policies", ())
    lint(policies, report)
    if report.failed:
        raise report.exception()
    mode = values.pop("mode", None) or Mode.ENFORCE
    config = Config(
        policy=CompiledPolicy(policies, Mode(mode)),
        source=source,
        digest=hashlib.sha256(data).hexdigest(),
        **values,
    )
    return Loaded(config, report.warnings(), places)


def _check_version(root: Node, report: Report) -> None:
    """Refuse the file at once if its keys may mean something else than ours.

    Raises ConfigError.
    """
    if not isinstance(root, Mapping):
        return
    instead = f"write `version: {VERSION}`"
    for key, node in root.entries:
        if key.text == "version":
            if isinstance(node, Scalar) and node.plain and node.text == str(VERSION):
                return
            shown = quoted(node.text) if isinstance(node, Scalar) else kind_of(node)
            what = f"`version` must be the number {VERSION}, not {shown}"
            report.error(place_of(node, report), what, instead)
            raise report.exception()
    report.error(place_of(root, report), "the file has no `version`", instead)


def _check_together(
    values: dict[str, Any], places: dict[str, Place], root: Mapping, report: Report
) -> None:
    """What single values cannot show."""
    if "policies" not in places:
        what = "the file has no `policies`, so nothing would be allowed"
        report.error(place_of(root, report), what, "write a list of policies")
    listen = values.get("listen") or Listen()
    if _collide(listen.proxy, listen.admin):
        what = f"the proxy and the admin port cannot both listen on {listen.admin}"
        report.error(places.get("listen", place_of(root, report)), what, "write different ports")
    dns = values.get("dns")
    if dns is not None and dns.min_ttl > dns.max_ttl:
        what = "`min_ttl` is longer than `max_ttl`"
        report.error(places["dns"], what, "write a shorter `min_ttl` or a longer `max_ttl`")
    timeouts = values.get("timeouts")
    if timeouts is not None:
        for shorter, longer in (("connect_attempt", "connect"), ("idle", "lifetime")):
            if getattr(timeouts, shorter) > getattr(timeouts, longer):
                what = f"`{shorter}` is longer than `{longer}`, so it never takes effect"
                report.warning(places["timeouts"], what, f"write a shorter `{shorter}`")


def _collide(one: SocketAddress, other: SocketAddress) -> bool:
    everywhere = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    same_host = one.host == other.host or bool({one.host, other.host} & everywhere)
    return one.port == other.port != 0 and same_host
