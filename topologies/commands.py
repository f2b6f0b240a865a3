"""`takeover lab up|exec|fail|heal|status|down`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import Any

from tabulate import tabulate

from topologies.record import MOST_HOSTS, LabError, Record

HOWS = ("kill", "hang", "power", "link", "stop")


def add(commands: Any) -> None:
    """Register the commands below `takeover lab`."""
    lab = commands.add_parser("lab", help="a lab on this machine: servers, clients, switch, controller")
    actions = lab.add_subparsers(required=True, metavar="ACTION")
    up = actions.add_parser("up", help="make the lab; returns when it is ready")
    up.add_argument("--servers", type=_hosts, default=2)
    up.add_argument("--clients", type=_hosts, default=1)
    up.add_argument("--config", metavar="FILE", help="a configuration of your own instead of the lab's")
    up.add_argument("--docroot", metavar="DIR", help="serve these files instead of the lab's")
    up.add_argument(
        "--service",
        type=_service,
        action="append",
        default=[],
        metavar="PORT=PROTOCOL",
        help="serve this too, for example 7000=mypackage.module:KIND; may be repeated",
    )
    up.add_argument("--state", default="embedded", help="where checkpoints are kept: embedded")
    up.set_defaults(run=_up)
    execute = actions.add_parser("exec", help="run a command in a host", usage="takeover lab exec HOST -- COMMAND...")
    execute.add_argument("host")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    execute.set_defaults(run=_exec)
    fail = actions.add_parser("fail", help="make a server or the controller fail")
    fail.add_argument("name")
    fail.add_argument("--how", choices=HOWS, default="kill")
    fail.set_defaults(run=_fail)
    heal = actions.add_parser("heal", help="undo a failure")
    heal.add_argument("name")
    heal.set_defaults(run=_heal)
    status = actions.add_parser("status", help="what runs")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)
    down = actions.add_parser("down", help="remove the lab, whatever is left of it")
    down.add_argument("--force", action="store_true", help="also a lab that a running program holds")
    down.set_defaults(run=_down)


def _hosts(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_HOSTS:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {MOST_HOSTS}")
    return int(text)


def _service(text: str) -> tuple[str, str]:
    port, _, protocol = text.partition("=")
    if not port.isdecimal() or not 1 <= int(port) <= 65535 or not protocol:
        raise argparse.ArgumentTypeError(f"{text} is not PORT=PROTOCOL with a port from 1 to 65535")
    return port, protocol


def _up(chosen: argparse.Namespace) -> int:
    from topologies import holder

    absolute = {name: os.path.abspath(path) for name in ("config", "docroot") if (path := getattr(chosen, name))}
    services = dict(chosen.service)
    options = {"servers": chosen.servers, "clients": chosen.clients, "state": chosen.state, **absolute}
    if services:
        options["services"] = services
    # As Ctrl-C does: the command waits until nothing is left of the lab that it began.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    holder.start(options)
    return 0


def _exec(chosen: argparse.Namespace) -> int:
    command = chosen.command[1:] if chosen.command[:1] == ["--"] else chosen.command
    if not command:
        raise LabError("no command: takeover lab exec HOST -- COMMAND...")
    record = Record.load()
    if record is None:
        raise LabError("no lab is up: takeover lab up makes one")
    pid = record.hosts.get(chosen.host)
    if pid is None:
        raise LabError(f"there is no host {chosen.host}; there are {', '.join(record.hosts)}")
    if not record.condition(pid).alive:
        raise LabError(f"host {chosen.host} is gone: takeover lab status says what is left")
    try:
        # The command takes this process's place: its streams, signals and exit status are the caller's.
        os.execvp("mnexec", ["mnexec", "-a", str(pid), *command])
    except OSError as error:
        raise LabError(f"mnexec: {error.strerror}") from None


def _fail(chosen: argparse.Namespace) -> int:
    from topologies import holder

    holder.ask({"do": "fail", "name": chosen.name, "how": chosen.how})
    return 0


def _heal(chosen: argparse.Namespace) -> int:
    from topologies import holder

    holder.ask({"do": "heal", "name": chosen.name})
    return 0


def _status(chosen: argparse.Namespace) -> int:
    from topologies import condition

    status = condition.current()
    if chosen.json:
        print(json.dumps(status, indent=2))
    else:
        _print_status(status)
    for problem in status["problems"]:
        print(f"takeover: {problem}", file=sys.stderr)
    return 1 if status["states"]["holder"] == "gone" else 0


def _print_status(status: dict[str, Any]) -> None:
    pids = dict(status["processes"])
    if status["holder"] is not None:
        pids["holder"] = status["holder"]["pid"]
    rows = [["hosts", " ".join(status["hosts"])]]
    for name, state in status["states"].items():
        how = f": {status['failed'][name]}" if state == "failed" else ""
        rows.append([name, f"{state}{how} (pid {pids[name]})" if name in pids else state])
    rows += [[key, status[key]] for key in ("api", "docroot", "config") if key in status]
    if not status["ready"]:
        rows.append(["lab", "not ready"])
    print(tabulate(rows, tablefmt="plain"))


def _down(chosen: argparse.Namespace) -> int:
    from topologies import removal

    if os.geteuid() != 0:
        raise LabError("the lab needs root")
    removal.remove(chosen.force)
    return 0
