"""What the machines have found, as the shortest conversation that shows it.

A machine draws another story each time; a failure that it found once is looked for every time.
"""

from qemu_usernat.nat.tcp.states import GuestState
from qemu_usernat.wire.packets import ACK, FIN
from tests.nat.tcp.conversation import MSS, Conversation
from tests.nat.tcp.machinery import check_memory


def test_octets_that_come_twice_after_the_fin_are_told_of_where_they_stand() -> None:
    """The FIN has a number, but no octet: the block was one too low (RFC 2883, 4)."""
    talk = Conversation.open(selective=True)
    talk.guest.sends(ACK, b"once and again")
    talk.guest.sends(FIN | ACK)
    talk.guest.loses_everything()
    talk.guest.sends(ACK, b"once and again", at=0)
    assert talk.flow.guest_state is GuestState.CLOSE_WAIT
    assert talk.guest.gets(ACK, ack=15).selective == ((0, 14),)


def test_what_may_be_lost_is_not_looked_for_when_it_has_arrived() -> None:
    """The alarm of RACK's reordering timer rang for ever, once all was acknowledged."""
    talk = Conversation.open(selective=True)
    talk.host.says(bytes(2 * MSS))
    talk.advance(0.005)
    talk.guest.sends(ACK, ack=0, selective=[(MSS, 2 * MSS)])
    assert talk.flow.deadline() < talk.now + 0.002, "the first segment may be overtaken, or lost"
    talk.guest.sends(ACK, ack=2 * MSS)
    assert talk.flow.deadline() > talk.now + 1


def test_a_guest_without_selective_acknowledgments_costs_no_memory() -> None:
    """Each transmission was kept until a timeout, for a judge who is never asked."""
    talk = Conversation.open(window=1000, scale=0)
    for _ in range(100):
        talk.host.says(bytes(1000))
        talk.guest.gets_stream()
        talk.guest.sends(ACK)
        check_memory(talk.flow)
