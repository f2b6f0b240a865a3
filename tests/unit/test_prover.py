"""The prover in dialogue with a client: what is sent when, and which answer ends the wait. Time is an argument."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from msgspec.structs import replace

from dataplane.judge import Doubt, Expectation, Proof
from dataplane.prover import (
    FIRST_RETRY,
    LAST_RETRY,
    Patience,
    Prover,
    key_of,
    nudge_segment,
    reset_segment,
)
from dataplane.segment import ACK, RST, Segment, build, parse
from dataplane.sequence import Seq
from state.messages import CLOSE_MARK
from tests.unit.builders import (
    CLIENT,
    MODULUS,
    RCV_NXT,
    SENT,
    TSVAL,
    VIP,
    answer,
    expectation,
    four_tuple,
    proof,
    wire,
)

MARK = 43
PATIENCE = Patience(speaking=1000.0, silent=2000.0)
"""Long enough for every dialogue that is not about it."""


class Client:
    """A client that has everything below `position`, and answers as RFC 9293 and RFC 2883 ask it to."""

    def __init__(self, position: int, port: int = 40001) -> None:
        self.position = position
        self.port = port

    def hears(self, packet: bytes) -> bytes:
        probe = parse(packet)
        assert (probe.source, probe.source_port) == (VIP, 80)
        assert (probe.destination, probe.destination_port) == (CLIENT, self.port)
        assert probe.seq + probe.payload_length < Seq(wire(self.position)), "the byte would be acceptable"
        return self.says(int(probe.seq))

    def says(self, probe: int) -> bytes:
        return build(answer(probe, self.position, source_port=self.port))

    def speaks(self) -> bytes:
        """An ACK of its own accord: no DSACK."""
        return build(answer(0, self.position, source_port=self.port, sack=()))


def prover(seed: int = 1) -> Prover:
    return Prover(random.Random(seed))


def waiting(now: float = 0.0, expected: Expectation | None = None) -> Prover:
    made = prover()
    made.add(expected or expectation(), now, PATIENCE)
    return made


def schedule(made: Prover, until: float) -> list[float]:
    """The times at which probes go out, as a caller that follows `deadline` would send them."""
    times = []
    while (due := made.deadline()) is not None and due <= until:
        times += [due] * len(made.probes(due))
    return times


def first_retry(made: Prover, port: int, now: float) -> float:
    """How long a client that is asked now is waited for."""
    made.add(expectation(connection=four_tuple(destination_port=port)), now, PATIENCE)
    made.probes(now)
    due = made.deadline()
    assert due is not None
    return due - now


# --- dialogues ---
def test_probe_answer_proof() -> None:
    made = waiting(now=100.0)
    assert made.deadline() == 100.0
    (packet,) = made.probes(100.0)
    verdict = made.receive(Client(SENT).hears(packet), 100.0003)
    assert verdict is not None
    assert verdict.key == (CLIENT, 40001, VIP, 80)
    assert isinstance(verdict.outcome, Proof)
    assert (verdict.outcome.position, verdict.outcome.ack) == (SENT, wire(SENT))
    assert len(made) == 0
    assert made.deadline() is None
    assert made.probes(200.0) == []


def test_the_probe_is_one_old_byte_that_the_client_will_answer() -> None:
    (packet,) = waiting().probes(0.0)
    probe = parse(packet)
    assert (probe.flags, probe.payload_length, probe.ack, probe.timestamps) == (ACK, 1, RCV_NXT - 1, (TSVAL, 0))
    assert probe.dscp == 0
    (plain,) = waiting(expected=expectation(timestamps=False)).probes(0.0)
    assert parse(plain).timestamps is None


def test_a_lost_probe_is_followed_by_another() -> None:
    made = waiting()
    assert len(made.probes(0.0)) == 1
    assert made.probes(FIRST_RETRY * 0.99) == []
    (second,) = made.probes(FIRST_RETRY)
    verdict = made.receive(Client(SENT).hears(second), 0.002)
    assert verdict is not None
    assert isinstance(verdict.outcome, Proof)


def test_when_answers_are_lost_a_late_one_to_any_probe_still_counts() -> None:
    made, client = waiting(), Client(SENT)
    answers = [client.hears(packet) for now in (0.0, 0.001, 0.003, 0.007) for packet in made.probes(now)]
    assert len(set(answers)) == 4, "each probe has a byte of its own"
    verdict = made.receive(answers[0], 9.0)
    assert verdict is not None
    assert isinstance(verdict.outcome, Proof)
    assert all(made.receive(late, 9.1) is None for late in answers[1:])


def test_a_stale_ack_comes_first_and_is_not_believed() -> None:
    """It was in flight when the server died; the client has received more since."""
    made, client = waiting(), Client(300)
    (packet,) = made.probes(0.0)
    assert made.receive(client.speaks(), 0.0001) is None
    assert made.doubts == {Doubt.NO_PROOF: 1}
    client.position = SENT
    verdict = made.receive(client.hears(packet), 0.0002)
    assert verdict is not None
    assert isinstance(verdict.outcome, Proof)
    assert verdict.outcome.position == SENT


def test_an_answer_before_the_probe_was_sent_proves_nothing() -> None:
    foreseen = parse(waiting().probes(0.0)[0]).seq
    made = waiting()
    assert made.receive(Client(SENT).says(int(foreseen)), 0.0) is None
    assert parse(made.probes(0.0)[0]).seq == foreseen
    assert made.receive(Client(SENT).says(int(foreseen)), 0.0) is not None


def rst_for(packet: bytes) -> bytes:
    """What a host answers that knows nothing of the connection."""
    return build(Segment(CLIENT, 40001, VIP, 80, parse(packet).ack, Seq(0), RST, 0))


def test_a_client_that_is_gone_says_so() -> None:
    """The first probe is far from what is acknowledged: a router on the way may take it for no part of the connection,
    and answer it in its client's place."""
    made = waiting()
    (far,), (near,) = made.probes(0.0), made.probes(1.0)
    assert made.receive(rst_for(far), 1.001) is None
    verdict = made.receive(rst_for(near), 1.002)
    assert verdict is not None
    assert verdict.outcome is Doubt.GONE
    assert len(made) == 0


