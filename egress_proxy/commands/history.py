"""``suggest`` and ``replay``: what a log of requests says about a configuration."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterable
from typing import Any

from egress_proxy.commands.common import (
    BAD,
    NO,
    OK,
    Verbs,
    add_config,
    add_format,
    config_path,
    ip_address,
    print_json,
)


def add(verbs: Verbs) -> None:
    suggest = verbs.add_parser(
        "suggest",
        help="print the smallest policy that lets a log's refused requests through, as a diff",
        allow_abbrev=False,
    )
    add_config(suggest)
    _add_log(suggest)
    suggest.add_argument(
        "--address",
        dest="addresses",
        type=_host_and_address,
        action="append",
        default=[],
        metavar="HOST=IP",
        help="an address that a host resolves to, for `allow_private`. May be repeated",
    )
    add_format(suggest)
    suggest.set_defaults(run=_suggest)

    replay = verbs.add_parser(
        "replay",
        help="say which decisions of a log a configuration would change",
        allow_abbrev=False,
    )
    replay.add_argument("--config", metavar="FILE", required=True, help="the configuration file")
    _add_log(replay)
    add_format(replay)
    replay.set_defaults(run=_replay)


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log",
        metavar="LOG",
        nargs="?",
        help="audit lines, or Squid's access.log (default: standard input)",
    )


def _host_and_address(text: str) -> tuple[str, str]:
    from egress_proxy.core.errors import HostError
    from egress_proxy.core.names import canonical_host

    host, separator, ip = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError("write HOST=IP")
    try:
        return canonical_host(host).text, ip_address(ip)
    except HostError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _suggest(options: argparse.Namespace) -> int:
    from egress_proxy.history.suggest import as_text, suggest

    addresses: dict[str, tuple[str, ...]] = {}
    for host, address in options.addresses:
        addresses[host] = (*addresses.get(host, ()), address)
    # A diff must have the file's own bytes.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    return _about_a_log(
        options, lambda path, lines: suggest(path, lines, addresses), as_text, lambda _found: OK
    )


def _replay(options: argparse.Namespace) -> int:
    from egress_proxy.config.load import load
    from egress_proxy.history.replay import as_text, replay

    return _about_a_log(
        options,
        lambda path, lines: replay(load(path).config.policy, lines),
        as_text,
        lambda found: NO if found.changed else OK,
    )


def _about_a_log(
    options: argparse.Namespace,
    work: Callable[[str, Iterable[str]], Any],
    as_text: Callable[[Any], str],
    status: Callable[[Any], int],
) -> int:
    """Read a log with a configuration, and print what came of it."""
    from egress_proxy.config.errors import ConfigError
    from egress_proxy.core.policy import shown_path
    from egress_proxy.history.logs import open_log

    try:
        with config_path(options) as path, open_log(options.log) as lines:
            found = work(path, lines)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return BAD
    except OSError as error:
        named = f"{shown_path(options.log)}: " if options.log else ""
        print(f"egress-proxy: LOG: {named}{error.strerror}", file=sys.stderr)
        return BAD
    for message in found.log.messages():
        print(f"egress-proxy: {message}", file=sys.stderr)
    if found.log.is_another_file:
        # A gate must not pass because it was given the wrong file.
        what = "no line in it is about a request; name audit lines, or Squid's access.log"
        print(f"egress-proxy: LOG: {what}", file=sys.stderr)
        return BAD
    if options.format == "json":
        print_json(found)
    else:
        print(as_text(found), end="")
    return status(found)
