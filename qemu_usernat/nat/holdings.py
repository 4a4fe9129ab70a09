"""What the connections of one guest hold of ours, together, and where that ends.

It owns the sums and the bounds, for one guest and for all of a network; what a flow holds it is
told. Nobody normal meets a bound. Who does is refused what it asks for anew: a connection, a larger
window, more octets of a server. What was promised is kept: what was advertised is accepted, and
each connection goes on, if more slowly.
"""

from attrs import define

MIB = 1 << 20

FLOWS_PER_GUEST = 16_384
"""Connections in the table or still ending; an idle one costs some 10 KiB, and a descriptor."""

FLOWS_MAXIMUM = 65_536
"""Those of all guests."""

HALF_OPEN_PER_GUEST = 4_096
"""Connections that a guest has asked for, and that are not made: whose server has not answered, or
who has not answered itself, nor answered a client's call. Each lives for a minute or more, so a
scan has many; it waits for no other, but a flood ends here."""

HALF_OPEN_MAXIMUM = 16_384
"""Those of all guests."""

OCTETS_PER_GUEST = 256 * MIB
"""What we may have to keep for a guest: the windows that it may fill, and what it has not yet
acknowledged. Thirty connections with the largest windows both ways do not reach it, or a thousand
as they begin."""

OCTETS_MAXIMUM = 1024 * MIB
"""The same, for all guests."""

OCTETS_AT_LEAST = 64 * 1024
"""What each connection may take, whatever the others hold: the window of a SYN, and from the
server, when nothing else is on its way."""

OCTETS_ALWAYS = 16 * MIB
"""What a guest may hold whatever all others do."""


@define(eq=False)
class Holdings:
    """Of one guest, or of its clients from outside, who are counted apart; `everybody` is the sum
    over all guests of a network."""

    everybody: "Holdings | None" = None
    flows: int = 0
    half_open: int = 0
    octets: int = 0

    def add(self, flows: int, half_open: int, octets: int) -> None:
        """So much more, or less, than before."""
        self.flows += flows
        self.half_open += half_open
        self.octets += octets
        everybody = self.everybody
        if everybody is not None:
            everybody.flows += flows
            everybody.half_open += half_open
            everybody.octets += octets

    def refuses_flow(self) -> str | None:
        """Why there may be no connection more, as a counter's name; None if there may."""
        everybody = self.everybody or self
        if self.flows >= FLOWS_PER_GUEST or everybody.flows >= FLOWS_MAXIMUM:
            return "tcp.flows_full"
        if self.half_open >= HALF_OPEN_PER_GUEST or everybody.half_open >= HALF_OPEN_MAXIMUM:
            return "tcp.half_open_full"
        return None

    def is_full(self) -> bool:
        """Whether no more is to be promised, or taken of a server, than has to be."""
        everybody = self.everybody  # looked at several times a turn: no further calls
        return self.octets >= OCTETS_PER_GUEST or (
            self.octets >= OCTETS_ALWAYS
            and everybody is not None
            and everybody.octets >= OCTETS_MAXIMUM
        )


class _NobodysHoldings(Holdings):
    """Of a flow that no guest has begun yet, or whose guest is not charged for it any more."""

    def add(self, flows: int, half_open: int, octets: int) -> None:
        """Nobody is to be bounded."""


NOBODYS = _NobodysHoldings()
