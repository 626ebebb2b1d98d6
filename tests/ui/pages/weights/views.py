"""The Weights page as the tests of it open it."""

from __future__ import annotations

from typing import Any

import gradio as gr
import plotly.graph_objects as go

from ui.pages.weights import handlers as page
from ui.pages.weights.data import TensorView
from ui.pages.weights.selection import WeightsSelection
from ui.widgets.panel import Updates

CONTROLS = WeightsSelection.names()
MAIN = ["dense", "first", "redense", "sds"]
TENSOR = "model.layers.2.mlp.up_proj.weight"
PICKED = {
    "run": "sds-0001", "vs": "sds-0002", "tensor": TENSOR, "layers": "depth", "stage": "first",
    "stat": "std", "against": "dense", "group": "block", "start": "0", "view": "mirror",
    "show": "dense,first", "y": "log", "side": "column", "measure": "max", "order": "index",
    "cells": "max", "flow": "product", "look": "surface",
}  # fmt: skip


def opened(**query: str) -> Updates:
    return page.open_page(
        gr.Request(query_params=query, headers={}, client={"host": "127.0.0.1", "port": 1})
    )


def given(**values: Any) -> WeightsSelection:
    """What the browser sends: a tensor at the main stages, and other controls, those not named
    empty."""
    held = {"run": "sds-0001", "tensor": TENSOR, "show": MAIN} | values
    return WeightsSelection.from_controls([held.get(name) for name in CONTROLS])


def view(**values: Any) -> TensorView:
    """What is looked at then."""
    settled_view = TensorView.at(given(**values))
    assert settled_view is not None
    return settled_view


def settled(run: str, **values: Any) -> WeightsSelection:
    """What the browser sends after a page was opened and some controls were changed."""
    seen = opened(run=run)
    return WeightsSelection.from_controls(
        [values.get(name, seen[name]["value"]) for name in CONTROLS]
    )


def outlined(figure: go.Figure) -> list[str]:
    return list(figure.layout.meta["picked"])


def visible(seen: Updates) -> set[str]:
    return {name for name in CONTROLS if seen[name].get("visible", True)}
