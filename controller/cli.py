"""The `takeover` command. Exit status: 0 done, 1 failed, 2 used wrongly (a wrong configuration is wrong use)."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from state.errors import ConfigurationError, TakeoverError

FAILED, USAGE = 1, 2
_PAGE = 500


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if chosen.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        status = chosen.run(chosen)
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"takeover: {problem}", file=sys.stderr)
        sys.exit(USAGE)
    except TakeoverError as error:
        print(f"takeover: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="takeover", description="A live TCP connection survives its server's death.")
    parser.add_argument("--verbose", "-v", action="store_true", help="log what happens")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    from topologies import commands as lab

    lab.add(commands)
    controller = commands.add_parser("controller", help="run the Ryu controller")
    controller.add_argument("--config", required=True, metavar="FILE")
    controller.set_defaults(run=_controller)
    agent = commands.add_parser("agent", help="run a server's agent")
    agent.add_argument("--config", required=True, metavar="FILE")
    agent.add_argument("--name", required=True, help="the server's name in the configuration")
    agent.set_defaults(run=_agent)
    check = commands.add_parser("check", help="is a configuration valid? every error with its place")
    check.add_argument("file", metavar="FILE")
    check.set_defaults(run=_check)
    for name, help_ in (
        ("status", "the system at a glance"),
        ("servers", "servers and their state"),
        ("connections", "connections and their checkpoints"),
        ("takeovers", "what was taken over, and what became of it"),
    ):
        show = commands.add_parser(name, help=help_)
        show.add_argument("--api", default="http://127.0.0.1:8080", metavar="URL")
        show.add_argument("--token-file", metavar="FILE", help="else the API's token is TAKEOVER_TOKEN, if that is set")
        show.add_argument("--json", action="store_true", help="the API's answer as it is")
        if name == "connections":
            show.add_argument("--server", help="only this server's")
        show.set_defaults(run=_SHOW[name])
    return parser


# --- processes ---
def _controller(chosen: argparse.Namespace) -> int:
    from state import configuration

    config = configuration.load(chosen.config)
    from controller import process

    process.run(config)
    return 0


def _agent(chosen: argparse.Namespace) -> int:
    from dataplane import protocols
    from state import configuration

    config = configuration.load(chosen.config, protocols.problem)
    server = config.server(chosen.name)
    if server is None:
        known = ", ".join(s.name for s in config.servers)
        raise ConfigurationError([f"{chosen.config}: servers: no server is named {chosen.name}; known are {known}"])
    from dataplane.agent import Agent
    from dataplane.event_loop import FairLoop

    with asyncio.Runner(loop_factory=FairLoop) as runner:
        runner.run(Agent(config, server).run())
    return 0


def _check(chosen: argparse.Namespace) -> int:
    from dataplane import protocols
    from state import configuration

    config = configuration.load(chosen.file, protocols.problem)
    print(f"{chosen.file}: valid: {len(config.vips)} VIPs, {len(config.servers)} servers")
    return 0


# --- tables from the API ---
class ApiFailed(TakeoverError):
    """The API could not be reached, or refused."""


def _token(chosen: argparse.Namespace) -> str | None:
    """From the file that was named, if one was. Raises `LocalError`."""
    if chosen.token_file is None:
        return None
    from state import token

    return token.read(chosen.token_file)


def _token_of_environment() -> str | None:
    given = os.environ.get("TAKEOVER_TOKEN")
    if not given:
        return None
    from state import token

    return token.checked(given, "TAKEOVER_TOKEN")


def fetch(api: str, path: str, *, token: str | None = None, **query: str) -> Any:
    """One answer of the API, to this token or the environment's. Raises `ApiFailed` with the API's own sentence, and
    `LocalError` for a token that is none."""
    url = f"{api.rstrip('/')}{path}"
    if query:
        url += "?" + urllib.parse.urlencode(query)
    try:
        request = urllib.request.Request(url)
    except ValueError as error:
        raise ApiFailed(f"the API at {api} does not answer: {error}") from None
    token = token or _token_of_environment()
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            answer = json.load(error)
            if path == "/healthz":
                return answer
            detail = answer["detail"]
        except (ValueError, KeyError, TypeError):
            detail = error.reason
        raise ApiFailed(f"{path}: {detail}") from None
    except (OSError, ValueError) as error:
        raise ApiFailed(f"the API at {api} does not answer: {getattr(error, 'reason', error)}") from None


def fetch_all(api: str, path: str, *, token: str | None = None, **query: str) -> list[dict[str, Any]]:
    """All pages of a list."""
    items: list[dict[str, Any]] = []
    cursor: str | None = "0"
    while cursor is not None:
        page = fetch(api, path, token=token, limit=str(_PAGE), cursor=cursor, **query)
        items += page["items"]
        cursor = page["next"]
    return items


def _print(chosen: argparse.Namespace, items: list[dict[str, Any]], rows: list[dict[str, Any]]) -> int:
    if chosen.json:
        print(json.dumps({"items": items, "next": None}, indent=2))
    elif rows:
        print(tabulate(rows, headers="keys"))
    else:
        print("none")
    return 0


def _servers(chosen: argparse.Namespace) -> int:
    items = fetch(chosen.api, "/v1/servers", token=_token(chosen))["items"]
    columns = ("name", "state", "epoch", "connections", "slots", "load", "backup", "heartbeat_age_ms")
    return _print(chosen, items, [{column: item[column] for column in columns} for item in items])


def _connections(chosen: argparse.Namespace) -> int:
    query = {"server": chosen.server} if chosen.server else {}
    items = fetch_all(chosen.api, "/v1/connections", token=_token(chosen), **query)
    return _print(chosen, items, _with_parts(items))


def _with_parts(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each connection. Those of a bundle stand below its control connection, in the order of its checkpoint,
    also what has no connection of its own: UDP, and ports where the client is awaited."""
    known = {item["id"]: item for item in items}
    shown: set[str] = set()
    rows: list[dict[str, Any]] = []
    for item in items:
        bundle = item["bundle"] or {}
        if bundle.get("role") not in (None, "control") and bundle["id"] in known:
            continue
        rows.append(_row(item, bundle.get("role") or ""))
        shown.add(item["id"])
        for part in bundle.get("parts") or ():
            name = f"- {part['role']} {part['transport']}"
            if part["connection"] in known:
                rows.append(_row(known[part["connection"]], name))
                shown.add(part["connection"])
            else:
                rows.append(_row_of_part(item, part, name))
    # One that its control connection's checkpoint does not name yet, or no more.
    rows += [_row(item, item["bundle"]["role"]) for item in items if item["id"] not in shown]
    return rows


