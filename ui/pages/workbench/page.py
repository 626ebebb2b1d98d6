"""Workbench: a format for every layer, changed by knobs, and what it does at once.

tables    layers, knobs, the profile a browser predicts from, the weights it makes any format of

All else is in the page's scripts (`assets/scripts/workbench`); measured is by the live model."""

import gradio as gr

from ui.frame import Page, on_change
from ui.pages.workbench.tables import FRONTS
from ui.templates import fragments
from ui.theme import ink

HTML = fragments("pages/workbench/page.html")
START = "slimscope.module('workbench/page').then((page) => page.start(element))"
COLORS = {
    "format": "Format",
    "predicted": "Predicted loss",
    "sensitivity": "Sensitivity",
    "error": "Output error",
    "bytes": "Bytes",
}
UNITS = {"size": "MB of the file", "read": "MB read per token", "loss": "% perplexity lost"}
GAUGES = {
    "ratio": ("Perplexity", "Over that of the dense model, with its 95 % interval"),
    "kl": ("KL divergence", "Of the next token from the dense model, nats"),
    "size": ("File", "What a run would save: layers in their formats, the rest in 16 bits"),
    "read": (
        "Read per token",
        "Bytes of matrices a token takes, as they lie in memory",
    ),
    "speed": ("Speed", "Tokens a second, one text at a time"),
}


def build() -> None:
    gr.HTML(
        html_template=HTML.workbench(COLORS, UNITS, GAUGES, FRONTS.values(), ink),
        js_on_load=START,
        apply_default_css=False,
        elem_id="workbench",
    )
    on_change(None, js="() => { slimscope.changed?.(); }")


PAGE = Page("Workbench", "workbench", build, 20, section="Workbench", key="l", heading=False)
