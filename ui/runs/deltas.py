"""Differences to a baseline: signed, with an arrow, better or worse as the metric declares. Figures
measured under different conditions are not compared."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from markupsafe import Markup

from backend.metric_key import MetricKey
from jobs.metrics import PERPLEXITY, Metric
from jobs.metrics import metric as described
from jobs.wording import signed as written_change
from ui.format import NBSP, duration, number, size
from ui.runs.results import base_model
from ui.runs.rows import RunRow
from ui.templates import fragments

HTML = fragments("runs/runs.html")
CONDITIONS = {  # what must be equal on both sides -> its name in the explanation
    "sha256": "text",
    "corpus": "text",
    "context": "context length",
    "task": "task",
    "device": "device",
    "threads": "number of threads",
    "dtype": "precision",
    "batch": "batch",
}


@dataclass(frozen=True)
class Delta:
    """A figure less the baseline's, and relative to it unless that is zero."""

    change: float
    share: float | None
    direction: Literal["better", "worse", "even", ""]


def delta(metric: Metric, value: float, base: float) -> Delta:
    change = value - base
    share = change / abs(base) if base else None
    if change == 0 or (share is not None and abs(share) < 0.0005):  # written as 0.0 %
        return Delta(change, share, "even")
    if not metric.better:
        return Delta(change, share, "")
    good = (change < 0) == (metric.better == "lower")
    return Delta(change, share, "better" if good else "worse")


def conditions(row: RunRow, key: MetricKey) -> dict[str, Any]:
    """What a run's final figure was measured on."""
    figure = row.figures.final_row(key)
    details = dict(figure.details or {}) if figure else {}
    texts = (row.job.environment or {}).get("text")
    if described(key).calibrated and isinstance(texts, Mapping):
        details = dict(texts.get("calibration") or {}) | details
    return {key: details.get(key) for key in CONDITIONS}


def comparable_by(row: RunRow) -> tuple[str, ...] | None:
    """Equal for runs whose perplexities can be compared; None for a run without one."""
    if row.figures.final() is None:
        return None
    return (base_model(row.job), *map(str, conditions(row, PERPLEXITY).values()))


def incomparable_because(one: RunRow, other: RunRow, key: MetricKey) -> str:
    """Why figures of two runs cannot be compared, as in "different text"; else empty."""
    mine, theirs = conditions(one, key), conditions(other, key)
    return next((f"different {CONDITIONS[k]}" for k in CONDITIONS if mine[k] != theirs[k]), "")


def signed(metric: Metric, change: float, near: float = 0.0) -> str:
    """Change in the unit of the metric's title, with as many decimals as the value `near`."""
    if change == 0:
        return "±0"
    amount = abs(change)
    text = {
        "number": lambda: _rounded(amount, near),
        "share": lambda: _rounded(100 * amount, 10.0),
        "bytes": lambda: size(amount),
        "seconds": lambda: duration(amount),
        "count": lambda: f"{amount:,.0f}",
    }[metric.form]()
    return ("+" if change > 0 else "−") + text


def _rounded(amount: float, near: float) -> str:
    places = max(0, 3 - math.floor(math.log10(abs(near)))) if near else 3
    text = f"{amount:,.{min(places, 6)}f}"
    return text if float(text.replace(",", "")) else number(amount, 2)


def percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{written_change(100 * share, 1)}{NBSP}%"


def delta_html(
    key: MetricKey,
    row: RunRow,
    base: RunRow | None,
    relative: bool = False,
    told_apart: bool = True,
) -> Markup:
    """How far a run's final figure lies from the baseline's, or why they are not compared; empty
    where there is nothing to compare.

    Args:
        relative: in per cent, too.
        told_apart: whether the difference is more than chance; else it is neither better nor worse.
    """
    value = row.figures.final(key)
    base_value = base.figures.final(key) if base else None
    if base is None or base.job.id == row.job.id or value is None or base_value is None:
        return Markup()
    if reason := incomparable_because(row, base, key):
        return HTML.no_delta(reason)
    metric = described(key)
    found = delta(metric, value, base_value)
    if not told_apart:
        found = replace(found, direction="even")
    return difference_html(metric, found, value, relative)


def difference_html(
    metric: Metric, difference: Delta, value: float, relative: bool = False
) -> Markup:
    change = difference.change
    arrow = "▲" if change > 0 else "▼" if change < 0 else ""
    text = signed(metric, change, value)
    if relative and change and difference.share is not None:
        text += f" ({percent(difference.share)})"
    return HTML.delta(arrow, text, difference.direction)
