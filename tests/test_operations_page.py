"""The alerts and commands of docs/operations.md: they name metrics, labels and reasons that there are."""

from __future__ import annotations

import re
from pathlib import Path

from egress_proxy.core.limits import Kind
from egress_proxy.core.reasons import REASONS

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")
#: What a histogram and its sums add to its name.
_PARTS = re.compile(r"_(?:bucket|count|sum)$")


def known_metrics() -> dict[str, set[str]]:
    """The metrics of the reference, which is held to what the proxy counts, with their labels."""
    rows = re.findall(
        r"^\| `(egress_proxy_[a-z_]+)` \| [^|]+ \|([^|]*)\|",
        (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {name: set(re.findall(r"`([a-z_]+)`", labels)) for name, labels in rows}


def used_metrics() -> dict[str, set[str]]:
    """Each metric of the page's PromQL, with the labels that it is selected by."""
    found: dict[str, set[str]] = {}
    for name, selector in re.findall(r"\b(egress_proxy_[a-z_]+)(?:\{([^}]*)\})?", PAGE):
        labels = found.setdefault(_PARTS.sub("", name), set())
        labels.update(re.findall(r"([a-z_]+)=~?\"", selector))
    return found


def test_every_metric_is_there_with_its_labels() -> None:
    known = known_metrics()
    assert len(known) > 20
    for name, labels in used_metrics().items():
        assert name in known
        assert labels <= known[name]


def test_limits_and_the_store_have_alerts() -> None:
    rules = PAGE.partition("groups:")[2].partition("```")[0]
    for name in ("limit_exceeded_total", "limit_near_total", "store_up", "store_failures_total"):
        assert f"egress_proxy_{name}" in rules
    assert "egress_proxy_contract_violations_total" in rules


def test_every_kind_and_reason_is_one() -> None:
    for label, known in (("kind", {*Kind, "timeout", "failure", "refused"}), ("reason", REASONS)):
        for pattern in re.findall(rf'{label}=~?"([^"]+)"', PAGE):
            for one in pattern.split("|"):
                # Of a pattern, something fits.
                assert any(re.fullmatch(one, name) for name in (*known, "parent_credentials"))
