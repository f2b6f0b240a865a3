"""Dialogues between the prover and clients of every kind, over a network that loses packets, with strangers talking in.

What must hold always: a proof says where the client stands, whoever speaks; and every connection gets a verdict.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.judge import Doubt, Proof
from dataplane.prover import AGREE_AFTER, PLAIN_AFTER, Patience, Prover, Verdict, key_of
from dataplane.segment import ACK, PSH, Segment, build, parse
from dataplane.sequence import Seq
from tests.unit.builders import ACKED, END, MODULUS, RCV_NXT, SENT, TSVAL, answer, expectation, wire
from tests.unit.model_client import ModelClient, Network

PATIENCE = Patience(speaking=1.5, silent=120.0)
KINDS = [
    pytest.param({}, id="sack, timestamps"),
    pytest.param({"timestamps": False}, id="sack"),
    pytest.param({"sack": False}, id="timestamps"),
    pytest.param({"sack": False, "timestamps": False}, id="neither"),
]


def dialogue(client: ModelClient, seed: int = 1, **options: Any) -> Network:
    """Probing has just begun."""
    prover = Prover(random.Random(seed))
    expected = expectation(sack=client.sack, timestamps=client.timestamps)
    prover.add(expected, 0.0, options.pop("patience", PATIENCE), live=options.pop("live", False))
    return Network(prover, client, **options)


def proof_of(verdict: Verdict | None) -> Proof:
    assert verdict is not None
    assert isinstance(verdict.outcome, Proof), verdict
    return verdict.outcome


# --- every kind of client ---
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [ACKED, 299, SENT, END])
@pytest.mark.parametrize("delay", [0.0001, 0.02, 0.3])
def test_every_client_can_prove_where_it_stands(kind: dict[str, Any], position: int, delay: float) -> None:
    network = dialogue(ModelClient(position, **kind), delay=delay)
    proof = proof_of(network.run(10.0))
    assert (proof.position, proof.ack) == (position, wire(position))
    assert proof.input_missing == 0
    assert network.now < 4 * delay + 2 * AGREE_AFTER + 0.001


@pytest.mark.parametrize("kind", KINDS)
def test_input_ahead_of_the_checkpoint_is_counted_for_every_client(kind: dict[str, Any]) -> None:
    assert proof_of(dialogue(ModelClient(SENT, sent=80, **kind)).run(10.0)).input_missing == 80


@pytest.mark.parametrize("kind", KINDS)
def test_every_client_proves_itself_with_its_window_closed(kind: dict[str, Any]) -> None:
    proof = proof_of(dialogue(ModelClient(SENT, window=0, **kind)).run(10.0))
    assert (proof.position, proof.window) == (SENT, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_lost_probes_and_lost_answers_only_cost_time(kind: dict[str, Any]) -> None:
    """Three of four packets are lost, either way."""
    source = random.Random(5)
    network = dialogue(ModelClient(SENT, **kind), lost=lambda number, to_client: source.random() < 0.75)
    assert proof_of(network.run(100.0)).position == SENT


@pytest.mark.parametrize("kind", KINDS)
def test_a_stale_ack_comes_first_and_is_not_believed(kind: dict[str, Any]) -> None:
    """It was under way when the server died, and so were bytes that the client takes in before the first probe."""
    client = ModelClient(300, **kind)
    network = dialogue(client, delay=0.03)
    network.send(client.says(), to_client=False, delay=0.001)
    client.position = 400
    network.send(client.says(), to_client=False, delay=0.004)
    client.position = SENT
    assert proof_of(network.run(10.0)).position == SENT


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_is_gone_says_so(kind: dict[str, Any]) -> None:
    verdict = dialogue(ModelClient(SENT, present=False, **kind)).run(10.0)
    assert verdict is not None
    assert verdict.outcome is Doubt.GONE


def test_a_client_in_time_wait_names_no_byte_and_proves_itself_by_echo() -> None:
    network = dialogue(ModelClient(END, waiting=True))
    assert proof_of(network.run(10.0)).position == END
    assert PLAIN_AFTER < network.now < 2 * PLAIN_AFTER


def test_a_client_that_never_names_a_byte_proves_itself_by_echo() -> None:
    assert proof_of(dialogue(ModelClient(SENT, dsack=False)).run(10.0)).position == SENT


def test_a_client_with_sack_that_names_no_byte_and_echoes_nothing_is_not_believed() -> None:
    """Whoever negotiated SACK is not taken at its word."""
    network = dialogue(ModelClient(SENT, dsack=False, timestamps=False))
    verdict = network.run(10.0)
    assert verdict is not None
    assert verdict.outcome is Doubt.UNPROVEN
    assert verdict.claimed is not None
    assert verdict.claimed.position == SENT, "the reset can stand where the client accepts it"
    assert network.now == PATIENCE.speaking


def test_an_echo_moves_a_clients_timestamps_ahead_by_hours_at_most() -> None:
    client = ModelClient(SENT, sack=False)
    proof = proof_of(dialogue(client).run(10.0))
    moved = Seq(TSVAL).distance(client.ts_recent)
    assert 0 < moved <= 1 << 25
    assert proof.tsecr == client.ts_recent, "the new owner goes on above it"


def test_whoever_goes_on_goes_on_above_every_echo_that_may_still_be_under_way() -> None:
    """Several were sent before the first was answered; a later one may arrive after the proof."""
    client = ModelClient(SENT, sack=False)
    network = dialogue(client, delay=0.3)
    proof = proof_of(network.run(10.0))
    while network._flying:
        network.run(network._flying[0][0])
    assert client.ts_recent != TSVAL
    assert Seq(proof.tsecr) >= Seq(client.ts_recent)


@pytest.mark.parametrize("kind", [*KINDS, pytest.param({"dsack": False}, id="sack without dsack, timestamps")])
def test_a_live_connections_client_is_asked_without_touching_its_timestamps(kind: dict[str, Any]) -> None:
    """Else it would discard what the kernel sends it (PAWS)."""
    client = ModelClient(SENT, **kind)
    network = dialogue(client, live=True, delay=0.02)
    assert proof_of(network.run(10.0)).position == SENT
    assert client.ts_recent == TSVAL
    assert network.now < 0.7


# --- silence ---
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asleep", [2.0, 60.0, 119.0])
def test_a_client_that_wakes_up_a_minute_later_is_resumed(kind: dict[str, Any], asleep: float) -> None:
    awake = [False]
    network = dialogue(ModelClient(SENT, **kind), lost=lambda number, to_client: not awake[0])
    network.at(asleep, lambda: awake.__setitem__(0, True))
    assert proof_of(network.run(200.0)).position == SENT
    assert network.now < asleep + 2.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_speaks_when_it_wakes_is_asked_at_once(kind: dict[str, Any]) -> None:
    client = ModelClient(SENT, **kind)
    awake = [False]
    network = dialogue(client, lost=lambda number, to_client: not awake[0])

    def wake() -> None:
        awake[0] = True
        network.send(client.says(), to_client=False)

    network.at(60.0, wake)
    assert proof_of(network.run(200.0)).position == SENT
    assert network.now < 60.1


def test_a_client_that_is_never_heard_is_given_up_at_last() -> None:
    network = dialogue(ModelClient(SENT), lost=lambda number, to_client: True)
    verdict = network.run(1000.0)
    assert verdict is not None
    assert (verdict.outcome, verdict.claimed) == (Doubt.SILENT, None)
    assert network.now == PATIENCE.silent
    assert len(network.prover) == 0
    assert network.prover.deadline() is None


def test_a_silent_client_is_asked_more_and_more_rarely() -> None:
    times: list[float] = []
    network = dialogue(ModelClient(SENT))

    def lost(number: int, to_client: bool) -> bool:
        times.append(network.now)
        return True

    network.lost = lost
    network.run(119.0)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gap for gap, time in zip(gaps, times, strict=False) if time < 1.4) <= 0.25
    assert gaps[-1] == pytest.approx(2.0)
    assert len(times) < 90


def test_a_client_that_was_heard_for_a_moment_counts_as_silent_again() -> None:
    """Its last words before it fell asleep were still under way when the switch was fenced."""
    client = ModelClient(300)
    awake = [False]
    network = dialogue(client, lost=lambda number, to_client: not awake[0])
    awake[0] = True
    network.send(client.says(), to_client=False)
    awake[0] = False
    network.at(60.0, lambda: awake.__setitem__(0, True))
    assert proof_of(network.run(200.0)).position == 300
    assert 60.0 < network.now < 62.5


@pytest.mark.parametrize("woken_at", [0.0, 59.0])
def test_a_client_that_speaks_and_cannot_be_saved_is_given_up_soon(woken_at: float) -> None:
    """Its numbers lie beyond what was ever planned: an old checkpoint (decision 001)."""
    awake = [woken_at == 0.0]
    client = ModelClient(END + 5000)
    network = dialogue(client, lost=lambda number, to_client: not awake[0])
    network.at(woken_at, lambda: awake.__setitem__(0, True))
    verdict = network.run(200.0)
    assert verdict is not None
    assert verdict.outcome is Doubt.UNPROVEN
    assert network.now <= woken_at + 2.0 + PATIENCE.speaking + 0.1
    assert network.prover.doubts.keys() == {Doubt.ACK_TOO_NEW}


# --- strangers ---
def forgery(source: random.Random, client: ModelClient, *, knows: bool) -> bytes:
    """An acknowledgement in the client's name. Who `knows` has read the shared state; nobody sees the probes."""
    probe = (wire(ACKED) - 2 - source.randrange(2**30)) % MODULUS
    made: dict[str, Any] = {
        "ack": Seq(wire(source.randrange(ACKED, END + 1)) if knows else source.randrange(MODULUS)),
        "seq": Seq(RCV_NXT if knows else source.randrange(MODULUS)),
        "flags": source.choice((ACK, ACK | PSH)),
        "sack": ((Seq(probe), Seq(probe + 1)),) if source.random() < 0.5 else (),
        "timestamps": (source.randrange(MODULUS), (TSVAL + source.randrange(2**26)) % MODULUS),
    }
    if not client.timestamps:
        del made["timestamps"]
    return build(replace(answer(probe, 0, timestamps=None), **made))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("knows", [False, True], ids=["blind", "knowing"])
