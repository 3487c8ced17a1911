"""``explain`` and ``errors``: what would happen to a request, and what to do about a refusal."""

from __future__ import annotations

import argparse
import sys
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
    explain = verbs.add_parser(
        "explain",
        help="say what would happen to a request, because of which rule",
        allow_abbrev=False,
    )
    add_config(explain)
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
        type=ip_address,
        action="append",
        default=[],
        metavar="IP",
        help="an address that the host resolves to. May be repeated",
    )
    explain.add_argument(
        "--resolve", action="store_true", help="ask the name servers for the host's addresses"
    )
    add_format(explain)
    explain.add_argument(
        "--method",
        metavar="METHOD",
        help="of a plain HTTP request, whose TARGET is an http:// URL (default: GET)",
    )
    explain.add_argument(
        "target", metavar="TARGET", help="host, host:port or URL; the default port is 443"
    )
    explain.set_defaults(run=_explain)


def add_errors(verbs: Verbs) -> None:
    errors = verbs.add_parser(
        "errors", help="print the table of errors, and what to do about each", allow_abbrev=False
    )
    errors.add_argument(
        "name",
        metavar="REASON",
        nargs="?",
        help="explain this reason, or show those of this code or status (default: all)",
    )
    add_format(errors)
    errors.set_defaults(run=_errors)


def _identity(text: str) -> Any:
    from egress_proxy.core.errors import IdentityError
    from egress_proxy.core.identity import parse_identity

    try:
        return parse_identity(text)
    except IdentityError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
    with config_path(options) as path:
        try:
            loaded = load(path)
        except ConfigError as error:
            print(error, file=sys.stderr)
            return BAD
    config, addresses = loaded.config, tuple(options.addresses)
    about = (config.policy, options.identity, destination)
    explanation = explain(*about, addresses, config.asks, asked, config.terms)
    if options.resolve and destination.host.address is None:
        if explanation.parent is not None:
            # What a parent proxy resolves is perhaps unknown here.
            explanation = msgspec.structs.replace(explanation, addresses_ignored=True)
        else:
            found, failure = _resolve(config, destination.host.text)
            explanation = explain(*about, addresses + found, config.asks, asked, config.terms)
            explanation = msgspec.structs.replace(explanation, dns=failure)
    if options.format == "json":
        print_json(explanation)
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
    from egress_proxy.core.demands import as_lines

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
    if explanation.needs is not None:
        for text in as_lines(explanation.needs):
            print(f"  {text}")
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
    from egress_proxy.core.error_table import as_text, explained, rows

    table = rows(options.name)
    if not table:
        close = _nearest(options.name)
        hint = f"did you mean {close}?" if close else "`egress-proxy errors` shows them all"
        what = f"no reason, code or status has this name; {hint}"
        print(f"egress-proxy errors: REASON: {what}", file=sys.stderr)
        return BAD
    if options.format == "json":
        print_json(table)
    elif options.name is not None and table[0].reason.lower() == options.name.lower():
        print(explained(table[0]), end="")
    else:
        print(as_text(table), end="")
    return OK


def _nearest(name: str) -> str | None:
    """The reason or the code that a wrong name comes nearest to, if it comes near any."""
    from difflib import get_close_matches

    from egress_proxy.core.error_table import names

    known = {text.lower(): text for text in names()}
    wrong = name[:64].strip().lower().replace("-", "_").replace(" ", "_")
    close = get_close_matches(wrong, sorted(known), n=1)
    return known[close[0]] if close else None
