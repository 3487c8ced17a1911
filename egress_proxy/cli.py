"""The command line. Exit 0: fine; 1: the answer is no; 2: bad usage or a bad configuration."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from typing import Any, Final

from egress_proxy import __version__

OK: Final = 0
NO: Final = 1
BAD: Final = 2
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

    serve = verbs.add_parser("serve", help="run the proxy", allow_abbrev=False)
    _add_config(serve)
    serve.add_argument(
        "--loop",
        choices=("uvloop", "asyncio"),
        default="uvloop",
        help="the event loop: uvloop, or Python's own to compare with (default: uvloop)",
    )
    serve.set_defaults(run=_serve)

    check = verbs.add_parser(
        "check", help="show every error and warning of a configuration", allow_abbrev=False
    )
    check.add_argument("file", metavar="FILE", help="the configuration file")
    _add_format(check)
    check.set_defaults(run=_check)

    explain = verbs.add_parser(
        "explain",
        help="say what would happen to a request, because of which rule",
        allow_abbrev=False,
    )
    _add_config(explain)
    explain.add_argument(
        "--as",
        dest="identity",
        type=_identity,
        default="client=127.0.0.1",  # argparse reads a text as if it was given
        metavar="KEY=VALUE,…",
        help="who asks: client=IP, user=NAME, namespace=NAME, pod_labels.KEY=VALUE (default: client=127.0.0.1)",
    )
    explain.add_argument(
        "--address",
        dest="addresses",
        type=_address,
        action="append",
        default=[],
        metavar="IP",
        help="an address that the host resolves to. May be repeated",
    )
    explain.add_argument(
        "--resolve", action="store_true", help="ask the name servers for the host's addresses"
    )
    _add_format(explain)
    explain.add_argument(
        "--method",
        metavar="METHOD",
        help="of a plain HTTP request, whose TARGET is an http:// URL (default: GET)",
    )
    explain.add_argument(
        "target", metavar="TARGET", help="host, host:port or URL; the default port is 443"
    )
    explain.set_defaults(run=_explain)

    errors = verbs.add_parser(
        "errors", help="print the table of errors, and what to do about each", allow_abbrev=False
    )
    errors.add_argument(
        "name",
        metavar="REASON",
        nargs="?",
        help="explain this reason, or show those of this code (default: all)",
    )
    _add_format(errors)
    errors.set_defaults(run=_errors)

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
    _add_format(limits)
    limits.set_defaults(run=_limits)

    schema = verbs.add_parser(
        "schema", help="print the JSON Schema of the configuration, for editors", allow_abbrev=False
    )
    schema.set_defaults(run=_schema)

    imports = verbs.add_parser(
        "import", help="print another proxy's rules as a configuration", allow_abbrev=False
    )
    imports.add_argument("peer", choices=("squid", "smokescreen"), help="whose rules they are")
    imports.add_argument("file", metavar="FILE", help="its configuration file")
    imports.set_defaults(run=_import)

    suggest = verbs.add_parser(
        "suggest",
        help="print the smallest policy that lets a log's refused requests through, as a diff",
        allow_abbrev=False,
    )
    _add_config(suggest)
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
    _add_format(suggest)
    suggest.set_defaults(run=_suggest)

    replay = verbs.add_parser(
        "replay",
        help="say which decisions of a log a configuration would change",
        allow_abbrev=False,
    )
    replay.add_argument("--config", metavar="FILE", required=True, help="the configuration file")
    _add_log(replay)
    _add_format(replay)
    replay.set_defaults(run=_replay)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the configuration file (default: the packaged one, for loopback only)",
    )


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log",
        metavar="LOG",
        nargs="?",
        help="audit lines, or Squid's access.log (default: standard input)",
    )


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="of the output (default: text)"
    )


def _identity(text: str) -> Any:
    from egress_proxy.core.errors import IdentityError
    from egress_proxy.core.identity import parse_identity

    try:
        return parse_identity(text)
    except IdentityError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _address(text: str) -> str:
    from egress_proxy.core.errors import HostError
    from egress_proxy.core.explain import parse_address

    try:
        return parse_address(text)
    except HostError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _host_and_address(text: str) -> tuple[str, str]:
    from egress_proxy.core.errors import HostError
    from egress_proxy.core.names import canonical_host

    host, separator, address = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError("write HOST=IP")
    try:
        return canonical_host(host).text, _address(address)
    except HostError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# Verbs ------------------------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    from egress_proxy.config.errors import ConfigError
    from egress_proxy.config.load import load

    with _config_path(options) as path:
        try:
            loaded = load(path)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return BAD
        # Only now: `serve` with a broken configuration need not wait for the server's modules.
        from egress_proxy.app import StartError, run

        try:
            run(loaded, packaged_default=options.config is None, loop=options.loop)
        except StartError as error:
            print(f"egress-proxy: {error}", file=sys.stderr)
            return BAD
        return OK


def _check(options: argparse.Namespace) -> int:
    from egress_proxy.config.errors import ConfigError, Problem, Severity
    from egress_proxy.config.load import load
    from egress_proxy.core.policy import shown_path

    problems: tuple[Problem, ...]
    summary: dict[str, Any] = {"file": options.file, "valid": False}
    try:
        loaded = load(options.file)
    except ConfigError as error:
        problems = error.problems
    else:
        problems = loaded.warnings
        policy = loaded.config.policy
        summary = {
            "file": options.file,
            "valid": True,
            "policies": len(policy.policies),
            "rules": policy.rule_count,
        }
    if options.format == "json":
        _print_json({**summary, "problems": [_problem_as_json(problem) for problem in problems]})
    else:
        for problem in problems:
            print(problem)
        errors = sum(problem.severity is Severity.ERROR for problem in problems)
        found = f"{_count(errors, 'error')}, {_count(len(problems) - errors, 'warning')}"
        if summary["valid"]:
            found = f"{_count(summary['policies'], 'policy')}, {_count(summary['rules'], 'rule')}; {found}"
        print(f"{shown_path(options.file)}: {found}")
    if not summary["valid"]:
        return BAD
    return NO if problems else OK


def _problem_as_json(problem: Any) -> dict[str, Any]:
    return {
        "file": problem.place.file,
        # A problem of the file as a whole has no line.
        "line": problem.place.line or None,
        "column": problem.place.column or None,
        "severity": problem.severity,
        "code": problem.code,
        "what": problem.what,
        "instead": problem.instead,
    }


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return (
        f"{number:,} {noun.removesuffix('y')}ies" if noun.endswith("y") else f"{number:,} {noun}s"
    )


def _explain(options: argparse.Namespace) -> int:
    import msgspec

    from egress_proxy.config.errors import ConfigError
    from egress_proxy.config.load import load
    from egress_proxy.core.errors import HostError
    from egress_proxy.core.explain import explain, parse_question
    from egress_proxy.core.reason import Event

    try:
        destination, asked = parse_question(options.target, options.method)
    except HostError as error:
        print(f"egress-proxy explain: TARGET: {error}", file=sys.stderr)
        return BAD
    with _config_path(options) as path:
        try:
            loaded = load(path)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return BAD
    config, addresses = loaded.config, tuple(options.addresses)
    about = (config.policy, options.identity, destination)
    explanation = explain(*about, addresses, config.asks, asked)
    if options.resolve and destination.host.address is None:
        if explanation.parent is not None:
            # What a parent proxy resolves is perhaps unknown here.
            explanation = msgspec.structs.replace(explanation, addresses_ignored=True)
        else:
            found, failure = _resolve(config, destination.host.text)
            explanation = explain(*about, addresses + found, config.asks, asked)
            explanation = msgspec.structs.replace(explanation, dns=failure)
    if options.format == "json":
        _print_json(explanation)
    else:
        _print_explanation(explanation)
    # In audit mode the request goes through, and the answer is no all the same.
    return OK if explanation.outcome == Event.ALLOWED else NO


def _resolve(config: Any, name: str) -> tuple[tuple[str, ...], str | None]:
    """The addresses behind a name, and the reason where there are none."""
    import asyncio

    from egress_proxy.core.reason import Reason
    from egress_proxy.net.resolver import Resolver

    async def find() -> Any:
        resolver = Resolver(config.dns, asyncio.get_running_loop())
        try:
            return await resolver.find(name)
        finally:
            await resolver.close()

    answer = asyncio.run(find())
    return ((), answer.name) if isinstance(answer, Reason) else (answer.addresses, None)


def _print_explanation(explanation: Any) -> None:
    asked = f"{explanation.method} {explanation.path} of " if explanation.method else ""
    print(
        f"{explanation.outcome}: {asked}{explanation.destination} for the client {explanation.client}"
    )
    if explanation.reason is not None:
        print(f"  because: {explanation.message} ({explanation.reason})")
    if explanation.rule is not None:
        print(
            f"  by rule: {explanation.rule}, of policy {explanation.policy}, at {explanation.place}"
        )
    if explanation.conditions is not None:
        print(f"  is for:  {explanation.conditions}")
    if explanation.set_entry is not None:
        print(f"  by host: {explanation.set_entry}")
    if explanation.outcome != "DENIED" and explanation.method is None:
        print(f"  tunnel:  {'must be TLS to that host' if explanation.tls else 'need not be TLS'}")
    if explanation.parent is not None and explanation.outcome != "DENIED":
        print(f"  through: the parent proxy {explanation.parent}, which resolves names")
        print(f"  routed:  by {explanation.route}")
    elif explanation.route is not None and explanation.outcome != "DENIED":
        print(f"  routed:  directly, by {explanation.route}")
    for other in explanation.others:
        print(f"  also:    {other.rule}, of policy {other.policy}, at {other.place}: {other.why}")
    for address in explanation.addresses:
        print(
            f"  address: {address.address} {'passes' if address.passes else 'is prohibited'}: {address.why}"
        )
    if explanation.addresses_ignored:
        print("  address: not judged here, because the parent proxy resolves the name")
    if explanation.dns is not None:
        print(f"  address: the name could not be resolved ({explanation.dns})")
    elif not explanation.addresses and explanation.reason is None and explanation.parent is None:
        print("  address: checked when the name is resolved; --resolve does it now")
    if explanation.hint is not None:
        print(f"  {explanation.hint}")
    if explanation.add is not None:
        print("To allow it, add:")
        print("".join(f"  {line}\n" for line in explanation.add.splitlines()), end="")


def _errors(options: argparse.Namespace) -> int:
    from difflib import get_close_matches

    from egress_proxy.core.error_table import as_text, explained, rows

    table = rows(options.name)
    if not table:
        names = {name for row in rows() for name in (row.reason, row.code)}
        close = get_close_matches(options.name[:64], sorted(names), n=1)
        hint = f"did you mean {close[0]}?" if close else "`egress-proxy errors` shows them all"
        what = f"no reason and no code has this name; {hint}"
        print(f"egress-proxy errors: REASON: {what}", file=sys.stderr)
        return BAD
    if options.format == "json":
        _print_json(table)
    elif table[0].reason == options.name:
        print(explained(table[0]), end="")
    else:
        print(as_text(table), end="")
    return OK


def _limits(options: argparse.Namespace) -> int:
    from egress_proxy.admin.limits_verb import AdminError, as_table, fetch, parse_admin

    try:
        found = fetch(parse_admin(options.admin), options.token_file)
    except AdminError as error:
        print(f"egress-proxy limits: {error}", file=sys.stderr)
        return NO if error.refused else BAD
    if options.format == "json":
        _print_json(found)
    else:
        print(as_table(found), end="")
    return OK


def _schema(_options: argparse.Namespace) -> int:
    from egress_proxy.config.json_schema import as_text

    print(as_text(), end="")
    return OK


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
    from egress_proxy.history.logs import open_log

    try:
        with _config_path(options) as path, open_log(options.log) as lines:
            found = work(path, lines)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return BAD
    except OSError as error:
        print(f"egress-proxy: LOG: {error.strerror}", file=sys.stderr)
        return BAD
    for message in found.log.messages():
        print(f"egress-proxy: {message}", file=sys.stderr)
    if options.format == "json":
        _print_json(found)
    else:
        print(as_text(found), end="")
    return status(found)


# Helpers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _config_path(options: argparse.Namespace) -> Iterator[str]:
    """The configuration's path; that of the packaged one exists while the context lasts."""
    if options.config is not None:
        yield options.config
        return
    with resources.as_file(resources.files("egress_proxy") / "default.yaml") as path:
        yield str(path)


def _print_json(value: Any) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