def test_ten_thousand_forgeries_are_not_believed(kind: dict[str, Any], knows: bool) -> None:
    """While the client answers, and then the truth still counts."""
    source = random.Random(20261101)
    client = ModelClient(SENT, **kind)
    network = dialogue(client, delay=0.02, patience=Patience(10.0, 10.0))
    for number in range(10_000):
        network.send(forgery(source, client, knows=knows), to_client=False, delay=0.0001 * number + 0.0005)
    assert proof_of(network.run(20.0)).position == SENT


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[1], KINDS[2]])
def test_ten_thousand_forgeries_for_a_sleeping_client_are_not_believed(kind: dict[str, Any]) -> None:
    """Whoever forges knows everything but what the probes carry; the client hears the probes and cannot answer."""
    source = random.Random(20261102)
    client = ModelClient(SENT, **kind)
    network = dialogue(client, lost=lambda number, to_client: not to_client, patience=Patience(1000.0, 1000.0))
    for number in range(10_000):
        network.now = number * 0.001
        verdict = network.run(network.now)
        assert verdict is None
        assert network.prover.receive(forgery(source, client, knows=True), network.now) is None
    assert len(network.prover) == 1


def test_a_client_with_neither_is_not_overheard_by_a_stranger_who_repeats_himself() -> None:
    """The stranger says the same again and again; the client contradicts him."""
    client = ModelClient(SENT, sack=False, timestamps=False)
    network = dialogue(client, delay=0.001, patience=Patience(1.5, 1.5))
    lie = ModelClient(SENT + 1000, sack=False, timestamps=False).says()
    for number in range(3000):
        network.send(lie, to_client=False, delay=number * 0.001)
    verdict = network.run(5.0)
    assert verdict is not None
    assert not isinstance(verdict.outcome, Proof) or verdict.outcome.position == SENT


