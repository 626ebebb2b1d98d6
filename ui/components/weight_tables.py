"""The figures of the Weights page as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from backend.statistics.tensors import TensorSnapshot
from backend.store.tables import Result
from ui.charts.statistics import STATISTICS, with_largest
from ui.components.data_table import Cell, data_table
from ui.format import NONE, count, esc, number
from ui.theme import stage_stroke

COLUMNS = ("zero_share", "near_zero", "std", "kurtosis", "relative_error", "mask_overlap")


def layers_table(rows: pd.DataFrame, statistic: str, name: str) -> str:
    """HTML: one statistic of every layer of one stage."""
    shown = STATISTICS[statistic]
    values = with_largest(rows)[statistic]
    cells = [
        [esc(row.tensor), esc(row.block), exact(count(row.n), row.n),
         exact(shown.write(value), value * shown.scale)]
        for row, value in zip(rows.itertuples(), values, strict=True)
    ]  # fmt: skip
    return data_table(["Tensor", "Block", "Weights", shown.title], cells, name)


def stages_table(snapshots: Sequence[TensorSnapshot], labels: Mapping[str, str], name: str) -> str:
    """HTML: the statistics of one tensor, a row for each stage."""
    heads = [STATISTICS[column].title for column in COLUMNS]
    columns = ["Stage", "Weights", "Zeros", *heads, "Min", "Max"]
    return data_table(columns, [_stage_row(s, labels) for s in snapshots], name)


def _stage_row(snapshot: TensorSnapshot, labels: Mapping[str, str]) -> list[Cell]:
    figures = snapshot.stats | {"zero_share": snapshot.zeros / snapshot.n}
    cells: list[Cell] = [
        f"{swatch(snapshot.stage)}{esc(labels.get(snapshot.stage, snapshot.stage))}",
        exact(count(snapshot.n), snapshot.n),
        exact(count(snapshot.zeros), snapshot.zeros),
    ]
    for column in COLUMNS:
        shown, value = STATISTICS[column], figures.get(column)
        cells.append(NONE if value is None else exact(shown.write(value), value * shown.scale))
    return cells + [exact(number(figures[edge]), figures[edge]) for edge in ("min", "max")]


def bins_table(snapshots: Sequence[TensorSnapshot], labels: Mapping[str, str], name: str) -> str:
    """HTML: the histogram of each stage; bins that are empty in all of them are left out."""
    if not snapshots:
        return ""
    lo, bins = snapshots[0].lo, len(snapshots[0].counts)
    width = (snapshots[0].hi - lo) / bins
    rows = [
        [number(lo + i * width), exact(number(lo + (i + 1) * width), lo + (i + 1) * width)]
        + [exact(count(int(s.counts[i])), int(s.counts[i])) for s in snapshots]
        for i in range(bins)
        if any(s.counts[i] for s in snapshots)
    ]
    heads = [labels.get(s.stage, s.stage) for s in snapshots]
    return data_table(["From", "To", *heads], rows, name)


def perplexity_table(results: Sequence[Result], labels: Mapping[str, str], name: str) -> str:
    """HTML: perplexity of each stage with its standard error."""
    rows: list[list[Cell]] = [
        [
            esc(labels.get(r.stage, r.stage)),
            exact(number(r.value), r.value),
            NONE if r.stderr is None else exact(number(r.stderr, 2), r.stderr),
            NONE if r.n is None else exact(count(r.n), r.n),
        ]
        for r in results
    ]
    return data_table(["Stage", "Perplexity", "Standard error", "Tokens"], rows, name)


def exact(text: str, value: float) -> Cell:
    """A written figure, and the figure itself for the CSV."""
    return text, value


def swatch(stage: str) -> str:
    """HTML: the line a stage is drawn with."""
    stroke = stage_stroke(stage)
    style = {"dash": "dashed", "dot": "dotted"}.get(stroke.dash, "solid")
    return f'<i class="swatch" style="border-top:3px {style} {stroke.colour}"></i>'
