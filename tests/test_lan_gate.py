"""Guests on one LAN under a policy: who may begin what, what goes on, and what is refused."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from qemu_usernat import lan_flows, lan_gate
from qemu_usernat.admission import Decision
from qemu_usernat.config.configuration import groups_of
from qemu_usernat.lan_flows import CLOSING_TIME, DATAGRAM_TIME, OPENING_TIME
from qemu_usernat.policy.rules import NetworkPolicy
from qemu_usernat.policy.settings import DROP, LEARN, PolicySettings
from qemu_usernat.primitives.addresses import format_address
from qemu_usernat.testing.internet.world import TEST_NETWORKS
from qemu_usernat.wire.icmp import (
    ADMINISTRATIVELY_PROHIBITED,
    DESTINATION_UNREACHABLE,
    PORT_UNREACHABLE,
    PROTOCOL_UNREACHABLE,
)
from qemu_usernat.wire.packets import ACK, FIN, PSH, RST, SYN
from tests.scripted_guest import (
    BROADCAST_MAC,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OTHER,
    OTHER_MAC,
    ScriptedGuest,
    ScriptedNetwork,
    ethernet,
    icmp,
    packed,
    udp,
)

DENY, ALLOW = NetworkPolicy.deny_all(), NetworkPolicy.allow_all()
LAN = DENY.allow_group("lan")
THIRD, THIRD_MAC = "10.0.2.17", b"\x52\x54\0\x12\x34\x58"
GROUP, GROUP_MAC = "239.1.2.3", bytes.fromhex("01005e010203")


class Lan:
    """Guests of which the first has a policy of its own, and what an audit is told."""

    def __init__(
        self, policy: NetworkPolicy, others: NetworkPolicy = DENY, **settings: Any
    ) -> None:
        self.network = ScriptedNetwork(mtu=1500)
        admission = self.network.admission
        admission.groups = evolve(groups_of(self.network.settings), public=TEST_NETWORKS)
        self.told: list[Decision] = []
        admission.on_decision = lambda decision, now: self.told.append(decision)
        self.one, self.two, self.three = (
            self.network.guest(GUEST_MAC, GUEST, "one"),
            self.network.guest(OTHER_MAC, OTHER, "two"),
            self.network.guest(THIRD_MAC, THIRD, "three"),
        )
        self.rules(policy, others, **settings)
        for guest in (self.one, self.two, self.three):
            guest.sends(guest.ping(GATEWAY))
        self.quiet()

    def rules(self, policy: NetworkPolicy, others: NetworkPolicy = DENY, **settings: Any) -> None:
        """From now on."""
        given = PolicySettings(policy=others, guests={"one": policy}, **settings)
        self.network.admission.replace(given)
        self.network.router.on_policy(True, self.network.now)
        self.network.end_turn()

    def quiet(self) -> None:
        """What was said until now is heard by nobody any more."""
        for guest in (self.one, self.two, self.three):
            guest.frames()
        self.told.clear()
        self.network.counters.clear()

    def verdicts(self) -> list[tuple[str | None, str, str, int]]:
        """What was told since."""
        told, self.told[:] = list(self.told), []
        return [
            (
                decision.verdict.action,
                decision.request.protocol,
                format_address(decision.request.destination),
                decision.request.port,
            )
            for decision in told
        ]


def to(guest: ScriptedGuest, frame: bytes) -> bytes:
    """The frame on its way to that guest, and not to the gateway."""
    return guest.mac + frame[6:]


def segment(
    sender: ScriptedGuest, receiver: ScriptedGuest, sport: int, dport: int, flags: int,
    *numbers: int, payload: bytes = b"",
) -> bytes:  # fmt: skip
    frame = sender.segment(sport, receiver.address, dport, flags, *numbers, payload=payload)
    return to(receiver, frame)


def datagram(
    sender: ScriptedGuest, receiver: ScriptedGuest, sport: int = 4000, dport: int = 7
) -> bytes:
    return to(receiver, sender.datagram(sport, receiver.address, dport, b"hello"))


def connect(lan: Lan, sport: int = 4000, dport: int = 22) -> None:
    """A handshake between the first guest and the second."""
    one, two = lan.one, lan.two
    for sender, receiver, ports, flags, numbers in (
        (one, two, (sport, dport), SYN, (100, 0)),
        (two, one, (dport, sport), SYN | ACK, (500, 101)),
        (one, two, (sport, dport), ACK, (101, 501)),
    ):
        sender.sends(segment(sender, receiver, *ports, flags, *numbers))
        assert receiver.hears_one().tcp.flags == flags


# -- what is let in


def test_a_connection_that_is_allowed_goes_both_ways() -> None:
    """It is judged once, by the policy of the guest that begins it; the other may do nothing of
    its own, and answers all the same."""
    lan = Lan(LAN)
    connect(lan)
    assert lan.verdicts() == [("allow", "tcp", OTHER, 22)]
    lan.two.sends(segment(lan.two, lan.one, 22, 4000, PSH | ACK, 501, 101, payload=b"SSH"))
    assert lan.one.hears_one().tcp.payload == b"SSH"
    assert lan.verdicts() == []
    lan.two.sends(segment(lan.two, lan.one, 4001, 22, SYN, 1))
    assert lan.one.frames() == []
    assert lan.verdicts() == [("deny", "tcp", GUEST, 22)]


@pytest.mark.parametrize(
    ("policy", "passes"),
    [
        (LAN, True),
        (ALLOW, True),
        (DENY, False),
        (ALLOW.deny_group("lan"), False),
        (DENY.allow_ip(OTHER), True),
        (DENY.allow_ip(THIRD), False),
        (DENY.rule(f"allow {OTHER} on tcp/22"), True),
        (DENY.rule(f"allow {OTHER} on tcp/23, udp"), False),
        (DENY.rule("allow private"), False),
    ],
    ids=str,
)
def test_a_syn_is_judged_before_the_neighbour_hears_it(policy: NetworkPolicy, passes: bool) -> None:
    """`lan` is in `any`; what is denied is reset at once, in the neighbour's name."""
    lan = Lan(policy)
    lan.one.sends(segment(lan.one, lan.two, 4000, 22, SYN, 100))
    assert bool(lan.two.frames()) is passes
    if passes:
        assert lan.one.frames() == []
        return
    refusal = lan.one.hears_one()
    assert (refusal.source, refusal.source_mac) == (OTHER, OTHER_MAC)
    assert (refusal.tcp.flags, refusal.tcp.acknowledgment) == (RST | ACK, 101)
    assert lan.network.counters["policy.denied"] == 1


