"""Several guests, a pool of any size, any order of messages, clocks that jump: no address twice.

The model is what a person with a notebook would keep: who was acknowledged which address, until
when. It shares no code with the server. Some addresses are reserved, for guests that are here and
for one that never comes; the server is started anew now and then, with a lease file; and guests add
whatever options they like.
"""

from ipaddress import IPv4Address
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from qemu_usernat.config import Boot, Reservation
from qemu_usernat.gateway import dhcp, dhcp_options
from qemu_usernat.gateway.dhcp import DhcpReply, DhcpServer
from qemu_usernat.gateway.dhcp_options import DhcpSettings
from qemu_usernat.gateway.leases import RESTING_PER_LINK
from qemu_usernat.lease_file import read_leases, write_leases
from qemu_usernat.primitives.addresses import ANY_IPV4
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.dhcp import DhcpMessage, parse_dhcp

LEASE_TIME = 600
NOON = 1769860800.0  # seconds since 1970
GUESTS = [bytes([0x52, 0x54, 0, 0, 0, n]) for n in range(6)]
BASE = int.from_bytes(bytes([10, 0, 2, 0]), "big")

ABSENT = bytes([0x52, 0x54, 0, 0, 0, 99])
BOOT = Boot(Path("/srv/tftp"), {"other": "boot.ipxe"})

guests = st.sampled_from(GUESTS)
extras = st.dictionaries(
    st.sampled_from([12, 55, 57, 60, 77, 80, 81, 93, 97, 118, 255]),
    st.binary(max_size=40) | st.binary(min_size=256, max_size=400),
    max_size=4,
)
"""Options that are nobody's business: hostile lists, sizes, names and classes."""
host_parts = st.integers(0, 40)


def at(host_part: int) -> bytes:
    return (BASE + host_part).to_bytes(4, "big")


