"""How far a figure lies from the baseline's: signed, with an arrow, and judged by the direction its
metric declares. Figures that were measured under other conditions are not compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jobs.metrics import Metric, metric
from ui.format import duration, esc, number, size
from ui.runs.rows import RunRow

Verdict = Literal["better", "worse", "even", ""]
CONDITIONS = {  # what must be the same on both sides; in words, when it is not
    "sha256": "text",
    "corpus": "text",
    "context": "context length",
    "task": "task",
    "device": "device",
    "threads": "number of threads",
    "dtype": "precision",
    "batch": "batch",
}


EVEN = 0.0005  # of the baseline: what would be written as 0.0 %


@dataclass(frozen=True)
class Delta:
    """A figure less the baseline's.

    Attributes:
        share: `change` relative to the baseline; None of a baseline of zero.
    """

    change: float
    share: float | None
    verdict: Verdict


def delta(of: Metric, value: float, base: float) -> Delta:
    """The signed difference of two values of one metric."""
    change = value - base
    share = change / abs(base) if base else None
    if change == 0 or (share is not None and abs(share) < EVEN):
        return Delta(change, share, "even")
    if not of.better:
        return Delta(change, share, "")
    good = (change < 0) == (of.better == "lower")
    return Delta(change, share, "better" if good else "worse")


def conditions(row: RunRow, name: str) -> dict[str, Any]:
    """What a run's final figure was measured on."""
    figure = row.figures.final_row(name)
    found = dict(figure.details or {}) if figure else {}
    texts = (row.job.environment or {}).get("text")
    if metric(name).calibrated and isinstance(texts, Mapping):
        found = dict(texts.get("calibration") or {}) | found
    return {key: found.get(key) for key in CONDITIONS}


def incomparable_because(one: RunRow, other: RunRow, name: str) -> str:
    """In words, under which condition two runs measured a metric differently; empty where their
    figures can be compared."""
    mine, theirs = conditions(one, name), conditions(other, name)
    return next((f"other {CONDITIONS[k]}" for k in CONDITIONS if mine[k] != theirs[k]), "")


def signed(of: Metric, change: float, near: float = 0.0) -> str:
    """The change in the unit of the metric's title.

    Args:
        near: a value it is a change of; the change is written with as many places.
    """
    if change == 0:
        return "±0"
    far = abs(change)
    text = {
        "number": lambda: _placed(far, near),
        "share": lambda: _placed(100 * far, 10.0),
        "bytes": lambda: size(far),
        "seconds": lambda: duration(far),
        "count": lambda: f"{far:,.0f}",
    }[of.form]()
    return ("+" if change > 0 else "−") + text


def _placed(far: float, near: float) -> str:
    """With the places a figure near `near` is written with; more where nothing would be left."""
    places = max(0, 3 - math.floor(math.log10(abs(near)))) if near else 3
    text = f"{far:,.{min(places, 6)}f}"
    return text if float(text.replace(",", "")) else number(far, 2)


def percent(share: float | None) -> str:
    """A relative change: "+7.7 %"; nothing where there is none."""
    if share is None:
        return ""
    return f"{'−' if share < 0 else '+'}{abs(100 * share):.1f} %"


def delta_html(name: str, row: RunRow, base: RunRow | None, relative: bool = False) -> str:
    """HTML: how far a run's final figure lies from the baseline's, or why that is not told.

    Args:
        relative: add the change in per cent of the baseline.
    """
    value = row.figures.final(name)
    against = base.figures.final(name) if base else None
    if base is None or base.job.id == row.job.id or value is None or against is None:
        return ""
    if why := incomparable_because(row, base, name):
        return f'<span class="delta" title="Measured on {esc(why)}">{esc(why)}</span>'
    of = metric(name)
    return judged(of, delta(of, value, against), value, relative)


def judged(of: Metric, found: Delta, value: float, relative: bool = False) -> str:
    """HTML: arrow, signed change and, for those who do not see colours, the verdict."""
    arrow = "▲" if found.change > 0 else "▼" if found.change < 0 else ""
    told = relative and found.change and found.share is not None
    more = f" ({percent(found.share)})" if told else ""
    said = f'<span class="hidden"> {found.verdict}</span>' if found.verdict else ""
    return (
        f'<span class="delta {found.verdict}"><i aria-hidden="true">{arrow}</i>'
        f"{signed(of, found.change, value)}{more}{said}</span>"
    )
