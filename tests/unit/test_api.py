"""The REST API over a real runtime and a real embedded store; the switch is a simulated table, agents are the far ends
of socket pairs. Nothing listens and no green thread runs."""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import eventlet
import falcon
import pytest
from eventlet.greenio import GreenSocket
from falcon import inspect, testing
from prometheus_client.parser import text_string_to_metric_families

from controller import api
from controller.agents import AgentLink
from controller.runtime import Runtime
from state import messages
from state.store import EmbeddedStore
from tests.unit import scenario
from tests.unit.flow_table import TableSwitch

PROBLEM = "application/problem+json"


class Agent:
    """A server's agent at the far end of a socket pair."""

    def __init__(self, runtime: Runtime, name: str, incarnation: int = 1) -> None:
        ours, self._far = socket.socketpair()
        self._far.setblocking(False)
        self._runtime, self.name, self.incarnation = runtime, name, incarnation
        self.link = AgentLink(GreenSocket(ours), "test")
        self._ours = ours
        runtime.agent_hello(self.link, scenario.hello(name, incarnation))

    def say(self, *said: Any) -> None:
        self._runtime.agent_said(self.link, list(said))

    def store(self, *client_ports: int, epoch: int = 1) -> None:
        blocks = [scenario.block(self.name, p, incarnation=self.incarnation, epoch=epoch) for p in client_ports]
        self.say(messages.Store(1, blocks))

    def heard(self) -> list[messages.Message]:
        return list(messages.FrameReader(from_agent=False).feed(self._far.recv(1 << 20)))

    def end(self) -> None:
        self.link.close()
        self._runtime.agent_gone(self.link)

    def close(self) -> None:
        self._far.close()
        self._ours.close()


class System:
    """A controller with three servers, s1 with three connections, and its API."""

    def __init__(self, path: Path) -> None:
        self.path, self.agents = path, []
        self._start()
        self.switch = TableSwitch()
        ports = {server.port: number for number, server in enumerate(self.runtime.configuration.servers, 1)}
        self.runtime.switch_connected(self.switch, ports)
        self.s1, self.s2, self.s3 = (self.agent(name) for name in ("s1", "s2", "s3"))
        self.s1.store(40_000, 40_006, 40_016)

    def _start(self) -> None:
        self.store = EmbeddedStore(self.path)
        self.runtime = Runtime(scenario.config(3), self.store)
        self.client = testing.TestClient(api.application(self.runtime))

    def agent(self, name: str, incarnation: int = 1) -> Agent:
        self.agents.append(Agent(self.runtime, name, incarnation))
        return self.agents[-1]

    def get(self, path: str, **options: Any) -> testing.Result:
        return self.client.simulate_get(path, **options)

    def restart(self) -> None:
        """The controller's process ends and another begins on the same store."""
        self.store.close()
        self._start()

    def close(self) -> None:
        for agent in self.agents:
            agent.close()
        self.store.close()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path / "state.db")
    yield system
    system.close()


def take_over(system: System) -> None:
    """s1 dies; s2 resumes one of its connections and has to reset two."""
    system.s1.end()
    fates = [(scenario.four_tuple(port).id, "no answer") for port in (40_006, 40_016)]
    resumed = scenario.four_tuple(40_000).id
    compared = [messages.Comparison(resumed, "http/1.1", "resumed", 7, 12, 9, "/film.bin", 2, 7)]
    report = messages.Resumed(1, [resumed], fates, 0, 700, 900, 60, compared)
    system.s2.say(report)


# --- lists ---
@pytest.mark.parametrize("path", ["/v1/servers", "/v1/vips", "/v1/connections", "/v1/bundles", "/v1/takeovers"])
def test_every_list_is_items_and_next(system: System, path: str) -> None:
    answer = system.get(path)
    assert answer.status_code == 200 and set(answer.json) == {"items", "next"}
    assert isinstance(answer.json["items"], list) and answer.json["next"] is None


def test_pages_follow_each_other_until_everything_was_seen_once(system: System) -> None:
    system.s1.store(*range(41_000, 41_020, 2))
    seen, cursor, pages = [], "0", 0
    while cursor is not None:
        page = system.get("/v1/connections", params={"limit": 4, "cursor": cursor}).json
        assert len(page["items"]) <= 4
        seen += [item["id"] for item in page["items"]]
        cursor, pages = page["next"], pages + 1
    assert pages == 4 and len(seen) == len(set(seen)) == 13