def test_datagrams_and_pings_are_judged_and_answered() -> None:
    """What was asked may be answered, by that machine, to that port; what is denied is refused by
    the gateway."""
    lan = Lan(LAN)
    one, two = lan.one, lan.two
    one.sends(datagram(one, two), to(two, one.ping(OTHER)))
    assert len(two.frames()) == 2
    reply = to(one, two.packet(icmp(0, 0, b"\x12\x34\0\1", b"ping"), 1, GUEST))
    two.sends(datagram(two, one, 7, 4000), reply)
    assert len(one.frames()) == 2
    two.sends(datagram(two, one, 7, 4001), to(one, two.ping(GUEST)))
    assert one.frames() == []
    refusals = two.hears()
    assert [each.source for each in refusals] == [GATEWAY] * 2
    assert {(each.icmp.type, each.icmp.code) for each in refusals} == {
        (DESTINATION_UNREACHABLE, ADMINISTRATIVELY_PROHIBITED)
    }
    unasked = to(one, two.packet(icmp(0, 0, b"\x99\x99\0\1", b"ping"), 1, GUEST))
    two.sends(unasked)
    assert one.frames() == []


def test_what_is_denied_may_be_swallowed() -> None:
    """`on_deny = "drop"`: for tests of timeouts."""
    lan = Lan(DENY, on_deny=DROP)
    one, two = lan.one, lan.two
    one.sends(segment(one, two, 4000, 22, SYN, 1), datagram(one, two), to(two, one.ping(OTHER)))
    assert one.frames() == two.frames() == []
    assert lan.network.counters["policy.dropped"] == 3


