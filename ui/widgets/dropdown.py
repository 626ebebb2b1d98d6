"""Dropdowns whose choices change."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

Choices = list[tuple[str, str]]  # label, value


def choices(labels: Mapping[str, str]) -> Choices:
    """Choices from labels by value."""
    return [(label, value) for value, label in labels.items()]


def dropdown(label: str, elem_id: str, **options: Any) -> "FreeDropdown":
    """A dropdown that is not rendered yet; a handler sets its choices."""
    arguments: dict[str, Any] = {"choices": [], "render": False} | options
    return FreeDropdown(label=label, elem_id=elem_id, **arguments)


class FreeDropdown(gr.Dropdown):
    """A dropdown without validation; handlers have to validate its value.

    `gr.Dropdown` rejects values that *this server process* has not offered, and therefore the
    values of every page that was open during a restart."""

    is_template = True  # drawn by Gradio's own dropdown

    def preprocess(self, payload: Any) -> Any:
        return payload

    def postprocess(self, value: Any) -> Any:
        return value
