"""``policies[].limits``, and who a request is charged to: from YAML to checked values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

from egress_proxy.config.errors import Code, Report, quoted
from egress_proxy.config.nodes import fields, in_quotes, scalar, text, wrong_kind
from egress_proxy.config.subjects import USER, USER_FORM
from egress_proxy.config.values import NAME, NAME_FORM, Integer, Reader, Size
from egress_proxy.config.yaml_source import Mapping, Node, Scalar, place_of
from egress_proxy.core.limits import Limits

#: Users of ``credentials.tenants``: as many as there can be in the users file.
MAX_USERS: Final = 100_000
_EXAMPLE: Final = "{requests_per_second: 50, tunnels: 200}"
_BYTES_EXAMPLE: Final = "{up: 1GiB, down: 10GiB}"

# Values -----------------------------------------------------------------------------------------------------------

_NUMBER: Final = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class Number:
    """A number in plain decimal, with a fraction or without, without quotes."""

    low: float
    high: float

    def __call__(self, node: Node, name: str, report: Report) -> float | None:
        instead = f"write a number from {self.low:g} to {self.high:.0f}, such as 50 or 0.5"
        found = scalar(node, name, report, instead)
        if found is None:
            return None
        if not found.plain and _NUMBER.fullmatch(found.text):
            what, code = f"{name} is a number in quotes", Code.WRONG_TYPE
            instead = f"write {found.text} without quotes"
        elif not found.plain or not _NUMBER.fullmatch(found.text):
            what, code = f"{name} is not a number: {quoted(found.text)}", Code.BAD_VALUE
        elif not self.low <= float(found.text) <= self.high:
            what, code = f"{name} is out of range: {quoted(found.text)}", Code.BAD_VALUE
        else:
            return float(found.text)
        report.error(code, place_of(node, report), what, instead)
        return None


def time_zone(node: Node, name: str, report: Report) -> str | None:
    """A name of the IANA database that this machine knows."""
    instead = "write UTC, or a name such as Europe/Berlin"
    found = text(node, name, report, instead)
    if found is None:
        return None
    if found != "UTC":
        try:
            ZoneInfo(found)
        except (KeyError, ValueError, OSError):
            what = f"this machine knows no time zone {quoted(found)}"
            instead += " (the package tzdata has them)"
            report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
            return None
    return found


_day_bytes: Final = Size("1KiB", "1000000TiB")
#: Keys of ``bytes_per_day`` as a mapping.
BYTES_KEYS: Final[dict[str, Reader]] = {"up": _day_bytes, "down": _day_bytes, "both": _day_bytes}


def bytes_per_day(node: Node, name: str, report: Report) -> dict[str, int] | None:
    """A size for both directions together, or one for each of ``up``, ``down`` and ``both``."""
    if not isinstance(node, Mapping):
        both = _day_bytes(node, name, report)
        return None if both is None else {"both": both}
    found = {
        key: BYTES_KEYS[key](value, f"`{key}` of {name}", report)
        for key, value in fields(node, name, report, (*BYTES_KEYS,), {}, _BYTES_EXAMPLE).items()
    }
    return {key: value for key, value in found.items() if value is not None}


_SLOWEST: Final = 0.001
#: Keys of ``limits``.
LIMIT_KEYS: Final[dict[str, Reader]] = {
    "requests_per_second": Number(_SLOWEST, 1_000_000),
    "burst": Integer(1, 1_000_000),
    "tunnels": Integer(1, 1_000_000),
    "requests_per_day": Integer(1, 1_000_000_000_000),
    "bytes_per_day": bytes_per_day,
    "time_zone": time_zone,
    "bandwidth": Size("1KiB", "1TiB"),
    "tunnel_bandwidth": Size("1KiB", "1TiB"),
    "new_hosts_per_hour": Integer(1, 10_000),
}
#: What is counted by the day.
BY_THE_DAY: Final = ("requests_per_day", "bytes_per_day")


def read_limits(node: Node, report: Report) -> Limits | None:
    """Read ``limits`` of a policy. What is broken is reported and left out."""
    found = fields(node, "`limits`", report, (*LIMIT_KEYS,), {}, _EXAMPLE, _key_for)
    if not found:
        return None
    values: dict[str, Any] = {
        key: LIMIT_KEYS[key](value, f"`{key}`", report) for key, value in found.items()
    }
    values = {key: value for key, value in values.items() if value is not None}
    _check_together(found, values, report)
    sizes = values.pop("bytes_per_day", {})
    return Limits(
        bytes_up_per_day=sizes.get("up"),
        bytes_down_per_day=sizes.get("down"),
        bytes_per_day=sizes.get("both"),
        **values,
    )


#: Rates by other proxies' names, and how many seconds theirs is for.
_RATES: Final = {
    "rps": 1,
    "rate": 1,
    "requests_per_sec": 1,
    "requests_per_minute": 60,
    "requests_per_min": 60,
    "rpm": 60,
    "requests_per_hour": 3600,
}
#: Sizes by other names, and ours for the same.
_SIZES: Final = {
    "bytes_per_second": "bandwidth",
    "bytes_per_sec": "bandwidth",
    "bps": "bandwidth",
    "bytes_up_per_day": "bytes_per_day: {up: …}",
    "bytes_down_per_day": "bytes_per_day: {down: …}",
}


def _key_for(key: str, value: Node) -> str | None:
    """What to write instead of a key that other proxies have, with the value that means the same."""
    key = key.lower().replace("-", "_")
    if key in _SIZES:
        return f"write `{_SIZES[key]}`"
    seconds = _RATES.get(key)
    if seconds is None:
        return None
    number = value.text if isinstance(value, Scalar) else ""
    if not _NUMBER.fullmatch(number) or float(number) / seconds < _SLOWEST:
        return "write `requests_per_second`, which may have a fraction"
    rate = f"{float(number) / seconds:.6f}".rstrip("0").rstrip(".")
    advice = f"write `requests_per_second: {rate}`"
    if seconds > 1:
        # Somebody who counts by the minute wants all of a minute's at once.
        advice += f", and `burst: {math.ceil(float(number))}` to let as many come at once"
    return advice


def _check_together(found: dict[str, Node], values: dict[str, Any], report: Report) -> None:
    """What single values cannot show."""
    if "burst" in found and "requests_per_second" not in found:
        what = "`burst` is how many requests of `requests_per_second` may come at once, which is not there"
        instead = "write `requests_per_second` too"
        report.error(Code.CONFLICT, place_of(found["burst"], report), what, instead)
    if "time_zone" in found and not any(key in found for key in BY_THE_DAY):
        what = "`time_zone` says when a day begins, and nothing is counted by the day"
        instead = "write `bytes_per_day` or `requests_per_day` too, or remove it"
        report.error(Code.CONFLICT, place_of(found["time_zone"], report), what, instead)
    if values.get("tunnel_bandwidth", 0) > values.get("bandwidth", float("inf")):
        what = "`tunnel_bandwidth` is larger than `bandwidth`, so it never takes effect"
        _without_effect(
            found["tunnel_bandwidth"], what, "write a smaller one, or remove it", report
        )
    sizes = values.get("bytes_per_day", {})
    both = sizes.get("both")
    if both is None:
        return
    for way in ("up", "down"):
        if sizes.get(way, 0) >= both:
            what = f"`{way}` is not smaller than `both`, so it never takes effect"
            _without_effect(
                found["bytes_per_day"], what, "write a smaller one, or remove it", report
            )
    if "up" in sizes and "down" in sizes and both >= sizes["up"] + sizes["down"]:
        what = "`both` is not smaller than `up` and `down` together, so it never takes effect"
        _without_effect(found["bytes_per_day"], what, "write a smaller one, or remove it", report)


def _without_effect(node: Node, what: str, instead: str, report: Report) -> None:
    report.warning(Code.WITHOUT_EFFECT, place_of(node, report), what, instead)


# Tenants ----------------------------------------------------------------------------------------------------------


def tenant_name(node: Node, name: str, report: Report) -> str | None:
    """A tenant's name: in the form of ``X-Tenant-ID``."""
    found = text(node, name, report, NAME_FORM, in_quotes)
    if found is None:
        return None
    if not NAME.fullmatch(found):
        what = f"{quoted(found)} cannot be the name of a tenant"
        report.error(Code.BAD_VALUE, place_of(node, report), what, NAME_FORM)
        return None
    return found


