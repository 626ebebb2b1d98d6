"""Speed: is decoding with guesses faster here, and what wins or loses?"""

from __future__ import annotations

from typing import Any

import gradio as gr

from backend.errors import SlimscopeError
from backend.store import queries
from backend.store.tables import Job
from jobs import speed
from jobs.speed_words import VANILLA, Arm, arms_of
from ui.charts.speed_bars import speed_bars, time_bars
from ui.charts.speed_curves import (
    accepted_lengths,
    guesses_right,
    pass_costs,
    sizes_of,
    tree_sizes,
)
from ui.components import speed_details as details
from ui.components.board import LATEST, Board
from ui.components.choose import Choose
from ui.components.plotly_view import ChartCard, PlotlyView, chart_card, note_html
from ui.frame import Page, live, query, url_sync

ALL = ""  # tasks
WAITING = "Figures appear here when the run has ended."
NOT_TRIED = "This run tried no other tree sizes. The preset “thorough” does."
ASK_SPEED = (
    "Is it faster here? The dashed line is vanilla decoding of the same model in the same run."
)
ASK_TIME = (
    "What eats the gain? A pass pays when it yields more tokens than it lasts vanilla passes."
)
ASK_LENGTHS = "How many tokens does a pass yield? The token the base adds itself is counted."
ASK_RIGHT = "How far ahead do guesses stay right?"
ASK_SIZES = "Where is the optimum? A larger tree yields more tokens (solid) and has to (dotted)."
ASK_COSTS = "What does this machine ask for verifying several tokens at once? Flat is good."


def build() -> None:
    with gr.Row(elem_classes="card-controls"):
        run = Choose([], label="Benchmark", visible=False, elem_id="speed-run", min_width=240)
        task = Choose([], label="Prompts", visible=False, elem_id="speed-task", min_width=160)
    head = Board(elem_id="speed-head", min_height=120)
    with gr.Column(visible=False, elem_id="speed-charts") as charts:
        with gr.Row():
            bars = _card("Speed-up", ASK_SPEED, "speed-bars", 300)
            time = _card("Time of a pass", ASK_TIME, "speed-time", 300)
        with gr.Row():
            lengths = _card("Accepted length", ASK_LENGTHS, "speed-lengths", 340)
            right = _card("Right guesses", ASK_RIGHT, "speed-right", 340)
        with gr.Row():
            sizes = _card("Size of the tree", ASK_SIZES, "speed-sizes", 360)
            costs = _card("Price of a pass", ASK_COSTS, "speed-costs", 360)
    cards = (bars, time, lengths, right, sizes, costs)
    shown = [run, task, head, charts, *(part for c in cards for part in (c.view, c.note, c.table))]
    live(draw, [run, task], shown)
    url_sync(run.input(draw, [run, task], shown, **LATEST), run=run, task=task)
    url_sync(task.input(draw, [run, task], shown, **LATEST), run=run, task=task)


def _card(title: str, question: str, name: str, height: int) -> ChartCard:
    view = PlotlyView(label=title, height=height, elem_id=name, render=False)
    return chart_card(title, question, view)


def draw(run: str | None, task: str | None, request: gr.Request) -> list[Any]:
    """Choices, head, and every chart with its note and table."""
    runs = queries.jobs(kind=speed.NAME)
    job = _chosen(runs, run or query(request, "run"))
    if job is None:
        hidden = gr.update(visible=False)
        return [hidden, hidden, details.nothing(), hidden, *(["", "", ""] * 6)]
    results = queries.results([job.run])
    arms = arms_of(results)
    whole = bool(arms) and all(arm.prompts for arm in arms)
    tasks = [*arms[0].tasks] if whole else []
    wanted = task if task is not None else query(request, "task")
    of = wanted if wanted in tasks and all(wanted in arm.tasks for arm in arms) else ALL
    names = [(f"{j.run} {j.name}".strip(), j.run) for j in runs]
    return [
        gr.update(choices=names, value=job.run, visible=True),
        gr.update(
            choices=[("All tasks", ALL), *((t.replace("_", " "), t) for t in tasks)],
            value=of, visible=len(tasks) > 1,
        ),
        details.head(job, results),
        gr.update(visible=True),
        *(_charts(job, arms, of) if whole else [WAITING, "", ""] * 6),
    ]  # fmt: skip


def _chosen(runs: list[Job], name: str) -> Job | None:
    """The run of that name, or the newest."""
    try:
        job = queries.job(name) if name else None
    except SlimscopeError:
        job = None
    return job if job and job.kind == speed.NAME else next(iter(runs), None)


def _charts(job: Job, arms: list[Arm], task: str) -> list[Any]:
    """Figure, note and table of each chart, in the order of the page."""
    name, drafting = job.run, [arm for arm in arms if arm.name != VANILLA]
    rounds, prompts = job.config["rounds"], arms[0].prompts
    curves = queries.curves(job.id)
    found = curves[curves["name"] == "cost/verify"]
    costs = {int(n): float(v) for n, v in zip(found["step"], found["value"], strict=True)}
    passes = f"n = {sum(sum(arm.lengths.values()) for arm in drafting):,} passes."
    tried = any(sizes_of(curves, arm.name) for arm in arms)
    timed = f"Median of {rounds} rounds over {prompts} prompts; the line spans all rounds."
    return [
        speed_bars(arms, task), note_html(ASK_SPEED, timed),
        details.speed_data(arms, task, f"{name}-speed"),
        time_bars(arms), note_html(ASK_TIME, f"Means over {prompts} prompts."),
        details.time_data(arms, f"{name}-time"),
        accepted_lengths(arms) if drafting else None, note_html(ASK_LENGTHS, passes),
        details.length_data(arms, f"{name}-lengths"),
        guesses_right(arms) if drafting else None, note_html(ASK_RIGHT, passes),
        details.right_data(drafting, f"{name}-right"),
        tree_sizes(curves, arms) if tried else NOT_TRIED, note_html(ASK_SIZES),
        details.size_data(curves, arms, f"{name}-sizes") if tried else "",
        pass_costs(costs) if costs else None, note_html(ASK_COSTS, "Median of 5."),
        details.cost_data(costs, f"{name}-costs"),
    ]  # fmt: skip


PAGE = Page("Speed", "speed", build)
