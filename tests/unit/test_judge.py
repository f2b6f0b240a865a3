"""The ACK judge: what is proof, what is not and why. Sequence numbers wrap in both directions of the example."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.judge import RECEIVE_WINDOW_LIMIT, Doubt, Expectation, Proof, judge
from dataplane.segment import ACK, FIN, PSH, RST, SYN, Segment
from dataplane.sequence import Seq
from tests.unit.builders import (
    ACKED,
    CLIENT6,
    END,
    ISS,
    MODULUS,
    RCV_NXT,
    SENT,
    TSVAL,
    VIP6,
    answer,
    expectation,
    four_tuple,
    header,
    stream_section,
    tcp_section,
    wire,
)

PROBE = MODULUS - 1
"""The probe's byte ends exactly at the wrap: [2**32 - 1, 0)."""


def verdict(segment: Segment, **expected: Any) -> Proof | Doubt:
    return judge(expectation(**expected), [PROBE], segment)


def proven(segment: Segment, **expected: Any) -> Proof:
    outcome = verdict(segment, **expected)
    assert isinstance(outcome, Proof), outcome
    return outcome


# --- believed ---
def test_an_answer_to_the_probe_says_where_the_client_stands() -> None:
    assert verdict(answer(PROBE, 1000)) == Proof(
        ack=Seq(wire(1000)),
        position=1000,
        seq=Seq(RCV_NXT),
        input_missing=0,
        window=502 << 7,
        tsval=777,
        tsecr=TSVAL,
        sacked=1000,
    )


@pytest.mark.parametrize("position", [ACKED, 298, 299, 300, SENT, SENT + 1, END])
def test_any_position_from_acknowledged_to_planned_is_believed(position: int) -> None:
    """298 to 300: the ACK crosses the wrap. Beyond SENT: the checkpoint is older than what was sent."""
    proof = proven(answer(PROBE, position))
    assert (proof.position, proof.ack) == (position, wire(position))


def test_a_closing_connection_may_have_its_fin_acknowledged() -> None:
    assert proven(answer(PROBE, END + 1), closing=True).position == END + 1
    assert verdict(answer(PROBE, END + 1), closing=False) is Doubt.ACK_TOO_NEW
    assert verdict(answer(PROBE, END + 2), closing=True) is Doubt.ACK_TOO_NEW


def test_data_and_push_do_not_spoil_a_proof() -> None:
    proof = proven(answer(PROBE, 1000, flags=ACK | PSH, payload=b"GET", payload_length=3))
    assert proof.input_missing == 0


@pytest.mark.parametrize("missing", [0, 1, 80, RECEIVE_WINDOW_LIMIT])
def test_input_that_the_dead_server_had_not_checkpointed_is_counted(missing: int) -> None:
    seq = Seq(RCV_NXT) + missing
    proof = proven(answer(PROBE, 1000, seq=seq))
    assert (proof.input_missing, proof.seq) == (missing, seq)


def test_the_window_is_scaled_and_may_be_closed() -> None:
    assert proven(answer(PROBE, 1000, window=65535)).window == 65535 << 7
    assert proven(answer(PROBE, 1000, window=0)).window == 0
    assert proven(answer(PROBE, 1000), snd_wscale=0).window == 502


def test_without_timestamps_none_are_asked_for() -> None:
    proof = proven(answer(PROBE, 1000, timestamps=None), timestamps=False)
    assert (proof.tsval, proof.tsecr) == (0, 0)


@pytest.mark.parametrize("ahead", [0, 10, -10, 2**30, -(2**30)])
def test_the_echo_may_be_days_from_the_checkpoints_clock(ahead: int) -> None:
    tsecr = (TSVAL + ahead) % MODULUS
    assert proven(answer(PROBE, 1000, timestamps=(0, tsecr))).tsecr == tsecr


