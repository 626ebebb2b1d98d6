"""Trade-offs: size or sparsity against quality, and the best mix of formats for a budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.budget import PREFIX
from backend.errors import SlimscopeError
from backend.store import queries
from backend.store.states import State
from jobs.profile.budgets import KINDS
from ui.format import href, number, share
from ui.frame import Page
from ui.pages.trade_offs import panels
from ui.pages.trade_offs.panels import CHARTS, FRONT, MAP
from ui.pages.trade_offs.selection import METHODS, TradeoffSelection, TradeoffView
from ui.runs.profiles import NEW, NO_RUN, profiled_runs
from ui.runs.weights import run_choices
from ui.templates import fragments
from ui.widgets.config_form import field_error
from ui.widgets.dropdown import Choices, dropdown, segmented
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
from ui.widgets.notice import EMPTY, notice, plain, show_html
from ui.widgets.panel import Outputs, Panel, Updates, page_charts, updates

HTML = fragments("pages/trade_offs/page.html")
LATER = "The front appears here when it has."
TO_MIX_OR_RUN = """(now) => {
  const to = slimscope.picked.customdata;
  if (!to?.startsWith("run?")) return to ?? now;
  window.location.href = to;
  return now;
}"""


def build() -> None:
    page = Outputs(
        run=dropdown("Run", "tradeoffs-run", min_width=240),
        method=segmented({}, "Formats", "tradeoffs-method", titled=True),
        budget=gr.Textbox(
            label="Budget", info="80MB, 3.25bits, 50% of zeros, or loss 2%", max_length=40,
            max_lines=1, elem_id="tradeoffs-budget", min_width=200, render=False,
        ),
    )  # fmt: skip
    solve = gr.Button(
        "Find the mix", elem_id="tradeoffs-solve", scale=0, min_width=120, render=False
    )
    with gr.Row(elem_classes="bar"):
        page["run"].render()
        page["method"].render()
    page["head"] = plain(elem_id="tradeoffs-head")
    page["notice"] = notice("tradeoffs-notice")
    with gr.Column(elem_id="tradeoffs-charts") as page["charts"], gr.Row(equal_height=True):
        page |= FRONT.build("tradeoffs")
        with gr.Column(min_width=320):
            with gr.Column(elem_classes="card form-field"):
                with gr.Row(elem_classes="card-controls"):
                    page["budget"].render()
                    solve.render()
                page["refusal"] = notice("tradeoffs-refusal")
                page["answer"] = plain(elem_id="tradeoffs-answer")
            page |= MAP.build("tradeoffs")
    page["seen"] = page_state()
    _wire(Explorer(page, TradeoffSelection, TradeoffView.at), solve)


def _wire(explorer: Explorer[TradeoffSelection, TradeoffView], solve: gr.Button) -> None:
    explorer.on_load(open_page)
    explorer.on_selection(explorer.event("run"), change_run)
    explorer.on(explorer.event("method"), draw_all)
    explorer.on(explorer.event("budget", "submit"), change_budget)
    explorer.on(solve.click, change_budget)
    explorer.on_point(FRONT.parts[0], "budget", change_budget, js=TO_MIX_OR_RUN)
    explorer.on_change(refresh)


def open_page(request: gr.Request) -> Updates:
    return full_refresh(TradeoffSelection.from_address(request), TradeoffSelection())


def change_run(selection: TradeoffSelection) -> Updates:
    return full_refresh(selection, selection)


def change_budget(view: TradeoffView) -> Updates:
    """Shows the formats that the budget is of."""
    view = view.for_budget()
    return updates({"method": view.selection.method}, draw_all(view))


def draw_all(view: TradeoffView) -> Updates:
    return updates(answer_of(view), _draw(view, *CHARTS))


def answer_of(view: TradeoffView) -> Updates:
    """What the budget's mix comes to, or beside its field why there is none."""
    if isinstance(view.answer, SlimscopeError):
        return {"refusal": show_html(field_error(view.answer)), "answer": EMPTY}
    asked, mix = view.answer
    facts = [f"{number(mix.ratio)} × the perplexity, predicted"]
    if view.pruned:
        facts.append(f"{share(mix.sparsity)} zeros in the layers")
    else:
        facts += [f"{number(mix.nbytes / 1e6, 3)} MB", f"{number(mix.bits, 3)} bits a weight"]
    counted = Counter(form.label for form in mix.formats.values()).most_common()
    formats = [f"{many} × {form}" for form, many in counted]
    kind, model = KINDS[view.method], view.profile.model
    address = href("new", kind=kind, model=model, allocation=f"{PREFIX}{asked}")
    other = view.newest if view.newest != view.selection.run else ""
    return {"refusal": show_html(), "answer": HTML.answer(facts, formats, address, other)}


def refresh(seen: Any, selection: TradeoffSelection) -> Updates:
    """Updates after a database change, where a profile or a run has ended."""
    if seen and seen["mark"] == _mark():
        return {}
    return full_refresh(selection, selection, seen)


def full_refresh(
    selection: TradeoffSelection, before: TradeoffSelection, seen: Any = None
) -> Updates:
    """All of the page; `before` is the browser's selection, `seen` what was shown last."""
    jobs = profiled_runs()
    ended = [job for job in jobs if job.state == State.SUCCEEDED] or jobs
    selection = selection if selection.run or not ended else replace(selection, run=ended[0].run)
    runs, view = run_choices(jobs, selection.run), TradeoffView.at(selection)
    if view is None:
        lacks = "not measured all layers in formats of one kind"
        reason = empty_state(selection.run, NO_RUN, lacks, LATER, NEW)
        return updates({"head": ""}, show_notice(reason, runs, selection.run))
    offers = as_kept(_offers(view, runs))
    return updates(
        show_charts(),
        {"head": head_html(view), "seen": {"mark": _mark(), "offers": offers}},
        control_updates(view.selection, before, offers, seen and seen["offers"]),
        draw_all(view),
    )


def head_html(view: TradeoffView) -> Markup:
    uniform = view.front.uniform
    dense = [*uniform.values()][-1]
    facts = [view.profile.model, f"{number(dense.nbytes / 1e6, 3)} MB in 16 bits"]
    return HTML.head(view.selection.run, facts, href("sensitivity", run=view.selection.run))


def _mark() -> list[Any]:
    return list(queries.figures_mark())


def _offers(view: TradeoffView, runs: Choices) -> dict[str, dict[str, Any]]:
    methods = [(METHODS[method], method) for method in view.fronts]
    return {"run": {"choices": runs}, "method": {"choices": methods}, "budget": {}}


def _draw(view: TradeoffView, *chosen: Panel) -> Updates:
    return updates(*(panel.show(panels.CHARTS[panel](view)) for panel in chosen))


REPORTED = {
    panel: chart_at(TradeoffSelection, TradeoffView.at, draw) for panel, draw in CHARTS.items()
}
PAGE = Page(
    "Trade-offs", "trade-offs", build, order=64, section="Explore", key="b",
    charts=page_charts("tradeoffs", REPORTED, "run"),
)  # fmt: skip