def test_a_router_that_resets_far_probes_does_not_end_its_clients_connection() -> None:
    made = waiting()
    (far,), (near,) = made.probes(0.0), made.probes(1.0)
    assert made.receive(rst_for(far), 1.001) is None
    verdict = made.receive(Client(SENT).says(int(parse(near).seq)), 1.002)
    assert verdict is not None
    assert isinstance(verdict.outcome, Proof)


def test_an_rst_before_any_probe_or_with_a_guessed_number_is_not_heard() -> None:
    rst = Segment(CLIENT, 40001, VIP, 80, Seq(RCV_NXT), Seq(0), RST, 0)
    made = waiting()
    assert made.receive(build(rst), 0.0) is None
    made.probes(0.0)
    assert made.receive(build(replace(rst, seq=Seq(RCV_NXT + 1))), 0.0) is None
    assert len(made) == 1
    assert made.doubts == {Doubt.GONE: 1, Doubt.SEQ_UNKNOWN: 1}


def test_bytes_that_are_no_segment_and_other_connections_are_nobodys() -> None:
    made = waiting()
    (packet,) = made.probes(0.0)
    assert made.receive(b"\x45garbage", 0.0) is None
    assert made.receive(b"", 0.0) is None
    assert made.receive(Client(SENT, port=40002).says(int(parse(packet).seq)), 0.0) is None
    assert (len(made), made.doubts) == (1, {})


# --- the schedule ---
def test_probing_backs_off_by_doubling_and_never_stops() -> None:
    times = schedule(waiting(now=50.0), until=51.5)
    gaps = [round(later - earlier, 9) for earlier, later in pairwise(times)]
    doubling = [FIRST_RETRY * 2**n for n in range(8)]
    assert times[0] == 50.0
    assert gaps[:8] == pytest.approx(doubling)
    assert gaps[8:] == [LAST_RETRY] * len(gaps[8:])
    assert len(gaps) >= 11


def test_among_many_nobody_is_asked_twice_before_all_could_answer() -> None:
    made = prover()
    for port in range(1, 1001):
        made.add(expectation(connection=four_tuple(destination_port=port)), 0.0, PATIENCE)
    first = made.probes(0.0)
    assert {parse(packet).destination_port for packet in first} == set(range(1, 1001))
    due = made.deadline()
    assert due is not None
    assert due >= 1000 * 0.0001
    assert made.probes(0.0999) == []


def test_each_of_many_gets_its_own_verdict() -> None:
    made = prover()
    for port in range(1, 101):
        made.add(expectation(connection=four_tuple(destination_port=port)), 0.0, PATIENCE)
    clients = {port: Client(SENT + port, port) for port in range(1, 101)}
    answers = [clients[parse(packet).destination_port].hears(packet) for packet in made.probes(0.0)]
    random.Random(3).shuffle(answers)
    verdicts = [made.receive(packet, 0.001) for packet in answers]
    assert len(made) == 0
    positions = {}
    for verdict in verdicts:
        assert verdict is not None
        assert isinstance(verdict.outcome, Proof)
        positions[verdict.key[1]] = verdict.outcome.position
    assert positions == {port: SENT + port for port in range(1, 101)}


