"""Settings of properties whose examples take their time."""

from __future__ import annotations

from typing import Final

from hypothesis import HealthCheck, settings

#: No deadline: the machine that runs the tests may be busy.
CALM: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
