"""Who is answered by the API: this machine, and who has the token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from falcon import testing

from controller import api
from controller.runtime import Runtime
from state.store import EmbeddedStore
from tests.unit import scenario

TOKEN = "s3cret-Token=="


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    store = EmbeddedStore(tmp_path / "state.db")
    yield Runtime(scenario.config(2), store)
    store.close()


def ask(
    runtime: Runtime, peer: str, authorization: str | None = None, path: str = "/v1/servers", token: str | None = TOKEN
) -> testing.Result:
    headers = {} if authorization is None else {"Authorization": authorization}
    client = testing.TestClient(api.application(runtime, token))
    return client.simulate_get(path, headers=headers, remote_addr=peer)


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_this_machine_needs_no_token(runtime: Runtime, peer: str) -> None:
    assert ask(runtime, peer).status_code == 200
    assert ask(runtime, peer, token=None).status_code == 200


@pytest.mark.parametrize("peer", ["10.0.0.1", "fd00::1", "::ffff:10.0.0.1", "0.0.0.0", "unknown"])
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer \u00e9"],
)
def test_another_machine_without_the_token_is_told_so(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, peer: str, authorization: str | None
) -> None:
    answer = ask(runtime, peer, authorization)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == 401 and "Bearer" in answer.json["detail"]
    assert "wrong" not in answer.text + caplog.text and TOKEN not in answer.text + caplog.text


@pytest.mark.parametrize("path", ["/v1/servers", "/v1/events", "/healthz", "/metrics", "/openapi.json", "/nothing"])
def test_nothing_is_told_without_the_token(runtime: Runtime, path: str) -> None:
    assert ask(runtime, "10.0.0.1", path=path).status_code == 401


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer  {TOKEN}"])
def test_another_machine_with_the_token_is_answered(runtime: Runtime, authorization: str) -> None:
    assert ask(runtime, "10.0.0.1", authorization).status_code == 200


@pytest.mark.parametrize("authorization", [None, "Bearer ", "Bearer None"])
def test_without_a_token_nobody_else_is_answered(runtime: Runtime, authorization: str | None) -> None:
    assert ask(runtime, "10.0.0.1", authorization, token=None).status_code == 401
