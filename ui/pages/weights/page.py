"""Weights: where compression acted, and what it made of one tensor, stage by stage.

    controls    what stands on the page, and which controls a view has
    render      what is shown of a choice
    handlers    what each event changes
    inspect_model  "Look at a model without a run": statistics without a run

What is looked at is one `Choice`: from the address when the page is opened, from the controls
afterwards; it is written back into the address.
"""

from ui.frame import Page
from ui.pages.weights.handlers import build

PAGE = Page("Weights", "weights", build, order=50, key="w")