def test_what_would_be_denied_is_told_while_a_policy_is_learned() -> None:
    """And passes."""
    lan = Lan(DENY, mode=LEARN)
    connect(lan)
    lan.one.sends(datagram(lan.one, lan.two))
    assert len(lan.two.frames()) == 1
    assert [decision.enforced for decision in lan.told] == [False, False]


def test_a_name_leads_to_the_neighbour_it_was_given_for() -> None:
    """At any port, also where clients of the world would have to say it; another's name does not,
    and one that a rule denies counts against its machine."""
    lan = Lan(DENY.rule("allow web.internal on tcp"))
    for port in (22, 80, 443):
        lan.one.sends(segment(lan.one, lan.two, 4000, port, SYN, 1))
        assert lan.two.frames() == []
    lan.one.frames()
    guest = lan.network.router._delivery.guest_at(GUEST_MAC, packed(GUEST))
    lan.network.admission.pins(guest).add("web.internal", packed(OTHER), 60, lan.network.now)
    for port in (22, 80, 443):
        lan.one.sends(segment(lan.one, lan.two, 5000, port, SYN, 1))
        assert len(lan.two.frames()) == 1
        lan.one.sends(segment(lan.one, lan.three, 5000, port, SYN, 1))
        assert lan.three.frames() == []
    lan.one.frames()
    lan.rules(ALLOW.deny_domain("web.internal"))
    for port in (22, 80, 443):
        lan.one.sends(segment(lan.one, lan.two, 6000, port, SYN, 1))
        assert lan.two.frames() == []
        lan.one.sends(segment(lan.one, lan.three, 6000, port, SYN, 1))
        assert len(lan.three.frames()) == 1


def test_names_are_asked_of_the_gateway() -> None:
    """Port 53 of a neighbour is none, unless a rule allows its very address."""
    lan = Lan(LAN)
    lan.one.sends(datagram(lan.one, lan.two, dport=53))
    assert lan.two.frames() == []
    assert lan.told[-1].verdict.why.value == "name_service"
    lan.rules(LAN.allow_ip(OTHER))
    lan.one.sends(datagram(lan.one, lan.two, dport=53))
    assert len(lan.two.frames()) == 1


# -- what belongs to a flow, and for how long


def test_a_segment_of_nothing_is_reset() -> None:
    """Nobody slips past the judgment of a SYN by not sending one."""
    lan = Lan(ALLOW)
    lan.one.sends(segment(lan.one, lan.two, 4000, 22, ACK, 7, 77))
    assert lan.two.frames() == []
    refusal = lan.one.hears_one().tcp
    assert (refusal.flags, refusal.sequence) == (RST, 77)
    lan.one.sends(segment(lan.one, lan.two, 4000, 22, RST, 7))
    assert lan.one.frames() == lan.two.frames() == []


@pytest.mark.parametrize("ending", ["reset", "fins"])
def test_a_connection_that_has_ended_is_no_way_in(ending: str) -> None:
    """For the guest that was called: it would call back without being allowed to."""
    lan = Lan(LAN)
    connect(lan)
    one, two = lan.one, lan.two
    if ending == "reset":
        one.sends(segment(one, two, 4000, 22, RST, 101))
    else:
        one.sends(segment(one, two, 4000, 22, FIN | ACK, 101, 501))
        two.sends(segment(two, one, 22, 4000, FIN | ACK, 501, 102))
        lan.network.advance(CLOSING_TIME)
    one.frames()
    two.sends(segment(two, one, 22, 4000, ACK, 501, 101))
    assert one.frames() == []
    two.sends(segment(two, one, 22, 4000, SYN, 900))
    assert one.frames() == []


