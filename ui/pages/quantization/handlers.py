"""What happens on the Quant page: each event, and the outputs it changes."""

from dataclasses import replace
from typing import Any

from jobs.dlqat import config as dlqat
from ui.pages.quantization import panels
from ui.pages.quantization.group_map import FIGURES
from ui.pages.quantization.selection import MAGNITUDE, QuantSelection, QuantView, quant_of
from ui.runs.explorer_page import ExplorerPage, profiles_seen
from ui.widgets.dropdown import choices
from ui.widgets.panel import Panel, Updates, updates


def change_run(selection: QuantSelection) -> Updates:
    return SHARED.refresh_all(replace(selection, step="", group=""), selection)


def refresh(seen: Any, selection: QuantSelection) -> Updates:
    """A page at the newest snapshot follows the training."""
    follows = seen and selection.step == str(seen["mark"][-1].get(selection.stage))
    return SHARED.refresh(seen, selection, replace(selection, step="") if follows else selection)


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


def draw(view: QuantView) -> Updates:
    return updates({"head": panels.head_html(view)}, _draw(view, panels.MAGNITUDES), _tensor(view))


def mark(run: str) -> list[Any]:
    """With the step of the last snapshot of each stage."""
    quant = quant_of(run)
    lasts = {stage: quant.steps[stage, MAGNITUDE][-1] for stage in quant.stages} if quant else {}
    return [*profiles_seen(run), lasts]


def offers(view: QuantView) -> dict[str, dict[str, Any]]:
    quant, steps = view.quant, view.snapshot_steps
    return {
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


SHARED = ExplorerPage(
    QuantSelection,
    QuantView.at,
    mark,
    offers,
    draw,
    profile=MAGNITUDE,
    kind=dlqat.NAME,
    no_run="No run has trained inside a quantisation grid yet.",
    lacks="recorded no groups",
    later="They appear here when training begins.",
)