def test_one_clients_answer_does_not_prove_another_connection() -> None:
    made = prover()
    made.add(expectation(), 0.0, PATIENCE)
    made.add(expectation(connection=four_tuple(destination_port=40002)), 0.0, PATIENCE)
    probes = {parse(packet).destination_port: parse(packet) for packet in made.probes(0.0)}
    assert made.receive(Client(SENT, 40002).says(int(probes[40001].seq)), 0.0) is None
    assert len(made) == 2


# --- giving up ---
def test_what_was_given_up_is_probed_no_more_and_its_answers_are_nobodys() -> None:
    made = waiting()
    (packet,) = made.probes(0.0)
    made.give_up(key_of(expectation()))
    assert made.deadline() is None
    assert made.probes(1.0) == []
    assert made.receive(Client(SENT).hears(packet), 1.0) is None
    made.give_up(key_of(expectation()))
    assert len(made) == 0


def test_giving_one_up_leaves_the_others() -> None:
    made = waiting()
    other = made.add(expectation(connection=four_tuple(destination_port=40002)), 0.5, PATIENCE)
    made.give_up(key_of(expectation()))
    assert made.deadline() == 0.5
    (packet,) = made.probes(0.5)
    assert parse(packet).destination_port == other[1]


def test_a_connection_that_is_asked_again_is_probed_at_its_own_pace() -> None:
    """The stall guard asks again within milliseconds; what was still due of the first time is not due any more."""
    made = waiting()
    made.add(expectation(connection=four_tuple(destination_port=40002)), 0.0, PATIENCE)
    made.probes(0.0)
    made.give_up(key_of(expectation()))
    made.add(expectation(), 0.0, PATIENCE)
    times = [0.0 for packet in made.probes(0.0) if parse(packet).destination_port == 40001]
    while (due := made.deadline()) is not None and due <= 0.1:
        times += [due for packet in made.probes(due) if parse(packet).destination_port == 40001]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == pytest.approx([FIRST_RETRY * 2**n for n in range(len(gaps))])


# --- challenges ---
def challenges(count: int, expected: Expectation) -> list[int]:
    """How far below what is acknowledged each probe lies."""
    made = waiting(expected=expected)
    found = []
    for number in range(count):
        (packet,) = made.probes(number * 1.0)
        found.append(parse(packet).seq.distance(expected.acked_seq))
    return found


@pytest.mark.parametrize("acked_seq", [0, 1, 2, MODULUS - 1, wire(150)])
def test_every_probe_is_old_and_one_of_three_is_near(acked_seq: int) -> None:
    distances = challenges(300, expectation(acked_seq=Seq(acked_seq)))
    assert all(2 <= distance < 2 + 2**30 for distance in distances)
    assert all(distance < 2 + 2**12 for distance in distances[1::3])
    assert len(set(distances)) > 250
    assert max(distances) > 2**29


def test_even_the_nearest_probe_ends_before_the_last_byte_that_the_client_acknowledged() -> None:
    """A byte that ends exactly at RCV.NXT would be acceptable, and move the client's timestamp."""

    class Lowest:
        def randrange(self, stop: int, /) -> int:
            assert stop > 0
            return 0

    made = Prover(Lowest())
    made.add(expectation(acked_seq=Seq(1)), 0.0, PATIENCE)
    (packet,) = made.probes(0.0)
    assert parse(packet).seq + 1 == 0


def test_only_the_latest_probes_are_remembered() -> None:
    made, client = waiting(), Client(SENT)
    answers = [client.hears(made.probes(float(number))[0]) for number in range(33)]
    assert made.receive(answers[0], 40.0) is None
    assert made.receive(answers[1], 40.0) is not None


def test_the_default_randomness_cannot_be_foretold() -> None:
    seen = set()
    for _ in range(4):
        made = Prover()
        made.add(expectation(), 0.0, PATIENCE)
        seen.add(parse(made.probes(0.0)[0]).seq)
    assert len(seen) == 4


# --- the last word ---
def test_a_reset_stands_exactly_where_the_client_accepts_it() -> None:
    """RFC 5961: only an RST at RCV.NXT resets at once. It carries the close mark, or the switch keeps it."""
    rst = parse(reset_segment(expectation(), proof(SENT), MARK))
    assert (rst.seq, rst.ack, rst.flags, rst.dscp) == (wire(SENT), RCV_NXT, RST | ACK, MARK)
    assert (rst.source, rst.source_port, rst.destination, rst.destination_port) == (VIP, 80, CLIENT, 40001)
    assert rst.payload_length == 0


def test_without_proof_a_reset_stands_at_what_is_known_to_be_acknowledged() -> None:
    rst = parse(reset_segment(expectation(), None, MARK))
    assert (rst.seq, rst.ack, rst.flags, rst.dscp) == (wire(150), RCV_NXT, RST | ACK, MARK)


