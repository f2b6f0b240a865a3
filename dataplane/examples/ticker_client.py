"""A client of the ticker: a plain socket that knows nothing of servers, and looks at every line.

    python -m dataplane.examples.ticker_client vip 7000 5 100 20

prints lines 5 to 104 as they come. Exit status 1 and a sentence when one is missing, repeated or wrong, or the
connection breaks.
"""

from __future__ import annotations

import socket
import sys

from dataplane.examples.ticker import line

SILENCE_SECONDS = 10.0


def main(arguments: list[str]) -> int:
    host, port, first, count, *milliseconds = arguments
    expected, end = int(first), int(first) + int(count)
    try:
        with socket.create_connection((host, int(port)), timeout=SILENCE_SECONDS) as sock:
            print(f"from {sock.getsockname()[1]}", file=sys.stderr, flush=True)
            sock.sendall(" ".join(["START", first, count, *milliseconds]).encode() + b"\n")
            for came in sock.makefile("rb"):
                if expected == end or came != line(expected):
                    print(f"instead of line {expected}: {came!r}", file=sys.stderr)
                    return 1
                print(came.decode(), end="", flush=True)
                expected += 1
    except OSError as error:
        print(f"before line {expected}: {error}", file=sys.stderr)
        return 1
    if expected != end:
        print(f"the connection ended before line {expected}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
