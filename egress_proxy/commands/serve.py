"""``serve``: runs the proxy."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from egress_proxy.commands.common import BAD, OK, Verbs, add_config, config_path

#: More processes than any machine of today has processors: a number beyond is a slip of the hand.
MAX_WORKERS: Final = 256
_NO_FILE: Final = (
    "egress-proxy: --reuse-port cannot be used with `state: sqlite://…`: the proxy that is replaced has the file until"
    " it has drained, so the two cannot run side by side; use `redis://…`, or restart without --reuse-port"
)


def add(verbs: Verbs) -> None:
    serve = verbs.add_parser("serve", help="run the proxy", allow_abbrev=False)
    add_config(serve)
    serve.add_argument(
        "--loop",
        choices=("uvloop", "asyncio"),
        default="uvloop",
        help="the event loop: uvloop, or Python's own to compare with (default: uvloop)",
    )
    serve.add_argument(
        "--workers",
        type=_workers,
        default="1",  # argparse reads a text as if it was given
        metavar="N",
        help="processes that serve together, or `auto` for as many as there are processors to use (default: 1)",
    )
    serve.add_argument(
        "--reuse-port",
        action="store_true",
        help="listen beside another egress-proxy of this user, which then is stopped: a restart without a gap",
    )
    serve.set_defaults(run=_serve)


def _workers(text: str) -> int:
    if text == "auto":
        from egress_proxy.supervise.cpus import usable_cpus

        return min(usable_cpus(), MAX_WORKERS)
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:4]) <= MAX_WORKERS):
        raise argparse.ArgumentTypeError(f"write a number from 1 to {MAX_WORKERS}, or auto")
    return int(text)


def _serve(options: argparse.Namespace) -> int:
    from egress_proxy.config.errors import ConfigError
    from egress_proxy.config.load import load
    from egress_proxy.config.model import FileState
    from egress_proxy.supervise.snapshot import Recording

    workers: int = options.workers
    with config_path(options) as path:
        try:
            loaded = load(path, Recording() if workers > 1 else None)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return BAD
        if options.reuse_port and isinstance(loaded.config.state, FileState):
            print(_NO_FILE, file=sys.stderr)
            return BAD
        # Only now: `serve` with a broken configuration need not wait for the server's modules.
        from egress_proxy import app
        from egress_proxy.engine import StartError

        packaged_default, loop = options.config is None, options.loop
        try:
            if workers == 1:
                app.run(
                    loaded,
                    packaged_default=packaged_default,
                    loop=loop,
                    reuse_port=options.reuse_port,
                )
            else:
                from egress_proxy.supervise import supervisor

                supervisor.run(
                    loaded,
                    workers,
                    packaged_default=packaged_default,
                    loop=loop,
                    reuse_port=options.reuse_port,
                )
        except StartError as error:
            print(f"egress-proxy: {error}", file=sys.stderr)
            return BAD
        return OK
