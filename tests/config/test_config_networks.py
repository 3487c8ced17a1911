"""``networks``: what becomes of it, and what is said about it and about rules beside it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from egress_proxy.config.load import Loaded, parse
from egress_proxy.core.special_use import ANYWHERE

PODS = "11.1.0.0/16"
UNLESS = "remove it, unless clients must come there through the proxy [special-network]"
OR_ELSE = f"write a rule for `{PODS}` if it is meant, or the part that is needed [special-network]"


def loaded(networks: str, *allow: str, action: str = "allow") -> Loaded:
    rules = "".join(f"      - {each}\n" for each in allow or ("example.com",))
    text = f"version: 1\nnetworks: {networks}\npolicies:\n  - name: p\n    {action}:\n{rules}"
    return parse(text.encode(), "f.yaml")


def warnings(networks: str, *allow: str, action: str = "allow") -> list[str]:
    return [
        str(problem).removeprefix("f.yaml:").replace(" warning:", "")
        for problem in loaded(networks, *allow, action=action).warnings
    ]


def test_it_becomes_the_policy_s_surroundings() -> None:
    networks = '{internal: [11.1.0.0/16, 11.2.0.1, "2600:1f00::/32"], nat64: ["2600:1f00:64::/96"]}'
    found = loaded(networks).config.policy.surroundings
    assert found.internal == (
        ip_network(PODS),
        ip_network("11.2.0.1/32"),
        ip_network("2600:1f00::/32"),
    )
    assert found.nat64 == (ip_network("2600:1f00:64::/96"),)


def test_without_it_nothing_is_special() -> None:
    text = "version: 1\npolicies: [{name: p, allow: [example.com]}]\n"
    assert parse(text.encode(), "f.yaml").config.policy.surroundings is ANYWHERE


@pytest.mark.parametrize(
    "prefix",
    [
        *("2001:db8::/32", "2001:db8:100::/40", "2001:db8:122::/48", "2001:db8:122:300::/56"),
        *("2001:db8:122:344::/64", "2001:db8:122:344::/96", "fd00:64::/96", "fc00:1::/32"),
        *("64:ff9b:1::/48", "64:ff9b:1:1::/64", "64:ff9b:1:ffff::/96", "2600::/32"),
    ],
)
def test_where_translators_are(prefix: str) -> None:
    found = loaded(f'{{nat64: ["{prefix}"]}}')
    assert found.config.policy.surroundings.nat64 == (ip_network(prefix),)
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("internal", "special"),
    [
        ("10.244.0.0/16", "10.0.0.0/8"),
        ("100.64.0.0/16", "100.64.0.0/10"),
        ('"fd00:1::/32"', "fc00::/7"),
        ("127.0.0.1", "127.0.0.0/8"),
        ("169.254.169.254", "169.254.169.254/32"),
        ("11.0.0.0/8", None),
        ("203.0.113.0/24", None),
    ],
)
def test_what_is_special_anyway(internal: str, special: str | None) -> None:
    network = ip_network(internal.strip('"'))
    said = (
        []
        if special is None
        else [
            f"2:23: `{network}` need not be internal, for `{special}` is special anyway; remove it [without-effect]"
        ]
    )
    assert warnings(f"{{internal: [{internal}]}}") == said


@pytest.mark.parametrize("network", ["0.0.0.0/0", "10.0.0.0/7", "::/0", "2000::/3"])
def test_much_of_the_internet_is_nobody_s_own(network: str) -> None:
    (said,) = warnings(f"{{internal: ['{network}']}}")
    assert said == (
        f"2:23: `{network}` makes much of the internet internal, so names that lead there need `allow_private`; write "
        "your own networks alone [wide-rule]"
    )


# Rules beside it.


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (f"{{host: a.test, allow_private: [{PODS}]}}", None),
        ("{host: a.test, allow_private: [11.1.2.0/24]}", None),
        ("{host: a.test, allow_private: [11.0.0.0/8]}", None),
        (
            "{host: a.test, allow_private: [11.2.0.0/16]}",
            "`allow_private: 11.2.0.0/16` changes nothing, for the network is public; remove it [without-effect]",
        ),
        # What it opens lies behind the translator.
        ('{host: a.test, allow_private: ["2600:1f00:64::/96"]}', None),
        ('{host: a.test, allow_private: ["2600:1f00:64::a00:0/104"]}', None),
        ('{host: a.test, allow_private: ["2600:1f00::/32"]}', None),
        (
            '{host: a.test, allow_private: ["2600:1f00:65::/96"]}',
            "`allow_private: 2600:1f00:65::/96` changes nothing, for the network is public; remove it [without-effect]",
        ),
        (
            f"{{cidr: {PODS}}}",
            f"`{PODS}` opens a network that `networks.internal` names; {UNLESS}",
        ),
        (
            "{cidr: 11.1.2.0/24}",
            f"`11.1.2.0/24` opens a network that `networks.internal` names ({PODS}); {UNLESS}",
        ),
        (
            "{cidr: 11.0.0.0/8}",
            f"`11.0.0.0/8` does not open `{PODS}`, which is internal and a part of it; {OR_ELSE}",
        ),
        ("{cidr: 11.2.0.0/16}", None),
    ],
)
def test_a_rule_beside_it(rule: str, said: str | None) -> None:
    networks = f'{{internal: [{PODS}], nat64: ["2600:1f00:64::/96"]}}'
    assert warnings(networks, rule) == ([] if said is None else [f"6:9: {said}"])


def test_a_wider_rule_does_not_make_one_for_an_internal_network_redundant() -> None:
    """It opens nothing of it, so to remove the narrow one would close the network."""
    rules = (f"{{cidr: {PODS}}}", "{cidr: 8.0.0.0/6}")
    assert not any("adds nothing" in said for said in warnings(f"{{internal: [{PODS}]}}", *rules))
    assert any("adds nothing" in said for said in warnings("{internal: [12.0.0.0/16]}", *rules))
    narrower = ("{cidr: 11.1.2.0/24}", f"{{cidr: {PODS}}}")
    assert any("adds nothing" in said for said in warnings(f"{{internal: [{PODS}]}}", *narrower))