def test_a_call_back_through_an_open_connection_is_judged() -> None:
    """A SYN begins something, whatever ports it has."""
    lan = Lan(LAN)
    connect(lan)
    lan.two.sends(segment(lan.two, lan.one, 22, 4000, SYN, 900))
    assert lan.one.frames() == []
    assert lan.verdicts()[-1] == ("deny", "tcp", GUEST, 4000)
    lan.two.sends(segment(lan.two, lan.one, 22, 4000, ACK, 501, 101))
    assert len(lan.one.frames()) == 1


def test_silence_ends_what_was_let_in() -> None:
    """A datagram's answer comes within two minutes; a SYN's within one; an open connection may be
    silent for two hours."""
    lan = Lan(LAN)
    one, two = lan.one, lan.two
    connect(lan)
    one.sends(datagram(one, two), segment(one, two, 5000, 22, SYN, 1))
    lan.network.advance(OPENING_TIME)
    two.sends(segment(two, one, 22, 5000, SYN | ACK, 1, 2))
    assert one.frames() == []
    lan.network.advance(DATAGRAM_TIME - OPENING_TIME)
    two.sends(datagram(two, one, 7, 4000))
    assert one.frames() == []
    lan.network.advance(7200)
    two.sends(segment(two, one, 22, 4000, ACK, 501, 101))
    assert len(one.frames()) == 1


def test_errors_about_what_goes_on_pass() -> None:
    """A closed port is told to who asked; about nothing, or about others' affairs, nobody tells."""
    lan = Lan(LAN)
    one, two, three = lan.one, lan.two, lan.three
    asked = datagram(one, two)
    one.sends(asked)
    two.frames()

    def error(sender: ScriptedGuest, about: bytes, kind: int = 3) -> bytes:
        message = icmp(kind, PORT_UNREACHABLE, bytes(4), about[14:42])
        return to(one, sender.packet(message, 1, GUEST))

    two.sends(error(two, asked))
    assert len(one.frames()) == 1
    two.sends(error(two, datagram(one, two, 4001)), error(two, asked, kind=5))
    three.sends(error(three, asked))
    assert one.frames() == []


def test_another_machine_does_not_take_over_a_conversation() -> None:
    """A neighbour that takes the address of one that has left hears and says nothing in it; the
    same machine on a new connection of its link goes on."""
    lan = Lan(LAN)
    one, two, router = lan.one, lan.two, lan.network.router
    connect(lan)
    one.sends(datagram(one, two))
    two.frames()
    for guest in (two,):
        router.switch.detach(guest.port)
        router.on_link_down(guest.port, lan.network.now)
    again = lan.network.guest(OTHER_MAC, OTHER, "two")
    again.sends(segment(again, one, 22, 4000, ACK, 501, 101))
    assert len(one.frames()) == 1
    router.switch.detach(again.port)
    router.on_link_down(again.port, lan.network.now)
    heir = lan.network.guest(OTHER_MAC, OTHER, "elsewhere")
    heir.sends(segment(heir, one, 22, 4000, ACK, 501, 101), datagram(heir, one, 7, 4000))
    assert one.frames() == []


def test_a_frame_goes_to_the_machine_that_was_judged() -> None:
    """Not to an accomplice, in a frame for it with a packet for somebody who may be reached."""
    lan = Lan(DENY.allow_ip(OTHER))
    lan.one.sends(to(lan.three, lan.one.datagram(4000, OTHER, 7, b"secret")))
    assert lan.three.frames() == []
    assert lan.network.counters["ethernet.guarded"] == 1
    for elsewhere in ("8.8.8.8", GATEWAY, "10.0.2.255"):
        lan.one.sends(to(lan.two, lan.one.datagram(4000, elsewhere, 7, b"route this")))
        assert lan.two.frames() == []


