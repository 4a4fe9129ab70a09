"""The network: defaults that follow from the subnet, and combinations that cannot be."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.config import Network, SettingError


def test_the_defaults_are_those_that_qemu_users_know() -> None:
    """A person coming from -netdev user finds every address where it was."""
    network = Network()
    assert network.subnet == IPv4Network("10.0.2.0/24")
    assert network.gateway == IPv4Address("10.0.2.2")
    assert network.nameserver == IPv4Address("10.0.2.3")
    assert network.first_lease == IPv4Address("10.0.2.15")
    assert network.last_lease == IPv4Address("10.0.2.254")
    assert network.gateway_mac == bytes.fromhex("52550a000202")
    assert (network.lease_time, network.mtu, network.domain) == (86400, 65520, "internal")
    assert (network.dns, network.host_loopback) == ((), False)


@pytest.mark.parametrize(
    ("subnet", "gateway", "nameserver", "first", "last"),
    [
        ("10.0.0.0/8", "10.0.0.2", "10.0.0.3", "10.0.0.15", "10.255.255.254"),
        ("10.9.0.0/27", "10.9.0.2", "10.9.0.3", "10.9.0.15", "10.9.0.30"),
        ("10.9.0.0/28", "10.9.0.2", "10.9.0.3", "10.9.0.1", "10.9.0.14"),
        ("10.9.0.8/29", "10.9.0.10", "10.9.0.11", "10.9.0.9", "10.9.0.14"),
        ("10.9.0.4/30", "10.9.0.6", "10.9.0.6", "10.9.0.5", "10.9.0.6"),
    ],
)
def test_a_subnet_alone_makes_a_whole_network(
    subnet: str, gateway: str, nameserver: str, first: str, last: str
) -> None:
    """Down to a /30, a person gives the subnet and gets addresses that fit it."""
    network = Network(subnet=IPv4Network(subnet))
    assert [str(network.gateway), str(network.nameserver)] == [gateway, nameserver]
    assert [str(network.first_lease), str(network.last_lease)] == [first, last]


def test_a_short_range_moves_the_first_lease_below_it() -> None:
    """Who gives only last_lease .10 means leases up to .10, not an error about .15."""
    network = Network(last_lease=IPv4Address("10.0.2.10"))
    assert network.first_lease == IPv4Address("10.0.2.1")


def test_a_gateway_at_the_lowest_address_leaves_the_next_one_to_the_guest() -> None:
    """In a /29 whose gateway is .1 the guests begin at .2."""
    network = Network(subnet=IPv4Network("10.0.2.0/29"), gateway=IPv4Address("10.0.2.1"))
    assert network.first_lease == IPv4Address("10.0.2.2")


@pytest.mark.parametrize(
    ("key", "settings", "allowed"),
    [
        ("subnet", {"subnet": IPv4Network("10.0.2.0/31")}, "/8 to /30"),
        ("subnet", {"subnet": IPv4Network("255.255.255.255/32")}, "/8 to /30"),
        ("subnet", {"subnet": IPv4Network("0.0.0.0/4")}, "/8 to /30"),
        ("subnet", {"subnet": IPv4Network("127.0.0.0/8")}, "unicast"),
        ("subnet", {"subnet": IPv4Network("0.1.0.0/16")}, "unicast"),
        ("subnet", {"subnet": IPv4Network("224.0.0.0/24")}, "unicast"),
        ("subnet", {"subnet": IPv4Network("255.255.255.252/30")}, "unicast"),
        ("gateway", {"gateway": IPv4Address("10.0.3.2")}, "inside 10.0.2.0/24"),
        ("gateway", {"gateway": IPv4Address("10.0.2.0")}, "other than 10.0.2.0"),
        ("gateway", {"gateway": IPv4Address("10.0.2.255")}, "10.0.2.255 (broadcast)"),
        ("nameserver", {"nameserver": IPv4Address("8.8.8.8")}, "inside 10.0.2.0/24"),
        ("last_lease", {"last_lease": IPv4Address("10.0.2.255")}, "inside 10.0.2.0/24"),
        ("first_lease", {"first_lease": IPv4Address("10.0.2.0")}, "inside 10.0.2.0/24"),
        (
            "first_lease",
            {"first_lease": IPv4Address("10.0.2.9"), "last_lease": IPv4Address("10.0.2.8")},
            "at most last_lease, 10.0.2.8",
        ),
        (
            "first_lease",
            {"first_lease": IPv4Address("10.0.2.2"), "last_lease": IPv4Address("10.0.2.3")},
            "besides the gateway 10.0.2.2 and the nameserver 10.0.2.3",
        ),
        (
            "first_lease",
            {
                "subnet": IPv4Network("10.0.2.0/30"),
                "gateway": IPv4Address("10.0.2.1"),
                "nameserver": IPv4Address("10.0.2.2"),
            },
            "besides the gateway",
        ),
        ("mtu", {"mtu": 575}, "576 to 65520"),
        ("mtu", {"mtu": 65521}, "576 to 65520"),
        ("lease_time", {"lease_time": 0}, "seconds from 1"),
        ("lease_time", {"lease_time": 1 << 32}, "4294967295"),
        ("domain", {"domain": ""}, "labels"),
        ("domain", {"domain": "-a"}, "labels"),
        ("domain", {"domain": "a..b"}, "labels"),
        ("domain", {"domain": "a" * 64}, "labels"),
        ("domain", {"domain": ".".join(["a" * 63] * 3)}, "at most 189 characters"),
        ("domain", {"domain": "internal\n"}, "labels"),
        ("gateway_mac", {"gateway_mac": bytes.fromhex("015e00000001")}, "unicast"),
        ("gateway_mac", {"gateway_mac": bytes(6)}, "unicast"),
        ("gateway_mac", {"gateway_mac": b"RU"}, "six bytes"),
        ("dns", {"dns": ((IPv4Address("0.0.0.0"), 53),)}, "unicast"),
        ("dns", {"dns": ((IPv6Address("ff02::fb"), 53),)}, "unicast"),
        ("dns", {"dns": ((IPv4Address("9.9.9.9"), 0),)}, "1 to 65535"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    key: str, settings: dict[str, Any], allowed: str
) -> None:
    """The error names the key and says what would have been allowed."""
    with pytest.raises(SettingError) as caught:
        Network(**settings)
    assert caught.value.key == key
    assert allowed in str(caught.value)


@given(st.integers(8, 30), st.integers(1 << 24, (224 << 24) - 1))
def test_every_subnet_has_somebody_to_lease_to(prefix: int, address: int) -> None:
    """Any prefix from /8 to /30, anywhere in unicast space, works with its defaults."""
    subnet = IPv4Network((address, prefix), strict=False)
    if subnet.is_loopback or subnet.network_address.packed[0] == 0:
        return
    network = Network(subnet=subnet)
    ours = {network.gateway, network.nameserver}
    leases = range(int(network.first_lease), min(int(network.last_lease), 2**32 - 1) + 1)
    assert len(leases) > sum(int(address) in leases for address in ours)
    assert network.first_lease not in ours