def test_a_cursor_beyond_the_end_is_an_empty_last_page(system: System) -> None:
    assert system.get("/v1/connections?cursor=1000").json == {"items": [], "next": None}


def test_a_server_shows_what_the_contract_fixes(system: System) -> None:
    one = system.get("/v1/servers/s1").json
    assert {"name", "state", "epoch", "connections", "slots", "load", "heartbeat_age_ms"} <= set(one)
    assert (one["name"], one["state"], one["connections"], one["backup"]) == ("s1", "up", 3, "s2")
    assert sum(server["slots"] for server in system.get("/v1/servers").json["items"]) == 8
    system.s1.end()
    one = system.get("/v1/servers/s1").json
    assert (one["state"], one["connections"], one["slots"]) == ("failed", 0, 0)


def test_a_vip_shows_who_owns_its_slots(system: System) -> None:
    (vip,) = system.get("/v1/vips").json["items"]
    assert (vip["address"], vip["slots"], vip["owners"]) == (scenario.VIP, 8, {"s1": 3, "s2": 3, "s3": 2})
    system.s1.end()
    assert system.get("/v1/vips").json["items"][0]["owners"] == {"s2": 6, "s3": 2}


def test_connections_are_chosen_by_server_and_by_state(system: System) -> None:
    system.s2.store(40_002)

    def count(**query: str) -> int:
        return len(system.get("/v1/connections", params=query).json["items"])

    assert (count(), count(server="s1"), count(server="s2"), count(server="s3")) == (4, 3, 1, 0)
    assert (count(state="established"), count(state="unready")) == (4, 0)
    system.s1.end()
    assert (count(server="s2", state="unready"), count(server="s2", state="established")) == (3, 1)


def test_a_connection_shows_its_checkpoint_field_by_field(system: System) -> None:
    name = scenario.four_tuple(40_000).id
    one = system.get(f"/v1/connections/{name}").json
    block = one["checkpoint"]
    assert (one["id"], one["server"], one["state"]) == (name, "s1", "established")
    first = (scenario.NEAR_WRAP + 1) & 0xFFFF_FFFF
    expected = {
        "server": "s1",
        "source_address": scenario.VIP,
        "source_port": 80,
        "destination_address": scenario.CLIENT,
        "destination_port": 40_000,
        "iss": scenario.NEAR_WRAP,
        "snd_una": first,
        "snd_nxt": (first + 500) & 0xFFFF_FFFF,
        "object": "/object.bin",
        "object_first": first,
        "sections": ["tcp", "stream"],
    }
    assert {field: block[field] for field in expected} == expected
    assert block["snd_nxt"] < block["snd_una"], "the numbers wrapped"


# --- takeovers ---
def test_a_takeover_shows_fates_by_reason_and_the_four_phases(system: System) -> None:
    take_over(system)
    (one,) = system.get("/v1/takeovers").json["items"]
    in_full = system.get(f"/v1/takeovers/{one['id']}").json
    assert in_full.pop("comparisons") == [
        {
            "connection": scenario.four_tuple(40_000).id,
            "protocol": "http/1.1",
            "outcome": "resumed",
            "snd_una": 7,
            "end": 12,
            "ack": 9,
            "object": "/film.bin",
            "offset": 2,
            "object_first": 7,
        }
    ]
    assert in_full == one
    assert (one["from"], one["to"], one["cause"], one["state"]) == ("s1", "s2", "process ended", "done")
    assert (one["connections"], one["resumed"], one["reset"], one["waiting"]) == (3, 1, {"no answer": 2}, 0)
    assert list(one["phases_ms"]) == ["detect", "fence", "prove", "resume"]
    assert all(length >= 0 for length in one["phases_ms"].values())
    assert one["epoch"] == system.get("/v1/servers/s1").json["epoch"]


def test_the_heir_was_told_to_resume_and_the_store_confirmed_every_checkpoint(system: System) -> None:
    assert messages.Stored(1) in system.s1.heard()
    take_over(system)
    heard = system.s2.heard()
    assert [type(message).__name__ for message in heard if isinstance(message, messages.Resume)] == ["Resume"]


