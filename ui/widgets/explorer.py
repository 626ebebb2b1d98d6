"""What the pages share that look into one run: its name in a list, its tensors, and handlers that
redraw only what they name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import gradio as gr
import pandas as pd

from backend.store.tables import Job
from ui.charts.heatmap import in_order
from ui.runs.results import setting_summary

Updates = dict[str, Any]  # name of an output -> what it is to show
PICKED = "(now) => slimscope.picked.customdata ?? now"  # the point of a chart that was clicked on


def run_choice(job: Job) -> tuple[str, str]:
    """A run in a dropdown: what it is called, or what was done to what; and its id."""
    about = job.name or " · ".join([str(job.config.get("model", "")), *setting_summary(job)])
    return f"{job.run}  {about}".strip(), job.run


def tensor_names(table: pd.DataFrame) -> dict[str, str]:
    """Tensor -> "Block 3, up_proj", in the order of the model.

    Args:
        table: columns tensor, block, module.
    """
    modules = in_order([*table["module"].unique()])
    unique = table.drop_duplicates("tensor")
    unique = unique.assign(place=unique["module"].map(modules.index))
    return {
        row.tensor: f"Block {row.block}, {row.module.rsplit('.', 1)[-1]}"
        for row in unique.sort_values(["block", "place"]).itertuples()
    }


def named_outputs(
    handler: Callable[..., Updates], names: Collection[str]
) -> Callable[..., list[Any]]:
    """The handler as Gradio calls it, for outputs `names`: what it does not name stays as it is."""

    def call(*given: Any) -> list[Any]:
        shown = handler(*given)
        return [shown.get(name, gr.skip()) for name in names]

    return call
