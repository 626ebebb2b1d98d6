"""Trade-offs: size or sparsity against quality, and the best mix of formats for a budget."""

from collections import Counter
from typing import Any

import gradio as gr

from backend.budget import PREFIX
from backend.errors import SlimscopeError
from backend.store import queries
from jobs.profile.profiles import KINDS
from ui.format import NBSP, href, of_unit, share
from ui.frame import Page
from ui.pages.trade_offs.panels import CHARTS, FRONT, MAP
from ui.pages.trade_offs.selection import TITLES, TradeoffSelection, TradeoffView
from ui.runs.explorer_page import ExplorerPage
from ui.runs.profiles import PROFILE_PAGE_OPTIONS
from ui.templates import fragments
from ui.widgets.config_form import field_error
from ui.widgets.dropdown import dropdown, segmented
from ui.widgets.explorer import Explorer, page_state
from ui.widgets.html import EMPTY, notice, plain, show_html
from ui.widgets.panel import Outputs, Updates, page_charts, updates

HTML = fragments("pages/trade_offs/page.html")
TO_MIX_OR_RUN = """(now) => {
  const to = slimscope.picked.customdata;
  if (!to?.startsWith("run?")) return to ?? now;
  window.location.href = to;
  return now;
}"""


def build() -> None:
    page = Outputs(
        run=dropdown("Run", "tradeoffs-run", min_width=240),
        method=segmented("Formats", "tradeoffs-method"),
        across=segmented("Across", "tradeoffs-across"),
        budget=gr.Textbox(
            label="Budget",
            info="80MB, 3.25bits, 50% of zeros, 6.5ms or loss 2%",
            max_length=40,
            max_lines=1,
            elem_id="tradeoffs-budget",
            min_width=200,
            render=False,
        ),
    )
    solve = gr.Button(
        "Find the mix", elem_id="tradeoffs-solve", scale=0, min_width=120, render=False
    )
    with gr.Row(elem_classes="bar"):
        page["run"].render()
        page["method"].render()
        page["across"].render()
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
    explorer.on_load(SHARED.open)
    explorer.on_selection(explorer.event("run"), change_run)
    explorer.on(explorer.event("method"), change_method)
    explorer.on(explorer.event("across"), draw)
    explorer.on(explorer.event("budget", "submit"), change_budget)
    explorer.on(solve.click, change_budget)
    explorer.on_point(FRONT.parts[0], "budget", change_budget, js=TO_MIX_OR_RUN)
    explorer.on_change(SHARED.refresh)


def change_run(selection: TradeoffSelection) -> Updates:
    return SHARED.refresh_all(selection, selection)


def change_method(view: TradeoffView) -> Updates:
    """Shows a budget that is of the formats."""
    view = view.for_method()
    return updates({"budget": view.selection.budget}, draw(view))


def change_budget(view: TradeoffView) -> Updates:
    """Shows the formats that the budget is of."""
    view = view.for_budget()
    return updates({"method": view.selection.method}, draw(view))


def draw(view: TradeoffView) -> Updates:
    """Charts and figures of the budget's mix, or beside its field why there is none."""
    run, dense = view.selection.run, [*view.front.uniform.values()][-1]
    facts = [view.profile.model, f"{of_unit(dense.nbytes / 1e6, 'MB', 3)} in 16{NBSP}bits"]
    head = {"head": HTML.head(run, facts, href("sensitivity", run=run))}
    charts = (panel.show(made(view)) for panel, made in CHARTS.items())
    return updates(head, answer_of(view), *charts)


def answer_of(view: TradeoffView) -> Updates:
    if isinstance(view.answer, SlimscopeError):
        return {"refusal": show_html(field_error(view.answer)), "answer": EMPTY}
    asked, mix = view.answer
    facts = [f"{of_unit(mix.ratio, '×')} the perplexity, predicted"]
    if view.pruned:
        facts.append(f"{share(mix.sparsity)} zeros in the layers")
    else:
        facts += [
            of_unit(mix.nbytes / 1e6, "MB", 3),
            f"{of_unit(mix.bits, 'bits', 3)} a weight in the blocks",
        ]
    if mix.milliseconds:
        facts.append(f"{of_unit(mix.milliseconds, 'ms', 3)} a token, predicted")
    inside = [mix.formats[layer.name].label for layer in view.blocks.layers]
    (usual, most), *others = Counter(inside).most_common()
    formats = [f"{'Mostly' if others else 'All'} {usual} ({most} of {len(inside)} layers)"]
    formats += [f"{many}{NBSP}× {label}" for label, many in others]
    outside = {mix.formats[layer.name] for layer in view.outside}
    if not view.pruned:
        formats += [f"embedding: {form.label}" for form in outside]
    kind, model = KINDS[view.method], view.profile.model
    packs_all = any(form.width for form in outside)  # no other file holds those
    format = "slimscope" if packs_all else ""
    address = href("new-run", kind=kind, model=model, allocation=f"{PREFIX}{asked}", format=format)
    other = view.newest if view.newest != view.selection.run else ""
    return {"refusal": show_html(), "answer": HTML.answer(facts, formats, address, other)}


def offers(view: TradeoffView) -> dict[str, dict[str, Any]]:
    return {
        "method": {"choices": [(TITLES[method], method) for method in view.fronts]},
        "across": {
            "choices": [("Size or zeros", ""), ("Tokens/s", "ms")],
            "visible": view.profile.times is not None,
        },
        "budget": {},
    }


SHARED = ExplorerPage(
    TradeoffSelection,
    TradeoffView.at,
    lambda _: [*queries.figures_mark()],
    offers,
    draw,
    **PROFILE_PAGE_OPTIONS,
    lacks="not measured all layers in formats of one kind",
    later="The front appears here when it has.",
)
PAGE = Page(
    "Trade-offs",
    "trade-offs",
    build,
    order=64,
    section="Explore",
    key="b",
    charts=page_charts("tradeoffs", SHARED.at, CHARTS, "run"),
)
