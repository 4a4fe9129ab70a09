"""Admission: the policy at work. Who may open what, asked by all that opens anything.

It owns which policy holds for which guest, what each guest was told of names, and that every
verdict is told of. It knows nothing of segments and sockets: connections, datagrams, pings and
questions for names come here, each before the first octet of the guest's goes anywhere.

Without a policy all is allowed that is not of the floor, and names are nobody's affair.
"""

from collections.abc import Callable

from attrs import define, evolve, field, frozen

from qemu_usernat.policy.groups import FLOOR, Groups
from qemu_usernat.policy.judge import UNREAD, Flight, FlowRequest, Judge, Speech, Verdict, Why
from qemu_usernat.policy.neighbours import judge_neighbour
from qemu_usernat.policy.pins import Pins
from qemu_usernat.policy.redirects import Redirects, Target
from qemu_usernat.policy.rules import ALLOW, DENY, NetworkPolicy
from qemu_usernat.policy.settings import DROP, LEARN, PolicySettings
from qemu_usernat.primitives.addresses import DNS_PORT, Address, MacAddress, format_mac

GUESTS_MAXIMUM = 4096
"""Guests that are remembered; the one heard first is forgotten first."""


@frozen
class Guest:
    """Who asks."""

    mac: MacAddress
    link: str
    """The name of its link."""
    address: Address


@frozen
class Decision:
    """A verdict, and all that it was given on: what an audit tells, and what is judged again."""

    guest: Guest
    request: FlowRequest
    verdict: Verdict
    name: str | None = None
    """The name that was asked for, of a question; else the one that is believed of the flow."""
    enforced: bool = True
    """Whether the verdict is carried out; not while a policy is being learned."""


DecisionCallback = Callable[[Decision, float], None]


StrayCallback = Callable[[Guest, FlowRequest, float], None]
"""Takes whom a guest has tried to reach where nobody is. Beside the protocols of flows there are
``arp`` and ``ndp``, a look for a neighbour, ``icmpv6``, and the numbers of others; addresses may
be of IPv6."""


def _told_nobody(decision: Decision, now: float) -> None:
    """Where nobody audits."""


def _missed_by_nobody(guest: Guest, request: FlowRequest, now: float) -> None:
    """Where nobody wants to know."""


