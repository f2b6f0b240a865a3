"""One takeover's phases and counts, and the history that keeps the last of them."""

from __future__ import annotations

import pytest

from controller.actions import Drop
from controller.conductor import NO_BACKUP, WAIT_FOR_BACKUP
from controller.takeover import History, Phase, Takeover
from state import messages
from state.messages import LIMIT_COMPARISONS, Comparison, Resumed
from tests.unit import scenario
from tests.unit.flow_table import FlowTable
from tests.unit.scenario import Scene, backed_up, commits, passing, said


def takeover(number: int = 1, heir: str | None = "s2") -> Takeover:
    """Last heard of at 10.000 s, detected at 10.002 s, with three connections."""
    return Takeover(
        number, "process ended", "s1", heir, 2, ["s1"], 10.0, 10.002, 1_700_000_000_000_000_000, 3, waiting=3
    )


def report(
    *, resumed: int = 0, reset: tuple[str, ...] = (), waiting: int = 0, proved: int = 0, done: int = 0
) -> Resumed:
    names = [f"resumed-{number}" for number in range(resumed)]
    return Resumed(1, names, [(f"reset-{i}", reason) for i, reason in enumerate(reset)], waiting, proved, done, 20)


def test_it_goes_from_fencing_through_resuming_to_done() -> None:
    one = takeover()
    assert (one.phase, one.finished) == (Phase.FENCING, None)
    one.committed(10.003)
    assert (one.phase, one.fenced) == (Phase.RESUMING, 10.003)
    one.progressed(report(resumed=1, waiting=2), 10.005)
    assert (one.phase, one.finished) == (Phase.RESUMING, None)
    one.progressed(report(resumed=1, reset=("no answer",)), 12.0)
    assert (one.phase, one.finished) == (Phase.DONE, 12.0)
    assert (one.resumed, dict(one.reset), one.waiting, one.recreate_us) == (2, {"no answer": 1}, 0, 40)


def test_no_report_counts_before_the_fence_stands() -> None:
    one = takeover()
    one.progressed(report(resumed=3), 10.003)
    assert (one.phase, one.resumed, one.waiting) == (Phase.FENCING, 0, 3)


def test_no_report_counts_after_the_end() -> None:
    one = takeover()
    one.committed(10.003)
    one.progressed(report(resumed=3), 10.005)
    one.progressed(report(resumed=1, reset=("late",)), 11.0)
    assert (one.resumed, dict(one.reset), one.finished) == (3, {}, 10.005)


def test_of_its_comparisons_the_first_are_kept() -> None:
    compared = [Comparison(f"c{number}", "http/1.1", "resumed", 1, 9, 5) for number in range(LIMIT_COMPARISONS + 5)]
    one = takeover()
    one.committed(10.003)
    one.progressed(Resumed(1, [], [], 2, 0, 0, 0, compared[:3]), 10.004)
    one.progressed(Resumed(1, [], [], 1, 0, 0, 0, compared[3:35]), 10.004)
    one.progressed(Resumed(1, [], [], 0, 0, 0, 0, compared[35:]), 10.005)
    assert one.comparisons == compared[:LIMIT_COMPARISONS]


def test_a_second_commit_does_not_move_the_fence() -> None:
    one = takeover()
    one.committed(10.003)
    one.committed(10.9)
    assert one.fenced == 10.003


@pytest.mark.parametrize("fenced", [False, True])
def test_it_fails_while_it_runs_and_keeps_what_was_resumed(fenced: bool) -> None:
    one = takeover()
    if fenced:
        one.committed(10.003)
        one.progressed(report(resumed=2, waiting=1), 10.005)
    one.fail(10.01)
    assert (one.phase, one.finished, one.resumed) == (Phase.FAILED, 10.01, 2 if fenced else 0)
    one.committed(10.02)
    assert one.phase is Phase.FAILED


def test_what_is_done_cannot_fail_any_more() -> None:
    one = takeover()
    one.committed(10.003)
    one.progressed(report(resumed=3), 10.005)
    one.fail(10.01)
    assert (one.phase, one.finished) == (Phase.DONE, 10.005)


