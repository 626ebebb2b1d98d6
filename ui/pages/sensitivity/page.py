"""Sensitivity: what each layer of a model loses in each format, and which break first."""

from dataclasses import replace
from typing import Any

import gradio as gr

from backend.store import queries
from backend.store.states import ACTIVE
from jobs.profile.profiles import CALIBRATION_TOKENS, WIDEST_INPUT
from ui.format import count, href
from ui.frame import Page
from ui.pages.sensitivity.panels import AGREEMENT, CHARTS, CURVE, MAP, WORST
from ui.pages.sensitivity.selection import FIGURES, SensitivitySelection, SensitivityView
from ui.runs.explorer_page import ExplorerPage, profile_mark
from ui.runs.profiles import PROFILE_PAGE_OPTIONS
from ui.templates import fragments
from ui.widgets.dropdown import choices, dropdown
from ui.widgets.explorer import Explorer, page_state
from ui.widgets.html import notice, plain
from ui.widgets.panel import Outputs, Updates, page_charts, updates

HTML = fragments("pages/sensitivity/page.html")


def build() -> None:
    page = Outputs(
        run=dropdown("Run", "sensitivity-run", min_width=240),
        format=dropdown("Format", "sensitivity-format", min_width=180),
        figure=dropdown("Figure", "sensitivity-figure", min_width=180),
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
            with gr.Column(min_width=320, visible=False) as page["measured"]:
                page |= AGREEMENT.build("sensitivity")
    page["seen"] = page_state()
    _wire(Explorer(page, SensitivitySelection, SensitivityView.at))


def _wire(explorer: Explorer[SensitivitySelection, SensitivityView]) -> None:
    explorer.on_load(SHARED.open)
    explorer.on_selection(explorer.event("run"), change_run)
    for name in ("format", "figure", "layer"):
        explorer.on(explorer.event(name), choose)
    for panel in (MAP, WORST, AGREEMENT, CURVE):
        explorer.on_point(panel.parts[0], "format" if panel is CURVE else "layer", choose)
    explorer.on_change(SHARED.refresh)


def change_run(selection: SensitivitySelection) -> Updates:
    return SHARED.refresh_all(replace(selection, layer=""), selection)


def choose(view: SensitivityView) -> Updates:
    """After another format, figure or layer; a clicked point moves the control, too."""
    chosen = {"format": view.selection.format, "layer": view.selection.layer}
    return updates(chosen, draw(view))


def draw(view: SensitivityView) -> Updates:
    """All charts, and what was profiled, and how far."""
    profile, job = view.profile, queries.job(view.selection.run)
    facts = [profile.model, f"{count(len(profile.layers))} layers, {len(profile.formats)} formats"]
    if view.measured:
        facts.append(f"measured in {' and '.join(map(str, view.measured))}, else estimated")
    facts.append(f"estimated {profile.estimate}")
    tokens, inputs = (job.environment.get(x) for x in (CALIBRATION_TOKENS, WIDEST_INPUT))
    if isinstance(tokens, int) and isinstance(inputs, int):
        few = " (too few)" if tokens < 2 * inputs else ""
        facts.append(f"{count(tokens)} calibration tokens for {count(inputs)} inputs{few}")
    if job.state in ACTIVE:
        facts.append("still measuring")
    head = HTML.head(job.run, facts, href("trade-offs", run=job.run))
    told = {"head": head, "measured": gr.update(visible=bool(view.measured))}
    return updates(told, *(panel.show(made(view)) for panel, made in CHARTS.items()))


def offers(view: SensitivityView) -> dict[str, dict[str, Any]]:
    return {
        "format": {"choices": [(form.label, str(form)) for form in view.profile.formats]},
        "figure": {"choices": [(figure.label, name) for name, figure in FIGURES.items()]},
        "layer": {"choices": choices(view.tensors)},
    }


SHARED = ExplorerPage(
    SensitivitySelection,
    SensitivityView.at,
    profile_mark,
    offers,
    draw,
    **PROFILE_PAGE_OPTIONS,
    lacks="measured no layer",
    later="They appear here block by block.",
)
PAGE = Page(
    "Sensitivity",
    "sensitivity",
    build,
    order=62,
    section="Explore",
    key="s",
    charts=page_charts("sensitivity", SHARED.at, CHARTS, "run"),
)
