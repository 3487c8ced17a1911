"""Internationalised names that look like other names."""

from __future__ import annotations

import idna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.config.lint.lookalikes import is_valid, likeness


def a_labels(name: str) -> str:
    return idna.encode(name, uts46=True).decode("ascii")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        # Mixed.
        ("раypal.com", "mixes Cyrillic and Latin letters and looks like `paypal.com`"),
        ("login.gооgle.com", "mixes Cyrillic and Latin letters and looks like `login.google.com`"),
        ("gοοgle.com", "mixes Greek and Latin letters and looks like `google.com`"),
        ("αрple.com", "mixes Cyrillic, Greek and Latin letters and looks like `apple.com`"),
        ("कabc.com", "mixes Devanagari and Latin letters"),
        ("аpple.рф", "mixes Cyrillic and Latin letters and looks like `apple.xn--p1ai`"),
        # Of one script, every letter of which looks Latin.
        ("аррӏе.com", "is written in Cyrillic letters and looks like `apple.com`"),
        ("хор-7.com", "is written in Cyrillic letters and looks like `xop-7.com`"),
        ("αοτ.com", "is written in Greek letters and looks like `aot.com`"),
        ("ɡithub.com", "is written in phonetic letters and looks like `github.com`"),
        ("аррӏе.пример.com", "is written in Cyrillic letters"),
        # What is right.
        ("пример.com", None),
        ("хор.рф", None),
        ("хор.бел", None),
        ("хор.ua", None),
        ("αοτ.gr", None),
        ("ελλάδα.com", None),
        ("bücher.de", None),
        ("çağrı.com.tr", None),
        ("日本語ひらがなカタカナabc.jp", None),
        ("スーパー.jp", None),
        ("佐々木.jp", None),
        ("中文ㄅabc.tw", None),
        ("한국어漢字abc.kr", None),
        ("l·l.cat", None),
        ("हिन्दी.com", None),
        ("example.com", None),
    ],
)
def test_likeness(name: str, said: str | None) -> None:
    assert likeness(a_labels(name)) == said


def test_japanese_and_korean_do_not_mix() -> None:
    assert likeness(a_labels("ひ한.com")) == "mixes Hangul and Hiragana letters"


@pytest.mark.parametrize(
    ("label", "valid"),
    [
        ("xn--bcher-kva", True),
        ("xn--80ak6aa92e", True),
        ("xn--a", False),
        ("xn--", False),
        ("xn--abc-", False),
        ("xn--99999999", False),
        ("xn--i-7iq", False),  # a heart: IDNA 2008 has no symbols
    ],
)
def test_valid_labels(label: str, valid: bool) -> None:
    assert is_valid(label) == valid


@given(st.lists(st.from_regex(r"(xn--)?[a-z0-9-]{1,40}", fullmatch=True), min_size=1, max_size=4))
def test_whatever_stands_there_nothing_but_ascii_is_said(labels: list[str]) -> None:
    said = likeness(".".join(labels))
    assert said is None or (said.isascii() and said.isprintable())
    assert all(isinstance(is_valid(label), bool) for label in labels)
