"""Decoders of a benchmark side by side: how fast they are, where the time of a decoding step goes,
how many tokens a step yields, and the tree of draft tokens that a step verifies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from backend.store import queries
from backend.store.tables import Job
from jobs.benchmark.kind import NAME
from jobs.benchmark.report import DecoderReport, decoder_reports, verdicts
from jobs.fields.drafters import DRAFTER_FOLDER, gains_by_path
from jobs.metrics import PARAMETERS, PREDICTED_LENGTH, STEPS
from jobs.wording import times
from ui.charts.chart import (
    Chart,
    axis,
    category_axis,
    layout,
    legend_row,
    legend_rows,
    reference_line,
)
from ui.charts.headlines import break_even_headline, parts_headline, speed_headline, tasks_headline
from ui.format import esc
from ui.format import share as share_of
from ui.runs.results import find_job
from ui.theme import BLUE, GREEN, LIGHT, ORANGE, PINK, name_colors

Path = tuple[int, ...]
BAR, FEW_BARS = 40, 5  # pixels of a bar with its name; so many fit a view as it is
ROOM, MORE_ROOM, MOST_ROOM = 1.4, 1.9, 2.3  # times the longest bar, for the text beside it
JITTER = 0.6  # of a task's row, over which its dots are spread
PARTS: Mapping[str, tuple[str, str]] = {  # part of a decoding step -> label, color
    "draft": ("Draft", ORANGE),
    "verify": ("Verify", BLUE),
    "accept": ("Accept", GREEN),
    "cache": ("Cache", PINK),
}
SMALL = 6  # pixels of a circle that was never accepted
LARGE, LEAST = 40, 16  # of one that always was: where there are few rows, where there are many
TREE_HEIGHT = 320  # of all rows
WRITTEN = 16  # nodes whose shares are written beside them; of more, hover tells
ORDINALS = ("1st", "2nd", "3rd")


@dataclass(frozen=True)
class DrafterInfo:
    """Facts of a drafter from the run that trained it: `hits` (path of a draft token -> its
    contribution to the accepted length on held-out answers), and `predicted` accepted length with
    the default trees."""

    hits: Mapping[Path, float] = field(default_factory=dict)
    predicted: float | None = None
    parameters: float | None = None
    steps: float | None = None

    def expected(self, decoder: DecoderReport, default: bool) -> float | None:
        """Tokens per step on held-out answers; `default`: with trees that follow confidence."""
        if decoder.combined:
            return None  # what prompt lookup finds in other prompts is not known
        if default:
            return self.predicted
        known = self.hits and decoder.hits
        return 1 + sum(self.hits.get(path, 0.0) for path in decoder.hits) if known else None


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: vanilla first, then the fastest decoders."""

    job: Job
    decoders: Sequence[DecoderReport]
    verdicts: Sequence[str]

    @property
    def complete(self) -> bool:
        return bool(self.decoders) and all(d.prompts for d in self.decoders)

    @property
    def trees(self) -> list[DecoderReport]:
        return [d for d in self.decoders if len(d.hits) > 1] if self.complete else []

    def tree(self, wanted: str) -> DecoderReport | None:
        """Decoder whose tree is drawn: the wanted one, or the first."""
        return next((d for d in self.trees if d.name == wanted), next(iter(self.trees), None))

    @cached_property
    def drafters(self) -> dict[str, DrafterInfo]:
        return {d.name: drafter_of(d.run) for d in self.decoders if d.kind}


def benchmark(runs: Sequence[Job], name: str) -> Benchmark | None:
    """The benchmark of that name, or the newest without a name; None where there is none."""
    chosen = find_job(name) if name else next(iter(runs), None)
    if chosen is None or chosen.kind != NAME:
        return None
    reports = decoder_reports(chosen.run)
    return Benchmark(chosen, reports, verdicts(reports))


def drafter_of(run: str) -> DrafterInfo:
    results = queries.results([run])
    rows = {row.metric: row.value for row in results if row.stage == DRAFTER_FOLDER}
    figures = (rows.get(key) for key in (PREDICTED_LENGTH, PARAMETERS, STEPS))
    return DrafterInfo(gains_by_path(run), *figures)


def colors(decoders: Sequence[DecoderReport]) -> dict[str, str]:
    return name_colors(d.name for d in decoders)


def drafting(decoders: Sequence[DecoderReport]) -> list[DecoderReport]:
    return [d for d in decoders if d.drafts]


