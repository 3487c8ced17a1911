"""Whom a policy is for: from YAML to subjects."""

from __future__ import annotations

import re
from typing import Final

from egress_proxy.config.destinations import network
from egress_proxy.config.errors import Code, Report, quoted
from egress_proxy.config.nodes import fields, in_quotes, items, text
from egress_proxy.config.yaml_source import Mapping, Node, place_of
from egress_proxy.core.policy import Subject

#: Subjects of one policy. Each new client is compared with all of them, once.
MAX_SUBJECTS: Final = 1000
#: Labels that one subject asks for.
MAX_LABELS: Final = 20

SUBJECT_KEYS: Final = ("cidr", "user", "namespace", "pod_labels")
SUBJECT_NOT_YET: Final = {
    "service_account": "write {namespace: …, pod_labels: {…}} for these clients",
}
_EXAMPLE: Final = "{cidr: 10.20.0.0/16}"

#: The name of a user, here and in a users file.
USER: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
USER_FORM: Final = "write 1 to 64 letters, digits, dots, hyphens, underscores or @"
# RFC 1123 label, as Kubernetes names its namespaces.
NAMESPACE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
NAMESPACE_FORM: Final = "write the name of a Kubernetes namespace"
# Kubernetes' "Labels and Selectors": an optional DNS prefix and a name; a value may be empty.
_LABEL_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
LABEL_KEY: Final = re.compile(rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL_NAME}")
LABEL_VALUE: Final = re.compile(rf"(?:{_LABEL_NAME})?")
_LABELS_EXAMPLE: Final = "{app: web}"


def read_subjects(node: Node, report: Report) -> tuple[Subject, ...]:
    """Read ``subjects:``; what is broken is reported and left out."""
    entries = items(node, "`subjects`", report, f"[{_EXAMPLE}]") or []
    if len(entries) > MAX_SUBJECTS:
        what = f"`subjects` has {len(entries):,} entries"
        report.error(
            Code.BAD_VALUE, place_of(node, report), what, f"write at most {MAX_SUBJECTS:,}"
        )
        return ()
    found = (_subject(entry, report) for entry in entries)
    return tuple(subject for subject in found if subject is not None)


def _subject(node: Node, report: Report) -> Subject | None:
    found = fields(node, "a subject", report, SUBJECT_KEYS, SUBJECT_NOT_YET, _EXAMPLE)
    if not found:
        return None
    return Subject(
        place_of(node, report),
        network(found["cidr"], "the `cidr` of a subject", report) if "cidr" in found else None,
        _name(found["user"], "user", USER, USER_FORM, report) if "user" in found else None,
        _name(found["namespace"], "namespace", NAMESPACE, NAMESPACE_FORM, report)
        if "namespace" in found
        else None,
        _pod_labels(found["pod_labels"], report) if "pod_labels" in found else (),
    )


def _name(node: Node, key: str, form: re.Pattern[str], instead: str, report: Report) -> str | None:
    found = text(node, f"the `{key}` of a subject", report, instead, in_quotes)
    if found is not None and not form.fullmatch(found):
        what = f"{quoted(found)} cannot be a {key}"
        report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
        return None
    return found


def _pod_labels(node: Node, report: Report) -> tuple[tuple[str, str], ...]:
    name = "`pod_labels`"
    if not isinstance(node, Mapping) or not node.entries:
        fields(node, name, report, (), {}, _LABELS_EXAMPLE)
        return ()
    if len(node.entries) > MAX_LABELS:
        what = f"{name} has {len(node.entries):,} entries"
        report.error(Code.BAD_VALUE, place_of(node, report), what, f"write at most {MAX_LABELS}")
        return ()
    keys = tuple(key.text for key, _ in node.entries)
    labels: list[tuple[str, str]] = []
    for key, value in fields(node, name, report, keys, {}, _LABELS_EXAMPLE).items():
        found = text(
            value, f"the label {quoted(key)}", report, "write the label's value", in_quotes
        )
        if not LABEL_KEY.fullmatch(key):
            what = f"{quoted(key)} cannot be the name of a label"
            report.error(
                Code.BAD_VALUE, place_of(node, report), what, "write it as Kubernetes does"
            )
        elif found is not None and not LABEL_VALUE.fullmatch(found):
            what = f"{quoted(found)} cannot be the value of a label"
            report.error(
                Code.BAD_VALUE, place_of(value, report), what, "write it as Kubernetes does"
            )
        elif found is not None:
            labels.append((key, found))
    return tuple(sorted(labels))
