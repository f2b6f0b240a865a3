"""Which checkpoints are believed, whose they are, who may end them, and which backup is given them ahead of failure."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controller.actions import Send
from controller.collector import Collector
from state import messages
from state.datablock import FourTuple
from state.errors import CheckpointRefused
from tests.unit import scenario
from tests.unit.scenario import NEAR_WRAP, Scene, backed_up, block, said


@pytest.fixture
def collector() -> Collector:
    collector = Collector()
    collector.take("s1", 1, [block("s1", 40_000, epoch=2, serial=5)])
    return collector


def name(port: int) -> str:
    return scenario.four_tuple(port).id


def known(collector: Collector, port: int = 40_000) -> tuple[str, int, int]:
    """Server, epoch and serial of the checkpoint that stands."""
    record = collector.get(name(port))
    assert record is not None
    return record.header.server, record.header.epoch, record.header.serial


# --- taking in ---
def test_an_accepted_block_is_returned_as_it_came_for_the_store() -> None:
    collector, data = Collector(), block("s1", 40_000)
    assert collector.take("s1", 1, [data]).accepted == [(name(40_000), "s1", data)]
    assert (collector.taken, collector.taken_bytes, len(collector)) == (1, len(data), 1)


def test_when_a_block_was_received_is_known_beside_when_it_was_made(collector: Collector) -> None:
    collector.take("s1", 1, [block("s1", 40_000, epoch=2, serial=6)], 1_700_000_000_000_000_123)
    record = collector.get(name(40_000))
    assert record is not None
    assert record.received_ns == 1_700_000_000_000_000_123
    collector.reassign("s1", "s2")
    assert record.received_ns == 1_700_000_000_000_000_123
    collector.load("s1", 1, record.block)
    loaded = collector.get(name(40_000))
    assert loaded is not None and loaded.received_ns == 0


def test_a_newer_checkpoint_replaces_the_older(collector: Collector) -> None:
    collector.take("s1", 1, [block("s1", 40_000, epoch=2, serial=6)])
    assert known(collector) == ("s1", 2, 6) and len(collector) == 1


def test_the_same_checkpoint_may_come_again(collector: Collector) -> None:
    """An agent that reconnects sends everything that it has."""
    assert len(collector.take("s1", 1, [block("s1", 40_000, epoch=2, serial=5)]).accepted) == 1


@pytest.mark.parametrize(
    ("field", "data", "sender", "life"),
    [
        ("server", block("s2", 40_000, epoch=2, serial=6), "s1", 1),
        ("incarnation", block("s1", 40_000, incarnation=7, epoch=2, serial=6), "s1", 1),
        ("epoch", block("s1", 40_000, epoch=1, serial=6), "s1", 1),
        ("serial", block("s1", 40_000, epoch=2, serial=4), "s1", 1),
        ("epoch", block("s2", 40_000, epoch=1, serial=6), "s2", 1),
        ("checksum", block("s1", 40_000, epoch=2, serial=6)[:-1], "s1", 1),
        ("length", b"TKO", "s1", 1),
        ("magic", b"not a checkpoint", "s1", 1),
    ],
)
def test_a_block_that_is_refused_is_counted_by_its_field_and_changes_nothing(
    collector: Collector, field: str, data: bytes, sender: str, life: int
) -> None:
    intake = collector.take(sender, life, [data])
    assert intake.accepted == [] and [error.field for error in intake.refused] == [field]
    assert dict(collector.refused) == {field: 1}
    assert known(collector) == ("s1", 2, 5) and collector.count("s1") == 1


def test_one_bad_block_does_not_spoil_its_neighbours() -> None:
    collector = Collector()
    intake = collector.take("s1", 1, [block("s1", 40_000), b"damaged", block("s1", 40_002)])
    assert [accepted[0] for accepted in intake.accepted] == [name(40_000), name(40_002)]
    assert len(intake.refused) == 1


def test_serials_begin_anew_with_a_new_connection_on_the_same_ports(collector: Collector) -> None:
    again = block("s1", 40_000, epoch=2, serial=1, iss=NEAR_WRAP + 77)
    assert len(collector.take("s1", 1, [again]).accepted) == 1
    assert known(collector) == ("s1", 2, 1)


def test_serials_begin_anew_with_a_new_life_of_the_server(collector: Collector) -> None:
    assert len(collector.take("s1", 2, [block("s1", 40_000, incarnation=2, epoch=3, serial=1)]).accepted) == 1


# --- responsibility ---
def test_reassigning_moves_everything_of_a_server_and_nothing_else(collector: Collector) -> None:
    collector.take("s1", 1, [block("s1", 40_002)])
    collector.take("s2", 1, [block("s2", 40_004)])
    assert collector.reassign("s1", "s3") == 2
    assert (collector.count("s1"), collector.count("s2"), collector.count("s3")) == (0, 1, 2)
    assert {found for found, _ in collector.of("s3")} == {name(40_000), name(40_002)}
    assert sorted(collector.servers()) == ["s2", "s3"]


def test_until_the_heir_has_made_its_own_checkpoint_the_old_one_is_the_state(collector: Collector) -> None:
    collector.reassign("s1", "s2")
    record = collector.get(name(40_000))
    assert record is not None and (record.responsible, record.settled) == ("s2", False)
    assert known(collector) == ("s1", 2, 5)
    collector.take("s2", 1, [block("s2", 40_000, epoch=3, serial=1)])
    record = collector.get(name(40_000))
    assert record is not None and (record.responsible, record.settled) == ("s2", True)
    assert collector.count("s2") == 1


def test_reassigning_goes_on_from_heir_to_heir(collector: Collector) -> None:
    collector.reassign("s1", "s2")
    collector.take("s2", 1, [block("s2", 40_004)])
    assert collector.reassign("s2", "s3") == 2
    assert collector.reassign("s2", "s3") == 0


def test_one_connection_can_be_given_to_another_server(collector: Collector) -> None:
    collector.take("s1", 1, [block("s1", 40_002)])
    collector.reassign_one(name(40_000), "s2")
    assert ([found for found, _ in collector.of("s1")], collector.count("s2")) == ([name(40_002)], 1)


# --- ending ---
def test_only_the_responsible_server_can_end_a_connection(collector: Collector) -> None:
    assert collector.forget("s2", [name(40_000)]) == []
    collector.reassign("s1", "s2")
    assert collector.forget("s1", [name(40_000)]) == [], "the old owner no longer"
    assert collector.forget("s2", [name(40_000), "unheard of"]) == [name(40_000)]
    assert len(collector) == 0 and collector.servers() == []


# --- the start ---
def test_what_the_store_had_is_known_again_with_who_was_responsible() -> None:
    collector = Collector()
    collector.load("s2", 1, block("s1", 40_000))
    record = collector.get(name(40_000))
    assert record is not None and (record.responsible, record.settled) == ("s2", False)
    assert [record.header.connection for _, record in collector.all()] == [scenario.four_tuple(40_000)]
    assert collector.taken == 0, "loading is no intake"


def test_what_a_server_stored_in_a_former_life_does_not_live_there_now() -> None:
    collector = Collector()
    collector.load("s1", 2, block("s1", 40_000, incarnation=1))
    collector.load("s1", 2, block("s1", 40_002, incarnation=2))
    settled = {port: record.settled for port in (40_000, 40_002) if (record := collector.get(name(port)))}
    assert settled == {40_000: False, 40_002: True}


def test_a_damaged_block_of_the_store_is_said_so() -> None:
    with pytest.raises(CheckpointRefused) as refused:
        Collector().load("s1", 1, block("s1", 40_000)[:-3])
    assert refused.value.field == "checksum"


# --- through the conductor: backups ahead of failure ---
S1_PORTS = (40_000, 40_006)
"""Client ports whose slots belong to s1 of three servers."""


@pytest.fixture
def scene() -> Scene:
    return Scene().up()


def test_a_server_that_joins_is_given_the_checkpoints_of_whom_it_backs_up() -> None:
    scene = Scene().up("s1")
    assert scene.store("s1", *S1_PORTS) == []
    actions = scene.hello("s2")
    assert backed_up(actions, "s2", "s1") == set(S1_PORTS)
    assert said(actions, "s2", messages.Synchronised) == [messages.Synchronised("s1")]
    sends = [action.message for action in actions if isinstance(action, Send) and action.server == "s2"]
    assert isinstance(sends[-1], messages.Synchronised), "after the last block"


def test_a_synchronisation_is_cut_into_messages_of_bounded_size() -> None:
    scene = Scene().up("s1")
    scene.store("s1", *range(40_000, 40_200))
    parts = said(scene.hello("s2"), "s2", messages.Backup)
    assert len(parts) > 1 and sum(len(part.blocks) for part in parts) == 200
    assert max(len(messages.encode(part)) for part in parts) < messages.LIMIT_FRAME


def test_new_checkpoints_go_to_the_backup_at_once(scene: Scene) -> None:
    actions = scene.store("s1", 40_000)
    assert backed_up(actions, "s2", "s1") == {40_000} and len(actions) == 1
    assert scene.conductor.stored("s1", []) == []


def test_a_second_backup_gets_the_checkpoints_after_a_takeover(scene: Scene) -> None:
    scene.store("s1", *S1_PORTS)
    scene.end("s1")
    assert backed_up(scene.commit(1), "s3", "s2") == set(S1_PORTS)


def test_a_better_backup_takes_over_from_the_present_one_which_may_forget() -> None:
    scene = Scene().up("s1", "s3")
    scene.store("s1", 40_000)
    actions = scene.hello("s2")
    assert said(actions, "s3", messages.Forget) == [messages.Forget("s1", [])]
    assert backed_up(actions, "s2", "s1") == {40_000}


def test_a_backup_in_a_new_life_is_given_the_checkpoints_again(scene: Scene) -> None:
    scene.store("s3", 40_004)
    assert scene.conductor.servers["s3"].backup == "s1"
    actions = [*scene.hello("s1", 2), *scene.commit(1), *scene.hello("s1", 2)]
    actions += [*scene.end("s3"), *scene.commit(2)]
    assert said(actions, "s1", messages.Resume)
    assert backed_up(actions, "s1", "s3") == {40_004}


def test_a_backup_whose_connection_was_renewed_is_given_the_checkpoints_again(scene: Scene) -> None:
    scene.store("s1", 40_000)
    assert backed_up(scene.hello("s2", 1), "s2", "s1") == {40_000}


def test_what_the_backup_has_built_is_shown_for_the_owner(scene: Scene) -> None:
    scene.conductor.received("s2", messages.Prepared("s1", 7, 0), scene.now)
    assert scene.conductor.servers["s1"].unready == 7
    scene.conductor.received("s2", messages.Prepared("s9", 7, 0), scene.now)


def test_a_heartbeat_tells_what_the_backup_holds_now(scene: Scene) -> None:
    servers = scene.conductor.servers
    beat = messages.Heartbeat(1, 0, 0.0, 0.0, {"s1": 8, "s3": 5, "s9": 1})
    scene.conductor.received("s2", beat, scene.now)
    assert servers["s1"].backup == "s2"
    assert servers["s1"].unready == 8
    assert servers["s3"].unready == 0, (
        "s1 is the backup of s3: what s2 still holds of it is not what would be taken over"
    )
    scene.conductor.received("s2", messages.Heartbeat(2, 0, 0.0, 0.0, {"s1": 0}), scene.now)
    assert servers["s1"].unready == 0
    scene.conductor.received("s2", beat, scene.now)
    scene.end("s2")
    assert (servers["s1"].backup, servers["s1"].unready) == (None, 0)


def test_an_ended_connection_is_forgotten_here_and_at_the_backup(scene: Scene) -> None:
    scene.store("s1", 40_000)
    name = scenario.four_tuple(40_000).id
    gone, actions = scene.conductor.closed("s1", [name, "nobody's"])
    assert gone == [name] and len(scene.conductor.collector) == 0
    assert actions == [Send("s2", messages.Forget("s1", [name]))]


# --- shares ---
def _slot(connection: FourTuple) -> tuple[int, int]:
    return 0, connection.destination_port % 8


class Shares(RuleBasedStateMachine):
    """Any order of what may happen, against a plain table: connection -> who is responsible, and settled."""

    servers = st.sampled_from(["s1", "s2", "s3"])
    ports = st.integers(40_000, 40_015)

    def __init__(self) -> None:
        super().__init__()
        self.collector = Collector(_slot)
        self.model: dict[int, tuple[str, bool]] = {}

    @rule(server=servers, port=ports)
    def store(self, server: str, port: int) -> None:
        assert self.collector.take(server, 1, [block(server, port)]).accepted
        self.model[port] = (server, True)

    @rule(server=servers, writer=servers, port=ports)
    def load(self, server: str, writer: str, port: int) -> None:
        self.collector.load(server, 1, block(writer, port))
        self.model[port] = (server, server == writer)

    @rule(server=servers, port=ports)
    def forget(self, server: str, port: int) -> None:
        mine = self.model.get(port, ("", False))[0] == server
        assert self.collector.forget(server, [name(port)]) == ([name(port)] if mine else [])
        if mine:
            del self.model[port]

    @rule(server=servers, heir=servers)
    def reassign(self, server: str, heir: str) -> None:
        mine = [port for port, (responsible, _) in self.model.items() if responsible == server]
        assert self.collector.reassign(server, heir) == len(mine)
        self.model |= dict.fromkeys(mine, (heir, False))

    @rule(port=ports, heir=servers)
    def reassign_one(self, port: int, heir: str) -> None:
        if port in self.model:
            self.collector.reassign_one(name(port), heir)
            self.model[port] = (heir, False)

    @invariant()
    def agrees(self) -> None:
        assert len(self.collector) == len(self.model)
        for port, fate in self.model.items():
            record = self.collector.get(name(port))
            assert record is not None
            assert (record.responsible, record.settled) == fate
        for server in ("s1", "s2", "s3"):
            mine = {port for port, (responsible, _) in self.model.items() if responsible == server}
            assert {found for found, _ in self.collector.of(server)} == {name(port) for port in mine}
            assert self.collector.count(server) == len(mine)
            assert self.collector.slots(server) == {(0, port % 8) for port in mine}
        assert self.collector.slots() == {(0, port % 8) for port in self.model}
        assert set(self.collector.servers()) == {responsible for responsible, _ in self.model.values()}


Shares.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestShares = Shares.TestCase


def test_a_connection_outside_every_slot_is_in_none() -> None:
    collector = Collector()
    collector.take("s1", 1, [block("s1", 40_000)])
    assert collector.slots() == set()