def test_any_probe_that_was_sent_may_be_the_one_that_is_answered() -> None:
    probes = [5, PROBE, 2**31]
    for probe in probes:
        assert isinstance(judge(expectation(), probes, answer(probe, 1000)), Proof)


def test_ipv6_is_judged_alike() -> None:
    segment = answer(PROBE, 1000, source=CLIENT6, destination=VIP6)
    assert proven(segment, connection=four_tuple(source=VIP6, destination=CLIENT6)).position == 1000


# --- what the client may hold out of order ---
def blocks(*edges: tuple[int, int]) -> dict[str, Any]:
    """SACK blocks by positions, after the DSACK that answers the probe."""
    return {
        "sack": ((Seq(PROBE), Seq(PROBE + 1)), *((Seq(wire(left)), Seq(wire(right))) for left, right in edges)),
    }


def test_the_highest_edge_that_the_client_holds_is_reported() -> None:
    assert proven(answer(PROBE, 200, **blocks((250, 310), (900, 1000), (400, 500)))).sacked == 1000
    assert proven(answer(PROBE, 200, **blocks((250, 299)))).sacked == 299
    assert proven(answer(PROBE, 200, **blocks((END - 1, END)))).sacked == END


def test_blocks_below_the_ack_or_beyond_the_plan_are_not_held() -> None:
    assert proven(answer(PROBE, 1000, **blocks((100, 200)))).sacked == 1000
    assert proven(answer(PROBE, 1000, **blocks((500, 1000)))).sacked == 1000
    assert proven(answer(PROBE, 1000, **blocks((END, END + 1)))).sacked == 1000
    assert proven(answer(PROBE, 1000, **blocks((2000, 3000), (END, END + 1)))).sacked == 3000
    assert proven(answer(PROBE, END + 1, **blocks((2000, 3000))), closing=True).sacked == END + 1


def test_the_block_that_answers_the_probe_is_not_held() -> None:
    probe = wire(3000)
    outcome = judge(expectation(), [probe], answer(probe, 1000))
    assert isinstance(outcome, Proof)
    assert outcome.sacked == 1000


# --- doubted ---
@pytest.mark.parametrize(
    "changes",
    [
        {"source": bytes([10, 0, 0, 8])},
        {"source_port": 40002},
        {"destination": bytes([10, 0, 0, 101])},
        {"destination_port": 81},
        {"source": CLIENT6, "destination": VIP6},
    ],
    ids=str,
)
def test_another_connections_segment_is_not_judged(changes: dict[str, Any]) -> None:
    assert verdict(answer(PROBE, 1000, **changes)) is Doubt.OTHER_CONNECTION
    assert verdict(answer(PROBE, 1000, flags=RST, **changes)) is Doubt.OTHER_CONNECTION


@pytest.mark.parametrize("flags", [0, PSH, SYN, SYN | ACK, FIN, FIN | ACK])
def test_only_a_plain_acknowledgement_can_prove(flags: int) -> None:
    assert verdict(answer(PROBE, 1000, flags=flags)) is Doubt.NO_ACK


def test_a_client_that_answers_rst_is_gone() -> None:
    """RFC 9293, 3.10.7.1: its RST has the probe's ACK number as its sequence number."""
    for flags in (RST, RST | ACK):
        assert verdict(answer(PROBE, 1000, flags=flags, sack=(), timestamps=None)) is Doubt.GONE


@pytest.mark.parametrize("seq", [RCV_NXT - 1, RCV_NXT + 1, 0, MODULUS - 1])
def test_an_rst_with_another_number_is_not_the_clients(seq: int) -> None:
    assert verdict(answer(PROBE, 1000, flags=RST, seq=Seq(seq))) is Doubt.SEQ_UNKNOWN


