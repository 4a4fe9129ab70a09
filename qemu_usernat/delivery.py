"""The way to the guests: everything the router, the gateway and the NAT say leaves here.

It owns how a packet becomes frames on the port of the guest it is for, and the addresses
that stand for others: with `host_loopback` the guest knows the host's 127.0.0.1 as the
gateway. It decides nothing about flows.
"""

from itertools import count

from attrs import define, field

from qemu_usernat.admission import Guest
from qemu_usernat.gateway.icmp import ErrorLimiter
from qemu_usernat.lan.places import Places
from qemu_usernat.lan.port import Port
from qemu_usernat.lan.switch import Switch
from qemu_usernat.primitives.addresses import Address, FlowKey, MacAddress, is_loopback
from qemu_usernat.primitives.counters import Counters
from qemu_usernat.wire.emit import SegmentTemplate
from qemu_usernat.wire.icmp import DESTINATION_UNREACHABLE, TTL, IcmpError, icmp_error
from qemu_usernat.wire.ipv4 import HEADER as IP_HEADER
from qemu_usernat.wire.ipv4 import ipv4_frames
from qemu_usernat.wire.packets import ICMP, UDP, Buffer, IpPacket
from qemu_usernat.wire.udp import udp_datagram

PATH_MTUS_MAXIMUM = 4096
"""Guests' addresses with a narrow way to them; the one heard of first is forgotten first."""

PATH_MTU_MINIMUM = 576  # bytes: what everybody takes (RFC 791); a guest that says less is lying

ETHERNET_MTU = 1500  # bytes of IP packet (RFC 894): what every guest takes