def test_while_answers_take_long_none_counts_as_lost_too_soon() -> None:
    made = prover()
    assert first_retry(made, 1, 0.0) == pytest.approx(FIRST_RETRY)
    made.add(expectation(connection=four_tuple(destination_port=2)), 10.0, PATIENCE)
    packets = {parse(packet).destination_port: packet for packet in made.probes(10.0)}
    assert made.receive(Client(SENT, 2).hears(packets[2]), 10.02) is not None
    made.give_up((CLIENT, 1, VIP, 80))
    assert first_retry(made, 3, 11.0) == pytest.approx(FIRST_RETRY), "nobody waited meanwhile"


def test_the_slowest_of_many_answers_sets_the_pace_until_all_are_through() -> None:
    made = prover()
    for port in (1, 2, 3):
        made.add(expectation(connection=four_tuple(destination_port=port)), 0.0, PATIENCE)
    packets = {parse(packet).destination_port: packet for packet in made.probes(0.0)}
    assert made.receive(Client(SENT, 1).hears(packets[1]), 0.02) is not None
    assert first_retry(made, 4, 0.02) == pytest.approx(0.08), "and not in 1 ms"
    assert made.receive(Client(SENT, 2).hears(packets[2]), 0.021) is not None
    assert first_retry(made, 5, 0.021) > 0.07, "a quick one between slow ones does not make them lost"


def test_a_late_answer_to_one_of_several_probes_tells_nothing_of_delay() -> None:
    made = prover()
    for port in (1, 2):
        made.add(expectation(connection=four_tuple(destination_port=port)), 0.0, PATIENCE)
    first = {parse(packet).destination_port: packet for packet in made.probes(0.0)}
    made.probes(0.01)
    assert made.receive(Client(SENT, 1).hears(first[1]), 0.2) is not None
    assert first_retry(made, 3, 0.2) == pytest.approx(FIRST_RETRY)


def test_what_is_due_goes_out_in_portions() -> None:
    made = prover()
    for port in range(1, 101):
        made.add(expectation(connection=four_tuple(destination_port=port)), 0.0, PATIENCE)
    asked = []
    while (due := made.deadline()) is not None and due <= 0.0:
        packets = made.probes(0.0, 32)
        assert len(packets) <= 32
        asked += [parse(packet).destination_port for packet in packets]
    assert sorted(asked) == list(range(1, 101))
    late = PATIENCE.silent + 1
    gone = []
    while verdicts := made.given_up(late, 32):
        assert len(verdicts) <= 32
        gone += [verdict.key[1] for verdict in verdicts]
    assert sorted(gone) == list(range(1, 101))


def test_a_client_that_stands_elsewhere_is_reset_exactly_where_it_is() -> None:
    """It ignores the first RST, a guess, and answers the nudge."""
    made, client = prover(), Client(SENT)
    guess = parse(made.dismiss(expectation(), None, 0.0))
    assert guess.seq == wire(150)
    assert made.receive(client.hears(nudge_segment(expectation())), 0.3) is None
    (rst,) = [parse(packet) for packet in made.replies]
    assert (rst.seq, rst.flags, rst.dscp) == (wire(SENT), RST | ACK, CLOSE_MARK)
    made.replies.clear()
    made.receive(client.speaks(), 60.0)
    assert made.replies == [], "long after it may be another connection of another server"


def test_a_client_that_begins_anew_from_the_same_port_is_not_reset() -> None:
    made = prover()
    made.dismiss(expectation(), None, 0.0)
    made.readmit(expectation().connection)
    made.receive(Client(SENT).speaks(), 0.1)
    assert made.replies == []


def test_dismissals_are_forgotten_when_their_time_is_over() -> None:
    """Also of a connection that was dismissed twice, and however many there are."""
    made = prover()
    for port in range(1, 1000):
        made.dismiss(expectation(connection=four_tuple(destination_port=port)), None, 0.0)
    made.dismiss(expectation(connection=four_tuple(destination_port=7)), None, 2.0)
    made.dismiss(expectation(connection=four_tuple(destination_port=2000)), None, 3.5)
    assert [key[1] for key in made._dismissed] == [7, 2000]
    made.dismiss(expectation(connection=four_tuple(destination_port=2001)), None, 5.5)
    assert [key[1] for key in made._dismissed] == [2000, 2001]
    assert len(made._dismissals) == 2


def test_an_rst_is_not_answered() -> None:
    made = prover()
    made.dismiss(expectation(), None, 0.0)
    made.receive(build(replace(answer(0, SENT), flags=RST | ACK)), 0.1)
    assert made.replies == []
