"""The controller's heart as dialogues: this event in, exactly these actions out. Time is an argument; the switch and the
agents are the test itself."""

from __future__ import annotations

import pytest

from controller import conductor, steering
from controller.conductor import NO_BACKUP, RECOVERY_GRACE, Announce, Persist, Send, SendToSwitch
from controller.detector import TICK
from controller.gate import HOLD_SECONDS
from controller.takeover import Phase
from state import messages
from tests.unit import scenario
from tests.unit.flow_table import ACK, NORMAL, FlowTable, from_vip
from tests.unit.scenario import Scene, backed_up, commits, kinds, said

S1_PORTS = (40_000, 40_006)
"""Client ports whose slots (0 and 3 of 8) belong to s1 of three servers."""
FRAME = b"a FIN without the mark"


@pytest.fixture
def scene() -> Scene:
    return Scene().up()


def ticks(scene: Scene, seconds: float) -> list[conductor.Action]:
    """Time passes at the loop's pace; the actions of all ticks."""
    actions: list[conductor.Action] = []
    for _ in range(round(seconds / TICK)):
        scene.now += TICK
        actions += scene.conductor.tick(scene.now)
    return actions


def passing(table: FlowTable, client_port: int) -> list[int]:
    """Switch ports from which the VIP's packet for this client leaves."""
    return [
        port
        for port in (1, 2, 3)
        if [out.port for out in table.send(from_vip(client_port, flags=ACK), port)] == [NORMAL]
    ]


# --- hello ---
def test_an_unknown_name_is_refused_with_the_known_ones(scene: Scene) -> None:
    (answer,) = scene.conductor.hello(scenario.hello("s9"), scene.now)
    assert isinstance(answer, Send) and isinstance(answer.message, messages.Refused)
    assert (answer.server, answer.last, answer.message.fenced) == ("s9", True, False)
    assert "s9" in answer.message.sentence and "s1, s2, s3" in answer.message.sentence
    assert scene.conductor.refused_hellos == 1


def test_another_protocol_version_is_refused_with_both_numbers(scene: Scene) -> None:
    (answer,) = scene.conductor.hello(scenario.hello("s1", version=99), scene.now)
    assert isinstance(answer, Send) and isinstance(answer.message, messages.Refused)
    assert "99" in answer.message.sentence and str(messages.PROTOCOL_VERSION) in answer.message.sentence
    assert not answer.message.fenced and scene.conductor.servers["s1"].up


def test_a_server_without_a_switch_port_is_refused_until_it_has_one() -> None:
    scene = Scene()
    scene.conductor.switch_connected(scene.ports("s1"))
    (answer,) = scene.hello("s1")
    assert isinstance(answer, Send) and isinstance(answer.message, messages.Refused) and not answer.message.fenced
    scene.conductor.port_changed("s1-eth0", 1, True, scene.now)
    assert kinds(scene.hello("s1"))[0] == "Send Welcome"


def test_joining_is_answered_first_then_installed_then_kept() -> None:
    scene = Scene()
    actions = scene.hello("s1")
    assert kinds(actions) == ["Send Welcome", "Commit", "Persist", "Announce"]
    assert said(actions, "s1", messages.Welcome) == [messages.Welcome(scene.conductor.epoch)]
    table = FlowTable()
    table.apply(steering.everything(scene.configuration, scene.conductor.ownership, {}))
    assert passing(table, S1_PORTS[0]) == []
    table.apply(commits(actions)[0].messages)
    assert passing(table, S1_PORTS[0]) == [1]


# --- a failure ---
def test_a_failure_is_one_bundle_and_resume_waits_for_its_commit(scene: Scene) -> None:
    scene.store("s1", *S1_PORTS)
    actions = scene.end("s1")
    assert kinds(actions) == ["Commit", "Send Refused", "Persist", "Announce", "Announce"]
    commit, refusal = actions[0], actions[1]
    assert isinstance(commit, conductor.Commit) and isinstance(refusal, Send)
    assert commit.takeovers == (1,)
    assert (refusal.server, refusal.last) == ("s1", True)
    assert isinstance(refusal.message, messages.Refused) and refusal.message.fenced
    after = scene.commit(1)
    assert after[0] == Send("s2", messages.Resume(1, "s1", scene.conductor.epoch))
    assert scene.commit(1) == [], "a commit counts once"


