"""The controller's heart as dialogues: this event in, exactly these actions out. Time is an argument; the switch and
the agents are the test itself."""

from __future__ import annotations

import pytest

from controller import conductor, steering
from controller.actions import Announce, Commit, Drop, Persist, Send
from controller.conductor import RECOVERY_GRACE, UNHEARD
from controller.detector import TICK
from controller.takeover import Phase
from state import messages
from tests.unit import scenario
from tests.unit.flow_table import FlowTable
from tests.unit.scenario import Scene, backed_up, commits, four_tuple, kinds, passing, said, ticks

S1_PORTS = (40_000, 40_006)
"""Client ports whose slots (0 and 3 of 8) belong to s1 of three servers."""


@pytest.fixture
def scene() -> Scene:
    return Scene().up()


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
    assert isinstance(commit, Commit) and isinstance(refusal, Send)
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


def test_a_takeover_that_ends_with_its_heir_is_told_to_be_over(scene: Scene) -> None:
    scene.store("s1", *S1_PORTS)
    scene.end("s1")
    scene.commit(1)
    told = [a.body for a in scene.end("s2") if isinstance(a, Announce) and a.kind == "takeover"]
    assert [(body["id"], body["phase"]) for body in told] == [(1, "failed"), (2, "fencing")]


def test_a_report_of_anybody_but_the_heir_changes_nothing(scene: Scene) -> None:
    scene.store("s1", *S1_PORTS)
    scene.end("s1")
    scene.commit(1)
    scene.report("s3", 1, reset=[(40_000, "lie")])
    takeover = scene.conductor.history.get(1)
    assert takeover is not None and takeover.phase is Phase.RESUMING and not takeover.reset
    assert scene.conductor.collector.get(scenario.four_tuple(40_000).id) is not None


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
    scene.commit(1)
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


