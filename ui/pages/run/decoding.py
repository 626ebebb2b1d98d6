"""Charts of decoding with draft tokens: speed-up and accepted length by tree size, and for the
decoders of a benchmark, their speed, the parts of a step, and the draft tree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from backend.store import queries
from backend.store.tables import Job
from jobs.benchmark.kind import NAME
from jobs.benchmark.report import DecoderReport, decoder_reports
from jobs.fields.drafters import DRAFTER_FOLDER, gains_by_path
from jobs.metrics import PARAMETERS, PREDICTED_LENGTH, STEPS
from jobs.wording import times
from ui.charts.chart import (
    Chart,
    axis,
    category_axis,
    layout,
    legend_row,
    reference_line,
)
from ui.charts.headlines import break_even_headline, parts_headline, speed_headline, tasks_headline
from ui.format import esc
from ui.pages.run.draft_trees import (
    LENGTHS,
    SIZES,
    TREE,
    Path,
    drawn_trees,
    measurements,
    tree_chart,
    tree_curves,
    tree_sizes,
)
from ui.theme import BLUE, GREEN, LIGHT, ORANGE, PINK, name_colors
from ui.widgets.panel import Panel

BAR, FEW_BARS = 40, 5  # pixels of a bar with its name; number of bars that fit a view
ROOM, MORE_ROOM = 1.4, 2.3  # axis length ÷ longest bar, with room for the text
JITTER = 0.6  # share of a row over which its dots are spread
PARTS: Mapping[str, tuple[str, str]] = {  # part of a decoding step -> label, color
    "draft": ("Draft", ORANGE),
    "verify": ("Verify", BLUE),
    "accept": ("Accept", GREEN),
    "cache": ("Cache", PINK),
}
SPEED = Panel(
    "bars",
    "Speed-up",
    "Is it faster on this machine? Dashed: vanilla decoding in the same run.",
    300,
)
GAIN = Panel(
    "yield",
    "Tokens per step and break-even",
    "Does a step yield more than it costs? A bar beyond its line is a gain; ring: predicted.",
    300,
)
TASKS = Panel("tasks", "Speed-up by task", "Which prompts does it suit? Dashed: vanilla decoding.")
TIME = Panel("time", "Where is the time spent?", "Which part of a step is worth speeding up?")
PANELS = (SPEED, GAIN, TASKS, TIME, SIZES, LENGTHS, TREE)  # charts with data are shown


@dataclass(frozen=True)
class DrafterInfo:
    """Facts about a drafter from its training run. `hits`: path of a draft token -> its
    contribution to the accepted length on held-out answers. `predicted`: accepted length with the
    default trees."""

    hits: Mapping[Path, float] = field(default_factory=dict)
    predicted: float | None = None
    parameters: float | None = None
    steps: float | None = None

    def expected(self, decoder: DecoderReport, default: bool) -> float | None:
        """Tokens per step on held-out answers. `default`: with trees that follow the drafter's
        confidence."""
        if decoder.combined:
            return None  # the matches of prompt lookup in other prompts are unknown
        if default:
            return self.predicted
        known = self.hits and decoder.hits
        return 1 + sum(self.hits.get(path, 0.0) for path in decoder.hits) if known else None


def decoding_charts(job: Job, wanted: str = "") -> dict[Panel, Chart]:
    """Charts of a benchmark, or of a drafter with its benchmarks; empty for other runs and for
    unfinished benchmarks.

    Args:
        wanted: decoder whose draft tree is drawn; the fastest with a tree if there is none.
    """
    if job.kind != NAME:
        measured = [r for r in measurements(job.run) if r.name == job.run][:1]
        drafters = {job.run: measured[0].kind if measured else job.run}
        paint = name_colors(drafters)
        return tree_sizes(drafters, measured, paint) if tree_curves(job.run) else {}
    decoders = decoder_reports(job.run)
    if not decoders or not all(d.prompts for d in decoders):
        return {}
    names = short_names(decoders)
    trained = [d for d in decoders if d.kind and not d.combined]
    infos = {d.name: drafter_of(d.run) for d in decoders if d.kind}
    prompts = decoders[0].prompts
    timed = f"Median of {job.config['rounds']} repetitions over {prompts} prompts; lines: range."
    means = f"Means over {prompts} prompts."
    charts = tree_sizes({d.run: names[d.name] for d in trained}, trained, colors(decoders))
    charts[SPEED] = speed_up(decoders, timed)
    charts[GAIN] = gain(decoders, infos, not job.config.get("nodes"), means)
    if len(decoders) > 1 and len(decoders[0].tasks) > 1:
        charts[TASKS] = by_task(decoders, timed)
    charts[TIME] = step_time(decoders, means)
    trees = drawn_trees(decoders)
    if tree := next((d for d in trees if d.name == wanted), next(iter(trees), None)):
        charts[TREE] = tree_chart(tree, infos[tree.name].hits)
    return charts


def drafter_of(run: str) -> DrafterInfo:
    results = queries.results([run])
    rows = {row.metric: row.value for row in results if row.stage == DRAFTER_FOLDER}
    figures = (rows.get(key) for key in (PREDICTED_LENGTH, PARAMETERS, STEPS))
    return DrafterInfo(gains_by_path(run), *figures)


def colors(decoders: Sequence[DecoderReport]) -> dict[str, str]:
    return name_colors(d.name for d in decoders)


def drafting(decoders: Sequence[DecoderReport]) -> list[DecoderReport]:
    return [d for d in decoders if d.drafts]


def short_names(decoders: Sequence[DecoderReport]) -> dict[str, str]:
    """The name of each decoder: its architecture where that is unique, else with its run."""
    titles = [d.title for d in decoders if d.kind]
    return {d.name: d.title if d.kind and titles.count(d.title) == 1 else d.label for d in decoders}


def bar_labels(decoders: Sequence[DecoderReport]) -> list[str]:
    """Labels of bars, wrapped for narrow screens."""
    names = short_names(decoders)
    return [esc(names[d.name]).replace(" + ", " +<br>").replace(" (", "<br>(") for d in decoders]


def speed_up(decoders: Sequence[DecoderReport], note: str) -> Chart:
    """Speed-up over vanilla decoding, with the lowest and highest repetition as a line through the
    bar."""
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
    names = short_names(decoders)
    rows = [(names[d.name], d.speed_up, d.faster) for d in drafting(decoders)]
    ranges = {names[d.name]: d.speed_up_range() for d in decoders}
    return Chart(figure, frame, note, headline=speed_headline(rows, ranges))


def gain(
    decoders: Sequence[DecoderReport], drafters: Mapping[str, DrafterInfo], default: bool, note: str
) -> Chart:
    """Tokens per step as a bar, the break-even as a line, and the prediction as a ring."""
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
    looks = _bar_layout("gain", "Tokens per step", decoders, reach, texts, MORE_ROOM)
    names = short_names(decoders)
    rows = [(names[d.name], d.accepted, d.break_even) for d in drafting(decoders)]
    figure = go.Figure([bars, marks, rings], looks)
    return Chart(figure, frame, note, headline=break_even_headline(rows))


def step_time(decoders: Sequence[DecoderReport], note: str) -> Chart:
    """Mean milliseconds of one decoding step by part, with their sum next to the bar."""
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
    texts = [f"{milliseconds:.1f} ms" for milliseconds in whole]
    looks = _bar_layout("time", "Milliseconds per step", decoders, whole, texts)
    row = legend_row(traceorder="normal")
    figure = go.Figure(traces, looks | {"margin": {"t": row.pop("top")}, "barmode": "stack"} | row)
    slowest = max(decoders, key=lambda d: sum(d.milliseconds.values()))
    parts = {label: slowest.milliseconds.get(part, 0.0) for part, (label, _) in PARTS.items()}
    return Chart(
        figure, frame, note, headline=parts_headline(short_names(decoders)[slowest.name], parts)
    )


def _bars(decoders: Sequence[DecoderReport], values: pd.Series, **options: Any) -> go.Bar:
    paint = colors(decoders)
    marker = {"color": [paint[d.name] for d in decoders]}
    return go.Bar(
        x=values, y=bar_labels(decoders), orientation="h", width=0.5, **{"marker": marker} | options
    )


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
            "y": label,
            "text": text,
            "xshift": 8,
            "font": {"color": LIGHT.text},
            "bgcolor": LIGHT.paper,
        }
        for label, end, text in zip(bar_labels(decoders), ends, texts, strict=True)
    ]
    return layout(
        view=view,
        more=BAR * max(0, len(decoders) - FEW_BARS),
        annotations=notes,
        xaxis=axis(title, range=[0, room * ends.max()]),
        yaxis=category_axis(),
    )


def by_task(decoders: Sequence[DecoderReport], note: str) -> Chart:
    """Speed-up with its range: one row per task, one dot per decoder."""
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
    paint, names, figure = colors(decoders), short_names(decoders), go.Figure()
    for place, decoder in enumerate(drafters):
        rows = frame[frame["Decoder"] == decoder.label]
        up = rows["Speed-up, ×"]
        shift = JITTER * ((place + 0.5) / len(drafters) - 0.5)
        figure.add_scatter(
            x=up,
            y=[tasks.index(task) + shift for task in rows["Task"]],
            name=esc(names[decoder.name]),
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
        **legend_row(),
    )
    fastest = max(drafters, key=lambda d: d.speed_up, default=None)
    ups = {task.replace("_", " "): up for task, (up, _) in fastest.tasks.items()} if fastest else {}
    headline = tasks_headline(names[fastest.name], ups) if fastest else ""
    return Chart(figure.update_layout(looks), frame, note, headline=headline)
