"""The figures of the Weights page as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from backend.statistics.tensors import TensorSnapshot
from backend.store.tables import Result
from ui.charts.channels import Channels
from ui.charts.magnitudes import Magnitudes
from ui.charts.series import Series
from ui.charts.statistics import STATISTICS
from ui.format import NONE, count, esc, number
from ui.pages.weights.explanations import ExplainedStatistic, explained, figure_of
from ui.theme import stage_style
from ui.widgets.html import Cell, csv_button, data_table, scroll_box

LISTED = 100  # channels


def layers_table(rows: pd.DataFrame, statistic: str, name: str, title: str) -> str:
    """HTML: one statistic of every layer of one stage.

    Args:
        rows: as `charts.heatmap.cells` returns them.
        title: of the column of figures, with its unit.
    """
    shown = STATISTICS[statistic]
    cells = [
        [esc(row.tensor), esc(row.block), exact(count(row.n), row.n),
         exact(shown.write(row.value / shown.scale), row.value)]
        for row in rows.itertuples()
    ]  # fmt: skip
    return data_table(["Tensor", "Block", "Weights", title], cells, name)


def explained_table(stages: Sequence[TensorSnapshot], labels: Mapping[str, str], name: str) -> str:
    """HTML: the figures of one tensor, a row each with a sentence, a column for each stage."""
    if not stages:
        return ""
    heads = "".join(
        f'<th scope="col" class="num">{swatch(s.stage)}{esc(labels.get(s.stage, s.stage))}</th>'
        for s in stages
    )
    body = "".join(_explained_rows(row, stages) for row in explained(stages, labels))
    table = (
        '<table class="data explained"><thead><tr><th scope="col">Figure</th>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table>"
    )
    return scroll_box(name, table) + csv_button(name)


def _explained_rows(row: ExplainedStatistic, stages: Sequence[TensorSnapshot]) -> str:
    cells = "".join(_explained_cell(s, row) for s in stages)
    said = ""
    if row.sentence:
        wide = f'<td colspan="{len(stages) + 1}"><span>{esc(row.sentence)}</span></td>'
        said = f'<tr class="said">{wide}</tr>'
    return f'<tr><th scope="row">{esc(row.figure.title)}</th>{cells}</tr>{said}'


def _explained_cell(taken: TensorSnapshot, row: ExplainedStatistic) -> str:
    figure, value = row.figure, figure_of(taken, row.name)
    if value is None:
        return f'<td class="num">{NONE}</td>'
    return f'<td class="num" data-value="{value * figure.scale!r}">{figure.write(value)}</td>'


def bins_table(series: Sequence[Series], name: str) -> str:
    """HTML: the histogram of each series on shared bins; bins empty in all of them are left out."""
    if not series:
        return ""
    edges = series[0].edges.tolist()
    counts = [s.snapshot.counts.tolist() for s in series]
    rows = [
        [number(low, 3), exact(number(high, 3), high), *(exact(count(round(n)), n) for n in found)]
        for low, high, found in zip(edges[:-1], edges[1:], zip(*counts, strict=True), strict=True)
        if any(found)
    ]
    return data_table(["From", "To", *(s.label for s in series)], rows, name)


def magnitude_table(drawn: Sequence[Magnitudes], name: str) -> str:
    """HTML: the |w| histogram of each series, a row a bin that is not empty."""
    rows = [
        [esc(m.series.label), exact(number(low, 3), low), exact(number(high, 3), high),
         exact(count(int(n)), int(n)), exact(f"{upto:.2f}", upto)]
        for m in drawn
        for low, high, n, upto in zip(
            m.edges[:-1].tolist(), m.edges[1:].tolist(), m.counts, m.smaller.tolist(), strict=True
        )
        if n
    ]  # fmt: skip
    return data_table(["Stage", "|w| from", "To", "Weights", "Smaller than that, %"], rows, name)


def channel_table(drawn: Sequence[Channels], order: Sequence[int], name: str) -> str:
    """HTML: the first channels of `order`, at each stage."""
    rows = [
        [str(channel), *(exact(number(value), value) for value in values)]
        for channel in order[:LISTED]
        for values in [[float(c.values[channel]) for c in drawn]]
    ]
    return data_table(["Channel", *(c.label for c in drawn)], rows, name)


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
    stroke = stage_style(stage)
    style = {"dash": "dashed", "dot": "dotted"}.get(stroke.dash, "solid")
    return f'<i class="swatch" style="border-top:3px {style} {stroke.colour}"></i>'