def user_tenants(node: Node, name: str, report: Report) -> dict[str, str] | None:
    """The tenants of users, as ``{USER: TENANT}``."""
    if not isinstance(node, Mapping) or not node.entries:
        wrong_kind(node, name, report, "a mapping", "write {batch: data-team}")
        return None
    if len(node.entries) > MAX_USERS:
        what = f"{name} has {len(node.entries):,} entries"
        instead = f"write at most {MAX_USERS:,}"
        report.error(Code.BAD_VALUE, place_of(node, report), what, instead)
        return None
    found: dict[str, str] = {}
    seen: set[str] = set()
    for key, value in node.entries:
        user = text(key, f"a user of {name}", report, USER_FORM, in_quotes)
        if user is None:
            continue
        place = place_of(key, report)
        if not USER.fullmatch(user):
            what = f"{quoted(user)} cannot be the name of a user"
            report.error(Code.BAD_VALUE, place, what, USER_FORM)
            continue
        if user in seen:
            what = f"the user {quoted(user)} stands twice in {name}"
            report.error(Code.DUPLICATE_KEY, place, what, "remove one of them")
            continue
        seen.add(user)
        tenant = tenant_name(value, f"the tenant of {quoted(user)}", report)
        if tenant is not None:
            found[user] = tenant
    return found
