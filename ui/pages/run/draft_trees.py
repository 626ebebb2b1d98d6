"""Charts of draft trees: speed-up and accepted length over the size of the tree, and the draft
tokens that a decoder accepted."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from backend.store import frames, queries
from jobs.benchmark.report import DecoderReport, decoder_reports
from jobs.metrics import TREE as TREE_FAMILY
from ui.charts.chart import Chart, axis, layout, legend_row, reference_line
from ui.format import esc
from ui.format import share as share_of
from ui.theme import BLUE, LIGHT
from ui.widgets.panel import Panel

Path = tuple[int, ...]
SMALL = 6  # pixels of the circle of a node that was never accepted
LARGE, LEAST = 40, 16  # size of a node with share 1, with few and with many rows
TREE_HEIGHT = 320  # total height of the rows
TIMED = 20  # newest runs searched for the speed of a drafter
WRITTEN = 16  # maximum number of nodes with labels; hover shows the others
ORDINALS = ("1st", "2nd", "3rd")
SIZES_NOTE = "Predictions use held-out answers; a benchmark decodes other prompts on this machine."
SIZES = Panel(
    "sizes",
    "Speed-up over tree size",
    "Which draft tree pays most? Line: predicted; dot: measured; dashed: plain decoding.",
    300,
)
LENGTHS = Panel(
    "lengths",
    "Accepted length over tree size",
    "How many tokens does a step yield? Line: predicted; dot: measured.",
    300,
)
TREE = Panel(
    "tree", "Draft tree", "Which draft tokens are accepted? Labels: share of all steps.", 400
)


def drawn_trees(decoders: Sequence[DecoderReport]) -> list[DecoderReport]:
    """Decoders whose accepted draft tokens were counted node by node."""
    return [d for d in decoders if len(d.hits) > 1]


def measurements(drafter: str) -> Iterator[DecoderReport]:
    """Reports of the newest benchmarks of a drafter, with and without prompt lookup."""
    for other in queries.runs_from(drafter, TIMED):
        yield from (each for each in decoder_reports(other.run) if each.run == drafter)


def tree_curves(run: str) -> dict[str, pd.DataFrame]:
    """Predicted curves over the size of the draft tree, by series; empty if not recorded."""
    points = frames.by_key(frames.curves(run))
    return {key.series: rows for key, rows in points.items() if key.family == TREE_FAMILY}


def tree_sizes(
    drafters: Mapping[str, str], measured: Sequence[DecoderReport], paint: Mapping[str, str]
) -> dict[Panel, Chart]:
    """Speed-up and accepted length over the size of the draft tree.

    Args:
        drafters: label of each drafter, by its run; their predictions are lines.
        measured: these drafters, as a benchmark timed them; dots.
        paint: color of each drafter.
    """
    curves = {run: tree_curves(run) for run in drafters}
    charts = {}
    values = (
        (SIZES, "speed-up", [d.speed_up for d in measured]),
        (LENGTHS, "accepted", [d.accepted for d in measured]),
    )
    for panel, series, known in values:
        lines = {run: found[series] for run, found in curves.items() if series in found}
        dots = [*zip(measured, known, strict=True)]
        if lines or dots:
            charts[panel] = _sizes_chart(panel, drafters, lines, dots, paint)
    return charts


def _sizes_chart(
    panel: Panel,
    drafters: Mapping[str, str],
    lines: Mapping[str, pd.DataFrame],
    dots: Sequence[tuple[DecoderReport, float]],
    paint: Mapping[str, str],
) -> Chart:
    records, figure, peaks = [], go.Figure(), []
    for run, points in lines.items():
        label, x, y = drafters[run], points["step"], points["value"]
        figure.add_scatter(x=x, y=y, name=esc(label), mode="lines", line={"color": paint[run]})
        records += [(label, "predicted", *point) for point in zip(x, y, strict=True)]
        peaks.append((float(y.max()), int(x[y.idxmax()]), label, run))
    for decoder, value in dots:
        figure.add_scatter(
            x=[decoder.nodes],
            y=[value],
            name=f"{esc(drafters[decoder.name])}, measured",
            showlegend=decoder.name not in lines,
            mode="markers",
            marker={"size": 11, "color": paint[decoder.name]},
        )
        records.append((drafters[decoder.name], "measured", decoder.nodes, value))
    looks = layout(
        view=panel.name,
        xaxis=axis("Nodes of the draft tree", showgrid=False),
        yaxis=axis(panel.title.partition(" over")[0], rangemode="tozero"),
        shapes=[reference_line(y=1)],
        **legend_row(),
    )
    unit = "\u00a0×" if panel is SIZES else " tokens per step"
    frame = pd.DataFrame(records, columns=["Decoder", "Source", "Nodes", panel.title])
    known = {d.run: (d.nodes, value) for d, value in dots}
    headline = ""
    if peaks:
        peak, nodes, label, run = max(peaks)
        ending = "" if nodes == 1 else "s"
        headline = f"{label}: predicted peak {peak:.2f}{unit} with {nodes} node{ending}"
        if run in known:
            nodes, value = known[run]
            predicted = np.interp(nodes, lines[run]["step"], lines[run]["value"])
            headline += f"; with {nodes}, predicted {predicted:.2f}, measured {value:.2f}"
    return Chart(figure.update_layout(looks), frame, SIZES_NOTE, headline=headline)


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
    note = f"n = {sum(decoder.lengths.values()):,} steps. Each step drafts anew: {tree}."
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
