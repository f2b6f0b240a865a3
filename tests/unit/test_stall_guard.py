"""What the stall guard decides about a recreated connection: leave it, look again, ask the client, make it anew."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dataplane.judge import Proof
from dataplane.stall_guard import FIRST_LOOK, FIRST_PURSUIT, LAST_LOOK, Step, Watch
from tests.unit.builders import proof

START, SENT = 1000, 50_000


def closed(position: int) -> Proof:
    """The client stands there and has no room."""
    return replace(proof(position), window=0)


def look(watch: Watch, acked: int, sent: int) -> Step:
    """With a flight under way that fills the client's window, if anything is left to be sent."""
    return watch.look(acked, max(watch.edge, min(acked + 14_480, sent)), sent)


# --- no hole ---
def test_a_connection_that_moves_on_is_left_alone() -> None:
    watch = Watch.after(proof(START))
    assert watch.interval == FIRST_LOOK
    assert look(watch, START + 1, SENT) is Step.LEAVE


def test_a_connection_with_nothing_outstanding_rests_until_something_is_sent() -> None:
    assert look(Watch.after(proof(START)), START, START) is Step.REST


def test_a_connection_that_stands_still_is_asked_and_made_anew() -> None:
    watch = Watch.after(proof(START))
    assert look(watch, START, SENT) is Step.PROVE
    assert watch.proven(proof(START), START, SENT) is Step.REBUILD
    watch.rebuilt(proof(START))
    assert look(watch, START + 1, SENT) is Step.LEAVE


def test_each_look_in_vain_comes_twice_as_late_up_to_a_limit() -> None:
    watch = Watch.after(proof(START))
    intervals = []
    while look(watch, START, SENT) is Step.PROVE:
        intervals.append(watch.interval)
        assert len(intervals) < 100
    assert intervals[:5] == pytest.approx([FIRST_LOOK * 2**n for n in range(1, 6)])
    assert intervals[5:] == [LAST_LOOK] * len(intervals[5:])
    assert len(intervals) >= 6, "it is not given up before the longest interval was tried"


def test_a_connection_that_moved_between_the_question_and_the_answer_is_not_made_anew() -> None:
    watch = Watch.after(proof(START))
    assert look(watch, START, SENT) is Step.PROVE
    assert watch.proven(proof(START + 500), START + 500, SENT) is Step.LOOK


def test_a_closed_window_is_not_mended() -> None:
    watch = Watch.after(proof(START))
    assert look(watch, START, SENT) is Step.PROVE
    assert watch.proven(closed(START), START, SENT) is Step.LOOK


def test_while_the_window_is_closed_nobody_asks_and_patience_does_not_end() -> None:
    """The kernel hears it open. Then the first flight leaves, and is watched like any first flight."""
    watch = Watch.after(proof(START))
    assert look(watch, START, SENT) is Step.PROVE
    assert watch.proven(closed(START), START, START) is Step.LOOK
    for _ in range(1000):
        assert watch.look(START, START, SENT) is Step.LOOK
        assert watch.interval == LAST_LOOK
    assert look(watch, START, SENT) is Step.PROVE
    assert watch.proven(proof(START), START, SENT) is Step.REBUILD


def test_an_idle_connections_first_flight_is_watched_when_it_leaves() -> None:
    watch = Watch.after(proof(START))
    assert watch.look(START, START, START) is Step.REST
    assert watch.interval == FIRST_LOOK
    assert watch.look(START, START + 500, START + 500) is Step.PROVE
    assert watch.proven(proof(START), START, START + 500) is Step.REBUILD


def test_a_lost_fin_is_a_flight_too() -> None:
    """Everything was acknowledged, and a FIN, which counts as one, is under way."""
    watch = Watch.after(proof(START))
    assert watch.look(START, START + 1, START + 1) is Step.PROVE
    assert watch.proven(proof(START), START, START + 1) is Step.REBUILD
    watch.rebuilt(proof(START))
    assert watch.look(START + 1, START + 1, START + 1) is Step.REST


@pytest.mark.parametrize("window_open", [True, False])
def test_an_ack_beyond_snd_nxt_always_makes_it_anew(window_open: bool) -> None:
    """RFC 9293, 3.10.7.4: the kernel ignores an ACK of something not yet sent, and so all that follow."""
    watch = Watch.after(proof(START))
    answer = proof(3001) if window_open else closed(3001)
    assert watch.proven(answer, START, 3000) is Step.REBUILD
    assert watch.proven(proof(3000), START + 1, 3000) is Step.LOOK


# --- a hole ---
def test_a_client_that_holds_bytes_beyond_a_hole_is_asked_every_millisecond() -> None:
    watch = Watch.after(proof(START, sacked=9000))
    for acked in (START, START, START + 1448):
        assert watch.interval == FIRST_PURSUIT
        assert look(watch, acked, SENT) is Step.PROVE
        assert watch.proven(proof(acked, sacked=9000), acked, 4000) is Step.LOOK


