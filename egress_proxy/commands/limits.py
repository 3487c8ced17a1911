"""``limits``: what each tenant has used, of a proxy that runs."""

from __future__ import annotations

import argparse
import sys

from egress_proxy.commands.common import BAD, NO, OK, Verbs, add_format, print_json


def add(verbs: Verbs) -> None:
    limits = verbs.add_parser(
        "limits",
        help="show what each tenant has used of its limits, of a proxy that runs",
        allow_abbrev=False,
    )
    limits.add_argument(
        "--admin",
        metavar="URL",
        default="http://127.0.0.1:9090",
        help="the proxy's admin port (default: http://127.0.0.1:9090)",
    )
    limits.add_argument("--token-file", metavar="FILE", help="the admin port's token")
    add_format(limits)
    limits.set_defaults(run=_limits)


def _limits(options: argparse.Namespace) -> int:
    from egress_proxy.admin.limits_verb import AdminError, as_table, fetch, parse_admin

    try:
        found = fetch(parse_admin(options.admin), options.token_file)
    except AdminError as error:
        print(f"egress-proxy limits: {error}", file=sys.stderr)
        return NO if error.refused else BAD
    if options.format == "json":
        print_json(found)
    else:
        print(as_table(found), end="")
    return OK
