"""What happens on the Quant page: each event, and the outputs it changes."""

from dataclasses import replace
from typing import Any

import gradio as gr

from backend.store import queries
from jobs.dlqat import config as dlqat
from ui.format import href
from ui.pages.quantization import panels
from ui.pages.quantization.group_map import FIGURES
from ui.pages.quantization.selection import MAGNITUDE, QuantSelection, QuantView
from ui.runs.weights import run_choices
from ui.widgets.dropdown import Choices, choices
from ui.widgets.explorer import as_kept, control_updates, empty_state, show_charts, show_notice
from ui.widgets.panel import Panel, Updates, updates

NO_RUN = "No run has trained inside a quantisation grid yet."
LATER = "They appear here when training begins."


def open_page(request: gr.Request) -> Updates:
    return full_refresh(QuantSelection.from_address(request), QuantSelection())


def change_run(selection: QuantSelection) -> Updates:
    return full_refresh(replace(selection, step="", group=""), selection)


def refresh(seen: Any, selection: QuantSelection) -> Updates:
    """All of the page when more was recorded, which a page at the newest snapshot follows."""
    view = QuantView.at(selection)
    if view is None or not seen:
        return full_refresh(selection, selection)
    now = _seen(view)
    if now["mark"] == seen["mark"]:
        return {}
    follows = selection.step == str(seen["last"])
    return full_refresh(replace(selection, step="") if follows else selection, selection, seen)


def choose_tensor(view: QuantView) -> Updates:
    view = view.select(group="")
    head = {"head": panels.head_html(view), "tensor": view.selection.tensor}
    return updates(head, _tensor(view))


def change_map(view: QuantView) -> Updates:
    return updates({"step": int(view.selection.step)}, _draw(view, panels.MAP))


def preview_step(view: QuantView) -> Updates:
    """A slider in motion is not moved, or arrow keys would never reach the next snapshot."""
    return _draw(view, panels.MAP)


def next_step(view: QuantView) -> Updates:
    steps = view.snapshot_steps
    step = steps[(steps.index(int(view.selection.step)) + 1) % len(steps)]
    return updates({"step": step}, _draw(view.select(step=str(step)), panels.MAP))


def choose_group(view: QuantView) -> Updates:
    row, group = view.group
    return updates({"group": f"{row},{group}"}, _draw(view, panels.WEIGHTS))


def move_group(view: QuantView, by: int) -> Updates:
    view = view.moved(by)
    return updates(choose_group(view), _draw(view, panels.MAP))


def worst_group(view: QuantView) -> Updates:
    return move_group(view.select(group=""), 0)


def full_refresh(selection: QuantSelection, before: QuantSelection, seen: Any = None) -> Updates:
    """All of the page; `before` is the browser's selection, `seen` what was shown last."""
    jobs = queries.runs_with_profile(MAGNITUDE)
    selection = selection if selection.run or not jobs else replace(selection, run=jobs[0].run)
    runs = run_choices(jobs, selection.run)
    view = QuantView.at(selection)
    if view is None:
        launch = href("new", kind=dlqat.NAME)
        reason = empty_state(selection.run, NO_RUN, "recorded no groups", LATER, launch)
        return updates({"head": ""}, show_notice(reason, runs, selection.run))
    offers = as_kept(_offers(view, runs))
    return updates(
        show_charts(),
        {"head": panels.head_html(view), "seen": {**_seen(view), "offers": offers}},
        control_updates(view.selection, before, offers, seen and seen["offers"]),
        _draw(view, panels.MAGNITUDES),
        _tensor(view),
    )


def _seen(view: QuantView) -> dict[str, Any]:
    """Mark of what was shown, to tell whether there is more."""
    run = view.selection.run
    mark = [queries.job(run).state, *(queries.profiles_mark(run) or ())]
    return {"mark": mark, "last": view.snapshot_steps[-1]}


def _offers(view: QuantView, runs: Choices) -> dict[str, dict[str, Any]]:
    quant, steps = view.quant, view.snapshot_steps
    return {
        "run": {"choices": runs},
        "stage": {"choices": [(quant.labels[s], s) for s in quant.stages]},
        "tensor": {"choices": choices(quant.tensors)},
        "figure": {"choices": [(figure.label, name) for name, figure in FIGURES.items()]},
        "step": {"minimum": steps[0], "maximum": max(steps[-1], 1)},
        "group": {},
    }


def _tensor(view: QuantView) -> Updates:
    return updates(_draw(view, panels.MAP, panels.USAGE, panels.ENERGY), choose_group(view))


def _draw(view: QuantView, *chosen: Panel) -> Updates:
    return updates(*(panel.show(panels.CHARTS[panel](view)) for panel in chosen))