@settings(max_examples=100)
@given(st.data())
def test_a_proof_is_always_the_truth_and_a_verdict_always_comes(data: st.DataObject) -> None:
    """Any client, any loss, any delay, stale words, strangers: with SACK or timestamps no proof is ever wrong."""
    sack, timestamps = data.draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    client = ModelClient(
        data.draw(st.integers(ACKED, END)),
        sack=sack,
        dsack=data.draw(st.booleans()),
        timestamps=timestamps,
        window=data.draw(st.sampled_from([0, 1000, 64_000])),
        sent=data.draw(st.sampled_from([0, 1, 70_000])),
    )
    source = random.Random(data.draw(st.integers(0, 2**32)))
    loss = data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    network = dialogue(
        client,
        source.randrange(2**32),
        delay=source.choice((0.0001, 0.01, 0.4)),
        lost=lambda n, t: source.random() < loss,
    )
    truth = client.position
    for _ in range(data.draw(st.integers(0, 5))):
        client.position = source.randrange(ACKED, truth + 1)
        network.send(client.says(), to_client=False, delay=source.random())
    client.position = truth
    for _ in range(data.draw(st.integers(0, 50))):
        network.send(forgery(source, client, knows=source.random() < 0.8), to_client=False, delay=source.random() * 3)
    verdict = network.run(PATIENCE.silent + 1)
    assert verdict is not None
    if isinstance(verdict.outcome, Proof):
        assert verdict.outcome.position == truth
        assert verdict.outcome.input_missing == client.sent
    else:
        assert verdict.outcome in (Doubt.UNPROVEN, Doubt.SILENT)
    assert (len(network.prover), network.prover.plain) == (0, set())


