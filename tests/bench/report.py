"""Tables for people and JSON for programs, from the same rows."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum, rounded to hundredths."""
    if not values:
        return {"p50": float("nan"), "p99": float("nan"), "max": float("nan")}
    return {
        "p50": round(statistics.median(values), 2),
        "p99": round(percentile(values, 0.99), 2),
        "max": round(max(values), 2),
    }


def progress(sentence: str) -> None:
    """Of a benchmark that takes minutes: it is alive, and this far."""
    print(sentence, file=sys.stderr, flush=True)


class Report:
    """Collects results by benchmark; prints each as it comes."""

    def __init__(self) -> None:
        self.results: dict[str, Any] = {}

    def table(self, name: str, rows: list[dict[str, Any]], **facts: Any) -> None:
        print(f"\n{name}")
        print(tabulate(rows, headers="keys"))
        for fact, value in facts.items():
            print(f"{fact.replace('_', ' ')}: {value}")
        print(flush=True)
        self.results[name] = {"rows": rows, **facts}

    def write(self, path: str) -> None:
        Path(path).write_text(json.dumps(self.results, indent=2) + "\n")
