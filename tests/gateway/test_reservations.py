"""Machines whose address is kept for them, and servers that remember whom they served."""

from collections.abc import Iterable
from ipaddress import IPv4Address

import pytest
from attrs import evolve

from qemu_usernat.config.reservations import Reservation
from qemu_usernat.gateway import dhcp, dhcp_options
from qemu_usernat.gateway.dhcp import DhcpServer
from qemu_usernat.gateway.leases import HeldLease
from qemu_usernat.primitives.addresses import parse_address
from tests.gateway.test_dhcp import (
    ALICE,
    BOB,
    CAROL,
    DAY,
    FIRST,
    GATEWAY,
    SECOND_ADDRESS,
    SETTINGS,
    discover,
    init_reboot,
    lease,
    make_server,
    message,
    renewing,
    selecting,
    told,
)

KEPT = parse_address("10.0.2.15")
OUTSIDE = parse_address("10.0.2.5")


def server_with(*reservations: tuple[bytes, bytes, str]) -> DhcpServer:
    kept = tuple(Reservation(mac, IPv4Address(where), name) for mac, where, name in reservations)
    return make_server(evolve(SETTINGS, reservations=kept))


@pytest.mark.parametrize("address", [KEPT, OUTSIDE], ids=["in the range", "beside it"])
def test_a_machine_gets_the_address_that_is_kept_for_it(address: bytes) -> None:
    """And nobody else does, by whatever form of request, not even while it is away."""
    server = server_with((ALICE, address, ""))
    assert lease(server, BOB) not in (address, GATEWAY)
    assert told(server.answer(discover(CAROL, requested_address=address), 0.0))[1] != address
    for form in (init_reboot, renewing, selecting):
        assert told(server.answer(form(address, CAROL), 1.0))[0] == dhcp.NAK
    assert lease(server, ALICE, now=2.0) == address
    assert lease(server, ALICE, now=10.0 * DAY) == address
    assert told(server.answer(init_reboot(address, CAROL), 30.0 * DAY))[0] == dhcp.NAK


def test_a_machine_with_a_reservation_gets_no_other_address() -> None:
    """Also where it wants one: it moves to where its user has put it."""
    server = server_with((ALICE, OUTSIDE, ""))
    asked = server.answer(discover(ALICE, requested_address=SECOND_ADDRESS), 0.0)
    assert told(asked) == (dhcp.OFFER, OUTSIDE)
    assert told(server.answer(init_reboot(SECOND_ADDRESS), 0.0))[0] == dhcp.NAK


def test_a_reservation_goes_by_the_machine_and_not_by_what_it_says() -> None:
    """Boot ROM and system have identifiers of their own; a neighbour may claim any."""
    server = server_with((ALICE, OUTSIDE, ""))
    for identifier in (b"", b"\x01" + ALICE, b"\xff\0\0\0\0duid"):
        options = {dhcp_options.CLIENT_IDENTIFIER: identifier} if identifier else {}
        asked = server.answer(message(dhcp.DISCOVER, ALICE, options=options), 0.0)
        assert told(asked) == (dhcp.OFFER, OUTSIDE)
    claimed = {dhcp_options.CLIENT_IDENTIFIER: b"\x01" + ALICE}
    asked = server.answer(message(dhcp.DISCOVER, BOB, options=claimed), 0.0)
    assert told(asked) == (dhcp.OFFER, FIRST)


def test_a_reserved_address_that_was_declined_is_offered_again() -> None:
    """Somebody has set it by hand: once that one has gone, its machine has it at once."""
    server = server_with((ALICE, OUTSIDE, ""))
    lease(server, ALICE)
    options = {
        dhcp_options.REQUESTED_ADDRESS: OUTSIDE,
        dhcp_options.SERVER_IDENTIFIER: GATEWAY,
    }
    server.answer(message(dhcp.DECLINE, ALICE, options=options), 1.0)
    assert not server.has_leased(OUTSIDE, 1.0)
    assert lease(server, ALICE, now=2.0) == OUTSIDE


def test_where_all_is_reserved_others_get_nothing() -> None:
    """A closed network: known machines only, also where their leases have long expired."""
    server = make_server(
        evolve(SETTINGS, last=FIRST, reservations=(Reservation(ALICE, IPv4Address(FIRST), ""),))
    )
    assert lease(server, ALICE) == FIRST
    assert server.answer(discover(BOB), 10.0 * DAY) is None


# Names


def test_leases_have_the_names_of_their_machines() -> None:
    """The reservation's name before the machine's own, of which one clean label is left."""
    server = server_with((ALICE, OUTSIDE, "web"))
    named = {
        ALICE: {dhcp_options.HOST_NAME: b"other"},
        BOB: {dhcp_options.HOST_NAME: b"Mail.lab.example"},
        CAROL: {dhcp_options.CLIENT_NAME: b"\x04\0\0\x05build\x03lab\0"},
    }
    for mac, options in named.items():
        assert told(server.answer(message(dhcp.DISCOVER, mac, options=options), 0.0))
        server.answer(
            message(
                dhcp.REQUEST,
                mac,
                options=options
                | {
                    dhcp_options.REQUESTED_ADDRESS: OUTSIDE
                    if mac == ALICE
                    else _offered(server, mac)
                },
            ),
            1.0,
        )
    assert [(each.name, each.mac) for each in server.leases(2.0)] == [
        ("web", ALICE),
        ("mail", BOB),
        ("build", CAROL),
    ]


