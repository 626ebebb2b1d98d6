"""Controls that offer choices: dropdowns whose choices change, and radios."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

Choices = list[tuple[str, str]]  # label, value


def choices(labels: Mapping[str, str]) -> Choices:
    return [(label, value) for value, label in labels.items()]


def dropdown(label: str, elem_id: str, **options: Any) -> "FreeDropdown":
    """A dropdown, not yet drawn; a handler fills in its choices."""
    given: dict[str, Any] = {"choices": [], "render": False} | options
    return FreeDropdown(label=label, elem_id=elem_id, **given)


def segmented(label: str, elem_id: str) -> "FreeRadio":
    """Choices side by side, not yet drawn; a handler fills them in."""
    return FreeRadio([], label=label, elem_id=elem_id, elem_classes="segmented", render=False)


class FreeRadio(gr.Radio):
    """A radio whose choices change, and which does not validate, as `FreeDropdown`."""

    is_template = True  # drawn by Gradio's own radio

    def preprocess(self, payload: Any) -> Any:
        return payload


class FreeDropdown(gr.Dropdown):
    """Dropdown without validation. `gr.Dropdown` rejects values that *this server* has not offered,
    and so every open page after a restart. Handlers have to validate."""

    is_template = True  # drawn by Gradio's own dropdown

    def preprocess(self, payload: Any) -> Any:
        return payload

    def postprocess(self, value: Any) -> Any:
        return value
