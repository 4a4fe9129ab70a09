"""What kind of place an address is: one group each, however it is written."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_usernat.policy.groups import (
    FLOOR,
    GROUPS,
    HOST,
    LAN,
    LOOPBACK,
    METADATA,
    MULTICAST,
    PUBLIC,
    RESERVED,
    Groups,
    names_group,
    networks_of,
    unwrapped,
)
from tests.policy.policies import packed

# The model's own table, first and last address of each network, written out once more.
EXAMPLES = {
    "public": "8.8.8.8 1.1.1.1 9.255.255.255 11.0.0.0 172.15.255.255 172.32.0.0 100.63.255.255 "
    "100.128.0.0 2606:4700::1111 2000:: 2001:200::1 169.253.255.255 169.255.0.0 223.255.255.255",
    "private": "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.1 192.168.255.255 "
    "100.64.0.0 100.127.255.255 fc00:: fdff::1",
    "link-local": "169.254.0.0 169.254.255.255 169.254.169.253 fe80:: febf:ffff::",
    "metadata": "169.254.169.254 169.254.170.2 fd00:ec2::254 168.63.129.16 100.100.100.200 "
    "192.0.0.192",
    "multicast": "224.0.0.1 239.255.255.255 255.255.255.255 ff00:: ff02::fb",
    "reserved": "0.0.0.0 0.255.255.255 192.0.0.0 192.0.2.1 192.88.99.1 198.18.0.0 198.19.255.255 "
    "198.51.100.7 203.0.113.7 240.0.0.1 255.255.255.254 :: ::2 ::8.8.8.8 64:ff9b:1::1 100::1 "
    "2001::1 2001:0:1::1 2001:db8::1 2002::1 2002:7f00:1::1 3fff::1 5f00::1 fec0::1",
    "loopback": "127.0.0.1 127.255.255.255 ::1",
}


@pytest.mark.parametrize(("group", "texts"), EXAMPLES.items())
def test_each_address_is_of_the_group_that_the_model_says(group: str, texts: str) -> None:
    """First, last and in between; where networks overlap, the smaller one counts."""
    assert {text: Groups().of(packed(text)) for text in texts.split()} == dict.fromkeys(
        texts.split(), group
    )


@given(st.integers(0, 2**32 - 1))
def test_an_inner_address_is_judged_as_itself(number: int) -> None:
    """Mapped or translated, an IPv4 address is of the group that it is of in plain."""
    plain = number.to_bytes(4, "big")
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        wrapped = (int(ip_address(prefix)) | number).to_bytes(16, "big")
        assert unwrapped(wrapped) == plain
        assert Groups().of(wrapped) == Groups().of(plain)


def test_only_these_two_forms_are_unwrapped() -> None:
    """::/96 and 64:ff9b:1::/48 are reserved, and 2002:7f00:1:: is no way to 127.0.0.1."""
    for text in ("::127.0.0.1", "64:ff9b:1::7f00:1", "2002:7f00:1::"):
        assert unwrapped(packed(text)) == packed(text)
        assert Groups().of(packed(text)) == RESERVED


@given(st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)))
def test_every_address_has_one_group(address: bytes) -> None:
    """There is no address that falls between."""
    assert Groups().of(address) in GROUPS


def test_the_floor_is_all_but_three() -> None:
    """What `any` means is public, private and the other guests."""
    assert set(GROUPS) - FLOOR == {"public", "private", "lan"}


def test_the_hosts_own_addresses_are_the_hosts_wherever_they_lie() -> None:
    """Public, private, on a link or in the guests' own subnet: a way to the host is one."""
    own = {packed(text) for text in ("8.8.4.4", "10.1.2.3", "169.254.7.7", "198.18.0.1", "fe80::7")}
    groups = Groups(lan=(ip_network("10.1.2.0/24"),), is_of_host=own.__contains__)
    assert {groups.of(address) for address in own} == {HOST}
    assert groups.of(packed("::ffff:10.1.2.3")) == HOST
    assert groups.of(packed("10.1.2.4")) == LAN


def test_loopback_and_metadata_stay_what_they_are_on_a_host_that_has_them() -> None:
    """A rule for the host's addresses is none for its loopback, or for the cloud's secrets."""
    groups = Groups(is_of_host=lambda address: True)
    assert groups.of(packed("127.0.0.1")) == LOOPBACK
    assert groups.of(packed("169.254.169.254")) == METADATA


def test_the_gateway_is_the_host_and_its_subnet_the_guests() -> None:
    """The gateway's addresses lie among the guests', and are not of them; nor is the broadcast."""
    groups = Groups(lan=(ip_network("10.0.0.0/8"),), gateway=frozenset({packed("10.0.2.2")}))
    found = [groups.of(packed(text)) for text in ("10.0.2.2", "10.0.2.15", "10.255.255.255")]
    assert found == [HOST, LAN, MULTICAST]


@pytest.mark.parametrize("network", ["198.18.0.0/15", "192.0.2.0/24", "10.0.0.0/9"])
def test_a_test_may_call_its_own_networks_public(network: str) -> None:
    """Whatever they are elsewhere, as long as no smaller network says otherwise."""
    inside = ip_network(network).network_address.packed
    groups = Groups(lan=(ip_network("10.0.2.0/24"),), public=(ip_network(network),))
    assert groups.of(inside) == PUBLIC
    assert groups.of(packed("10.0.2.15")) == LAN


def test_a_wide_network_names_nothing_that_lies_in_it() -> None:
    """169.254/16 names the link, not the metadata service; one address names itself."""

    def named(group: str, first: str, last: str) -> bool:
        return names_group(group, ip_address(first), ip_address(last))

    assert named("link-local", "169.254.1.0", "169.254.1.255")
    assert not named("link-local", "169.0.0.0", "169.255.255.255")
    assert not named(METADATA, "169.254.169.254", "169.254.169.255")
    assert named(METADATA, "169.254.169.254", "169.254.169.254")
    assert named(HOST, "8.8.4.4", "8.8.4.4")
    assert not named(HOST, "8.8.4.0", "8.8.4.255")
    assert not named(LOOPBACK, "::", "ffff::")


def test_the_networks_of_a_group_do_not_overlap_those_of_another_of_its_size() -> None:
    """The table says of no network two things."""
    all_networks = [network for group in GROUPS for network in networks_of(group)]
    assert len(all_networks) == len(set(all_networks))
