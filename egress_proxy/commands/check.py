"""``check`` and ``schema``: what is wrong with a configuration, and what may stand in one."""

from __future__ import annotations

import argparse
from typing import Any

from egress_proxy.commands.common import BAD, NO, OK, Verbs, add_format, print_json


def add(verbs: Verbs) -> None:
    check = verbs.add_parser(
        "check", help="show every error and warning of a configuration", allow_abbrev=False
    )
    check.add_argument("file", metavar="FILE", help="the configuration file")
    add_format(check)
    check.set_defaults(run=_check)


def add_schema(verbs: Verbs) -> None:
    schema = verbs.add_parser(
        "schema", help="print the JSON Schema of the configuration, for editors", allow_abbrev=False
    )
    schema.set_defaults(run=_schema)


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
        print_json({**summary, "problems": [_problem_as_json(problem) for problem in problems]})
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


def _schema(_options: argparse.Namespace) -> int:
    from egress_proxy.config.json_schema import as_text

    print(as_text(), end="")
    return OK