@define(eq=False)
class Admission:
    """The policies of one network."""

    groups: Groups
    implicit: NetworkPolicy = field(factory=NetworkPolicy.allow_all)
    """What holds where no policy was given."""
    settings: PolicySettings | None = None
    """None: no policy was given."""
    redirects: Redirects = field(factory=Redirects)
    """Where guests are led instead of where they ask for."""
    on_decision: DecisionCallback = _told_nobody
    on_stray: StrayCallback = _missed_by_nobody
    """What is decided without a verdict, as nobody is there: closed ports of the gateway, absent
    neighbours, groups, IPv6. For tests, which want to know of all that a guest does."""
    _judges: dict[str, Judge] = field(factory=dict)
    """By MAC address or link; "" for all others."""
    _pins: dict[tuple[str, MacAddress], Pins] = field(factory=dict)
    """By link and MAC address."""

    def __attrs_post_init__(self) -> None:
        self.replace(self.settings)

    def replace(self, settings: PolicySettings | None) -> None:
        """Other policies, from this moment on; flows that live are to be asked for again."""
        policies = {} if settings is None else {**settings.guests, "": settings.policy}
        judges = {key: Judge(policy, self.groups) for key, policy in policies.items()}
        self._judges = {"": Judge(self.implicit, self.groups, guards_names=False), **judges}
        self.settings = settings

    @property
    def drops(self) -> bool:
        """Whether what is denied is swallowed, and not refused: for tests of timeouts."""
        return self.settings is not None and self.settings.on_deny == DROP

    @property
    def learns(self) -> bool:
        """Whether what is denied is only told of, and let through."""
        return self.settings is not None and self.settings.mode == LEARN

    def judge_of(self, guest: Guest) -> Judge:
        """The judge of that guest: by its link, its MAC address, or everybody's."""
        judges = self._judges
        if len(judges) == 1:
            return judges[""]
        for key in (guest.link, format_mac(guest.mac)):  # a guest chooses its MAC address itself
            if key in judges:
                return judges[key]
        return judges[""]

    @property
    def guards_names(self) -> bool:
        """Whether questions for names are judged: where a policy was given."""
        return self.settings is not None

    # -- what a guest was told

    def pins(self, guest: Guest) -> Pins:
        """Of this guest."""
        key = guest.link, guest.mac
        pins = self._pins.get(key)
        if pins is None:
            if len(self._pins) >= GUESTS_MAXIMUM:
                del self._pins[next(iter(self._pins))]
            pins = self._pins[key] = Pins()
        return pins

    # -- flows

    def admit(
        self,
        guest: Guest,
        protocol: str,
        destination: Address,
        port: int,
        now: float,
        flight: Flight = UNREAD,
    ) -> Decision:
        """Judge a flow; if its verdict is given, tell of it."""
        names = self.pins(guest).names(destination, now)
        target = self.target_of(guest, protocol, destination, port, now)
        request = FlowRequest(protocol, destination, port, names, flight, target)
        return self.decide(guest, request, now)

    def target_of(
        self, guest: Guest, protocol: str, destination: Address, port: int, now: float
    ) -> Target | None:
        """Where a flow goes instead; None if it goes where the guest asks."""
        if not self.redirects:
            return None
        name = self.pins(guest).latest(destination, now)
        return self.redirects.target_of(protocol, destination, port, name)

    def admit_neighbour(
        self, guest: Guest, protocol: str, destination: Address, port: int, now: float
    ) -> Decision:
        """Judge a flow to another guest, whose octets pass by; tell of the verdict."""
        pins = self._pins.get((guest.link, guest.mac))  # one that we tell nothing needs none
        names = frozenset() if pins is None else pins.names(destination, now)
        request = FlowRequest(protocol, destination, port, names)
        request, verdict = judge_neighbour(self.judge_of(guest), request)
        name = request.flight.name or next(iter(sorted(names)), None)
        return self.told(Decision(guest, request, verdict, name), now)

    def decide(self, guest: Guest, request: FlowRequest, now: float) -> Decision:
        """Judge a request; if its verdict is given, tell of it."""
        verdict = self.judge_of(guest).judge(request)
        name = request.flight.name or next(iter(sorted(request.names)), None)
        return self.told(Decision(guest, request, verdict, name), now)

    def told(self, decision: Decision, now: float) -> Decision:
        """The same, after it was told of; in learning what was denied is allowed then, but for
        the floor: nobody learns by letting a guest reach the host."""
        verdict = decision.verdict
        if verdict.hold:
            return decision
        if verdict.action == ALLOW or not self._only_learns(decision.request):
            self.on_decision(decision, now)
            return decision
        self.on_decision(evolve(decision, enforced=False), now)
        return evolve(decision, verdict=evolve(verdict, action=ALLOW))

    def lets_in(self, guest: Guest, protocol: str, source: Address, port: int, now: float) -> bool:
        """Whether somebody may write to a guest that has not written there: if the guest might.

        Nobody is told, for the guest has asked for nothing; and nothing is learned by it.
        """
        names = self.pins(guest).names(source, now)
        request = FlowRequest(protocol, source, port, names)
        return self.judge_of(guest).judge(request).action == ALLOW

    def refuse(self, guest: Guest, request: FlowRequest, why: Why, now: float) -> None:
        """Tell of what no policy lets through."""
        self.on_decision(Decision(guest, request, Verdict(DENY, why)), now)

    def still_allows(self, decision: Decision) -> bool:
        """Whether the policy of this moment lets go on what an earlier one let begin.

        What was admitted before it had said whom it speaks to goes on if it may go on having said
        nobody. What is still held is asked when it has said it.
        """
        request, judge = decision.request, self.judge_of(decision.guest)
        if request.port == DNS_PORT and self.answers_dns(
            decision.guest, request.protocol, request.destination
        ):
            return False
        verdict = judge.judge(request)
        if verdict.hold and not decision.verdict.hold:
            verdict = judge.judge(evolve(request, flight=Flight(Speech.OTHER)))
        return verdict.action != DENY or self._only_learns(request)

    def _only_learns(self, request: FlowRequest) -> bool:
        is_floor = request.destination and self.groups.of(request.destination) in FLOOR
        return self.learns and not is_floor

    def answers_dns(self, guest: Guest, protocol: str, destination: Address) -> bool:
        """Whether what a guest asks at port 53 of `destination` is answered by the gateway: where
        names are judged, but for addresses that a rule allows by themselves."""
        if not self.guards_names:
            return False
        return not self.judge_of(guest).is_named(FlowRequest(protocol, destination, DNS_PORT))