def test_it_is_left_alone_only_when_it_is_past_all_that_the_client_held() -> None:
    watch = Watch.after(proof(START, sacked=9000))
    assert look(watch, 9000, SENT) is not Step.LEAVE
    assert look(watch, 9001, SENT) is Step.LEAVE


def test_when_the_clients_ack_jumps_the_hole_the_connection_is_made_anew_there() -> None:
    watch = Watch.after(proof(START, sacked=9000))
    assert look(watch, START, SENT) is Step.PROVE
    jumped = proof(9000)
    assert watch.proven(jumped, START, 4000) is Step.REBUILD
    watch.rebuilt(jumped)
    assert look(watch, 9001, SENT) is Step.LEAVE


def test_a_later_answer_may_tell_of_bytes_further_on() -> None:
    """The SACK option has room for three blocks: the first answer need not name all."""
    watch = Watch.after(proof(START, sacked=9000))
    assert look(watch, START, SENT) is Step.PROVE
    assert watch.proven(proof(START, sacked=20_000), START, 4000) is Step.LOOK
    assert look(watch, 9001, SENT) is Step.PROVE
    assert look(watch, 20_001, SENT) is Step.LEAVE


def test_a_flight_that_is_lost_while_pursuing_is_sent_again() -> None:
    watch = Watch.after(proof(START, sacked=9000))
    askings = 0
    step = Step.LOOK
    while step is Step.LOOK:
        assert look(watch, START, SENT) is Step.PROVE
        step = watch.proven(proof(START, sacked=9000), START, 4000)
        askings += 1
        assert askings < 100
    assert step is Step.REBUILD
    assert askings == 8


def test_progress_while_pursuing_is_not_a_lost_flight() -> None:
    watch = Watch.after(proof(START, sacked=9000))
    for number in range(40):
        acked = START + number // 4
        assert look(watch, acked, SENT) is Step.PROVE
        assert watch.proven(proof(acked, sacked=9000), acked, 4000) is Step.LOOK


def test_pursuit_ends_and_patient_looking_follows() -> None:
    watch = Watch.after(proof(START, sacked=9000))
    acked, askings = START, 0
    while (step := look(watch, acked, SENT)) is Step.PROVE:
        acked, askings = acked + 1, askings + 1
        assert askings < 1000
    assert step is Step.LOOK
    assert watch.interval == FIRST_LOOK


# --- a client without SACK ---
def test_a_client_without_sack_may_hold_anything_in_its_window() -> None:
    """It is watched until it is past that, and made anew when its ACK jumps beyond what the kernel has sent."""
    watch = Watch.after(proof(START), sack=False)
    edge = START + proof(START).window
    assert look(watch, START, 10 * edge) is Step.PROVE
    assert watch.proven(proof(START), START, START + 14_480) is Step.LOOK
    assert look(watch, edge, 10 * edge) is not Step.LEAVE
    jumped = proof(edge)
    assert watch.proven(jumped, START, START + 14_480) is Step.REBUILD
    watch.rebuilt(jumped)
    assert look(watch, edge + proof(START).window + 1, 10 * edge) is Step.LEAVE


def test_what_a_client_without_sack_may_hold_does_not_grow_with_its_window() -> None:
    """What lies beyond was sent by this kernel, whose retransmission takes care of it."""
    watch = Watch.after(proof(START), sack=False)
    edge = START + proof(START).window
    acked = START
    while acked <= edge:
        assert look(watch, acked, 10 * edge) is Step.PROVE
        assert watch.proven(proof(acked), acked, acked + 14_480) is Step.LOOK
        acked += 14_480
    assert look(watch, acked, 10 * edge) is Step.LEAVE


def test_a_client_that_has_everything_holds_nothing() -> None:
    watch = Watch.after(proof(START), sack=False)
    assert watch.look(START, START, START) is Step.REST
    assert watch.look(START + 1, START + 500, START + 500) is Step.LEAVE


# --- what the client holds and did not name ---
def test_a_connection_is_watched_until_its_flight_fills_the_window_in_which_the_client_may_hold_more() -> None:
    """Of many islands the client named three; its ACK jumps over another one, beyond what this kernel has sent."""
    watch = Watch.after(proof(START, sacked=5000))
    edge = START + proof(START).window
    assert watch.look(6000, 20_000, SENT) is Step.LOOK, "all that was named is there"
    assert watch.look(6000, 20_000, SENT) is Step.PROVE, "its kernel hears nothing any more"
    jumped = proof(30_000)
    assert watch.proven(jumped, 6000, 20_000) is Step.REBUILD
    watch.rebuilt(jumped)
    assert watch.look(30_001, edge + 30_000, 10 * edge) is Step.LEAVE


def test_a_client_that_named_nothing_may_still_get_what_was_under_way() -> None:
    watch = Watch.after(proof(START))
    assert watch.look(START + 1, START + 14_480, SENT) is Step.LOOK
    assert watch.look(START + 1, START + 14_480, SENT) is Step.PROVE
    assert watch.proven(proof(START + 20_000), START + 1, START + 14_480) is Step.REBUILD