def bar_label(decoder: DecoderReport) -> str:
    """Label of a bar, short for narrow screens."""
    if not decoder.kind:
        return esc(decoder.label)
    return f"{esc(decoder.title)}<br>{esc(decoder.run)}".replace(" + ", " +<br>")


def speed_up(decoders: Sequence[DecoderReport], note: str) -> Chart:
    """Speed-up over vanilla; the lowest and highest repetition as a line through the bar."""
    frame = pd.DataFrame(
        [(d.label, d.speed_up, *d.speed_up_range(), d.speed, 100 * d.same) for d in decoders],
        columns=["Decoder", "Speed-up, ×", "Lowest", "Highest", "Tokens/s", "Same texts, %"],
    )
    up, low, high = frame["Speed-up, ×"], frame["Lowest"], frame["Highest"]
    bars = _bars(
        decoders,
        up,
        error_x=_range(up, low, high, LIGHT.text),
        customdata=[*zip(low, high, (d.accepted for d in decoders), strict=True)],
        hovertemplate="<b>%{y}</b><br>%{x:.2f} × (%{customdata[0]:.2f} to %{customdata[1]:.2f})"
        "<br>%{customdata[2]:.2f} tokens per step<extra></extra>",
    )
    texts = [*map(times, up)]
    looks = _bar_layout("speed", "Speed-up over vanilla, ×", decoders, high, texts)
    figure = go.Figure(bars, looks | {"shapes": [reference_line(x=1)]})
    rows = [(d.label, d.speed_up, d.faster) for d in drafting(decoders)]
    return Chart(figure, frame, note, headline=speed_headline(rows))


def gain(
    decoders: Sequence[DecoderReport], drafters: Mapping[str, DrafterInfo], default: bool, note: str
) -> Chart:
    """Tokens per step as a bar, break-even as a line, prediction as a ring."""
    known = [drafters.get(d.name, DrafterInfo()) for d in decoders]
    frame = pd.DataFrame(
        [
            (
                d.label,
                d.accepted,
                k.expected(d, default),
                d.break_even,
                d.nodes,
                k.parameters,
                k.steps,
            )
            for d, k in zip(decoders, known, strict=True)
        ],
        columns=[
            "Decoder",
            "Tokens per step",
            "Predicted",
            "Break-even",
            "Tree nodes",
            "Parameters",
            "Training steps",
        ],
    )
    bars = _bars(
        decoders,
        frame["Tokens per step"],
        hovertemplate="<b>%{y}</b><br>%{x:.2f} tokens per step<extra></extra>",
    )
    marks = go.Scatter(
        x=frame["Break-even"],
        y=bars.y,
        mode="markers",
        marker={"symbol": "line-ns", "size": 32, "line": {"width": 3, "color": LIGHT.text}},
        hovertemplate="<b>%{y}</b><br>needs %{x:.2f} tokens per step<extra></extra>",
    )
    frame["Predicted"] = frame["Predicted"].astype(float)
    rings = go.Scatter(
        x=frame["Predicted"],
        y=bars.y,
        mode="markers",
        marker={"symbol": "circle-open", "size": 12, "line": {"width": 2, "color": LIGHT.text}},
        hovertemplate="<b>%{y}</b><br>%{x:.2f} tokens per step were predicted<extra></extra>",
    )
    reach = frame[["Tokens per step", "Break-even", "Predicted"]].max(axis=1)
    texts = [f"{d.accepted:.2f}, needs {d.break_even:.2f}" for d in decoders]
    looks = _bar_layout("gain", "Tokens per step", decoders, reach, texts, MOST_ROOM)
    rows = [(d.label, d.accepted, d.break_even) for d in drafting(decoders)]
    figure = go.Figure([bars, marks, rings], looks)
    return Chart(figure, frame, note, headline=break_even_headline(rows))


