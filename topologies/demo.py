"""The main job, shown: a download survives the SIGKILL of the server that sends it."""

from __future__ import annotations

import argparse
import sys

from tabulate import tabulate

from state.errors import TakeoverError
from topologies.lab import Lab
from topologies.watcher import digest_of, download


def main() -> int:
    argparse.ArgumentParser(prog="script/demo", description=__doc__).parse_args()
    try:
        with Lab(servers=2, clients=1) as lab:
            return _show(lab)
    except TakeoverError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def _show(lab: Lab) -> int:
    path = lab.configuration.servers[0].docroot + "/object.bin"
    wanted = digest_of(path)
    print(f"a lab is up: {len(lab.servers())} servers, VIP {lab.configuration.vips[0].address}", flush=True)
    curl = download(lab, "c1")
    curl.wait_for(128 << 20)
    owner = lab.connections()[0]["server"]
    print(f"curl http://vip/object.bin is half-way; {owner} sends it; SIGKILL for {owner}", flush=True)
    curl.fault_ns = lab.fail(owner, how="kill")
    status = curl.wait()
    (takeover,) = lab.takeovers()
    phases = takeover["phases_ms"]
    detect = (takeover["detected_at_ns"] - curl.fault_ns) / 1e6
    rows = [
        ["detect", f"{detect:.2f} ms", "from the kill to the controller's knowing"],
        ["fence", f"{phases['fence']:.2f} ms", f"one atomic bundle at the switch: {owner} out, {takeover['to']} in"],
        ["prove", f"{phases['prove']:.2f} ms", "probe and the client's answer, judged against the checkpoint"],
        ["resume", f"{phases['resume']:.2f} ms", f"recreated in the kernel of {takeover['to']}, sending again"],
        ["stall", f"{curl.longest.seconds * 1000:.2f} ms", "longest silence in what curl wrote"],
    ]
    print(tabulate(rows, headers=["phase", "time", "what"]))
    digests: list[list[object]] = [["object", wanted], ["received", curl.digest], ["curl's exit status", status]]
    print(tabulate(digests, tablefmt="plain"))
    whole = status == 0 and curl.digest == wanted and takeover["resumed"] == 1
    print("whole: the connection survived its server" if whole else "NOT whole")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
