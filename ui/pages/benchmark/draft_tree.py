"""The tree of draft tokens that a step verifies, with how often each of them was accepted."""

from collections.abc import Iterable, Mapping

import pandas as pd
import plotly.graph_objects as go

from jobs.benchmark.report import DecoderReport
from ui.charts.chart import Chart
from ui.charts.template import axis, layout
from ui.format import share as share_of
from ui.theme import BLUE, LIGHT

Path = tuple[int, ...]

SMALL = 6  # pixels of a circle that was never accepted
LARGE, LEAST = 40, 16  # of one that always was: where there are few rows, where there are many
TREE_HEIGHT = 320  # of all rows
WRITTEN = 16  # nodes whose shares are written beside them; of more, hover tells
ORDINALS = ("1st", "2nd", "3rd")


def tree_chart(decoder: DecoderReport, expected: Mapping[Path, float]) -> Chart:
    """Tree with the root at the left and a column a head. A node's circle has the area of its share
    of steps; `expected` are shares on held-out answers."""
    hits, places = decoder.hits, rows(decoder.hits)
    shares = {(): 1.0, **hits}
    row = TREE_HEIGHT / (1 + max(places.values()))
    largest = min(LARGE, max(LEAST, 0.8 * row))
    nodes = go.Scatter(
        x=[len(path) for path in shares],
        y=[places[path] for path in shares],
        mode="markers+text" if len(hits) <= WRITTEN else "markers",
        text=["", *(f"{100 * share:.0f} %" for share in hits.values())],
        textposition="top right",
        textfont={"size": 12, "color": LIGHT.text},
        marker={
            "size": [SMALL + (largest - SMALL) * s**0.5 for s in shares.values()],
            "color": [LIGHT.muted, *[BLUE] * len(hits)],
            "opacity": 1,
            "line": {"width": 0},
        },
        customdata=[_hover(path, share, expected) for path, share in shares.items()],
        hovertemplate="%{customdata}<extra></extra>",
        cliponaxis=False,
    )
    deepest = max(map(len, shares))
    columns = ["Root", *(f"Head {k}" for k in range(1, deepest + 1))]
    looks = layout(
        view="tree",
        xaxis=axis(
            tickvals=[*range(deepest + 1)],
            ticktext=columns,
            showgrid=False,
            range=[-0.3, deepest + 0.75],
            side="top",
        ),
        yaxis=axis(visible=False, range=[max(places.values()) + 0.7, -largest / row]),
    )
    frame = pd.DataFrame(
        [
            (name_of(path), 100 * share, 100 * expected[path] if path in expected else None)
            for path, share in hits.items()
        ],
        columns=["Draft token", "Accepted, % of steps", "On held-out answers, %"],
    )
    tree = decoder.tree or f"{decoder.nodes} nodes with the root"
    note = f"n = {sum(decoder.lengths.values()):,} steps, {tree}."
    if decoder.tree:
        note += " A chance is predicted at its step, a share is of all steps."
    first = hits.get((0,))
    headline = f"The first guess is accepted in {share_of(first, 0)} of steps" if first else ""
    return Chart(go.Figure([_edges(places), nodes], looks), frame, note, headline=headline)


def rows(paths: Iterable[Path]) -> dict[Path, int]:
    """Row of every node: a first child beside its parent, others below."""
    found: dict[Path, int] = {(): 0}
    lowest, parents = 0, set[Path]()
    for path in sorted(paths):  # depth first
        parent = path[:-1]
        lowest += parent in parents
        found[path] = lowest if parent in parents else found[parent]
        parents.add(parent)
    return found


def _edges(places: Mapping[Path, int]) -> go.Scatter:
    x: list[int | None] = []
    y: list[int | None] = []
    for path in filter(None, places):
        x += [len(path) - 1, len(path), None]
        y += [places[path[:-1]], places[path], None]
    line = {"color": LIGHT.edge, "width": 1}
    return go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip")


def _hover(path: Path, share: float, expected: Mapping[Path, float]) -> str:
    if not path:
        return "The token the target model chose last"
    text = f"<b>{name_of(path)}</b><br>accepted in {100 * share:.1f} % of steps"
    known = expected.get(path)
    return text if known is None else f"{text}<br>on held-out answers {100 * known:.1f} %"


def name_of(path: Path) -> str:
    own, *before = (
        ORDINALS[rank] if rank < len(ORDINALS) else f"{rank + 1}th" for rank in path[::-1]
    )
    after = f" after {', '.join(before[::-1])}" if before else ""
    return f"Head {len(path)}, {own} choice{after}"