# -- fragments


def test_fragments_pass_behind_a_first_one_that_was_judged() -> None:
    """Neither alone, nor before it; nor is a first one so small that it does not say for whom."""
    lan = Lan(DENY.rule(f"allow {OTHER} on udp/7, tcp/7"))
    one, two = lan.one, lan.two

    def fragments(dport: int, identification: int, size: int = 1480) -> list[bytes]:
        datagram = udp(GUEST, 4000, OTHER, dport, bytes(3000))
        return [
            to(two, one.packet(
                datagram[at : at + size], 17, OTHER, identification=identification,
                fragment=at // 8 | (0x2000 if at + size < len(datagram) else 0),
            ))
            for at in range(0, len(datagram), size)
        ]  # fmt: skip

    allowed = fragments(7, 1)
    one.sends(*allowed)
    assert len(two.frames()) == len(allowed) == 3
    one.sends(*fragments(8, 2))
    assert two.frames() == []
    one.sends(*reversed(fragments(7, 3)))
    assert len(two.frames()) == 1
    lan.network.advance(60)
    one.sends(*allowed[1:])
    assert two.frames() == []
    whole = one.segment(4000, OTHER, 7, SYN, 1, options=b"\1\1\1\1")[34:]
    one.sends(to(two, one.packet(whole, 6, OTHER, identification=4, fragment=0x2000)))
    assert len(two.frames()) == 1
    one.sends(to(two, one.packet(bytes(8), 6, OTHER, identification=4, fragment=1)))
    assert two.frames() == []  # over its head: other ports, or no SYN
    one.sends(to(two, one.packet(bytes(8), 6, OTHER, identification=4, fragment=3)))
    assert len(two.frames()) == 1
    tiny = to(two, one.packet(struct.pack(">HH", 4000, 7), 17, OTHER, fragment=0x2000))
    one.sends(tiny)
    assert two.frames() == []


# -- what is for all


def test_groups_have_to_be_named() -> None:
    """`any` does not mean them; what may not be said to all is dropped without a word, and told."""

    def calls(lan: Lan, destination: str, mac: bytes) -> int:
        lan.one.sends(lan.one.datagram(4000, destination, 1900, b"all", destination_mac=mac))
        assert lan.one.frames() == []
        return len(lan.two.frames()) + len(lan.three.frames())

    for policy, times in ((ALLOW, 0), (LAN, 0), (DENY.rule("allow multicast"), 2)):
        lan = Lan(policy)
        assert calls(lan, GROUP, GROUP_MAC) == times
        assert calls(lan, "255.255.255.255", BROADCAST_MAC) == times
        assert calls(lan, "10.0.2.255", BROADCAST_MAC) == times
        assert lan.verdicts()[0] == ("allow" if times else "deny", "udp", GROUP, 1900)
    lan = Lan(DENY.rule(f"allow {GROUP} on udp/1900"))
    assert calls(lan, GROUP, GROUP_MAC) == 2
    assert calls(lan, "239.1.2.4", GROUP_MAC) == 0


def test_who_has_what_is_asked_freely() -> None:
    """ARP needs no rule; it is from whom it names."""
    lan = Lan(DENY)
    lan.one.sends(lan.one.asks_who_has(OTHER))
    assert len(lan.two.frames()) == len(lan.three.frames()) == 1
    for forged in (OTHER, GATEWAY):
        lie = bytearray(lan.one.asks_who_has(THIRD))
        lie[28:32] = packed(forged)
        lan.one.sends(bytes(lie))
        as_another = bytearray(lan.one.asks_who_has(THIRD))
        as_another[22:28] = OTHER_MAC
        lan.one.sends(bytes(as_another))
    assert lan.three.frames() == lan.two.frames() == []


