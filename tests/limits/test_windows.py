"""Days begin at midnight where the policy says, whatever clocks do there."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from math import nextafter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.limits.windows import day_of, zone

HOUR = 3600
#: With clocks that are changed at night, at midnight, by half an hour, by a whole day, or never.
ZONES = [
    *("UTC", "Europe/Berlin", "America/New_York", "America/Santiago", "Asia/Beirut"),
    *("Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu", "America/Havana", "Asia/Tehran"),
]


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("name", "moment", "start", "end", "hours"),
    [
        ("UTC", "2026-11-23T12:00Z", "2026-11-23T00:00Z", "2026-11-24T00:00Z", 24),
        ("UTC", "2026-11-23T00:00Z", "2026-11-23T00:00Z", "2026-11-24T00:00Z", 24),
        ("UTC", "2026-12-31T23:59:59Z", "2026-12-31T00:00Z", "2027-01-01T00:00Z", 24),
        ("UTC", "2028-02-29T01:00Z", "2028-02-29T00:00Z", "2028-03-01T00:00Z", 24),
        # Clocks go forward, and back.
        ("Europe/Berlin", "2026-03-29T12:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z", 23),
        ("Europe/Berlin", "2026-10-25T12:00Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z", 25),
        ("Europe/Berlin", "2026-12-31T23:30Z", "2026-12-31T23:00Z", "2027-01-01T23:00Z", 24),
        # Midnight itself is left out: the day begins at one o'clock.
        ("Asia/Beirut", "2021-03-28T12:00Z", "2021-03-27T22:00Z", "2021-03-28T21:00Z", 23),
        # At midnight clocks go back to eleven: the day before has 25 hours.
        ("America/Havana", "2021-11-07T12:00Z", "2021-11-07T04:00Z", "2021-11-08T05:00Z", 25),
        ("Asia/Kathmandu", "2026-06-01T00:00Z", "2026-05-31T18:15Z", "2026-06-01T18:15Z", 24),
        # A day that Samoa has never had: from the 29th to the 31st.
        ("Pacific/Apia", "2011-12-30T09:00Z", "2011-12-29T10:00Z", "2011-12-30T10:00Z", 24),
    ],
)
def test_a_day(name: str, moment: str, start: str, end: str, hours: int) -> None:
    found = day_of(at(moment), zone(name))
    assert found == (at(start), at(end))
    assert found[1] - found[0] == hours * HOUR


@given(st.sampled_from(ZONES), st.floats(at("2000-01-01T00:00Z"), at("2037-01-01T00:00Z")))
def test_days_follow_each_other_without_gap_or_overlap(name: str, moment: float) -> None:
    where = zone(name)
    days = [day_of(moment, where)]
    assert days[0][0] <= moment < days[0][1]
    for _ in range(3):
        days.append(day_of(days[-1][1], where))
    for day, following in pairwise(days):
        assert day[1] == following[0]
        assert 20 * HOUR <= day[1] - day[0] <= 28 * HOUR
        # Of every moment in it, it is the day.
        for part in (0.0, 0.3, 0.9999):
            assert day_of(day[0] + part * (day[1] - day[0]), where) == day


@given(st.sampled_from(ZONES), st.floats(at("2000-01-01T00:00Z"), at("2037-01-01T00:00Z")))
def test_a_day_begins_when_its_date_is_first_shown(name: str, moment: float) -> None:
    where = zone(name)
    start, _ = day_of(moment, where)
    shown, before = (datetime.fromtimestamp(each, where).date() for each in (start, start - 1))
    assert before < shown


def test_a_date_that_is_shown_again_belongs_to_the_new_day() -> None:
    """At a minute past midnight clocks go back by an hour: until 2006 so in Newfoundland."""
    where = zone("America/St_Johns")
    # 2006-10-29, 00:01 → 23:01 of the 28th. The 29th was shown from 02:30Z on.
    first = day_of(at("2006-10-29T02:30:30Z"), where)
    again = day_of(at("2006-10-29T03:00:00Z"), where)
    assert first == again
    assert first[0] == at("2006-10-29T02:30:00Z")
    assert datetime.fromtimestamp(at("2006-10-29T03:00:00Z"), where).day == 28


def test_a_moment_before_midnight_is_the_day_before() -> None:
    midnight = at("2026-11-24T00:00Z")
    just_before = nextafter(midnight, 0)
    assert just_before < midnight
    assert day_of(just_before, UTC) == (midnight - 24 * HOUR, midnight)


def test_a_zone_that_nobody_knows() -> None:
    with pytest.raises(KeyError):
        zone("Mars/Olympus")
    assert zone("UTC") is UTC