def step_time(decoders: Sequence[DecoderReport], note: str) -> Chart:
    """Mean milliseconds of one decoding step, by its parts; per token beside the bar."""
    titles = {part: f"{label}, ms" for part, (label, _) in PARTS.items()}
    frame = pd.DataFrame(
        {"Decoder": d.label, **{t: d.milliseconds.get(part, 0.0) for part, t in titles.items()}}
        for d in decoders
    )
    traces = [
        _bars(
            decoders,
            frame[titles[part]],
            name=label,
            marker={"color": color},
            hovertemplate=f"<b>%{{y}}</b><br>{label}: %{{x:.2f}} ms<extra></extra>",
        )
        for part, (label, color) in PARTS.items()
    ]
    whole = frame[[*titles.values()]].sum(axis=1)
    texts = [f"{t:.1f} ms, {d.accepted:.2f} tokens" for t, d in zip(whole, decoders, strict=True)]
    looks = _bar_layout("time", "Milliseconds per step", decoders, whole, texts, MORE_ROOM)
    row = legend_row(traceorder="normal")
    figure = go.Figure(traces, looks | {"margin": {"t": row.pop("top")}, "barmode": "stack"} | row)
    slowest = max(decoders, key=lambda d: sum(d.milliseconds.values()))
    parts = {label: slowest.milliseconds.get(part, 0.0) for part, (label, _) in PARTS.items()}
    return Chart(figure, frame, note, headline=parts_headline(slowest.label, parts))


def _bars(decoders: Sequence[DecoderReport], values: pd.Series, **options: Any) -> go.Bar:
    paint = colors(decoders)
    marker = {"color": [paint[d.name] for d in decoders]}
    names = [*map(bar_label, decoders)]
    return go.Bar(x=values, y=names, orientation="h", width=0.5, **{"marker": marker} | options)


def _range(value: pd.Series, low: pd.Series, high: pd.Series, color: str) -> dict[str, Any]:
    return {"color": color, "thickness": 1, "array": high - value, "arrayminus": value - low}


def _bar_layout(
    view: str,
    title: str,
    decoders: Sequence[DecoderReport],
    ends: pd.Series,
    texts: Sequence[str],
    room: float = ROOM,
) -> dict[str, Any]:
    notes = [
        {
            "x": end,
            "y": bar_label(d),
            "text": text,
            "xshift": 8,
            "font": {"color": LIGHT.text},
            "bgcolor": LIGHT.paper,
        }
        for d, end, text in zip(decoders, ends, texts, strict=True)
    ]
    return layout(
        view=view,
        more=BAR * max(0, len(decoders) - FEW_BARS),
        annotations=notes,
        xaxis=axis(title, range=[0, room * ends.max()]),
        yaxis=category_axis(),
    )


def by_task(decoders: Sequence[DecoderReport], note: str) -> Chart:
    """One row a task, one dot a decoder: speed-up with its range."""
    drafters = drafting(decoders)
    frame = pd.DataFrame(
        [
            (d.label, name.replace("_", " "), up, *d.speed_up_range(name), n)
            for d in drafters
            for name, (up, n) in d.tasks.items()
        ],
        columns=["Decoder", "Task", "Speed-up, ×", "Lowest", "Highest", "Tokens per step"],
    )
    tasks = [*dict.fromkeys(frame["Task"])]
    paint, figure = colors(decoders), go.Figure()
    for place, decoder in enumerate(drafters):
        rows = frame[frame["Decoder"] == decoder.label]
        up = rows["Speed-up, ×"]
        shift = JITTER * ((place + 0.5) / len(drafters) - 0.5)
        figure.add_scatter(
            x=up,
            y=[tasks.index(task) + shift for task in rows["Task"]],
            name=esc(decoder.label),
            mode="markers",
            cliponaxis=False,
            marker={"size": 9, "color": paint[decoder.name]},
            error_x=_range(up, rows["Lowest"], rows["Highest"], paint[decoder.name]),
            customdata=[*map(esc, rows["Task"])],
            hovertemplate="<b>%{customdata}</b><br>%{fullData.name}: %{x:.2f}<extra></extra>",
        )
    rows_axis = axis(
        tickvals=[*range(len(tasks))],
        ticktext=[*map(esc, tasks)],
        showgrid=False,
        range=[len(tasks) - 0.5, -0.5],
        tickfont={"color": LIGHT.text},
    )
    looks = layout(
        view="tasks",
        xaxis=axis("Speed-up over vanilla, ×"),
        yaxis=rows_axis,
        shapes=[reference_line(x=1)],
        **legend_rows(len(drafters), grow=True),
    )
    fastest = max(drafters, key=lambda d: d.speed_up, default=None)
    ups = {task.replace("_", " "): up for task, (up, _) in fastest.tasks.items()} if fastest else {}
    headline = tasks_headline(fastest.label, ups) if fastest else ""
    return Chart(figure.update_layout(looks), frame, note, headline=headline)


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