def test_reasons_of_resets_add_up_by_reason() -> None:
    one = takeover()
    one.committed(10.003)
    one.progressed(report(reset=("no answer", "no answer"), waiting=1), 10.005)
    one.lost(2, "no backup is up")
    one.progressed(report(reset=("no answer",)), 10.006)
    assert dict(one.reset) == {"no answer": 3, "no backup is up": 2}


def test_the_lengths_of_the_phases_add_up_to_the_whole() -> None:
    one = takeover()
    assert one.phases_ms() == {"detect": pytest.approx(2.0), "fence": None, "prove": None, "resume": None}
    one.committed(10.003)
    one.progressed(report(resumed=1, waiting=2, proved=400, done=500), 10.0035)
    assert one.phases_ms() == {"detect": pytest.approx(2.0), "fence": pytest.approx(1.0), "prove": None, "resume": None}
    one.progressed(report(resumed=2, proved=700, done=900), 10.004)
    phases = one.phases_ms()
    assert phases == {"detect": 2.0, "fence": 1.0, "prove": 0.7, "resume": pytest.approx(0.2)}
    assert sum(length or 0 for length in phases.values()) == pytest.approx(1 + 2 + 0.9)


def test_a_phase_is_never_negative() -> None:
    one = takeover()
    one.committed(10.002)
    one.progressed(report(resumed=3, proved=900, done=500), 10.003)
    assert all(length is not None and length >= 0 for length in one.phases_ms().values())


def test_history_finds_by_number_and_keeps_the_order() -> None:
    history = History()
    for number in (3, 4, 7):
        history.add(takeover(number))
    found = history.get(4)
    assert found is not None and found.number == 4 and history.get(5) is None
    assert [one.number for one in history.all()] == [3, 4, 7]


def test_history_forgets_the_oldest() -> None:
    history = History(limit=2)
    for number in (1, 2, 3):
        history.add(takeover(number))
    assert [one.number for one in history.all()] == [2, 3] and history.get(1) is None


# --- through the conductor: failures during a takeover, and without anybody to inherit ---
S1_PORTS = (40_000, 40_006)
"""Client ports whose slots belong to s1 of three servers."""


@pytest.fixture
def scene() -> Scene:
    return Scene().up()


def test_when_the_heir_dies_before_the_commit_the_next_one_inherits(scene: Scene) -> None:
    scene.store("s1", 40_000)
    scene.store("s2", 40_002)
    scene.end("s1")
    actions = scene.end("s2")
    first, second = scene.conductor.history.all()
    assert (first.phase, second.phase, second.heir, set(second.homes)) == (
        Phase.FAILED,
        Phase.FENCING,
        "s3",
        {"s1", "s2"},
    )
    assert scene.commit(1) == [], "the dead heir is told nothing"
    assert second.connections == 2
    after = scene.commit(2)
    assert said(after, "s3", messages.Resume) == [messages.Resume(2, "s2", second.epoch)]
    assert not said(actions + after, "s2", messages.Resume)


def test_an_heir_of_an_heir_that_died_before_the_commit_has_all_checkpoints_when_it_resumes() -> None:
    scene = Scene()
    given = [*scene.hello("s1"), *scene.hello("s2"), *scene.hello("s3")]
    given += scene.store("s1", 40_000) + scene.store("s2", 40_002)
    given += scene.end("s1") + scene.end("s2") + scene.commit(2)
    assert backed_up(given, "s3", "s2") == {40_000, 40_002}


def test_when_the_heir_dies_while_resuming_the_next_one_has_the_checkpoints_already(scene: Scene) -> None:
    scene.store("s1", *S1_PORTS)
    scene.end("s1")
    given = scene.commit(1)
    scene.report("s2", 1, resumed=[40_000], waiting=1)
    given += scene.end("s2")
    first, second = scene.conductor.history.all()
    assert (first.phase, first.resumed, second.heir, second.connections) == (Phase.FAILED, 1, "s3", 2)
    assert backed_up(given, "s3", "s2") == set(S1_PORTS)
    assert scene.report("s2", 1, resumed=[40_006]) == [] and first.resumed == 1
    assert said(scene.commit(2), "s3", messages.Resume)


