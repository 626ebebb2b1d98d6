"""A list to choose from whose choices change while the page is open."""

from __future__ import annotations

from typing import Any

import gradio as gr


class FreeDropdown(gr.Dropdown):
    """A dropdown that takes what the browser says as it is.

    `gr.Dropdown` refuses a value that is not among the choices *this server* has sent, and so
    every open page once the server was restarted. Whoever uses a value makes sure it is valid.
    """

    is_template = True  # drawn by Gradio's own dropdown

    def preprocess(self, payload: Any) -> Any:
        """The value as it was sent."""
        return payload

    def postprocess(self, value: Any) -> Any:
        """The value as it is set."""
        return value