HOSTILE: dict[str, Callable[[ScriptedGuest], bytes]] = {
    "ipv6": lambda one: ethernet(bytes(40), GUEST_MAC, OTHER_MAC, 0x86DD),
    "vlan": lambda one: ethernet(bytes(46), GUEST_MAC, OTHER_MAC, 0x8100),
    "llc": lambda one: ethernet(bytes(46), GUEST_MAC, BROADCAST_MAC, 46),
    "a lease": lambda one: to_two(one.datagram(67, OTHER, 68, b"lease")),
    "a question for a lease": lambda one: to_two(one.datagram(68, OTHER, 67, b"lease?")),
    "redirect": lambda one: to_two(one.packet(icmp(5, 1, bytes(4), bytes(28)), 1, OTHER)),
    "timestamp": lambda one: to_two(one.packet(icmp(13, 0, bytes(4), bytes(12)), 1, OTHER)),
    "another protocol": lambda one: to_two(one.packet(b"tunnel--", 47, OTHER)),
    "igmp": lambda one: one.packet(bytes(8), 2, GROUP, destination_mac=GROUP_MAC),
    "tcp to a group": lambda one: one.packet(bytes(20), 6, GROUP, destination_mac=GROUP_MAC),
    "one in a frame for all": lambda one: BROADCAST_MAC + one.datagram(1, OTHER, 7, b"x")[6:],
    "a neighbour's address": lambda one: to_two(one.datagram(1, OTHER, 7, b"x", source=THIRD)),
    "no address": lambda one: to_two(one.datagram(1, OTHER, 7, b"x", source="0.0.0.0")),
    "an address of the world": lambda one: to_two(one.ping(OTHER, source="8.8.8.8")),
    "a short segment": lambda one: to_two(one.packet(bytes(19), 6, OTHER)),
    "a broken header": lambda one: to_two(one.ping(OTHER))[:24] + b"\0" + one.ping(OTHER)[25:],
}


def to_two(frame: bytes) -> bytes:
    """For the neighbour."""
    return OTHER_MAC + frame[6:]


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_else_reaches_a_neighbour(what: str) -> None:
    """Whatever the rules allow."""
    lan = Lan(LAN.allow_group("multicast"))
    lan.one.sends(HOSTILE[what](lan.one))
    assert lan.two.frames() == lan.three.frames() == []
    assert lan.network.counters["ethernet.guarded"] == 1


def test_another_protocol_is_refused() -> None:
    """By the gateway, which carries none either."""
    lan = Lan(LAN)
    lan.one.sends(HOSTILE["another protocol"](lan.one))
    refusal = lan.one.hears_one()
    assert (refusal.icmp.type, refusal.icmp.code) == (DESTINATION_UNREACHABLE, PROTOCOL_UNREACHABLE)
    assert [decision.verdict.why.value for decision in lan.told] == ["uncarried"]


# -- a new policy


def test_a_new_policy_ends_what_it_does_not_allow() -> None:
    """Both ends are reset at once, where they expect it; what it allows goes on."""
    lan = Lan(LAN)
    one, two = lan.one, lan.two
    connect(lan, 4000, 22)
    connect(lan, 4001, 23)
    lan.rules(DENY.rule(f"allow {OTHER} on tcp/23"))
    for guest, other, sequence in ((one, two, 501), (two, one, 101)):
        reset = guest.hears_one()
        assert (reset.source, reset.source_mac) == (other.address, other.mac)
        assert (reset.tcp.flags, reset.tcp.sequence) == (RST, sequence)
        assert 22 in (reset.tcp.source_port, reset.tcp.destination_port)
    assert lan.network.counters["policy.revoked"] == 1
    two.sends(segment(two, one, 23, 4001, ACK, 501, 101))
    assert len(one.frames()) == 1


def test_without_a_policy_nothing_is_judged_or_remembered() -> None:
    """Neighbours speak as they like, IPv6, too."""
    lan = Lan(LAN)
    connect(lan)
    lan.network.admission.replace(None)
    lan.network.router.on_policy(False, lan.network.now)
    assert not len(lan.network.router._lan_gate.flows)
    lan.two.sends(datagram(lan.two, lan.one), ethernet(bytes(46), OTHER_MAC, GUEST_MAC, 0x86DD))
    assert len(lan.one.frames()) == 2


