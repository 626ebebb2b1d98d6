"""Three sentences for the first visit. The browser remembers that they were closed."""

from __future__ import annotations

import gradio as gr

SENTENCES = (
    "Slimscope compresses causal language models: SDS pruning zeroes weights, DL-QAT trains them "
    "onto a coarse grid, Amphista drafts several tokens at once.",
    "A run is a background job: add it on Launch, watch it on Jobs, close the browser; it goes on.",
    "What it did to the weights and what that cost stands on Weights and Compare; / searches, ? "
    "lists the keys, and Help says what every figure means.",
)


def tour() -> None:
    """Shows them where the browser has not closed them before; hidden until it is known."""
    lines = "".join(f"<li>{sentence}</li>" for sentence in SENTENCES)
    gr.HTML(
        f'<section class="card tour" aria-label="First visit"><ol>{lines}</ol>'
        '<button type="button" class="button" data-testid="close-tour">Got it</button></section>',
        js_on_load="slimscope.tour(element)",
        apply_default_css=False,
        elem_id="overview-tour",
        elem_classes="tour-holder",
    )
