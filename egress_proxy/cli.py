"""The command line. Exit 0: fine; 1: the answer is no; 2: bad usage or a bad configuration."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from egress_proxy import __version__
from egress_proxy.commands import check, explain, history, limits, migrate, serve

# What a shell reports of a command that SIGINT or SIGPIPE ended.
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A file name may hold bytes that the terminal's encoding has no letters for.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        options = _parser().parse_args(arguments)
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes again when it ends, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="egress-proxy",
        description="A forward proxy that decides, by allow-list, what a cluster may reach.",
        epilog="Exit status: 0 fine, 1 the answer is no, 2 bad usage or a bad configuration.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"egress-proxy {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    serve.add(verbs)
    check.add(verbs)
    explain.add(verbs)
    explain.add_errors(verbs)
    limits.add(verbs)
    check.add_schema(verbs)
    migrate.add(verbs)
    history.add(verbs)
    return parser