# -- bounds


def test_a_flood_of_conversations_costs_its_guest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own that was silent for longest gives way; its neighbour's goes on. In all there is a
    bound, too, and who has most makes room."""
    monkeypatch.setattr(lan_flows, "FLOWS_OF_GUEST_MAXIMUM", 4)
    monkeypatch.setattr(lan_flows, "FLOWS_MAXIMUM", 6)
    lan = Lan(LAN, LAN)
    one, two, three = lan.one, lan.two, lan.three
    flows = lan.network.router._lan_gate.flows
    two.sends(datagram(two, three))
    for sport in range(1000, 1005):
        one.sends(datagram(one, two, sport))
    assert len(flows) == 5
    assert lan.network.counters["lan.flow_gave_way"] == 1
    three.sends(datagram(three, one, 2000), datagram(three, one, 2001))
    assert len(flows) == 6
    lan.rules(DENY)  # which ends none that was silent
    assert len(flows) == 0


def test_fragments_of_one_guest_cost_another_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of first ones is forgotten; its neighbour's datagram is whole."""
    monkeypatch.setattr(lan_gate, "DATAGRAMS_MAXIMUM", 4)
    lan = Lan(LAN, LAN)
    first, second = (
        to(lan.three, frame)
        for frame in lan.two.fragments(udp(OTHER, 1, THIRD, 7, bytes(2000)), 17, THIRD)
    )
    lan.two.sends(first)
    for number in range(10):
        begun = lan.one.packet(bytes(16), 17, THIRD, identification=number, fragment=0x2000)
        lan.one.sends(to(lan.three, begun))
    lan.two.sends(second)
    assert len(lan.three.frames()) == 12


@pytest.mark.parametrize("what", ["who has", "datagram"])
def test_nothing_passes_behind_a_packet(what: str) -> None:
    """A frame may be longer than what it carries: nobody has judged the rest."""
    lan = Lan(LAN)
    frame = {
        "who has": lan.one.asks_who_has(OTHER),
        "datagram": datagram(lan.one, lan.two),
    }[what]
    lan.one.sends(frame.ljust(1500, b"!"))
    (heard,) = lan.two.frames()
    assert heard == frame.ljust(60, b"\0")


def test_who_looks_for_a_lease_tells_the_gateway_alone() -> None:
    """That is nothing to count, nor to judge: every guest does it."""
    lan = Lan(LAN.allow_group("multicast"))
    for source in ("0.0.0.0", GUEST):
        lan.one.sends(
            lan.one.datagram(
                68, "255.255.255.255", 67, b"?", source=source, destination_mac=BROADCAST_MAC
            )
        )
    assert lan.two.frames() == []
    assert lan.told == []
    assert lan.network.counters["ethernet.guarded"] == 0
    assert lan.network.counters["dhcp.too_short"] == 2


@pytest.mark.parametrize("what", ["another policy", "its link is gone"])
def test_the_rest_of_a_datagram_does_not_outlive(what: str) -> None:
    """What let its first fragment in; a policy that comes later may not."""
    lan = Lan(LAN, LAN)
    first, second = (
        to(lan.two, frame)
        for frame in lan.one.fragments(udp(GUEST, 1, OTHER, 7, bytes(2000)), 17, OTHER)
    )
    lan.one.sends(first)
    if what == "another policy":
        lan.rules(DENY)
        speaker = lan.one
    else:
        router = lan.network.router
        router.switch.detach(lan.one.port)
        router.on_link_down(lan.one.port, lan.network.now)
        assert not router._lan_gate._fragments
        speaker = lan.network.guest(GUEST_MAC, GUEST, "one")
    lan.quiet()
    speaker.sends(second)
    assert lan.two.frames() == []
