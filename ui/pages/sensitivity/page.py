"""Sensitivity: what each layer of a model loses in each format, and which break first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.store import queries
from backend.store.states import ACTIVE
from ui.format import count, href
from ui.frame import Page
from ui.pages.sensitivity import panels
from ui.pages.sensitivity.panels import AGREEMENT, CHARTS, CURVE, MAP, WORST
from ui.pages.sensitivity.selection import FIGURES, SensitivitySelection, SensitivityView
from ui.runs.profiles import NEW, NO_RUN, profiled_runs
from ui.runs.weights import run_choices
from ui.templates import fragments
from ui.widgets.dropdown import Choices, choices, dropdown
from ui.widgets.explorer import (
    Explorer,
    as_kept,
    chart_at,
    control_updates,
    empty_state,
    page_state,
    show_charts,
    show_notice,
)
from ui.widgets.notice import notice, plain
from ui.widgets.panel import Outputs, Panel, Updates, page_charts, updates

HTML = fragments("pages/sensitivity/page.html")
LATER = "They appear here block by block."


def build() -> None:
    page = Outputs(
        run=dropdown("Run", "sensitivity-run", min_width=240),
        format=dropdown("Format", "sensitivity-format", min_width=160),
        figure=dropdown("Figure", "sensitivity-figure", min_width=200),
        layer=dropdown("Layer", "sensitivity-layer"),
    )
    with gr.Row(elem_classes="bar"):
        for name in ("run", "format", "figure"):
            page[name].render()
    page["head"] = plain(elem_id="sensitivity-head")
    page["notice"] = notice("sensitivity-notice")
    with gr.Column(elem_id="sensitivity-charts") as page["charts"]:
        with gr.Row(equal_height=True):
            page |= MAP.build("sensitivity", scale=3)
            page |= WORST.build("sensitivity", scale=2)
        with gr.Row(equal_height=True):
            page |= CURVE.build("sensitivity", [[page["layer"]]])
            page |= AGREEMENT.build("sensitivity")
    page["seen"] = page_state()
    _wire(Explorer(page, SensitivitySelection, SensitivityView.at))


def _wire(explorer: Explorer[SensitivitySelection, SensitivityView]) -> None:
    explorer.on_load(open_page)
    explorer.on_selection(explorer.event("run"), change_run)
    for name in ("format", "figure"):
        explorer.on(explorer.event(name), draw_all)
    explorer.on(explorer.event("layer"), choose_layer)
    for panel in (MAP, WORST, AGREEMENT):
        explorer.on_point(panel.parts[0], "layer", choose_layer)
    explorer.on_point(CURVE.parts[0], "format", draw_all)
    explorer.on_change(refresh)


def open_page(request: gr.Request) -> Updates:
    return full_refresh(SensitivitySelection.from_address(request), SensitivitySelection())


def change_run(selection: SensitivitySelection) -> Updates:
    return full_refresh(replace(selection, layer=""), selection)


def draw_all(view: SensitivityView) -> Updates:
    return updates({"format": view.selection.format}, _draw(view, *CHARTS))


def choose_layer(view: SensitivityView) -> Updates:
    return updates({"layer": view.selection.layer}, _draw(view, *CHARTS))


def refresh(seen: Any, selection: SensitivitySelection) -> Updates:
    """Updates after a database change, where more was measured."""
    view = SensitivityView.at(selection)
    if view and seen and seen["mark"] == _mark(view):
        return {}
    return full_refresh(selection, selection, seen)


def full_refresh(
    selection: SensitivitySelection, before: SensitivitySelection, seen: Any = None
) -> Updates:
    """All of the page; `before` is the browser's selection, `seen` what was shown last."""
    jobs = profiled_runs()
    selection = selection if selection.run or not jobs else replace(selection, run=jobs[0].run)
    runs, view = run_choices(jobs, selection.run), SensitivityView.at(selection)
    if view is None:
        reason = empty_state(selection.run, NO_RUN, "measured no layer", LATER, NEW)
        return updates({"head": ""}, show_notice(reason, runs, selection.run))
    offers = as_kept(_offers(view, runs))
    return updates(
        show_charts(),
        {"head": head_html(view), "seen": {"mark": _mark(view), "offers": offers}},
        control_updates(view.selection, before, offers, seen and seen["offers"]),
        _draw(view, *CHARTS),
    )


def head_html(view: SensitivityView) -> Markup:
    """What was profiled, and how far."""
    profile, job = view.profile, queries.job(view.selection.run)
    facts = [profile.model, f"{count(len(profile.layers))} layers, {len(profile.formats)} formats"]
    if view.measured:
        facts.append(f"measured in {' and '.join(map(str, view.measured))}, else estimated")
    if job.state in ACTIVE:
        facts.append("still measuring")
    return HTML.head(job.run, facts, href("trade-offs", run=job.run))


def _mark(view: SensitivityView) -> list[Any]:
    run = view.selection.run
    return [queries.job(run).state, *(queries.profiles_mark(run) or ())]


def _offers(view: SensitivityView, runs: Choices) -> dict[str, dict[str, Any]]:
    figures = [(figure.label, name) for name, figure in FIGURES.items()]
    formats = [(form.label, str(form)) for form in view.profile.formats]
    return {
        "run": {"choices": runs}, "format": {"choices": formats}, "figure": {"choices": figures},
        "layer": {"choices": choices(view.tensors)},
    }  # fmt: skip


def _draw(view: SensitivityView, *chosen: Panel) -> Updates:
    return updates(*(panel.show(panels.CHARTS[panel](view)) for panel in chosen))


REPORTED = {
    panel: chart_at(SensitivitySelection, SensitivityView.at, draw)
    for panel, draw in CHARTS.items()
}
PAGE = Page(
    "Sensitivity", "sensitivity", build, order=62, section="Explore", key="s",
    charts=page_charts("sensitivity", REPORTED, "run"),
)  # fmt: skip
