"""Where to look: each numbered bug that others shipped, and each line of what TCP promises.

`TRAPS` lists bugs by number; a test whose name begins with such numbers is the conversation, so
that `pytest -k passt_07` runs all that there is about item 7, in whatever room it stands.
`PROMISES` gives for each thing that a careful reader of RFC 9293 and its neighbours looks for
the tests that show it.
"""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]

TRAPS = {
    "passt_01a": "the handshake's ACK leaves at once, also without data: 9178a9e",
    "passt_01b": "and before data: 2d7f734",
    "passt_02": "a SYN repeated while the host's connect is pending must not reset it: 722d347",
    "passt_03a": "RST, then SYN, of one four-tuple in one batch: f984003",
    "passt_03b": "the last ACK of a close, then SYN, of one four-tuple in one batch: 46f915d",
    "passt_04": "a segment of no flow is reset, with the right ACK flag: 672d786, db2c91a",
    "passt_05": "the guest's RST reaches the server as RST, not as FIN: cce94e9",
    "passt_06a": "a FIN beyond the accepted data is no FIN: b145441",
    "passt_06b": "data after the FIN is ignored: 8efa80b",
    "passt_07a": "the guest's FIN does not overtake data: 8d2f8c4",
    "passt_07b": "our FIN is retransmitted: 2e3d93b",
    "passt_07c": "the guest's window is followed after its FIN: 30f1e08",
    "passt_07d": "a failed shutdown() is looked at: 768baf4",
    "passt_08a": "the guest shrinks its window, and what it threw away comes again: e86d480",
    "passt_08b": "but not at once: 25f9354",
    "passt_09a": "a closed window is probed, not given up: 90f91fe",
    "passt_09b": "the guest's keepalives are answered: 238c69f",
    "passt_09c": "and the window that they carry counts: 472e2e9",
    "passt_10a": "less than an MSS is not advertised while something is queued: cf1925f",
    "passt_10b": "and when nothing is, an MSS is: b40f5cd",
    "passt_11": "a short write loses nothing, and we ask for the next: a947839, 831857e",
    "passt_12": "the host's socket is not watched while the guest's window is closed: a8f4fc4",
    "passt_13a": "a frame that was dropped is sent again: a469fc3",
    "passt_13b": "idle timers ring: e48ce41",
    "passt_14a": "PSH on the last segment of a batch: ec5c4d9",
    "passt_14b": "TCP_NODELAY on the host's sockets: 54bb972",
    "passt_15a": "datagrams of strangers to a new socket are not heard: 9725e79",
    "passt_15b": "a pending error of a socket does not spin the loop: 2fa91ee",
    "passt_15c": "the offender in an ICMP error is translated: 436afc3",
    "passt_16a": "DHCP option 255 has no length: 7d0c077",
    "passt_16b": "a long list of search domains has its bounds: 16553c8",
    "passt_16c": "a BOOTP client does no harm: 1f24d3e",
    "passt_16d": "the mask of every prefix length: 77a6d97",
    # IPv6 does not exist here yet; until it does these two hold because nothing is ever said in it.
    "passt_17a": "no router advertisement to a guest that is not there: bf94927",
    "passt_17b": "a probe for a duplicate address is not defended",
    "passt_18": "what was advertised is accepted, also when the server does not read",
    "capsa_01": "what a guest does not get is repeated",
    "capsa_02a": "the guest's duplicates are delivered once",
    "capsa_02b": "its sequence number, ACK and window are looked at",
    "capsa_03a": "a FIN loses no data, queued or attached",
    "capsa_03b": "half-close in both directions",
    "capsa_03c": "a failing server resets the guest",
    "capsa_04a": "a segment of no flow is reset",
    "capsa_04b": "a duplicate SYN is answered",
    "capsa_04c": "SYN,ACK is not overtaken by a server that speaks first",
    "capsa_04d": "SYN,ACK names our MSS",
    "capsa_05a": "a server that never answers delays nobody",
    "capsa_05b": "a guest that does not read stops nobody else",
}

