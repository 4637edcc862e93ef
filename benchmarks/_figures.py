"""What all benchmarks share: percentiles, the machine, rows of a table, writing it all down."""

import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def percentiles(seconds: Iterable[float], ranks: Sequence[int] = (50, 95)) -> dict[str, float]:
    """Return nearest-rank percentiles in milliseconds, with their names, such as `p50`."""
    ordered = sorted(seconds)
    return {f"p{rank}": round(1000 * ordered[math.ceil(len(ordered) * rank / 100) - 1], 3) for rank in ranks}


def setting(*packages: str) -> dict[str, Any]:
    """Return what figures depend on: the machine, and the versions of what was measured."""
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in packages},
    }


def row(widths: Sequence[int], *cells: object) -> str:
    """Lay out one line of a table: the first cell to the left, the others to the right."""
    first, *others = (str(cell) for cell in cells)
    aligned = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
    return "  ".join([first.ljust(widths[0]), *aligned])


def verdict(*, held: bool) -> str:
    """Say whether a target was reached."""
    return "held" if held else "MISSED"


def publish(figures: dict[str, Any], table: str, json_file: Path | None) -> None:
    """Print the table and, if asked, write the figures as JSON."""
    print(table)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
