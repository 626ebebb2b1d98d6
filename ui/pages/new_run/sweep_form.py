"""The form of a sweep: fields of a config with several values each."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from pydantic import BaseModel

from backend.errors import SlimscopeError
from jobs.sweep import MOST_FIELDS, MOST_RUNS
from ui.templates import fragments
from ui.widgets.config_form import field_error, title
from ui.widgets.html import notice, plain

HTML = fragments("pages/new_run/page.html")
HELP = (
    f"Up to {MOST_FIELDS} fields can have several values each; every combination becomes a run, at "
    f"most {MOST_RUNS}. Separate values with commas; 0..2 is a range. Several seeds give mean and "
    "standard deviation."
)
TITLE = "Sweep"
NO_FIELD = ""


class SweepForm:
    """Rows of a field and its values; draw it inside a Blocks context.

    Args:
        config: the pydantic class whose fields can be chosen.
        prefix: starts the ids of its elements.
    """

    def __init__(self, config: type[BaseModel], prefix: str = "") -> None:
        self.prefix = prefix
        self.example = "2:4, 70%" if "pattern" in config.model_fields else "0..2"
        choices = [(title(n, info), n) for n, info in config.model_fields.items()]
        self.inputs: list[gr.Dropdown | gr.Textbox] = []
        self.messages: list[gr.HTML] = []
        self.accordion = gr.Accordion(TITLE, open=False, elem_classes="form-advanced sweep")
        with self.accordion:
            plain(HTML.hint(HELP))
            for number in range(1, MOST_FIELDS + 1):
                self._row(number, [("–", NO_FIELD), *choices])

    def _row(self, number: int, choices: list[tuple[str, str]]) -> None:
        with gr.Row(elem_classes="form-grid"):
            with gr.Column(min_width=200, elem_classes="form-field"):
                field = gr.Dropdown(
                    choices,
                    value=NO_FIELD,
                    label=f"Field {number}",
                    elem_id=f"{self.prefix}sweep-field-{number}",
                )
            with gr.Column(min_width=200, elem_classes="form-field"):
                values = gr.Textbox(
                    label="Values",
                    max_lines=1,
                    max_length=600,
                    placeholder=self.example,
                    elem_id=f"{self.prefix}sweep-values-{number}",
                )
                self.messages.append(notice(f"{self.prefix}sweep-message-{number}"))
        self.inputs += [field, values]

    def pairs(self, given: Sequence[Any]) -> list[tuple[str, str]]:
        """The rows that were filled in, as (field, values); no field where none was chosen."""
        rows = zip(given[::2], (str(text or "") for text in given[1::2]), strict=True)
        return [(field or NO_FIELD, text) for field, text in rows if field or text.strip()]

    def rows_of(self, error: SlimscopeError | None, given: Sequence[Any]) -> list[int]:
        """The row the error is about, if any: of a field that was named twice, the second."""
        if error is None:
            return []
        rows = enumerate(zip(given[::2], given[1::2], strict=True))
        return [i for i, (field, text) in rows if (field or text) and field == error.field][-1:]

    def show_errors(self, error: SlimscopeError | None, given: Sequence[Any]) -> dict[Any, Any]:
        """Updates that show the error under its row and clear the other messages."""
        wrong = self.rows_of(error, given)
        html = field_error(error) if error else ""
        return {
            message: gr.update(value=html if i in wrong else "", visible=i in wrong)
            for i, message in enumerate(self.messages)
        }

    def count(self, runs: int) -> dict[Any, Any]:
        """Update of the accordion's label: how many runs there will be."""
        return {self.accordion: gr.update(label=f"{TITLE} · {runs} runs" if runs > 1 else TITLE)}