PROMISES = {
    "checksums are computed, verified, and bad ones dropped": (
        "test_emit::test_impacket_reads_what_was_meant",
        "test_decoder::test_a_malformed_frame_is_refused_by_name",
        "test_headers::test_both_tiers_say_the_same_of_every_single_byte_mutation",
    ),
    "options of any length; unknown ones skipped, bad lengths refused (MUST-4 to 7, 68)": (
        "test_decoder::test_a_syn_and_its_options",
        "test_decoder::test_a_malformed_frame_is_refused_by_name",
    ),
    "the MSS stands in a SYN only, as MTU - 40; 536 without one; the smaller of the two": (
        "test_traps::test_capsa_04d_the_answer_names_our_mss_and_scales_only_if_asked",
        "test_protocol::test_only_a_syn_names_a_segment_size",
        "test_protocol::test_a_segment_size_without_sense",
        "test_flow_opening::test_segments_are_as_large_as_both_sides_allow",
    ),
    "windows are scaled only if both SYNs say so, by 14 at most, and never in a SYN": (
        "test_traps::test_capsa_04d_the_answer_names_our_mss_and_scales_only_if_asked",
        "test_protocol::test_a_shift_beyond_fourteen_is_fourteen",
        "test_receiver::test_the_syn_acks_window_is_not_scaled",
        "test_sender::test_a_syns_window_is_not_scaled_and_all_others_are",
    ),
    "the SYN is answered when the host's connect is done": (
        "test_flow_opening::test_the_syn_is_answered_when_the_server_is_there",
    ),
    "refused is RST,ACK; unreachable is ICMP 3/x; silence ends in bounded time": (
        "test_flow_opening::test_a_refusal_is_a_reset_that_the_guest_believes",
        "test_flow_opening::test_an_unreachable_server_is_said_by_icmp",
        "test_flow_opening::test_a_black_hole_is_given_up_in_bounded_time",
    ),
    "a SYN that is repeated meanwhile is absorbed": (
        "test_traps::test_passt_02_a_syn_repeated_while_we_dial_changes_nothing",
    ),
    "simultaneous open": (
        "test_flow_calling::test_two_calls_that_cross_are_one_connection",
        "test_protocol::test_each_state_answers_each_segment_at_once",
    ),
    "initial sequence numbers: a clock and a keyed hash": (
        "test_flow_opening::test_initial_sequence_numbers_grow_and_tell_nothing",
    ),
    "unknown flow: RST with SEQ = SEG.ACK, or ACK = SEG.SEQ + SEG.LEN; never to a RST": (
        "test_router_tcp::test_passt_04_capsa_04a_a_segment_of_no_flow_is_reset_with_the_numbers_"
        "it_expects",
        "test_router_tcp::test_a_reset_of_no_flow_meets_silence",
    ),
    "a SYN to or from broadcast, multicast or an invalid source is dropped": (
        "test_router_tcp::test_a_syn_to_many_or_from_nobody_is_dropped",
    ),
    "acceptability; an unacceptable segment that is no RST is answered by an ACK": (
        "test_protocol::test_each_state_answers_each_segment_at_once",
        "test_protocol::test_the_borders_of_the_window",
        "test_protocol::test_a_closed_window_admits_nothing_and_hears_everything",
    ),
    "early octets are kept, duplicates and overlaps trimmed, all is delivered once, in order": (
        "test_receiver::test_any_cutting_gives_the_stream_once_and_in_order",
        "test_traps::test_capsa_02a_what_overlaps_is_delivered_once",
    ),
    "one ACK a turn, at least for every second full segment, and within half a second": (
        "test_flow_data::test_a_turn_of_segments_gets_one_acknowledgment",
        "test_flow_data::test_a_second_small_segment_is_not_delayed",
        "test_flow_data::test_a_small_segment_without_answer_is_acknowledged_soon",
    ),
    "windows are unsigned and never shrunk by us; a guest that shrinks its own is survived": (
        "test_protocol::test_windows_are_unsigned",
        "test_receiver::test_the_window_never_moves_back_and_is_always_kept",
        "test_traps::test_passt_08a_a_shrunk_window_is_survived",
        "test_protocol::test_a_window_that_closes_over_what_is_in_flight_and_opens_again",
    ),
    "a zero window is probed, first after an RTO, for as long as ACKs come": (
        "test_flow_windows::test_a_window_closed_from_the_start",
        "test_traps::test_passt_09a_a_closed_window_is_probed_until_it_opens",
        "test_protocol::test_the_hours_of_a_probe_that_nobody_answers",
        "test_protocol::test_the_hours_of_a_window_that_stays_closed",
        "test_protocol::test_the_octet_of_a_probe_is_taken_where_there_is_room_again",
    ),
    "no silly windows on either side": (
        "test_receiver::test_a_window_moves_by_a_segment_or_not_at_all",
        "test_traps::test_passt_10a_half_a_segment_is_not_offered",
        "test_sender::test_a_silly_window_is_not_used_while_more_is_coming",
    ),
    "a RST counts at the exact number, else a challenge, and those have a limit": (
        "test_traps::test_passt_05_a_reset_at_the_exact_number_ends_it",
        "test_protocol::test_each_state_answers_each_segment_at_once",
        "test_protocol::test_challenges_have_a_limit",
        "test_protocol::test_a_reset_may_carry_octets",
    ),
    "a SYN in a synchronised state is challenged; an ACK of what was never sent is answered": (
        "test_protocol::test_each_state_answers_each_segment_at_once",
        "test_flow_opening::test_an_open_connection_does_not_yield_but_asks",
        "test_traps::test_capsa_02b_an_ack_of_what_was_never_sent_is_answered_and_dropped",
    ),
    "retransmission by RFC 6298 with Karn; a fast one after three duplicate ACKs": (
        "test_protocol::test_the_hours_of_an_octet_that_nobody_acknowledges",
        "test_protocol::test_the_hours_of_an_answer_that_nobody_acknowledges",
        "test_sender::test_what_was_sent_twice_is_not_measured",
        "test_flow_time::test_a_lost_segment_in_a_stream_is_repeated_at_once",
    ),
    "after R2 it is given up, and both sides are told": (
        "test_flow_time::test_a_dead_guest_is_given_up_and_both_sides_are_told",
    ),
    "loss, reordering and duplication of frames cost time, and no octet": (
        "test_harmed_wire::test_octets_arrive_over_a_harmful_wire",
    ),
    "half-close in both directions for any length of time; FIN is retransmitted": (
        "test_traps::test_capsa_03b_the_server_goes_on_after_the_guests_fin",
        "test_traps::test_capsa_03b_the_guest_goes_on_after_the_servers_fin",
        "test_traps::test_passt_07b_our_fin_is_repeated_until_it_is_acknowledged",
    ),
    "FIN and data in one segment": (
        "test_traps::test_capsa_03a_octets_that_a_fin_carries_count",
        "test_protocol::test_each_state_answers_each_segment_at_once",
    ),
    "TIME-WAIT answers a FIN that comes again, and yields to a SYN of higher sequence": (
        "test_flow_closing::test_time_wait_answers_the_fin_that_comes_again_and_starts_anew",
        "test_flow_closing::test_time_wait_yields_to_a_later_syn_only",
        "test_router_tcp::test_a_new_syn_may_follow_a_connection_that_has_ended",
        "test_router_tcp::test_a_connection_after_time_wait_begins_beyond_the_old_one",
    ),
    "the guest's keepalives are answered": (
        "test_traps::test_passt_09b_a_keepalive_of_the_guest_is_answered",
        "test_traps::test_passt_09c_the_window_of_a_keepalive_counts",
    ),
    "a guest that is gone is found by our probes; an idle one lives 2 h 4 min at least": (
        "test_protocol::test_the_hours_of_a_guest_that_was_switched_off",
        "test_traps::test_passt_13b_a_guest_that_is_gone_is_found",
        "test_flow_time::test_an_idle_connection_lives",
    ),
    "urgent data is data": (
        "test_protocol::test_each_state_answers_each_segment_at_once",
        "test_router_tcp::test_urgent_octets_pass_whatever_their_pointer_says",
        "test_tcp::test_urgent_octets_are_octets_of_the_stream",
    ),
    "a guest's RST reaches the server as RST, a server's the guest": (
        "test_tcp::test_the_guest_s_reset_reaches_the_server_as_one",
        "test_tcp::test_the_server_s_reset_reaches_the_guest_as_one",
        "test_traps::test_capsa_03c_a_failing_server_resets_the_guest",
    ),
    "ICMP errors of the host's connection reach the guest": (
        "test_router_tcp::test_an_unreachable_server_is_told_as_icmp",
        "test_refusals::test_each_failure_is_said_in_icmp_s_words",
    ),
    "nothing that was acknowledged is ever lost, in either direction": (
        "test_flow_closing::test_what_was_acknowledged_is_delivered_after_the_guest_has_gone",
        "test_flow_closing::test_a_reset_after_the_guests_fin_takes_nothing_back",
        "test_traps::test_passt_11_a_short_write_loses_nothing",
        "test_traps::test_passt_18_a_server_that_does_not_read_closes_the_guests_window",
    ),
}


def test_every_trap_has_its_conversation() -> None:
    """Whoever asks for number n finds it, in the list and in a test's name."""
    found: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for name in re.findall(r"^def test_((?:passt|capsa)_\w+)", path.read_text(), re.MULTILINE):
            found |= set(re.findall(r"(?:passt|capsa)_\d\d[a-z]?(?=_)", name))
    assert found == set(TRAPS)
    numbers = {number[: len("passt_00")] for number in TRAPS}
    assert numbers >= {f"passt_{n:02}" for n in range(1, 19)}
    assert numbers >= {f"capsa_{n:02}" for n in range(1, 6)}


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_has_its_conversations(promise: str) -> None:
    """Whoever looks for a line of the protocol finds the tests that hold it."""
    for place in PROMISES[promise]:
        module, name = place.split("::")
        texts = [path.read_text() for path in TESTS.rglob(f"{module}.py")]
        assert any(f"\ndef {name}(" in text for text in texts), place
