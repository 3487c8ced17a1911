"""What verbs have in common: exit statuses, arguments that many take, and how values are printed."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from importlib import resources
from typing import Any, Final

OK: Final = 0
NO: Final = 1
BAD: Final = 2

#: What ``ArgumentParser.add_subparsers`` returns.
Verbs = Any


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the configuration file (default: the packaged one, for loopback only)",
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="of the output (default: text)"
    )


def ip_address(text: str) -> str:
    from egress_proxy.core.errors import HostError
    from egress_proxy.core.explain import parse_address

    try:
        return parse_address(text)
    except HostError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@contextlib.contextmanager
def config_path(options: argparse.Namespace) -> Iterator[str]:
    """The configuration's path; that of the packaged one exists while the context lasts."""
    if options.config is not None:
        yield options.config
        return
    with resources.as_file(resources.files("egress_proxy") / "default.yaml") as path:
        yield str(path)


def print_json(value: Any) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