@define(eq=False)
class Delivery:
    """Packets to guests, by MAC address."""

    switch: Switch
    gateway_mac: MacAddress
    gateway_address: Address
    mtu: int
    limiter: ErrorLimiter
    counters: Counters
    _neighbours: dict[Address, MacAddress] = field(factory=dict)
    """At which MAC address each of `_places` was heard last."""
    _places: Places[Address] = field(init=False)
    _heard: dict[Address, MacAddress] = field(factory=dict)
    """Of `_neighbours`, those that need not be noted again before the next `look`."""
    neighbours_met: int = 0
    """How often an address was heard where it had not been before."""
    _path_mtus: dict[Address, int] = field(factory=dict)
    """Guests' addresses with a way behind them that is narrower than their link, in bytes."""
    _identifications: "count[int]" = field(factory=count)
    """Of packets that leave whole, where nobody looks at them unless a guest routes them on."""
    _identifications_of_fragments: "count[int]" = field(factory=count)
    """Those of small packets would soon come round (RFC 4963), with fragments still under way."""

    def __attrs_post_init__(self) -> None:
        self._places = Places(self._forget_neighbour)

    def packet(
        self,
        mac: MacAddress,
        source: Address,
        destination: Address,
        protocol: int,
        payload: Buffer,
        ttl: int = TTL,
        port: Port | None = None,
    ) -> None:
        """One IP packet to one guest, or to all of them if `mac` is a group, but to `port` alone
        where that is given; fragmented to the MTU."""
        mtu = self.mtu_to(mac, destination)
        fits = IP_HEADER + len(payload) <= mtu
        identifications = self._identifications if fits else self._identifications_of_fragments
        frames = ipv4_frames(
            self.gateway_mac,
            mac,
            source,
            destination,
            protocol,
            payload,
            mtu,
            next(identifications) & 0xFFFF,
            ttl,
        )
        if port is None:
            self.frame(mac, *frames)
        else:
            port.send(*frames)

    def mtu_towards(self, mac: MacAddress) -> int:
        """Bytes of an IP packet that surely reaches a guest, or all of them, in one piece."""
        port = None if mac[0] & 1 else self.switch.port_of(mac)
        return min(self.mtu, port.shown_mtu if port is not None else ETHERNET_MTU)

    def mtu_to(self, mac: MacAddress, address: Address) -> int:
        """The same for one address, which may be behind a guest that routes."""
        mtu = self.mtu_towards(mac)
        return min(mtu, self._path_mtus.get(address, mtu)) if self._path_mtus else mtu

    def next_identification(self) -> int:
        """For a packet that leaves whole."""
        return next(self._identifications) & 0xFFFF

    def look(self) -> None:
        """From now on it is noted anew who is heard."""
        self._heard.clear()

    def on_neighbour(self, address: Address, mac: MacAddress, now: float) -> None:
        """A guest has spoken from `address`: whoever has it now gets what is sent to it.

        An address outlives its machine: a new one may have it while old flows still end.
        """
        if self._heard.get(address) != mac:
            self._note(address, mac, now)

    def _note(self, address: Address, mac: MacAddress, now: float) -> None:
        port = self.switch.port_of(mac)
        if port is None:  # a MAC address that ARP names and no frame has shown
            return
        self._places.join(port)
        if not self._places.learn(address, port, now):
            self.counters.count("lan.neighbours_full")
            return
        if self._neighbours.get(address) != mac:
            self._neighbours[address] = mac
            self.neighbours_met += 1
            self.forget_path_mtu(address)
        self._heard[address] = mac

    def _forget_neighbour(self, address: Address, port: Port) -> None:
        """Nobody is known any more to have it."""
        self._neighbours.pop(address, None)
        self._heard.pop(address, None)
        self.forget_path_mtu(address)

    def mac_of(self, address: Address) -> MacAddress | None:
        """Where `address` was heard last; None if it never was, or its link is gone."""
        return self._neighbours.get(address)

    def addresses_at(self, port: Port) -> list[Address]:
        """Those that were heard at `port`, while it was as it is; the one heard last at the end."""
        if not port.addresses:
            return []
        at = self._neighbours
        return [each for each in self._places.port_of if at[each] in port.addresses]

    def guest_at(self, mac: MacAddress, address: Address) -> Guest:
        """Who speaks, for those who ask who it is."""
        port = self.switch.port_of(mac)
        return Guest(mac, "" if port is None else port.name, address)

    def link_of(self, address: Address) -> str:
        """The name of the link at which `address` was heard last; "" where it is gone."""
        mac = self._neighbours.get(address)
        return "" if mac is None else self.guest_at(mac, address).link

    def on_shown_mtu(self, mac: MacAddress, mtu: int) -> None:
        """The guest at `mac` has sent, or has said that it takes, an IP packet of `mtu` bytes."""
        port = self.switch.port_of(mac)
        if port is not None and mtu > port.shown_mtu:
            port.shown_mtu = mtu

    def on_link_down(self, port: Port) -> None:
        """The guests behind it are gone."""
        self.limiter.forget(port)
        for address, heard in self._places.leave(port).items():
            elsewhere = self.switch.port_of(self._neighbours[address])
            if elsewhere is None:
                self._forget_neighbour(address, port)
            else:  # its new link came up before the old one was known to be gone
                self._places.join(elsewhere)
                if not self._places.learn(address, elsewhere, heard):
                    self._forget_neighbour(address, port)

    def forget_path_mtu(self, address: Address) -> None:
        """Another machine may have it now."""
        self._path_mtus.pop(address, None)

    def on_path_mtu(self, address: Address, mtu: int) -> None:
        """A way to `address` takes no more than `mtu` bytes of IP packet (RFC 1191).

        For good: unfragmented it is never tried again, and larger packets come to no harm.
        """
        if address not in self._path_mtus and len(self._path_mtus) >= PATH_MTUS_MAXIMUM:
            del self._path_mtus[next(iter(self._path_mtus))]
        known = self._path_mtus.get(address, mtu)
        self._path_mtus[address] = max(PATH_MTU_MINIMUM, min(known, mtu))

    def frame(self, mac: MacAddress, *frames: bytes) -> None:
        """One frame, stream length in front, or the fragments of one packet, all of them or none;
        to one guest, or to everybody."""
        if mac[0] & 1:
            self.switch.broadcast(*frames)
            return
        port = self.switch.port_of(mac)
        if port is None:
            self.counters.count("lan.guest_absent")
        else:
            port.send(*frames)

    def datagram(
        self,
        mac: MacAddress,
        source: Address,
        source_port: int,
        destination: Address,
        destination_port: int,
        payload: Buffer,
        port: Port | None = None,
    ) -> None:
        """One UDP datagram, as `packet`."""
        datagram = udp_datagram(source, source_port, destination, destination_port, payload)
        self.packet(mac, source, destination, UDP, datagram, port=port)

    def unreachable(
        self, mac: MacAddress, about: IpPacket, code: int, now: float, source: Address | None = None
    ) -> None:
        """ICMP destination unreachable, from the gateway unless `source` says from whom."""
        self.error(mac, about, IcmpError(DESTINATION_UNREACHABLE, code, offender=source), now)

    def error(self, mac: MacAddress, about: IpPacket, error: IcmpError, now: float) -> None:
        """An ICMP error about a packet of the guest, where it is allowed (RFC 1122, 3.2.2)."""
        if self.limiter.may_report(about):
            self.quoting(mac, about.source, error, about.header + about.payload, now)

    def quoting(
        self, mac: MacAddress, guest: Address, error: IcmpError, quoted: bytes, now: float
    ) -> None:
        """An ICMP error to the guest at `mac`, about its packet `quoted`: as far as an error quotes
        it, and from its IP header on."""
        port = self.switch.port_of(mac)
        if port is None or not self.limiter.may_send(port, now):
            self.counters.count("lan.guest_absent" if port is None else "icmp.error_limited")
            return
        source = self.gateway_address
        if error.offender is not None:
            source = self.as_guest_sees(error.offender)
        message = icmp_error(error.type, error.code, error.rest, quoted)
        self.packet(mac, source, guest, ICMP, message, error.ttl)

    def as_guest_sees(self, address: Address) -> Address:
        """The guest's name for an address of the host's world."""
        return self.gateway_address if is_loopback(address) else address

    def reset(self, mac: MacAddress, key: FlowKey, sequence: int, acknowledgment: int,
              flags: int, speaker: MacAddress | None = None) -> None:  # fmt: skip
        """A segment of no flow: the answer to what belongs to none; from the gateway, or in the
        name of another guest, and then also to one that is with another server."""
        port = self.switch.port_of(mac) if speaker is None else self.switch.place_of(mac)
        if port is not None and port.queued < port.limit:
            template = self.template(mac, key, speaker)
            port.queued += template.append(port.outbox, sequence, acknowledgment, flags, 0)

    def template(
        self, mac: MacAddress, key: FlowKey, speaker: MacAddress | None = None
    ) -> SegmentTemplate:
        """The headers of what a flow says to its guest, who is at `mac`."""
        guest_address, guest_port, host_address, host_port = key
        return SegmentTemplate(
            mac, speaker or self.gateway_mac, host_address, host_port, guest_address, guest_port
        )
