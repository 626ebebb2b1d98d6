"""What the Weights page shows of a choice. A handler names only the outputs that change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from backend.store import queries
from backend.store.tables import Job
from ui.charts.channels import MEASURES
from ui.charts.stages import perplexities, perplexity_note, stage_perplexities
from ui.charts.statistics import STATISTICS, available
from ui.format import href
from ui.pages.weights.controls import CONTROLS, COST, OF_LAYERS, OF_TENSOR
from ui.pages.weights.data import TensorView
from ui.pages.weights.layer_charts import layers_view
from ui.pages.weights.selection import AGAINST, DENSE, GROUPS, RunWeights, WeightsSelection
from ui.pages.weights.tensor_charts import tensor_view
from ui.widgets.chart import note_html
from ui.widgets.empty_state import empty_state
from ui.widgets.explorer import Updates, run_choice
from ui.widgets.html import empty
from ui.widgets.weight_tables import explained_table, perplexity_table

NO_RUN = "No run has stored weight statistics yet."

Choices = list[tuple[str, str]]  # words, value


def choice_of(values: Sequence[Any]) -> WeightsSelection:
    """The choice the controls stand for; an empty control is up to us."""
    given = dict(zip(CONTROLS, values, strict=True))
    shown = tuple(given.pop("show") or ())
    return WeightsSelection(**{name: value or "" for name, value in given.items()}, show=shown)


def everything(
    asked: WeightsSelection, before: WeightsSelection, seen: Any = None, at: str = ""
) -> Updates:
    """All of the page. Controls that hold the right value already are not set, so that a refresh
    takes nothing out of a person's hand.

    Args:
        seen: what was shown last; stages reached since join what is shown, and charts whose
            figures are the same are left alone.
        at: the stage the story begins with.
    """
    runs = queries.runs_with_weights()
    asked = asked if asked.run else replace(asked, run=runs[0].run if runs else "")
    looked = TensorView.at(asked)
    if looked is None:
        return _nothing(asked.run, runs)
    known = seen["stages"] if seen else None
    joined = asked.joined_by(looked.weights, known).settled(looked.weights, looked.other)
    looked = replace(looked, choice=joined)
    held = [s.step for s in looked.snapshots.values()] + [s.step for s in looked.theirs.values()]
    same = seen is not None and seen["held"] == [joined.tensor, *held]
    return {
        "seen": {
            "marks": marks(joined), "stages": looked.weights.stages, "held": [joined.tensor, *held]
        },
        "notice": gr.update(visible=False),
        "charts": gr.update(visible=True),
        **_controls(looked, before, runs),
        **layers_shown(looked),
        **({} if same else tensor_shown(looked, at)),
        **_costs(looked.weights),
    }  # fmt: skip


def marks(choice: WeightsSelection) -> list[Any]:
    return [queries.weights_mark(run) if run else None for run in (choice.run, choice.vs)]


def _nothing(run: str, runs: Sequence[Job]) -> Updates:
    return {
        "seen": None,
        "notice": gr.update(value=_why_nothing(run), visible=True),
        "charts": gr.update(visible=False),
        "run": gr.update(choices=[run_choice(job) for job in runs]),
    }


def _why_nothing(run: str) -> str:
    """HTML: what is missing, and where it comes from."""
    if not run:
        return empty(
            f"{NO_RUN} Look at a model above, or start a run.", (href("launch"), "New run")
        )
    later = "They appear here block by block."
    return empty_state(run, "stored no weight statistics", later, href("launch"))


def _controls(looked: TensorView, before: WeightsSelection, runs: Sequence[Job]) -> Updates:
    """Choices of every control, its value where it changes, and whether its view has it."""
    choice, weights = looked.choice, looked.weights
    stages = [(weights.labels[stage], stage) for stage in weights.stages]
    others = [run_choice(job) for job in runs if job.run != weights.job.run]
    choices: dict[str, Choices] = {
        "run": [run_choice(job) for job in runs],
        "vs": [("Nothing", ""), *others],
        "tensor": [(short, tensor) for tensor, short in weights.tensors.items()],
        "stage": stages,
        "stat": [(STATISTICS[name].label, name) for name in available(weights.table)],
        "against": _againsts(looked),
        "group": _swapped(GROUPS),
        "start": _swapped(choice.pages(weights)),
        "show": stages,
        "measure": _swapped(MEASURES),
    }
    visible = offer(looked, OF_LAYERS, choice.layers) | offer(looked, OF_TENSOR, choice.view)
    updates: Updates = {}
    for name in CONTROLS:
        new, old = getattr(choice, name), getattr(before, name)
        update: dict[str, Any] = {"choices": choices[name]} if name in choices else {}
        if new != old or not (before.run or new):
            update["value"] = list(new) if isinstance(new, tuple) else new
        if name in visible:
            update["visible"] = visible[name]["visible"]
        updates[name] = gr.update(**update)
    return updates


def offer(looked: TensorView, of: dict[str, tuple[str, ...]], view: str) -> Updates:
    """Shows the controls the view has, hides those of the card's other views."""
    every = {name for names in of.values() for name in names}
    pages = len(looked.choice.pages(looked.weights)) > 1
    return {
        name: gr.update(visible=name in of[view] and (name != "start" or pages)) for name in every
    }


def pages_offered(looked: TensorView) -> Updates:
    """The pages of small multiples there are now."""
    choice = looked.choice
    pages = choice.pages(looked.weights)
    shown = choice.layers == "shapes" and len(pages) > 1
    return {"start": gr.update(choices=_swapped(pages), value=choice.start, visible=shown)}


def _againsts(looked: TensorView) -> Choices:
    """What the map can be compared with."""
    held = {"": True, "dense": DENSE in looked.weights.stages, "run": looked.other is not None}
    return [(words, name) for name, words in AGAINST.items() if held[name]]


def _swapped(choices: Mapping[str, str]) -> Choices:
    return [(words, value) for value, words in choices.items()]


def layers_shown(looked: TensorView) -> Updates:
    return _card("layers", layers_view(looked))


def tensor_shown(looked: TensorView, at: str = "") -> Updates:
    name = f"{looked.weights.job.run}-{looked.choice.tensor}"
    table = explained_table([*looked.snapshots.values()], looked.weights.labels, name)
    return {**_card("tensor", tensor_view(looked, at)), "words": table}


def _costs(weights: RunWeights) -> Updates:
    results = queries.results([weights.job.id])
    found = perplexities(results, weights.labels)
    if not found:
        waits = len(weights.labels) > 1
        return {"cost": gr.update(visible=waits), **_card("cost", [None, note_html(COST), ""])}
    return {
        "cost": gr.update(visible=True),
        **_card(
            "cost",
            [
                stage_perplexities(found, weights.labels),
                note_html(COST, perplexity_note(found)),
                perplexity_table(found, weights.labels, f"{weights.job.run}-perplexity"),
            ],
        ),
    }


def _card(name: str, parts: Sequence[Any]) -> Updates:
    return dict(zip((f"{name}_chart", f"{name}_note", f"{name}_table"), parts, strict=True))
