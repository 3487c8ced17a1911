"""Whatever a value holds, its line is one line of ASCII that parses to it, without the word of denials."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.observe.lines import Clock, encode, hide_denied

#: Text as it comes from anywhere, bytes that were never text included.
WILD_TEXT = st.one_of(
    st.text(),
    st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.binary().map(lambda data: data.decode("latin-1")),
    st.text(alphabet='DENIED\\"u0041 \n\r\x1b\x7f\x85\u2028é'),
)
WILD_VALUE = st.recursive(
    st.one_of(WILD_TEXT, st.none(), st.booleans(), st.integers(-(2**53), 2**53)),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(WILD_TEXT, inner)),
)


@given(WILD_VALUE)
def test_a_line_parses_to_the_value_it_was_made_of(value: Any) -> None:
    line = hide_denied(encode(value))
    assert json.loads(line) == value


@given(WILD_VALUE)
def test_a_line_is_one_line_of_printable_ascii(value: Any) -> None:
    line = hide_denied(encode(value))
    assert line.isascii()
    assert not re.search(rb"[\x00-\x1f]", line)


@given(WILD_VALUE)
def test_the_word_of_denials_is_hidden(value: Any) -> None:
    assert b"DENIED" not in hide_denied(encode(value))


@pytest.mark.parametrize(
    "text", ["DENIED", "\\DENIED", '"DENIED', "DENIEDENIED", "DENDENIEDIED", "\\u0044ENIED"]
)
def test_the_word_is_hidden_beside_whatever_json_escapes(text: str) -> None:
    line = hide_denied(encode([text]))
    assert b"DENIED" not in line
    assert json.loads(line) == [text]


def test_what_json_has_no_form_for_is_told_by_its_text() -> None:
    assert json.loads(encode({"where": Path("/etc")})) == {"where": "/etc"}
    assert json.loads(encode({"where": Path("/étc")})) == {"where": "/étc"}


@given(st.floats(min_value=0, max_value=4_000_000_000))
def test_a_timestamp_is_rfc_3339_to_the_millisecond(now: float) -> None:
    text = Clock(lambda: now).timestamp()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    difference = now - datetime.fromisoformat(text).timestamp()
    assert -1e-6 < difference < 0.0011


def test_the_clock_goes_on_and_may_be_set_back() -> None:
    times = iter([10.0, 10.5, 11.25, 9.999])
    clock = Clock(lambda: next(times))
    assert [clock.timestamp()[17:] for _ in range(4)] == [
        "10.000Z",
        "10.500Z",
        "11.250Z",
        "09.999Z",
    ]


def test_the_clock_tells_the_time_of_now() -> None:
    told = datetime.fromisoformat(Clock().timestamp())
    assert told.tzinfo == UTC
    assert abs(told.timestamp() - time.time()) < 5
