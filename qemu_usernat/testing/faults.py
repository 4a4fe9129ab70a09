"""What is done to the frames of a wire: rules that a test makes, and the chance that they take.

    faults.drop(tcp.port == 443, probability=0.1)
    with faults.delay(from_guest & dns, 2.0) as rule:
        ...
    assert rule.hits

Every frame meets the rules in the order in which they were made; what one has dropped the next does
not see. All chance comes from one seed, and each rule has its own in each direction of each guest,
so that the same frames meet the same fate, whatever goes the other way meanwhile.
"""

import math
from collections.abc import Callable
from random import Random
from typing import TypeAlias

import trio
from attrs import define, field

from qemu_usernat.testing.filters import Filter, require_filter
from qemu_usernat.testing.frames import Frame
from qemu_usernat.testing.relay import ETHERNET_HEADER, REORDER_TIME, bent
from qemu_usernat.wire.packets import ETHERTYPE_IPV4


@define
class Passage:
    """How one frame passes the wire."""

    octets: bytes
    due: float
    """When it reaches the other end."""
    copies: int = 1


Direction: TypeAlias = tuple[str, bool]
"""A guest's name, and whether frames come from it."""

Deed: TypeAlias = Callable[[Passage, Direction, Random], str]
"""Does it to a frame and says what was done; "" if nothing could be."""


@define(eq=False, repr=False)
class Rule:
    """One rule; `hits` counts the frames that it has befallen.

    `remove` ends it, and so does the end of a ``with``. Frames that it has delayed still come.
    """

    which: Filter
    probability: float
    count: int | None
    _text: str
    _deed: Deed
    _faults: "Faults"
    _seed: str
    hits: int = 0
    _chances: dict[Direction, Random] = field(factory=dict)

    def remove(self) -> None:
        """No frame meets it any more."""
        if self in self._faults.rules:
            self._faults.rules.remove(self)

    def __enter__(self) -> "Rule":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        options = f", probability={self.probability}" if self.probability < 1 else ""
        if self.count is not None:
            options += f", count={self.count}"
        return f"<{self._text.format(f'{self.which!r}{options}')}: {self.hits} hits>"

    def befall(self, frame: Frame, passage: Passage) -> str:
        """Do it, if this frame is one of those; what was done, or ""."""
        if self.hits == self.count or not self.which.matches(frame):
            return ""
        direction = frame.guest, frame.from_guest
        chance = self._chances.get(direction)
        if chance is None:
            chance = self._chances[direction] = Random(f"{self._seed} {direction}")
        if self.probability < 1 and chance.random() >= self.probability:
            return ""
        done = self._deed(passage, direction, chance)
        self.hits += bool(done)
        return done


class Faults:
    """The rules of one wire or of several."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.rules: list[Rule] = []
        """Those that are in force, in the order in which frames meet them."""
        self.guests: dict[str, None] = {}
        """Whose wires these are; a filter that names another guest is an error."""
        self._made = 0
        self._going: trio.Event | None = None
        """Set when the wires go on again; None while they do."""

    def __repr__(self) -> str:
        state = "paused, " if self.paused else ""
        return f"<Faults {state}seed {self.seed}, {self.rules}>"

    # -- rules

    def drop(self, which: Filter, probability: float = 1.0, count: int | None = None) -> Rule:
        """Such frames are lost: each with this probability, and no more than `count`."""

        def deed(passage: Passage, direction: Direction, chance: Random) -> str:
            passage.copies = 0
            return "dropped"

        return self._rule("drop({})", deed, which, probability, count)

    def delay(
        self,
        which: Filter,
        seconds: float,
        jitter: float = 0.0,
        probability: float = 1.0,
        count: int | None = None,
    ) -> Rule:
        """Such frames come later: by `seconds`, and by at most `jitter` more.

        They stay in order among themselves; others overtake them.
        """
        _check_time("seconds", seconds)
        _check_time("jitter", jitter)
        latest: dict[Direction, float] = {}

        def deed(passage: Passage, direction: Direction, chance: Random) -> str:
            due = passage.due + seconds + (jitter * chance.random() if jitter else 0.0)
            passage.due = latest[direction] = max(due, latest.get(direction, due))
            return "delayed"

        return self._rule(f"delay({{}}, seconds={seconds})", deed, which, probability, count)

    def repeat(self, which: Filter, probability: float = 1.0, count: int | None = None) -> Rule:
        """Such frames come twice."""

        def deed(passage: Passage, direction: Direction, chance: Random) -> str:
            passage.copies *= 2
            return "repeated"

        return self._rule("repeat({})", deed, which, probability, count)

    def reorder(
        self,
        which: Filter,
        seconds: float = REORDER_TIME,
        probability: float = 1.0,
        count: int | None = None,
    ) -> Rule:
        """Such frames are held back, each by up to `seconds`, while others overtake them."""
        _check_time("seconds", seconds)

        def deed(passage: Passage, direction: Direction, chance: Random) -> str:
            passage.due += seconds * (1 - chance.random())  # never by nothing
            return "reordered"

        return self._rule(f"reorder({{}}, seconds={seconds})", deed, which, probability, count)

    def corrupt(self, which: Filter, probability: float = 1.0, count: int | None = None) -> Rule:
        """One bit of such frames is turned, somewhere in their IPv4 packet.

        ARP and the Ethernet header are left alone: on a real wire a checksum guards them.
        """

        def deed(passage: Passage, direction: Direction, chance: Random) -> str:
            octets = passage.octets
            if octets[12:14] != ETHERTYPE_IPV4.to_bytes(2, "big") or len(octets) == ETHERNET_HEADER:
                return ""
            passage.octets = bent(octets, ETHERNET_HEADER, chance)
            return "corrupted"

        return self._rule("corrupt({})", deed, which, probability, count)

    def _rule(
        self, text: str, deed: Deed, which: Filter, probability: float, count: int | None
    ) -> Rule:
        require_filter(which, self.guests)
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is from 0 to 1, not {probability}")
        if count is not None and count < 1:
            raise ValueError(f"count is at least 1, or None for any number, not {count}")
        self._made += 1
        seed = f"{self.seed} {self._made}"
        rule = Rule(which, probability, count, text, deed, self, seed)
        self.rules.append(rule)
        return rule

    def judge(self, frame: Frame, now: float) -> Passage:
        """For the wires: what becomes of a frame; its `fate` says so."""
        passage = Passage(frame.octets, now)
        done = []
        for rule in tuple(self.rules):
            what = rule.befall(frame, passage)
            if what:
                done.append(what)
            if not passage.copies:
                break
        frame.fate = ", ".join(done)
        return passage

    # -- all or nothing

    @property
    def paused(self) -> bool:
        """Whether nothing passes."""
        return self._going is not None

    def pause(self) -> None:
        """Nothing passes, in either direction, and nothing is lost: both sides are held back."""
        if self._going is None:
            self._going = trio.Event()

    def resume(self) -> None:
        """Everything goes on."""
        if self._going is not None:
            self._going.set()
            self._going = None

    async def passing(self) -> None:
        """For the wires: until frames may pass."""
        while self._going is not None:
            await self._going.wait()


def _check_time(what: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{what} is a time of 0 seconds or more, not {seconds}")
