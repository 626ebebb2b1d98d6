"""Signed differences from a baseline run, with an arrow and a verdict (better or worse).

Figures that were measured under different conditions are not compared."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from markupsafe import Markup

from backend.metric_key import MetricKey
from jobs.fields.models import original_model
from jobs.metrics import PERPLEXITY, TOKENS_PER_SECOND, Metric
from jobs.metrics import metric as described
from jobs.wording import signed as written_change
from ui.format import NBSP, duration, number, size
from ui.runs.results import base_model
from ui.runs.rows import RunRow
from ui.templates import fragments

HTML = fragments("runs/runs.html")
CONDITIONS = {  # details that must be equal for both runs, and their names in the explanation
    "sha256": "text",
    "corpus": "text",
    "context": "context length",
    "task": "task",
    "device": "device",
    "cpu": "processor",
    "decoder": "decoder",
    "threads": "number of threads",
    "dtype": "precision",
    "batch": "batch",
}


@dataclass(frozen=True)
class Delta:
    """Difference of a figure from the baseline's.

    Attributes:
        change: figure minus baseline.
        share: the change relative to the baseline; None if that is zero.
        direction: verdict; empty for a metric without a better direction.
    """

    change: float
    share: float | None
    direction: Literal["better", "worse", "even", ""]


def delta(metric: Metric, value: float, base: float) -> Delta:
    """The difference of `value` from the baseline's value `base`."""
    change = value - base
    share = change / abs(base) if base else None
    if change == 0 or (share is not None and abs(share) < 0.0005):  # displayed as 0.0 %
        return Delta(change, share, "even")
    if not metric.better:
        return Delta(change, share, "")
    is_better = (change < 0) == (metric.better == "lower")
    return Delta(change, share, "better" if is_better else "worse")


def conditions(row: RunRow, key: MetricKey) -> dict[str, Any]:
    """The conditions under which a run's final figure was measured; of a time the machine, of a
    speed also the decoder."""
    figure, environment = row.figures.final_row(key), row.job.environment or {}
    details = dict(figure.details or {}) if figure else {}
    if described(key).timed:
        speed = row.figures.final_row(TOKENS_PER_SECOND) if figure else None
        details = environment | dict((speed and speed.details) or {}) | details
    texts = environment.get("text")
    if described(key).calibrated and isinstance(texts, Mapping):
        details = dict(texts.get("calibration") or {}) | details
    # what follows the semicolon is why the decoder was chosen: times of this measurement
    details["decoder"] = str(details.get("decoder") or "").partition(";")[0]
    return {key: details.get(key) for key in CONDITIONS}


def comparison_key(row: RunRow) -> tuple[str, ...] | None:
    """A key that is equal for runs with comparable perplexities; None without a perplexity."""
    if row.figures.final() is None:
        return None
    return (base_model(row.job), *map(str, conditions(row, PERPLEXITY).values()))


def incomparable_because(row: RunRow, base: RunRow, key: MetricKey) -> str:
    """The reason why two runs' figures cannot be compared, such as "different text"; else empty."""
    if original_model(base_model(row.job)) != original_model(base_model(base.job)):
        return "different model"
    actual, expected = conditions(row, key), conditions(base, key)
    reasons = (f"different {title}" for k, title in CONDITIONS.items() if actual[k] != expected[k])
    return next(reasons, "")


def signed(metric: Metric, change: float, near: float = 0.0) -> str:
    """A signed change in the unit of the metric's title, with the precision of the value `near`."""
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
    decimals = max(0, 3 - math.floor(math.log10(abs(near)))) if near else 3
    text = f"{amount:,.{min(decimals, 6)}f}"
    return text if float(text.replace(",", "")) else number(amount, 2)


def percent(share: float | None) -> str:
    """A signed share in percent with one decimal; empty for None."""
    if share is None:
        return ""
    return f"{written_change(100 * share, 1)}{NBSP}%"


def delta_html(
    key: MetricKey,
    row: RunRow,
    base: RunRow | None,
    relative: bool = False,
    is_significant: bool = True,
) -> Markup:
    """Difference of a run's final figure from the baseline's, or the reason why they cannot be
    compared; empty without a figure or a baseline.

    Args:
        relative: also show the difference in percent.
        is_significant: False if the difference may be chance; it is then neither better nor worse.
    """
    value = row.figures.final(key)
    base_value = base.figures.final(key) if base else None
    return values_html(key, row, base, (value, base_value), relative, is_significant)


def values_html(
    key: MetricKey,
    row: RunRow,
    base: RunRow | None,
    values: tuple[float | None, float | None],
    relative: bool = True,
    is_significant: bool = True,
) -> Markup:
    """As `delta_html`, of the values of the run and of the baseline."""
    value, base_value = values
    if base is None or base.job.id == row.job.id or value is None or base_value is None:
        return Markup()
    if reason := incomparable_because(row, base, key):
        return HTML.no_delta(reason)
    metric = described(key)
    difference = delta(metric, value, base_value)
    if not is_significant:
        difference = replace(difference, direction="even")
    return difference_html(metric, difference, value, relative)


def difference_html(
    metric: Metric, difference: Delta, value: float, relative: bool = False
) -> Markup:
    """A difference with arrow, sign and verdict; `relative` adds it in percent."""
    change = difference.change
    arrow = "▲" if change > 0 else "▼" if change < 0 else ""
    text = signed(metric, change, value)
    if relative and change and difference.share is not None:
        text += f" ({percent(difference.share)})"
    return HTML.delta(arrow, text, difference.direction)