def test_the_bundle_of_a_failure_fences_the_dead_and_lets_the_heir_speak(scene: Scene) -> None:
    table = FlowTable()
    table.apply(commits(scene.conductor.switch_connected(scene.ports()))[0].messages)
    assert passing(table, S1_PORTS[0]) == [1]
    table.apply(commits(scene.end("s1"))[0].messages)
    assert passing(table, S1_PORTS[0]) == [2]


def test_every_failure_has_an_epoch_of_its_own(scene: Scene) -> None:
    epochs = [scene.conductor.epoch]
    for name in ("s1", "s2"):
        scene.end(name)
        epochs.append(scene.conductor.epoch)
        assert scene.conductor.servers[name].epoch == scene.conductor.epoch
    assert epochs == sorted(set(epochs))


def test_a_failure_is_told_once(scene: Scene) -> None:
    assert scene.end("s1") and scene.end("s1") == []
    assert scene.conductor.port_changed("s1-eth0", 1, False, scene.now) == []
    assert len(scene.conductor.history.all()) == 1


def test_a_takeover_is_done_when_its_heir_has_decided_every_connection(scene: Scene) -> None:
    scene.store("s1", *S1_PORTS)
    scene.end("s1")
    scene.commit(1)
    takeover = scene.conductor.history.get(1)
    assert takeover is not None and takeover.phase is Phase.RESUMING
    scene.report("s2", 1, resumed=[40_000], waiting=1)
    assert takeover.phase is Phase.RESUMING
    actions = scene.report("s2", 1, reset=[(40_006, "the object differs")])
    assert takeover.phase is Phase.DONE
    assert (takeover.resumed, dict(takeover.reset), takeover.waiting) == (1, {"the object differs": 1}, 0)
    assert [a.body["phase"] for a in actions if isinstance(a, Announce) and a.kind == "takeover"] == ["done"]
    assert scene.conductor.collector.get(scenario.four_tuple(40_006).id) is None


def test_a_report_of_anybody_but_the_heir_changes_nothing(scene: Scene) -> None:
    scene.store("s1", *S1_PORTS)
    scene.end("s1")
    scene.commit(1)
    scene.report("s3", 1, reset=[(40_000, "lie")])
    takeover = scene.conductor.history.get(1)
    assert takeover is not None and takeover.phase is Phase.RESUMING and not takeover.reset
    assert scene.conductor.collector.get(scenario.four_tuple(40_000).id) is not None


# --- a failure during a takeover ---
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


def test_without_a_backup_the_connections_are_counted_as_lost_and_the_dead_is_fenced(scene: Scene) -> None:
    scene = Scene(scenario.config(1)).up()
    scene.store("s1", 40_000)
    actions = scene.end("s1")
    assert commits(actions)[0].takeovers == ()
    (takeover,) = scene.conductor.history.all()
    assert (takeover.phase, takeover.heir, dict(takeover.reset)) == (Phase.FAILED, None, {NO_BACKUP: 1})
    table = FlowTable()
    table.apply(steering.everything(scene.configuration, scene.conductor.ownership, scene.conductor._attachments()))
    table.apply(commits(actions)[0].messages)
    assert passing(table, 40_000) == []


def test_connections_lost_for_want_of_a_backup_are_no_connections_any_more() -> None:
    scene = Scene(scenario.config(1)).up()
    scene.store("s1", 40_000)
    scene.end("s1")
    scene.hello("s1", 2)
    assert scene.conductor.collector.count("s1") == 0


def test_a_fenced_server_without_heir_stays_fenced_when_the_switch_comes_back() -> None:
    scene = Scene(scenario.config(1)).up()
    scene.end("s1")
    table = FlowTable()
    table.apply(commits(scene.conductor.switch_connected(scene.ports()))[0].messages)
    assert passing(table, 40_000) == []


