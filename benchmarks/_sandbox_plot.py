"""A plot of the sandbox's figures."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_COLOURS = {"warren": "#1b7f5c", "baseline": "#b0b0b0", "llm-sandbox": "#d9a441"}


def plot(operations: dict[str, Any], file: Path) -> None:
    """Draw the median of each operation as bars, and how many times faster than the baseline Warren is.

    Args:
        operations: by operation, by who did it, the percentiles in milliseconds.
        file: where to write the PNG.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(_COLOURS)
    for place, (who, colour) in enumerate(_COLOURS.items()):
        at = [number + place * height for number, own in enumerate(operations.values()) if who in own]
        medians = [own[who]["p50"] for own in operations.values() if who in own]
        axes.barh(at, medians, height, color=colour, label=who)
    for number, own in enumerate(operations.values()):
        times = own["baseline"]["p50"] / own["warren"]["p50"]
        axes.text(own["warren"]["p50"] * 1.1, number, f"{times:.0f}x faster", va="center", fontsize=8)
    axes.set_yticks([number + height for number in range(len(operations))], list(operations))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("median, ms (logarithmic)")
    axes.set_title("Sandbox operations: Warren, one docker exec per call, llm-sandbox")
    axes.legend()
    figure.savefig(file, dpi=120)