@pytest.mark.parametrize(
    "sack",
    [
        (),
        ((PROBE - 1, PROBE),),
        ((PROBE, PROBE),),
        ((PROBE, 1),),
        ((PROBE, PROBE - 1),),
        ((0, 1),),
        ((wire(2000), wire(3000)), (PROBE, 0)),
    ],
    ids=["none", "another byte", "empty", "two bytes", "backwards", "after", "not first"],
)
def test_an_answer_that_does_not_name_exactly_the_probe_first_proves_nothing(sack: tuple[tuple[int, int], ...]) -> None:
    segment = answer(PROBE, 1000, sack=tuple((Seq(left), Seq(right)) for left, right in sack))
    assert verdict(segment) is Doubt.NO_PROOF


def test_before_any_probe_was_sent_nothing_proves() -> None:
    assert judge(expectation(), [], answer(PROBE, 1000)) is Doubt.NO_PROOF


@pytest.mark.parametrize("position", [ACKED - 1, 0, -1])
def test_an_ack_below_what_is_known_is_too_old(position: int) -> None:
    assert verdict(answer(PROBE, position)) is Doubt.ACK_TOO_OLD


@pytest.mark.parametrize("position", [END + 1, END + 2**30, ACKED + 2**31 - 1])
def test_an_ack_beyond_what_was_planned_is_too_new(position: int) -> None:
    assert verdict(answer(PROBE, position)) is Doubt.ACK_TOO_NEW


@pytest.mark.parametrize("ahead", [-1, -100, RECEIVE_WINDOW_LIMIT + 1, 2**31])
def test_a_sequence_number_that_cannot_be_the_clients_is_doubted(ahead: int) -> None:
    assert verdict(answer(PROBE, 1000, seq=Seq(RCV_NXT) + ahead)) is Doubt.SEQ_UNKNOWN


def test_a_missing_or_foreign_timestamp_is_doubted() -> None:
    assert verdict(answer(PROBE, 1000, timestamps=None)) is Doubt.TIMESTAMP
    for away in (2**30 + 1, -(2**30) - 1, 2**31):
        assert verdict(answer(PROBE, 1000, timestamps=(777, (TSVAL + away) % MODULUS))) is Doubt.TIMESTAMP


# --- in general ---
@given(st.integers(0, MODULUS - 1), st.integers(0, 2**40), st.integers(0, 2**30), st.integers(0, 2**30))
def test_the_position_is_exact_wherever_the_connection_stands(iss: int, acked: int, moved: int, rest: int) -> None:
    expected = expectation(acked=acked, acked_seq=Seq(iss + 1 + acked), end=acked + moved + rest)
    segment = answer(PROBE, 0, ack=Seq(iss + 1 + acked + moved))
    outcome = judge(expected, [PROBE], segment)
    assert isinstance(outcome, Proof)
    assert outcome.position == acked + moved
    assert outcome == judge(expected, [PROBE], segment)


near = st.integers(-3, 3)
"""How far a number lies from one that matters."""