def test_a_connection_that_was_reset_is_gone_and_stays_gone_after_a_restart(system: System) -> None:
    take_over(system)
    path = f"/v1/connections/{scenario.four_tuple(40_006).id}"
    assert system.get(path).status_code == 404
    system.restart()
    assert system.get(path).status_code == 404


def test_connections_are_known_after_a_restart_with_who_is_responsible(system: System) -> None:
    take_over(system)
    before = system.get(f"/v1/connections/{scenario.four_tuple(40_000).id}").json
    system.restart()
    after = system.get(f"/v1/connections/{scenario.four_tuple(40_000).id}").json
    assert before["checkpoint"].pop("received_at") is not None
    assert after["checkpoint"].pop("received_at") is None, "an earlier life of the controller received it"
    assert after == before
    assert before["server"] == "s2"


# --- what is wrong is said ---
def assert_problem(answer: testing.Result, status: int, *words: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)
    assert set(answer.json) == {"title", "status", "detail"} and answer.json["status"] == status
    assert answer.json["detail"] != answer.json["title"], "no sentence, only the title again"
    for word in words:
        assert word in answer.json["detail"]


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/v1/servers/s9", "s9"),
        ("/v1/connections/none", "none"),
        ("/v1/takeovers/99", "99"),
        ("/v1/takeovers/first", ""),
        ("/v1/nothing", ""),
        ("/", ""),
    ],
)
def test_what_does_not_exist_is_404_with_a_sentence(system: System, path: str, word: str) -> None:
    assert_problem(system.get(path), 404, word)


@pytest.mark.parametrize("path", ["/v1/servers", "/v1/connections/x", "/healthz"])
def test_what_cannot_be_done_is_405_with_a_sentence_and_what_can(system: System, path: str) -> None:
    answer = system.client.simulate_delete(path)
    assert "GET" in answer.headers["allow"]
    assert_problem(answer, 405)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limit=0", ("limit", "500")),
        ("limit=501", ("limit", "500")),
        ("limit=-1", ("limit",)),
        ("limit=many", ("limit", "many")),
        ("limit=%C2%B2", ("limit",)),
        ("limit=" + "9" * 5000, ("limit",)),
        ("cursor=x", ("cursor", "x")),
        ("cursor=1.5", ("cursor",)),
        ("server=s9", ("s9",)),
        ("state=well", ("established", "unready")),
    ],
    ids=lambda value: value[:16] if isinstance(value, str) else "",
)
def test_a_wrong_query_is_422_with_what_would_be_right(system: System, query: str, words: tuple[str, ...]) -> None:
    assert_problem(system.get(f"/v1/connections?{query}"), 422, *words)
    if query.startswith("limit"):
        for collection in ("servers", "vips", "takeovers", "bundles"):
            assert_problem(system.get(f"/v1/{collection}?{query}"), 422, *words)


# --- health, metrics, events ---
def test_health_is_503_without_a_switch(system: System) -> None:
    assert (system.get("/healthz").status_code, system.get("/healthz").json["servers_up"]) == (200, 3)
    system.runtime.switch_disconnected(system.switch)
    answer = system.get("/healthz")
    assert answer.status_code == 503 and "switch" in answer.json["status"]


def test_metrics_parse_have_the_prefix_and_name_no_address(system: System) -> None:
    take_over(system)
    system.s2.say(messages.Store(2, [b"damaged"]))
    answer = system.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert answer.headers["content-type"].startswith("text/plain")
    assert families and all(name.startswith("takeover_") for name in families)
    labels = [value for family in families.values() for sample in family.samples for value in sample.labels.values()]
    assert not [value for value in labels if re.search(r"\d+\.\d+\.\d+|[0-9a-f]{2}:[0-9a-f]{2}", value)]

    def samples(name: str) -> dict[tuple[str, ...], float]:
        return {tuple(sample.labels.values()): sample.value for sample in families[name].samples}

    assert samples("takeover_server_up") == {("s1",): 0, ("s2",): 1, ("s3",): 1}
    assert samples("takeover_connections") == {("s1",): 0, ("s2",): 1, ("s3",): 0}
    assert samples("takeover_takeovers") == {("process ended",): 1}
    assert samples("takeover_moved_connections") == {("resumed",): 1, ("reset: no answer",): 2}
    assert samples("takeover_checkpoints") == {(): 3}
    assert samples("takeover_checkpoints_refused") == {("length",): 1}
    (told,) = [message for message in system.s2.heard() if isinstance(message, messages.Stored) and message.number == 2]
    assert [sentence.split(":")[1] for sentence in told.refused] == [" length"], "its sender hears of it"