def _row(item: dict[str, Any], part: str) -> dict[str, Any]:
    from state.configuration import Address

    block = item["checkpoint"]
    return {
        "client": str(Address(block["destination_address"], block["destination_port"])),
        "vip": str(Address(block["source_address"], block["source_port"])),
        "part": part,
        "server": item["server"],
        "state": item["state"],
        "protocol": block["protocol"],
        "object": _printable(block["object"]),
        "first byte": block["object_first"],
        "snd_nxt": block["snd_nxt"],
        "rcv_nxt": block["rcv_nxt"],
        "epoch": block["epoch"],
    }


def _row_of_part(control: dict[str, Any], part: dict[str, Any], name: str) -> dict[str, Any]:
    from state.configuration import Address

    remote = part["remote_address"]
    return {
        "client": str(Address(remote, part["remote_port"])) if remote else "awaited",
        "vip": str(Address(control["checkpoint"]["source_address"], part["local_port"])),
        "part": name,
        "server": control["server"],
        "state": control["state"],
    }


def _printable(name: str | None) -> str | None:
    """A name that a client chose must not speak to the terminal."""
    return name and "".join(character if character.isprintable() else "?" for character in name)


def _takeovers(chosen: argparse.Namespace) -> int:
    items = fetch_all(chosen.api, "/v1/takeovers", token=_token(chosen))
    rows = []
    for item in items:
        resets = ", ".join(f"{count} {reason}" for reason, count in item["reset"].items())
        rows.append(
            {
                "id": item["id"],
                "cause": item["cause"],
                "from": item["from"],
                "to": item["to"],
                "epoch": item["epoch"],
                "state": item["state"],
                "resumed": item["resumed"],
                "reset": resets or 0,
                "waiting": item["waiting"],
                **{f"{phase} ms": value for phase, value in item["phases_ms"].items()},
            }
        )
    return _print(chosen, items, rows)


def _status(chosen: argparse.Namespace) -> int:
    token = _token(chosen)
    health = fetch(chosen.api, "/healthz", token=token)
    servers = fetch(chosen.api, "/v1/servers", token=token)["items"]
    vips = fetch(chosen.api, "/v1/vips", token=token)["items"]
    takeovers = fetch_all(chosen.api, "/v1/takeovers", token=token)
    summary = {
        "status": health["status"],
        "servers": {server["name"]: server["state"] for server in servers},
        "connections": sum(server["connections"] for server in servers),
        "vips": {vip["address"]: vip["owners"] for vip in vips},
        "takeovers": len(takeovers),
    }
    if chosen.json:
        print(json.dumps(summary, indent=2))
        return 0
    print(f"switch       {summary['status']}")
    print("servers      " + ", ".join(f"{name} {state}" for name, state in summary["servers"].items()))
    for address, owners in summary["vips"].items():
        print(f"vip          {address}: " + ", ".join(f"{owner} {count} slots" for owner, count in owners.items()))
    print(f"connections  {summary['connections']}")
    print(f"takeovers    {summary['takeovers']}")
    return 0


_SHOW = {"status": _status, "servers": _servers, "connections": _connections, "takeovers": _takeovers}

if __name__ == "__main__":
    main()
