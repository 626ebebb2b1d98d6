"""Predicted against measured losses of the mixes that `benchmarks.budget` built, as SVG.

python -m benchmarks.scatter SmolLM2=smol.jsonl "Gemma 3"=gemma.jsonl > predictions.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from math import log10
from pathlib import Path
from statistics import fmean

SIDE, LOW, HIGH = 420, -2.5, 0.3  # pixels; exponents of ten at the ends of both axes
COLORS = ("#0072B2", "#D55E00")
TICKS = (0.01, 0.03, 0.1, 0.3, 1.0)
SOLID, DASHED = 'stroke="#999"', 'stroke="#999" stroke-dasharray="4"'


def place(nats: float) -> float:
    """Pixels from the origin of an axis."""
    return SIDE * (min(max(log10(nats), LOW), HIGH) - LOW) / (HIGH - LOW)


def points(file: Path) -> Iterator[tuple[float, float]]:
    """Predicted and measured nats of each mix in a file of rows, of which the first is dense."""
    dense, *rows = map(json.loads, file.read_text().splitlines())
    for row in rows:
        measured = fmean(row["losses"]) - fmean(dense["losses"])
        if measured > 0:
            yield row["fisher"], measured


def line(first: tuple[float, float], last: tuple[float, float], style: str) -> str:
    (x1, y1), (x2, y2) = first, last
    return f'<line x1="{x1:.1f}" y1="{SIDE - y1:.1f}" x2="{x2:.1f}" y2="{SIDE - y2:.1f}" {style}/>'


def text(x: float, y: float, words: str, color: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{SIDE - y:.1f}" fill="{color}">{words}</text>'


def svg(named: list[tuple[str, Path]]) -> str:
    """The chart: the diagonal, twice and half of it, and a point for each mix."""
    parts = [
        line((place(0.01), place(0.01 * factor)), (place(1.0), place(factor)), style)
        for factor, style in ((1, SOLID), (2, DASHED), (0.5, DASHED))
    ]
    for tick in TICKS:
        parts += [text(place(tick), -16, f"{tick:g}"), text(-34, place(tick), f"{tick:g}")]
    parts.append(text(SIDE / 2 - 60, -34, "predicted nats"))
    parts.append(text(-34, SIDE + 10, "measured nats"))
    for number, (name, file) in enumerate(named):
        color = COLORS[number % len(COLORS)]
        parts.append(text(20, SIDE - 20 - 18 * number, name, color))
        parts += [
            f'<circle cx="{place(x):.1f}" cy="{SIDE - place(y):.1f}" r="4" fill="{color}"/>'
            for x, y in points(file)
        ]
    frame = f"-44 -24 {SIDE + 60} {SIDE + 70}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{frame}" width="{SIDE}"'
    return f'{head} font-family="sans-serif" font-size="13">\n' + "\n".join(parts) + "\n</svg>"


def main() -> None:
    pairs = (argument.partition("=") for argument in sys.argv[1:])
    print(svg([(name, Path(file)) for name, _, file in pairs]))


if __name__ == "__main__":
    main()