# --- a server that was not dead ---
def test_a_hung_server_is_failed_after_the_limit_and_not_before(scene: Scene) -> None:
    limit = scene.configuration.detection.timeout / 1000
    for name in ("s2", "s3"):
        scene.conductor.detector.watch(name, scene.now + 10)
    assert ticks(scene, limit - 2 * TICK) == []
    ticks(scene, 3 * TICK)
    (takeover,) = scene.conductor.history.all()
    assert (takeover.source, takeover.cause) == ("s1", "no heartbeat")
    assert takeover.phases_ms()["detect"] == pytest.approx(limit * 1000, abs=3 * TICK * 1000)


def test_a_hung_server_that_wakes_is_told_that_it_was_fenced_and_comes_back_in_a_new_life(scene: Scene) -> None:
    scene.conductor.detector.watch("s2", scene.now + 10)
    scene.conductor.detector.watch("s3", scene.now + 10)
    ticks(scene, 0.2)
    (answer,) = scene.hello("s1", 1)
    assert isinstance(answer, Send) and isinstance(answer.message, messages.Refused)
    assert answer.message.fenced and answer.last
    assert kinds(scene.hello("s1", 2))[0] == "Send Welcome"
    assert scene.conductor.servers["s1"].up and scene.owners()[0] == "s1"


def test_slots_with_connections_stay_with_who_serves_them_when_the_owner_returns(scene: Scene) -> None:
    table = FlowTable()
    table.apply(commits(scene.conductor.switch_connected(scene.ports()))[0].messages)
    scene.store("s1", 40_000)
    for actions in (scene.end("s1"), scene.commit(1), scene.hello("s1", 2)):
        for commit in commits(actions):
            table.apply(commit.messages)
    assert (passing(table, 40_000), passing(table, 40_006)) == ([2], [1])
    assert (scene.owners()[0], scene.owners()[3]) == ("s2", "s1")


def test_a_server_that_restarted_unnoticed_is_taken_over_before_it_is_welcome(scene: Scene) -> None:
    scene.store("s1", 40_000)
    actions = scene.hello("s1", 2)
    order = kinds(actions)
    assert order.index("Send Refused") < order.index("Send Welcome")
    (takeover,) = scene.conductor.history.all()
    assert (takeover.cause, takeover.heir, takeover.connections) == ("restarted unnoticed", "s2", 1)
    assert scene.conductor.servers["s1"].up
    assert said(scene.commit(1), "s2", messages.Resume)


def test_the_same_life_says_hello_again_without_a_takeover(scene: Scene) -> None:
    assert kinds(scene.hello("s1"))[0] == "Send Welcome"
    assert scene.conductor.history.all() == []


def test_a_port_that_goes_down_fails_its_server(scene: Scene) -> None:
    scene.conductor.port_changed("s1-eth0", 1, False, scene.now)
    (takeover,) = scene.conductor.history.all()
    assert (takeover.source, takeover.cause, takeover.heir) == ("s1", "link down", "s2")
    assert scene.conductor.port_changed("c1-eth0", 9, False, scene.now) == []


def test_a_server_whose_port_is_gone_when_the_switch_comes_back_is_failed(scene: Scene) -> None:
    scene.conductor.switch_connected(scene.ports("s1"))
    for name in ("s1", "s2", "s3"):
        scene.conductor.detector.watch(name, scene.now)
    ticks(scene, 2 * TICK)
    assert [(t.source, t.heir) for t in scene.conductor.history.all()] == [("s1", "s2")]


def test_a_backup_without_a_port_is_passed_over(scene: Scene) -> None:
    scene.conductor.port_changed("s2-eth0", 2, False, scene.now)
    scene.end("s1")
    assert scene.conductor.history.all()[-1].heir == "s3"


@pytest.mark.parametrize(("server", "incarnation", "takeovers"), [("s1", 1, 1), ("s1", 2, 0), ("s9", 1, 0)])
def test_a_sentinel_is_believed_about_the_present_life_only(
    scene: Scene, server: str, incarnation: int, takeovers: int
) -> None:
    scene.conductor.died(messages.Died(server, incarnation), scene.now)
    assert len(scene.conductor.history.all()) == takeovers