# --- listening ---
def test_only_clients_that_may_answer_without_sack_are_listened_to_plainly() -> None:
    prover = Prover(random.Random(1))
    with_sack = prover.add(expectation(), 0.0, PATIENCE)
    assert prover.plain == set()
    prover.give_up(with_sack)
    without = prover.add(expectation(sack=False), 0.0, PATIENCE)
    assert (prover.plain, prover.plain_added) == ({without}, 1)
    prover.give_up(without)
    assert prover.plain == set()


def test_a_client_that_does_not_answer_soon_is_listened_to_plainly() -> None:
    prover = Prover(random.Random(1))
    key = prover.add(expectation(), 0.0, PATIENCE)
    while (due := prover.deadline()) is not None and due < PLAIN_AFTER:
        prover.probes(due)
        assert prover.plain == set()
    assert due is not None
    prover.probes(due)
    assert prover.plain == {key}


def test_an_echo_offers_no_more_than_a_small_window_and_carries_no_byte() -> None:
    client = ModelClient(SENT, sack=False)
    prover = Prover(random.Random(1))
    prover.add(expectation(sack=False), 0.0, PATIENCE)
    (probe,) = prover.probes(0.0)
    (said,) = client.hears(probe)
    assert prover.receive(said, 0.0005) is None
    echo, probe = prover.probes(0.0005)
    found: Segment = parse(echo)
    assert (found.seq, found.payload_length, found.window, found.flags) == (wire(SENT), 0, 128, ACK)
    assert client.hears(echo) == []
    verdict = prover.receive(client.hears(probe)[0], 0.0015)
    assert verdict is not None
    assert verdict.key == key_of(expectation())
    assert isinstance(verdict.outcome, Proof)
