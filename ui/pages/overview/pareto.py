"""What is best so far: runs that can be compared with one another, and the front they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from backend.store.states import State
from jobs.metrics import METRICS, metric
from ui.format import NONE, count, esc, href
from ui.pages.overview.pareto_chart import ParetoPoint, pareto_front
from ui.runs.deltas import conditions
from ui.runs.results import base_model, format_value, kind_title, setting_summary
from ui.runs.rows import RunRow
from ui.widgets.html import Cell, card, data_table, table

AXES = ("size", "zero_share", "bits_per_weight", "speed_up", "tokens_per_second")
ALIKE = 0.01  # values closer than that, relative to the largest, do not make an axis
FRONT_ROWS = 6
MOST = 500  # dots; the newest, and all on the front


@dataclass(frozen=True)
class ComparableRuns:
    """Runs of one base model whose perplexity was measured on the same tokens.

    Attributes:
        key: short, stands in the address.
    """

    key: str
    label: str
    rows: Sequence[RunRow]

    @cached_property
    def dense(self) -> float | None:
        """Perplexity of the untouched model, as the newest of the runs measured it."""
        found = (row.figures.value("dense", "perplexity") for row in self.rows)
        return next((value for value in found if value is not None), None)

    @property
    def axes(self) -> list[str]:
        """What the runs can be told apart by; where nothing differs, what at least one has."""
        names = [name for name in self._names if len(self._values(name)) > 0]
        differing = [name for name in names if _spread(self._values(name)) > ALIKE]
        return differing + [name for name in names if name not in differing]

    @property
    def _names(self) -> list[str]:
        families = {n for row in self.rows for n in row.figures.final_names if "bytes/" in n}
        return [AXES[0], *sorted(families), *AXES[1:]]

    def _values(self, name: str) -> list[float]:
        return [v for row in self.rows if (v := cost(row, name)) is not None]

    def points(self, name: str) -> list[ParetoPoint]:
        """The runs that have this figure, the newest first."""
        found = self._points(name)
        best = {p.run for p in pareto_front(found, metric(name).better == "higher")}
        return [p for i, p in enumerate(found) if i < MOST or p.run in best]

    def _points(self, name: str) -> list[ParetoPoint]:
        return [
            ParetoPoint(
                row.job.run,
                " · ".join(setting_summary(row.job)) or row.job.name,
                kind_title(row.job),
                x,
                y,
                row.figures.final("tokens_per_second"),
            )
            for row in self.rows
            if (x := cost(row, name)) is not None and (y := row.figures.final()) is not None
        ]


def _spread(values: Sequence[float]) -> float:
    largest = max(map(abs, values), default=0.0)
    return (max(values) - min(values)) / largest if largest else 0.0


def cost(row: RunRow, name: str) -> float | None:
    """A figure of a run that can stand on the horizontal axis."""
    return row.size if name == "size" else row.figures.final(name)


def groups(rows: Sequence[RunRow]) -> list[ComparableRuns]:
    """Succeeded runs with a perplexity by base model and evaluation text, most runs first."""
    found: dict[tuple[str, ...], list[RunRow]] = {}
    for row in rows:
        if row.job.state == State.SUCCEEDED and row.figures.final() is not None:
            measured = conditions(row, "perplexity")
            model = base_model(row.job)
            key = (model, *(str(value) for value in measured.values()))
            found.setdefault(key, []).append(row)
    ordered = sorted(found.values(), key=lambda held: -len(held))
    return [ComparableRuns(held[0].job.run, _label(held[0]), held) for held in ordered]


def _label(row: RunRow) -> str:
    """In words: the model, the text, and how it was cut."""
    figure = row.figures.final_row("perplexity")
    details = (figure.details if figure else None) or {}
    model = base_model(row.job).rstrip("/").rsplit("/", 1)[-1]
    parts = [model, str(details.get("corpus", "unknown text"))]
    if details.get("context"):
        windows = f"{details['windows']} × " if details.get("windows") else ""
        parts.append(f"{windows}{details['context']} tokens")
    return " · ".join(parts)


def chosen_group(held: Sequence[ComparableRuns], key: str) -> ComparableRuns | None:
    """The group that holds run `key`, or else the largest."""
    named = (g for g in held if key in {row.job.run for row in g.rows})
    return next(named, held[0] if held else None)


def best_card(group: ComparableRuns, name: str) -> str:
    """HTML: the runs on the front, best quality first."""
    of, points = metric(name), group.points(name)
    best = sorted(pareto_front(points, of.better == "higher"), key=lambda p: p.y)
    rows = [
        [_linked(p), format_value(METRICS["perplexity"], p.y), format_value(of, p.x)]
        for p in best[:FRONT_ROWS]
    ]
    if not rows:
        return ""
    runs = ",".join(p.run for p in best[:FRONT_ROWS])
    tail = f'<a href="{href("compare", ids=runs)}">Compare</a>' if len(rows) > 1 else ""
    told = f'<p class="quiet">Of {count(len(points))} runs, none is better in both.</p>'
    shown = table(["Run", "Perplexity", of.title], rows, numeric=(1, 2))
    return card("Best so far", shown + told, tail)


def _linked(point: ParetoPoint) -> str:
    return (
        f'<a class="mono" href="{href("run", id=point.run)}">{esc(point.run)}</a>'
        f'<span class="clip quiet under" title="{esc(point.label)}">{esc(point.label)}</span>'
    )


def points_table(group: ComparableRuns, name: str) -> str:
    """HTML: every dot as a row, each leading to its run."""
    of = metric(name)
    rows: list[list[Cell]] = [
        [
            _linked(p),
            esc(p.kind),
            (format_value(METRICS["perplexity"], p.y), p.y),
            (format_value(of, p.x), p.x),
            NONE
            if p.speed is None
            else (format_value(METRICS["tokens_per_second"], p.speed), p.speed),
        ]
        for p in group.points(name)
    ]
    heads = ["Run", "Kind", "Perplexity", of.title, METRICS["tokens_per_second"].title]
    return data_table(heads, rows, "trade-off")