# --- the switch ---
def test_a_takeover_while_the_switch_is_away_goes_on_when_it_returns(scene: Scene) -> None:
    scene.store("s1", 40_000)
    scene.end("s1")
    commit = commits(scene.conductor.switch_connected(scene.ports()))[-1]
    assert commit.takeovers == (1,)
    table = FlowTable()
    table.apply(commit.messages)
    assert passing(table, 40_000) == [2]
    assert said(scene.commit(1), "s2", messages.Resume)
    assert commits(scene.conductor.switch_connected(scene.ports()))[-1].takeovers == ()


# --- the controller's own restart ---
def test_after_a_restart_agents_of_the_same_life_join_without_a_takeover(scene: Scene) -> None:
    scene.end("s1")
    scene.hello("s1", 2)
    again = scene.restarted()
    for name, incarnation in (("s1", 2), ("s2", 1), ("s3", 1)):
        assert kinds(again.hello(name, incarnation))[0] == "Send Welcome"
    assert again.owners() == scene.owners() and again.conductor.epoch == scene.conductor.epoch
    assert again.conductor.history.all() == []


def test_after_a_restart_an_absent_agent_is_failed_when_its_grace_is_over(scene: Scene) -> None:
    scene.store("s1", 40_000)
    again = scene.restarted().up("s2", "s3")
    start = again.now
    for name in ("s2", "s3"):
        again.conductor.detector.watch(name, start + 10)
    ticks(again, RECOVERY_GRACE - 2 * TICK)
    assert again.conductor.history.all() == []
    ticks(again, 3 * TICK)
    (takeover,) = again.conductor.history.all()
    assert (takeover.source, takeover.heir, takeover.connections) == ("s1", "s2", 1)
    assert backed_up(again.commit(takeover.number), "s3", "s2") == {40_000}


def test_numbers_and_epochs_go_on_after_a_restart(scene: Scene) -> None:
    scene.end("s1")
    epoch = scene.conductor.epoch
    again = scene.restarted().up("s2", "s3")
    again.end("s2")
    (takeover,) = again.conductor.history.all()
    assert takeover.number == 2 and takeover.epoch > epoch


def test_the_grace_lasts_until_the_switch_is_there(scene: Scene) -> None:
    scene.store("s1", 40_000)
    again = Scene(scene.configuration)
    again.conductor = conductor.Conductor(scene.configuration)
    again.conductor.recover(scene.conductor.saved().value, again.now)
    again.conductor.collector.load("s1", scenario.block("s1", 40_000))
    again.up("s2", "s3")
    for name in ("s2", "s3"):
        again.conductor.detector.watch(name, again.now + 10)
    ticks(again, RECOVERY_GRACE + TICK)
    again.conductor.switch_connected(again.ports())
    ticks(again, RECOVERY_GRACE + TICK)
    assert [(t.source, t.heir) for t in again.conductor.history.all()] == [("s1", "s2")]


def test_a_server_that_restarted_during_the_controllers_absence_has_its_heir_whoever_says_hello_first(
    scene: Scene,
) -> None:
    scene.store("s1", 40_000)
    again = scene.restarted()
    again.hello("s1", 2)
    again.up("s2", "s3")
    for name in ("s2", "s3"):
        again.conductor.detector.watch(name, again.now + 10)
    ticks(again, RECOVERY_GRACE + TICK)
    first = again.conductor.history.all()[0]
    assert first.source == "s1" and first.heir in ("s2", "s3")


def test_a_second_restart_within_the_grace_still_knows_who_was_up(scene: Scene) -> None:
    once = scene.restarted().up("s1")
    twice = once.restarted()
    assert kinds(twice.hello("s2", 1))[0] == "Send Welcome"