@settings(max_examples=150)
@given(st.data())
def test_what_is_believed_is_exactly_what_keeps_every_rule(data: st.DataObject) -> None:
    """The rules, said once more in plain modular arithmetic, and segments whose numbers lie around their borders."""
    draw = data.draw
    iss, acked, end = draw(st.integers(0, MODULUS - 1)), draw(st.integers(0, 2**40)), 0
    end = acked + draw(st.integers(0, 2**30))
    closing, timestamps = draw(st.booleans()), draw(st.booleans())
    rcv_nxt, tsval = draw(st.integers(0, MODULUS - 1)), draw(st.integers(0, MODULUS - 1))
    probe, echo = draw(st.integers(0, MODULUS - 1)), draw(st.integers(0, MODULUS - 1))
    at = draw(st.sampled_from([acked, end, end + 1])) + draw(near)
    seq = rcv_nxt + draw(st.sampled_from([0, RECEIVE_WINDOW_LIMIT])) + draw(near)
    tsecr = draw(st.sampled_from([tsval, tsval + 2**30, tsval - 2**30, echo])) + draw(near)
    named = draw(st.sampled_from([(0, 1), (0, 1), (1, 1), (0, 2), None]))
    flags = draw(st.sampled_from([ACK, ACK, ACK | PSH, ACK | FIN, PSH]))
    stamped = draw(st.booleans())
    segment = answer(
        0,
        0,
        ack=Seq(iss + 1 + at),
        seq=Seq(seq),
        flags=flags,
        timestamps=(7, tsecr % MODULUS) if stamped else None,
        sack=((Seq(probe + named[0]), Seq(probe + named[0] + named[1])),) if named is not None else (),
    )
    expected = expectation(
        acked=acked,
        acked_seq=Seq(iss + 1 + acked),
        end=end,
        closing=closing,
        rcv_nxt=Seq(rcv_nxt),
        timestamps=timestamps,
        tsval=tsval,
    )
    rules = [
        flags & ACK and not flags & FIN,
        acked <= at <= end + closing,
        (seq - rcv_nxt) % MODULUS <= RECEIVE_WINDOW_LIMIT,
        not timestamps or (stamped and min((tsecr - tsval) % MODULUS, (tsval - tsecr) % MODULUS) <= 2**30),
        named == (0, 1) or (stamped and tsecr % MODULUS == echo),
    ]
    outcome = judge(expected, [probe], segment, [echo])
    assert isinstance(outcome, Proof) == all(rules), (outcome, rules)
    if isinstance(outcome, Proof):
        assert (outcome.position, outcome.input_missing) == (at, (seq - rcv_nxt) % MODULUS)


def test_an_echo_is_proof_without_any_block() -> None:
    segment = answer(PROBE, 1000, sack=(), timestamps=(777, (TSVAL + 12345) % MODULUS))
    assert judge(expectation(sack=False), [PROBE], segment) is Doubt.NO_PROOF
    outcome = judge(expectation(sack=False), [PROBE], segment, [(TSVAL + 12345) % MODULUS])
    assert isinstance(outcome, Proof)
    assert judge(expectation(sack=False), [PROBE], segment, [(TSVAL + 12346) % MODULUS]) is Doubt.NO_PROOF


def test_ten_thousand_blind_forgeries_are_not_believed() -> None:
    """The forger knows addresses, ports and the timestamp, guesses the rest, and aims where probes are likely."""
    source = random.Random(20260101)
    probes = [(wire(ACKED) - 2 - source.randrange(2**30)) % MODULUS for _ in range(32)]
    outcomes = []
    for _ in range(10_000):
        guess = (wire(ACKED) - 2 - source.randrange(2**30)) % MODULUS
        near = source.random() < 0.5
        ack = Seq(wire(source.randrange(ACKED, END)) if near else source.randrange(MODULUS))
        seq = Seq(RCV_NXT + source.randrange(1000) if near else source.randrange(MODULUS))
        flags = source.choice((ACK, ACK | PSH, RST))
        outcomes.append(judge(expectation(), probes, answer(guess, 0, ack=ack, seq=seq, flags=flags)))
    assert not [outcome for outcome in outcomes if isinstance(outcome, Proof)]
    assert {Doubt.NO_PROOF, Doubt.SEQ_UNKNOWN} <= set(outcomes)


# --- the expectation ---
def test_the_expectation_is_made_of_the_checkpoint() -> None:
    assert Expectation.of(header(), tcp_section(), stream_section()) == expectation()
    closing = Expectation.of(
        header(), tcp_section(window_scaling=False, timestamps=False), stream_section(closing=True)
    )
    assert closing == expectation(closing=True, snd_wscale=0, timestamps=False)


def test_the_acknowledged_number_of_a_long_stream_is_modulo_two_to_the_32() -> None:
    far = 3 * MODULUS + 299
    section = stream_section(acked=far, sent=far, extents=[], objects=[])
    expected = Expectation.of(header(), tcp_section(), section)
    assert (expected.acked, expected.acked_seq, expected.end) == (far, 0, far)
    assert (ISS + 1 + far) % MODULUS == 0
