"""``import``: another proxy's rules as ours."""

from __future__ import annotations

import argparse
import sys

from egress_proxy.commands.common import BAD, OK, Verbs


def add(verbs: Verbs) -> None:
    imports = verbs.add_parser(
        "import", help="print another proxy's rules as a configuration", allow_abbrev=False
    )
    imports.add_argument("peer", choices=("squid", "smokescreen"), help="whose rules they are")
    imports.add_argument("file", metavar="FILE", help="its configuration file")
    imports.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    from egress_proxy.migrate import import_file
    from egress_proxy.migrate.writing import MigrationError

    try:
        imported = import_file(options.peer, options.file)
    except MigrationError as error:
        print(error, file=sys.stderr)
        return BAD
    for note in imported.notes:
        print(note, file=sys.stderr)
    print(imported.yaml, end="")
    return OK
