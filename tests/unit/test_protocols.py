"""A protocol is found by the name that the configuration gives it; what is wrong is said with line and path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import dataplane
from dataplane import ApplicationKind, CheckpointRefused
from dataplane.examples.ticker import TICKER, Ticker
from dataplane.http import HTTP
from dataplane.protocols import BUILT_IN, find, problem
from dataplane.stack import Registry
from state.configuration import PROTOCOLS, load
from state.errors import ConfigurationError, LocalError
from tests.unit.test_configuration import EXAMPLE

OWN = "dataplane.examples.ticker:TICKER"


def test_what_is_built_in_is_what_the_configuration_knows() -> None:
    assert find("http").name == HTTP.name
    assert set(BUILT_IN) <= set(PROTOCOLS)


def test_one_of_your_own_is_found_by_its_import_path() -> None:
    assert find(OWN) is TICKER
    assert problem(OWN) is None


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `theirs` that is on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return tmp_path / "theirs.py"


@pytest.mark.parametrize(
    ("source", "protocol", "sentence"),
    [
        ("", "theirs:KIND", "theirs has no KIND"),
        ("KIND = 5", "theirs:KIND", "theirs:KIND is of type int, not an ApplicationKind"),
        ("import nothing_of_that_name", "theirs:KIND", "theirs cannot be imported: ModuleNotFoundError: No module"),
        ("KIND =", "theirs:KIND", "theirs cannot be imported: SyntaxError: "),
        ("1 / 0", "theirs:KIND", "theirs cannot be imported: ZeroDivisionError: "),
        ("raise SystemExit(3)", "theirs:KIND", "theirs cannot be imported: SystemExit: 3"),
        ("", "no_such_module:KIND", "no_such_module cannot be imported: ModuleNotFoundError: "),
        (
            "from dataplane import ApplicationKind\nKIND = ApplicationKind('tcp', None, None)",
            "theirs:KIND",
            "theirs cannot be imported: LocalError: 'tcp' cannot be the name of a protocol",
        ),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line_and_its_path(
    module: Path, source: str, protocol: str, sentence: str
) -> None:
    module.write_text(source)
    file = module.with_name("takeover.yaml")
    file.write_text(EXAMPLE.replace("http\n      - port", f'"{protocol}"\n      - port'))
    with pytest.raises(ConfigurationError) as caught:
        load(file, problem)
    (found,) = caught.value.problems
    assert found.startswith(f"{file}:13: vips[0].services[0].protocol: {sentence}")


def test_the_controller_need_not_have_the_protocol(module: Path) -> None:
    file = module.with_name("takeover.yaml")
    file.write_text(EXAMPLE.replace("http\n      - port", "no_such_module:KIND\n      - port"))
    assert load(file).vips[0].services[0].protocol == "no_such_module:KIND"


@pytest.mark.parametrize(
    "protocol", ["gopher", "a.b", ":KIND", "theirs:", "theirs:KIND.more", "a..b:K", "a b:K", "../a:K"]
)
def test_what_is_no_import_path_is_refused_by_its_form(module: Path, protocol: str) -> None:
    file = module.with_name("takeover.yaml")
    file.write_text(EXAMPLE.replace("http\n      - port", f'"{protocol}"\n      - port'))
    with pytest.raises(ConfigurationError) as caught:
        load(file, problem)
    (found,) = caught.value.problems
    assert found.startswith(
        f"{file}:13: vips[0].services[0].protocol: {protocol!r} is not a protocol; known are http, ftp, rtsp;"
    )


def test_a_name_without_a_module_is_no_protocol() -> None:
    with pytest.raises(LocalError, match="gopher is no protocol"):
        find("gopher")


# --- kinds ---
@pytest.mark.parametrize("name", ["", "x" * 65, "tcp", "stream"])
def test_a_kind_has_a_name_that_no_layer_has(name: str) -> None:
    with pytest.raises(LocalError):
        ApplicationKind(name, Ticker, Ticker.unready)


def test_two_kinds_of_one_name_are_refused_and_one_may_serve_two_ports() -> None:
    registry = Registry()
    registry.add(TICKER)
    registry.add(TICKER)
    with pytest.raises(LocalError, match="two different protocols are named ticker/1"):
        registry.add(ApplicationKind("ticker/1", Ticker, Ticker.unready))
    assert registry.kind("ticker/1") is TICKER
    with pytest.raises(CheckpointRefused):
        registry.kind("http/1.1")


# --- the public face ---
def test_what_an_author_needs_is_imported_from_one_place_and_stands_in_its_table() -> None:
    assert dataplane.__doc__ is not None
    for name in dataplane.__all__:
        assert getattr(dataplane, name).__doc__, name
        assert f"`{name}`" in dataplane.__doc__
    for method in ("opened", "received", "input_ended", "drained", "checkpoint", "ready", "ended"):
        assert getattr(dataplane.Application, method).__doc__
    for name, member in vars(dataplane.Stream).items():
        assert name.startswith("_") or name == "connection" or member.__doc__, name
