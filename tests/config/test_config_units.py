"""What a message says to write instead of a size or a duration in another form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.config.units import meant_duration, meant_size
from egress_proxy.config.values import DURATION_UNITS, SIZE_UNITS, parse_with_unit


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("1GB", "1GiB"), ("1gb", "1GiB"), ("1.5GiB", "1536MiB"), ("512 Mi", "512MiB"), ("32k", "32KiB"),
        ("1MiB/s", "1MiB"), ("1 MB / sec", "1MiB"), ("10MBps", "10MiB"), ("10Mbps", "1250000B"),
        ("10 Mbit/s", "1250000B"), ("8kbit", "1000B"), ("100 bytes", "100B"), ("1.00GB", "1GiB"),
        # Never more than was meant.
        ("1.0001KiB", "1024B"), ("0.1KB", "102B"),
        *((text, None) for text in ("", "1", "GB", "1EB", "-1GB", "1e3MB", "0B", "0.1B", "1KiB/day", "1h")),
        *((text, None) for text in ("1,5GB", "1GB 2MB", "9" * 13 + "GB", "1" * 100_000, "1 \nGB", "١GB")),
    ],
)  # fmt: skip
def test_sizes(text: str, written: str | None) -> None:
    expected = None if written is None else written.replace("1024B", "1KiB")
    assert meant_size(text) == expected


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("1.5s", "1500ms"), ("5 S", "5s"), ("1h30m", "90m"), ("1h 30m", "90m"), ("90 min", "90m"),
        ("2 weeks", "14d"), ("1w", "7d"), ("1.0h", "1h"), ("60s", "1m"), ("1d12hours", "36h"),
        *((text, None) for text in ("", "5", "s", "0.5ms", "0s", "-1s", "1y", "1GB", "1:30", "5m,3s")),
        *((text, None) for text in ("9" * 13 + "s", "1s" * 6, "1" * 100_000, "١s")),
    ],
)  # fmt: skip
def test_durations(text: str, written: str | None) -> None:
    assert meant_duration(text) == written


@given(st.text(alphabet="0123456789. kKmMgGtTiIbBsShHdDwWpP/", max_size=20))
def test_what_is_said_is_accepted(text: str) -> None:
    for meant, units in ((meant_size, SIZE_UNITS), (meant_duration, DURATION_UNITS)):
        written = meant(text)
        assert written is None or parse_with_unit(written, units) is not None
