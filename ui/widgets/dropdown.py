"""A dropdown whose choices change while the page is open."""

from __future__ import annotations

from typing import Any

import gradio as gr


class FreeDropdown(gr.Dropdown):
    """A dropdown that does not validate (see `ui.gradio_patches` for other changes to Gradio 6.31).

    `gr.Dropdown` rejects a value that is not among the choices *this server* has sent, and so
    every open page after a restart of the server. Handlers have to validate the value.
    """

    is_template = True  # drawn by Gradio's own dropdown

    def preprocess(self, payload: Any) -> Any:
        """The value as it was sent."""
        return payload

    def postprocess(self, value: Any) -> Any:
        """The value as it is set."""
        return value