class Segment(RuleBasedStateMachine):
    """One segment with its server."""

    @initialize(prefix=st.integers(24, 30), data=st.data())
    def build(self, prefix: int, data: st.DataObject) -> None:
        size = 1 << (32 - prefix)
        usable = st.integers(1, size - 2)
        gateway, nameserver = data.draw(usable), data.draw(usable)
        first, last = sorted((data.draw(usable), data.draw(usable)))
        self.gateway = at(gateway)
        free = sorted(set(range(1, size - 1)) - {gateway, nameserver}, key=lambda n: abs(n - first))
        owners = data.draw(st.lists(st.sampled_from([*GUESTS, ABSENT]), max_size=3, unique=True))
        chosen = data.draw(st.permutations(free[:5]))
        self.reserved = {mac: at(n) for mac, n in zip(owners, chosen, strict=False)}
        self.forbidden = {at(0), at(size - 1), at(gateway), at(nameserver)}
        self.pool = {at(n) for n in range(first, last + 1)} - self.forbidden
        self.pool -= set(self.reserved.values())
        self.now = 0.0
        self.extra: dict[int, bytes] = {}
        self.held: dict[bytes, tuple[bytes, float]] = {}
        self.offered: dict[bytes, bytes] = {}
        self.declined: dict[bytes, tuple[float, bytes]] = {}
        self.settings = DhcpSettings(
            server_address=self.gateway,
            prefix_length=prefix,
            router=self.gateway,
            dns_servers=(at(nameserver),),
            # The ends of the network are in the range: the server must know better.
            first=at(first if first > 1 else 0),
            last=at(last if last < size - 2 else size - 1),
            reserved=frozenset(),
            mtu=1500,
            lease_time=LEASE_TIME,
            domain="internal",
            reservations=tuple(
                Reservation(mac, IPv4Address(address)) for mac, address in self.reserved.items()
            ),
            boot=BOOT,
        )
        self.server = DhcpServer(self.settings, Counters())

    @rule(restarted_clock=st.sampled_from([0.0, 5e5]))
    def restart(self, restarted_clock: float) -> None:
        """The server ends and another one reads its file; its clock begins anew, offers are gone.

        Nor does it know of declined addresses, but a client that has one declines it again.
        """
        text = write_leases(self.server.remembered(), NOON, self.now)
        leases, flaws = read_leases(text, NOON, restarted_clock)
        assert flaws == []
        self.server = DhcpServer(self.settings, Counters())
        self.server.restore(leases)
        passed, self.now = restarted_clock - self.now, restarted_clock
        self.held = {
            guest: (address, expires + passed) for guest, (address, expires) in self.held.items()
        }
        self.offered.clear()
        self.declined.clear()

    def ask(
        self, kind: int, guest: bytes, options: dict[int, bytes], ciaddr: bytes = ANY_IPV4
    ) -> DhcpReply | None:
        reply = self.server.answer(
            DhcpMessage(
                operation=dhcp.BOOT_REQUEST,
                transaction_id=1,
                seconds=0,
                broadcast=False,
                client_address=ciaddr,
                your_address=ANY_IPV4,
                server_address=ANY_IPV4,
                relay_address=ANY_IPV4,
                client_mac=guest,
                options=self.extra | {dhcp_options.MESSAGE_TYPE: bytes([kind])} | options,
            ),
            self.now,
            link=guest,
        )
        if reply is not None:
            payload = reply.payload()
            assert 300 <= len(payload) <= 1472
            assert parse_dhcp(payload) == reply.message
        return reply

    @rule(extra=extras)
    def say_more(self, extra: dict[int, bytes]) -> None:
        """From now on, with everything."""
        self.extra = extra

    def holder(self, address: bytes) -> bytes | None:
        """The guest that was acknowledged this address and still may use it."""
        for guest, (held, expires) in self.held.items():
            if held == address and expires > self.now:
                return guest
        return None

    def has(self, guest: bytes, address: bytes) -> bool:
        """Whether it had it last; the lease of another that had it before has ended."""
        return guest in self.held and self.held[guest][0] == address

    def check_given(self, reply: DhcpReply, guest: bytes) -> bytes:
        address = reply.message.your_address
        assert address == self.reserved.get(guest, address)
        assert address in self.pool or address == self.reserved.get(guest)
        assert self.holder(address) in (None, guest)
        return address

    def rests(self, address: bytes) -> bool:
        """Whether somebody has found it in use lately."""
        return address in self.declined and self.declined[address][0] > self.now

    def check_offered(self, reply: DhcpReply, guest: bytes) -> bytes:
        """What rests is offered where nothing else is to be had only."""
        address = self.check_given(reply, guest)
        if self.rests(address) and guest not in self.reserved:
            assert all(self.rests(each) or self.is_had(each, guest) for each in self.pool)
        self.declined.pop(address, None)
        return address

    def is_had(self, address: bytes, guest: bytes) -> bool:
        """Whether it is, or may be, another guest's."""
        spoken_for = {each for other, each in self.offered.items() if other != guest}
        return self.holder(address) not in (None, guest) or address in spoken_for

    def check_answer(self, reply: DhcpReply | None, guest: bytes, address: bytes) -> None:
        assert reply is not None
        kind = reply.message.options[dhcp_options.MESSAGE_TYPE][0]
        if kind == dhcp.ACK:
            assert self.check_given(reply, guest) == address
            assert not self.rests(address) or guest in self.reserved
            self.held[guest] = (address, self.now + LEASE_TIME)
        else:
            assert kind == dhcp.NAK
            # A guest that renews what it holds is never turned away.
            assert self.holder(address) != guest

    @rule(guest=guests, wish=st.none() | host_parts)
    def discover(self, guest: bytes, wish: int | None) -> None:
        options = {} if wish is None else {dhcp_options.REQUESTED_ADDRESS: at(wish)}
        reply = self.ask(dhcp.DISCOVER, guest, options)
        if reply is None:
            # Silence is right only if each address is leased, or offered to another.
            assert guest in self.reserved or all(self.is_had(each, guest) for each in self.pool)
            return
        kind = reply.message.options[dhcp_options.MESSAGE_TYPE][0]
        if kind == dhcp.ACK:  # it has said that it takes what it gets (RFC 4039)
            assert dhcp_options.RAPID_COMMIT in self.extra
            self.held[guest] = (self.check_offered(reply, guest), self.now + LEASE_TIME)
            return
        assert kind == dhcp.OFFER
        self.offered[guest] = self.check_offered(reply, guest)

    @rule(guest=guests)
    def take_the_offer(self, guest: bytes) -> None:
        if guest not in self.offered:
            return
        address = self.offered.pop(guest)
        options = {
            dhcp_options.REQUESTED_ADDRESS: address,
            dhcp_options.SERVER_IDENTIFIER: self.gateway,
        }
        self.check_answer(self.ask(dhcp.REQUEST, guest, options), guest, address)

    @rule(guest=guests)
    def go_elsewhere(self, guest: bytes) -> None:
        options = {
            dhcp_options.REQUESTED_ADDRESS: at(9),
            dhcp_options.SERVER_IDENTIFIER: bytes([192, 0, 2, 1]),
        }
        assert self.ask(dhcp.REQUEST, guest, options) is None
        self.offered.pop(guest, None)

    @rule(guest=guests, host_part=host_parts)
    def reboot(self, guest: bytes, host_part: int) -> None:
        address = at(host_part)
        reply = self.ask(dhcp.REQUEST, guest, {dhcp_options.REQUESTED_ADDRESS: address})
        self.check_answer(reply, guest, address)

    @rule(guest=guests)
    def renew(self, guest: bytes) -> None:
        if guest in self.held:
            address = self.held[guest][0]
            self.check_answer(self.ask(dhcp.REQUEST, guest, {}, address), guest, address)

    @rule(guest=guests, host_part=host_parts)
    def renew_what_is_not_mine(self, guest: bytes, host_part: int) -> None:
        address = at(host_part)
        self.check_answer(self.ask(dhcp.REQUEST, guest, {}, address), guest, address)

    @rule(guest=guests, victim=guests)
    def release(self, guest: bytes, victim: bytes) -> None:
        """Anybody may try to release anybody's address; only the holder does."""
        if victim in self.held:
            address = self.held[victim][0]
            options = {dhcp_options.SERVER_IDENTIFIER: self.gateway}
            assert self.ask(dhcp.RELEASE, guest, options, address) is None
            if self.has(guest, address):
                del self.held[guest]

    @rule(guest=guests, victim=guests)
    def decline(self, guest: bytes, victim: bytes) -> None:
        """Anybody may try to decline anybody's address; only the holder does."""
        if victim in self.held and self.holder(self.held[victim][0]) == victim:
            address = self.held[victim][0]
            options = {
                dhcp_options.SERVER_IDENTIFIER: self.gateway,
                dhcp_options.REQUESTED_ADDRESS: address,
            }
            assert self.ask(dhcp.DECLINE, guest, options) is None
            if self.has(guest, address):
                del self.held[guest]
                own = [each for each, (_, who) in self.declined.items() if who == guest]
                if len(own) >= RESTING_PER_LINK:
                    del self.declined[own[0]]
                self.declined.pop(address, None)
                self.declined[address] = (self.now + 1.0, guest)

    @rule(seconds=st.sampled_from([0.0, 0.5, 29.0, 31.0, 599.0, 601.0, 1e4, 1e7]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def no_address_is_held_twice(self) -> None:
        if not hasattr(self, "held"):
            return
        live = [address for address, expires in self.held.values() if expires > self.now]
        assert len(live) == len(set(live))
        told = {each.address: each for each in self.server.leases(self.now)}
        assert len(told) == len(self.server.leases(self.now))
        for guest, (address, expires) in self.held.items():
            if expires > self.now + 1:  # a file has whole seconds
                assert told[address].mac == guest


Segment.TestCase.settings = settings(stateful_step_count=40)
TestSegment = Segment.TestCase
