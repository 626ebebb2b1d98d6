"""Help: metrics, glossary, keyboard shortcuts, and how to use the same from a shell or program."""

from pathlib import Path

import gradio as gr

from backend.models.sources import catalogue
from backend.text import corpora
from backend.text.files import PREFIX
from jobs.metrics import METRICS
from ui.api_errors import API_PATH
from ui.frame import Page, shortcuts
from ui.pages import pages
from ui.pages.help.glossary import (
    COMMANDS,
    FILTERS,
    GLOSSARY,
    OPERATIONS,
    PYTHON,
    QUESTIONS,
    REQUESTS,
)
from ui.templates import fragments
from ui.widgets.html import HtmlPanel

HTML = fragments("pages/help/page.html")
TO_TERM = "document.getElementById(location.hash.slice(1))?.scrollIntoView({ block: 'center' })"
Source = catalogue.CatalogueEntry | corpora.CorpusInfo


def build() -> None:
    keys = shortcuts((page.key, page.name, page.path) for page in pages())
    words = HTML.words(QUESTIONS, keys, FILTERS, GLOSSARY, sources())
    figures = HTML.figures([m for m in METRICS.values() if m.definition])
    use = HTML.use(COMMANDS, API_PATH, REQUESTS, PYTHON, OPERATIONS)
    with gr.Row(elem_classes="help"):
        with gr.Column(scale=1, min_width=320):
            gr.HTML(words, js_on_load=TO_TERM, apply_default_css=False, elem_id="help-words")
        with gr.Column(scale=1, min_width=320):
            gr.HTML(figures, js_on_load=TO_TERM, apply_default_css=False, elem_id="help-figures")
            HtmlPanel(use, elem_id="help-use")


def sources() -> list[Source]:
    models = [each for each in catalogue.entries() if not Path(each.name).is_absolute()]
    datasets = [each for each in corpora.corpora() if not each.name.startswith(PREFIX)]
    return [*models, *datasets]


PAGE = Page("Help", "help", build, order=90, section="", listed=False)
