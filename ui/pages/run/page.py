"""The page *Run*: settings, results, curves, log and files of one run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
import pandas as pd
from markupsafe import Markup

from backend.errors import SlimscopeError
from backend.metric_key import MetricKey
from backend.printable import one_line
from backend.queue.actor import Actor
from backend.queue.scheduling import awaited
from backend.store import frames, queries, tensors
from backend.store.session import now_ms
from backend.store.states import ACTIVE, LIVE
from backend.store.tables import Job
from jobs.benchmark.report import decoder_reports
from jobs.kind import capital
from jobs.metrics import BLOCK, LOSS, MEMORY, PERPLEXITY, PROCESSOR, axis_title, metric
from jobs.metrics import TREE as TREE_FAMILY
from jobs.operations.runs import artifact_file
from ui.charts.chart import Chart
from ui.charts.headlines import blocks_headline, curves_headline, lower, usage_headline
from ui.charts.lines import Line, curves_frame, line_chart, points_label, reduced_note
from ui.charts.series import Series, overlay_chart
from ui.frame import SILENT_EVENT, Page, current_user, live, on_load, query, url_sync
from ui.gradio_patches import event_data
from ui.pages.run import details
from ui.pages.run.decoding import PANELS, decoding_charts
from ui.pages.run.draft_trees import TREE, drawn_trees
from ui.pages.run.job_log import build_log, chosen_job, history_html
from ui.pages.run.outcome import (
    certainty,
    finding,
    findings,
    outcome,
    samples,
    stage_tables,
    times,
)
from ui.pages.run.pipeline import pipeline_card
from ui.pages.run.stages import perplexity_chart
from ui.runs.actions import (
    act,
    buttons,
    clone_link,
    group_buttons,
    next_links,
    restarts_from_scratch,
    sweep_link,
)
from ui.runs.html import (
    elapsed,
    error_of,
    not_found_html,
    progress,
    run_description,
    took,
    waiting_html,
)
from ui.runs.results import DENSE, RunResults, display_units, kind_of, stages_of
from ui.runs.weights import grid_description, kept_stage, weights_of
from ui.templates import fragments
from ui.theme import stage_style
from ui.widgets.dropdown import dropdown
from ui.widgets.html import (
    LATEST,
    WIDGETS,
    Download,
    HtmlPanel,
    notice,
    plain,
    show_error,
    show_html,
    small_file,
)
from ui.widgets.panel import Outputs, Panel, Updates, page_charts, updates

HTML = fragments("pages/run/page.html")
TABS = {  # tabs without content are hidden
    "summary": "Summary",
    "curves": "Curves",
    "log": "Log",
    "artifacts": "Files",
    "provenance": "Provenance",
}
STAGES = Panel(
    "stages",
    "Perplexity by stage",
    "How much perplexity does each stage cost?",
    280,
)
WEIGHTS = Panel(
    "weights", "Weights before and after", "What did the run do to the weights of a layer?", 260
)
CURVES = tuple(
    Panel(f"curve{n}", "Curve", "", 260) for n in range(1, 13)
)  # maximum number of curves
HTML_PARTS = ("results", "findings", "samples", "behind", "settings", "history", "disk", "files")
Lines = dict[MetricKey, pd.DataFrame]  # the points of each curve
NO_CURVES = "This run has recorded no curves."
NO_WEIGHT_STATISTICS = "This run has stored no weight statistics of two stages."


def build() -> None:
    head = HtmlPanel(elem_id="run-head", min_height=64)
    message = notice("run-said")
    with gr.Tabs(elem_id="run-tabs") as tabs:
        tab = {name: gr.Tab(title, id=name) for name, title in TABS.items()}
    page = Outputs(head=head, tabs=tabs, **tab)
    with tab["summary"]:
        page |= _summary()
    lines = Outputs(curves=tab["curves"])
    with tab["curves"], gr.Row(elem_classes="curve-wall"):
        lines |= _hidden_panels(CURVES)
    with tab["log"]:
        _, page["timer"] = build_log("run", message)
    with tab["artifacts"]:
        page["disk"] = disk = HtmlPanel(elem_id="run-disk")
        page["files"] = HtmlPanel(elem_id="run-artifacts", min_height=120)
        page["files"].act(download, None, [Download(), message], **SILENT_EVENT)
    with tab["provenance"], gr.Row(equal_height=False):
        for part in ("settings", "history"):
            with gr.Column(min_width=320):
                page[part] = HtmlPanel(elem_id=f"run-{part}")
    for name, one in tab.items():
        one.select(None, None, None, js=f"() => slimscope.tab('{name}')")

    on_load(on_open, None, tabs)
    show = page.named(draw), page["drafter"], page.components
    live(*show)
    live(lines.named(draw_curves), None, lines.components)
    url_sync(page["drafter"].input(*show, **LATEST), drafter=page["drafter"])
    head.on_action(act, message, show)
    page["results"].on_action(act, message, show)
    disk.on_action(act, message, show)


def _hidden_panels(panels: Sequence[Panel], **controls: Any) -> dict[str, Any]:
    """Panels that stay hidden until a run has data for them."""
    parts: dict[str, Any] = {}
    for panel in panels:
        with gr.Column(visible=False, min_width=320) as parts[panel.name]:
            parts |= panel.build("run", [[controls[panel.name]]] if panel.name in controls else ())
    return parts


def _summary() -> dict[str, Any]:
    """The charts, followed by texts and metrics."""
    parts: dict[str, Any] = {"drafter": dropdown("Drafter", "run-drafter")}
    with gr.Row(equal_height=True, elem_classes="curve-wall run-charts"):
        parts |= _hidden_panels((STAGES, WEIGHTS, *PANELS), tree=parts["drafter"])
    parts["samples"] = plain(elem_id="measures-samples")
    with gr.Row(equal_height=False, elem_classes="run-summary"):
        with gr.Column(scale=3, min_width=320):
            parts["results"] = HtmlPanel(elem_id="run-figures")
        with gr.Column(scale=2, min_width=320):
            parts["findings"] = plain(elem_id="measures-said")
            parts["behind"] = plain(elem_id="run-behind")
    return parts


def on_open(request: gr.Request) -> Any:
    """The tab in the URL."""
    tab = query(request, "tab", "summary", TABS)
    return gr.update(selected=tab, visible=chosen_job(request) is not None)


def draw(drafter: str | None, request: gr.Request) -> Updates:
    job = chosen_job(request)
    if job is None:
        what = f"There is no run {query(request, 'id') or 'of that name'}."
        blank = dict.fromkeys(HTML_PARTS, "")
        gone = {"tabs": gr.update(visible=False), "timer": gr.update(active=False)}
        return updates({"head": not_found_html("Run", what)}, gone, blank)
    user, now = current_user(request), now_ms()
    rows = queries.results([job.run])
    results = RunResults(kind_of(job), rows, job, queries.step_times([job.id]))
    measured, sampled = findings(job)
    disk, files = details.disk_card(job, user), queries.artifacts(job.run)
    html = {
        "head": head_html(job, results, user),
        "timer": gr.update(active=job.state in LIVE),
        "results": WIDGETS.stack(results_html(job, results), pipeline_card(job, user)),
        "findings": measured,
        "samples": samples(sampled),
        "behind": WIDGETS.stack(
            HTML.steps(times(results, elapsed(job, now))),
            details.lineage_card(job),
            details.reproduction_card(job),
        ),
        "settings": WIDGETS.stack(
            details.config_card(job), details.plan_card(job), details.texts_card(job.environment)
        ),
        "history": WIDGETS.stack(
            details.environment_card(job),
            details.attempts_card(queries.attempts(job.run), now),
            HTML.history(history_html(job)),
        ),
        "disk": disk,
        "files": details.artifacts(job.run, files),
        "log": gr.update(visible=job.attempts_made > 0),
        "artifacts": gr.update(visible=bool(disk or files)),
    }
    charts = {STAGES: stages_chart(job, results), WEIGHTS: weights_chart(job)}
    charts |= decoding_charts(job, drafter or query(request, "drafter"))
    trees = [d for d in drawn_trees(decoder_reports(job.run)) if TREE in charts]
    chosen = next((d.name for d in trees if d.name == drafter), trees[0].name if trees else None)
    choice = gr.update(
        choices=[(d.label, d.name) for d in trees], value=chosen, visible=len(trees) > 1
    )
    return updates(html, {"drafter": choice}, _panels((STAGES, WEIGHTS, *PANELS), charts, job.run))


def _panels(panels: Sequence[Panel], charts: Mapping[Panel, Chart], run: str) -> Updates:
    """Updates that show the charts with data and hide the other panels."""
    drawn = {panel: chart for panel, chart in charts.items() if chart.frame is not None}
    shown = {panel.name: gr.update(visible=panel in drawn) for panel in panels}
    return updates(shown, *(panel.show(chart, run) for panel, chart in drawn.items()))


def stages_chart(job: Job, results: RunResults) -> Chart:
    if PERPLEXITY not in results.metrics:
        active = "Perplexity appears here as the stages are measured."
        return Chart(active if job.state in ACTIVE else "This run measured no perplexity.")
    figure = results.key_figure
    rival = next(iter(figure.rivals if figure else ()), "")
    return perplexity_chart([*results.rows.values()], results.labels, rival, results.kept or "")


def weights_chart(job: Job) -> Chart:
    """One layer in the dense and in the kept stage."""
    weights = weights_of(job.run)
    if not weights:
        return Chart(NO_WEIGHT_STATISTICS)
    tensor = weights.example_tensor
    stored = {s.stage: s for s in tensors.tensor_snapshots(job.id, tensor)}
    if DENSE not in stored:  # not measured, or unreadable
        return Chart(NO_WEIGHT_STATISTICS)
    drawn = [
        Series(stored[stage], weights.labels[stage], stage_style(stage))
        for stage in dict.fromkeys((DENSE, kept_stage(weights, stored)))
    ]
    if len(drawn) < 2:
        return Chart(NO_WEIGHT_STATISTICS)
    question = f"{weights.tensors[tensor]}: what did the run do to its weights?"
    chart, grid = overlay_chart(drawn), grid_description(job, tensor)
    title = f"{drawn[-1].label}: {grid}" if grid else chart.headline
    return replace(chart, question=question, headline=title)


def head_html(job: Job, results: RunResults, actor: Actor) -> Markup:
    now = now_ms()
    actions = [buttons(job, actor), clone_link(job), next_links(job), sweep_link(job)]
    keeping = group_buttons(job, actor, "order")
    return HTML.head(
        job,
        now,
        finding(job, results),
        actions,
        keeping,
        run_description(job),
        took(job, now),
        progress(job),
        error_of(job),
        restarts_from_scratch(job),
    )


def results_html(job: Job, results: RunResults) -> Markup:
    stages = stage_tables(results)
    needed = awaited([job.id]).get(job.id, [])
    waiting = ""
    if needed:
        waiting = waiting_html(needed)
    elif not stages and not results.run_level:
        active = "Results appear here as they are measured."
        waiting = active if job.state in ACTIVE else "No results recorded."
    figures = outcome(job, results, now_ms())
    return HTML.results(waiting, figures, stages, certainty(job, results))


def draw_curves(request: gr.Request) -> Updates:
    """Charts of all families of curves. Families of single points are hidden, because the results
    show their values."""
    job = chosen_job(request)
    cards = _cards(job) if job else {}
    shown = {
        panel: (card, lines)
        for panel, (card, lines) in zip(CURVES, cards.items(), strict=False)
        if any(len(points) > 1 for points in lines.values())
    }
    panels = [
        panel.show(
            curve_chart(job, card, lines),
            "-".join(filter(None, (job.run, card.family, card.stage))),
        )
        for panel, (card, lines) in shown.items()
        if job
    ]
    visible = {panel.name: gr.update(visible=panel in shown) for panel in CURVES}
    return updates({"curves": gr.update(visible=bool(shown))}, visible, *panels)


def _cards(job: Job) -> dict[MetricKey, Lines]:
    """Curves that are drawn together: the stages of a family, or the series of a family at one
    stage. The loss comes first, what the process took last. Stories name a card by its place. The
    curves over the size of a draft tree stand on top of the page."""
    cards: dict[MetricKey, Lines] = {}
    for key, points in frames.by_key(display_units(frames.chart_curves(job.run))).items():
        if key.family == TREE_FAMILY:
            continue
        card = replace(key, series="") if key.series else replace(key, stage="")
        cards.setdefault(card, {})[key] = points
    last = (MEMORY, PROCESSOR)
    order = sorted(cards, key=lambda card: (card in last, card.family != LOSS.family, str(card)))
    return {card: cards[card] for card in order}


def curve_chart(job: Job, card: MetricKey, lines: Lines) -> Chart:
    """The curves of one card, in the order of the stages."""
    stages, kind = stages_of(job), kind_of(job)
    order = {stage: place for place, stage in enumerate(stages)}
    keys = sorted(lines, key=lambda key: (order.get(key.stage, len(order)), str(key)))
    named = {key: key.series or key.stage or key.family for key in keys}
    labels = {key: stages.get(name) or capital(name) for key, name in named.items()}
    x_title, shown = axis_title(card.axis), metric(card)
    quantity = shown.label
    if card.stage:
        quantity += f" of {stages.get(card.stage, card.stage)}"
    points = next(iter(lines.values()))
    drawn = [
        Line(labels[key], lines[key], stage_style(key.series or key.stage, place))
        for place, key in enumerate(keys)
    ]
    view = "|".join(map(str, keys))
    figure = line_chart(drawn, view=view, x_title=x_title, y_title=shown.title)
    frame = curves_frame({labels[key]: lines[key] for key in keys}, x_title)
    note = f"n = {len(frame)} {points_label(card, len(keys) > 1)}.{reduced_note(points)}"
    by_block = card.axis == BLOCK
    question = f"In which blocks is {lower(quantity)} large?" if by_block else ""
    main = stages.get(job.kept_stage or (kind.default_stage if kind else ""), "")
    if card in (MEMORY, PROCESSOR):
        told = usage_headline(frame, quantity, shown.shown_unit)
        return Chart(figure, frame, note, question, headline=told or quantity)
    headline_of = blocks_headline if by_block else curves_headline
    told = headline_of(frame, quantity, main, shown.shown_unit)
    note += "" if by_block else " The title compares the means of the first and last tenth."
    return Chart(figure, frame, note, question, headline=told or quantity)


def download(event: gr.EventData, request: gr.Request) -> Any:
    pressed = event_data(event)
    run, path = str(pressed.get("run")), one_line(str(pressed.get("file")))
    try:
        return [small_file(artifact_file(run, path)), show_html()]
    except SlimscopeError as error:
        return [gr.skip(), show_error(error)]


def _curve(place: int) -> Callable[[Job], Chart]:
    def draw(job: Job) -> Chart:
        found = [*_cards(job).items()][place : place + 1]
        return curve_chart(job, *found[0]) if found else Chart(NO_CURVES)

    return draw


def _decoding(panel: Panel) -> Callable[[Job], Chart]:
    return lambda job: decoding_charts(job).get(panel, Chart("This run has no such chart."))


REPORTED = {
    STAGES: lambda job: stages_chart(
        job, RunResults(kind_of(job), queries.results([job.run]), job)
    ),
    WEIGHTS: weights_chart,
    **{panel: _decoding(panel) for panel in PANELS},
    **{panel: _curve(place) for place, panel in enumerate(CURVES)},
}
PAGE = Page(
    "Run",
    "run",
    build,
    order=100,
    section="Runs",
    listed=False,
    heading=False,
    charts=page_charts("run", chosen_job, REPORTED, "id", "The run was deleted."),
)
