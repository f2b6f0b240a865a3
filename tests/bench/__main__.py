"""`script/bench [NAME...] [--json FILE]`."""

from __future__ import annotations

import argparse
import sys

from state.errors import TakeoverError
from tests.bench import alarms, bundle, overhead, scale, stall
from tests.bench.report import Report
from topologies.lab import HOWS

_BENCHES = {
    "stall": stall.run,
    "overhead": overhead.run,
    "alarms": alarms.run,
    "scale": scale.run,
    "bundle": bundle.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_BENCHES)}; all when none is given")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    parser.add_argument(
        "--kills",
        type=int,
        help=f"deaths by kill in the stall benchmark ({stall.KILLS}; a quarter of it by others) "
        f"and of the bundle benchmark ({bundle.KILLS})",
    )
    parser.add_argument("--how", action="append", choices=HOWS, help="of the stall benchmark; all when not given")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the alarms benchmark")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the scale benchmark's intake of checkpoints")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of downloads of the overhead benchmark")
    parser.add_argument("--seed", type=int, default=1, help="repeats a stall run's moments")
    chosen = parser.parse_args()
    for name in chosen.names:
        if name not in _BENCHES:
            parser.error(f"no benchmark named {name}; there are {', '.join(_BENCHES)}")
    report, good = Report(), True
    options = {
        "kills": chosen.kills,
        "rounds": chosen.rounds,
        "seed": chosen.seed,
        "how": chosen.how,
        "minutes": chosen.minutes,
        "seconds": chosen.seconds,
    }
    try:
        for name in chosen.names or list(_BENCHES):
            good &= _BENCHES[name](report, options)
    except TakeoverError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if chosen.json:
            report.write(chosen.json)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
