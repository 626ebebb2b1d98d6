"""Speed: is decoding with guesses faster here, and what wins or loses?"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.components import Component

from backend.errors import SlimscopeError
from backend.store import frames, queries
from backend.store.tables import Job
from jobs.speed import config as speed
from jobs.speed.report import VANILLA, DecoderReport, decoder_reports
from ui.charts.lines import curves as lines
from ui.frame import Page, live, query, url_sync
from ui.pages.speed import details
from ui.pages.speed.bars import speed_bars, task_dots, time_bars, yield_bars
from ui.pages.speed.curves import (
    accepted_lengths,
    guesses_right,
    pass_costs,
    sizes_of,
    tree_sizes,
)
from ui.pages.speed.draft_tree import guess_tree
from ui.widgets.chart import ChartCard, PlotlyView, chart_card, note_html, nothing
from ui.widgets.dropdown import FreeDropdown
from ui.widgets.html_panel import LATEST, HtmlPanel

NOT_TRIED = nothing("This run tried no other tree sizes. The preset “thorough” does.")
NO_TASKS = nothing("All prompts of this run are of one kind.")
NO_TREE = nothing("No drafter of this run has a tree whose guesses were counted.")
NO_HEADS = nothing("The run that trained this drafter has left no curves.")
SPEED_UP, TOKENS = "speed-up", "tokens"
ALL, SO_FAR = "all", "so-far"
BY = {SPEED_UP: "Speed-up", TOKENS: "Tokens a pass"}
OF = {ALL: "Of all passes", SO_FAR: "Of those that got so far"}
ASK = {
    "bars": "Is it faster here? The dashed line is vanilla decoding of the same model in the same "
    "run.",
    "yield": "Does a pass yield more than it costs? A bar beyond its mark, the break-even, is a "
    "gain.",
    "tasks": "Which prompts does it suit? The dashed line is vanilla decoding.",
    "time": "What eats the gain? A pass pays when it yields more tokens than it lasts vanilla "
    "passes.",
    "lengths": "How many tokens does a pass yield? The token the base adds itself is counted.",
    "right": "How far ahead do guesses stay right?",
    "sizes": "Where is the optimum? A larger tree yields more tokens a pass (solid), but has to "
    "yield more before it pays (dotted).",
    "costs": "What does this machine ask for verifying several tokens at once? Flat is good.",
    "tree": "Which guesses are worth verifying? A circle is as large as its guess is often right.",
    "heads": "What has each head learnt? How often the true token was its first guess, on answers "
    "it has not learnt from.",
}


def build() -> None:
    hidden: dict[str, Any] = {"visible": False}
    run = FreeDropdown([], label="Benchmark", elem_id="speed-run", min_width=240, **hidden)
    head = HtmlPanel(elem_id="speed-head", min_height=120)
    by = _radio(BY, "speed-by", "Figure")
    of = _radio(OF, "speed-of", "Share")
    drafter = FreeDropdown([], label="Drafter", elem_id="speed-drafter", render=False)
    with gr.Column(elem_id="speed-charts", **hidden) as charts:
        with gr.Row(equal_height=True):
            cards = [_card("Speed-up", "bars", 300), _card("Gain of a pass", "yield", 300)]
        with gr.Row(equal_height=True):
            cards += [
                _card("Speed-up by task", "tasks", 340, by),
                _card("Time of a pass", "time", 340),
            ]
        with gr.Row(equal_height=True):
            cards += [
                _card("Accepted length", "lengths", 340),
                _card("Right guesses", "right", 340, of),
            ]
        with gr.Row(equal_height=True):
            cards += [
                _card("Size of the tree", "sizes", 360),
                _card("Price of a pass", "costs", 360),
            ]
        with gr.Row(equal_height=True):
            cards += [_card("Tree of guesses", "tree", 400, drafter), _card("Heads", "heads", 400)]
    chosen = [run, by, of, drafter]
    shown = [run, by, of, drafter, head, charts]
    shown += [part for card in cards for part in (card.view, card.note, card.table)]
    live(draw, chosen, shown)
    named: dict[str, FreeDropdown | gr.Radio] = {"run": run, "by": by, "of": of, "drafter": drafter}
    for name, control in named.items():
        url_sync(control.input(draw, chosen, shown, **LATEST), **{name: control})


def _radio(choices: dict[str, str], name: str, label: str) -> gr.Radio:
    return gr.Radio(
        [(words, value) for value, words in choices.items()], label=label, elem_id=name,
        elem_classes=["segmented", "untitled"], render=False,
    )  # fmt: skip


def _card(title: str, name: str, height: int, control: Component | None = None) -> ChartCard:
    view = PlotlyView(label=title, height=height, elem_id=f"speed-{name}", render=False)
    return chart_card(title, ASK[name], view, [[control]] if control else ())


def draw(
    run: str | None, by: str | None, of: str | None, drafter: str | None, request: gr.Request
) -> list[Any]:
    """Choices, head, and every chart with its note and table."""
    runs = queries.jobs(kind=speed.NAME)
    job = _chosen(runs, run or query(request, "run"))
    if job is None:
        hidden = gr.update(visible=False)
        return [hidden] * 4 + [details.nothing(), hidden, *([""] * 3 * len(ASK))]
    arms = decoder_reports(job.run)
    whole = bool(arms) and all(arm.prompts for arm in arms)
    by = by or query(request, "by", SPEED_UP, BY)
    of = of or query(request, "of", ALL, OF)
    trees = [arm for arm in arms if arm.hits] if whole else []
    wanted = drafter or query(request, "drafter")
    tree = next((arm for arm in trees if arm.name == wanted), next(iter(trees), None))
    names = [(f"{j.run} {j.name}".strip(), j.run) for j in runs]
    return [
        gr.update(choices=names, value=job.run, visible=True),
        by,
        of,
        gr.update(
            choices=[(arm.label, arm.name) for arm in trees], value=tree and tree.name,
            visible=len(trees) > 1,
        ),
        details.head(job, arms),
        gr.update(visible=whole),
        *(_charts(job, arms, by, of, tree) if whole else [""] * 3 * len(ASK)),
    ]  # fmt: skip


def _chosen(runs: list[Job], name: str) -> Job | None:
    """The run of that name, or the newest."""
    try:
        job = queries.job(name) if name else None
    except SlimscopeError:
        job = None
    return job if job and job.kind == speed.NAME else next(iter(runs), None)


def _charts(
    job: Job, arms: list[DecoderReport], by: str, of: str, tree: DecoderReport | None
) -> list[Any]:
    """Figure, note and table of each chart, in the order of the page."""
    name, prompts = job.run, arms[0].prompts
    drafting = [arm for arm in arms if arm.name != VANILLA]
    known = {arm.name: details.drafter_of(arm.run) for arm in drafting if arm.kind}
    curves = frames.curves(job.id)
    found = curves[curves["name"] == "cost/verify"]
    costs = {int(n): float(v) for n, v in zip(found["step"], found["value"], strict=True)}
    passes = f"n = {sum(sum(arm.lengths.values()) for arm in drafting):,} passes."
    tried = any(sizes_of(curves, arm.name) for arm in arms)
    timed = f"Median of {job.config['rounds']} rounds over {prompts} prompts; the line spans all."
    several, so_far = len(arms[0].tasks) > 1, of == SO_FAR
    return [
        speed_bars(arms), note_html(ASK["bars"], timed),
        details.speed_data(arms, f"{name}-speed"),
        yield_bars(arms), note_html(ASK["yield"], f"Means over {prompts} prompts."),
        details.yield_data(arms, known, f"{name}-yield"),
        task_dots(arms, by == TOKENS) if drafting and several else NO_TASKS,
        note_html(ASK["tasks"], timed if by == SPEED_UP else ""),
        details.task_data(drafting, f"{name}-tasks"),
        time_bars(arms), note_html(ASK["time"], f"Means over {prompts} prompts."),
        details.time_data(arms, f"{name}-time"),
        accepted_lengths(arms) if drafting else None, note_html(ASK["lengths"], passes),
        details.length_data(arms, f"{name}-lengths"),
        guesses_right(arms, so_far) if drafting else None, note_html(ASK["right"], passes),
        details.right_data(drafting, so_far, f"{name}-right"),
        tree_sizes(curves, arms) if tried else NOT_TRIED, note_html(ASK["sizes"]),
        details.size_data(curves, arms, f"{name}-sizes") if tried else "",
        pass_costs(costs) if costs else None, note_html(ASK["costs"], "Fastest of 5."),
        details.cost_data(costs, f"{name}-costs"),
        *(_of_drafter(name, tree, known[tree.name]) if tree else _no_drafter()),
    ]  # fmt: skip


def _no_drafter() -> list[Any]:
    return [NO_TREE, note_html(ASK["tree"]), "", NO_TREE, note_html(ASK["heads"]), ""]


def _of_drafter(name: str, arm: DecoderReport, known: details.DrafterInfo) -> list[Any]:
    """The tree of one drafter and how its heads learnt."""
    counted = f"n = {sum(arm.lengths.values()):,} passes, {arm.nodes} nodes with the root."
    points = details.head_curves(arm.name)
    heads = sorted(points["name"].unique())
    figure = lines(points, heads, y_title="First guess right, %") if heads else NO_HEADS
    return [
        guess_tree(arm.hits, known.hits), note_html(ASK["tree"], counted),
        details.tree_data(arm, known, f"{name}-tree"),
        figure, note_html(ASK["heads"]),
        details.head_data(points, f"{name}-heads") if heads else "",
    ]  # fmt: skip


PAGE = Page("Speed", "speed", build, order=70, key="s")