def test_without_a_backup_the_dead_is_fenced_and_its_connections_wait() -> None:
    scene, table = Scene(scenario.config(1)).up(), FlowTable()
    table.apply(commits(scene.conductor.switch_connected(scene.ports()))[0].messages)
    assert passing(table, 40_000) == [1]
    scene.store("s1", 40_000)
    actions = scene.end("s1")
    assert commits(actions)[0].takeovers == ()
    (takeover,) = scene.conductor.history.all()
    assert (takeover.phase, takeover.heir, takeover.waiting) == (Phase.WAITING, None, 1)
    table.apply(commits(actions)[0].messages)
    assert passing(table, 40_000) == []


@pytest.mark.parametrize("heir", ["s1", "s2"])
def test_connections_that_wait_are_taken_in_by_the_first_server_that_comes(heir: str) -> None:
    """Even by the one that lost them: it has another life, and nothing of them in its kernel."""
    scene, table = Scene(scenario.config(2)).up(), FlowTable()
    table.apply(commits(scene.conductor.switch_connected(scene.ports()))[0].messages)
    scene.store("s1", 40_000)
    scene.end("s2")
    scene.end("s1")
    actions = scene.hello(heir, 2)
    assert backed_up(actions, heir, "s1") == {40_000}
    for commit in commits(actions):
        table.apply(commit.messages)
    assert passing(table, 40_000) == [int(heir[1:])]
    waited = scene.conductor.history.all()[-1]
    assert (waited.phase, waited.heir) == (Phase.FENCING, heir)
    record = scene.conductor.collector.get(scenario.four_tuple(40_000).id)
    assert record is not None
    assert (record.responsible, record.settled) == (heir, False), "the gate lets no RST of its kernel out"
    assert said(scene.commit(waited.number), heir, messages.Resume)
    scene.report(heir, waited.number, resumed=[40_000])
    assert (waited.phase, waited.resumed) == (Phase.DONE, 1)


def test_nobody_waits_for_ever() -> None:
    scene = Scene(scenario.config(1)).up()
    scene.store("s1", 40_000)
    scene.end("s1")
    scene.conductor.tick(scene.now + WAIT_FOR_BACKUP - 1)
    (takeover,) = scene.conductor.history.all()
    assert takeover.phase is Phase.WAITING
    (drop,) = [a for a in scene.conductor.tick(scene.now + WAIT_FOR_BACKUP + 1) if isinstance(a, Drop)]
    assert drop.connections == [scenario.four_tuple(40_000).id]
    assert (takeover.phase, dict(takeover.reset), takeover.waiting) == (Phase.FAILED, {NO_BACKUP: 1}, 0)
    scene.hello("s1", 2)
    assert scene.conductor.collector.count("s1") == 0


def test_connections_wait_through_a_restart_of_the_controller() -> None:
    scene = Scene(scenario.config(1)).up()
    scene.store("s1", 40_000)
    scene.end("s1")
    scene = scene.restarted()
    actions = scene.hello("s1", 2)
    assert backed_up(actions, "s1", "s1") == {40_000}
    (takeover,) = scene.conductor.history.all()
    assert said(scene.commit(takeover.number), "s1", messages.Resume)


def test_a_fenced_server_without_heir_stays_fenced_when_the_switch_comes_back() -> None:
    scene = Scene(scenario.config(1)).up()
    scene.end("s1")
    table = FlowTable()
    table.apply(commits(scene.conductor.switch_connected(scene.ports()))[0].messages)
    assert passing(table, 40_000) == []


def test_totals_count_takeovers_that_the_history_no_longer_has() -> None:
    history = History(limit=2)
    for number in range(1, 6):
        one = takeover(number)
        history.add(one)
        one.committed(10.003)
        one.progressed(report(resumed=2, reset=("no answer",)), 10.005)
        one.found(1, ["client gone"])
        one.lost(1, NO_BACKUP)
    assert len(history.all()) == 2
    assert history.causes == {"process ended": 5}
    assert history.fates == {
        "resumed": 15,
        "reset: no answer": 5,
        "reset: client gone": 5,
        f"reset: {NO_BACKUP}": 5,
    }