def test_a_takeover_that_waited_for_its_commit_goes_on_after_the_controllers_restart(scene: Scene) -> None:
    scene.store("s1", 40_000)
    scene.end("s1")
    again = scene.restarted()
    heard = [*again.hello("s2"), *again.hello("s3"), *again.conductor.switch_connected(again.ports())]
    for commit in commits(heard):
        for number in commit.takeovers:
            heard += again.commit(number)
    assert [resume.owner for resume in said(heard, "s2", messages.Resume)] == ["s1"]


@pytest.mark.parametrize("saved", [b"", b"\xc1", b"not what was saved", b"\x80"])
def test_what_was_saved_and_cannot_be_read_changes_nothing(saved: bytes) -> None:
    scene = Scene()
    scene.conductor.recover(saved, scene.now)
    assert scene.conductor.saved() == Scene().conductor.saved()


# --- backups ahead of failure ---
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
    actions = [*scene.hello("s1", 2), *scene.commit(1)]
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


def test_an_ended_connection_is_forgotten_here_and_at_the_backup(scene: Scene) -> None:
    scene.store("s1", 40_000)
    name = scenario.four_tuple(40_000).id
    gone, actions = scene.conductor.closed("s1", [name, "nobody's"])
    assert gone == [name] and len(scene.conductor.collector) == 0
    assert actions == [Send("s2", messages.Forget("s1", [name]))]


# --- the close gate ---
def close_seen(scene: Scene, in_port: int, client_port: int) -> list[conductor.Action]:
    return scene.conductor.close_seen(in_port, scenario.four_tuple(client_port), FRAME, scene.now)


def test_a_close_of_a_connection_that_nobody_knows_goes_on_at_once(scene: Scene) -> None:
    (action,) = close_seen(scene, 1, 40_000)
    assert isinstance(action, SendToSwitch)
    assert (action.message.data, action.message.in_port) == (FRAME, 1)


def test_a_close_of_a_known_connection_waits_for_its_servers_word(scene: Scene) -> None:
    scene.store("s1", 40_000)
    assert close_seen(scene, 1, 40_000) == []
    _, actions = scene.conductor.closed("s1", [scenario.four_tuple(40_000).id])
    assert [action.message.data for action in actions if isinstance(action, SendToSwitch)] == [FRAME]


def test_a_close_that_nobody_vouches_for_is_dropped_when_its_time_is_over(scene: Scene) -> None:
    scene.store("s1", 40_000)
    close_seen(scene, 1, 40_000)
    scene.conductor.tick(scene.now + HOLD_SECONDS)
    _, actions = scene.conductor.closed("s1", [scenario.four_tuple(40_000).id])
    assert not [action for action in actions if isinstance(action, SendToSwitch)]


def test_the_closes_of_a_dying_server_never_leave(scene: Scene) -> None:
    scene.store("s1", *S1_PORTS)
    close_seen(scene, 1, 40_000)
    actions = scene.end("s1")
    assert close_seen(scene, 1, 40_006) == [] and close_seen(scene, 1, 40_048) == []
    _, more = scene.conductor.closed("s2", [scenario.four_tuple(40_000).id])
    assert not [action for action in actions + more if isinstance(action, SendToSwitch)]
    assert len(scene.conductor.gate) == 0


def test_a_reset_of_the_heirs_kernel_before_it_has_the_connection_is_dropped(scene: Scene) -> None:
    scene.store("s1", 40_000)
    scene.end("s1")
    scene.commit(1)
    assert close_seen(scene, 2, 40_000) == [] and len(scene.conductor.gate) == 0
    assert scene.conductor.gate.counts["dropped"] == 1


def test_a_close_from_a_port_that_is_no_servers_is_dropped(scene: Scene) -> None:
    assert close_seen(scene, scenario.CLIENT_SWITCH_PORT, 40_000) == []
    assert scene.conductor.gate.counts["dropped"] == 1


def test_facts_are_kept_under_one_name(scene: Scene) -> None:
    kept = [action for action in scene.end("s1") if isinstance(action, Persist)]
    assert [action.name for action in kept] == ["conductor"]
    assert kept[0] == scene.conductor.saved(), "kept after everything that the failure changed"