def _offered(server: DhcpServer, mac: bytes) -> bytes:
    return told(server.answer(discover(mac), 0.0))[1]


def test_a_machine_is_told_the_name_that_it_has() -> None:
    """A reservation's name wins over what the machine calls itself."""
    server = server_with((ALICE, OUTSIDE, "web"))
    reply = server.answer(discover(ALICE, host_name=b"localhost"), 0.0)
    assert reply is not None
    assert reply.message.options[dhcp_options.HOST_NAME] == b"web"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({12: b"web"}, "web"),
        ({12: b"web\0"}, "web"),
        ({12: b"we\0b"}, ""),
        ({12: b"WEB-1"}, "web-1"),
        ({12: b"x" * 63}, "x" * 63),
        ({12: b"x" * 64}, ""),
        ({12: b"-x"}, ""),
        ({12: b"a_b"}, ""),
        ({12: b"\xc3\xa4"}, ""),
        ({12: b".web"}, ""),
        ({12: b"*"}, ""),
        ({81: b"\0\0\0web.example"}, "web"),
        ({81: b"\x04\0\0\x3fweb"}, "web"),
        ({81: b"\x04\0\0"}, ""),
        ({81: b"\x04"}, ""),
        ({}, ""),
    ],
)
def test_a_name_is_one_label_or_none(options: dict[int, bytes], name: str) -> None:
    """What a guest calls itself becomes a name in DNS: nothing but letters, digits and dashes."""
    asked = message(dhcp.DISCOVER, options=options)
    assert dhcp_options.name_of_client(asked) == name


def test_leases_are_those_that_there_are() -> None:
    """Not offers, not what was given back or has ended; the oldest in front."""
    server = make_server()
    version = server.version
    server.answer(discover(CAROL), 0.0)
    assert (server.leases(0.0), server.version) == ([], version)
    bob, alice = lease(server, BOB, now=1.0), lease(server, ALICE, now=2.0)
    assert server.version != version
    assert [each.address for each in server.leases(3.0)] == [bob, alice]
    assert told(server.answer(renewing(bob, BOB), 10.0)) == (dhcp.ACK, bob)
    assert [each.address for each in server.leases(11.0)] == [bob, alice]
    assert [each.address for each in server.leases(DAY + 5.0)] == [bob]
    version = server.version
    server.on_gone({BOB}, DAY + 6.0)
    assert server.version != version
    assert server.leases(DAY + 7.0) == []


# Another server remembers


def again(old: DhcpServer, leases: Iterable[HeldLease] | None = None) -> DhcpServer:
    server = make_server(old.settings)
    server.restore(old.remembered() if leases is None else leases)
    return server


def test_a_restarted_server_remembers() -> None:
    """Leases go on where they were, and who had one long ago finds its address again."""
    old = make_server()
    alice, bob = lease(old, ALICE, now=0.0), lease(old, BOB, now=DAY * 0.9)
    server = again(old)
    now = DAY + 1.0
    assert told(server.answer(discover(CAROL), now))[1] not in (alice, bob)
    assert told(server.answer(init_reboot(bob, CAROL), now))[0] == dhcp.NAK
    assert told(server.answer(renewing(bob, BOB), now)) == (dhcp.ACK, bob)
    assert lease(server, ALICE, now=now) == alice


def test_what_was_reserved_since_is_not_remembered() -> None:
    """A lease of before gives way to a reservation, of its address or for its machine."""
    old = make_server()
    alice, bob = lease(old, ALICE), lease(old, BOB)
    kept = (Reservation(CAROL, IPv4Address(alice)), Reservation(BOB, IPv4Address(OUTSIDE)))
    server = make_server(evolve(SETTINGS, reservations=kept))
    server.restore(old.remembered())
    assert lease(server, CAROL) == alice
    assert lease(server, BOB) == OUTSIDE
    assert told(server.answer(renewing(bob, BOB), 2.0))[0] == dhcp.NAK
    assert told(server.answer(renewing(alice, ALICE), 2.0))[0] == dhcp.NAK


def test_what_is_not_ours_any_more_is_not_remembered() -> None:
    """Another subnet, another range, the gateway's own address: whatever the file says."""
    leases = [
        HeldLease(parse_address(text), ALICE, "", b"\x01" + ALICE, DAY)
        for text in ("192.168.7.7", "10.0.2.14", "10.0.2.2", "10.0.2.255")
    ]
    server = again(make_server(), leases)
    assert server.leases(0.0) == []
    assert lease(server, ALICE) == FIRST


def test_two_leases_of_one_client_or_of_one_address_are_one() -> None:
    """Somebody edited the file: the first one counts."""
    leases = [
        HeldLease(FIRST, ALICE, "", b"\x01" + ALICE, DAY),
        HeldLease(SECOND_ADDRESS, ALICE, "", b"\x01" + ALICE, DAY),
        HeldLease(FIRST, BOB, "", b"\x01" + BOB, DAY),
    ]
    server = again(make_server(), leases)
    assert [(each.address, each.mac) for each in server.leases(0.0)] == [(FIRST, ALICE)]