def test_the_bundle_of_a_return_is_made_later_and_of_what_was_decided_then(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of messages would hold the controller's loop up."""
    table = FlowTable()
    for actions in (scene.conductor.switch_connected(scene.ports()), scene.end("s1"), scene.commit(1)):
        for commit in commits(actions):
            table.apply(commit.messages)
    made: list[object] = []
    home = steering.home
    monkeypatch.setattr(steering, "home", lambda *given: made.append(given) or home(*given))
    (returned,) = commits(scene.hello("s1", 2))
    (failed,) = commits(scene.end("s1"))
    made.clear()
    table.apply(returned.messages)
    assert made and passing(table, 40_000) == [1]
    table.apply(failed.messages)
    assert passing(table, 40_000) == [2]


def test_a_server_that_restarted_unnoticed_is_taken_over_before_it_is_welcome(scene: Scene) -> None:
    scene.store("s1", 40_000)
    actions = scene.hello("s1", 2)
    (takeover,) = scene.conductor.history.all()
    assert (takeover.cause, takeover.heir, takeover.connections) == ("restarted unnoticed", "s2", 1)
    actions += [*scene.commit(1), *scene.hello("s1", 2)]  # an agent tries until it is welcome
    order = kinds(actions)
    assert order.index("Send Refused") < order.index("Send Welcome")
    assert scene.conductor.servers["s1"].up
    assert len(said(actions, "s2", messages.Resume)) == 1
    assert scene.conductor.history.all() == [takeover]


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


def test_whom_only_a_hung_servers_kernel_heard_is_dismissed_by_the_heir_and_counted(scene: Scene) -> None:
    known, unknown = 40_000, 40_002
    scene.store("s1", known)
    unheard = messages.Unheard("s1", 1, [four_tuple(known), four_tuple(unknown)])
    assert scene.conductor.unheard(unheard) == [], "it is up: it may still hear of them"
    scene.end("s1")
    owner = scene.conductor.ownership.server_for(four_tuple(unknown))
    assert owner is not None and owner != "s1"
    (dismiss,) = said(scene.conductor.unheard(unheard), owner, messages.Dismiss)
    assert dismiss.connections == [four_tuple(unknown)]
    (takeover,) = scene.conductor.history.all()
    assert (takeover.connections, takeover.reset) == (2, {UNHEARD: 1})
    assert scene.conductor.unheard(messages.Unheard("s1", 2, [four_tuple(unknown)])) == [], "another life"


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
    scene.commit(1)
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
    again.conductor.load("s1", scenario.block("s1", 40_000))
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


def test_connections_that_a_server_left_in_a_former_life_are_taken_up_after_the_controllers_restart(
    scene: Scene,
) -> None:
    scene.store("s1", 40_000)
    for name in ("s3", "s2", "s1"):
        scene.end(name)
    scene.hello("s1", 2)  # the controller dies before it has told s1 to resume
    again = scene.restarted()
    heard = again.hello("s1", 2)
    (takeover,) = again.conductor.history.all()
    assert (takeover.source, takeover.heir, takeover.connections) == ("s1", "s1", 1)
    assert backed_up(heard, "s1", "s1") == {40_000}
    assert said(again.commit(takeover.number), "s1", messages.Resume)


def test_a_backup_that_joins_again_gets_the_homes_of_a_server_that_died_before_it_joined(scene: Scene) -> None:
    """The controller restarts, s1 says hello and dies before any other has."""
    table = FlowTable()
    scene.store("s1", 40_000)
    again = scene.restarted()
    table.apply(commits(again.conductor.switch_connected(again.ports()))[0].messages)
    heard = [*again.hello("s1"), *again.end("s1"), *again.hello("s2")]
    for commit in commits(heard):
        table.apply(commit.messages)
        for number in commit.takeovers:
            heard += again.commit(number)
    assert passing(table, 40_000) == [2] and again.owners()[0] == "s2"
    assert [resume.owner for resume in said(heard, "s2", messages.Resume)] == ["s1"]
    assert again.restarted().owners()[0] == "s2", "and it is kept"


def test_homes_without_connections_find_an_owner_as_well(scene: Scene) -> None:
    again = scene.restarted()
    for actions in (again.hello("s1"), again.end("s1"), again.hello("s2")):
        assert actions
    assert again.owners()[0] == "s2"


def test_a_server_that_died_before_the_switch_came_is_taken_over_when_it_comes(scene: Scene) -> None:
    scene.store("s1", 40_000)
    again = Scene(scene.configuration)
    again.conductor = conductor.Conductor(scene.configuration)
    again.conductor.recover(scene.conductor.saved().value, again.now)
    again.conductor.load("s1", scenario.block("s1", 40_000))
    again.up()
    again.end("s1")
    table = FlowTable()
    heard = again.conductor.switch_connected(again.ports())
    for commit in commits(heard):
        table.apply(commit.messages)
    assert passing(table, 40_000) == [2]
    (takeover,) = again.conductor.history.all()
    assert takeover.heir == "s2" and backed_up(heard, "s2", "s1") == {40_000}
    assert commits(heard)[-1].takeovers == (takeover.number,) and Persist in map(type, heard)


def test_a_server_that_died_while_its_backups_port_was_down_is_taken_over_when_the_port_comes(scene: Scene) -> None:
    again = Scene(scene.configuration)
    again.conductor = conductor.Conductor(scene.configuration)
    again.conductor.recover(scene.conductor.saved().value, again.now)
    again.conductor.load("s1", scenario.block("s1", 40_000))
    again.up()
    again.conductor.switch_connected(again.ports("s2", "s3"))
    again.end("s1")
    heard = again.conductor.port_changed("s3-eth0", 3, True, again.now)
    (takeover,) = again.conductor.history.all()
    assert takeover.heir == "s3" and commits(heard)[0].takeovers == (takeover.number,)


def test_who_joins_again_and_is_no_backup_of_the_dead_inherits_nothing() -> None:
    """As if the controller had not restarted: it was up all the time then, too."""
    backups = {"s1": ["s2"], "s2": ["s1"], "s3": ["s1"]}
    scene = Scene(scenario.config(3, backups=backups)).up()
    scene.store("s1", 40_000)
    again = scene.restarted()
    for actions in (again.hello("s1"), again.end("s1"), again.hello("s3")):
        assert actions
    (takeover,) = again.conductor.history.all()
    assert takeover.phase is Phase.WAITING and again.owners()[0] == "s1"
    heard = again.hello("s2")
    assert takeover.heir == "s2" and again.owners()[0] == "s2" and backed_up(heard, "s2", "s1") == {40_000}


def test_a_new_life_is_not_welcome_while_its_heir_may_still_say_hello(scene: Scene) -> None:
    """The heir would be told to resume what lives in the new life as well."""
    scene.store("s1", 40_000)
    scene.end("s1")  # the controller dies before it has told s2 to resume
    again = scene.restarted()
    (answer,) = again.hello("s1", 2)
    assert isinstance(answer, Send) and isinstance(answer.message, messages.Refused) and not answer.message.fenced
    again.up("s2", "s3")
    assert kinds(again.hello("s1", 2))[0] == "Send Refused", "its fence is not up yet"
    again.commit(again.conductor.history.all()[0].number)
    assert kinds(again.hello("s1", 2))[0] == "Send Welcome"


def test_an_heir_is_no_backup_of_a_server_before_it_was_told_to_resume_what_that_left_before(scene: Scene) -> None:
    scene.store("s1", 40_000)
    scene.end("s1")
    scene.commit(1)
    scene.hello("s1", 2)
    again = scene.restarted()
    again.hello("s2")
    heard = again.hello("s1", 2)
    (takeover,) = again.conductor.history.all()
    assert again.conductor.servers["s1"].backup is None and not said(heard, "s2", messages.Synchronised)
    assert said(again.commit(takeover.number), "s2", messages.Synchronised) == [messages.Synchronised("s1")]


def test_a_slot_that_followed_a_connection_is_still_there_after_the_controllers_restart(scene: Scene) -> None:
    """s2 had accepted it just before its slot went back to s1."""
    actions = scene.store("s2", 40_000)
    assert [action for action in actions if isinstance(action, Persist)] == [scene.conductor.saved()]
    again = scene.restarted().up()
    assert again.owners()[0] == "s2" and again.conductor.history.all() == []


def test_checkpoints_that_move_no_slot_are_no_news_for_what_is_remembered(scene: Scene) -> None:
    assert Persist not in map(type, scene.store("s1", 40_000))


def present(scene: Scene, name: str, *client_ports: int, last: bool = True) -> None:
    named = messages.Present([scenario.four_tuple(port).id for port in client_ports], last)
    assert scene.conductor.received(name, named, scene.now) == []


def known(scene: Scene) -> set[int]:
    return {record.header.connection.destination_port for _, record in scene.conductor.collector.all()}


def test_what_ended_while_the_controller_was_away_is_forgotten_once_the_server_has_named_what_it_has(
    scene: Scene,
) -> None:
    scene.store("s1", *S1_PORTS, 40_012)
    scene.store("s2", 40_002)
    again = scene.restarted().up()
    again.store("s1", 40_000, serial=2)
    again.store("s1", 40_016)
    present(again, "s1", 40_000, last=False)
    assert ticks(again, TICK) == []
    present(again, "s1", 40_006)
    forgotten = ticks(again, TICK)
    assert [a.connections for a in forgotten if isinstance(a, Drop)] == [[scenario.four_tuple(40_012).id]]
    assert [forget.connections for forget in said(forgotten, "s2", messages.Forget)] == [
        [scenario.four_tuple(40_012).id]
    ]
    assert known(again) == {40_000, 40_002, 40_006, 40_016}, "what began since was stored, though not named"


def test_what_a_server_has_not_taken_up_yet_is_no_phantom(scene: Scene) -> None:
    scene.store("s1", 40_000)
    scene.end("s1")
    again = scene.restarted().up("s2", "s3")
    present(again, "s2")
    assert not [action for action in ticks(again, 2 * TICK) if isinstance(action, Drop)]
    assert known(again) == {40_000}


def test_a_server_that_dies_while_it_names_what_it_has_loses_nothing(scene: Scene) -> None:
    scene.store("s1", *S1_PORTS)
    again = scene.restarted().up()
    present(again, "s1", 40_000, last=False)
    again.end("s1")
    assert not [action for action in ticks(again, 2 * TICK) if isinstance(action, Drop)]
    assert known(again) == set(S1_PORTS)


def test_many_phantoms_are_forgotten_in_portions_and_a_new_connection_of_such_a_name_is_none(scene: Scene) -> None:
    ports = range(30_000, 30_000 + 16 * 200, 16)
    scene.store("s1", *ports)
    again = scene.restarted().up()
    present(again, "s1")
    first = [action for action in ticks(again, TICK) if isinstance(action, Drop)]
    assert [len(drop.connections) for drop in first] == [messages.PORTION_BLOCKS]
    again.store("s1", ports[-1], serial=2)
    ticks(again, 5 * TICK)
    assert known(again) == {ports[-1]}


@pytest.mark.parametrize("servers", [2, 4])
def test_lives_epochs_and_numbers_outlast_a_change_of_the_configuration(scene: Scene, servers: int) -> None:
    scene.end("s1")
    scene.commit(1)
    scene.store("s2", 40_002, epoch=2)
    again = scene.restarted(scenario.config(servers))
    assert again.conductor.epoch == scene.conductor.epoch
    (answer,) = again.hello("s1", 1)
    assert isinstance(answer, Send) and isinstance(answer.message, messages.Refused) and answer.message.fenced
    assert kinds(again.hello("s2"))[0] == "Send Welcome"
    assert again.owners()[0] == again.owners()[1] == "s2" and again.conductor.collector.count("s2") == 1
    again.up(*[f"s{number}" for number in range(3, servers + 1)])
    assert [takeover.source for takeover in again.conductor.history.all()] == []
    again.end("s2")
    assert again.conductor.history.all()[0].number == 2


def test_what_a_server_had_that_is_no_longer_in_the_configuration_goes_to_the_slots_owner(scene: Scene) -> None:
    scene.store("s3", 40_004)
    again = scene.restarted(scenario.config(2))
    owner = again.owners()[2]
    heard = again.hello(owner)
    (takeover,) = again.conductor.history.all()
    assert (takeover.source, takeover.heir, takeover.connections) == ("s3", owner, 1)
    assert backed_up(heard, owner, "s3") == {40_004}


def test_with_other_slots_a_connection_stays_where_it_lives(scene: Scene) -> None:
    scene.store("s2", 40_002)
    again = scene.restarted(scenario.config(3, slots=1)).up()
    assert again.owners() == {0: "s2"} and again.conductor.history.all() == []


def test_connections_of_a_vip_and_a_server_that_are_both_gone_wait_and_are_given_up(scene: Scene) -> None:
    scene.store("s3", 40_004)
    again = scene.restarted(scenario.config(2, vips=["10.0.0.101"]))
    again.now += conductor.WAIT_FOR_BACKUP + 1
    dropped = [action.connections for action in again.conductor.tick(again.now) if isinstance(action, Drop)]
    assert dropped == [[scenario.four_tuple(40_004).id]] and len(again.conductor.collector) == 0


def test_no_epoch_is_older_than_a_stored_checkpoints() -> None:
    scene = Scene()
    scene.conductor.load("s1", scenario.block("s1", 40_000, epoch=7))
    assert scene.conductor.epoch == 7


@pytest.mark.parametrize("saved", [b"", b"\xc1", b"not what was saved", b"\x80"])
def test_what_was_saved_and_cannot_be_read_changes_nothing(saved: bytes) -> None:
    scene = Scene()
    scene.conductor.recover(saved, scene.now)
    assert scene.conductor.saved() == Scene().conductor.saved()


def test_facts_are_kept_under_one_name(scene: Scene) -> None:
    kept = [action for action in scene.end("s1") if isinstance(action, Persist)]
    assert [action.name for action in kept] == ["conductor"]
    assert kept[0] == scene.conductor.saved(), "kept after everything that the failure changed"
