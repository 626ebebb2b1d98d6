"""The page *Workbench*: a format for every layer, set by knobs or a budget, with the predicted and
the measured effect of each change.

formats    values of the knobs, parts of formats
tables     layers, runs and state of a model, weights of a layer
profiles   predictions, best mixes, the mix of a typed budget

The page's scripts draw it (`assets/scripts/workbench`); the live model measures."""

from typing import get_args

import gradio as gr

from jobs.operations.live import Effort
from ui.frame import Page, on_change
from ui.pages.workbench.profiles import FRONTS
from ui.templates import fragments
from ui.theme import GREEN, ink

HTML = fragments("pages/workbench/page.html")
START = "slimscope.module('workbench/page').then((page) => page.start(element))"
COLORS = {
    "format": "Format",
    "sensitivity": "Sensitivity",
    "error": "Output error",
    "bytes": "Bytes",
}
BUDGETS = {  # front and kind of a budget
    "quantized size": "MB of the file",
    "quantized bits": "bits a weight",
    "quantized loss": "× perplexity, by bits",
    "quantized ms": "ms a token, by bits",
    "pruned sparsity": "% of zeros",
    "pruned loss": "× perplexity, by sparsity",
    "pruned ms": "ms a token, by sparsity",
}
GAUGES = {
    "kl": ("KL divergence", "Of the next token from the dense model, nats"),
    "size": ("File", "Size of the saved model: layers in their formats, the rest in 16 bits"),
    "read": ("Read per token", "Bytes of matrices per token, as stored in memory"),
    "speed": ("Speed", "Tokens per second, one text at a time"),
}
RUN_LABELS = (  # label and purpose of the runs of each `Effort`
    ("One-shot, no training", "Prunes and rounds once, as predicted."),
    ("SDS", "Prunes, re-densifies, prunes again."),
    ("DL-QAT", "Then trains the quantized weights: slower, better, most at 3 bits or fewer."),
    ("Both as a pipeline", "SDS, then DL-QAT on its zeros."),
)


def build() -> None:
    gr.HTML(
        html_template=HTML.workbench(
            COLORS,
            BUDGETS,
            GAUGES,
            dict(zip(get_args(Effort), RUN_LABELS, strict=True)),
            [*FRONTS.values()],
            GREEN,
            ink,
        ),
        js_on_load=START,
        apply_default_css=False,
        elem_id="workbench",
    )
    on_change(None, js="() => { slimscope.changed?.(); }")


PAGE = Page("Workbench", "workbench", build, 20, section="Workbench", key="l", heading=False)