def test_counters_end_in_total_and_times_in_seconds(system: System) -> None:
    take_over(system)
    for family in text_string_to_metric_families(system.get("/metrics").text):
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
        if family.name.startswith(("takeover_heartbeat_age", "takeover_loop_lag")):
            assert family.name.endswith("_seconds")


def events(system: System, last: str) -> list[str]:
    """What the event stream says at once to a client that continues after `last`."""
    environ = testing.create_environ("/v1/events", headers={"Last-Event-ID": last})
    start = testing.StartResponseMock()
    stream = api.application(system.runtime)(environ, start)
    assert start.status == falcon.HTTP_200 and start.headers_dict["content-type"] == "text/event-stream"
    wanted = 1 + len([event for event in system.runtime.events if event[0] > int(last)])
    return [part.decode() for part in itertools.islice(stream, wanted)]


def test_the_event_stream_continues_where_a_client_stopped(system: System) -> None:
    take_over(system)
    everything = events(system, "0")[1:]
    numbers = [int(re.match(r"id: (\d+)\n", part)[1]) for part in everything]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) > 4
    assert all(re.fullmatch(r"id: \d+\nevent: \w+\ndata: \{.*\}\n\n", part) for part in everything)
    assert events(system, str(numbers[2]))[1:] == everything[3:]
    assert any('"phase": "done"' in part for part in everything)


def test_a_client_that_comes_back_after_the_controllers_restart_hears_all_of_its_new_life(system: System) -> None:
    last = system.runtime.event_number
    system.restart()
    for name in ("s1", "s2", "s3"):
        system.agent(name)
    everything = events(system, "0")
    assert len(everything) == 4 and events(system, str(last)) == everything
    ahead = system.runtime.event_number + 57
    start = testing.StartResponseMock()
    environ = testing.create_environ("/v1/events", headers={"Last-Event-ID": str(ahead)})
    stream = api.application(system.runtime)(environ, start)
    assert [part.decode() for part in itertools.islice(stream, len(everything))] == everything, "a clock set back"


@pytest.mark.parametrize("last", ["yesterday", "-1", "\u00b2", "9" * 5000])
def test_an_event_number_that_is_none_begins_with_what_comes_next(system: System, last: str) -> None:
    environ = testing.create_environ("/v1/events", headers={"Last-Event-ID": last})
    start = testing.StartResponseMock()
    stream = api.application(system.runtime)(environ, start)
    assert start.status == falcon.HTTP_200
    assert next(iter(stream)).startswith(b":")


# --- the description ---
def test_the_description_lists_exactly_the_routes_that_exist(system: System) -> None:
    described = system.get("/openapi.json").json
    assert described["openapi"].startswith("3.")

    def shape(path: str) -> str:
        return re.sub(r"\{[^}]*\}", "{}", path)

    application = api.application(system.runtime)
    exist = {
        (shape(route.path), method.method.lower())
        for route in inspect.inspect_app(application).routes
        for method in route.methods
        if not method.internal
    }
    methods = {"get", "post", "put", "patch", "delete"}
    listed = {(shape(path), verb) for path, item in described["paths"].items() for verb in item if verb in methods}
    assert listed - {("/openapi.json", "get")} == exist - {("/openapi.json", "get")}


# --- the switch ---
def test_a_takeover_goes_on_after_the_switch_refused_its_bundle(system: System) -> None:
    """What was decided is said anew, whole, until the switch takes it; the heir begins only then."""
    system.switch.refusals = 2
    system.s2.heard()
    system.s1.end()
    assert system.get("/v1/takeovers").json["items"][0]["state"] == "fencing"
    with eventlet.Timeout(5):
        while system.get("/v1/takeovers").json["items"][0]["state"] == "fencing":
            eventlet.sleep(0.01)
    assert system.switch.refusals == 0
    assert any(isinstance(message, messages.Resume) for message in system.s2.heard())
